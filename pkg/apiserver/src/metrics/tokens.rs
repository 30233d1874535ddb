//! Service-account tokens that were accepted (`pkg/serviceaccount/metrics.go`).

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

#[derive(Default)]
pub struct TokenMetrics {
    legacy: Counter,
    stale: Counter,
    valid: Counter,
}

impl TokenMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let made = TokenMetrics::default();
        let registry = registry.sub_registry_with_prefix("serviceaccount");
        registry.register("legacy_tokens", "[BETA] Cumulative legacy service account tokens used", made.legacy.clone());
        let help = "[BETA] Cumulative stale projected service account tokens used";
        registry.register("stale_tokens", help, made.stale.clone());
        let help = "[BETA] Cumulative valid projected service account tokens used";
        registry.register("valid_tokens", help, made.valid.clone());
        made
    }

    /// `legacy`: it stands in a secret; `stale`: it should have been replaced.
    pub fn accepted(&self, legacy: bool, stale: bool) {
        let counter = match (legacy, stale) {
            (true, _) => &self.legacy,
            (false, true) => &self.stale,
            (false, false) => &self.valid,
        };
        counter.inc();
    }
}
