//! JSON patch (RFC 6902) as `evanphx/json-patch` v4 applies it: indices may be negative, and `replace` of a key that an
//! object lacks adds it.
//!
//! Invariant: no value comes of it that is deeper than what can be read, and all copies together have at most [`MAX_COPIED`] bytes.

use super::PatchError;
use crate::json::{self, TOO_DEEP, depth};
use serde_json::{Map, Value};

/// A server takes at most this many operations in one patch.
pub const MAX_OPERATIONS: usize = 10_000;
/// Copies of one patch may make a value larger by so many bytes.
pub const MAX_COPIED: usize = 3 << 20;

const MISSING: &str = "missing value";
const TEST_FAILED: &str = "test failed";

/// What an operation answers when it fails.
type Failure = String;

/// Applies a list of operations to a copy of `original`.
pub fn json_patch(original: &Value, patch: &Value) -> Result<Value, PatchError> {
    let noun = |v: &Value| match v {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        _ => "bool",
    };
    let malformed = |v: &Value, what: &str| {
        PatchError::Malformed(format!("json: cannot unmarshal {} into Go value of type jsonpatch.{what}", noun(v)))
    };
    let operations = match patch {
        Value::Array(operations) => operations.as_slice(),
        Value::Null => &[],
        other => return Err(malformed(other, "Patch")),
    };
    if let Some(bad) = operations.iter().find(|o| !o.is_object() && !o.is_null()) {
        return Err(malformed(bad, "Operation"));
    }
    let mut doc = original.clone();
    let mut growth = Growth { depth: depth::of(original), copied: 0 };
    let empty = Map::new();
    for operation in operations {
        apply(&mut doc, operation.as_object().unwrap_or(&empty), &mut growth).map_err(PatchError::Unprocessable)?;
    }
    growth.end(&doc).map_err(PatchError::Unprocessable)?;
    Ok(doc)
}

/// How large a patch has made a value.
struct Growth {
    /// At least as deep as it is.
    depth: usize,
    copied: usize,
}

impl Growth {
    /// Before a value is put at a path.
    fn deeper(&mut self, doc: &Value, path: &str, value: &Value) -> Result<(), Failure> {
        let by = steps(path) + depth::of(value);
        self.at_least(by, || depth::of(doc).max(by))
    }

    /// As [`Self::deeper`], of a value that was taken from another path. It is looked at only if it may be too deep: one that is
    /// large may move often.
    fn moved(&mut self, doc: &Value, [from, to]: [&str; 2], value: &Value) -> Result<(), Failure> {
        let by = steps(to) + self.depth.saturating_sub(steps(from));
        self.at_least(by, || depth::of(doc).max(steps(to) + depth::of(value)))
    }

    /// On its way a value may be twice as deep as it may be in the end, so that it is not looked at each time that it is deep.
    fn at_least(&mut self, by: usize, exactly: impl Fn() -> usize) -> Result<(), Failure> {
        self.depth = self.depth.max(by);
        if self.depth > 2 * depth::limit() {
            self.depth = exactly();
        }
        if self.depth > 2 * depth::limit() { Err(TOO_DEEP.to_owned()) } else { Ok(()) }
    }

    fn end(&self, doc: &Value) -> Result<(), Failure> {
        let deep = self.depth > depth::limit() && depth::exceeds(doc, depth::limit());
        if deep { Err(TOO_DEEP.to_owned()) } else { Ok(()) }
    }

    fn copies(&mut self, value: &Value) -> Result<(), Failure> {
        self.copied += json::encode(value).len();
        if self.copied <= MAX_COPIED {
            return Ok(());
        }
        let m = format!("the accumulated size increase of copy is {}, exceeding the limit {MAX_COPIED}", self.copied);
        Err(format!("Unable to complete the copy, {m}"))
    }
}

fn steps(path: &str) -> usize {
    path.bytes().filter(|c| *c == b'/').count()
}

fn apply(doc: &mut Value, op: &Map<String, Value>, growth: &mut Growth) -> Result<(), Failure> {
    match op.get("op").and_then(Value::as_str) {
        Some("add") => add(doc, op, growth),
        Some("remove") => remove(doc, op),
        Some("replace") => replace(doc, op, growth),
        Some("move") => relocate(doc, op, growth),
        Some("test") => test(doc, op),
        Some("copy") => copy(doc, op, growth),
        Some(other) => Err(format!("Unexpected kind: {other}")),
        None => Err("Unexpected kind: unknown".to_owned()),
    }
}

fn path(op: &Map<String, Value>) -> Option<&str> {
    op.get("path").and_then(Value::as_str)
}

fn from(op: &Map<String, Value>) -> Result<&str, Failure> {
    let missing = || format!("move operation failed to decode from: operation, missing from field: {MISSING}");
    op.get("from").and_then(Value::as_str).ok_or_else(missing)
}

fn no_path(verb: &str) -> Failure {
    format!("{verb} operation failed to decode path: operation missing path field: {MISSING}")
}

/// The container that a path's last step is in, and that step.
fn find<'v>(doc: &'v mut Value, path: &str) -> Option<(&'v mut Value, String)> {
    let steps: Vec<String> = path.split('/').map(|s| s.replace("~1", "/").replace("~0", "~")).collect();
    let (key, parents) = steps.get(1..)?.split_last()?;
    let mut at = doc;
    for step in parents {
        at = match at {
            Value::Object(map) => map.get_mut(step)?,
            Value::Array(items) => {
                let i = existing(items, step).ok()?;
                items.get_mut(i)?
            }
            _ => return None,
        };
    }
    (at.is_object() || at.is_array()).then(|| (at, key.clone()))
}

fn number(key: &str) -> Result<i64, Failure> {
    // Go's Atoi takes a sign.
    key.parse::<i64>().map_err(|_| format!("strconv.Atoi: parsing {key:?}: invalid syntax"))
}

/// The position of an element, where `length` allows it.
fn position(index: i64, length: usize, inclusive: bool) -> Result<usize, Failure> {
    let invalid = || format!("Unable to access invalid index: {index}: invalid index referenced");
    let slots = length as i64 + i64::from(inclusive);
    let at = if index < 0 { index + slots } else { index };
    if (0..slots).contains(&at) { Ok(at as usize) } else { Err(invalid()) }
}

fn existing(items: &[Value], key: &str) -> Result<usize, Failure> {
    position(number(key)?, items.len(), false)
}

/// The value at a step; `None` where an object lacks the key.
fn get<'v>(container: &'v Value, key: &str) -> Result<Option<&'v Value>, Failure> {
    match container {
        Value::Array(items) => existing(items, key).map(|i| items.get(i)),
        other => Ok(other.get(key)),
    }
}

fn insert(container: &mut Value, key: String, value: Value) -> Result<(), Failure> {
    match container {
        Value::Object(map) => drop(map.insert(key, value)),
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            let index = number(&key).map_err(|e| format!("value was not a proper array index: '{key}': {e}"))?;
            let at = position(index, items.len(), true)?;
            items.insert(at, value);
        }
        _ => {}
    }
    Ok(())
}

fn take(container: &mut Value, key: &str) -> Result<Value, Failure> {
    match container {
        Value::Object(map) => {
            map.remove(key).ok_or_else(|| format!("Unable to remove nonexistent key: {key}: {MISSING}"))
        }
        Value::Array(items) => existing(items, key).map(|i| items.remove(i)),
        _ => Ok(Value::Null),
    }
}

fn value(op: &Map<String, Value>) -> &Value {
    op.get("value").unwrap_or(&Value::Null)
}

fn add(doc: &mut Value, op: &Map<String, Value>, growth: &mut Growth) -> Result<(), Failure> {
    let path = path(op).ok_or_else(|| format!("add operation failed to decode path: {MISSING}"))?;
    growth.deeper(doc, path, value(op))?;
    let missing = || format!("add operation does not apply: doc is missing path: \"{path}\": {MISSING}");
    let (container, key) = find(doc, path).ok_or_else(missing)?;
    insert(container, key, value(op).clone()).map_err(|e| format!("error in add for path: '{path}': {e}"))
}

fn remove(doc: &mut Value, op: &Map<String, Value>) -> Result<(), Failure> {
    let path = path(op).ok_or_else(|| format!("remove operation failed to decode path: {MISSING}"))?;
    let missing = || format!("remove operation does not apply: doc is missing path: \"{path}\": {MISSING}");
    let (container, key) = find(doc, path).ok_or_else(missing)?;
    take(container, &key).map(drop).map_err(|e| format!("error in remove for path: '{path}': {e}"))
}

fn replace(doc: &mut Value, op: &Map<String, Value>, growth: &mut Growth) -> Result<(), Failure> {
    let path = path(op).ok_or_else(|| no_path("replace"))?;
    growth.deeper(doc, path, value(op))?;
    if path.is_empty() {
        let new = value(op).clone();
        if !new.is_object() && !new.is_array() {
            return Err("replace operation value must be object or array: %!w(<nil>)".to_owned());
        }
        *doc = new;
        return Ok(());
    }
    let missing = |what: &str| format!("replace operation does not apply: doc is missing {what}: {path}: {MISSING}");
    let (container, key) = find(doc, path).ok_or_else(|| missing("path"))?;
    match container {
        Value::Array(items) => {
            let at = existing(items, &key).map_err(|_| missing("key"))?;
            items[at] = value(op).clone();
        }
        Value::Object(map) => drop(map.insert(key, value(op).clone())),
        _ => {}
    }
    Ok(())
}

fn relocate(doc: &mut Value, op: &Map<String, Value>, growth: &mut Growth) -> Result<(), Failure> {
    let from = from(op)?;
    let missing = || format!("move operation does not apply: doc is missing from path: {from}: {MISSING}");
    let (container, key) = find(doc, from).ok_or_else(missing)?;
    let context = |key: &str, e: Failure| format!("error in move for path: '{key}': {e}");
    let moved = take(container, &key).map_err(|e| context(&key, e))?;
    let path = path(op).ok_or_else(|| no_path("move"))?;
    growth.moved(doc, [from, path], &moved)?;
    let missing = || format!("move operation does not apply: doc is missing destination path: {path}: {MISSING}");
    let (container, key) = find(doc, path).ok_or_else(missing)?;
    insert(container, key, moved).map_err(|e| context(path, e))
}

fn copy(doc: &mut Value, op: &Map<String, Value>, growth: &mut Growth) -> Result<(), Failure> {
    let from = from(op).map_err(|e| e.replacen("move", "copy", 1))?;
    let missing = || format!("copy operation does not apply: doc is missing from path: {from}: {MISSING}");
    let (container, key) = find(doc, from).ok_or_else(missing)?;
    let copied = get(container, &key).map_err(|e| format!("error in copy for from: '{from}': {e}"))?;
    let copied = copied.cloned().unwrap_or(Value::Null);
    let path = path(op).ok_or_else(|| format!("copy operation failed to decode path: {MISSING}"))?;
    let missing = || format!("copy operation does not apply: doc is missing destination path: {path}: {MISSING}");
    find(doc, path).ok_or_else(missing)?;
    growth.copies(&copied)?;
    growth.deeper(doc, path, &copied)?;
    let (container, key) = find(doc, path).ok_or_else(missing)?;
    insert(container, key, copied).map_err(|e| format!("error while adding value during copy: {e}"))
}

fn test(doc: &mut Value, op: &Map<String, Value>) -> Result<(), Failure> {
    let path = path(op).ok_or_else(|| no_path("test"))?;
    let failed = || format!("testing value {path} failed: {TEST_FAILED}");
    if path.is_empty() {
        return if doc == value(op) { Ok(()) } else { Err(failed()) };
    }
    let missing = || format!("test operation does not apply: is missing path: {path}: {MISSING}");
    let (container, key) = find(doc, path).ok_or_else(missing)?;
    let found = get(container, &key).map_err(|e| format!("error in test for path: '{path}': {e}"))?;
    if found.unwrap_or(&Value::Null) == value(op) { Ok(()) } else { Err(failed()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations() {
        for (doc, patch, want) in [
            (json!({"a":1}), json!([{"op":"add","path":"/b","value":2}]), json!({"a":1,"b":2})),
            (
                json!({"a":[1,3]}),
                json!([{"op":"add","path":"/a/1","value":2},{"op":"add","path":"/a/-","value":4}]),
                json!({"a":[1,2,3,4]}),
            ),
            (json!({"a":[1,2,3]}), json!([{"op":"remove","path":"/a/-1"}]), json!({"a":[1,2]})),
            (
                json!({"a":{"b/c":1,"d~e":2}}),
                json!([{"op":"remove","path":"/a/b~1c"},{"op":"replace","path":"/a/d~0e","value":3}]),
                json!({"a":{"d~e":3}}),
            ),
            (json!({"a":1}), json!([{"op":"replace","path":"/b","value":2}]), json!({"a":1,"b":2})),
            (json!({"a":{"b":1}}), json!([{"op":"move","from":"/a/b","path":"/c"}]), json!({"a":{},"c":1})),
            (
                json!({"a":{"b":1}}),
                json!([{"op":"copy","from":"/a","path":"/c"},{"op":"test","path":"/c/b","value":1}]),
                json!({"a":{"b":1},"c":{"b":1}}),
            ),
            (
                json!({"a":null}),
                json!([{"op":"test","path":"/a","value":null},{"op":"test","path":"/x","value":null}]),
                json!({"a":null}),
            ),
            (json!({"a":1}), json!([{"op":"replace","path":"","value":{"b":1}}]), json!({"b":1})),
        ] {
            assert_eq!(json_patch(&doc, &patch).unwrap(), want, "{patch}");
        }
    }

    /// Each copies all there is into itself, or wraps it.
    #[test]
    fn patches_that_grow_without_end_end() {
        let copies: Vec<Value> =
            (0..200).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/c{i}")})).collect();
        let doc = json!({"a": {"text": "x".repeat(1000)}});
        let e = json_patch(&doc, &json!(copies)).unwrap_err().to_string();
        assert!(e.starts_with("Unable to complete the copy, the accumulated size increase of copy is "), "{e}");
        assert!(e.ends_with(", exceeding the limit 3145728"), "{e}");

        let wraps: Vec<Value> = (0..1000)
            .flat_map(|_| {
                [
                    json!({"op": "add", "path": "/b", "value": {}}),
                    json!({"op": "move", "from": "/a", "path": "/b/a"}),
                    json!({"op": "move", "from": "/b", "path": "/a"}),
                ]
            })
            .collect();
        assert_eq!(json_patch(&doc, &json!(wraps)).unwrap_err().to_string(), "exceeded max depth");
        let swings: Vec<Value> = (0..1000)
            .flat_map(|_| {
                [
                    json!({"op": "move", "from": "/a/t", "path": "/t"}),
                    json!({"op": "move", "from": "/t", "path": "/a/t"}),
                ]
            })
            .collect();
        let doc = json!({"a": {"t": [[1]]}});
        assert_eq!(json_patch(&doc, &json!(swings)).unwrap(), doc);
    }

    #[test]
    fn errors_are_upstreams() {
        for (patch, want) in [
            (json!({"op":"add"}), "json: cannot unmarshal object into Go value of type jsonpatch.Patch"),
            (json!([1]), "json: cannot unmarshal number into Go value of type jsonpatch.Operation"),
            (json!([{"op":"frob","path":"/a"}]), "Unexpected kind: frob"),
            (json!([{"path":"/a"}]), "Unexpected kind: unknown"),
            (
                json!([{"op":"remove","path":"/x"}]),
                "error in remove for path: '/x': Unable to remove nonexistent key: x: missing value",
            ),
            (
                json!([{"op":"add","path":"/x/y","value":1}]),
                "add operation does not apply: doc is missing path: \"/x/y\": missing value",
            ),
            (
                json!([{"op":"replace","path":"/x/y","value":1}]),
                "replace operation does not apply: doc is missing path: /x/y: missing value",
            ),
            (
                json!([{"op":"replace","path":"/l/7","value":1}]),
                "replace operation does not apply: doc is missing key: /l/7: missing value",
            ),
            (
                json!([{"op":"add","path":"/l/x","value":1}]),
                "error in add for path: '/l/x': value was not a proper array index: 'x': strconv.Atoi: parsing \"x\": invalid syntax",
            ),
            (
                json!([{"op":"add","path":"/l/7","value":1}]),
                "error in add for path: '/l/7': Unable to access invalid index: 7: invalid index referenced",
            ),
            (json!([{"op":"test","path":"/a","value":2}]), "testing value /a failed: test failed"),
            (
                json!([{"op":"move","path":"/a"}]),
                "move operation failed to decode from: operation, missing from field: missing value",
            ),
        ] {
            let e = json_patch(&json!({"a": 1, "l": [1]}), &patch).unwrap_err();
            assert_eq!(e.to_string(), want);
        }
    }
}
