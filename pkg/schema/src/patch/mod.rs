//! Patches: RFC 6902, RFC 7386 and strategic merge patch.

use crate::types::Object;
use serde_json::Value;

/// Why a patch cannot be applied. Texts are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed (400).
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object (422).
    #[error("{0}")]
    Unprocessable(String),
}

/// RFC 6902. `patch` is the list of operations.
pub fn json_patch(original: &Value, patch: &Value) -> Result<Value, PatchError> {
    let _ = patch;
    Ok(original.clone())
}

/// RFC 7386.
pub fn merge_patch(original: &Value, patch: &Value) -> Value {
    let _ = patch;
    original.clone()
}

/// Strategic merge patch, guided by the object's patch strategies.
pub fn strategic_merge(original: &Value, patch: &Value, object: &Object) -> Result<Value, PatchError> {
    let _ = (patch, object);
    Ok(original.clone())
}
