//! Values to messages.

use super::layout::{Layout, What};
use super::wire::{FIXED64, VARINT, put_bytes, put_int, put_message, put_tag, put_varint};
use crate::json::decode_base64;
use crate::scalar;
use crate::types::{Field, Node, Object};
use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// Encodes a message without envelope. Values of a wrong type are written as zero.
pub fn encode(value: &Value, object: &Object) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    message(&mut out, value.as_object(), object);
    out
}

/// The message of a list (`PodList`): its metadata (`metav1.ListMeta`) and the encoded messages of its items.
pub fn list<'a>(metadata: &Value, items: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let meta = crate::facts::builtin().object("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta");
    put_message(&mut out, 1, |out| {
        if let Some(meta) = meta {
            message(out, metadata.as_object(), &meta);
        }
    });
    for item in items {
        put_bytes(&mut out, 2, item);
    }
    out
}

/// A `metav1.WatchEvent` message. `object` is the object in its envelope.
pub fn watch_event(event_type: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + 32);
    put_bytes(&mut out, 1, event_type.as_bytes());
    put_message(&mut out, 2, |out| put_bytes(out, 1, object));
    out
}

fn message(out: &mut Vec<u8>, map: Option<&Map<String, Value>>, object: &Object) {
    entries(out, map, object, Layout::of(object));
}

fn entries(out: &mut Vec<u8>, map: Option<&Map<String, Value>>, object: &Object, layout: &Layout) {
    for e in &layout.0 {
        match &e.what {
            What::Field(i) => {
                let f = &object.fields[*i];
                field(out, e.tag, map.and_then(|m| m.get(&f.name)).unwrap_or(&NULL), f);
            }
            What::Inline(inner) => put_message(out, e.tag, |out| entries(out, map, object, inner)),
        }
    }
}

fn field(out: &mut Vec<u8>, tag: u32, value: &Value, f: &Field) {
    match (&f.node, value) {
        (Node::List(list), Value::Array(items)) => {
            if list.wrapped {
                put_message(out, tag, |out| items.iter().for_each(|v| single(out, 1, v, &list.item)));
            } else {
                items.iter().for_each(|v| single(out, tag, v, &list.item));
            }
        }
        (Node::Map(m), Value::Object(map)) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            for key in keys {
                put_message(out, tag, |out| {
                    put_bytes(out, 1, key.as_bytes());
                    entry_value(out, &map[key], &m.value);
                });
            }
        }
        (Node::List(_) | Node::Map(_), _) => {}
        (_, Value::Null) if f.pointer || matches!(f.node, Node::Bytes) => {}
        (node, value) => single(out, tag, value, node),
    }
}

fn entry_value(out: &mut Vec<u8>, value: &Value, node: &Node) {
    match (node, value) {
        (Node::Bytes, Value::Null) => {}
        (Node::List(list), _) => put_message(out, 2, |out| {
            value.as_array().into_iter().flatten().for_each(|v| single(out, 1, v, &list.item));
        }),
        _ => single(out, 2, value, node),
    }
}

/// One value that is no list and no map. `null` is the zero value.
fn single(out: &mut Vec<u8>, tag: u32, value: &Value, node: &Node) {
    match node {
        Node::Bool => put_int(out, tag, i64::from(value.as_bool().unwrap_or(false))),
        Node::Int32 | Node::Int64 => put_int(out, tag, integer(value)),
        Node::Double => {
            put_tag(out, tag, FIXED64);
            out.extend_from_slice(&value.as_f64().unwrap_or(0.0).to_bits().to_le_bytes());
        }
        Node::String => put_bytes(out, tag, value.as_str().unwrap_or_default().as_bytes()),
        Node::Bytes => {
            let bytes = decode_base64(value.as_str().unwrap_or_default()).unwrap_or_default();
            put_bytes(out, tag, &bytes);
        }
        Node::Object(o) => put_message(out, tag, |out| message(out, value.as_object(), o.get())),
        _ => put_message(out, tag, |out| special(out, value, node)),
    }
}

fn integer(value: &Value) -> i64 {
    value.as_i64().or_else(|| value.as_f64().map(|f| f as i64)).unwrap_or(0)
}

/// The content of the messages of types that are no structs in JSON.
fn special(out: &mut Vec<u8>, value: &Value, node: &Node) {
    match (node, value) {
        (Node::Quantity, Value::String(s)) => put_bytes(out, 1, s.as_bytes()),
        (Node::Quantity, Value::Number(n)) => put_bytes(out, 1, n.to_string().as_bytes()),
        (Node::Quantity, _) => put_bytes(out, 1, b"0"),
        (Node::IntOrString, Value::String(s)) => {
            put_int(out, 1, 1);
            put_int(out, 2, 0);
            put_bytes(out, 3, s.as_bytes());
        }
        (Node::IntOrString, v) => {
            put_int(out, 1, 0);
            put_int(out, 2, integer(v));
            put_bytes(out, 3, b"");
        }
        (Node::Time | Node::MicroTime, Value::String(s)) => {
            if let Some(t) = isopod_api::time::parse(s) {
                let nanos = t.as_nanosecond().rem_euclid(1_000_000_000) as i64;
                put_int(out, 1, t.as_nanosecond().div_euclid(1_000_000_000) as i64);
                put_int(out, 2, if matches!(node, Node::MicroTime) { nanos / 1000 * 1000 } else { 0 });
            }
        }
        (Node::Duration, v) => {
            put_tag(out, 1, VARINT);
            put_varint(out, v.as_str().and_then(|s| scalar::duration_nanos(s).ok()).unwrap_or(0) as u64);
        }
        (Node::Any | Node::FieldsV1, v) if !v.is_null() => put_bytes(out, 1, &crate::json::encode(v)),
        (Node::SchemaOrBool(o), v) => {
            put_int(out, 1, i64::from(v.is_object() || v == &Value::Bool(true)));
            if v.is_object() {
                put_message(out, 2, |out| message(out, v.as_object(), o.get()));
            }
        }
        (Node::SchemaOrArray(o) | Node::SchemaOrStringArray(o), v @ Value::Object(_)) => {
            put_message(out, 1, |out| message(out, v.as_object(), o.get()));
        }
        (Node::SchemaOrArray(o), Value::Array(items)) => {
            items.iter().for_each(|v| put_message(out, 2, |out| message(out, v.as_object(), o.get())));
        }
        (Node::SchemaOrStringArray(_), Value::Array(items)) => {
            items.iter().for_each(|v| put_bytes(out, 2, v.as_str().unwrap_or_default().as_bytes()));
        }
        _ => {}
    }
}
