//! Visits every struct value inside a value together with its definition, parents before children. Overlays (defaults,
//! validations by definition) hang on it, so that a pod template is treated the same wherever it stands.

use crate::types::{Field, Node, Object};
use isopod_api::Path;
use serde_json::{Map, Value};

/// Calls `visit` for every struct value in `value`, parents before children. `visit` may change the value; the children
/// are those that stand there afterwards.
pub fn objects_mut(value: &mut Value, object: &Object, visit: &mut dyn FnMut(&Object, &mut Map<String, Value>)) {
    let Value::Object(map) = value else { return };
    visit(object, map);
    for field in object.with_structs() {
        match map.get_mut(&field.name) {
            Some(child) if !child.is_null() => node_mut(child, &field.node, visit),
            _ => absent(map, object, field, visit),
        }
    }
}

/// Go holds a struct that is no pointer even where JSON says nothing about it: it is visited, and stays where `visit` put
/// something into it.
fn absent(
    map: &mut Map<String, Value>,
    object: &Object,
    field: &Field,
    visit: &mut dyn FnMut(&Object, &mut Map<String, Value>),
) {
    let Node::Object(o) = &field.node else { return };
    if field.pointer || object.custom || o.get().custom {
        return;
    }
    let mut child = Value::Object(Map::new());
    objects_mut(&mut child, o.get(), visit);
    if child.as_object().is_some_and(|m| !m.is_empty()) {
        map.insert(field.name.clone(), child);
    }
}

fn node_mut(value: &mut Value, node: &Node, visit: &mut dyn FnMut(&Object, &mut Map<String, Value>)) {
    match (node, value) {
        (
            Node::Object(o) | Node::SchemaOrBool(o) | Node::SchemaOrArray(o) | Node::SchemaOrStringArray(o),
            v @ Value::Object(_),
        ) => {
            objects_mut(v, o.get(), visit);
        }
        (Node::SchemaOrArray(o), Value::Array(items)) => items.iter_mut().for_each(|v| objects_mut(v, o.get(), visit)),
        (Node::List(list), Value::Array(items)) => items.iter_mut().for_each(|v| node_mut(v, &list.item, visit)),
        (Node::Map(m), Value::Object(map)) => map.values_mut().for_each(|v| node_mut(v, &m.value, visit)),
        _ => {}
    }
}

/// Read-only twin of [`objects_mut`], with the path of each struct value. Paths are those of field errors.
pub fn objects(
    value: &Value,
    object: &Object,
    path: &Path,
    visit: &mut dyn FnMut(&Object, &Map<String, Value>, &Path),
) {
    let Value::Object(map) = value else { return };
    visit(object, map, path);
    for field in object.with_structs() {
        if let Some(child) = map.get(&field.name) {
            node(child, &field.node, &path.child(&field.name), visit);
        }
    }
}

fn node(value: &Value, node_type: &Node, path: &Path, visit: &mut dyn FnMut(&Object, &Map<String, Value>, &Path)) {
    match (node_type, value) {
        (
            Node::Object(o) | Node::SchemaOrBool(o) | Node::SchemaOrArray(o) | Node::SchemaOrStringArray(o),
            Value::Object(_),
        ) => {
            objects(value, o.get(), path, visit);
        }
        (Node::SchemaOrArray(o), Value::Array(items)) => {
            for (i, v) in items.iter().enumerate() {
                objects(v, o.get(), &path.index(i), visit);
            }
        }
        (Node::List(list), Value::Array(items)) => {
            for (i, v) in items.iter().enumerate() {
                node(v, &list.item, &path.index(i), visit);
            }
        }
        (Node::Map(m), Value::Object(map)) => {
            for (k, v) in map {
                node(v, &m.value, &path.key(k), visit);
            }
        }
        _ => {}
    }
}

/// What [`fields`] sees: the field and its value.
pub type FieldVisitor<'a> = dyn FnMut(&Object, &Field, &Value, &Path) + 'a;

/// Calls `visit` for every field that is present, anywhere inside `value`.
pub fn fields(value: &Value, object: &Object, path: &Path, visit: &mut FieldVisitor) {
    objects(value, object, path, &mut |o, map, at| {
        for field in &o.fields {
            if let Some(v) = map.get(&field.name) {
                visit(o, field, v, &at.child(&field.name));
            }
        }
    });
}
