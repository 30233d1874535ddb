//! The pods' network of one node: a bridge, a veth pair and an address for each sandbox, masquerading of what leaves the
//! cluster.
//!
//! A pod has its address as a /32 and reaches everything, its neighbours too, through the bridge's address. So every packet
//! between two pods passes the node's IP stack, where connection tracking undoes the proxy's address translation, whether
//! or not the kernel has `br_netfilter`. Where it has, a packet that a pod sends to itself through a service is translated
//! inside the bridge and needs a hairpin port; where it has not, the node sends it back.
//!
//! Invariants: an address is in one file before any interface has it, and that file goes after the interface; MAC addresses
//! are made from IP addresses, so a reused address never meets a stale neighbour entry. Everything belongs to the network
//! namespace of the calling thread: clusters in different namespaces do not meet.
//!
//! Calls block for some hundred microseconds (netlink, small files).

mod addresses;
mod rules;

use addresses::Addresses;
use isopod_base::errors::Chain;
use isopod_sys::netlink::{Bridge, NetNs, NetlinkError, Route, RouteSocket, Veth, set_sysctl};
use isopod_sys::nft::{NftError, NftSocket};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// The interface's name in the pod.
const POD_LINK: &str = "eth0";
/// Begins the names of the node's ends.
const VETH_PREFIX: &str = "veth";
const DEFAULT_MTU: u32 = 1500;
/// `IFNAMSIZ` without the NUL.
const MAX_LINK_NAME: usize = 15;

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("{0:?} is not an IPv4 network in the form 10.42.0.0/24")]
    InvalidCidr(String),
    #[error("the bridge name {0:?} is not usable: an interface name has 1 to 15 characters, no slash and no space")]
    InvalidBridge(String),
    #[error("the node has no pod network yet: it waits for the node object's spec.podCIDR")]
    NoPodCidr,
    #[error("the link {0} exists and is not a bridge: choose another bridge name or remove it")]
    NotABridge(String),
    #[error("no free address in the node's pod network {0}")]
    Exhausted(Cidr),
    #[error("cannot set up the link {0}")]
    LinkMissing(String),
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot configure the network")]
    Netlink(#[from] NetlinkError),
    #[error("cannot install the pod network's rules")]
    Rules(#[from] NftError),
}

impl From<NetworkError> for crate::RuntimeError {
    fn from(e: NetworkError) -> Self {
        crate::RuntimeError::Network(Chain(&e).to_string())
    }
}

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub net: Ipv4Addr,
    pub prefix: u8,
}

impl Cidr {
    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    pub fn contains(self, ip: Ipv4Addr) -> bool {
        ip.to_bits() & self.mask() == self.net.to_bits() & self.mask()
    }

    /// The first address: the bridge's, the pods' gateway.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits((self.net.to_bits() & self.mask()) + 1)
    }

    /// The last address that a pod can have.
    fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits((self.net.to_bits() | !self.mask()) - 1)
    }
}

impl std::str::FromStr for Cidr {
    type Err = NetworkError;

    fn from_str(s: &str) -> Result<Self, NetworkError> {
        let invalid = || NetworkError::InvalidCidr(s.to_owned());
        let (net, prefix) = s.split_once('/').ok_or_else(invalid)?;
        let cidr = Cidr { net: net.parse().map_err(|_| invalid())?, prefix: prefix.parse().map_err(|_| invalid())? };
        // Below /30 there is no room for a gateway and a pod.
        if cidr.prefix > 30 { Err(invalid()) } else { Ok(cidr) }
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.net, self.prefix)
    }
}

#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The bridge's name.
    pub bridge: String,
    /// This node's part of the cluster's pod network. `None` until the node object has it: [`PodNetwork::set_pod_cidr`].
    pub pod_cidr: Option<Cidr>,
    /// All pods of the cluster: traffic to them keeps its source address.
    pub cluster_cidr: Cidr,
    /// Gets a route to the bridge, so that service addresses work on a node without a default route, too.
    pub service_cidr: Option<Cidr>,
    /// `None`: that of the default route's interface.
    pub mtu: Option<u32>,
    /// Holds the addresses in use.
    pub state_dir: PathBuf,
    /// Begins the names of the nftables tables.
    pub table_prefix: String,
}

pub struct PodNetwork {
    config: NetworkConfig,
    state: Mutex<State>,
    ready: watch::Sender<bool>,
}

struct State {
    addresses: Addresses,
    /// Known and set up.
    cidr: Option<Cidr>,
    bridge: u32,
    mtu: u32,
}

impl PodNetwork {
    /// Reads the addresses in use and, when the pod network is known, sets the bridge up.
    pub fn open(config: NetworkConfig) -> Result<Arc<Self>, NetworkError> {
        let name = &config.bridge;
        if name.is_empty() || name.len() > MAX_LINK_NAME || name.contains(['/', ' ']) {
            return Err(NetworkError::InvalidBridge(name.clone()));
        }
        let addresses = Addresses::open(config.state_dir.join("addresses"))?;
        let state = Mutex::new(State { addresses, cidr: None, bridge: 0, mtu: DEFAULT_MTU });
        let network = PodNetwork { config, state, ready: watch::Sender::new(false) };
        if let Some(cidr) = network.config.pod_cidr {
            network.set_pod_cidr(cidr)?;
        }
        Ok(Arc::new(network))
    }

    /// Sets the node up for this network. Pods that run keep the addresses that they have.
    pub fn set_pod_cidr(&self, cidr: Cidr) -> Result<(), NetworkError> {
        let mut state = self.state.lock();
        if state.cidr == Some(cidr) {
            return Ok(());
        }
        let mut links = RouteSocket::open()?;
        state.mtu = match self.config.mtu {
            Some(mtu) => mtu,
            None => default_mtu(&mut links)?,
        };
        state.bridge = self.ensure_bridge(&mut links, cidr, state.mtu)?;
        let batch = rules::batch(&self.config.table_prefix, &self.config.bridge, cidr, self.config.cluster_cidr);
        NftSocket::open()?.commit(batch)?;
        state.cidr = Some(cidr);
        self.ready.send_replace(true);
        Ok(())
    }

    /// Becomes true once pods can have an interface.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// The address of the bridge; `None` until the pod network is known.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.state.lock().cidr.map(Cidr::gateway)
    }

    /// Gives the sandbox an interface and an address. Done again for the same sandbox, it makes the interface anew with
    /// the same address.
    pub fn attach(&self, sandbox_id: &str, netns: &Path) -> Result<Vec<IpAddr>, NetworkError> {
        let mut state = self.state.lock();
        let cidr = state.cidr.ok_or(NetworkError::NoPodCidr)?;
        let ns = NetNs::open(netns)?;
        let mut links = RouteSocket::open()?;
        let ip = state.addresses.allocate(sandbox_id, cidr)?;
        let name = veth_name(sandbox_id);
        let connected = connect(&mut links, &ns, &name, &state, ip, cidr.gateway());
        if let Err(e) = connected {
            let undone = links.delete_link(&name).map_err(NetworkError::from);
            if let Err(undo) = undone.and_then(|()| state.addresses.release(sandbox_id)) {
                tracing::warn!(sandbox = sandbox_id, error = %Chain(&undo), "the failed interface could not be taken down");
            }
            return Err(e);
        }
        Ok(vec![ip.into()])
    }

    /// Takes the sandbox's interface down and frees its address.
    pub fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        let mut state = self.state.lock();
        RouteSocket::open()?.delete_link(&veth_name(sandbox_id))?;
        state.addresses.release(sandbox_id)
    }

    /// The sandbox's address, if it has one.
    pub fn address(&self, sandbox_id: &str) -> Option<IpAddr> {
        self.state.lock().addresses.of(sandbox_id).map(Into::into)
    }

    /// Frees what sandboxes other than these hold: those that ended while nobody watched.
    pub fn reconcile(&self, living: &BTreeSet<String>) -> Result<(), NetworkError> {
        let mut state = self.state.lock();
        let mut links = RouteSocket::open()?;
        let keep: BTreeSet<String> = living.iter().map(|id| veth_name(id)).collect();
        for link in ports(&mut links, &self.config.bridge)? {
            if !keep.contains(&link) {
                links.delete_link(&link)?;
            }
        }
        for id in state.addresses.owners() {
            if !living.contains(&id) {
                state.addresses.release(&id)?;
            }
        }
        Ok(())
    }

    /// Writes the rules of a pod network into the calling thread's network namespace: does this kernel take them?
    pub fn try_rules() -> Result<(), NetworkError> {
        let pods = Cidr { net: Ipv4Addr::new(10, 42, 0, 0), prefix: 24 };
        Ok(NftSocket::open()?.commit(rules::batch("isopod-probe", "probe0", pods, Cidr { prefix: 16, ..pods }))?)
    }

    /// Removes every link, table and file that a pod network of this configuration made.
    pub fn cleanup(config: &NetworkConfig) -> Result<(), NetworkError> {
        let mut links = RouteSocket::open()?;
        for link in ports(&mut links, &config.bridge)? {
            links.delete_link(&link)?;
        }
        if links.link(&config.bridge)?.is_some_and(|l| l.kind == "bridge") {
            links.delete_link(&config.bridge)?;
        }
        NftSocket::open()?.commit(rules::removal(&config.table_prefix))?;
        match std::fs::remove_dir_all(&config.state_dir) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(NetworkError::File { action: "remove", path: config.state_dir.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Makes the bridge as it should be; answers its index.
    fn ensure_bridge(&self, links: &mut RouteSocket, cidr: Cidr, mtu: u32) -> Result<u32, NetworkError> {
        let name = self.config.bridge.as_str();
        let gateway = cidr.gateway();
        if links.link(name)?.is_none() {
            links.add_bridge(&Bridge { name, mac: mac(gateway), mtu })?;
        }
        let link = links.link(name)?.ok_or_else(|| NetworkError::LinkMissing(name.to_owned()))?;
        if link.kind != "bridge" {
            return Err(NetworkError::NotABridge(name.to_owned()));
        }
        for old in links.addresses()?.iter().filter(|a| a.index == link.index && a.ip.is_ipv4()) {
            if old.ip != IpAddr::from(gateway) || old.prefix != cidr.prefix {
                links.delete_address(link.index, old.ip, old.prefix)?;
            }
        }
        links.add_address(link.index, gateway.into(), cidr.prefix)?;
        if link.mtu != mtu {
            links.set_mtu(link.index, mtu)?;
        }
        links.set_up(link.index)?;
        if let Some(services) = self.config.service_cidr {
            let to = Some((services.net.into(), services.prefix));
            links.add_route(&Route { to, gateway: None, index: link.index, source: Some(gateway.into()) })?;
        }
        set_sysctl("net/ipv4/ip_forward", "1")?;
        // Lets this node reach pods' host ports at 127.0.0.1; the rules keep pods from reaching the node's loopback.
        set_sysctl(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?;
        Ok(link.index)
    }
}

/// Makes the pair of interfaces and configures the pod's end.
fn connect(
    links: &mut RouteSocket,
    ns: &NetNs,
    name: &str,
    state: &State,
    ip: Ipv4Addr,
    gateway: Ipv4Addr,
) -> Result<(), NetworkError> {
    links.delete_link(name)?;
    links.add_veth(&Veth {
        name,
        master: state.bridge,
        mtu: state.mtu,
        peer_name: POD_LINK,
        peer_mac: mac(ip),
        peer_netns: ns.as_fd(),
    })?;
    // Where br_netfilter is on, what a pod sends to itself through a service is turned round inside the bridge.
    let port = links.link(name)?.ok_or_else(|| NetworkError::LinkMissing(name.to_owned()))?;
    links.set_hairpin(port.index)?;
    let mut pod = RouteSocket::open_in(ns)?;
    let all = pod.links()?;
    let index = |name: &str| {
        all.iter().find(|l| l.name == name).map(|l| l.index).ok_or_else(|| NetworkError::LinkMissing(name.to_owned()))
    };
    pod.set_up(index("lo")?)?;
    let index = index(POD_LINK)?;
    pod.add_address(index, ip.into(), 32)?;
    pod.set_up(index)?;
    let on_link = Route { to: Some((gateway.into(), 32)), gateway: None, index, source: None };
    pod.add_route(&on_link)?;
    pod.add_route(&Route { to: None, gateway: Some(gateway.into()), ..on_link })?;
    Ok(())
}

/// The names of the bridge's veth ports.
fn ports(links: &mut RouteSocket, bridge: &str) -> Result<Vec<String>, NetworkError> {
    let all = links.links()?;
    let Some(bridge) = all.iter().find(|l| l.name == bridge).map(|l| l.index) else { return Ok(Vec::new()) };
    let is_port = |name: &str| name.starts_with(VETH_PREFIX);
    Ok(all.into_iter().filter(|l| l.master == bridge && l.kind == "veth" && is_port(&l.name)).map(|l| l.name).collect())
}

fn default_mtu(links: &mut RouteSocket) -> Result<u32, NetworkError> {
    let Some(index) = links.default_route_link()? else { return Ok(DEFAULT_MTU) };
    Ok(links.links()?.into_iter().find(|l| l.index == index).map_or(DEFAULT_MTU, |l| l.mtu))
}

/// The name of the node's end: the same for a sandbox at all times.
fn veth_name(sandbox_id: &str) -> String {
    let digest = hex::encode(Sha256::digest(sandbox_id));
    format!("{VETH_PREFIX}{}", &digest[..MAX_LINK_NAME - VETH_PREFIX.len()])
}

/// Locally administered, and the same for an address at all times.
fn mac(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x0a, 0x58, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_parsed_and_have_a_gateway_and_a_last_address() {
        let c: Cidr = "10.42.3.0/24".parse().unwrap();
        assert_eq!((c.gateway().to_string(), c.last().to_string()), ("10.42.3.1".into(), "10.42.3.254".into()));
        assert!(c.contains("10.42.3.255".parse().unwrap()) && !c.contains("10.42.4.0".parse().unwrap()));
        for bad in ["", "10.42.3.0", "10.42.3.0/31", "x/24", "10.42.3.0/x", "fd00::/64"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains(Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn link_names_fit_and_differ() {
        let (a, b) = (veth_name(&"a".repeat(64)), veth_name(&"b".repeat(64)));
        assert!(a.len() == MAX_LINK_NAME && a != b);
    }
}
