//! Connection tracking entries, read and deleted over ctnetlink (`linux/netfilter/nfnetlink_conntrack.h`).
//!
//! Invariant: a deletion always names one entry by its original tuple; without one the kernel would flush everything.

use crate::netlink::{Attributes, NetlinkError, Protocol, Socket};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const UDP: u8 = libc::IPPROTO_UDP as u8;

/// A flow as conntrack sees it: where it was sent, and who answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub source: SocketAddr,
    /// Before any destination NAT.
    pub destination: SocketAddr,
    /// After it: the source of the answers.
    pub answered_by: SocketAddr,
}

struct Entry {
    flow: Flow,
    /// The original tuple as the kernel wrote it.
    tuple: Vec<u8>,
    id: Vec<u8>,
}

/// Deletes the UDP entries that `stale` picks; answers how many went.
pub fn delete_udp(stale: impl Fn(&Flow) -> bool) -> Result<usize, NetlinkError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let mut found = Vec::new();
    let header = [libc::AF_INET as u8, 0, 0, 0];
    socket.dump(
        "list connection tracking entries",
        GET,
        |w| w.fixed(&header),
        |_, body| {
            if let Some(entry) = body.get(4..).and_then(|b| parse(Attributes(b))).filter(|e| stale(&e.flow)) {
                found.push(entry);
            }
        },
    )?;
    let mut deleted = 0;
    for entry in &found {
        let action = || format!("delete the UDP connection tracking entry to {}", entry.flow.destination);
        let done = socket.request(action, DELETE, 0, |w| {
            w.fixed(&header);
            w.attr(TUPLE_ORIG | 1 << 15, &entry.tuple);
            w.attr(ID, &entry.id);
        });
        match done {
            Ok(()) => deleted += 1,
            // It ended by itself meanwhile.
            Err(e) if e.is(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(deleted)
}

fn parse(attrs: Attributes<'_>) -> Option<Entry> {
    let tuple = attrs.find(TUPLE_ORIG)?;
    let (source, destination) = parse_tuple(Attributes(tuple))?;
    let (answered_by, _) = parse_tuple(attrs.inside(TUPLE_REPLY))?;
    let id = attrs.find(ID)?.to_vec();
    Some(Entry { flow: Flow { source, destination, answered_by }, tuple: tuple.to_vec(), id })
}

/// Source and destination of a UDP tuple.
fn parse_tuple(tuple: Attributes<'_>) -> Option<(SocketAddr, SocketAddr)> {
    let (ip, proto) = (tuple.inside(1), tuple.inside(2));
    if proto.find(1)? != [UDP] {
        return None;
    }
    let port = |kind| Some(u16::from_be_bytes(proto.find(kind)?.try_into().ok()?));
    let address = |v4, v6| -> Option<IpAddr> {
        match (ip.find(v4), ip.find(v6)) {
            (Some(a), _) => Some(Ipv4Addr::from(<[u8; 4]>::try_from(a).ok()?).into()),
            (None, Some(a)) => Some(Ipv6Addr::from(<[u8; 16]>::try_from(a).ok()?).into()),
            _ => None,
        }
    };
    Some((SocketAddr::new(address(1, 3)?, port(2)?), SocketAddr::new(address(2, 4)?, port(3)?)))
}
