//! What metrics tell of a configuration file that is followed (`apiserver/pkg/server/options/*config/metrics`).

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use sha2::{Digest, Sha256};
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
        let reloads = Reloads { server: digest(identity), totals, last, in_force };
        reloads.show(text);
        reloads
    }

    /// `what`: `authentication` or `authorization`.
    pub fn register(&self, what: &str, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix(format!("apiserver_{what}_config_controller"));
        let help =
            format!("Total number of automatic reloads of {what} configuration split by status and apiserver identity");
        registry.register("automatic_reloads", help, self.totals.clone());
        let help = format!(
            "Timestamp of the last automatic reload of {what} configuration split by status and apiserver identity"
        );
        registry.register("automatic_reload_last_timestamp_seconds", help, self.last.clone());
        let help = format!(
            "Information about the last applied {what} configuration with hash as label, split by apiserver identity"
        );
        registry.register("last_config_info", help, self.in_force.clone());
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
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last.get_or_create(&labels).set(now.as_secs_f64());
    }

    fn show(&self, text: &str) {
        self.in_force.clear();
        let labels = HashLabels { apiserver_id_hash: self.server.clone(), hash: digest(text) };
        self.in_force.get_or_create(&labels).set(1);
    }
}

fn digest(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("sha256:{}", hex::encode(Sha256::digest(text))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_is_shown() {
        let (mut registry, mut page) = (Registry::default(), String::new());
        let reloads = Reloads::new("apiserver-x", "old");
        reloads.register("authorization", &mut registry);
        reloads.succeeded("new");
        reloads.failed();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        let prefix = "apiserver_authorization_config_controller_";
        let id = digest("apiserver-x");
        for status in ["success", "failure"] {
            let line = format!("{prefix}automatic_reloads_total{{status=\"{status}\",apiserver_id_hash=\"{id}\"}} 1\n");
            assert!(page.contains(&line), "{page}");
        }
        assert!(
            page.contains(&format!(
                "{prefix}last_config_info{{apiserver_id_hash=\"{id}\",hash=\"{}\"}} 1",
                digest("new")
            ))
        );
        assert!(!page.contains(&digest("old")));
    }
}
