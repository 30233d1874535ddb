//! What a kubelet is told: upstream's flags and `KubeletConfiguration` fields, with upstream's defaults.

use crate::pressure::Thresholds;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// A taint that the node registers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

impl Taint {
    /// Parses `key=value:Effect` or `key:Effect`, as `--node-taint` takes it.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let bad = || ConfigError::Taint(text.to_owned());
        let (front, effect) = text.rsplit_once(':').ok_or_else(bad)?;
        if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            return Err(bad());
        }
        let (key, value) = front.split_once('=').unwrap_or((front, ""));
        if key.is_empty() {
            return Err(bad());
        }
        Ok(Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned() })
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("invalid taint {0:?}: write key=value:Effect with the effect NoSchedule, PreferNoSchedule or NoExecute")]
    Taint(String),
    #[error("invalid amount {amount:?} of resource {resource:?}: {why}")]
    Quantity { resource: String, amount: String, why: String },
}

/// A kubelet's configuration. `Default` gives upstream's defaults; a node name and the cluster's DNS must be set.
#[derive(Clone, Debug)]
pub struct KubeletConfig {
    pub node_name: String,
    /// Addresses that the node announces, the preferred family first (`--node-ip`).
    pub node_ips: Vec<IpAddr>,
    pub node_external_ips: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// `--register-node`; off: the node object must be there.
    pub register: bool,
    pub provider_id: String,
    /// `node.kubernetes.io/instance-type`.
    pub instance_type: String,
    /// Pods, volumes and the like live below it: `<data-dir>/agent/kubelet`.
    pub root_dir: PathBuf,
    /// `/var/log/pods`.
    pub pod_log_dir: PathBuf,
    /// The cgroup below which `kubepods` is made, `/` or `/isopod`.
    pub cgroup_root: String,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// `--resolv-conf`: where `Default` DNS comes from.
    pub resolv_conf: PathBuf,
    /// Where the HTTPS endpoints listen.
    pub listen: SocketAddr,
    pub max_pods: u32,
    /// Limit of processes in one pod, none when `None`.
    pub pod_pids_limit: Option<i64>,
    /// Kept back from pods: `cpu`, `memory`, `ephemeral-storage`.
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    /// Below it the node says that it is under pressure and takes no more pods; kept back from allocatable too.
    pub eviction_hard: Thresholds,
    /// How long the node's status tells of a pressure after it was seen last.
    pub eviction_pressure_transition: Duration,
    pub lease_renew: Duration,
    pub status_update: Duration,
    pub cpu_cfs_quota: bool,
    pub container_log_max_size: u64,
    pub container_log_max_files: u32,
    /// Percent of the image disk at which images are removed, and down to which.
    pub image_gc_high: u64,
    pub image_gc_low: u64,
    pub image_minimum_age: Duration,
    /// From one registry.
    pub max_parallel_image_pulls: usize,
    pub streaming_idle_timeout: Duration,
    pub enable_debugging_handlers: bool,
    /// Sysctls that pods may set besides the safe ones.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// `--seccomp-default`.
    pub seccomp_default: bool,
    pub anonymous_auth: bool,
    /// How long restarts back off, at most.
    pub max_restart_backoff: Duration,
    /// Why services and the pods' connections do not work, from whoever sees to them. The node is not ready meanwhile.
    pub services: watch::Receiver<Option<String>>,
    /// What `nodeInfo.kubeletVersion` says.
    pub version: String,
}

impl Default for KubeletConfig {
    fn default() -> Self {
        KubeletConfig {
            node_name: String::new(),
            node_ips: Vec::new(),
            node_external_ips: Vec::new(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            register: true,
            provider_id: String::new(),
            instance_type: "isopod".into(),
            root_dir: "/var/lib/isopod/agent/kubelet".into(),
            pod_log_dir: "/var/log/pods".into(),
            cgroup_root: "/isopod".into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            listen: SocketAddr::from(([0, 0, 0, 0], 10250)),
            max_pods: 110,
            pod_pids_limit: None,
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            eviction_hard: Thresholds::default(),
            eviction_pressure_transition: Duration::from_secs(5 * 60),
            lease_renew: Duration::from_secs(10),
            status_update: Duration::from_secs(10),
            cpu_cfs_quota: true,
            container_log_max_size: 10 << 20,
            container_log_max_files: 5,
            image_gc_high: 85,
            image_gc_low: 80,
            image_minimum_age: Duration::from_secs(120),
            max_parallel_image_pulls: 5,
            streaming_idle_timeout: Duration::from_secs(4 * 3600),
            enable_debugging_handlers: true,
            allowed_unsafe_sysctls: Vec::new(),
            seccomp_default: false,
            anonymous_auth: false,
            max_restart_backoff: Duration::from_secs(300),
            services: watch::Sender::new(None).subscribe(),
            version: "v1.37.0+isopod".into(),
        }
    }
}

impl KubeletConfig {
    /// `<root>/pods/<uid>`.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    /// `<pod-log-dir>/<namespace>_<name>_<uid>`.
    pub fn log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.pod_log_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_parsed() {
        let t = |key: &str, value: &str, effect: &str| Taint {
            key: key.into(),
            value: value.into(),
            effect: effect.into(),
        };
        assert_eq!(Taint::parse("a=b:NoSchedule"), Ok(t("a", "b", "NoSchedule")));
        assert_eq!(Taint::parse("x.io/a:NoExecute"), Ok(t("x.io/a", "", "NoExecute")));
        for bad in ["a", "a=b", "a:Never", ":NoSchedule"] {
            assert!(Taint::parse(bad).is_err(), "{bad}");
        }
    }
}
