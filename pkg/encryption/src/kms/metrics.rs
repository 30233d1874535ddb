//! What plugins are asked, and which of their keys are used, under upstream's names
//! (`apiserver/pkg/storage/value/encrypt/envelope/metrics`).

use super::plugin::PluginError;
use crate::metrics::Direction;
use isopod_base::reloads::{digest, now};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    provider_name: String,
    method_name: &'static str,
    grpc_status_code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UseLabels {
    transformation_type: &'static str,
    provider_name: String,
    key_id_hash: String,
    apiserver_id_hash: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabels {
    provider_name: String,
    key_id_hash: String,
    apiserver_id_hash: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    provider_name: String,
    error: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider_name: String,
}

/// Seconds since 1970.
type Timestamp = Gauge<f64, AtomicU64>;

/// `apiserver_envelope_encryption_*`, of all plugins.
pub struct PluginMetrics {
    apiserver_id_hash: String,
    calls: Family<CallLabels, Histogram, fn() -> Histogram>,
    uses: Family<UseLabels, Counter>,
    last_uses: Family<UseLabels, Timestamp>,
    recently_used: Mutex<Recent<UseLabels>>,
    confirmations: Family<KeyLabels, Timestamp>,
    recently_confirmed: Mutex<Recent<KeyLabels>>,
    invalid: Family<ErrorLabels, Counter>,
    seeds: Family<ProviderLabels, Gauge>,
}

impl PluginMetrics {
    /// `server`: what this API server is called among others.
    pub fn new(server: &str) -> Self {
        // From a tenth of a millisecond on, each a double of the one before.
        let calls = || Histogram::new((0..20).map(|n| 1e-4 * f64::from(1 << n)));
        PluginMetrics {
            apiserver_id_hash: digest(server.as_bytes()),
            calls: Family::new_with_constructor(calls),
            uses: Family::default(),
            last_uses: Family::default(),
            recently_used: Mutex::default(),
            confirmations: Family::default(),
            recently_confirmed: Mutex::default(),
            invalid: Family::default(),
            seeds: Family::default(),
        }
    }

    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("apiserver_envelope_encryption");
        let help = "[ALPHA] KMS operation duration with gRPC error code status total.";
        registry.register("kms_operations_latency_seconds", help, self.calls.clone());
        let help =
            "[ALPHA] Number of times a keyID is used split by transformation type, provider, and apiserver identity.";
        registry.register("key_id_hash", help, self.uses.clone());
        let help = "[ALPHA] The last time in seconds when a keyID was used.";
        registry.register("key_id_hash_last_timestamp_seconds", help, self.last_uses.clone());
        let help = "[ALPHA] The last time in seconds when a keyID was returned by the Status RPC call.";
        registry.register("key_id_hash_status_last_timestamp_seconds", help, self.confirmations.clone());
        let help = "[ALPHA] Number of times an invalid keyID is returned by the Status RPC call split by error.";
        registry.register("invalid_key_id_from_status", help, self.invalid.clone());
        let help = "[ALPHA] Number of records in data encryption key (DEK) source cache. On a restart, this value is an \
                    approximation of the number of decrypt RPC calls the server will make to the KMS plugin.";
        registry.register("dek_source_cache_size", help, self.seeds.clone());
    }

    /// A plugin has answered, or has not.
    pub fn called<A>(&self, plugin: &str, method: &'static str, answer: &Result<A, PluginError>, took: Duration) {
        let code = match answer {
            Ok(_) => "OK".to_owned(),
            Err(e) => e.code(),
        };
        let labels = CallLabels { provider_name: plugin.to_owned(), method_name: method, grpc_status_code: code };
        self.calls.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A value was sealed, or is to be opened, with a seed under this key.
    pub(crate) fn used(&self, plugin: &str, direction: Direction, key_id: &str) {
        let labels = UseLabels {
            transformation_type: direction.name(),
            provider_name: plugin.to_owned(),
            key_id_hash: digest(key_id.as_bytes()),
            apiserver_id_hash: self.apiserver_id_hash.clone(),
        };
        self.uses.get_or_create(&labels).inc();
        self.last_uses.get_or_create(&labels).set(now());
        if let Some(old) = self.recently_used.lock().meet(&labels) {
            self.uses.remove(&old);
            self.last_uses.remove(&old);
        }
    }

    /// A plugin's status tells this key.
    pub fn confirmed(&self, plugin: &str, key_id: &str) {
        let labels = KeyLabels {
            provider_name: plugin.to_owned(),
            key_id_hash: digest(key_id.as_bytes()),
            apiserver_id_hash: self.apiserver_id_hash.clone(),
        };
        self.confirmations.get_or_create(&labels).set(now());
        if let Some(old) = self.recently_confirmed.lock().meet(&labels) {
            self.confirmations.remove(&old);
        }
    }

    /// A plugin's status tells a key that cannot be one. `error`: `empty` or `too_long`.
    pub fn refused(&self, plugin: &str, error: &'static str) {
        self.invalid.get_or_create(&ErrorLabels { provider_name: plugin.to_owned(), error }).inc();
    }

    /// How many seeds of a plugin are known.
    pub fn known(&self, plugin: &str, seeds: usize) {
        let labels = ProviderLabels { provider_name: plugin.to_owned() };
        self.seeds.get_or_create(&labels).set(i64::try_from(seeds).unwrap_or(i64::MAX));
    }
}

/// What was met lately: plugins choose what their keys are called, so there may be any number of them.
struct Recent<L> {
    met: HashMap<L, u64>,
    meetings: u64,
}

impl<L> Default for Recent<L> {
    fn default() -> Self {
        Recent { met: HashMap::new(), meetings: 0 }
    }
}

impl<L: Clone + Eq + Hash> Recent<L> {
    /// Upstream's bound.
    const MOST: usize = 100;

    /// What is forgotten for it: whatever was not met for longest.
    fn meet(&mut self, labels: &L) -> Option<L> {
        self.meetings += 1;
        if let Some(last) = self.met.get_mut(labels) {
            *last = self.meetings;
            return None;
        }
        self.met.insert(labels.clone(), self.meetings);
        if self.met.len() <= Self::MOST {
            return None;
        }
        let oldest = self.met.iter().min_by_key(|(_, last)| **last).map(|(l, _)| l.clone())?;
        self.met.remove(&oldest);
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(metrics: &PluginMetrics) -> String {
        let (mut registry, mut page) = (Registry::default(), String::new());
        metrics.register(&mut registry);
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        page
    }

    #[test]
    fn keys_are_shown_by_their_digests_and_forgotten_in_the_end() {
        let metrics = PluginMetrics::new("apiserver-x");
        metrics.used("p", Direction::Open, "key");
        metrics.used("p", Direction::Seal, "key");
        metrics.used("p", Direction::Open, "key");
        // sha256sum of what was given.
        let key = "sha256:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683";
        let line = format!(
            "apiserver_envelope_encryption_key_id_hash_total{{transformation_type=\"from_storage\",provider_name=\"p\",\
             key_id_hash=\"{key}\",apiserver_id_hash=\"{}\"}} 2\n",
            digest(b"apiserver-x")
        );
        assert!(page(&metrics).contains(&line), "{line} in {}", page(&metrics));
        for n in 0..200 {
            metrics.used("p", Direction::Seal, "key");
            metrics.used("p", Direction::Open, &format!("key-{n}"));
            metrics.confirmed("p", &format!("key-{n}"));
        }
        let page = page(&metrics);
        let shown = |name: &str| page.lines().filter(|l| l.contains(&format!("encryption_{name}{{"))).count();
        assert_eq!(shown("key_id_hash_total"), 100);
        assert_eq!(shown("key_id_hash_last_timestamp_seconds"), 100);
        assert_eq!(shown("key_id_hash_status_last_timestamp_seconds"), 100);
        assert!(!page.contains(&line) && page.contains(key), "what is used stays");
    }
}
