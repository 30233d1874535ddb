//! `/metrics` and `/metrics/slis`, under upstream's names, with upstream's labels and buckets.

mod allocations;
mod attempts;
mod body;
mod caches;
mod checks;
mod datastore;
mod process;
mod requests;
mod tokens;
mod watches;

pub use allocations::Scope;
pub use attempts::Shown;
pub use caches::{CacheMetrics, Storage};
pub use datastore::DatastoreMetrics;
pub use requests::{Asked, Ended};
pub use watches::Events;

use crate::admission::metrics::{self as admission, AdmissionMetrics};
use crate::admission::pod_security::PodSecurityMetrics;
use crate::cache::Hub;
use crate::callout::{self, Faults};
use crate::conversion::ConversionMetrics;
use crate::exposition::{self, Page};
use crate::{ApiServer, Config, nonresource};
use allocations::AllocationMetrics;
use attempts::AttemptMetrics;
use checks::CheckMetrics;
use isopod_kinds::cel::timing::{BOUNDS, COMPILATION, EVALUATION};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use requests::RequestMetrics;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokens::TokenMetrics;
use watches::WatchMetrics;

/// How long the datastore may take to tell its size.
const DATASTORE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabels {
    group: String,
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnavailableLabels {
    name: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InFlightLabels {
    request_kind: &'static str,
}

pub struct Metrics {
    registry: Registry,
    pub requests: RequestMetrics,
    pub attempts: AttemptMetrics,
    pub watches: WatchMetrics,
    /// Handshakes of TLS that came to nothing.
    pub handshakes: Counter,
    pub tokens: TokenMetrics,
    pub allocations: AllocationMetrics,
    pub pod_security: PodSecurityMetrics,
    pub checks: CheckMetrics,
    pub conversion: ConversionMetrics,
    pub admission: AdmissionMetrics,
    in_flight: Family<InFlightLabels, Gauge>,
    waiting: Family<InFlightLabels, Gauge>,
    objects: Family<GroupLabels, Gauge>,
    stored: Family<ResourceLabels, Gauge>,
    unavailable: Family<UnavailableLabels, Counter>,
}

impl Metrics {
    pub fn new(config: &Config, hub: &Hub) -> Self {
        let mut registry = Registry::default();
        hub.metrics.register(&mut registry);
        hub.datastore.register(&mut registry);
        let audit = config.audit.as_ref().map(|a| a.counters.clone()).unwrap_or_default();
        audit.register(&mut registry);
        config.authorizer.register(&mut registry);
        config.metrics.iter().for_each(|register| register(&mut registry));
        if let Some(sealed) = &config.sealed {
            sealed.encryption().register(&mut registry);
        }
        config.token_sources.iter().for_each(|source| source.register(&mut registry));
        let in_flight = Family::default();
        let help = "[STABLE] Maximal number of currently used inflight request limit of this apiserver per request kind \
                    in last second";
        registry.register("apiserver_current_inflight_requests", help, Family::clone(&in_flight));
        let waiting = Family::default();
        let help = "[ALPHA] Maximal number of queued requests in this apiserver per request kind in last second";
        registry.register("apiserver_current_inqueue_requests", help, Family::clone(&waiting));
        let handshakes = Counter::default();
        let help = "[ALPHA] Number of requests dropped with 'TLS handshake error from' error";
        registry.register("apiserver_tls_handshake_errors", help, handshakes.clone());
        let objects = Family::default();
        let help = "[ALPHA] Number of stored objects at the time of last check split by kind";
        registry.register("apiserver_resource_objects", help, Family::clone(&objects));
        let stored = Family::default();
        let help = "[STABLE] [DEPRECATED, consider using apiserver_resource_objects instead] Number of stored objects at \
                    the time of last check split by kind. In case of a fetching error, the value will be -1";
        registry.register("apiserver_storage_objects", help, Family::clone(&stored));
        let unavailable = Family::default();
        let help =
            "[ALPHA] Counter of APIServices which are marked as unavailable broken down by APIService name and reason.";
        registry.register("aggregator_unavailable_apiservice", help, Family::clone(&unavailable));
        Metrics {
            requests: RequestMetrics::register(&mut registry),
            attempts: AttemptMetrics::register(&mut registry),
            watches: WatchMetrics::register(&mut registry),
            handshakes,
            tokens: TokenMetrics::register(&mut registry),
            allocations: AllocationMetrics::register(&mut registry),
            pod_security: PodSecurityMetrics::register(&mut registry),
            checks: CheckMetrics::default(),
            conversion: ConversionMetrics::register(&mut registry),
            admission: AdmissionMetrics::default(),
            registry,
            in_flight,
            waiting,
            objects,
            stored,
            unavailable,
        }
    }

    /// An APIService was available and is no more.
    pub fn unavailable(&self, name: &str, reason: &str) {
        let labels = UnavailableLabels { name: name.to_owned(), reason: reason.to_owned() };
        self.unavailable.get_or_create(&labels).inc();
    }

    /// The page.
    pub async fn text(&self, server: &ApiServer) -> String {
        show(&self.in_flight, &server.gauges.executing);
        show(&self.waiting, &server.gauges.waiting);
        for cache in server.hub.caches() {
            let (gvr, count) = (cache.kind.gvr(), cache.count() as i64);
            self.stored.get_or_create(&ResourceLabels { resource: gvr.qualified() }).set(count);
            self.objects.get_or_create(&GroupLabels { group: gvr.group, resource: gvr.resource }).set(count);
        }
        let mut out = page(&self.registry);
        let mut page = Page::default();
        build_info(&mut page);
        process::write(&mut page);
        crate::aggregation::metrics(server, &mut page);
        caches::write(server, &mut page);
        size(server, &mut page).await;
        allocations::write(server, &mut page).await;
        certificates("apiserver_webhooks", "BETA", &callout::WEBHOOKS, &mut page);
        certificates("apiserver_kube_aggregator", "ALPHA", &callout::AGGREGATED, &mut page);
        admission::write(server, &mut page);
        expressions(&mut page);
        if let Some(fairness) = &server.fairness {
            crate::fairness::metrics(fairness, &mut page);
        }
        out.push_str(&page.finish());
        out
    }
}

/// Reads, and what changes something.
fn show(family: &Family<InFlightLabels, Gauge>, running: &[AtomicI64; 2]) {
    for (kind, running) in ["readOnly", "mutating"].into_iter().zip(running) {
        family.get_or_create(&InFlightLabels { request_kind: kind }).set(running.load(Ordering::Relaxed));
    }
}

/// What other servers' certificates are counted for.
fn certificates(prefix: &str, stability: &str, faults: &Faults, page: &mut Page) {
    let either = "(either/or, based on the runtime environment)";
    let help = format!(
        "[{stability}] Counts the number of requests to servers missing SAN extension in their serving certificate OR the number \
         of connection failures due to the lack of x509 certificate SAN extension missing {either}"
    );
    let missing = faults.missing_san.load(Ordering::Relaxed) as f64;
    page.family(&format!("{prefix}_x509_missing_san_total"), &help, "counter").value(&[], missing);
    let help = format!(
        "[{stability}] Counts the number of requests to servers with insecure SHA1 signatures in their serving certificate OR \
         the number of connection failures due to the insecure SHA1 signatures {either}"
    );
    let insecure = faults.insecure_sha1.load(Ordering::Relaxed) as f64;
    page.family(&format!("{prefix}_x509_insecure_sha1_total"), &help, "counter").value(&[], insecure);
}

/// How long the rules of custom resources take.
fn expressions(page: &mut Page) {
    for (name, help, timing) in [
        ("apiserver_cel_compilation_duration_seconds", "[BETA] CEL compilation time in seconds.", &COMPILATION),
        ("apiserver_cel_evaluation_duration_seconds", "[BETA] CEL evaluation time in seconds.", &EVALUATION),
    ] {
        page.family(name, help, "histogram").histogram(&[], &BOUNDS, &timing.counts(), timing.seconds());
    }
}

/// Left out when the datastore does not tell it.
async fn size(server: &ApiServer, page: &mut Page) {
    if let Ok(Ok(usage)) = tokio::time::timeout(DATASTORE, server.config.store.usage()).await {
        let help = "[STABLE] Size of the storage database file physically allocated in bytes.";
        let mut family = page.family("apiserver_storage_size_bytes", help, "gauge");
        family.value(&[("storage_cluster_id", "datastore-0")], usage.size as f64);
    }
}

fn build_info(page: &mut Page) {
    let version = nonresource::version();
    let text = |key: &str| version[key].as_str().unwrap_or_default();
    let help = "[BETA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree \
                state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is \
                running.";
    let labels = [
        ("build_date", text("buildDate")),
        ("compiler", text("compiler")),
        ("git_commit", text("gitCommit")),
        ("git_tree_state", text("gitTreeState")),
        ("git_version", text("gitVersion")),
        ("go_version", text("goVersion")),
        ("major", text("major")),
        ("minor", text("minor")),
        ("platform", text("platform")),
    ];
    page.family("kubernetes_build_info", help, "gauge").value(&labels, 1.0);
}

fn page(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing into a string does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut out, registry);
    exposition::older(&out)
}
