//! The JSON of a patched object, byte for byte as upstream's patch library leaves it: objects that the patch looked into are
//! maps with sorted keys, everything else still stands in the order of the Go structs. Clients see it in errors.

use crate::json::{depth, html_escaped};
use crate::types::{Node, Object};
use serde_json::Value;
use std::collections::BTreeMap;

/// The objects and lists that a patch looked into, from the root.
#[derive(Debug, Default)]
pub struct Opened(BTreeMap<String, Opened>);

impl Opened {
    /// What a JSON patch opens: all that its pointers lead through.
    pub fn by_operations(patch: &Value) -> Self {
        let mut root = Opened::default();
        for operation in patch.as_array().into_iter().flatten() {
            for pointer in ["path", "from"].iter().filter_map(|key| operation[key].as_str()) {
                // A pointer that is of no use to its operation may be as long as it likes.
                let steps = pointer.split('/').take(depth::limit()).map(|s| s.replace("~1", "/").replace("~0", "~"));
                let steps: Vec<String> = steps.collect();
                let parents = steps.get(1..steps.len().saturating_sub(1)).unwrap_or_default();
                let mut at = &mut root;
                for step in parents {
                    at = at.0.entry(step.clone()).or_default();
                }
            }
        }
        root
    }

    /// What a merge patch opens: the objects that it has in common with the original, and all that it brings itself.
    pub fn by_merge(patch: &Value) -> Self {
        let objects = patch.as_object().into_iter().flatten().filter(|(_, v)| v.is_object() || v.is_array());
        let mut opened = Opened(objects.map(|(k, v)| (k.clone(), Opened::by_merge(v))).collect());
        for (i, item) in patch.as_array().into_iter().flatten().enumerate() {
            opened.0.insert(i.to_string(), Opened::by_merge(item));
        }
        opened
    }
}

/// The text of `patched`, an object of type `schema`.
pub fn patched_text(patched: &Value, schema: &Object, opened: &Opened) -> String {
    let mut out = String::new();
    object(&mut out, patched, schema, Some(opened));
    out
}

fn object(out: &mut String, value: &Value, schema: &Object, opened: Option<&Opened>) {
    let Some(map) = value.as_object() else { return plain(out, value) };
    let mut keys: Vec<&String> = map.keys().collect();
    if opened.is_some() || schema.custom {
        keys.sort();
    } else {
        // Fields of the struct by their place, then what it does not know.
        keys.sort_by_key(|k| schema.fields.iter().position(|f| &f.name == *k).unwrap_or(usize::MAX));
    }
    out.push('{');
    for (i, key) in keys.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        plain(out, &Value::from(key.as_str()));
        out.push(':');
        let inner = opened.and_then(|o| o.0.get(key));
        write(out, &map[key], schema.field(key).map(|f| &f.node), inner);
    }
    out.push('}');
}

fn write(out: &mut String, value: &Value, node: Option<&Node>, opened: Option<&Opened>) {
    match (value, node) {
        (Value::Object(_), Some(Node::Object(o))) => object(out, value, o.get(), opened),
        (Value::Object(_), Some(Node::Map(m))) => {
            let entries = value.as_object().into_iter().flatten();
            delimited(out, ['{', '}'], entries, |out, (key, v)| {
                plain(out, &Value::from(key.as_str()));
                out.push(':');
                write(out, v, Some(&m.value), opened.and_then(|o| o.0.get(key)));
            });
        }
        (Value::Array(items), Some(Node::List(l))) => {
            delimited(out, ['[', ']'], items.iter().enumerate(), |out, (i, v)| {
                write(out, v, Some(&l.item), opened.and_then(|o| o.0.get(&i.to_string())));
            });
        }
        _ => plain(out, value),
    }
}

fn delimited<T>(
    out: &mut String,
    [open, close]: [char; 2],
    items: impl Iterator<Item = T>,
    each: impl Fn(&mut String, T),
) {
    out.push(open);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(',');
        }
        each(out, item);
    }
    out.push(close);
}

fn plain(out: &mut String, value: &Value) {
    out.push_str(&html_escaped(&value.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::{json_patch, merge_patch};
    use isopod_api::Gvk;
    use serde_json::json;

    /// An operation that does not look at its pointer works with any.
    #[test]
    fn pointers_are_followed_as_deep_as_objects_can_be() {
        let from = "/a".repeat(1_000_000);
        let patch = json!([{"op": "add", "path": "/metadata", "value": {}, "from": from}]);
        let patched = json_patch(&json!({}), &patch).expect("applies");
        let schema = crate::facts::builtin().object_of(&Gvk::new("", "v1", "Service")).expect("built in");
        assert_eq!(patched_text(&patched, &schema, &Opened::by_operations(&patch)), r#"{"metadata":{}}"#);
    }

    #[test]
    fn only_what_a_patch_opens_is_sorted() {
        let schema = crate::facts::builtin().object_of(&Gvk::new("", "v1", "Service")).expect("built in");
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "annotations": {"b": "<"}},
            "spec": {"type": "ClusterIP", "ports": [{"port": 80, "name": "a", "protocol": "TCP"}]}});
        let merge = json!({"metadata": {"labels": {"x": "y"}}});
        assert_eq!(
            patched_text(&merge_patch(&service, &merge), &schema, &Opened::by_merge(&merge)),
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"annotations":{"b":"\u003c"},"labels":{"x":"y"},"name":"a"},"spec":{"ports":[{"name":"a","protocol":"TCP","port":80}],"type":"ClusterIP"}}"#
        );
        let patch = json!([{"op": "add", "path": "/spec/ports/0/noSuch", "value": 7}]);
        let patched = json_patch(&service, &patch).expect("applies");
        assert_eq!(
            patched_text(&patched, &schema, &Opened::by_operations(&patch)),
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a","annotations":{"b":"\u003c"}},"spec":{"ports":[{"name":"a","noSuch":7,"port":80,"protocol":"TCP"}],"type":"ClusterIP"}}"#
        );
    }
}
