//! A netlink socket: sends requests and reads acknowledgements and dumps.
//!
//! Invariant: answers are matched by sequence number, so a late answer to an earlier request is never taken for another.

use super::message::{Attributes, Received, Writer, messages, text, u32_at};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

pub(crate) const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
pub(crate) const ACK: u16 = libc::NLM_F_ACK as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;
/// Set in an error message that carries explanations.
const ACK_TLVS: u16 = 0x200;
/// Set in an error message that repeats only the header of the request.
const CAPPED: u16 = 0x100;
const ERROR: u16 = libc::NLMSG_ERROR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;
const DUMP_INTERRUPTED: u16 = 0x10;
/// A dump that the kernel says was changed under it is repeated this often.
const DUMP_TRIES: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    #[error("cannot talk to the kernel over netlink ({action})")]
    Transport {
        action: String,
        #[source]
        source: io::Error,
    },
    /// The kernel refused the request.
    #[error("the kernel refused to {action}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        action: String,
        /// The kernel's own explanation.
        detail: Option<String>,
        #[source]
        source: io::Error,
    },
    #[error("no network interface named {0:?}")]
    NoLink(String),
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
}

impl NetlinkError {
    /// The kernel's errno, when it refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Transport { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    pub fn is(&self, errno: i32) -> bool {
        self.errno() == Some(errno)
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    Route,
    Netfilter,
}

/// Belongs to the network namespace of the thread that opened it.
pub struct Socket {
    fd: OwnedFd,
    seq: u32,
    buffer: usize,
    received: Vec<u8>,
}

/// How the kernel answered the message `seq`.
pub(crate) struct Ack {
    pub seq: u32,
    /// 0 when it was done.
    pub errno: i32,
    pub detail: Option<String>,
}

impl Socket {
    pub fn open(protocol: Protocol) -> Result<Self, NetlinkError> {
        Self::try_open(protocol).map_err(|e| NetlinkError::Open(e.into()))
    }

    fn try_open(protocol: Protocol) -> nix::Result<Self> {
        let protocol = match protocol {
            Protocol::Route => SockProtocol::NetlinkRoute,
            Protocol::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            // Explanations and short acknowledgements are a comfort: an old kernel without them still works.
            let _ = enable(&fd, option);
        }
        Ok(Socket { fd, seq: 0, buffer: 0, received: vec![0; 32 << 10] })
    }

    pub(crate) fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1).max(1);
        self.seq
    }

    /// Sends `data` as one datagram, with buffers that hold it.
    pub(crate) fn send(&mut self, data: &[u8]) -> io::Result<()> {
        let need = data.len() + (64 << 10);
        if need > self.buffer.max(200 << 10) {
            // The forced variant needs CAP_NET_ADMIN and ignores the system's limit, like `nft`.
            setsockopt(&self.fd, sockopt::SndBufForce, &need)
                .or_else(|_| setsockopt(&self.fd, sockopt::SndBuf, &need))
                .map_err(io::Error::from)?;
            self.buffer = need;
        }
        let sent = send(self.fd.as_raw_fd(), data, MsgFlags::empty())?;
        if sent == data.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
    }

    /// Makes room for this many bytes of answers.
    pub(crate) fn reserve_answers(&self, bytes: usize) {
        let _ = setsockopt(&self.fd, sockopt::RcvBufForce, &bytes);
    }

    /// Waits for a datagram and hands its messages to `each` until that answers `true` (enough).
    pub(crate) fn receive(&mut self, mut each: impl FnMut(Received<'_>) -> bool) -> io::Result<()> {
        loop {
            let n = match recv(self.fd.as_raw_fd(), &mut self.received, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            for message in messages(&self.received[..n]) {
                if each(message) {
                    return Ok(());
                }
            }
        }
    }

    /// Sends one request and waits for its acknowledgement. `flags` adds to REQUEST and ACK.
    pub fn request(
        &mut self,
        action: impl FnOnce() -> String,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Writer),
    ) -> Result<(), NetlinkError> {
        let seq = self.next_seq();
        let mut w = Writer::new();
        w.begin(kind, REQUEST | ACK | flags, seq);
        fill(&mut w);
        w.end();
        let mut answer = None;
        let io = self.send(w.bytes()).and_then(|()| {
            self.receive(|m| {
                answer = acks(&m).filter(|a| a.seq == seq);
                answer.is_some()
            })
        });
        match (io, answer) {
            (Err(source), _) => Err(NetlinkError::Transport { action: action(), source }),
            (Ok(()), Some(Ack { errno, detail, .. })) if errno != 0 => {
                Err(NetlinkError::Refused { action: action(), detail, source: io::Error::from_raw_os_error(errno) })
            }
            _ => Ok(()),
        }
    }

    /// Sends one dump request; `each` gets every answer's type and body. A dump that changed under the kernel's hands is
    /// repeated, so `each` must bear seeing an object twice.
    pub fn dump(
        &mut self,
        action: &str,
        kind: u16,
        fill: impl Fn(&mut Writer),
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        for _ in 0..DUMP_TRIES {
            let seq = self.next_seq();
            let mut w = Writer::new();
            w.begin(kind, REQUEST | DUMP, seq);
            fill(&mut w);
            w.end();
            let (mut errno, mut interrupted) = (0, false);
            let io = self.send(w.bytes()).and_then(|()| {
                self.receive(|m| {
                    if m.seq != seq {
                        return false;
                    }
                    interrupted |= m.flags & DUMP_INTERRUPTED != 0;
                    match m.kind {
                        DONE => return true,
                        ERROR => {
                            errno = acks(&m).map_or(0, |a| a.errno);
                            return true;
                        }
                        kind => each(kind, m.body),
                    }
                    false
                })
            });
            io.map_err(|source| NetlinkError::Transport { action: action.to_owned(), source })?;
            if errno != 0 {
                let source = io::Error::from_raw_os_error(errno);
                return Err(NetlinkError::Refused { action: action.to_owned(), detail: None, source });
            }
            if !interrupted {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The acknowledgement that a message is, if it is one.
pub(crate) fn acks(m: &Received<'_>) -> Option<Ack> {
    if m.kind != ERROR {
        return None;
    }
    let errno = -(u32_at(m.body, 0)? as i32);
    let mut detail = None;
    if m.flags & ACK_TLVS != 0 {
        // After the error code comes the request's header, and unless capped and in the case of an error its body.
        let request = u32_at(m.body, 4)? as usize;
        let skip = if m.flags & CAPPED != 0 || errno == 0 { 16 } else { request.next_multiple_of(4) };
        detail = m.body.get(4 + skip..).and_then(|rest| Attributes(rest).find(1)).map(text);
    }
    Some(Ack { seq: m.seq, errno, detail })
}

fn enable(fd: &impl AsFd, option: libc::c_int) -> nix::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the call (borrowed), and the pointer and length describe `on`, which outlives it.
    #[allow(unsafe_code)]
    let rc = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    nix::errno::Errno::result(rc).map(drop)
}
