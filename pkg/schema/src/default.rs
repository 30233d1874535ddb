//! Static defaults: those that the schema itself states (`+default` markers of Go types, `default` of custom resources).
//!
//! Defaults that upstream keeps in code are overlays in `kinds`.

use crate::types::{Field, Object};
use serde_json::{Map, Value};

/// Sets fields that have a default and no value. Defaults are themselves defaulted.
pub fn apply(value: &mut Value, object: &Object) {
    crate::walk::objects_mut(value, object, &mut |o, map| {
        for f in &o.fields {
            if let Some(default) = &f.default
                && is_unset(map, f, o.custom)
            {
                map.insert(f.name.clone(), default.clone());
            }
        }
    });
}

/// Go's generated defaulters take a zero value that is no pointer for unset; a custom resource's field is unset when it is
/// absent, or null where null is not allowed.
fn is_unset(map: &Map<String, Value>, f: &Field, custom: bool) -> bool {
    match map.get(&f.name) {
        None => true,
        Some(Value::Null) => !custom || !f.nullable,
        Some(Value::String(s)) => !custom && !f.pointer && s.is_empty(),
        Some(Value::Number(n)) => !custom && !f.pointer && n.as_f64() == Some(0.0),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Node, ObjectRef};
    use isopod_api::Gvk;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn built_in() {
        let service = crate::facts::builtin().object_of(&Gvk::new("", "v1", "Service")).expect("built in");
        let mut v =
            json!({"spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}, {"port": 1, "protocol": ""}]}});
        apply(&mut v, &service);
        let protocols: Vec<_> = (0..3).map(|i| v["spec"]["ports"][i]["protocol"].clone()).collect();
        assert_eq!(protocols, ["TCP", "UDP", "TCP"]);
    }

    #[test]
    fn custom() {
        let inner = Object {
            custom: true,
            fields: vec![Field { default: Some(json!("x")), ..Field::new("b", Node::String) }],
            ..Object::default()
        };
        let object = Object {
            custom: true,
            fields: vec![
                Field { default: Some(json!({})), ..Field::new("a", Node::Object(ObjectRef::new(Arc::new(inner)))) },
                Field { default: Some(json!(1)), nullable: true, ..Field::new("n", Node::Int64) },
            ],
            ..Object::default()
        };
        for (before, after) in [
            (json!({}), json!({"a": {"b": "x"}, "n": 1})),
            (json!({"a": {"b": ""}, "n": null}), json!({"a": {"b": ""}, "n": null})),
            (json!({"a": null, "n": 0}), json!({"a": {"b": "x"}, "n": 0})),
        ] {
            let mut v = before;
            apply(&mut v, &object);
            assert_eq!(v, after);
        }
    }
}
