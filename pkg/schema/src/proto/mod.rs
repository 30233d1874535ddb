//! Kubernetes' protobuf form, byte for byte as Go's generated code writes it.

use crate::types::Object;
use serde_json::Value;

pub mod envelope;

/// Why bytes are not a message of this schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    #[error("unexpected EOF")]
    UnexpectedEof,
}

/// Decodes a message without envelope.
pub fn decode(bytes: &[u8], object: &Object) -> Result<Value, ProtoError> {
    let _ = (bytes, object);
    Err(ProtoError::UnexpectedEof)
}

/// Encodes a message without envelope.
pub fn encode(value: &Value, object: &Object) -> Vec<u8> {
    let _ = (value, object);
    Vec::new()
}
