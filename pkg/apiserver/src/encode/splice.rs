//! Stored bytes and served bytes. Stored: the object as JSON with `apiVersion`, `kind`, `metadata` first and no
//! `resourceVersion`. Served: the same with `metadata.resourceVersion` put in front of the other metadata, once.
//!
//! Invariant: nothing here parses an object; the place of `metadata` is found by scanning, on the first few bytes as a rule.

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use std::ops::Range;

const BEFORE: &[u8] = b"\"resourceVersion\":\"";

/// The bytes to store. `resourceVersion` is left out: it is the store's to say.
pub fn stored(object: &Value) -> Bytes {
    let mut out = Vec::with_capacity(4096);
    out.push(b'{');
    let empty = serde_json::Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    let first = ["apiVersion", "kind", "metadata"];
    for key in first {
        match fields.get(key) {
            Some(Value::Object(meta)) if key == "metadata" => {
                field(&mut out, key);
                out.push(b'{');
                for (k, v) in meta.iter().filter(|(k, _)| *k != "resourceVersion") {
                    field(&mut out, k);
                    value(&mut out, v);
                }
                out.push(b'}');
            }
            Some(v) => {
                field(&mut out, key);
                value(&mut out, v);
            }
            None if key == "metadata" => {
                field(&mut out, key);
                out.extend_from_slice(b"{}");
            }
            None => {}
        }
    }
    for (k, v) in fields.iter().filter(|(k, _)| !first.contains(&k.as_str())) {
        field(&mut out, k);
        value(&mut out, v);
    }
    out.push(b'}');
    out.into()
}

fn field(out: &mut Vec<u8>, key: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    value(out, key);
    out.push(b':');
}

fn value(out: &mut Vec<u8>, v: &(impl Serialize + ?Sized)) {
    isopod_schema::json::append(out, v);
}

/// Puts the revision in. Returns the served bytes and where the revision's digits stand in them; `None` when the bytes are
/// not an object with metadata.
pub fn with_revision(stored: &[u8], revision: i64) -> Option<(Bytes, Range<u32>)> {
    let at = metadata(stored)?;
    let digits = revision.to_string();
    let mut out = Vec::with_capacity(stored.len() + BEFORE.len() + digits.len() + 2);
    out.extend_from_slice(&stored[..at]);
    out.extend_from_slice(BEFORE);
    let start = out.len() as u32;
    out.extend_from_slice(digits.as_bytes());
    out.push(b'"');
    if stored.get(at) != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(&stored[at..]);
    Some((out.into(), start..start + digits.len() as u32))
}

/// The same object at another revision.
pub fn at_revision(served: &[u8], digits: &Range<u32>, revision: i64) -> Bytes {
    let revision = revision.to_string();
    let mut out = Vec::with_capacity(served.len() + 4);
    out.extend_from_slice(&served[..digits.start as usize]);
    out.extend_from_slice(revision.as_bytes());
    out.extend_from_slice(&served[digits.end as usize..]);
    out.into()
}

/// The object as an item of a list: without the `apiVersion` and `kind` that [`stored`] puts first. The list says them for
/// all, as upstream's typed lists do. `None`: the bytes do not begin as those of [`stored`], so this cannot be done by
/// cutting.
pub fn as_item(served: &[u8]) -> Option<(&'static [u8], &[u8])> {
    let mut rest = served.strip_prefix(b"{")?;
    for key in [&b"\"apiVersion\":"[..], b"\"kind\":"] {
        let value = rest.strip_prefix(key)?;
        let end = string_end(value, 0).filter(|_| value.first() == Some(&b'"'))?;
        rest = value[end..].strip_prefix(b",")?;
    }
    Some((b"{", rest))
}

/// The offset just behind the `{` of the top-level `metadata`.
fn metadata(json: &[u8]) -> Option<usize> {
    let (mut depth, mut i) = (0usize, 0usize);
    while i < json.len() {
        match json[i] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                let end = string_end(json, i)?;
                if depth == 1 && &json[i..end] == b"\"metadata\"" && json.get(end) == Some(&b':') {
                    return (json.get(end + 1) == Some(&b'{')).then_some(end + 2);
                }
                i = end;
                continue;
            }
            _ => {}
        }
        i += 1;
    }
    None
}

/// The offset behind the closing quote of the string that starts at `i`.
fn string_end(json: &[u8], mut i: usize) -> Option<usize> {
    i += 1;
    while i < json.len() {
        match json[i] {
            b'\\' => i += 2,
            b'"' => return Some(i + 1),
            _ => i += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_item_has_no_type() {
        let bytes = stored(&json!({"kind": "K", "apiVersion": "v1", "metadata": {"name": "a"}, "kinds": 1}));
        let (head, rest) = as_item(&bytes).unwrap();
        let item: Value = serde_json::from_slice(&[head, rest].concat()).unwrap();
        assert_eq!(item, json!({"metadata": {"name": "a"}, "kinds": 1}));
        let converted = br#"{"action":"a","apiVersion":"v1","kind":"K","metadata":{}}"#;
        assert!(as_item(converted).is_none(), "what stands before the metadata is not lost");
    }

    #[test]
    fn the_revision_goes_in_and_changes() {
        let check = |object: Value, want: &str| {
            let bytes = stored(&object);
            let (served, at) = with_revision(&bytes, 7).unwrap();
            assert_eq!(std::str::from_utf8(&served).unwrap(), want);
            let newer: Value = serde_json::from_slice(&at_revision(&served, &at, 1234)).unwrap();
            assert_eq!(newer["metadata"]["resourceVersion"], "1234");
        };
        check(
            json!({"data": {"metadata": "}\"{"}, "kind": "K", "apiVersion": "v1", "metadata": {"name": "a", "resourceVersion": "5"}}),
            r#"{"apiVersion":"v1","kind":"K","metadata":{"resourceVersion":"7","name":"a"},"data":{"metadata":"}\"{"}}"#,
        );
        check(json!({"kind": "K"}), r#"{"kind":"K","metadata":{"resourceVersion":"7"}}"#);
        let foreign = br#"{"data":{"metadata":{"x":"\\\""}},"metadata":{"name":"n"}}"#;
        let (served, _) = with_revision(foreign, 3).unwrap();
        assert!(served.ends_with(br#""metadata":{"resourceVersion":"3","name":"n"}}"#));
    }
}
