//! `/metrics/slis`: what came of the checks of health (`component-base/metrics/prometheus/slis`).

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    name: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    name: &'static str,
    r#type: &'static str,
    status: &'static str,
}

pub struct CheckMetrics {
    registry: Registry,
    results: Family<CheckLabels, Gauge>,
    totals: Family<StatusLabels, Counter>,
}

impl Default for CheckMetrics {
    fn default() -> Self {
        let (mut registry, results, totals) = (Registry::default(), Family::default(), Family::default());
        let kubernetes = registry.sub_registry_with_prefix("kubernetes");
        let help = "[STABLE] This metric records the result of a single healthcheck";
        kubernetes.register("healthcheck", help, Family::clone(&results));
        let help = "[STABLE] This metric records the results of all healthcheck";
        kubernetes.register("healthchecks", help, Family::clone(&totals));
        CheckMetrics { registry, results, totals }
    }
}

impl CheckMetrics {
    /// `endpoint`: `healthz`, `livez` or `readyz`.
    pub fn checked(&self, name: &'static str, endpoint: &'static str, passes: bool) {
        self.results.get_or_create(&CheckLabels { name, r#type: endpoint }).set(passes.into());
        let status = if passes { "success" } else { "error" };
        self.totals.get_or_create(&StatusLabels { name, r#type: endpoint, status }).inc();
    }

    pub fn text(&self) -> String {
        super::page(&self.registry)
    }
}
