//! The controllers of `kube-controller-manager` that Isopod runs: one file a controller, listed in [`all`].
//!
//! Invariants: a controller knows the API only as a client, with its own identity; what it does is computed from what is,
//! never from which event came; one that fails is tried again with a backoff and stops no other.

pub mod all;
mod controller;
mod expectations;
mod op;
mod ownership;

mod deployment;
mod disruption;
mod endpoint_slice;
mod endpoints;
mod garbage_collector;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod pod_gc;
mod replica_set;
mod root_ca;
mod service_account;
mod service_pods;
mod taint_eviction;

pub use controller::{Context, Error};

use isopod_base::clock::Clock;
use isopod_client::Informers;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What the controllers need to know of the cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The range that nodes get their pod ranges from; `None` gives out none.
    pub cluster_cidr: Option<String>,
    /// The length of a node's pod range.
    pub node_cidr_mask_size: u8,
    pub service_cidr: String,
    /// PEM of the authority that signs the API server's certificate.
    pub root_ca_pem: String,
    /// A node whose heartbeat is older is unknown.
    pub node_monitor_grace_period: Duration,
    /// Finished pods above this number are deleted, oldest first; 0 keeps all.
    pub terminated_pod_gc_threshold: usize,
    /// Names from [`all::ALL`] that do not run.
    pub disabled: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cluster_cidr: Some("10.42.0.0/16".into()),
            node_cidr_mask_size: 24,
            service_cidr: "10.43.0.0/16".into(),
            root_ca_pem: String::new(),
            node_monitor_grace_period: Duration::from_secs(50),
            terminated_pod_gc_threshold: 12500,
            disabled: Vec::new(),
        }
    }
}

/// The user that shared informers read as.
pub const MANAGER: &str = "system:kube-controller-manager";

/// Runs all controllers until `stop`. `factory` makes a client for a user name: [`MANAGER`], or a controller's service
/// account, `system:serviceaccount:kube-system:<name>`.
pub async fn run(
    factory: impl Fn(&str) -> kube::Client + Send + Sync,
    options: Options,
    clock: Clock,
    stop: CancellationToken,
) {
    let informers = Informers::with_clock(factory(MANAGER), clock.clone());
    let options = Arc::new(options);
    let tasks = tokio_util::task::TaskTracker::new();
    for row in all::ALL.iter().filter(|r| !options.disabled.iter().any(|d| d == r.name)) {
        let client = factory(&format!("system:serviceaccount:kube-system:{}", row.account));
        let context = Context::new(row, client, informers.clone(), clock.clone(), options.clone(), stop.clone());
        tasks.spawn((row.run)(context));
    }
    tasks.close();
    tasks.wait().await;
}
