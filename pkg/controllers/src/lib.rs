//! The controllers of `kube-controller-manager` that Isopod runs: one file a controller, listed in [`all`].
//!
//! Invariants: a controller knows the API only as a client, with its own identity; what it does is computed from what is,
//! never from which event came; one that fails is tried again with a backoff and stops no other.

pub mod all;
mod controller;
mod expectations;
mod op;
mod ownership;
mod pod_control;
mod revisions;
mod template;

pub mod certificates;
mod cluster_role_aggregation;
mod cron_job;
mod daemon_set;
mod deployment;
mod disruption;
mod disruption_budget;
mod endpoint_slice;
mod endpoint_slice_mirroring;
mod endpoints;
mod garbage_collector;
mod job;
mod legacy_token_cleaner;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod pod_certificate_cleaner;
mod pod_gc;
mod policy_status;
mod protection;
mod replica_set;
mod resource_quota;
mod root_ca;
mod service_account;
pub mod service_account_tokens;
mod service_pods;
mod stateful_set;
mod storage_version_migrator;
mod taint_eviction;
mod trust_bundle;
mod ttl_after_finished;

pub use controller::{Context, Error};

use isopod_base::clock::Clock;
use isopod_base::supervisor::Supervisor;
use isopod_client::{Informers, QueueMetrics};
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
    /// Who signs the tokens of secrets; `None`: they get none.
    pub token_issuer: Option<service_account_tokens::TokenIssuer>,
    /// Who signs requests for certificates.
    pub signers: certificates::signing::Signers,
    /// A node whose heartbeat is older is unknown.
    pub node_monitor_grace_period: Duration,
    /// Finished pods above this number are deleted, oldest first; 0 keeps all.
    pub terminated_pod_gc_threshold: usize,
    /// Names from [`all::ALL`] that do not run.
    pub disabled: Vec<String>,
    /// What their work queues count into.
    pub queues: QueueMetrics,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cluster_cidr: Some("10.42.0.0/16".into()),
            node_cidr_mask_size: 24,
            service_cidr: "10.43.0.0/16".into(),
            root_ca_pem: String::new(),
            token_issuer: None,
            signers: certificates::signing::Signers::default(),
            node_monitor_grace_period: Duration::from_secs(50),
            terminated_pod_gc_threshold: 12500,
            disabled: Vec::new(),
            queues: QueueMetrics::default(),
        }
    }
}

/// The user that shared informers read as.
pub const MANAGER: &str = "system:kube-controller-manager";

/// Runs all controllers until `stop`, each anew when it fails. `factory` makes a client for a user name: [`MANAGER`], or a
/// controller's service account, `system:serviceaccount:kube-system:<name>`.
pub async fn run(
    factory: impl Fn(&str) -> kube::Client + Send + Sync,
    options: Options,
    clock: Clock,
    stop: CancellationToken,
) {
    run_rows(all::ALL, factory, options, clock, stop).await;
}

async fn run_rows(
    rows: &'static [all::Row],
    factory: impl Fn(&str) -> kube::Client + Send + Sync,
    options: Options,
    clock: Clock,
    stop: CancellationToken,
) {
    let informers = Informers::with_clock(factory(MANAGER), clock.clone());
    let options = Arc::new(options);
    let group = Supervisor::under(&stop);
    for row in rows.iter().filter(|r| !options.disabled.iter().any(|d| d == r.name)) {
        let user = match row.account {
            "" => MANAGER.to_owned(),
            account => format!("system:serviceaccount:kube-system:{account}"),
        };
        let client = factory(&user);
        let (informers, options, clock, stop) = (informers.clone(), options.clone(), clock.clone(), group.token());
        group.keep(row.name, move || {
            // What a run has spawned ends with it, before the next one begins.
            let own = stop.child_token();
            let context =
                Context::new(row, client.clone(), informers.clone(), clock.clone(), options.clone(), own.clone());
            async move {
                let _ended = own.drop_guard();
                (row.run)(context).await;
            }
        });
    }
    stop.cancelled().await;
    group.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{Controller, Key};
    use isopod_client::queue::WorkQueue;
    use isopod_client::views::Node;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static RUNS: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
    static HEALTHY: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(0);

    /// Which run of a controller this is.
    fn count(controller: usize) -> usize {
        RUNS[controller].fetch_add(1, Ordering::SeqCst)
    }

    async fn healthy(context: Context) {
        HEALTHY.add_permits(1);
        context.stop.cancelled().await;
    }

    struct Fails;

    #[async_trait::async_trait]
    impl Controller for Fails {
        async fn reconcile(&self, _: &Key) -> Result<Option<Duration>, Error> {
            panic!("in a worker")
        }
    }

    async fn fails_in_a_worker(context: Context) {
        if count(1) > 0 {
            return healthy(context).await;
        }
        let queue = WorkQueue::new(context.clock.clone());
        queue.add(Key::new("", "x"));
        context.work(Arc::new(Fails), queue, 2).await;
    }

    async fn fails_in_a_feed(context: Context) {
        if count(2) > 0 {
            return healthy(context).await;
        }
        context.feed(&context.informer::<Node>(Node::resource()), |_| panic!("in a feed"));
        context.stop.cancelled().await;
    }

    static ROWS: &[all::Row] = &[
        all::Row {
            name: "run",
            account: "a",
            run: |c| Box::pin(async move { if count(0) > 0 { healthy(c).await } else { panic!("in the run") } }),
        },
        all::Row { name: "worker", account: "b", run: |c| Box::pin(fails_in_a_worker(c)) },
        all::Row { name: "feed", account: "c", run: |c| Box::pin(fails_in_a_feed(c)) },
    ];

    /// Has no objects.
    fn empty(_: &str) -> kube::Client {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            let list = r#"{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#;
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(list.as_bytes().to_vec())))
        });
        isopod_client::in_process(service, isopod_api::UserInfo::new("t", &[]))
    }

    #[tokio::test]
    async fn a_controller_that_panics_is_started_again() {
        let stop = CancellationToken::new();
        let running = tokio::spawn(run_rows(ROWS, empty, Options::default(), Clock::system(), stop.clone()));
        let all = tokio::time::timeout(Duration::from_secs(30), HEALTHY.acquire_many(3)).await;
        assert!(all.is_ok(), "not all run again: {RUNS:?}");
        stop.cancel();
        running.await.unwrap();
        assert_eq!(RUNS.each_ref().map(|r| r.load(Ordering::SeqCst)), [2, 2, 2]);
    }
}
