//! What the proxy is told about the node and the cluster.

use crate::run::Statistics;
use crate::state::Protocol;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use tokio::sync::watch;

/// An IPv4 network: address and prefix length.
pub type Network = (Ipv4Addr, u8);

/// Traffic to a service's port that this node answers itself, whatever endpoints the service has: the cluster's DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalOverride {
    pub namespace: String,
    pub name: String,
    /// The service's port, all protocols that it has.
    pub port: u16,
    pub target: SocketAddrV4,
}

/// Which of the node's addresses serve node ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All, the loopback included.
    #[default]
    All,
    Only(Vec<Ipv4Addr>),
}

/// A pod's port at the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub protocol: Protocol,
    /// `None`: all of the node's addresses.
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    /// The pod's address and port.
    pub pod: SocketAddrV4,
}

/// Where host ports are learned from.
#[derive(Clone, Debug, Default)]
pub enum HostPorts {
    #[default]
    None,
    /// The API's pods of this node.
    Pods,
    /// Whoever starts the pods says so.
    Given(watch::Receiver<Vec<HostPort>>),
}

#[derive(Clone, Debug)]
pub struct ProxyConfig {
    pub node_name: String,
    /// All pods: traffic from elsewhere to a cluster IP is masqueraded.
    pub cluster_cidr: Network,
    /// Traffic to addresses in it that no service has is dropped.
    pub service_cidr: Option<Network>,
    pub node_port_addresses: NodePortAddresses,
    pub local_overrides: Vec<LocalOverride>,
    pub host_ports: HostPorts,
    /// The nftables table is `<prefix>-proxy`.
    pub table_prefix: String,
    /// The bit of packets' marks that asks for masquerading.
    pub masquerade_bit: u32,
    /// Counted here, for metrics.
    pub statistics: Arc<Statistics>,
    /// Why services do not work on this node. The proxy says so until it has written a complete table, then `None`: from
    /// then on they work at least as of the last change that it wrote.
    pub trouble: watch::Sender<Option<String>>,
}

impl ProxyConfig {
    /// Upstream's bit 14, all node port addresses, host ports from the API.
    pub fn new(node_name: &str, cluster_cidr: Network) -> Self {
        ProxyConfig {
            node_name: node_name.to_owned(),
            cluster_cidr,
            service_cidr: None,
            node_port_addresses: NodePortAddresses::All,
            local_overrides: Vec::new(),
            host_ports: HostPorts::Pods,
            table_prefix: "isopod".into(),
            masquerade_bit: 1 << 14,
            statistics: Arc::default(),
            trouble: watch::Sender::new(Some("the service proxy has not written its table yet".into())),
        }
    }
}
