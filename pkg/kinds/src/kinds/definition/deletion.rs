//! The delete of a definition.

use crate::access::{Access, set};
use crate::custom::status::{FINALIZER, set_condition};
use crate::kind::Ctx;
use serde_json::Value;

/// A definition goes after its objects: the first delete sets the finalizer for that.
pub(super) fn prepare_delete(ctx: &Ctx, old: &mut Value) {
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
