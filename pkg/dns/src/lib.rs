//! The cluster's DNS server on a node: names of services, endpoints and pods from the informers' caches, everything else
//! from the servers in the node's resolv.conf.
//!
//! Start reading at [`answer`], a pure function from a question and the cluster to records (Kubernetes DNS specification
//! 1.1.0, with CoreDNS's answers where it leaves room). [`serve`] owns the sockets, [`upstream`] asks others.
//!
//! Invariants: a name of the cluster is never asked of anybody else, nor answered before the caches are complete (SERVFAIL
//! until then); records are made at the time of the question and nothing of the cluster is kept twice. Nothing here knows
//! pods' containers.

pub mod answer;
mod cache;
pub mod cluster;
mod serve;
pub mod upstream;

use hickory_proto::rr::Name;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub use serve::{Dns, DnsError};

#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// `cluster.local`
    pub domain: String,
    /// UDP and TCP both. Addresses that this machine does not have yet are tried again until it has.
    pub listen: Vec<SocketAddr>,
    /// The cluster IP of the DNS service: answers `ns.dns.<domain>`, and is never asked.
    pub service_ip: Option<IpAddr>,
    /// Seconds.
    pub ttl: u32,
    /// Names the servers for everything else.
    pub resolv_conf: PathBuf,
    /// Counted here, for metrics.
    pub statistics: Arc<Statistics>,
}

impl DnsConfig {
    pub fn new(domain: &str, listen: Vec<SocketAddr>) -> Self {
        DnsConfig {
            domain: domain.to_owned(),
            listen,
            service_ip: None,
            ttl: 5,
            resolv_conf: "/etc/resolv.conf".into(),
            statistics: Arc::default(),
        }
    }

    pub(crate) fn zone(&self) -> Result<answer::Zone, DnsError> {
        let invalid = |_| DnsError::InvalidDomain(self.domain.clone());
        let mut domain = Name::from_ascii(&self.domain).map_err(invalid)?.to_lowercase();
        domain.set_fqdn(true);
        if domain.is_root() {
            Err(DnsError::InvalidDomain(self.domain.clone()))
        } else {
            Ok(answer::Zone { domain, ttl: self.ttl, service_ip: self.service_ip })
        }
    }
}

/// What the server has done so far.
#[derive(Debug, Default)]
pub struct Statistics {
    pub queries: AtomicU64,
    /// Answered from the cluster's objects.
    pub cluster_answers: AtomicU64,
    /// Answered from the cache of others' answers.
    pub cache_hits: AtomicU64,
    pub forwarded: AtomicU64,
    /// No server answered.
    pub forward_failures: AtomicU64,
}
