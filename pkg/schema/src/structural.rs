//! From the OpenAPI schema of a custom resource's version to our types. A structural schema (KEP-20190425, "structural OpenAPI")
//! says of every place what it is; value validations are left in the schema, which the root keeps (`Object::openapi`).
//!
//! Invariant: a schema that is not structural makes types that take anything where it is silent; nothing fails here.

use crate::facts;
use crate::types::{Field, List, ListType, Map, Node, Object, ObjectRef};
use serde_json::Value;
use std::sync::Arc;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";

/// The type of a custom resource. `schema`: its version's `openAPIV3Schema`; null: there is none, so only metadata is kept.
pub fn resource(schema: &Value) -> Object {
    let mut root = object(schema);
    with_metadata(&mut root);
    root.openapi = Some(Arc::new(schema.clone()));
    root
}

fn flag(schema: &Value, key: &str) -> bool {
    schema[key] == Value::Bool(true)
}

/// `apiVersion`, `kind` and `metadata`, which every resource has, embedded ones included. Metadata is Go's type, whatever the
/// schema says about it.
fn with_metadata(object: &mut Object) {
    object.embedded_resource = true;
    object.fields.retain(|f| f.name != "metadata");
    for name in ["apiVersion", "kind"] {
        if object.fields.iter().all(|f| f.name != name) {
            object.fields.push(Field::new(name, Node::String));
        }
    }
    if let Some(meta) = facts::builtin().object(OBJECT_META) {
        object.fields.push(Field::new("metadata", Node::Object(ObjectRef::new(meta))));
    }
}

fn object(schema: &Value) -> Object {
    let required = |name: &str| schema["required"].as_array().is_some_and(|all| all.iter().any(|r| r == name));
    let properties = schema["properties"].as_object().into_iter().flatten();
    let field = |(name, s): (&String, &Value)| Field {
        required: required(name),
        nullable: flag(s, "nullable"),
        default: s.get("default").cloned(),
        ..Field::new(name.as_str(), node(s))
    };
    Object {
        custom: true,
        fields: properties.map(field).collect(),
        atomic: schema["x-kubernetes-map-type"] == "atomic",
        preserve_unknown: flag(schema, PRESERVE),
        ..Object::default()
    }
}

fn node(schema: &Value) -> Node {
    if flag(schema, INT_OR_STRING) {
        return Node::IntOrString;
    }
    match schema["type"].as_str().unwrap_or_default() {
        "boolean" => Node::Bool,
        "integer" => Node::Int64,
        "number" => Node::Double,
        "string" => Node::String,
        "array" => list(schema),
        "object" => map_or_object(schema),
        _ => Node::Any,
    }
}

fn list(schema: &Value) -> Node {
    let items = &schema["items"];
    let stated = schema["x-kubernetes-list-type"].as_str();
    let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
    Node::List(Arc::new(List {
        list_type: match stated {
            Some("set") => ListType::Set,
            Some("map") => ListType::Map,
            _ => ListType::Atomic,
        },
        list_type_stated: stated.is_some(),
        map_keys: keys.filter_map(Value::as_str).map(str::to_owned).collect(),
        nullable_items: flag(items, "nullable"),
        ..List::of(node(items))
    }))
}

fn map_or_object(schema: &Value) -> Node {
    let values = &schema["additionalProperties"];
    if (values.is_object() || *values == Value::Bool(true)) && !flag(schema, EMBEDDED) {
        return Node::Map(Arc::new(Map {
            atomic: schema["x-kubernetes-map-type"] == "atomic",
            nullable_values: flag(values, "nullable"),
            ..Map::of(node(values))
        }));
    }
    let mut made = object(schema);
    if flag(schema, EMBEDDED) {
        with_metadata(&mut made);
    }
    Node::Object(ObjectRef::new(Arc::new(made)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{default, json};
    use serde_json::json;

    fn schema() -> Object {
        resource(&json!({"type": "object", "properties": {
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}},
            "spec": {"type": "object", "required": ["a"], "properties": {
                "a": {"type": "string", "default": "x"},
                "n": {"type": "integer", "nullable": true, "default": 1},
                "port": {"x-kubernetes-int-or-string": true},
                "any": {"x-kubernetes-preserve-unknown-fields": true},
                "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                    "closed": {"type": "object", "properties": {"b": {"type": "boolean"}}}}},
                "inner": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "list": {"type": "array", "items": {"type": "object", "properties": {"c": {"type": "number", "default": 0.5}}}},
            }},
        }}))
    }

    #[test]
    fn unknown_fields_are_pruned_and_named() {
        for (body, pruned, unknown) in [
            (json!({"spec": {"a": 1, "q": 1}, "x": {}}), json!({"spec": {"a": 1}}), vec!["spec.q", "x"]),
            (
                json!({"spec": {"any": {"p": [1]}, "open": {"q": 1, "closed": {"b": true, "r": 1}}}}),
                json!({"spec": {"any": {"p": [1]}, "open": {"q": 1, "closed": {"b": true}}}}),
                vec!["spec.open.closed.r"],
            ),
            (
                json!({"metadata": {"name": "n", "u": 1}, "spec": {"inner": {"kind": "K", "spec": {"z": 1}, "metadata": {"name": "m", "v": 1}}}}),
                json!({"metadata": {"name": "n"}, "spec": {"inner": {"kind": "K", "spec": {"z": 1}, "metadata": {"name": "m"}}}}),
                vec!["metadata.u", "spec.inner.metadata.v"],
            ),
            (json!({"spec": {"list": [{"d": 1}]}}), json!({"spec": {"list": [{}]}}), vec!["spec.list[0].d"]),
            // Null stays where it is allowed or becomes a default; elsewhere it is no value.
            (
                json!({"spec": {"a": null, "n": null, "port": null, "labels": {"k": null}}}),
                json!({"spec": {"a": null, "n": null, "labels": {}}}),
                vec![],
            ),
        ] {
            let decoded = json::decode_value(body.clone(), &schema()).expect("metadata has the right types");
            assert_eq!((decoded.value, decoded.unknown), (pruned, unknown.iter().map(|s| (*s).to_owned()).collect()));
        }
    }

    #[test]
    fn duplicates_are_seen_in_what_has_no_schema() {
        let body = br#"{"spec":{"any":{"p":1,"p":2,"l":[{"q":1,"q":1}]},"open":{"x":{"y":1,"y":2}}}}"#;
        let decoded = json::decode(body, &schema()).expect("well formed");
        assert_eq!(decoded.duplicate, ["spec.any.p", "spec.any.l[0].q", "spec.open.x.y"]);
    }

    #[test]
    fn defaults() {
        let mut v = json!({"spec": {"a": null, "n": null, "list": [{}, {"c": 1}]}});
        default::apply(&mut v, &schema());
        assert_eq!(v, json!({"spec": {"a": "x", "n": null, "list": [{"c": 0.5}, {"c": 1}]}}));
    }
}
