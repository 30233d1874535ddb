//! The form of a value after a round trip through Go's structs.
//!
//! Invariants: idempotent; unknown fields and custom resources' own fields are left alone.

use crate::scalar;
use crate::types::{Field, Node, Object};
use serde_json::{Map, Value};

/// Gives `value` the form that it has after a round trip through Go's types and stored protobuf.
pub fn canonicalize(value: &mut Value, object: &Object) {
    if let Value::Object(map) = value {
        fields(map, object);
    }
}

fn fields(map: &mut Map<String, Value>, object: &Object) {
    if object.custom {
        for f in &object.fields {
            // A number stays an integer or a double, as it was written.
            if let Some(v) = map.get_mut(&f.name)
                && !v.is_null()
                && !matches!(f.node, Node::Double)
            {
                node(v, &f.node);
            }
        }
        return;
    }
    // What is there is looked at where it stands: most fields of most structs are absent, and need no search.
    map.retain(|key, value| {
        let Some(f) = object.field(key) else { return true };
        if !value.is_null() {
            node(value, &f.node);
            if f.pointer || !is_empty(value, &f.node) {
                return true;
            }
        }
        let kept = !is_omitted(f);
        if kept {
            *value = shown(f);
        }
        kept
    });
    for f in object.fields.iter().filter(|f| !is_omitted(f)) {
        if !map.contains_key(&f.name) {
            map.insert(f.name.clone(), shown(f));
        }
    }
}

/// Whether a field that is absent, null or Go's zero value is left out.
fn is_omitted(f: &Field) -> bool {
    f.omit_zero || (f.omit_empty && (f.pointer || !is_struct(&f.node)))
}

/// How such a field shows otherwise.
fn shown(f: &Field) -> Value {
    if f.pointer { Value::Null } else { zero(&f.node) }
}

/// Go's `omitempty` knows no empty structs.
fn is_struct(node: &Node) -> bool {
    matches!(
        node,
        Node::Object(_)
            | Node::Quantity
            | Node::IntOrString
            | Node::Time
            | Node::MicroTime
            | Node::Duration
            | Node::Any
            | Node::FieldsV1
    )
}

/// How Go writes the zero value of a type.
pub fn zero(node: &Node) -> Value {
    match node {
        Node::Bool => Value::Bool(false),
        Node::Int32 | Node::Int64 | Node::Double | Node::IntOrString => Value::from(0),
        Node::String => Value::String(String::new()),
        Node::Quantity => Value::String("0".into()),
        Node::Duration => Value::String("0s".into()),
        Node::Object(o) => {
            let mut map = Map::new();
            fields(&mut map, o.get());
            Value::Object(map)
        }
        _ => Value::Null,
    }
}

/// Whether a canonical value is Go's zero value, or an empty list or map, which protobuf cannot tell from none.
fn is_empty(value: &Value, node: &Node) -> bool {
    match (node, value) {
        (Node::Object(o), Value::Object(map)) => {
            let o = o.get();
            map.iter().all(|(k, v)| o.field(k).is_some_and(|f| !f.pointer && is_empty(v, &f.node)))
        }
        (Node::Quantity | Node::Any | Node::FieldsV1 | Node::IntOrString | Node::Time | Node::MicroTime, _) => {
            value.is_null()
        }
        (_, Value::Null | Value::Bool(false)) => true,
        (_, Value::String(s)) => s.is_empty(),
        (_, Value::Number(n)) => n.as_f64() == Some(0.0),
        (_, Value::Array(a)) => a.is_empty(),
        (_, Value::Object(m)) => m.is_empty(),
        _ => false,
    }
}

fn node(value: &mut Value, n: &Node) {
    match n {
        Node::Object(o) => {
            if value.is_null() {
                *value = zero(n);
            } else if let Value::Object(map) = value {
                fields(map, o.get());
            }
        }
        Node::SchemaOrBool(o) | Node::SchemaOrArray(o) | Node::SchemaOrStringArray(o) => match value {
            Value::Object(map) => fields(map, o.get()),
            Value::Array(items) => items.iter_mut().for_each(|v| canonicalize(v, o.get())),
            _ => {}
        },
        Node::List(list) => {
            if let Value::Array(items) = value {
                items.iter_mut().for_each(|v| element(v, &list.item));
            }
        }
        Node::Map(m) => {
            if let Value::Object(map) = value {
                map.values_mut().for_each(|v| element(v, &m.value));
            }
        }
        Node::Quantity => text(value, scalar::quantity),
        Node::Time => text(value, scalar::time),
        Node::MicroTime => text(value, scalar::micro_time),
        Node::Duration => text(value, scalar::duration),
        Node::Double => {
            if let Some(x) = value.as_f64()
                && value.is_f64()
                && x.fract() == 0.0
                && x.abs() < 9e15
            {
                *value = Value::from(x as i64);
            }
        }
        _ => {}
    }
}

fn element(value: &mut Value, n: &Node) {
    if value.is_null() {
        *value = zero(n);
    } else {
        node(value, n);
    }
}

/// Replaces a text by its canonical form; one that has none is left for validation. Quantities may be numbers.
fn text(value: &mut Value, canonical: fn(&str) -> Result<String, String>) {
    let new = match value {
        Value::String(s) => canonical(s).ok().filter(|c| c != s),
        Value::Number(n) => canonical(&n.to_string()).ok(),
        _ => None,
    };
    if let Some(text) = new {
        *value = Value::String(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_api::Gvk;
    use serde_json::json;

    #[test]
    fn as_a_round_trip_through_go() {
        for (group, kind, before, after) in [
            (
                "",
                "Pod",
                json!({"metadata": {"name": "a", "labels": {}, "creationTimestamp": null}, "spec": {"containers": [{"name": "c", "image": "", "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}],
                    "terminationGracePeriodSeconds": 0, "hostNetwork": false, "securityContext": {}}}),
                json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}],
                    "terminationGracePeriodSeconds": 0, "securityContext": {}}, "status": {}}),
            ),
            (
                "apps",
                "Deployment",
                json!({"spec": {"template": {}}}),
                json!({"metadata": {}, "spec": {"selector": null, "strategy": {}, "template": {"metadata": {}, "spec": {"containers": null}}}, "status": {}}),
            ),
            ("rbac.authorization.k8s.io", "Role", json!({"rules": []}), json!({"metadata": {}, "rules": null})),
            (
                "",
                "Service",
                json!({"spec": {"ports": [{"port": 80}]}}),
                json!({"metadata": {}, "spec": {"ports": [{"port": 80, "targetPort": 0}]}, "status": {"loadBalancer": {}}}),
            ),
        ] {
            let object = crate::facts::builtin().object_of(&Gvk::new(group, "v1", kind)).unwrap();
            let mut v = before;
            canonicalize(&mut v, &object);
            assert_eq!(v, after, "{kind}");
            canonicalize(&mut v, &object);
            assert_eq!(v, after, "{kind} twice");
        }
    }
}
