//! What this machine is called and where it is reached.

use anyhow::{Context, bail};
use isopod_sys::netlink::RouteSocket;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

/// The host's name, as the kernel has it.
pub fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host's name")?;
    Ok(name.trim().to_owned())
}

/// A name for the node of a host of this name, in the form that a node may have.
pub fn node_name(host_name: &str) -> anyhow::Result<String> {
    let name = host_name.to_ascii_lowercase();
    let valid = !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.ends_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        });
    if !valid {
        bail!("the host's name {name:?} cannot be a node's name; give one with --node-name");
    }
    Ok(name)
}

/// The address from which the default route would be taken, else the first one that is not loopback's.
pub fn address() -> anyhow::Result<IpAddr> {
    // Connecting a UDP socket sends nothing: the kernel only chooses the route.
    let by_route = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|s| s.connect(SocketAddr::from(([192, 0, 2, 254], 9))).and_then(|()| s.local_addr()));
    if let Ok(local) = by_route
        && !local.ip().is_loopback()
        && !local.ip().is_unspecified()
    {
        return Ok(local.ip());
    }
    let mut all = RouteSocket::open()?.addresses()?;
    all.sort_by_key(|a| (a.ip.is_ipv6(), a.scope, a.index));
    match all.into_iter().map(|a| a.ip).find(|ip| !ip.is_loopback() && ip.is_ipv4()) {
        Some(ip) => Ok(ip),
        // No network at all: a cluster on this machine alone still works.
        None => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    }
}
