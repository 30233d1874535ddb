//! What conversions cost, under upstream's names (`apiextensions-apiserver/pkg/apiserver/conversion/metrics.go`).

use isopod_kinds::custom::Fault;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
    failure_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DefinitionLabels {
    crd_name: String,
    from_version: String,
    to_version: String,
    succeeded: &'static str,
}

const BUCKETS: [f64; 15] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

pub struct ConversionMetrics {
    requests: Family<ResultLabels, Counter>,
    durations: Histograms<ResultLabels>,
    definitions: Histograms<DefinitionLabels>,
}

impl ConversionMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let requests = Family::<ResultLabels, Counter>::default();
        let help = "Counter for conversion webhook requests with success/failure and failure error type";
        registry.register("apiserver_conversion_webhook_request", help, requests.clone());
        let durations = Histograms::<ResultLabels>::new_with_constructor(|| Histogram::new(BUCKETS));
        let name = "apiserver_conversion_webhook_duration_seconds";
        registry.register(name, "Conversion webhook request latency", durations.clone());
        // Each a double of the one before, from a millisecond.
        let doubles: fn() -> Histogram = || Histogram::new((0..15).map(|n| 0.001 * f64::from(1 << n)));
        let definitions = Histograms::<DefinitionLabels>::new_with_constructor(doubles);
        let name = "apiserver_crd_conversion_webhook_duration_seconds";
        registry.register(name, "CRD webhook conversion duration in seconds", definitions.clone());
        ConversionMetrics { requests, durations, definitions }
    }

    /// A call was made, or could not be.
    pub fn observe(&self, definition: &str, [from, to]: [&str; 2], fault: Option<Fault>, took: Duration) {
        let result = if fault.is_none() { "success" } else { "failure" };
        let labels = ResultLabels { result, failure_type: fault.map_or("", Fault::name) };
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        let labels = DefinitionLabels {
            crd_name: definition.to_owned(),
            from_version: from.to_owned(),
            to_version: to.to_owned(),
            succeeded: if fault.is_none() { "true" } else { "false" },
        };
        self.definitions.get_or_create(&labels).observe(took.as_secs_f64());
    }
}
