//! Ownership through `scale`: an owner of an object's `spec.replicas` is an owner of the `Scale`'s, and the other way round.

use super::entries::{Managers, Owner};
use super::path::{Path, PathElement};
use super::set::Set;
use serde_json::Value;

const SCALE: &str = "autoscaling/v1";

/// The entries of an object seen through its `Scale`.
pub struct Scale {
    parent: Managers,
    api_version: String,
    replicas: Path,
}

impl Scale {
    /// `entries`: the object's; `api_version`: the version it is asked for; `replicas`: where they lie in it.
    pub fn new(entries: &Value, api_version: &str, replicas: &[&str]) -> Result<Self, String> {
        let replicas = replicas.iter().map(|p| PathElement::field(p)).collect();
        Ok(Scale { parent: Managers::from_json(entries)?, api_version: api_version.to_owned(), replicas })
    }

    fn set(&self) -> Set {
        let mut set = Set::default();
        set.insert(self.replicas.iter().cloned());
        set
    }

    /// The `managedFields` of the `Scale`. `known`: whether a version of the object is served.
    pub fn entries(&self, known: &dyn Fn(&str) -> bool) -> Option<Value> {
        let mut managers = Managers::default();
        for (id, owner) in self.parent.0.iter().filter(|(_, o)| known(&o.api_version) && o.set.has(&self.replicas)) {
            let owner =
                Owner { set: Set::of(&[&["spec", "replicas"]]), api_version: SCALE.into(), time: owner.time.clone() };
            managers.0.insert(id.clone(), owner);
        }
        managers.to_json()
    }

    /// The `managedFields` of the object after the `Scale` was written with these.
    pub fn to_parent(&self, scale: &Value, known: &dyn Fn(&str) -> bool) -> Result<Option<Value>, String> {
        let mut of_scale = Managers::from_json(scale)?.0;
        let mut managers = Managers::default();
        for (id, owner) in self.parent.0.iter().filter(|(_, o)| known(&o.api_version)) {
            let keeps = !owner.set.has(&self.replicas) || of_scale.remove(id).is_some();
            let set = if keeps { owner.set.clone() } else { owner.set.difference(&self.set()) };
            if !set.is_empty() {
                managers.0.insert(id.clone(), Owner { set, ..owner.clone() });
            }
        }
        let replicas = Set::of(&[&["spec", "replicas"]]);
        for (id, owner) in of_scale {
            if !owner.set.intersection(&replicas).is_empty() {
                let time = self.parent.0.get(&id).and_then(|o| o.time.clone());
                managers.0.insert(id, Owner { set: self.set(), api_version: self.api_version.clone(), time });
            }
        }
        Ok(managers.to_json())
    }
}
