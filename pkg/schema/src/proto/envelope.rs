//! The frame of Kubernetes' protobuf: `k8s\0` and a `runtime.Unknown` message with the object's type.

use super::wire::{BYTES, Reader, put_bytes, put_message, put_tag, put_varint};
use super::{ProtoError, decode, encode};
use crate::types::Object;
use isopod_api::{GroupVersion, Gvk};
use serde_json::Value;

/// What protobuf bodies begin with.
pub const PREFIX: &[u8] = b"k8s\0";

/// What the envelope says about its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown<'a> {
    pub api_version: String,
    pub kind: String,
    pub raw: &'a [u8],
    pub content_encoding: String,
    pub content_type: String,
}

impl Unknown<'_> {
    pub fn gvk(&self) -> Option<Gvk> {
        let gv = GroupVersion::parse(&self.api_version)?;
        Some(Gvk::new(gv.group, gv.version, self.kind.clone()))
    }
}

/// What stands behind the message: its encoding and its type, which are not said.
pub const TAIL: &[u8] = &[3 << 3 | BYTES, 0, 4 << 3 | BYTES, 0];

/// What stands in front of a message of this length: `k8s\0` + `runtime.Unknown{typeMeta, raw}`.
pub fn head(api_version: &str, kind: &str, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(api_version.len() + kind.len() + 32);
    out.extend_from_slice(PREFIX);
    put_message(&mut out, 1, |out| {
        put_bytes(out, 1, api_version.as_bytes());
        put_bytes(out, 2, kind.as_bytes());
    });
    put_tag(&mut out, 2, BYTES);
    put_varint(&mut out, length as u64);
    out
}

/// A message in its frame.
pub fn wrap(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = head(api_version, kind, raw.len());
    out.reserve_exact(raw.len() + TAIL.len());
    out.extend_from_slice(raw);
    out.extend_from_slice(TAIL);
    out
}

/// Reads the frame.
pub fn unwrap(bytes: &[u8]) -> Result<Unknown<'_>, ProtoError> {
    let mut r = Reader::new(bytes.strip_prefix(PREFIX).ok_or(ProtoError::NoPrefix)?);
    let string = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let mut unknown = Unknown::default();
    while !r.is_empty() {
        match r.tag()? {
            (1, BYTES) => {
                let mut meta = Reader::new(r.bytes()?);
                while !meta.is_empty() {
                    match meta.tag()? {
                        (1, BYTES) => unknown.api_version = string(meta.bytes()?),
                        (2, BYTES) => unknown.kind = string(meta.bytes()?),
                        (_, wire_type) => meta.skip(wire_type)?,
                    }
                }
            }
            (2, BYTES) => unknown.raw = r.bytes()?,
            (3, BYTES) => unknown.content_encoding = string(r.bytes()?),
            (4, BYTES) => unknown.content_type = string(r.bytes()?),
            (_, wire_type) => r.skip(wire_type)?,
        }
    }
    Ok(unknown)
}

/// Encodes a whole object: its `apiVersion` and `kind` go into the frame.
pub fn seal(value: &Value, object: &Object) -> Vec<u8> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    wrap(text("apiVersion"), text("kind"), &encode(value, object))
}

/// Decodes a framed object of a known schema, with `apiVersion` and `kind` from the frame.
pub fn open<'a>(bytes: &'a [u8], object: &Object) -> Result<(Unknown<'a>, Value), ProtoError> {
    let unknown = unwrap(bytes)?;
    let value = decode(unknown.raw, object)?;
    Ok(with_type(unknown, value))
}

/// Decodes a framed object of a built-in kind, which the frame names.
pub fn open_builtin(bytes: &[u8]) -> Result<(Unknown<'_>, Value), ProtoError> {
    open_at(bytes, 0)
}

pub(super) fn open_at(bytes: &[u8], depth: usize) -> Result<(Unknown<'_>, Value), ProtoError> {
    let unknown = unwrap(bytes)?;
    let object = unknown.gvk().and_then(|gvk| crate::facts::builtin().object_of(&gvk));
    let Some(object) = object else {
        return Err(ProtoError::UnknownKind { api_version: unknown.api_version, kind: unknown.kind });
    };
    let value = super::decode::at_depth(unknown.raw, &object, depth)?;
    Ok(with_type(unknown, value))
}

fn with_type<'a>(unknown: Unknown<'a>, mut value: Value) -> (Unknown<'a>, Value) {
    if let Value::Object(map) = &mut value {
        for (key, text) in [("apiVersion", &unknown.api_version), ("kind", &unknown.kind)] {
            if !text.is_empty() {
                map.insert(key.to_owned(), Value::String(text.clone()));
            }
        }
    }
    (unknown, value)
}
