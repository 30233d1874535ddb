//! A pod as the plugins read it: the view, and what would otherwise be computed again for every node.

use crate::amounts::{self, Amounts};
use isopod_client::views::{Pod, PodAffinityTerm, WeightedPodTerm};
use std::sync::Arc;

/// A port that a pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    pub port: i32,
    pub protocol: String,
    /// `0.0.0.0`: every address.
    pub ip: String,
}

impl HostPort {
    pub fn conflicts_with(&self, other: &HostPort) -> bool {
        const ANY: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

/// A pod and what is derived from it.
#[derive(Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub requests: Amounts,
    /// For scores: with defaults for containers that ask for nothing.
    pub nonzero: Amounts,
    pub ports: Vec<HostPort>,
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let spec = &pod.spec;
        let sidecars = spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
        let ports = spec
            .containers
            .iter()
            .chain(sidecars)
            .flat_map(|c| &c.ports)
            .filter(|p| p.host_port > 0)
            .map(|p| HostPort {
                port: p.host_port,
                protocol: if p.protocol.is_empty() { "TCP".into() } else { p.protocol.clone() },
                ip: if p.host_ip.is_empty() { "0.0.0.0".into() } else { p.host_ip.clone() },
            })
            .collect();
        PodInfo { requests: amounts::of_pod(spec), nonzero: amounts::of_pod_nonzero(spec), ports, pod }
    }

    pub fn uid(&self) -> &str {
        &self.pod.metadata.uid
    }

    pub fn required_affinity(&self) -> &[PodAffinityTerm] {
        let terms = self.pod.spec.affinity.as_ref().and_then(|a| a.pod_affinity.as_ref());
        terms.map_or(&[], |a| &a.required_during_scheduling_ignored_during_execution)
    }
    pub fn required_anti_affinity(&self) -> &[PodAffinityTerm] {
        let terms = self.pod.spec.affinity.as_ref().and_then(|a| a.pod_anti_affinity.as_ref());
        terms.map_or(&[], |a| &a.required_during_scheduling_ignored_during_execution)
    }
    pub fn preferred_affinity(&self) -> &[WeightedPodTerm] {
        let terms = self.pod.spec.affinity.as_ref().and_then(|a| a.pod_affinity.as_ref());
        terms.map_or(&[], |a| &a.preferred_during_scheduling_ignored_during_execution)
    }
    pub fn preferred_anti_affinity(&self) -> &[WeightedPodTerm] {
        let terms = self.pod.spec.affinity.as_ref().and_then(|a| a.pod_anti_affinity.as_ref());
        terms.map_or(&[], |a| &a.preferred_during_scheduling_ignored_during_execution)
    }

    /// Any rule about other pods: such pods are counted, so that the plugin can skip a cluster that has none.
    pub fn has_pod_affinity(&self) -> bool {
        let affinity = self.pod.spec.affinity.as_ref();
        affinity.is_some_and(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some())
    }
}
