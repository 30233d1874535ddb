//! Links, addresses and routes of one network namespace (rtnetlink, RFC 3549 and `linux/rtnetlink.h`).
//!
//! Invariant: what exists already in the wanted form is success; deleting what is gone is success.

use super::message::{Attributes, Writer, text, u32_at};
use super::namespace::NetNs;
use super::socket::{NetlinkError, Protocol, Socket};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const EXCL: u16 = libc::NLM_F_EXCL as u16;
const REPLACE: u16 = libc::NLM_F_REPLACE as u16;

const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = libc::IFF_UP as u32;

type Result<T> = std::result::Result<T, NetlinkError>;

/// A network interface as the kernel lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    pub mtu: u32,
    pub mac: Vec<u8>,
    /// Index of the bridge that it is a port of, 0 without.
    pub master: u32,
    /// `bridge`, `veth`, …; empty for hardware.
    pub kind: String,
}

#[derive(Clone, Debug)]
pub struct Bridge<'a> {
    pub name: &'a str,
    /// A bridge without its own address takes the lowest of its ports, and changes it with them.
    pub mac: [u8; 6],
    pub mtu: u32,
}

/// A pair of interfaces: one here, up, a port of a bridge; the peer in another namespace, down.
#[derive(Clone, Debug)]
pub struct Veth<'a> {
    pub name: &'a str,
    /// Index of the bridge, 0 for none.
    pub master: u32,
    pub mtu: u32,
    pub peer_name: &'a str,
    pub peer_mac: [u8; 6],
    pub peer_netns: BorrowedFd<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub index: u32,
    pub ip: IpAddr,
    pub prefix: u8,
    /// `RT_SCOPE_UNIVERSE` 0, `RT_SCOPE_LINK` 253, `RT_SCOPE_HOST` 254.
    pub scope: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// `None`: the default route of the gateway's family.
    pub to: Option<(IpAddr, u8)>,
    pub gateway: Option<IpAddr>,
    /// Index of the interface.
    pub index: u32,
    /// Preferred source address.
    pub source: Option<IpAddr>,
}

/// A routing socket of the namespace in which it was opened.
pub struct RouteSocket(Socket);

impl RouteSocket {
    pub fn open() -> Result<Self> {
        Socket::open(Protocol::Route).map(RouteSocket)
    }

    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    pub fn links(&mut self) -> Result<Vec<Link>> {
        let mut all: Vec<Link> = Vec::new();
        self.0.dump(
            "list links",
            libc::RTM_GETLINK,
            |w| w.fixed(&link_header(0, 0, 0)),
            |_, body| {
                if let Some(link) = parse_link(body).filter(|l| all.iter().all(|known| known.index != l.index)) {
                    all.push(link);
                }
            },
        )?;
        Ok(all)
    }

    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|l| l.name == name))
    }

    /// Creates the bridge, down. `EEXIST` when the name is taken.
    pub fn add_bridge(&mut self, bridge: &Bridge<'_>) -> Result<()> {
        let action = || format!("create bridge {}", bridge.name);
        self.0.request(action, libc::RTM_NEWLINK, CREATE | EXCL, |w| {
            w.fixed(&link_header(0, 0, 0));
            w.str(libc::IFLA_IFNAME, bridge.name);
            w.attr(libc::IFLA_ADDRESS, &bridge.mac);
            w.ne32(libc::IFLA_MTU, bridge.mtu);
            w.nest(libc::IFLA_LINKINFO, |w| {
                w.str(libc::IFLA_INFO_KIND, "bridge");
                // No spanning tree: a port forwards as soon as it is up.
                w.nest(libc::IFLA_INFO_DATA, |w| w.ne32(IFLA_BR_FORWARD_DELAY, 0));
            });
        })
    }

    /// Creates the pair in one request: the peer is born in its namespace.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> Result<()> {
        let action = || format!("create the veth pair {} and {}", veth.name, veth.peer_name);
        self.0.request(action, libc::RTM_NEWLINK, CREATE | EXCL, |w| {
            w.fixed(&link_header(0, IFF_UP, IFF_UP));
            w.str(libc::IFLA_IFNAME, veth.name);
            w.ne32(libc::IFLA_MTU, veth.mtu);
            if veth.master != 0 {
                w.ne32(libc::IFLA_MASTER, veth.master);
            }
            w.nest(libc::IFLA_LINKINFO, |w| {
                w.str(libc::IFLA_INFO_KIND, "veth");
                w.nest(libc::IFLA_INFO_DATA, |w| {
                    w.nest(VETH_INFO_PEER, |w| {
                        // A peer cannot come up before the pair is joined.
                        w.fixed(&link_header(0, 0, 0));
                        w.str(libc::IFLA_IFNAME, veth.peer_name);
                        w.ne32(libc::IFLA_MTU, veth.mtu);
                        w.attr(libc::IFLA_ADDRESS, &veth.peer_mac);
                        w.ne32(libc::IFLA_NET_NS_FD, veth.peer_netns.as_raw_fd() as u32);
                    });
                });
            });
        })
    }

    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let action = || format!("set link {index} up");
        self.0.request(action, libc::RTM_NEWLINK, 0, |w| w.fixed(&link_header(index, IFF_UP, IFF_UP)))
    }

    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        self.0.request(
            || format!("set the MTU of link {index} to {mtu}"),
            libc::RTM_NEWLINK,
            0,
            |w| {
                w.fixed(&link_header(index, 0, 0));
                w.ne32(libc::IFLA_MTU, mtu);
            },
        )
    }

    pub fn set_master(&mut self, index: u32, master: u32) -> Result<()> {
        self.0.request(
            || format!("make link {index} a port of link {master}"),
            libc::RTM_NEWLINK,
            0,
            |w| {
                w.fixed(&link_header(index, 0, 0));
                w.ne32(libc::IFLA_MASTER, master);
            },
        )
    }

    /// Lets a bridge send a frame back through the port on which it came.
    pub fn set_hairpin(&mut self, index: u32) -> Result<()> {
        self.0.request(
            || format!("set hairpin mode on link {index}"),
            libc::RTM_NEWLINK,
            0,
            |w| {
                w.fixed(&link_header(index, 0, 0));
                w.nest(libc::IFLA_LINKINFO, |w| {
                    w.str(IFLA_INFO_SLAVE_KIND, "bridge");
                    w.nest(IFLA_INFO_SLAVE_DATA, |w| w.attr(IFLA_BRPORT_MODE, &[1]));
                });
            },
        )
    }

    /// Deletes a link (with its peer); one that is gone is success.
    pub fn delete_link(&mut self, name: &str) -> Result<()> {
        let done = self.0.request(
            || format!("delete link {name}"),
            libc::RTM_DELLINK,
            0,
            |w| {
                w.fixed(&link_header(0, 0, 0));
                w.str(libc::IFLA_IFNAME, name);
            },
        );
        gone_is_success(done, &[libc::ENODEV])
    }

    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let mut all: Vec<Address> = Vec::new();
        self.0.dump(
            "list addresses",
            libc::RTM_GETADDR,
            |w| w.fixed(&[0; 8]),
            |_, body| {
                if let Some(a) = parse_address(body).filter(|a| !all.contains(a)) {
                    all.push(a);
                }
            },
        )?;
        Ok(all)
    }

    /// Adds an address; one that is there is success.
    pub fn add_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> Result<()> {
        let action = || format!("add address {ip}/{prefix} to link {index}");
        let done = self.0.request(action, libc::RTM_NEWADDR, CREATE | REPLACE, |w| write_address(w, index, ip, prefix));
        gone_is_success(done, &[libc::EEXIST])
    }

    pub fn delete_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> Result<()> {
        let action = || format!("delete address {ip}/{prefix} of link {index}");
        let done = self.0.request(action, libc::RTM_DELADDR, 0, |w| write_address(w, index, ip, prefix));
        gone_is_success(done, &[libc::EADDRNOTAVAIL, libc::ENODEV])
    }

    /// Index of the interface of the default IPv4 route.
    pub fn default_route_link(&mut self) -> Result<Option<u32>> {
        let mut found = None;
        let header = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        self.0.dump(
            "list routes",
            libc::RTM_GETROUTE,
            |w| w.fixed(&header),
            |_, body| {
                // Destination length 0, table main, type unicast.
                if let [_, 0, _, _, libc::RT_TABLE_MAIN, _, _, libc::RTN_UNICAST, ..] = body
                    && found.is_none()
                {
                    let attrs = Attributes(body.get(12..).unwrap_or_default());
                    found = attrs.find(libc::RTA_OIF).and_then(|v| u32_at(v, 0));
                }
            },
        )?;
        Ok(found)
    }

    /// Adds or replaces a route of the main table.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        let action = || format!("add the route {}", show_route(route));
        self.0.request(action, libc::RTM_NEWROUTE, CREATE | REPLACE, |w| write_route(w, route))
    }

    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        let action = || format!("delete the route {}", show_route(route));
        let done = self.0.request(action, libc::RTM_DELROUTE, 0, |w| write_route(w, route));
        gone_is_success(done, &[libc::ESRCH, libc::ENODEV])
    }
}

fn gone_is_success(done: Result<()>, errnos: &[i32]) -> Result<()> {
    match done {
        Err(e) if e.errno().is_some_and(|n| errnos.contains(&n)) => Ok(()),
        other => other,
    }
}

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut h = [0; 16];
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    h[8..12].copy_from_slice(&flags.to_ne_bytes());
    h[12..16].copy_from_slice(&change.to_ne_bytes());
    h
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let mut link = Link { index: u32_at(body, 4)?, up: u32_at(body, 8)? & IFF_UP != 0, ..Link::default() };
    for (kind, value) in Attributes(body.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
            libc::IFLA_ADDRESS => link.mac = value.to_vec(),
            libc::IFLA_MASTER => link.master = u32_at(value, 0)?,
            libc::IFLA_LINKINFO => {
                link.kind = Attributes(value).find(libc::IFLA_INFO_KIND).map(text).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn parse_ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

/// `struct ifaddrmsg` and its attributes.
fn write_address(w: &mut Writer, index: u32, ip: IpAddr, prefix: u8) {
    let mut h = [family(ip), prefix, 0, 0, 0, 0, 0, 0];
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    w.fixed(&h);
    w.attr(libc::IFA_LOCAL, &octets(ip));
    w.attr(libc::IFA_ADDRESS, &octets(ip));
}

fn parse_address(body: &[u8]) -> Option<Address> {
    let attrs = Attributes(body.get(8..)?);
    let ip = attrs.find(libc::IFA_LOCAL).or_else(|| attrs.find(libc::IFA_ADDRESS)).and_then(parse_ip)?;
    Some(Address { index: u32_at(body, 4)?, ip, prefix: *body.get(1)?, scope: *body.get(3)? })
}

/// `struct rtmsg` and its attributes.
fn write_route(w: &mut Writer, route: &Route) {
    let any = route.to.map(|(ip, _)| ip).or(route.gateway).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let scope = if route.gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
    w.fixed(&[
        family(any),
        route.to.map_or(0, |(_, prefix)| prefix),
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_STATIC,
        scope,
        libc::RTN_UNICAST,
        0,
        0,
        0,
        0,
    ]);
    if let Some((ip, _)) = route.to {
        w.attr(libc::RTA_DST, &octets(ip));
    }
    if let Some(gateway) = route.gateway {
        w.attr(libc::RTA_GATEWAY, &octets(gateway));
    }
    if let Some(source) = route.source {
        w.attr(libc::RTA_PREFSRC, &octets(source));
    }
    w.ne32(libc::RTA_OIF, route.index);
}

fn show_route(route: &Route) -> String {
    let to = route.to.map_or("default".to_owned(), |(ip, prefix)| format!("{ip}/{prefix}"));
    let via = route.gateway.map(|g| format!(" via {g}")).unwrap_or_default();
    format!("{to}{via} on link {}", route.index)
}
