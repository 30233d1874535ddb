//! What the watch caches do and what lists cost, under upstream's names (`apiserver/pkg/storage/{cacher/metrics,metrics}`).
//! What a cache knows of itself is asked when the page is written; the counters here outlive caches that begin anew.

use super::GroupLabels;
use crate::ApiServer;
use crate::cache::resource::{Cache, RING_CHANGES};
use crate::exposition::Page;
use isopod_kinds::Kind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StorageLabels {
    group: String,
    resource: String,
    storage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IndexLabels {
    #[prometheus(flatten)]
    of: StorageLabels,
    /// None is chosen by what a request selects.
    index: &'static str,
}

/// Where the objects of a list came from.
#[derive(Clone, Copy, Debug)]
pub enum Storage {
    Cache,
    History,
}

type Histograms = Family<GroupLabels, Histogram, fn() -> Histogram>;

/// Counted where it happens. A clone counts for the same page.
#[derive(Clone)]
pub struct CacheMetrics {
    initializations: Family<GroupLabels, Counter>,
    durations: Histograms,
    waits: Histograms,
    lists: Family<IndexLabels, Counter>,
    fetched: Family<IndexLabels, Counter>,
    returned: Family<StorageLabels, Counter>,
}

impl Default for CacheMetrics {
    fn default() -> Self {
        CacheMetrics {
            initializations: Family::default(),
            durations: Family::new_with_constructor(|| {
                Histogram::new([0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0])
            }),
            waits: Family::new_with_constructor(|| {
                Histogram::new([0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0])
            }),
            lists: Family::default(),
            fetched: Family::default(),
            returned: Family::default(),
        }
    }
}

fn labels(kind: &Kind) -> GroupLabels {
    let gvr = kind.gvr();
    GroupLabels { group: gvr.group, resource: gvr.resource }
}

impl CacheMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let caches = registry.sub_registry_with_prefix("apiserver_watch_cache");
        let help = "[ALPHA] Counter of watch cache initializations broken by resource type";
        caches.register("initializations", help, self.initializations.clone());
        let help = "[ALPHA] Histogram of watch cache initialization duration in seconds, broken by resource type";
        caches.register("initialization_duration_seconds", help, self.durations.clone());
        let help = "[ALPHA] Histogram of time spent waiting for a watch cache to become fresh";
        caches.register("read_wait_seconds", help, self.waits.clone());
        let lists = registry.sub_registry_with_prefix("apiserver_storage");
        lists.register("list", "[ALPHA] Number of LIST requests served from storage", self.lists.clone());
        let help = "[ALPHA] Number of objects read from storage in the course of serving a LIST request";
        lists.register("list_fetched_objects", help, self.fetched.clone());
        let help = "[ALPHA] Number of objects returned for a LIST request from storage";
        lists.register("list_returned_objects", help, self.returned.clone());
    }

    /// A cache has read what there is.
    pub fn initialized(&self, kind: &Kind, took: Duration) {
        let labels = labels(kind);
        self.initializations.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A read has waited until what was committed before it was in the cache.
    pub fn waited(&self, kind: &Kind, took: Duration) {
        self.waits.get_or_create(&labels(kind)).observe(took.as_secs_f64());
    }

    pub fn listed(&self, kind: &Kind, from: Storage, fetched: usize, returned: usize) {
        let gvr = kind.gvr();
        let storage = match from {
            Storage::Cache => "watchcache",
            Storage::History => "etcd",
        };
        let of = StorageLabels { group: gvr.group, resource: gvr.resource, storage };
        self.returned.get_or_create(&of).inc_by(returned as u64);
        let labels = IndexLabels { of, index: "" };
        self.lists.get_or_create(&labels).inc();
        self.fetched.get_or_create(&labels).inc_by(fetched as u64);
    }
}

/// What the caches say of themselves.
pub fn write(server: &ApiServer, page: &mut Page) {
    type Row<'a> = (&'static str, &'static str, &'static str, &'a dyn Fn(&Cache) -> f64);
    // Numbers of more digits are not whole as Prometheus keeps them.
    let revision = (server.hub.revision() % 1_000_000_000_000_000) as f64;
    let rows: [Row<'_>; 6] = [
        (
            "apiserver_storage_events_received_total",
            "[BETA] Number of etcd events received split by kind.",
            "counter",
            &|c| c.received() as f64,
        ),
        (
            "apiserver_watch_cache_events_received_total",
            "[ALPHA] Counter of events received in watch cache broken by resource type.",
            "counter",
            &|c| c.received() as f64,
        ),
        (
            "apiserver_watch_cache_events_dispatched_total",
            "[ALPHA] Counter of events dispatched in watch cache broken by resource type.",
            "counter",
            &|c| c.dispatched() as f64,
        ),
        (
            "apiserver_watch_cache_resource_version",
            "[ALPHA] Current resource version of watch cache broken by resource type. This is truncated to the 15 least \
             significant digits.",
            "gauge",
            &|_| revision,
        ),
        ("watch_cache_capacity", "[ALPHA] Total capacity of watch cache broken by resource type.", "gauge", &|_| {
            RING_CHANGES as f64
        }),
        (
            "apiserver_resource_size_estimate_bytes",
            "[ALPHA] Estimated size of stored objects in database. Estimate is based on sum of last observed sizes of \
             serialized objects. In case of a fetching error, the value will be -1.",
            "gauge",
            &|c| c.size().1 as f64,
        ),
    ];
    let caches = server.hub.caches();
    for (name, help, kind, value) in rows {
        let mut family = page.family(name, help, kind);
        for cache in &caches {
            let gvr = cache.kind.gvr();
            family.value(&[("group", &gvr.group), ("resource", &gvr.resource)], value(cache));
        }
    }
}
