//! Where the objects with a value of one label are: the label by which the server itself looks objects of a kind up
//! ([`Hooks::indexed_label`](isopod_kinds::kind::Hooks::indexed_label)).
//!
//! Invariant: it names exactly the entries of its cache that have the label.

use crate::cache::entry::Entry;
use isopod_api::selector::Labels;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Keys of entries, by namespace and value.
#[derive(Default)]
pub struct LabelIndex(HashMap<String, BTreeSet<Arc<str>>>);

fn place(namespace: &str, value: &str) -> String {
    format!("{namespace}/{value}")
}

impl LabelIndex {
    /// An entry takes the place of another one of the same key, or comes, or goes.
    pub fn replace(&mut self, label: &str, old: Option<&Entry>, new: Option<&Entry>) {
        if let Some((entry, value)) = old.and_then(|e| Some((e, e.label(label)?))) {
            let at = place(entry.namespace(), value);
            if let Some(keys) = self.0.get_mut(&at) {
                keys.remove(&*entry.key);
                if keys.is_empty() {
                    self.0.remove(&at);
                }
            }
        }
        if let Some((entry, value)) = new.and_then(|e| Some((e, e.label(label)?))) {
            self.0.entry(place(entry.namespace(), value)).or_default().insert(Arc::from(&*entry.key));
        }
    }

    pub fn keys(&self, namespace: &str, value: &str) -> impl Iterator<Item = &Arc<str>> {
        self.0.get(&place(namespace, value)).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn entries_are_found_by_namespace_and_value() {
        let slice = isopod_kinds::table::builtin().into_iter().find(|k| k.gvk.kind == "EndpointSlice").unwrap();
        let label = slice.hooks.indexed_label().unwrap();
        let entry = |key: &str, service: Option<&str>| {
            let labels = service.map_or(json!({}), |s| json!({label: s}));
            let stored =
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"labels": labels}});
            Entry::new(&slice, key, stored.to_string().as_bytes(), 1).unwrap()
        };
        let mut index = LabelIndex::default();
        let found = |index: &LabelIndex, namespace: &str, service: &str| {
            index.keys(namespace, service).map(|k| k.to_string()).collect::<Vec<_>>()
        };
        let (b, a) = (entry("n/b", Some("web")), entry("n/a", Some("web")));
        for e in [&b, &a, &entry("m/c", Some("web")), &entry("n/d", None), &entry("n/e", Some("other"))] {
            index.replace(label, None, Some(e));
        }
        assert_eq!(found(&index, "n", "web"), ["n/a", "n/b"]);
        assert_eq!(found(&index, "m", "web"), ["m/c"]);
        index.replace(label, Some(&a), Some(&entry("n/a", Some("other"))));
        index.replace(label, Some(&b), None);
        assert_eq!(found(&index, "n", "web"), [""; 0]);
        assert_eq!(found(&index, "n", "other"), ["n/a", "n/e"]);
        assert_eq!(index.0.len(), 2, "what is empty takes no place");
    }
}
