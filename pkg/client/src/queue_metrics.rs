//! What work queues have before them and what they have done, under upstream's names
//! (`component-base/metrics/prometheus/workqueue`).

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    name: &'static str,
}

type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// The metrics of all queues that have a name. Cheap to clone.
#[derive(Clone)]
pub struct QueueMetrics {
    adds: Family<Labels, Counter>,
    retries: Family<Labels, Counter>,
    depth: Family<Labels, Gauge>,
    waits: Histograms,
    works: Histograms,
}

impl fmt::Debug for QueueMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QueueMetrics")
    }
}

/// From ten nanoseconds on, each ten times the one before.
fn durations() -> Histogram {
    Histogram::new((0..10).map(|n| 1e-8 * 10f64.powi(n)))
}

impl Default for QueueMetrics {
    fn default() -> Self {
        QueueMetrics {
            adds: Family::default(),
            retries: Family::default(),
            depth: Family::default(),
            waits: Family::new_with_constructor(durations),
            works: Family::new_with_constructor(durations),
        }
    }
}

impl QueueMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("workqueue");
        registry.register("adds", "[BETA] Total number of adds handled by workqueue", self.adds.clone());
        registry.register("depth", "[BETA] Current depth of workqueue", self.depth.clone());
        let help = "[BETA] How long in seconds an item stays in workqueue before being requested.";
        registry.register("queue_duration_seconds", help, self.waits.clone());
        registry.register("retries", "[BETA] Total number of retries handled by workqueue", self.retries.clone());
        let help = "[BETA] How long in seconds processing an item from workqueue takes.";
        registry.register("work_duration_seconds", help, self.works.clone());
    }

    /// Those of one queue. Queues of one name count together.
    pub(crate) fn of(&self, name: &'static str) -> Measures {
        let labels = Labels { name };
        Measures {
            adds: self.adds.get_or_create(&labels).clone(),
            retries: self.retries.get_or_create(&labels).clone(),
            depth: self.depth.get_or_create(&labels).clone(),
            waits: self.waits.get_or_create(&labels).clone(),
            works: self.works.get_or_create(&labels).clone(),
        }
    }
}

/// What one queue counts into.
pub(crate) struct Measures {
    adds: Counter,
    retries: Counter,
    depth: Gauge,
    waits: Histogram,
    works: Histogram,
}

impl Measures {
    pub fn added(&self) {
        self.adds.inc();
        self.depth.inc();
    }

    pub fn retried(&self) {
        self.retries.inc();
    }

    pub fn taken(&self, after: Duration) {
        self.depth.dec();
        self.waits.observe(after.as_secs_f64());
    }

    pub fn done(&self, after: Duration) {
        self.works.observe(after.as_secs_f64());
    }

    /// The queue has ended with so many keys before it.
    pub fn dropped(&self, keys: usize) {
        self.depth.dec_by(i64::try_from(keys).unwrap_or(i64::MAX));
    }
}
