//! Lists whose schema says that they are sets or maps (`x-kubernetes-list-type`): compared without their order, and put
//! together as sets and maps are (`apiserver/pkg/cel/common/valuesunstructured.go`).

use super::value::{Key, Val};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

#[derive(Debug)]
pub struct Unordered {
    pub items: Arc<[Val]>,
    /// The fields by which elements are told apart, as JSON names them; empty: the list is a set.
    pub keys: Arc<[String]>,
}

const SCALARS_ONLY: &str = "listSet operations are only supported on lists of scalar values";

impl Unordered {
    /// What an element is known by.
    fn key(&self, item: &Val) -> String {
        let shown = |v: &Val| v.to_json().map(|j| j.to_string()).unwrap_or_default();
        if self.keys.is_empty() {
            return shown(item);
        }
        let field = |name: &String| match item {
            Val::Message(_, fields) => fields.get(name).map(shown),
            Val::Map(map) => map.get(&Key::Text(name.as_str().into())).map(shown),
            _ => None,
        };
        self.keys.iter().map(|k| field(k).unwrap_or_default() + "\0").collect()
    }

    /// An error where it is a set of what cannot be compared so.
    pub fn comparable(&self) -> Result<(), String> {
        let is_scalar = |v: &Val| !matches!(v, Val::List(_) | Val::Unordered(_) | Val::Map(_) | Val::Message(..));
        let fine = !self.keys.is_empty() || self.items.iter().all(is_scalar);
        if fine { Ok(()) } else { Err(SCALARS_ONLY.to_owned()) }
    }

    pub fn equals(&self, other: &[Val]) -> bool {
        if self.items.len() != other.len() {
            return false;
        }
        let mine: HashMap<String, &Val> = self.items.iter().map(|v| (self.key(v), v)).collect();
        let mut seen = HashSet::new();
        let found = other.iter().all(|v| {
            let key = self.key(v);
            let same = mine.get(&key).is_some_and(|m| m.equals(v));
            seen.insert(key);
            same
        });
        found && seen.len() == mine.len()
    }

    /// Its elements, then those of `other`, which take the place of what has the same keys.
    pub fn join(&self, other: &[Val]) -> Val {
        let mut items = self.items.to_vec();
        let mut places: HashMap<String, usize> = items.iter().enumerate().map(|(i, v)| (self.key(v), i)).collect();
        for item in other {
            match places.get(&self.key(item)) {
                Some(at) => items[*at] = item.clone(),
                None => {
                    places.insert(self.key(item), items.len());
                    items.push(item.clone());
                }
            }
        }
        Val::Unordered(Arc::new(Unordered { items: items.into(), keys: self.keys.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn list(items: &Value, keys: &[&str]) -> Val {
        let Val::List(items) = Val::from_json(items) else { panic!("{items} is a list") };
        Val::Unordered(Arc::new(Unordered { items, keys: keys.iter().map(|k| (*k).to_owned()).collect() }))
    }

    #[test]
    fn order_does_not_matter() {
        let (a, b) = (json!([1, 2, 3]), json!([3, 1, 2]));
        assert!(list(&a, &[]).equals(&list(&b, &[])) && list(&a, &[]).equals(&Val::from_json(&b)));
        assert!(!Val::from_json(&a).equals(&list(&b, &[])) && !list(&a, &[]).equals(&list(&json!([1, 1, 2]), &[])));
        let (a, b) = (json!([{"k": "x", "v": 1}, {"k": "y"}]), json!([{"k": "y"}, {"k": "x", "v": 1}]));
        assert!(list(&a, &["k"]).equals(&list(&b, &["k"])));
        assert!(!list(&a, &["k"]).equals(&list(&json!([{"k": "y"}, {"k": "x", "v": 2}]), &["k"])));
    }

    #[test]
    fn joined_as_sets_and_maps() {
        let Val::Unordered(set) = list(&json!(["a", "b"]), &[]) else { panic!("it is a list") };
        let joined = set.join(&[Val::text("c"), Val::text("a"), Val::text("c")]);
        assert_eq!(joined.to_json(), Ok(json!(["a", "b", "c"])));
        let Val::Unordered(map) = list(&json!([{"k": 1, "v": 1}, {"k": 2}]), &["k"]) else { panic!("it is a list") };
        let joined = map.join(&[Val::from_json(&json!({"k": 3})), Val::from_json(&json!({"k": 1, "v": 9}))]);
        assert_eq!(joined.to_json(), Ok(json!([{"k": 1, "v": 9}, {"k": 2}, {"k": 3}])));
        assert!(list(&json!([[1]]), &[]).equals(&list(&json!([[1]]), &[])));
        let Val::Unordered(nested) = list(&json!([[1]]), &[]) else { panic!("it is a list") };
        assert_eq!(nested.comparable(), Err(SCALARS_ONLY.to_owned()));
    }
}
