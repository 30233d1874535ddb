//! OpenAPI v2 documents of other servers, made part of the one document (`kube-openapi/pkg/aggregator`): their paths, and the
//! definitions that these need. Where a definition has the name of one that says something else, it gets another.

use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

const REFERENCE: &str = "#/definitions/";

/// What servers elsewhere serve.
#[derive(Default)]
pub struct Elsewhere<'a> {
    /// In the order in which they are merged: what came first stays.
    pub swagger: Vec<Part<'a>>,
    /// Paths of v3 documents, as the index names them, and where they are.
    pub urls: &'a [(String, String)],
    /// v3 documents that are made here from what those servers say in v2 only.
    pub converted: Vec<Converted<'a>>,
}

/// A v3 document, by its path in the index, with its hash.
pub struct Converted<'a> {
    pub path: &'a str,
    pub hash: &'a str,
    pub document: &'a Value,
}

/// An OpenAPI v2 document of another server.
pub struct Part<'a> {
    /// `/apis/<group>/<version>`: only what lies below counts.
    pub path: &'a str,
    pub etag: &'a str,
    pub document: &'a Value,
}

/// Every definition that a value names.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(REFERENCE)) {
                found.insert(name.to_owned());
            }
            map.values().for_each(|v| references(v, found));
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(new) = reference.strip_prefix(REFERENCE).and_then(|name| names.get(name))
            {
                *reference = format!("{REFERENCE}{new}");
            }
            map.values_mut().for_each(|v| rename(v, names));
        }
        Value::Array(items) => items.iter_mut().for_each(|v| rename(v, names)),
        _ => {}
    }
}

/// The definitions that the paths need, with those that they need themselves.
fn needed(paths: &Map<String, Value>, all: &Map<String, Value>) -> BTreeSet<String> {
    let mut todo = BTreeSet::new();
    paths.values().for_each(|p| references(p, &mut todo));
    let mut found = BTreeSet::new();
    while let Some(name) = todo.pop_first() {
        if let Some(definition) = all.get(&name).filter(|_| found.insert(name)) {
            references(definition, &mut todo);
        }
    }
    found
}

/// Whether two definitions are the same to clients. Which group versions use one differs from server to server.
fn same(a: &Value, b: &Value) -> bool {
    let plain = |v: &Value| {
        let mut v = v.clone();
        if let Some(map) = v.as_object_mut() {
            map.remove("x-kubernetes-group-version-kind");
        }
        v
    };
    a == b || plain(a) == plain(b)
}

/// A name that nothing has.
fn free(name: &str, taken: &Map<String, Value>, other: &Map<String, Value>) -> String {
    let mut n = 2;
    loop {
        let candidate = format!("{name}_v{n}");
        if !taken.contains_key(&candidate) && !other.contains_key(&candidate) {
            return candidate;
        }
        n += 1;
    }
}

/// Makes a part of another document part of this one.
pub fn merge(document: &mut Value, part: &Part) {
    let empty = Map::new();
    let map = |key: &str| part.document[key].as_object().unwrap_or(&empty);
    let below = format!("{}/", part.path);
    let own = |path: &&String| **path == *part.path || path.starts_with(&below);
    let mut paths: Map<String, Value> =
        map("paths").iter().filter(|(path, _)| own(path)).map(|(k, v)| (k.clone(), v.clone())).collect();
    let (theirs, needed) = (map("definitions"), needed(&paths, map("definitions")));
    let Some(ours) = document["definitions"].as_object_mut() else { return };
    let clashes = needed.iter().filter(|n| ours.get(*n).zip(theirs.get(*n)).is_some_and(|(a, b)| !same(a, b)));
    let names: BTreeMap<String, String> = clashes.map(|n| (n.clone(), free(n, ours, theirs))).collect();
    for name in &needed {
        let Some(definition) = theirs.get(name) else { continue };
        let new = names.get(name).unwrap_or(name);
        if !ours.contains_key(new) {
            let mut definition = definition.clone();
            rename(&mut definition, &names);
            ours.insert(new.clone(), definition);
        }
    }
    paths.values_mut().for_each(|p| rename(p, &names));
    merge_missing(document, "paths", paths);
    let parameters = map("parameters").clone();
    if !parameters.is_empty() {
        merge_missing(document, "parameters", parameters);
    }
}

/// Adds what a map of the document does not have.
fn merge_missing(document: &mut Value, key: &str, more: Map<String, Value>) {
    if document[key].is_null() {
        document[key] = Map::new().into();
    }
    let Some(all) = document[key].as_object_mut() else { return };
    for (name, value) in more {
        all.entry(name).or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_needed_comes_along_and_clashes_are_renamed() {
        let refer = |name: &str| json!({"$ref": format!("{REFERENCE}{name}")});
        let mut document = json!({"paths": {"/a": {}}, "definitions": {
            "Same": {"type": "object"},
            "Clash": {"type": "object", "description": "ours"},
        }});
        let other = json!({
            "paths": {"/apis/g/v1/things": refer("Thing"), "/apis/g/v10/others": refer("Other"), "/version": {}},
            "definitions": {
                "Thing": {"properties": {"a": refer("Clash"), "b": refer("Same")}},
                "Same": {"type": "object", "x-kubernetes-group-version-kind": []},
                "Clash": {"type": "object", "description": "theirs", "properties": {"self": refer("Clash")}},
                "Other": {},
            },
        });
        merge(&mut document, &Part { path: "/apis/g/v1", etag: "", document: &other });
        let want = json!({"paths": {"/a": {}, "/apis/g/v1/things": refer("Thing")}, "definitions": {
            "Same": {"type": "object"},
            "Clash": {"type": "object", "description": "ours"},
            "Clash_v2": {"type": "object", "description": "theirs", "properties": {"self": refer("Clash_v2")}},
            "Thing": {"properties": {"a": refer("Clash_v2"), "b": refer("Same")}},
        }});
        assert_eq!(document, want);
    }
}
