//! What metrics say of the configuration files that the API server follows.

use isopod_base::reloads::{Help, Reloads};
use prometheus_client::registry::Registry;

/// `what`: `authentication` or `authorization`.
pub fn register(reloads: &Reloads, what: &str, registry: &mut Registry) {
    let split = "split by status and apiserver identity";
    let help = Help {
        totals: &format!("[BETA] Total number of automatic reloads of {what} configuration {split}"),
        last: &format!("[BETA] Timestamp of the last automatic reload of {what} configuration {split}"),
        in_force: &format!(
            "[ALPHA] Information about the last applied {what} configuration with hash as label, split by apiserver identity"
        ),
    };
    reloads.register(&format!("apiserver_{what}_config_controller"), &help, registry);
}
