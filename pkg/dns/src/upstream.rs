//! Asks the node's own DNS servers: the question goes out as it came in, with an id of ours.
//!
//! Invariants: only an answer from the asked server, to our id and the same question, is taken; this server never asks
//! itself.

use hickory_proto::op::Message;
use parking_lot::Mutex;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// For each server, one after the other.
const PATIENCE: Duration = Duration::from_secs(2);
/// The file is looked at again after this time, when there is a question.
const FRESH: Duration = Duration::from_secs(5);
const MAX_SERVERS: usize = 3;
/// An ephemeral port and sixteen bits of id are what a blind attacker has to guess.
const MAX_UDP: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("no DNS server to ask is named in {0}")]
    NoServers(String),
    #[error("DNS server {server} did not answer")]
    NoAnswer {
        server: SocketAddr,
        #[source]
        source: io::Error,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// The servers of a resolv.conf.
pub struct Upstream {
    path: PathBuf,
    /// Addresses where this server itself answers.
    own: Vec<IpAddr>,
    servers: Mutex<Servers>,
}

#[derive(Default)]
struct Servers {
    list: Vec<SocketAddr>,
    modified: Option<SystemTime>,
    looked: Option<Instant>,
}

impl Upstream {
    pub fn new(path: PathBuf, own: Vec<IpAddr>) -> Self {
        Upstream { path, own, servers: Mutex::default() }
    }

    /// The servers to ask, read again when the file has changed.
    pub fn servers(&self) -> Vec<SocketAddr> {
        let mut servers = self.servers.lock();
        if servers.looked.is_none_or(|at| at.elapsed() > FRESH) {
            servers.looked = Some(Instant::now());
            let modified = std::fs::metadata(&self.path).and_then(|m| m.modified()).ok();
            if modified.is_none() || modified != servers.modified {
                servers.modified = modified;
                let text = std::fs::read_to_string(&self.path).unwrap_or_default();
                servers.list = parse(&text).into_iter().filter(|s| !self.own.contains(&s.ip())).collect();
            }
        }
        servers.list.clone()
    }

    /// The first answer that a server gives to the encoded question, with the question's own id.
    pub async fn ask(&self, question: &[u8], transport: Transport) -> Result<Vec<u8>, UpstreamError> {
        let mut failed = UpstreamError::NoServers(self.path.display().to_string());
        for server in self.servers() {
            let asked = async {
                match transport {
                    Transport::Udp => ask_udp(server, question).await,
                    Transport::Tcp => ask_tcp(server, question).await,
                }
            };
            let answered = tokio::time::timeout(PATIENCE, asked).await;
            match answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(mut answer) => {
                    answer[..2].copy_from_slice(&question[..2]);
                    return Ok(answer);
                }
                Err(source) => failed = UpstreamError::NoAnswer { server, source },
            }
        }
        Err(failed)
    }
}

/// The `nameserver` lines. An address may have a port (`[::1]:53`, `10.0.0.1:5353`), as tests want it.
pub fn parse(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().map(|l| l.split(['#', ';']).next().unwrap_or_default().split_whitespace());
    let values = lines.filter_map(|mut words| (words.next() == Some("nameserver")).then(|| words.next()).flatten());
    let servers = values.filter_map(|v| match v.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, 53)),
        Err(_) => v.parse().ok(),
    });
    servers.take(MAX_SERVERS).collect()
}

/// The question under an id that nobody knows.
fn with_own_id(question: &[u8]) -> Vec<u8> {
    let mut own = question.to_vec();
    own[..2].copy_from_slice(&Message::query().metadata.id.to_be_bytes());
    own
}

async fn ask_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Connected: the kernel drops what others send, and tells when nobody listens there.
    socket.connect(server).await?;
    let own = with_own_id(question);
    socket.send(&own).await?;
    let mut buffer = vec![0; MAX_UDP];
    loop {
        let n = socket.recv(&mut buffer).await?;
        if is_answer(&own, &buffer[..n]) {
            buffer.truncate(n);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let own = with_own_id(question);
    let length = u16::try_from(own.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes()[..], &own].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    if is_answer(&own, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Same id, a response, same question.
fn is_answer(question: &[u8], answer: &[u8]) -> bool {
    if answer.len() < 12 || answer[..2] != question[..2] || answer[2] & 0x80 == 0 {
        return false;
    }
    let (Some(asked), Some(got)) = (question_section(question), question_section(answer)) else {
        // A server that could not even read the question may leave it out.
        return answer[4..6] == [0, 0] && answer[3] & 0xf != 0;
    };
    asked.eq_ignore_ascii_case(got)
}

/// The bytes of the first question: labels, type, class.
fn question_section(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? == [0, 0] {
        return None;
    }
    let mut at = 12;
    loop {
        match usize::from(*message.get(at)?) {
            0 => return message.get(12..at + 5),
            label @ 1..64 => at += label + 1,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 10.0.0.1 # first\nnameserver fd00::1\nnameserver\n\
            nameserver bad\noptions ndots:5\n nameserver 127.0.0.1:5353\nnameserver 1.1.1.1";
        let want = ["10.0.0.1:53", "[fd00::1]:53", "127.0.0.1:5353"].map(|s| s.parse::<SocketAddr>().unwrap());
        assert_eq!(parse(text), want);
    }

    #[test]
    fn own_addresses_are_not_asked_and_changes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 10.43.0.10\nnameserver 192.0.2.1").unwrap();
        let upstream = Upstream::new(path.clone(), vec!["10.43.0.10".parse().unwrap()]);
        assert_eq!(upstream.servers(), ["192.0.2.1:53".parse().unwrap()]);
        std::fs::write(&path, "nameserver 192.0.2.2").unwrap();
        let later = SystemTime::now() + Duration::from_secs(10);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        upstream.servers.lock().looked = None;
        assert_eq!(upstream.servers(), ["192.0.2.2:53".parse().unwrap()]);
    }

    #[test]
    fn only_the_answer_to_our_question_is_taken() {
        let q = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";
        let answer = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut a = q.to_vec();
            a[2] |= 0x80;
            edit(&mut a);
            is_answer(q, &a)
        };
        assert!(answer(&|_| ()));
        assert!(answer(&|a| a[13] = b'A'), "case does not matter");
        assert!(!answer(&|a| a[13] = b'b'));
        assert!(!answer(&|a| a[0] = 0));
        assert!(!answer(&|a| a[2] = 1));
        assert!(!answer(&|a| a[16] = 28));
        assert!(!answer(&|a| a.truncate(14)));
    }
}
