//! What the datastore is asked about objects, and how long it takes, under upstream's names (`apiserver/pkg/storage/etcd3/metrics`):
//! whatever the datastore is, dashboards ask for etcd.

use isopod_kinds::Kind;
use isopod_store::StoreError;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::future::Future;
use std::time::Instant;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    operation: &'static str,
    group: String,
    resource: String,
}

/// Counted where it happens. A clone counts for the same page.
#[derive(Clone)]
pub struct DatastoreMetrics {
    requests: Family<Labels, Counter>,
    errors: Family<Labels, Counter>,
    durations: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Default for DatastoreMetrics {
    fn default() -> Self {
        DatastoreMetrics {
            requests: Family::default(),
            errors: Family::default(),
            durations: Family::new_with_constructor(|| {
                Histogram::new([
                    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0,
                    15.0, 20.0, 30.0, 45.0, 60.0,
                ])
            }),
        }
    }
}

impl DatastoreMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let help = "[ALPHA] Etcd request counts for each operation and object type";
        registry.register("etcd_requests", help, self.requests.clone());
        let help = "[ALPHA] Etcd failed request counts for each operation and object type";
        registry.register("etcd_request_errors", help, self.errors.clone());
        let help = "[ALPHA] Etcd request latency in seconds for each operation and object type";
        registry.register("etcd_request_duration_seconds", help, self.durations.clone());
    }

    /// Waits for an answer and counts it. What a compare refuses is an answer, too.
    pub async fn asked<T>(
        &self,
        operation: &'static str,
        kind: &Kind,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let answer = answer.await;
        let took = began.elapsed().as_secs_f64();
        let gvr = kind.gvr();
        let labels = Labels { operation, group: gvr.group, resource: gvr.resource };
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(took);
        if answer.is_err() {
            self.errors.get_or_create(&labels).inc();
        }
        answer
    }
}
