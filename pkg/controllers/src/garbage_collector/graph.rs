//! Who owns whom, by uid, as the watches say.

use super::{FOREGROUND, ORPHAN};
use isopod_client::{Resource, View};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// The little of an object's metadata that ownership needs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Linked {
    metadata: LinkedMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LinkedMeta {
    name: Box<str>,
    namespace: Box<str>,
    uid: Box<str>,
    resource_version: Box<str>,
    owner_references: Option<Vec<Owner>>,
    finalizers: Option<Vec<Box<str>>>,
    deletion_timestamp: Option<Box<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Owner {
    uid: Box<str>,
    block_owner_deletion: Option<bool>,
}

impl View for Linked {
    const METADATA_ONLY: bool = true;

    fn name(&self) -> &str {
        &self.metadata.name
    }
    fn namespace(&self) -> &str {
        &self.metadata.namespace
    }
    fn uid(&self) -> &str {
        &self.metadata.uid
    }
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// An object in the graph.
#[derive(Clone, Debug)]
pub struct Object {
    pub resource: Arc<Resource>,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub deleting: bool,
    pub has_orphan_finalizer: bool,
    pub has_foreground_finalizer: bool,
    owners: Vec<Owner>,
}

impl Object {
    pub fn new(resource: &Arc<Resource>, linked: &Linked) -> Self {
        let m = &linked.metadata;
        let has = |f: &str| m.finalizers.iter().flatten().any(|x| **x == *f);
        Object {
            resource: resource.clone(),
            namespace: m.namespace.to_string(),
            name: m.name.to_string(),
            uid: m.uid.to_string(),
            deleting: m.deletion_timestamp.is_some(),
            has_orphan_finalizer: has(ORPHAN),
            has_foreground_finalizer: has(FOREGROUND),
            owners: m.owner_references.clone().unwrap_or_default(),
        }
    }

    /// It is being deleted and waits for its dependents.
    pub fn deletes_dependents(&self) -> bool {
        self.deleting && self.has_foreground_finalizer
    }

    fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|o| *o.uid == *owner && o.block_owner_deletion == Some(true))
    }
}

#[derive(Default)]
pub struct Graph {
    objects: HashMap<String, Object>,
    /// Uids of dependents by the uid of their owner, known or not.
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Object> {
        self.objects.get(uid)
    }

    pub fn dependents(&self, owner: &str) -> Vec<&Object> {
        self.dependents.get(owner).into_iter().flatten().filter_map(|uid| self.objects.get(uid)).collect()
    }

    /// The dependents that must go before their owner may.
    pub fn blocking(&self, owner: &str) -> Vec<&Object> {
        self.dependents(owner).into_iter().filter(|d| d.blocks(owner)).collect()
    }

    /// Puts an object in, or its new state, and returns the uids to look at.
    pub fn insert(&mut self, new: Object) -> Vec<String> {
        let old = self.objects.insert(new.uid.clone(), new.clone());
        let mut wake = Vec::new();
        let owners_changed = old.as_ref().is_none_or(|o| o.owners != new.owners);
        if owners_changed {
            if let Some(old) = &old {
                self.unlink(old, &mut wake);
            }
            for owner in &new.owners {
                self.dependents.entry(owner.uid.to_string()).or_default().insert(new.uid.clone());
            }
            // An owner that is known and stays needs no look; one that waits for its dependents, or is not known, does.
            let settled = |o: &Owner| self.objects.get(&*o.uid).is_some_and(|o| !o.deletes_dependents());
            if !new.owners.iter().all(settled) {
                wake.push(new.uid.clone());
            }
        }
        let started = new.deleting && old.as_ref().is_none_or(|o| !o.deleting);
        let finalizers_changed = old.as_ref().is_some_and(|o| {
            (o.has_orphan_finalizer, o.has_foreground_finalizer)
                != (new.has_orphan_finalizer, new.has_foreground_finalizer)
        });
        if new.deleting && (started || finalizers_changed) {
            if new.has_orphan_finalizer || new.has_foreground_finalizer {
                wake.push(new.uid.clone());
            }
            // Those that it blocks may go on: a dependent that is itself deleting in the foreground is not deleted again.
            wake.extend(self.waiting_owners(&new));
        }
        wake
    }

    /// Takes an object out and returns the uids to look at: its dependents, and owners that waited for it.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(old) = self.objects.remove(uid) else { return Vec::new() };
        let mut wake: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        self.unlink(&old, &mut wake);
        wake
    }

    fn waiting_owners(&self, object: &Object) -> Vec<String> {
        let waits = |o: &&Owner| self.objects.get(&*o.uid).is_some_and(Object::deletes_dependents);
        object.owners.iter().filter(waits).map(|o| o.uid.to_string()).collect()
    }

    fn unlink(&mut self, old: &Object, wake: &mut Vec<String>) {
        wake.extend(self.waiting_owners(old));
        for owner in &old.owners {
            if let Some(set) = self.dependents.get_mut(&*owner.uid) {
                set.remove(&old.uid);
                if set.is_empty() {
                    self.dependents.remove(&*owner.uid);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(uid: &str, owners: &[(&str, bool)], extra: Value) -> Object {
        let owners: Vec<Value> =
            owners.iter().map(|(uid, block)| json!({"uid": uid, "blockOwnerDeletion": block})).collect();
        let mut v = json!({"metadata": {"uid": uid, "name": uid, "ownerReferences": owners}});
        isopod_client::calls::merge(&mut v, &extra);
        let linked: Linked = serde_json::from_value(v).unwrap();
        Object::new(&Arc::new(Resource::namespaced("", "v1", "pods")), &linked)
    }

    fn going(finalizer: &str) -> Value {
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer]}})
    }

    #[test]
    fn background_deletion_wakes_the_dependents() {
        let mut g = Graph::default();
        assert_eq!(g.insert(object("d", &[], json!({}))), [""; 0]);
        assert_eq!(g.insert(object("rs", &[("d", true)], json!({}))), [""; 0], "its owner is known");
        assert_eq!(g.insert(object("pod", &[("rs", true)], json!({}))), [""; 0]);
        assert_eq!(g.remove("d"), ["rs"]);
        assert_eq!(g.remove("rs"), ["pod"]);
        // An owner that was never seen has to be asked for.
        assert_eq!(g.insert(object("stray", &[("gone", false)], json!({}))), ["stray"]);
    }

    #[test]
    fn foreground_deletion_waits_for_those_that_block() {
        let mut g = Graph::default();
        g.insert(object("d", &[], json!({})));
        g.insert(object("rs", &[("d", true)], json!({})));
        g.insert(object("free", &[("d", false)], json!({})));
        assert_eq!(g.insert(object("d", &[], going(FOREGROUND))), ["d"]);
        let blocking: Vec<&str> = g.blocking("d").iter().map(|o| o.uid.as_str()).collect();
        assert_eq!(blocking, ["rs"]);
        assert_eq!(g.remove("rs"), ["d"], "the owner can go on");
        assert!(g.blocking("d").is_empty());
        // A dependent that comes late has to go too.
        assert_eq!(g.insert(object("late", &[("d", true)], json!({}))), ["late"]);
        // And one that lets go of its owner wakes it.
        assert_eq!(g.insert(object("late", &[], json!({}))), ["d"]);
    }

    #[test]
    fn orphaning_wakes_the_owner_only() {
        let mut g = Graph::default();
        g.insert(object("d", &[], json!({})));
        g.insert(object("rs", &[("d", true)], json!({})));
        assert_eq!(g.insert(object("d", &[], going(ORPHAN))), ["d"]);
        assert_eq!(g.dependents("d").len(), 1);
    }
}
