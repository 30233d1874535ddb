//! The protobuf form of OpenAPI documents (`github.com/google/gnostic-models`), which client-go asks for. Messages are tables
//! of fields; JSON stands in for the parsed document.

pub mod v2;
pub mod v3;

use isopod_schema::proto::wire::{FIXED64, put_bytes, put_int, put_message, put_tag};
use serde_json::{Map, Value};

/// Writes the content of a message.
type Emit = fn(&mut Vec<u8>, &Value);

/// How a JSON value becomes a field.
#[derive(Clone, Copy)]
enum How {
    Text,
    Flag,
    Integer,
    Number,
    /// Repeated string.
    Texts,
    /// gnostic's `Any`: the value as YAML.
    Any,
    /// Repeated `Any`.
    Anys,
    Message(Emit),
    /// Repeated message, from an array.
    Each(Emit),
    /// A message whose field 1 is a repeated `{name, value}`.
    Map(Emit),
}

struct Field {
    key: &'static str,
    tag: u32,
    how: How,
}

const fn field(key: &'static str, tag: u32, how: How) -> Field {
    Field { key, tag, how }
}

/// `Any{yaml}`. JSON is YAML.
fn any(out: &mut Vec<u8>, value: &Value) {
    put_bytes(out, 2, value.to_string().as_bytes());
}

fn named(out: &mut Vec<u8>, tag: u32, entries: &Map<String, Value>, emit: Emit) {
    for (name, value) in entries {
        put_message(out, tag, |out| {
            put_bytes(out, 1, name.as_bytes());
            put_message(out, 2, |out| emit(out, value));
        });
    }
}

/// Writes those fields that are present, then the extensions (`x-…`) as repeated `{name, Any}`.
fn message(out: &mut Vec<u8>, value: &Value, fields: &[Field], extension: u32) {
    let Value::Object(map) = value else { return };
    for f in fields {
        if let Some(v) = map.get(f.key) {
            write(out, f.tag, v, f.how);
        }
    }
    for (name, v) in map.iter().filter(|(name, _)| name.starts_with("x-")) {
        put_message(out, extension, |out| {
            put_bytes(out, 1, name.as_bytes());
            put_message(out, 2, |out| any(out, v));
        });
    }
}

fn write(out: &mut Vec<u8>, tag: u32, value: &Value, how: How) {
    match (how, value) {
        (How::Text, Value::String(s)) if !s.is_empty() => put_bytes(out, tag, s.as_bytes()),
        (How::Flag, Value::Bool(true)) => put_int(out, tag, 1),
        (How::Integer, Value::Number(n)) => put_int(out, tag, n.as_i64().unwrap_or(0)),
        (How::Number, Value::Number(n)) => {
            put_tag(out, tag, FIXED64);
            out.extend_from_slice(&n.as_f64().unwrap_or(0.0).to_bits().to_le_bytes());
        }
        (How::Texts, Value::Array(items)) => {
            items.iter().filter_map(Value::as_str).for_each(|s| put_bytes(out, tag, s.as_bytes()));
        }
        (How::Texts, Value::String(s)) => put_bytes(out, tag, s.as_bytes()),
        (How::Any, v) => put_message(out, tag, |out| any(out, v)),
        (How::Anys, Value::Array(items)) => items.iter().for_each(|v| put_message(out, tag, |out| any(out, v))),
        (How::Message(emit), v) => put_message(out, tag, |out| emit(out, v)),
        (How::Each(emit), Value::Array(items)) => items.iter().for_each(|v| put_message(out, tag, |out| emit(out, v))),
        (How::Map(emit), Value::Object(map)) => put_message(out, tag, |out| named(out, 1, map, emit)),
        _ => {}
    }
}
