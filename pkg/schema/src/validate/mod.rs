//! Structural validation: types, required fields, uniqueness in sets and maps, and the constraints of custom resources.
//!
//! Built-in kinds are validated by code (`kinds`), decoding has checked their types already: of them only what a custom
//! resource embeds is looked at, for types alone. Texts follow `apiextensions-apiserver`.

mod formats;
mod keywords;

use crate::types::{Constraints, List, ListType, Map as MapType, Node, Object};
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// All structural errors of a custom resource. Of a built-in kind decoding and `kinds` see everything, duplicates in sets
/// and maps included.
pub fn types(value: &Value, object: &Object) -> FieldErrors {
    let mut errors = Vec::new();
    if !object.custom {
        return errors;
    }
    match value {
        Value::Object(map) => fields(map, object, &Path::root(), &mut errors),
        other => errors.push(wrong_type(&Path::root(), "object", other)),
    }
    errors
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

fn fields(map: &Map<String, Value>, object: &Object, path: &Path, errors: &mut FieldErrors) {
    for f in &object.fields {
        let at = path.child(&f.name);
        match map.get(&f.name) {
            None if f.required && object.custom => errors.push(FieldError::required(&at, "")),
            None => {}
            Some(Value::Null) if f.nullable || !object.custom => {}
            Some(v) => place(v, &f.node, &f.constraints, &at, errors),
        }
    }
    if let Some(raw) = &object.constraints {
        keywords::check(&Value::Object(map.clone()), raw, path, errors);
    }
}

fn place(value: &Value, node: &Node, constraints: &Constraints, path: &Path, errors: &mut FieldErrors) {
    match (node, value) {
        (Node::Any, _) => {}
        (Node::Object(o), Value::Object(map)) => fields(map, o.get(), path, errors),
        (Node::List(list), Value::Array(items)) => elements(items, list, path, errors),
        (Node::Map(m), Value::Object(map)) => entries(map, m, path, errors),
        (Node::Bool, Value::Bool(_)) | (Node::IntOrString, Value::String(_)) | (Node::FieldsV1, Value::Object(_)) => {}
        (Node::SchemaOrArray(_) | Node::SchemaOrBool(_) | Node::SchemaOrStringArray(_), _) => {}
        (Node::Double, Value::Number(_)) => {}
        (Node::Int32 | Node::Int64 | Node::IntOrString, Value::Number(n)) if is_whole(n) => {}
        (
            Node::String | Node::Bytes | Node::Quantity | Node::Time | Node::MicroTime | Node::Duration,
            Value::String(_),
        ) => {}
        (node, other) => {
            errors.push(wrong_type(path, wanted(node), other));
            return;
        }
    }
    if let Some(raw) = constraints {
        keywords::check(value, raw, path, errors);
    }
}

fn is_whole(n: &serde_json::Number) -> bool {
    !n.is_f64() || n.as_f64().is_some_and(|x| x.fract() == 0.0)
}

fn wanted(node: &Node) -> &'static str {
    match node {
        Node::Bool => "boolean",
        Node::Int32 | Node::Int64 => "integer",
        Node::Double => "number",
        Node::IntOrString => "integer,string",
        Node::List(_) => "array",
        Node::Object(_) | Node::Map(_) | Node::FieldsV1 => "object",
        _ => "string",
    }
}

fn elements(items: &[Value], list: &List, path: &Path, errors: &mut FieldErrors) {
    for (i, item) in items.iter().enumerate() {
        if !(item.is_null() && list.nullable_items) {
            place(item, &list.item, &list.item_constraints, &path.index(i), errors);
        }
    }
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

fn entries(map: &Map<String, Value>, m: &MapType, path: &Path, errors: &mut FieldErrors) {
    for (k, v) in map {
        if !(v.is_null() && m.nullable_values) {
            place(v, &m.value, &m.value_constraints, &path.child(k), errors);
        }
    }
}

/// Lists of sets and maps, uniqueness only: what servers check of built-in kinds before they merge into them.
pub fn lists(value: &Value, object: &Object) -> FieldErrors {
    let mut errors = Vec::new();
    crate::walk::fields(value, object, &Path::root(), &mut |_, f, v, at| {
        if let (Node::List(list), Value::Array(items)) = (&f.node, v) {
            match list.list_type {
                ListType::Set => duplicates(items, at, &mut errors),
                ListType::Map => {
                    duplicates(&items.iter().map(|v| key(v, &list.map_keys)).collect::<Vec<_>>(), at, &mut errors)
                }
                ListType::Atomic => {}
            }
        }
    });
    errors
}

/// Whether the `format` of a string is looked at; others are accepted whatever they say.
pub fn knows_format(format: &str) -> bool {
    formats::is_known(format)
}

/// Whether a raw schema (an OpenAPI object) accepts a value, for constraints that only the caller knows where to apply.
pub fn accepts(value: &Value, raw: &Value) -> bool {
    let mut errors = Vec::new();
    keywords::check(value, raw, &Path::root(), &mut errors);
    errors.is_empty()
}

/// The errors of a value against a raw schema at a path.
pub fn raw(value: &Value, raw: &Value, path: &Path) -> FieldErrors {
    let mut errors = Vec::new();
    keywords::check(value, raw, path, &mut errors);
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Field, ObjectRef};
    use serde_json::json;
    use std::sync::Arc;

    fn field(name: &str, node: Node, raw: Value) -> Field {
        Field { constraints: Some(Arc::new(raw)), ..Field::new(name, node) }
    }

    fn schema() -> Object {
        let list = |item, list_type, keys: &[&str]| {
            let map_keys = keys.iter().map(|k| (*k).to_owned()).collect();
            Node::List(Arc::new(List { list_type, map_keys, ..List::of(item) }))
        };
        let port = Object {
            custom: true,
            fields: vec![Field { required: true, ..Field::new("name", Node::String) }, Field::new("n", Node::Int64)],
            ..Object::default()
        };
        let spec = Object {
            custom: true,
            fields: vec![
                field("replicas", Node::Int32, json!({"minimum": 1, "maximum": 10})),
                field("cron", Node::String, json!({"pattern": "^\\d+$", "maxLength": 3, "minLength": 1})),
                field("mode", Node::String, json!({"enum": ["a", "b"]})),
                field("tags", list(Node::String, ListType::Set, &[]), json!({"maxItems": 2})),
                Field::new("ports", list(Node::Object(ObjectRef::new(Arc::new(port))), ListType::Map, &["name"])),
                field("ip", Node::String, json!({"format": "ipv4"})),
                Field { nullable: true, ..Field::new("maybe", Node::Bool) },
                Field::new("either", Node::IntOrString),
            ],
            constraints: Some(json!({"anyOf": [{"required": ["mode"]}, {"required": ["cron"]}]})),
            ..Object::default()
        };
        Object {
            custom: true,
            fields: vec![Field { required: true, ..Field::new("spec", Node::Object(ObjectRef::new(Arc::new(spec)))) }],
            ..Object::default()
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
                vec![r#"spec.tags[2]: Duplicate value: "x""#, "spec.tags: Too many: 3: must have at most 2 items"],
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
                vec![r#"spec.mode: Invalid value: "null": spec.mode in body must be of type string: "null""#],
            ),
            (json!({}), vec![r#"<nil>: Invalid value: "": "spec" must validate at least one schema (anyOf)"#]),
        ] {
            let got: Vec<String> = types(&json!({"spec": spec}), &schema()).iter().map(ToString::to_string).collect();
            assert_eq!(got, want, "{spec}");
        }
        assert_eq!(types(&json!({}), &schema())[0].to_string(), "spec: Required value");
    }

    #[test]
    fn lists_of_built_in_kinds() {
        let pod = crate::facts::builtin().object_of(&isopod_api::Gvk::new("", "v1", "Pod")).expect("built in");
        let v = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}});
        assert_eq!(lists(&v, &pod)[0].to_string(), r#"spec.containers[2]: Duplicate value: {"name":"a"}"#);
    }
}
