//! Which atomic lists and maps a value mentions: a change of such a place replaces all of it.

use super::typed::{Shape, Type};
use serde_json::Value;

/// Their paths, as `.spec.containers[0].args`.
pub fn atomics(value: &Value, ty: Type) -> Vec<String> {
    let mut out = Vec::new();
    walk(value, ty, String::new(), &mut out);
    out
}

fn walk(value: &Value, ty: Type, path: String, out: &mut Vec<String>) {
    match (ty.shape(value), value) {
        (Some(Shape::Map(map)), Value::Object(entries)) => {
            if map.atomic {
                out.push(path.clone());
            }
            // Only fields of structs are looked into.
            for (key, value) in entries {
                if let (Some(ty), true) = map.child(key) {
                    walk(value, ty, format!("{path}.{key}"), out);
                }
            }
        }
        (Some(Shape::List(list)), Value::Array(items)) => {
            if list.is_atomic() {
                out.push(path.clone());
            }
            for (i, item) in items.iter().enumerate() {
                walk(item, list.item, format!("{path}[{i}]"), out);
            }
        }
        _ => {}
    }
}
