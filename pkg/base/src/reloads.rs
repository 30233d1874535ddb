//! What metrics tell of a configuration file that is followed (upstream's `apiserver/pkg/server/options/*config/metrics`).

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    status: &'static str,
    apiserver_id_hash: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HashLabels {
    apiserver_id_hash: String,
    hash: String,
}

/// What the metrics say of themselves.
pub struct Help<'a> {
    pub totals: &'a str,
    pub last: &'a str,
    pub in_force: &'a str,
}

/// How often a file was read again, when, and what is in force.
pub struct Reloads {
    server: String,
    totals: Family<StatusLabels, Counter>,
    last: Family<StatusLabels, Gauge<f64, AtomicU64>>,
    in_force: Family<HashLabels, Gauge>,
}

impl Reloads {
    /// `text`: what the file says at the start.
    pub fn new(identity: &str, text: &str) -> Self {
        let (totals, last, in_force) = (Family::default(), Family::default(), Family::default());
        let reloads = Reloads { server: digest(identity.as_bytes()), totals, last, in_force };
        reloads.show(text);
        reloads
    }

    /// `prefix`: what the names begin with, `apiserver_authorization_config_controller`.
    pub fn register(&self, prefix: &str, help: &Help<'_>, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix(prefix);
        registry.register("automatic_reloads", help.totals, self.totals.clone());
        registry.register("automatic_reload_last_timestamp_seconds", help.last, self.last.clone());
        registry.register("last_config_info", help.in_force, self.in_force.clone());
    }

    pub fn failed(&self) {
        self.count("failure");
    }

    /// `text`: what is in force now.
    pub fn succeeded(&self, text: &str) {
        self.count("success");
        self.show(text);
    }

    fn count(&self, status: &'static str) {
        let labels = StatusLabels { status, apiserver_id_hash: self.server.clone() };
        self.totals.get_or_create(&labels).inc();
        self.last.get_or_create(&labels).set(now());
    }

    fn show(&self, text: &str) {
        self.in_force.clear();
        let labels = HashLabels { apiserver_id_hash: self.server.clone(), hash: digest(text.as_bytes()) };
        self.in_force.get_or_create(&labels).set(1);
    }
}

/// How upstream shows what it does not tell; of nothing, nothing.
pub fn digest(of: &[u8]) -> String {
    if of.is_empty() {
        return String::new();
    }
    let mut shown = "sha256:".to_owned();
    for byte in Sha256::digest(of) {
        // Writing into a string does not fail.
        let _ = write!(shown, "{byte:02x}");
    }
    shown
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_is_shown() {
        let (mut registry, mut page) = (Registry::default(), String::new());
        let reloads = Reloads::new("apiserver-x", "old");
        let help = Help { totals: "How often.", last: "When.", in_force: "What." };
        reloads.register("apiserver_authorization_config_controller", &help, &mut registry);
        reloads.succeeded("new");
        reloads.failed();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        let prefix = "apiserver_authorization_config_controller_";
        let id = digest(b"apiserver-x");
        for status in ["success", "failure"] {
            let line = format!("{prefix}automatic_reloads_total{{status=\"{status}\",apiserver_id_hash=\"{id}\"}} 1\n");
            assert!(page.contains(&line), "{page}");
        }
        assert!(page.contains(&format!(
            "{prefix}last_config_info{{apiserver_id_hash=\"{id}\",hash=\"{}\"}} 1",
            digest(b"new")
        )));
        assert!(!page.contains(&digest(b"old")));
    }
}
