//! Messages to values.

use super::layout::{Layout, Message, What};
use super::wire::{BYTES, FIXED64, Reader, VARINT};
use super::{ProtoError, envelope};
use crate::json::{canonicalize, depth, zero};
use crate::scalar;
use crate::types::{Field, Map as MapType, Node, Object};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use isopod_api::quantity::Quantity;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

/// Decodes a message without envelope to its canonical value, which lacks `apiVersion` and `kind`. Unknown fields are
/// dropped.
pub fn decode(bytes: &[u8], object: &Object) -> Result<Value, ProtoError> {
    let mut value = Value::Object(struct_value(bytes, object, 0)?);
    canonicalize(&mut value, object);
    Ok(value)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn struct_value(bytes: &[u8], object: &Object, depth: usize) -> Result<Map<String, Value>, ProtoError> {
    let mut map = Map::new();
    into(&mut map, bytes, object, &Layout::of(object).message, depth)?;
    Ok(map)
}

fn into(
    map: &mut Map<String, Value>,
    bytes: &[u8],
    object: &Object,
    message: &Message,
    depth: usize,
) -> Result<(), ProtoError> {
    if depth > depth::ORDINARY {
        return Err(ProtoError::TooDeep);
    }
    let mut r = Reader::new(bytes);
    while !r.is_empty() {
        let (tag, wire_type) = r.tag()?;
        match message.find(tag) {
            None => r.skip(wire_type)?,
            Some(What::Inline(inner)) if wire_type == BYTES => into(map, r.bytes()?, object, inner, depth + 1)?,
            Some(What::Inline(_)) => return Err(ProtoError::WrongWireType { wire_type, field: object.name.clone() }),
            Some(What::Field(place)) => field(map, &mut r, wire_type, &object.fields[place.field], depth)?,
        }
    }
    Ok(())
}

fn field(
    map: &mut Map<String, Value>,
    r: &mut Reader,
    wire_type: u8,
    f: &Field,
    depth: usize,
) -> Result<(), ProtoError> {
    match &f.node {
        Node::List(list) => {
            let slot = map.entry(f.name.as_str()).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = slot else { return Ok(()) };
            if list.wrapped {
                expect(wire_type, BYTES, f)?;
                return wrapped(items, r.bytes()?, &list.item, f, depth);
            }
            let packed =
                wire_type == BYTES && matches!(list.item, Node::Int32 | Node::Int64 | Node::Bool | Node::Double);
            if !packed {
                items.push(single(r, wire_type, &list.item, f, depth)?);
                return Ok(());
            }
            let mut inner = Reader::new(r.bytes()?);
            let element = if matches!(list.item, Node::Double) { FIXED64 } else { VARINT };
            while !inner.is_empty() {
                items.push(single(&mut inner, element, &list.item, f, depth)?);
            }
            Ok(())
        }
        Node::Map(m) => {
            expect(wire_type, BYTES, f)?;
            let (key, value) = entry(r.bytes()?, m, f, depth)?;
            let slot = map.entry(f.name.as_str()).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(entries) = slot {
                entries.insert(key, value);
            }
            Ok(())
        }
        Node::Object(o) => {
            expect(wire_type, BYTES, f)?;
            let bytes = r.bytes()?;
            let slot = map.entry(f.name.as_str()).or_insert_with(|| Value::Object(Map::new()));
            match slot {
                Value::Object(inner) => into(inner, bytes, o.get(), &Layout::of(o.get()).message, depth + 1),
                _ => Ok(()),
            }
        }
        node => {
            let value = single(r, wire_type, node, f, depth)?;
            map.insert(f.name.clone(), value);
            Ok(())
        }
    }
}

fn expect(wire_type: u8, wanted: u8, f: &Field) -> Result<(), ProtoError> {
    if wire_type == wanted { Ok(()) } else { Err(ProtoError::WrongWireType { wire_type, field: go_name(&f.name) }) }
}

/// The name of Go's field, which error texts show: the JSON name with a capital.
fn go_name(json: &str) -> String {
    let mut chars = json.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

/// The message of a named list type: `{items = 1}`.
fn wrapped(items: &mut Vec<Value>, bytes: &[u8], item: &Node, f: &Field, depth: usize) -> Result<(), ProtoError> {
    let mut r = Reader::new(bytes);
    while !r.is_empty() {
        let (tag, wire_type) = r.tag()?;
        if tag == 1 { items.push(single(&mut r, wire_type, item, f, depth + 1)?) } else { r.skip(wire_type)? }
    }
    Ok(())
}

fn entry(bytes: &[u8], m: &MapType, f: &Field, depth: usize) -> Result<(String, Value), ProtoError> {
    let absent = match &m.value {
        // Go's decoder begins with bytes that are there, if none.
        Node::Bytes => Value::String(String::new()),
        node => zero(node),
    };
    let (mut key, mut value) = (String::new(), absent);
    let mut r = Reader::new(bytes);
    while !r.is_empty() {
        let (tag, wire_type) = r.tag()?;
        match (tag, &m.value) {
            (1, _) => {
                expect(wire_type, BYTES, f)?;
                key = text(r.bytes()?);
            }
            (2, Node::List(list)) => {
                expect(wire_type, BYTES, f)?;
                let mut items = Vec::new();
                wrapped(&mut items, r.bytes()?, &list.item, f, depth)?;
                value = Value::Array(items);
            }
            (2, node) => value = single(&mut r, wire_type, node, f, depth)?,
            _ => r.skip(wire_type)?,
        }
    }
    Ok((key, value))
}

/// One value that is no list and no map.
fn single(r: &mut Reader, wire_type: u8, node: &Node, f: &Field, depth: usize) -> Result<Value, ProtoError> {
    match node {
        Node::Bool | Node::Int32 | Node::Int64 => {
            expect(wire_type, VARINT, f)?;
            let v = r.varint()?;
            return Ok(match node {
                Node::Bool => Value::Bool(v != 0),
                Node::Int32 => Value::from(v as i32),
                _ => Value::from(v as i64),
            });
        }
        Node::Double => {
            expect(wire_type, FIXED64, f)?;
            return Ok(Number::from_f64(f64::from_bits(r.fixed64()?)).map_or(Value::Null, Value::Number));
        }
        _ => expect(wire_type, BYTES, f)?,
    }
    let bytes = r.bytes()?;
    match node {
        Node::String => Ok(Value::String(text(bytes))),
        Node::Bytes => Ok(Value::String(STANDARD.encode(bytes))),
        Node::Object(o) => struct_value(bytes, o.get(), depth + 1).map(Value::Object),
        Node::Any | Node::FieldsV1 => raw(first(bytes, 1)?.unwrap_or_default(), depth + 1),
        Node::SchemaOrBool(o) | Node::SchemaOrArray(o) | Node::SchemaOrStringArray(o) => {
            schema(bytes, node, o.get(), depth + 1)
        }
        _ => scalar_message(bytes, node),
    }
}

/// The last length-delimited value with this number in a message.
fn first(bytes: &[u8], wanted: u64) -> Result<Option<&[u8]>, ProtoError> {
    let mut r = Reader::new(bytes);
    let mut found = None;
    while !r.is_empty() {
        let (tag, wire_type) = r.tag()?;
        if tag == wanted && wire_type == BYTES { found = Some(r.bytes()?) } else { r.skip(wire_type)? }
    }
    Ok(found)
}

/// `RawExtension`: JSON, or an object in its envelope. Anything else is `null`.
fn raw(bytes: &[u8], messages: usize) -> Result<Value, ProtoError> {
    if messages > depth::ORDINARY {
        return Err(ProtoError::TooDeep);
    }
    if bytes.starts_with(envelope::PREFIX) {
        return envelope::open_at(bytes, messages).map(|(_, v)| v);
    }
    let value = crate::json::parse(bytes).unwrap_or(Value::Null);
    // A message is an object, in a list or a map of lists: with those around it, it is stored and read again as JSON.
    if depth::exceeds(&value, depth::limit().saturating_sub(3 * messages)) {
        return Err(ProtoError::TooDeep);
    }
    Ok(value)
}

/// A message in its envelope, `depth` messages deep.
pub(super) fn at_depth(bytes: &[u8], object: &Object, depth: usize) -> Result<Value, ProtoError> {
    let mut value = Value::Object(struct_value(bytes, object, depth + 1)?);
    canonicalize(&mut value, object);
    Ok(value)
}

/// Messages of scalars: quantities, times, durations, int-or-string.
fn scalar_message(bytes: &[u8], node: &Node) -> Result<Value, ProtoError> {
    let mut numbers = [0i64; 3];
    let mut string: Option<String> = None;
    let mut r = Reader::new(bytes);
    while !r.is_empty() {
        match r.tag()? {
            (tag @ 1..=2, VARINT) => numbers[tag as usize] = r.varint()? as i64,
            (1 | 3, BYTES) => string = Some(text(r.bytes()?)),
            (_, wire_type) => r.skip(wire_type)?,
        }
    }
    Ok(match node {
        // What is written is parsed, what is not there is zero.
        Node::Quantity => match string {
            Some(text) => Value::String(Quantity::parse(&text)?.to_string()),
            None => Value::String("0".to_owned()),
        },
        Node::IntOrString if numbers[1] == 1 => Value::String(string.unwrap_or_default()),
        Node::IntOrString => Value::from(numbers[2] as i32),
        Node::Duration => Value::String(scalar::duration_text(numbers[1])),
        _ if bytes.is_empty() => Value::Null,
        Node::Time => {
            Timestamp::from_second(numbers[1]).map_or(Value::Null, |t| Value::String(isopod_api::time::format(t)))
        }
        Node::MicroTime => {
            let nanos = i128::from(numbers[1]) * 1_000_000_000 + i128::from(numbers[2]);
            Timestamp::from_nanosecond(nanos).map_or(Value::Null, |t| Value::String(isopod_api::time::format_micro(t)))
        }
        _ => Value::Null,
    })
}

fn schema(bytes: &[u8], node: &Node, object: &Object, depth: usize) -> Result<Value, ProtoError> {
    let (mut allows, mut one, mut many) = (false, None, Vec::new());
    let mut r = Reader::new(bytes);
    while !r.is_empty() {
        let (tag, wire_type) = r.tag()?;
        match (node, tag, wire_type) {
            (Node::SchemaOrBool(_), 1, VARINT) => allows = r.varint()? != 0,
            (Node::SchemaOrBool(_), 2, BYTES) | (Node::SchemaOrArray(_) | Node::SchemaOrStringArray(_), 1, BYTES) => {
                one = Some(Value::Object(struct_value(r.bytes()?, object, depth)?));
            }
            (Node::SchemaOrArray(_), 2, BYTES) => many.push(Value::Object(struct_value(r.bytes()?, object, depth)?)),
            (Node::SchemaOrStringArray(_), 2, BYTES) => many.push(Value::String(text(r.bytes()?))),
            _ => r.skip(wire_type)?,
        }
    }
    Ok(match (node, one) {
        (Node::SchemaOrBool(_), None) => Value::Bool(allows),
        (Node::SchemaOrBool(_), Some(v)) => v,
        (_, _) if !many.is_empty() => Value::Array(many),
        (_, one) => one.unwrap_or(Value::Null),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts;
    use crate::proto::wire;
    use isopod_api::Gvk;
    use serde_json::json;

    #[test]
    fn an_entry_of_a_map_may_lack_its_value() {
        let secret = facts::builtin().object_of(&Gvk::new("", "v1", "Secret")).unwrap();
        let (mut entry, mut message) = (Vec::new(), Vec::new());
        wire::put_bytes(&mut entry, 1, b"k");
        wire::put_bytes(&mut message, 2, &entry);
        wire::put_bytes(&mut message, 4, &entry);
        let decoded = at_depth(&message, &secret, 0).unwrap();
        assert_eq!((&decoded["data"], &decoded["stringData"]), (&json!({"k": ""}), &json!({"k": ""})));
    }
}
