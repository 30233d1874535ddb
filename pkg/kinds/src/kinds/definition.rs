//! CustomResourceDefinitions. What the API server makes of them is in `custom`.

use crate::access::{Access, set};
use crate::custom::status::{FINALIZER, set_condition};
use crate::kind::Ctx;
use crate::ownership;
use crate::strategy::{PLAIN, Strategy};
use serde_json::{Value, json};

pub const STRATEGY: Strategy = Strategy {
    owned: ownership::spec_or_status,
    unconditional_update: false,
    prepare_create: |_, new| {
        set(new, "status", json!({}));
        remember_stored(new);
    },
    prepare_update: |ctx, new, _| {
        if ctx.subresource.is_empty() {
            remember_stored(new);
        }
    },
    prepare_delete,
    ..PLAIN
};

/// The stored version joins those that objects may lie in the store in.
fn remember_stored(new: &mut Value) {
    let Some(version) = new.list("spec.versions").iter().find(|v| v.flag("storage")) else { return };
    let name = version.text("name").to_owned();
    let mut known: Vec<String> = new.texts("status.storedVersions").into_iter().map(str::to_owned).collect();
    if !known.contains(&name) {
        known.push(name);
        set(new, "status.storedVersions", known);
    }
}

/// A definition goes after its objects: the first delete sets the finalizer for that.
fn prepare_delete(ctx: &Ctx, old: &mut Value) {
    if old.has("metadata.deletionTimestamp") {
        return;
    }
    let mut finalizers: Vec<String> = old.texts("metadata.finalizers").into_iter().map(str::to_owned).collect();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
        set(old, "metadata.finalizers", finalizers);
    }
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    let now = isopod_api::time::format(ctx.now);
    // Upstream marks it here: unlike other objects it is given no grace period and no new generation.
    set(old, "metadata.deletionTimestamp", now.as_str());
    set_condition(old, "Terminating", "True", "InstanceDeletionPending", message, &now);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_versions_only_grow() {
        let mut d = json!({"spec": {"versions": [{"name": "v1"}, {"name": "v2", "storage": true}]}, "status": {"storedVersions": ["v1"]}});
        remember_stored(&mut d);
        remember_stored(&mut d);
        assert_eq!(d["status"]["storedVersions"], json!(["v1", "v2"]));
    }
}
