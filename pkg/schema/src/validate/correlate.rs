//! An object beside the one that it replaces: which old value a new one stands for, and whether the two are equal
//! (`apiserver/pkg/cel/common/equality.go`). An update is not told about faults of what it leaves as it was (KEP-4008).
//!
//! Invariant: values are compared as their schema says: lists that are maps by their keys, whatever their order; what the
//! schema does not know has no old value, so that it counts as changed.

use serde_json::Value;
use std::cell::OnceCell;
use std::collections::HashMap;

/// A new value, the old one that it stands for, and their schema.
pub struct Correlated<'a> {
    new: &'a Value,
    old: &'a Value,
    schema: &'a Value,
    equal: OnceCell<bool>,
    places: OnceCell<MapList<'a>>,
}

impl<'a> Correlated<'a> {
    pub fn new(new: &'a Value, old: &'a Value, schema: &'a Value) -> Self {
        Correlated { new, old, schema, equal: OnceCell::new(), places: OnceCell::new() }
    }

    /// What stands under a name in both objects.
    pub fn key(&self, name: &str) -> Option<Correlated<'a>> {
        let (new, old) = (self.new.as_object()?.get(name)?, self.old.as_object()?.get(name)?);
        let of_all = || self.schema.get("additionalProperties").filter(|s| s.is_object());
        let schema = self.schema.get("properties").and_then(|p| p.get(name)).or_else(of_all)?;
        Some(Correlated::new(new, old, schema))
    }

    /// The element of the new list, and that of the old one with its keys.
    pub fn index(&self, i: usize) -> Option<Correlated<'a>> {
        let (new, old) = (self.new.as_array()?.get(i)?, self.old.as_array()?);
        if self.schema.get("x-kubernetes-list-type")?.as_str()? != "map" {
            return None;
        }
        let keys = self.schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
        let keys = || keys.into_iter().flatten().filter_map(Value::as_str);
        let at = self.places.get_or_init(|| MapList::new(old, keys())).find(new)?;
        Some(Correlated::new(new, old.get(at)?, self.schema.get("items")?))
    }

    pub fn is_equal(&self) -> bool {
        *self.equal.get_or_init(|| self.compare())
    }

    fn compare(&self) -> bool {
        match (self.new, self.old) {
            (Value::Array(new), Value::Array(old)) if new.len() == old.len() => {
                // Without keys the list is compared as a whole.
                let by_keys = self.schema.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("map");
                if !by_keys {
                    return new == old;
                }
                (0..new.len()).all(|i| self.index(i).is_some_and(|c| c.is_equal()))
            }
            (Value::Object(new), Value::Object(old)) if new.len() == old.len() => {
                new.keys().all(|k| self.key(k).is_some_and(|c| c.is_equal()))
            }
            (Value::Array(_) | Value::Object(_), _) => false,
            (new, old) => new == old,
        }
    }
}

/// The places of a list's elements by their keys. Of those that have the same ones the first counts.
pub struct MapList<'a> {
    keys: Vec<&'a str>,
    places: HashMap<String, usize>,
}

impl<'a> MapList<'a> {
    pub fn new(items: &[Value], keys: impl Iterator<Item = &'a str>) -> Self {
        let mut list = MapList { keys: keys.collect(), places: HashMap::new() };
        for (i, item) in items.iter().enumerate() {
            if let Some(key) = list.key(item) {
                list.places.entry(key).or_insert(i);
            }
        }
        list
    }

    /// Where the list has an element with the keys of this one.
    pub fn find(&self, item: &Value) -> Option<usize> {
        self.places.get(&self.key(item)?).copied()
    }

    /// All keys of an element; each must be there and be a scalar.
    fn key(&self, item: &Value) -> Option<String> {
        let mut all = String::new();
        for name in &self.keys {
            match item.get(name)? {
                scalar @ (Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
                    all.push_str(&scalar.to_string());
                    all.push('\0');
                }
                _ => return None,
            }
        }
        (!all.is_empty()).then_some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"properties": {
            "n": {"type": "integer"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "plain": {"type": "array", "items": {"type": "integer"}},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "n"],
                "items": {"type": "object", "properties": {"name": {}, "n": {}, "v": {}}}},
        }})
    }

    #[test]
    fn equality_is_that_of_the_schema() {
        let schema = schema();
        for (new, old, equal) in [
            (json!({"n": 1}), json!({"n": 1}), true),
            (json!({"n": 1}), json!({"n": 1.0}), false),
            (json!({"n": null}), json!({"n": null}), true),
            (json!({"n": 1}), json!({"n": 1, "labels": {}}), false),
            (json!({"labels": {"a": "b"}}), json!({"labels": {"a": "b"}}), true),
            (json!({"plain": [1, 2]}), json!({"plain": [1, 2]}), true),
            (json!({"plain": [1, 2]}), json!({"plain": [2, 1]}), false),
            (
                json!({"ports": [{"name": "a", "n": 1, "v": 1}, {"name": "b", "n": 1}]}),
                json!({"ports": [{"name": "b", "n": 1}, {"name": "a", "n": 1, "v": 1}]}),
                true,
            ),
            (json!({"ports": [{"name": "a", "n": 1}]}), json!({"ports": [{"name": "a", "n": "1"}]}), false),
            // What the schema does not know may have changed in any way.
            (json!({"other": 1}), json!({"other": 1}), false),
        ] {
            assert_eq!(Correlated::new(&new, &old, &schema).is_equal(), equal, "{new} {old}");
        }
    }

    #[test]
    fn what_has_an_old_value() {
        let schema = schema();
        let new = json!({"n": 2, "plain": [1], "ports": [{"name": "new", "n": 1}, {"name": "a", "n": 1, "v": 2}]});
        let old = json!({"plain": [1], "ports": [{"name": "a", "n": 1, "v": 1}, {"name": "a", "n": 1, "v": 3}]});
        let root = Correlated::new(&new, &old, &schema);
        assert!(root.key("n").is_none());
        assert!(root.key("plain").is_some_and(|c| c.is_equal() && c.index(0).is_none()));
        let ports = root.key("ports").expect("both have ports");
        assert!(ports.index(0).is_none());
        assert_eq!(ports.index(1).map(|c| c.old["v"].clone()), Some(json!(1)));
    }
}
