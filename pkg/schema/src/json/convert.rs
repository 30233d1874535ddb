//! Why a value does not fit into Go's struct, in the words of the converter that upstream uses after a strategic merge: it goes
//! from maps to structs without JSON's decoder in between, and says less.

use crate::types::{Node, Object};
use serde_json::Value;

/// The first misfit, in the order of the struct's fields. `None`: there is none, or a type with a decoder of its own has found
/// it, whose words are the same everywhere.
pub fn unconvertible(value: &Value, object: &Object) -> Option<String> {
    let Value::Object(map) = value else { return Some(format!("cannot restore struct from: {}", kind(value))) };
    object.fields.iter().find_map(|f| misfit(map.get(&f.name)?, &f.node, f.go_type.as_deref()))
}

fn misfit(value: &Value, node: &Node, named: Option<&str>) -> Option<String> {
    if value.is_null() {
        return None;
    }
    match node {
        Node::Bool => simple(value, "bool", named),
        Node::Int32 => simple(value, "int32", named),
        Node::Int64 => simple(value, "int64", named),
        Node::Double => simple(value, "float64", named),
        Node::String => simple(value, "string", named),
        Node::Bytes => (!value.is_string()).then(|| format!("cannot restore slice from {}", kind(value))),
        Node::List(list) => match value {
            Value::Array(items) => items.iter().find_map(|item| misfit(item, &list.item, None)),
            _ => Some(format!("cannot restore slice from {}", kind(value))),
        },
        Node::Map(map) => match value {
            Value::Object(entries) => entries.values().find_map(|v| misfit(v, &map.value, None)),
            _ => Some(format!("cannot restore map from {}", kind(value))),
        },
        Node::Object(object) => unconvertible(value, object.get()),
        _ => None,
    }
}

/// Of the types that Go can convert to the wanted one, JSON allows fewer; to all others the converter has no way.
fn simple(value: &Value, wanted: &str, named: Option<&str>) -> Option<String> {
    let given = kind(value);
    let is_number = |kind: &str| kind.starts_with("int") || kind.starts_with("float");
    let cannot = || Some(format!("cannot convert {given} to {}", named.unwrap_or(wanted)));
    match value {
        Value::Number(n) if n.is_f64() && wanted.starts_with("int") => match n.as_f64() {
            Some(x) if x == x.trunc() => None,
            _ => cannot(),
        },
        Value::Number(_) if is_number(wanted) => None,
        Value::Number(n) if wanted == "string" && !n.is_f64() => cannot(),
        _ if given == wanted => None,
        _ => Some(format!("unrecognized type: {wanted}")),
    }
}

/// `reflect.Kind` of what Go's decoder makes of it.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "map",
        Value::Array(_) => "slice",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::Null => "invalid",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts;
    use isopod_api::Gvk;
    use serde_json::json;

    #[test]
    fn the_first_misfit_is_told() {
        let pod = facts::builtin().object_of(&Gvk::new("", "v1", "Pod")).unwrap();
        for (object, told) in [
            (json!({"spec": "x"}), "cannot restore struct from: string"),
            (json!({"spec": {"containers": {}}}), "cannot restore slice from map"),
            (json!({"spec": {"containers": [1]}}), "cannot restore struct from: int64"),
            (json!({"metadata": {"labels": [1]}}), "cannot restore map from slice"),
            (json!({"metadata": {"labels": {"a": 1}}}), "cannot convert int64 to string"),
            (json!({"metadata": {"labels": {"a": 1.5}}}), "unrecognized type: string"),
            (json!({"spec": {"restartPolicy": 1}}), "cannot convert int64 to v1.RestartPolicy"),
            (json!({"spec": {"hostNetwork": "true"}}), "unrecognized type: bool"),
            (json!({"spec": {"priority": 1.5}}), "cannot convert float64 to int32"),
            (json!({"spec": {"priority": "1"}}), "unrecognized type: int32"),
        ] {
            assert_eq!(unconvertible(&object, &pod).as_deref(), Some(told), "{object}");
        }
        let fits =
            json!({"spec": {"priority": 1.0, "containers": [{"name": "a", "image": null}], "hostNetwork": true}});
        assert_eq!(unconvertible(&fits, &pod), None);
    }
}
