//! Short ways to read and change a JSON object by dotted path.
//!
//! Invariant: reading never fails; what is absent, null or of another type reads as empty, as a Go zero value would.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// Reading. A path is field names joined by dots; `""` is the value itself. Keys of maps (labels, data) may hold dots:
/// look those up with [`Access::entry`].
pub trait Access {
    fn at(&self, path: &str) -> &Value;

    /// Whether it is there and not null.
    fn has(&self, path: &str) -> bool {
        !self.at(path).is_null()
    }
    fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or("")
    }
    fn int(&self, path: &str) -> Option<i64> {
        self.at(path).as_i64()
    }
    fn int_or(&self, path: &str, absent: i64) -> i64 {
        self.int(path).unwrap_or(absent)
    }
    fn flag(&self, path: &str) -> bool {
        self.at(path).as_bool().unwrap_or(false)
    }
    fn list(&self, path: &str) -> &[Value] {
        self.at(path).as_array().map_or(&[], Vec::as_slice)
    }
    /// The strings of a list of strings.
    fn texts(&self, path: &str) -> Vec<&str> {
        self.list(path).iter().filter_map(Value::as_str).collect()
    }
    fn entries(&self, path: &str) -> Vec<(&str, &Value)> {
        self.at(path).as_object().map_or_else(Vec::new, |m| m.iter().map(|(k, v)| (k.as_str(), v)).collect())
    }
    /// The value under one key of a map.
    fn entry(&self, path: &str, key: &str) -> &Value {
        self.at(path).get(key).unwrap_or(&NULL)
    }
    fn entry_text(&self, path: &str, key: &str) -> &str {
        self.entry(path, key).as_str().unwrap_or("")
    }
    /// Absent, null, or an empty string, list or map.
    fn is_empty_at(&self, path: &str) -> bool {
        is_empty(self.at(path))
    }
}

impl Access for Value {
    fn at(&self, path: &str) -> &Value {
        let (mut v, mut rest) = (self, path);
        while !rest.is_empty() {
            // Paths are short: looking at each byte is faster than setting up a search.
            let end = rest.bytes().position(|b| b == b'.');
            let (part, next) = end.map_or((rest, ""), |end| (&rest[..end], &rest[end + 1..]));
            rest = next;
            if part.is_empty() {
                continue;
            }
            match v {
                Value::Object(map) => match map.get(part) {
                    Some(next) => v = next,
                    None => return &NULL,
                },
                _ => return &NULL,
            }
        }
        v
    }
}

pub fn is_empty(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.is_empty(),
        _ => false,
    }
}

/// Equal as Go's semantic equality sees it: absent, null and empty are one.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same(v, y.get(k).unwrap_or(&NULL)))
                && y.keys().all(|k| x.contains_key(k) || is_zero(&y[k]))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(a, b)),
        _ if a == b => true,
        _ => is_empty(a) && is_empty(b) || is_hollow(a) && is_hollow(b),
    }
}

fn is_zero(v: &Value) -> bool {
    is_empty(v) || is_hollow(v)
}

/// A struct that says nothing: `{}` or `{"resources": {}}`.
fn is_hollow(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::Object(m) => m.values().all(is_hollow),
        _ => false,
    }
}

/// The map at `path`, made where it is not there yet.
pub fn map_mut<'a>(v: &'a mut Value, path: &str) -> &'a mut Map<String, Value> {
    let mut v = v;
    for part in path.split('.').filter(|p| !p.is_empty()) {
        if !v.is_object() {
            *v = Value::Object(Map::new());
        }
        v = &mut v[part];
    }
    if !v.is_object() {
        *v = Value::Object(Map::new());
    }
    v.as_object_mut().expect("it was just made an object")
}

/// Splits `a.b.c` into `a.b` and `c`.
fn split_last(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

pub fn set(v: &mut Value, path: &str, to: impl Into<Value>) {
    let (parent, last) = split_last(path);
    map_mut(v, parent).insert(last.to_owned(), to.into());
}

/// Sets it where it is absent, null, or an empty string.
pub fn set_default(v: &mut Value, path: &str, to: impl Into<Value>) {
    if v.is_empty_at(path) {
        set(v, path, to);
    }
}

pub fn unset(v: &mut Value, path: &str) {
    let (parent, last) = split_last(path);
    if let Some(m) = list_parent(v, parent) {
        m.remove(last);
    }
}

fn list_parent<'a>(v: &'a mut Value, path: &str) -> Option<&'a mut Map<String, Value>> {
    let mut v = v;
    for part in path.split('.').filter(|p| !p.is_empty()) {
        v = v.get_mut(part)?;
    }
    v.as_object_mut()
}

/// The list at `path` to change, empty where there is none.
pub fn list_mut<'a>(v: &'a mut Value, path: &str) -> &'a mut [Value] {
    let mut v = v;
    for part in path.split('.').filter(|p| !p.is_empty()) {
        match v.get_mut(part) {
            Some(next) => v = next,
            None => return &mut [],
        }
    }
    v.as_array_mut().map_or(&mut [], Vec::as_mut_slice)
}

/// What stands at `path` in `old` stands there in `new` too, absence included.
pub fn keep(new: &mut Value, old: &Value, path: &str) {
    match old.at(path) {
        Value::Null => unset(new, path),
        v => set(new, path, v.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reading_and_changing() {
        let mut v = json!({"spec": {"n": 1, "s": "x", "l": ["a"], "m": {"a.b": "c"}}});
        assert_eq!((v.int("spec.n"), v.text("spec.s"), v.text("spec.zz.y")), (Some(1), "x", ""));
        assert_eq!((v.texts("spec.l"), v.entry_text("spec.m", "a.b")), (vec!["a"], "c"));
        set(&mut v, "status.phase", "Active");
        set_default(&mut v, "status.phase", "Other");
        unset(&mut v, "spec.n");
        assert_eq!((v.text("status.phase"), v.has("spec.n")), ("Active", false));
        let old = json!({"spec": {"s": "old"}});
        keep(&mut v, &old, "spec.s");
        keep(&mut v, &old, "status");
        assert_eq!((v.text("spec.s"), v.has("status")), ("old", false));
    }

    #[test]
    fn semantic_equality() {
        assert!(same(&json!({"a": 1, "b": {}}), &json!({"a": 1})));
        assert!(same(&json!({"r": {"x": {}}}), &json!({"r": null})));
        assert!(same(&json!([]), &Value::Null));
        assert!(!same(&json!({"a": 0}), &json!({"a": 1})));
        assert!(!same(&json!({"a": [1]}), &json!({})));
    }
}
