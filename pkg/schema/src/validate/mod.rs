//! Validation of custom resources: against the schema of their definition, and of sets and maps in lists. Texts and order
//! follow `apiextensions-apiserver`.
//!
//! Built-in kinds are validated by code (`kinds`), decoding has checked their types already.

mod correlate;
mod formats;
mod keywords;

pub use correlate::{Correlated, MapList};
pub use formats::duration_nanos;

use crate::types::{List, ListType, Node, Object};
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// The errors of a custom resource's value by a schema of its definition; `change`: what the value was before.
pub fn against(value: &Value, schema: &Value, change: Option<&Correlated>) -> FieldErrors {
    keywords::check_change(value, schema, &Path::root(), change).errors
}

/// The JSON type of a value, as error texts name it.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn wrong_type(path: &Path, wanted: &str, value: &Value) -> FieldError {
    let got = type_name(value);
    FieldError::type_invalid(path, got, format!("{} in body must be of type {wanted}: {got:?}", path.as_str()))
}

fn elements(items: &[Value], list: &List, path: &Path, errors: &mut FieldErrors) {
    match list.list_type {
        ListType::Atomic => {}
        ListType::Set => duplicates(items, path, errors),
        ListType::Map => {
            if let Some(i) = items.iter().position(|v| !v.is_object() && !v.is_null()) {
                let detail = "must be an object for an array of list-type map";
                errors.push(FieldError::invalid(&path.index(i), items[i].clone(), detail));
                return;
            }
            let keys: Vec<Value> = items.iter().map(|v| key(v, &list.map_keys)).collect();
            duplicates(&keys, path, errors);
        }
    }
}

/// The key of a map's element. A key that is absent is one too.
fn key(item: &Value, names: &[String]) -> Value {
    let mut key = Map::new();
    for name in names {
        if let Some(v) = item.get(name) {
            key.insert(name.clone(), v.clone());
        }
    }
    Value::Object(key)
}

/// Reports the second appearance of each element.
fn duplicates(items: &[Value], path: &Path, errors: &mut FieldErrors) {
    let mut seen: HashMap<String, u32> = HashMap::new();
    for (i, item) in items.iter().enumerate() {
        let times = seen.entry(item.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            errors.push(FieldError::duplicate(&path.index(i), item.clone()));
        }
    }
}

/// Lists of sets and maps, uniqueness only: what servers check of built-in kinds before they merge into them.
pub fn lists(value: &Value, object: &Object) -> FieldErrors {
    let mut errors = Vec::new();
    crate::walk::fields(value, object, &Path::root(), &mut |_, f, v, at| {
        if let (Node::List(list), Value::Array(items)) = (&f.node, v) {
            elements(items, list, at, &mut errors);
        }
    });
    errors
}

/// Whether the `format` of a string is looked at; others are accepted whatever they say.
pub fn knows_format(format: &str) -> bool {
    formats::is_known(format)
}

/// The errors of a value against a raw schema at a path.
pub fn raw(value: &Value, raw: &Value, path: &Path) -> FieldErrors {
    keywords::check(value, raw, path).errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Object {
        crate::structural::resource(&json!({"type": "object", "required": ["spec"], "properties": {"spec": {
            "type": "object",
            "anyOf": [{"required": ["mode"]}, {"required": ["cron"]}],
            "properties": {
                "replicas": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 10},
                "cron": {"type": "string", "pattern": "^\\d+$", "maxLength": 3, "minLength": 1},
                "mode": {"type": "string", "enum": ["a", "b"]},
                "tags": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 2, "items": {"type": "string"}},
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "required": ["name"], "properties": {
                        "name": {"type": "string"}, "n": {"type": "integer"}}}},
                "ip": {"type": "string", "format": "ipv4"},
                "maybe": {"type": "boolean", "nullable": true},
                "either": {"x-kubernetes-int-or-string": true},
                "inner": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
                "shape": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                    "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "not": {"properties": {"a": {"enum": [7]}}, "required": ["a"]}},
            },
        }}}))
    }

    fn all(value: &Value) -> FieldErrors {
        let schema = schema();
        let mut errors = against(value, schema.openapi.as_ref().expect("a root has its schema"), None);
        errors.extend(lists(value, &schema));
        errors
    }

    #[test]
    fn an_update_keeps_the_faults_of_what_it_leaves() {
        let schema = schema();
        let raw = schema.openapi.as_ref().expect("a root has its schema");
        let old = json!({"spec": {"mode": "z", "replicas": 99, "ports": [{"name": "a", "n": "x"}, {"name": "b"}]}});
        for (spec, want) in [
            (json!({"mode": "z", "replicas": 99, "cron": "1"}), vec![]),
            (json!({"mode": "y", "replicas": 99}), vec!["spec.mode"]),
            (json!({"mode": "a", "ports": [{"name": "b"}, {"name": "a", "n": "x"}]}), vec![]),
            (json!({"mode": "a", "ports": [{"name": "a", "n": "y"}]}), vec!["spec.ports[0].n"]),
            (json!({"mode": "a", "ports": [{"name": "c", "n": "x"}]}), vec!["spec.ports[0].n"]),
        ] {
            let new = json!({"spec": spec});
            let errors = against(&new, raw, Some(&Correlated::new(&new, &old, raw)));
            assert_eq!(errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), want, "{new}");
        }
    }

    #[test]
    fn errors_of_custom_resources() {
        for (spec, want) in [
            (json!({"mode": "a", "replicas": 1, "maybe": null, "either": 5, "ip": "1.2.3.4"}), vec![]),
            (
                json!({"mode": "a", "replicas": "x"}),
                vec![
                    r#"spec.replicas: Invalid value: "string": spec.replicas in body must be of type integer: "string""#,
                ],
            ),
            (
                json!({"mode": "a", "replicas": 11}),
                vec!["spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10"],
            ),
            (
                json!({"mode": "a", "replicas": 0}),
                vec!["spec.replicas: Invalid value: 0: spec.replicas in body should be greater than or equal to 1"],
            ),
            (json!({"cron": "x"}), vec![r#"spec.cron: Invalid value: "x": spec.cron in body should match '^\d+$'"#]),
            (json!({"cron": "1234"}), vec!["spec.cron: Too long: may not be more than 3 bytes"]),
            (json!({"mode": "c"}), vec![r#"spec.mode: Unsupported value: "c": supported values: "a", "b""#]),
            (
                json!({"mode": "a", "tags": ["x", "y", "x"]}),
                vec!["spec.tags: Too many: 3: must have at most 2 items", r#"spec.tags[2]: Duplicate value: "x""#],
            ),
            (
                json!({"mode": "a", "ports": [{"name": "p"}, {"name": "p"}]}),
                vec![r#"spec.ports[1]: Duplicate value: {"name":"p"}"#],
            ),
            (json!({"mode": "a", "ports": [{"n": 1}]}), vec!["spec.ports[0].name: Required value"]),
            (
                json!({"mode": "a", "ip": "x"}),
                vec![r#"spec.ip: Invalid value: "x": spec.ip in body must be of type ipv4: "x""#],
            ),
            (
                json!({"mode": null}),
                vec![
                    r#"spec.mode: Invalid value: "null": spec.mode in body must be of type string: "null""#,
                    r#"spec.mode: Unsupported value: null: supported values: "a", "b""#,
                ],
            ),
            (
                json!({}),
                vec![
                    r#"<nil>: Invalid value: "": "spec" must validate at least one schema (anyOf)"#,
                    "spec.mode: Required value",
                ],
            ),
            (
                json!({"mode": "a", "either": 1.5}),
                vec![
                    r#"spec.either: Invalid value: "number": spec.either in body must be of type integer,string: "number""#,
                ],
            ),
            (
                json!({"mode": "a", "shape": {"a": 7, "b": 1}}),
                vec![
                    r#"<nil>: Invalid value: "": "spec.shape" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
                    r#"<nil>: Invalid value: "": "spec.shape" must not validate the schema (not)"#,
                ],
            ),
            (
                json!({"mode": "a", "replicas": 3_000_000_000_u64}),
                vec![
                    r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.replicas"#,
                    "spec.replicas: Invalid value: 3000000000: spec.replicas in body should be less than or equal to 10",
                ],
            ),
        ] {
            let got: Vec<String> = all(&json!({"spec": spec})).iter().map(ToString::to_string).collect();
            assert_eq!(got, want, "{spec}");
        }
        assert_eq!(all(&json!({}))[0].to_string(), "spec: Required value");
    }

    #[test]
    fn lists_of_built_in_kinds() {
        let pod = crate::facts::builtin().object_of(&isopod_api::Gvk::new("", "v1", "Pod")).expect("built in");
        let v = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}});
        assert_eq!(lists(&v, &pod)[0].to_string(), r#"spec.containers[2]: Duplicate value: {"name":"a"}"#);
    }
}
