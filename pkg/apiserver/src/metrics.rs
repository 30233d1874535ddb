//! `/metrics`, under upstream's names.

use crate::admission::metrics::{self as admission, AdmissionMetrics};
use crate::conversion::ConversionMetrics;
use crate::request::RequestInfo;
use crate::{ApiServer, audit};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InFlightLabels {
    request_kind: &'static str,
}

/// Upstream's buckets for requests.
const BUCKETS: [f64; 20] =
    [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0];

pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
    in_flight: Family<InFlightLabels, Gauge>,
    objects: Family<ResourceLabels, Gauge>,
    watchers: Family<ResourceLabels, Gauge>,
    pub conversion: ConversionMetrics,
    pub admission: AdmissionMetrics,
}

impl Metrics {
    pub fn new(audit: audit::Counters) -> Self {
        let mut registry = Registry::default();
        audit.register(&mut registry);
        let requests = Family::<RequestLabels, Counter>::default();
        registry.register("apiserver_request", "Requests by verb, resource and code", requests.clone());
        let new: fn() -> Histogram = || Histogram::new(BUCKETS);
        let durations = Family::new_with_constructor(new);
        registry.register("apiserver_request_duration_seconds", "Response latency in seconds", durations.clone());
        let in_flight = Family::<InFlightLabels, Gauge>::default();
        registry.register("apiserver_current_inflight_requests", "Requests that run now", in_flight.clone());
        let objects = Family::<ResourceLabels, Gauge>::default();
        registry.register("apiserver_resource_objects", "Objects in the watch cache by resource", objects.clone());
        let watchers = Family::<ResourceLabels, Gauge>::default();
        registry.register("apiserver_longrunning_requests", "Watches that run now by resource", watchers.clone());
        let conversion = ConversionMetrics::register(&mut registry);
        Metrics {
            registry,
            requests,
            durations,
            in_flight,
            objects,
            watchers,
            conversion,
            admission: AdmissionMetrics::default(),
        }
    }
}

fn scope(info: &RequestInfo) -> &'static str {
    match (info.is_resource, info.name.is_empty(), info.namespace.is_empty()) {
        (false, ..) => "",
        (true, false, _) => "resource",
        (true, true, false) => "namespace",
        (true, true, true) => "cluster",
    }
}

impl Metrics {
    /// Counts a request that was answered.
    pub fn observe(&self, info: &RequestInfo, code: u16, took: Duration) {
        let verb = match info.verb.as_str() {
            "list" | "watch" | "get" | "create" | "update" | "patch" | "delete" | "deletecollection" => {
                info.verb.to_ascii_uppercase()
            }
            // Anybody can send any method: labels stay few.
            "post" | "put" | "head" => info.verb.to_ascii_uppercase(),
            _ => "other".to_owned(),
        };
        let known = info.is_resource && code != 404;
        let text = |s: &String| if known { s.clone() } else { String::new() };
        let labels = DurationLabels {
            verb,
            group: text(&info.group),
            version: text(&info.version),
            resource: text(&info.resource),
            subresource: text(&info.subresource),
            scope: scope(info),
        };
        if !info.is_long_running() {
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
        let DurationLabels { verb, group, version, resource, subresource, scope } = labels;
        let labels = RequestLabels { verb, group, version, resource, subresource, scope, code: u32::from(code) };
        self.requests.get_or_create(&labels).inc();
    }

    /// The page.
    pub fn text(&self, server: &ApiServer) -> String {
        for (kind, running) in ["readOnly", "mutating"].into_iter().zip(&server.gauges.executing) {
            let running = running.load(std::sync::atomic::Ordering::Relaxed);
            self.in_flight.get_or_create(&InFlightLabels { request_kind: kind }).set(running);
        }
        for cache in server.hub.caches() {
            let labels = ResourceLabels { resource: cache.kind.gvr().qualified() };
            self.objects.get_or_create(&labels).set(cache.count() as i64);
            self.watchers.get_or_create(&labels).set(cache.watchers() as i64);
        }
        let mut out = String::new();
        // Writing into a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut out, &self.registry);
        // The end of OpenMetrics is none of the older format.
        out.truncate(out.trim_end().trim_end_matches("# EOF").len());
        let mut page = crate::exposition::Page::default();
        admission::write(server, &mut page);
        if let Some(fairness) = &server.fairness {
            crate::fairness::metrics(fairness, &mut page);
        }
        out.push_str(&page.finish());
        out
    }
}
