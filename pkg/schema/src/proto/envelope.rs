//! The envelope of Kubernetes' protobuf: `k8s\0` and a `runtime.Unknown` message.

use super::ProtoError;

/// What the envelope says about its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown<'a> {
    pub api_version: String,
    pub kind: String,
    pub raw: &'a [u8],
    pub content_encoding: String,
    pub content_type: String,
}

/// `k8s\0` + `runtime.Unknown{typeMeta, raw}`.
pub fn wrap(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let _ = (api_version, kind);
    raw.to_vec()
}

pub fn unwrap(bytes: &[u8]) -> Result<Unknown<'_>, ProtoError> {
    let _ = bytes;
    Err(ProtoError::UnexpectedEof)
}
