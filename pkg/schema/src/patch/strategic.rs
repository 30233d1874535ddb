//! Strategic merge patch: a merge patch that knows which lists are sets or maps, with directives (`$patch`, `$retainKeys`,
//! `$setElementOrder/…`, `$deleteFromPrimitiveList/…`). Follows `apimachinery/pkg/util/strategicpatch` step by step, its errors
//! included.

use super::PatchError;
use super::order::{arrange, check_order, identity, require_key};
use crate::json::go_text;
use crate::types::{Field, List, Node, Object};
use serde_json::{Map, Value};

type Json = Map<String, Value>;
type Result<T> = std::result::Result<T, PatchError>;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList";
const ORDER_PREFIX: &str = "$setElementOrder";

/// Merges `patch` into a copy of `original`. Custom resources have no strategies: servers refuse such patches of them.
pub fn strategic_merge(original: &Value, patch: &Value, object: &Object) -> Result<Value> {
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(PatchError::Malformed("invalid JSON document".to_owned()));
    };
    merge_map(original.clone(), patch.clone(), Schema::Struct(object)).map(Value::Object)
}

/// What is known about the place of an object.
#[derive(Clone, Copy)]
enum Schema<'s> {
    Struct(&'s Object),
    /// A Go struct that JSON does not show as one.
    Opaque(&'static str),
    /// A Go type of this kind.
    Kind(&'static str),
}

impl<'s> Schema<'s> {
    fn of(node: &'s Node) -> Self {
        match node {
            Node::Object(o) => Schema::Struct(o.get()),
            Node::Map(_) => Schema::Kind("map"),
            Node::List(_) | Node::Bytes => Schema::Kind("slice"),
            Node::String => Schema::Kind("string"),
            Node::Any => Schema::Opaque("RawExtension"),
            Node::FieldsV1 => Schema::Opaque("FieldsV1"),
            Node::SchemaOrBool(_) => Schema::Opaque("JSONSchemaPropsOrBool"),
            Node::SchemaOrArray(_) => Schema::Opaque("JSONSchemaPropsOrArray"),
            Node::SchemaOrStringArray(_) => Schema::Opaque("JSONSchemaPropsOrStringArray"),
            _ => Schema::Opaque("Time"),
        }
    }

    fn field(self, key: &str) -> Result<&'s Field> {
        let unknown = |name: &str| {
            PatchError::Internal(format!("unable to find api field in struct {name} for the json field {key:?}"))
        };
        match self {
            Schema::Struct(o) => o
                .field(key)
                .or_else(|| o.fields.iter().find(|f| f.name.eq_ignore_ascii_case(key)))
                .ok_or_else(|| unknown(o.go_name())),
            Schema::Opaque(name) => Err(unknown(name)),
            Schema::Kind(kind) => Err(PatchError::Internal(format!(
                "merging an object in json but data type is not struct, instead is: {kind}"
            ))),
        }
    }

    fn list(self, key: &str) -> Result<(&'s Field, &'s List)> {
        let field = self.field(key)?;
        match &field.node {
            Node::List(list) => Ok((field, list)),
            _ => Err(PatchError::Internal("expected slice or array type, but got: struct".to_owned())),
        }
    }
}

/// The Go type of a decoded JSON value.
pub(super) fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn expected_list(value: &Value) -> PatchError {
    PatchError::Internal(format!("expected a []interface {{}}, but received a {}", go_type(value)))
}

fn merge_map(mut original: Json, mut patch: Json, schema: Schema) -> Result<Json> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Map::new()),
            _ => {
                patch.insert(DIRECTIVE.to_owned(), directive.clone());
                Err(bad_directive(&directive, &Value::Object(patch)))
            }
        };
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, schema)?;
    for (key, value) in patch {
        let (key, deletes) = match key.strip_prefix(DELETE_PREFIX) {
            Some(rest) => {
                let name = rest.strip_prefix('/').filter(|n| !n.is_empty());
                let name =
                    name.ok_or_else(|| PatchError::Malformed("invalid patch format of primitive list".to_owned()))?;
                (name.to_owned(), true)
            }
            None => (key, false),
        };
        merge_key(&mut original, key, value, deletes, schema)?;
    }
    Ok(original)
}

fn merge_key(original: &mut Json, key: String, value: Value, deletes: bool, schema: Schema) -> Result<()> {
    if value.is_null() {
        original.remove(&key);
        return Ok(());
    }
    let same_type = original.get(&key).is_some_and(|o| go_type(o) == go_type(&value));
    if !same_type {
        if !deletes {
            put(original, key, without_nulls(value));
        }
        return Ok(());
    }
    let merged = match (original.remove(&key), value) {
        (Some(Value::Object(o)), Value::Object(p)) => {
            let field = schema.field(&key)?;
            Value::Object(if field.patch.replace { p } else { merge_map(o, p, Schema::of(&field.node))? })
        }
        (Some(Value::Array(o)), Value::Array(p)) => {
            let (field, list) = schema.list(&key)?;
            Value::Array(merge_list(o, p, field, list, deletes)?)
        }
        (_, value) => {
            put(original, key, value);
            return Ok(());
        }
    };
    original.insert(key, merged);
    Ok(())
}

/// Sets a key to what the patch says, unless that is a directive.
fn put(original: &mut Json, key: String, value: Value) {
    match without_directives(value) {
        Some(v) => drop(original.insert(key, v)),
        None => drop(original.remove(&key)),
    }
}

fn bad_directive(directive: &Value, map: &Value) -> PatchError {
    PatchError::Internal(format!("unknown patch type: {} in map: {}", go_text(directive), go_text(map)))
}

/// Objects with a directive vanish, wherever they stand.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            Some(Value::Object(map.into_iter().filter_map(|(k, v)| without_directives(v).map(|v| (k, v))).collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        other => Some(other),
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// `$retainKeys`: only these keys of the original stay, and the patch may set only these.
fn retain_keys(original: &mut Json, patch: &mut Json) -> Result<()> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || PatchError::Malformed("invalid patch format of retainKeys".to_owned());
    let keys = directive.as_array().ok_or_else(bad)?;
    let listed = |key: &str| keys.iter().any(|k| k.as_str() == Some(key));
    let foreign = |(key, value): (&String, &Value)| {
        !value.is_null() && !key.starts_with(DELETE_PREFIX) && !key.starts_with(ORDER_PREFIX) && !listed(key)
    };
    if patch.iter().any(foreign) {
        return Err(bad());
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

/// `$setElementOrder/<list>`: merges those lists and puts their elements in that order.
fn merge_ordered_lists(original: &mut Json, patch: &mut Json, schema: Schema) -> Result<()> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(ORDER_PREFIX)).cloned().collect();
    for directive in directives {
        let order = patch.remove(&directive).unwrap_or(Value::Null);
        let Value::Array(order) = order else { return Err(expected_list(&order)) };
        let key = directive.strip_prefix(ORDER_PREFIX).and_then(|k| k.strip_prefix('/'));
        let key =
            key.ok_or_else(|| PatchError::Malformed("invalid patch format of setElementOrder list".to_owned()))?;
        for side in [&*original, &*patch] {
            if let Some(v) = side.get(key)
                && !v.is_array()
            {
                return Err(expected_list(v));
            }
        }
        let (field, list) = schema.list(key)?;
        let (live, change) = (original.get(key).and_then(Value::as_array), patch.get(key).and_then(Value::as_array));
        check_order(change.map_or(&[], Vec::as_slice), &order, &field.patch.merge_key)?;
        let merged = match (live, change) {
            (None, None) => continue,
            (Some(live), None) => live.clone(),
            (None, Some(change)) => change.iter().cloned().filter_map(without_directives).collect(),
            (Some(live), Some(change)) => merge_list(live.clone(), change.clone(), field, list, false)?,
        };
        let live = live.cloned().unwrap_or_default();
        same_types(live.iter().chain(change.into_iter().flatten()))?;
        let arranged = arrange(merged, &order, &live, &field.patch.merge_key)?;
        original.insert(key.to_owned(), Value::Array(arranged));
        patch.remove(key);
    }
    Ok(())
}

/// All elements must have one type, which is no list. Says whether they are objects.
fn same_types<'v>(items: impl Iterator<Item = &'v Value>) -> Result<bool> {
    let mut first: Option<&Value> = None;
    for item in items {
        match first {
            None if item.is_array() => {
                return Err(PatchError::Unprocessable("lists of lists are not supported".to_owned()));
            }
            None => first = Some(item),
            Some(f) if go_type(f) != go_type(item) => {
                return Err(PatchError::Internal("list element types are not identical".to_owned()));
            }
            Some(_) => {}
        }
    }
    match first {
        Some(f) => Ok(f.is_object()),
        None => Err(PatchError::Internal("no elements in any of the given slices".to_owned())),
    }
}

fn merge_list(
    mut live: Vec<Value>,
    patch: Vec<Value>,
    field: &Field,
    list: &List,
    deletes: bool,
) -> Result<Vec<Value>> {
    if !field.patch.merge && !deletes {
        return Ok(patch);
    }
    if live.is_empty() && patch.is_empty() {
        return Ok(live);
    }
    let key = field.patch.merge_key.as_str();
    if !same_types(live.iter().chain(&patch))? {
        if deletes {
            live.retain(|v| !patch.contains(v));
            return Ok(live);
        }
        let mut merged = live.clone();
        for item in &patch {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return arrange(merged, &patch, &live, "");
    }
    if key.is_empty() {
        return Err(PatchError::Internal(format!(
            "cannot merge lists without merge key for {}",
            kind_name(&list.item)
        )));
    }
    let (live, patch) = special_elements(live, patch, key)?;
    let mut merged = live.clone();
    for item in &patch {
        let id = require_key(item, key)?;
        match merged.iter_mut().find(|v| identity(v, key) == Some(id)) {
            Some(Value::Object(found)) => {
                let Value::Object(change) = item.clone() else { continue };
                let old = std::mem::take(found);
                *found = merge_map(old, change, Schema::of(&list.item))?;
            }
            _ => merged.push(item.clone()),
        }
    }
    arrange(merged, &patch, &live, key)
}

/// The kind of Go's type, which error texts show.
fn kind_name(node: &Node) -> &'static str {
    match Schema::of(node) {
        Schema::Kind(kind) => kind,
        _ => "struct",
    }
}

/// Applies the elements with a directive (`$patch: delete`, `$patch: replace`) to the list; returns it and the others.
fn special_elements(mut live: Vec<Value>, patch: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut plain = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        match item.get(DIRECTIVE) {
            None => plain.push(item),
            Some(d) => match d.as_str() {
                Some("delete") => {
                    let id = require_key(&item, key)?;
                    live.retain(|v| identity(v, key) != Some(id));
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(PatchError::Internal("merging lists cannot yet be specified in the patch".to_owned()));
                }
                _ => return Err(bad_directive(d, &item)),
            },
        }
    }
    Ok(if replace { (plain, Vec::new()) } else { (live, plain) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_api::Gvk;
    use serde_json::json;

    fn object(group: &str, kind: &str) -> std::sync::Arc<Object> {
        crate::facts::builtin().object_of(&Gvk::new(group, "v1", kind)).expect("built in")
    }

    fn pod(original: Value, patch: Value) -> Value {
        strategic_merge(&json!({"spec": original}), &json!({"spec": patch}), &object("", "Pod")).expect("applies")["spec"].take()
    }

    #[test]
    fn lists_by_merge_key() {
        for (original, patch, want) in [
            // Merged by name; the patch's elements keep its order, the live ones theirs.
            (
                json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
                json!({"containers": [{"name": "b", "image": "2"}, {"name": "c"}]}),
                json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c"}]}),
            ),
            (
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                json!({"containers": [{"name": "b"}]}),
            ),
            (
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
                json!({"containers": [{"name": "z"}]}),
            ),
            (
                json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}),
                json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "a", "image": "x"}]}),
                json!({"containers": [{"name": "b"}, {"name": "c"}, {"name": "a", "image": "x"}]}),
            ),
            // An atomic list is replaced.
            (
                json!({"containers": [{"name": "a", "args": ["1", "2"]}]}),
                json!({"containers": [{"name": "a", "args": ["3"]}]}),
                json!({"containers": [{"name": "a", "args": ["3"]}]}),
            ),
            // A nested list, where what is new comes first, and a null that deletes.
            (
                json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "x", "value": "1"}]}]}),
                json!({"containers": [{"name": "a", "image": null, "env": [{"name": "y", "value": "2"}]}]}),
                json!({"containers": [{"name": "a", "env": [{"name": "y", "value": "2"}, {"name": "x", "value": "1"}]}]}),
            ),
            (
                json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
                json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
            ),
        ] {
            assert_eq!(pod(original, patch.clone()), want, "{patch}");
        }
    }

    #[test]
    fn primitive_sets_and_maps() {
        let o = object("", "Pod");
        let merge = |original: Value, patch: Value| strategic_merge(&original, &patch, &o).expect("applies");
        assert_eq!(
            merge(json!({"metadata": {"finalizers": ["a", "b"]}}), json!({"metadata": {"finalizers": ["c", "a"]}})),
            json!({"metadata": {"finalizers": ["c", "a", "b"]}})
        );
        assert_eq!(
            merge(
                json!({"metadata": {"finalizers": ["a", "b", "c"]}}),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "$setElementOrder/finalizers": ["c", "a"]}})
            ),
            json!({"metadata": {"finalizers": ["c", "a"]}})
        );
        assert_eq!(
            merge(
                json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
                json!({"metadata": {"labels": {"a": null, "c": "3"}}})
            ),
            json!({"metadata": {"labels": {"b": "2", "c": "3"}}})
        );
        assert_eq!(
            merge(
                json!({"metadata": {"labels": {"a": "1"}}}),
                json!({"metadata": {"labels": {"$patch": "replace", "x": "y"}}})
            ),
            json!({"metadata": {"labels": {"x": "y"}}})
        );
        assert_eq!(merge(json!({}), json!({"metadata": {"labels": {"a": null}}})), json!({"metadata": {"labels": {}}}));
    }

    #[test]
    fn errors() {
        let o = object("", "Pod");
        let error = |original: Value, patch: Value| strategic_merge(&original, &patch, &o).unwrap_err();
        for (original, patch, want) in [
            (
                json!({"spec": {"containers": [{"name": "a"}]}}),
                json!({"spec": {"containers": [{"image": "x"}]}}),
                PatchError::Internal("map: map[image:x] does not contain declared merge key: name".into()),
            ),
            (
                json!({"spec": {"volumes": [{"name": "v"}]}}),
                json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name"], "emptyDir": {}}]}}),
                PatchError::Malformed("invalid patch format of retainKeys".into()),
            ),
            (
                json!({"foo": {}}),
                json!({"foo": {"a": 1}}),
                PatchError::Internal("unable to find api field in struct Pod for the json field \"foo\"".into()),
            ),
            (
                json!({}),
                json!({"$patch": "frob"}),
                PatchError::Internal("unknown patch type: frob in map: map[$patch:frob]".into()),
            ),
            (
                json!({"metadata": {"finalizers": ["a"]}}),
                json!({"metadata": {"finalizers": [1]}}),
                PatchError::Internal("list element types are not identical".into()),
            ),
        ] {
            assert_eq!(error(original, patch), want);
        }
    }
}
