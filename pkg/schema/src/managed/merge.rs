//! The applied configuration on top of the live object. Nothing is removed; leaves of the configuration win.

use super::path::PathElement;
use super::typed::{ListShape, MapShape, Shape, Type};
use serde_json::{Map, Value};

/// Merges `config` into `live`. `Err`: a list of the configuration names an item twice, or not at all.
pub fn merge(live: &Value, config: &Value, ty: Type) -> Result<Value, String> {
    Ok(walk(Some(live), Some(config), ty)?.unwrap_or(Value::Null))
}

fn walk(live: Option<&Value>, config: Option<&Value>, ty: Type) -> Result<Option<Value>, String> {
    let (Some(l), Some(c)) = (live, config) else { return Ok(config.or(live).cloned()) };
    // The shape of the configuration decides; null takes that of the other side.
    let atom = ty.atom();
    let deduced = atom.deduce(Some(c));
    let shape = if c.is_null() { atom.deduce(Some(l)).shape() } else { deduced.shape() };
    match shape {
        Some(Shape::Map(m)) if !m.atomic => {
            let (l_map, c_map) = (l.as_object(), c.as_object());
            if l_map.is_none_or(Map::is_empty) && c_map.is_none_or(Map::is_empty) {
                return Ok(Some(c.clone()));
            }
            let empty = Map::new();
            fields(l_map.unwrap_or(&empty), c_map.unwrap_or(&empty), m)
        }
        Some(Shape::List(list)) if !list.is_atomic() => {
            let (l_items, c_items) = (l.as_array(), c.as_array());
            if l_items.is_none_or(Vec::is_empty) && c_items.is_none_or(Vec::is_empty) {
                return Ok(Some(c.clone()));
            }
            items(l_items.map_or(&[][..], Vec::as_slice), c_items.map_or(&[][..], Vec::as_slice), list)
        }
        _ => Ok(Some(c.clone())),
    }
}

fn fields(live: &Map<String, Value>, config: &Map<String, Value>, shape: MapShape) -> Result<Option<Value>, String> {
    let mut out = Map::new();
    for key in live.keys().chain(config.keys().filter(|k| !live.contains_key(*k))) {
        let ty = shape.child(key).0.unwrap_or(Type::Deduced);
        if let Some(value) = walk(live.get(key), config.get(key), ty)? {
            out.insert(key.clone(), value);
        }
    }
    Ok((!out.is_empty()).then_some(Value::Object(out)))
}

/// The items of a list with their names.
struct Named<'a> {
    items: Vec<(PathElement, &'a Value)>,
}

impl<'a> Named<'a> {
    fn new(items: &'a [Value], shape: ListShape, duplicates: bool) -> Result<Self, String> {
        let mut named: Vec<(PathElement, &Value)> = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            let element = shape.element(item).map_err(|e| format!("element {i}: {e}"))?;
            if !duplicates && named.iter().any(|(e, _)| *e == element) {
                return Err(format!("duplicate entries for key {element}"));
            }
            named.push((element, item));
        }
        Ok(Named { items: named })
    }

    fn has(&self, element: &PathElement) -> bool {
        self.items.iter().any(|(e, _)| e == element)
    }

    /// The item of that name; null when there are several, which are not merged.
    fn get(&self, element: &PathElement) -> Option<&'a Value> {
        let mut same = self.items.iter().filter(|(e, _)| e == element);
        let first = same.next()?.1;
        Some(if same.next().is_some() { &Value::Null } else { first })
    }
}

/// In the order of the configuration, with the items that only the live list has left where they were among them.
fn items(live: &[Value], config: &[Value], shape: ListShape) -> Result<Option<Value>, String> {
    let config = Named::new(config, shape, false)?;
    let live = Named::new(live, shape, true)?;
    let mut shared = config.items.iter().map(|(e, _)| e).filter(|e| live.has(e));
    let mut next_shared = shared.next();
    let mut merged: Vec<&PathElement> = Vec::new();
    let mut out: Vec<Value> = Vec::with_capacity(live.items.len().max(config.items.len()));
    let (mut l, mut c) = (0, 0);
    while l < live.items.len() || c < config.items.len() {
        if let (Some((left, _)), Some((right, item))) = (live.items.get(l), config.items.get(c)) {
            if left == right {
                merged.push(right);
                out.extend(walk(live.get(right), Some(*item), shape.item)?);
                l += 1;
                c += 1;
                next_shared = shared.next();
                continue;
            }
            if config.has(left) && next_shared.is_some_and(|s| s != left) {
                // Shared, but not the one whose turn it is.
                l += 1;
                continue;
            }
        }
        if let Some((left, item)) = live.items.get(l) {
            if !config.has(left) {
                out.push((*item).clone());
                l += 1;
                continue;
            }
            if merged.contains(&left) {
                l += 1;
            }
        }
        if let Some((right, item)) = config.items.get(c) {
            merged.push(right);
            out.extend(walk(live.get(right), Some(*item), shape.item)?);
            c += 1;
            if next_shared == Some(right) {
                next_shared = shared.next();
            }
        }
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}
