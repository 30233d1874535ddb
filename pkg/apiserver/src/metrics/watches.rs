//! What watchers are sent (`apiserver/pkg/endpoints/metrics`).

use isopod_kinds::Kind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    group: String,
    version: String,
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListLabels {
    #[prometheus(flatten)]
    of: Labels,
    scope: &'static str,
}

/// From a kilobyte to 128 of them.
const SIZES: [f64; 8] = [1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131_072.0];
const DURATIONS: [f64; 25] = [
    0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
    90.0, 120.0, 180.0, 300.0,
];

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

pub struct WatchMetrics {
    events: Family<Labels, Counter>,
    sizes: Histograms<Labels>,
    lists: Histograms<ListLabels>,
}

/// What one watch counts into.
pub struct Events {
    count: Counter,
    sizes: Histogram,
}

impl Events {
    pub fn sent(&self, bytes: usize) {
        self.count.inc();
        self.sizes.observe(bytes as f64);
    }
}

fn labels(kind: &Kind) -> Labels {
    let gvr = kind.gvr();
    Labels { group: gvr.group, version: gvr.version, resource: gvr.resource }
}

impl WatchMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let made = WatchMetrics {
            events: Family::default(),
            sizes: Family::new_with_constructor(|| Histogram::new(SIZES)),
            lists: Family::new_with_constructor(|| Histogram::new(DURATIONS)),
        };
        let registry = registry.sub_registry_with_prefix("apiserver");
        registry.register("watch_events", "[BETA] Number of events sent in watch clients", made.events.clone());
        registry.register("watch_events_sizes", "[BETA] Watch event size distribution in bytes", made.sizes.clone());
        let help = "[BETA] Response latency distribution in seconds for watch list requests broken by group, version, \
                    resource and scope";
        registry.register("watch_list_duration_seconds", help, made.lists.clone());
        made
    }

    pub fn events(&self, kind: &Kind) -> Events {
        let labels = labels(kind);
        Events { count: self.events.get_or_create(&labels).clone(), sizes: self.sizes.get_or_create(&labels).clone() }
    }

    /// A watch that began with everything that was there has sent it.
    pub fn listed(&self, kind: &Kind, in_namespace: bool, took: Duration) {
        let scope = if in_namespace { "namespace" } else { "cluster" };
        self.lists.get_or_create(&ListLabels { of: labels(kind), scope }).observe(took.as_secs_f64());
    }
}
