//! The sockets: reads questions, sends answers, forwards what is not the cluster's.
//!
//! Invariants: a malformed or flooding client costs a bounded amount of memory and no other client's answers; an answer over
//! UDP is never longer than the client said it takes.

use crate::answer::{Answer, Outcome, Zone, answer, failure};
use crate::cache::{Cache, CacheKey};
use crate::cluster::{Cluster, Informed};
use crate::upstream::{Transport, Upstream};
use crate::{DnsConfig, Statistics};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use isopod_base::errors::Chain;
use isopod_client::Informers;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Questions that wait for other servers at one time.
const MAX_FORWARDED: usize = 500;
const MAX_CONNECTIONS: usize = 100;
const MAX_ALIASES: usize = 8;
/// A connection without a question is closed.
const IDLE: Duration = Duration::from_secs(10);
/// An address that is not there yet (the bridge's) is tried again.
const BIND_AGAIN: Duration = Duration::from_millis(500);
/// What we take and say we take over UDP (the DNS flag day's value).
const UDP_SIZE: u16 = 1232;
const SMALLEST_UDP: u16 = 512;

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("{0:?} is not a usable cluster domain")]
    InvalidDomain(String),
    #[error("cannot listen for DNS on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// The DNS server.
pub struct Dns;

impl Dns {
    /// Answers until `stop`. A listening address that another program holds is an error; one that this machine does not
    /// have yet is waited for.
    pub async fn run(config: DnsConfig, informers: Informers, stop: CancellationToken) -> Result<(), DnsError> {
        let cluster = Informed::new(&informers);
        Self::serve(config, Arc::new(cluster), stop).await
    }

    /// As [`Dns::run`], for any view of a cluster.
    pub async fn serve(config: DnsConfig, cluster: Arc<dyn Cluster>, stop: CancellationToken) -> Result<(), DnsError> {
        let own: Vec<IpAddr> = config.listen.iter().map(SocketAddr::ip).chain(config.service_ip).collect();
        // Listening on loopback with an own port (as tests do) does not make every server there this one.
        let own = own.into_iter().filter(|ip| !ip.is_loopback()).collect();
        let server = Arc::new(Server {
            zone: config.zone()?,
            cluster,
            upstream: Upstream::new(config.resolv_conf.clone(), own),
            cache: Cache::default(),
            forwards: Arc::new(Semaphore::new(MAX_FORWARDED)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            turn: AtomicUsize::new(0),
            statistics: config.statistics.clone(),
        });
        let each = config.listen.iter().map(|address| server.clone().listen(*address, stop.clone()));
        futures::future::try_join_all(each).await.map(drop)
    }
}

struct Server {
    zone: Zone,
    cluster: Arc<dyn Cluster>,
    upstream: Upstream,
    cache: Cache,
    forwards: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// Rotates the addresses in answers.
    turn: AtomicUsize,
    statistics: Arc<Statistics>,
}

/// What can be said at once about a datagram.
enum Reply {
    Now(Vec<u8>),
    /// Somebody else knows: all of it, or what the alias in the answer so far stands for.
    Forward(Message, Option<Answer>),
    /// Not a question at all.
    Silence,
}

impl Server {
    async fn listen(self: Arc<Self>, address: SocketAddr, stop: CancellationToken) -> Result<(), DnsError> {
        let Some(bound) = stop.run_until_cancelled(bind(address)).await else { return Ok(()) };
        let (udp, tcp) = bound.map_err(|source| DnsError::Listen { address, source })?;
        let all = async { tokio::join!(self.clone().serve_udp(Arc::new(udp)), self.clone().serve_tcp(tcp)) };
        stop.run_until_cancelled(all).await;
        Ok(())
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            // Errors here are those of earlier answers (ICMP): the socket is in order.
            let Ok((n, from)) = socket.recv_from(&mut buffer).await else { continue };
            match self.reply(&buffer[..n], Transport::Udp) {
                Reply::Now(answer) => {
                    let _ = socket.send_to(&answer, from).await;
                }
                Reply::Silence => {}
                Reply::Forward(question, alias) => {
                    // When too many wait, the client asks again.
                    let Ok(permit) = self.forwards.clone().try_acquire_owned() else { continue };
                    let (server, socket) = (self.clone(), socket.clone());
                    let raw = buffer[..n].to_vec();
                    tokio::spawn(async move {
                        let answer = server.forward(&raw, &question, alias, Transport::Udp).await;
                        let _ = socket.send_to(&answer, from).await;
                        drop(permit);
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors: the ones in use come back.
                tokio::time::sleep(BIND_AGAIN).await;
                continue;
            };
            let server = self.clone();
            tokio::spawn(async move {
                // A client that goes away or is silent for long is no event.
                let _ = server.converse(stream).await;
                drop(permit);
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let read = async {
                let length = stream.read_u16().await?;
                let mut question = vec![0; length.into()];
                stream.read_exact(&mut question).await?;
                io::Result::Ok(question)
            };
            let raw = tokio::time::timeout(IDLE, read).await??;
            let answer = match self.reply(&raw, Transport::Tcp) {
                Reply::Now(answer) => answer,
                Reply::Forward(question, alias) => self.forward(&raw, &question, alias, Transport::Tcp).await,
                Reply::Silence => return Ok(()),
            };
            let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
            let framed = [&length.to_be_bytes()[..], &answer].concat();
            tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    fn count(&self, counter: impl Fn(&Statistics) -> &AtomicU64) {
        counter(&self.statistics).fetch_add(1, Ordering::Relaxed);
    }

    fn reply(&self, raw: &[u8], transport: Transport) -> Reply {
        let question = match Message::from_vec(raw) {
            Ok(m) if m.metadata.message_type == MessageType::Query => m,
            // Never answer an answer: two servers would talk for ever.
            Ok(_) => return Reply::Silence,
            Err(_) => return malformed(raw),
        };
        self.count(|s| &s.queries);
        if question.metadata.op_code != OpCode::Query {
            return Reply::Now(error(&question, ResponseCode::NotImp));
        }
        let [query] = &question.queries[..] else { return Reply::Now(error(&question, ResponseCode::FormErr)) };
        if question.edns.as_ref().is_some_and(|e| e.version() > 0) {
            return Reply::Now(error(&question, ResponseCode::BADVERS));
        }
        if query.query_class() != DNSClass::IN {
            return Reply::Now(error(&question, ResponseCode::Refused));
        }
        match answer(&self.zone, &*self.cluster, query.name(), query.query_type()) {
            Outcome::Answer(answer) => {
                self.count(|s| &s.cluster_answers);
                match answer.chase {
                    None => Reply::Now(self.finish(&question, answer, transport)),
                    Some(_) => Reply::Forward(question, Some(answer)),
                }
            }
            Outcome::Forward => match self.cache.get(&cache_key(&question, query), Instant::now()) {
                Some(mut cached) => {
                    self.count(|s| &s.cache_hits);
                    cached.metadata.id = question.metadata.id;
                    cached.metadata.recursion_desired = question.metadata.recursion_desired;
                    // The spelling that this client used.
                    cached.queries.clone_from(&question.queries);
                    Reply::Now(fit(cached, &question, transport))
                }
                None => Reply::Forward(question, None),
            },
        }
    }

    /// Asks the other servers, or answers SERVFAIL.
    async fn forward(&self, raw: &[u8], question: &Message, alias: Option<Answer>, transport: Transport) -> Vec<u8> {
        if let Some(alias) = alias {
            let resolved = self.chase(question, alias).await;
            return self.finish(question, resolved, transport);
        }
        match self.ask(raw, question, transport).await {
            // As it came: what is too long for the client is too long by the client's own word to that server.
            Some(answer) => answer,
            None => error(question, ResponseCode::ServFail),
        }
    }

    async fn ask(&self, raw: &[u8], question: &Message, transport: Transport) -> Option<Vec<u8>> {
        self.count(|s| &s.forwarded);
        match self.upstream.ask(raw, transport).await {
            Ok(answer) => {
                if let Some(query) = question.queries.first() {
                    self.cache.put(cache_key(question, query), &answer, Instant::now());
                }
                Some(answer)
            }
            Err(e) => {
                self.count(|s| &s.forward_failures);
                tracing::debug!(error = %Chain(&e), "a question could not be forwarded");
                None
            }
        }
    }

    /// Adds what an alias stands for. An alias alone is an answer, too.
    async fn chase(&self, question: &Message, mut so_far: Answer) -> Answer {
        let Some(kind) = question.queries.first().map(Query::query_type) else { return so_far };
        for _ in 0..MAX_ALIASES {
            let Some(target) = so_far.chase.take() else { break };
            match answer(&self.zone, &*self.cluster, &target, kind) {
                Outcome::Answer(next) => {
                    so_far.answers.extend(next.answers);
                    so_far.chase = next.chase;
                }
                Outcome::Forward => {
                    let mut further = Message::query();
                    further.metadata.recursion_desired = true;
                    further.add_query(Query::query(target, kind));
                    let Ok(raw) = further.to_vec() else { break };
                    let answered = match self.ask(&raw, &further, Transport::Udp).await {
                        Some(answer) => Message::from_vec(&answer).ok(),
                        None => None,
                    };
                    so_far.answers.extend(answered.map(|m| m.answers).unwrap_or_default());
                }
            }
        }
        so_far
    }

    /// Makes a message of an answer about the cluster.
    fn finish(&self, question: &Message, mut answer: Answer, transport: Transport) -> Vec<u8> {
        let kind = question.queries.first().map(Query::query_type);
        if matches!(kind, Some(RecordType::A | RecordType::AAAA)) && answer.answers.len() > 1 && answer.chase.is_none()
        {
            // Clients take the first address: each in its turn. An alias stays before what it stands for.
            let first = answer.answers.iter().position(|r| Some(r.record_type()) == kind).unwrap_or_default();
            let addresses = &mut answer.answers[first..];
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len().max(1);
            addresses.rotate_left(turn);
        }
        let mut message = response_to(question, answer.code);
        message.metadata.authoritative = answer.code != ResponseCode::ServFail;
        message.answers = answer.answers;
        message.authorities = answer.authorities;
        message.additionals = answer.additionals;
        fit(message, question, transport)
    }
}

fn response_to(question: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.recursion_desired = question.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.queries.clone_from(&question.queries);
    message
}

fn error(question: &Message, code: ResponseCode) -> Vec<u8> {
    fit(response_to(question, code), question, Transport::Udp)
}

/// Answers what cannot be read, when at least its id can.
fn malformed(raw: &[u8]) -> Reply {
    match raw {
        [a, b, flags, _, ..] if raw.len() >= 12 && flags & 0x80 == 0 => {
            let message = Message::error_msg(u16::from_be_bytes([*a, *b]), OpCode::Query, ResponseCode::FormErr);
            message.to_vec().map_or(Reply::Silence, Reply::Now)
        }
        _ => Reply::Silence,
    }
}

/// Encodes the message so that the client can take it: a longer one loses additional records, then answers.
fn fit(mut message: Message, question: &Message, transport: Transport) -> Vec<u8> {
    message.edns = question.edns.as_ref().map(|_| {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_SIZE);
        edns
    });
    let limit = match transport {
        Transport::Tcp => u16::MAX,
        Transport::Udp => {
            question.edns.as_ref().map_or(SMALLEST_UDP, |e| e.max_payload().clamp(SMALLEST_UDP, UDP_SIZE))
        }
    };
    loop {
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= usize::from(limit) => return bytes,
            _ if !message.additionals.is_empty() => message.additionals.clear(),
            _ if !message.answers.is_empty() => {
                message.metadata.truncation = true;
                let half = message.answers.len() / 2;
                message.answers.truncate(half);
            }
            _ => return failed(question),
        }
    }
}

/// The shortest answer there is.
fn failed(question: &Message) -> Vec<u8> {
    let code = failure().code;
    Message::error_msg(question.metadata.id, question.metadata.op_code, code).to_vec().unwrap_or_default()
}

fn cache_key(question: &Message, query: &Query) -> CacheKey {
    let secure = question.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok);
    (query.name().to_lowercase().to_ascii(), query.query_type().into(), query.query_class().into(), secure)
}

/// Both sockets of an address, as soon as this machine has it.
async fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    loop {
        let udp = UdpSocket::bind(address).await;
        let both = match udp {
            Ok(udp) => TcpListener::bind(udp.local_addr()?).await.map(|tcp| (udp, tcp)),
            Err(e) => Err(e),
        };
        match both {
            Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => tokio::time::sleep(BIND_AGAIN).await,
            other => return other,
        }
    }
}
