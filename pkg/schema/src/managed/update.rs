//! How ownership moves: who writes a field owns it, an applier that no longer says it gives it up, and two appliers that
//! want different values conflict.

use super::compare::{Comparison, compare};
use super::entries::{ManagerId, Managers, Operation, Owner};
use super::merge::merge;
use super::path::{Path, equal};
use super::remove::{ensure_named, reconcile, remove};
use super::set::{Filter, Set};
use super::typed::{Type, to_set};
use crate::types::Object;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A value with its type.
#[derive(Clone, Debug)]
pub struct Typed<'a> {
    pub value: Cow<'a, Value>,
    pub schema: Arc<Object>,
    pub api_version: String,
}

impl Typed<'_> {
    fn ty(&self) -> Type<'_> {
        Type::of(&self.schema)
    }
}

/// The served versions of a kind.
pub trait Versions {
    /// The schema of another version. `None`: it is not served, and what is owned in it is forgotten.
    fn schema(&self, api_version: &str) -> Option<Arc<Object>>;
    /// The value in another served version.
    fn convert(&self, value: &Value, from: &str, to: &str) -> Value;
}

/// Another manager owns a field that an applier wants to have another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub manager: ManagerId,
    pub path: Path,
}

/// The elements that the paths of all conflicts have together. A deep object could have more of them than there is memory.
const TOLD: usize = 1 << 20;

pub(super) struct Updater<'a> {
    pub versions: &'a dyn Versions,
    pub filter: &'a Filter,
}

impl Updater<'_> {
    fn convert<'v>(&self, object: &Typed<'v>, api_version: &str) -> Option<Typed<'v>> {
        if object.api_version == api_version {
            return Some(object.clone());
        }
        let schema = self.versions.schema(api_version)?;
        let value = self.versions.convert(&object.value, &object.api_version, api_version);
        Some(Typed { value: Cow::Owned(value), schema, api_version: api_version.to_owned() })
    }

    /// After a write of another kind than apply: `id` owns what it changed, nobody owns what is gone.
    pub fn update(&self, live: &Typed, new: &Typed, managers: &mut Managers, id: &ManagerId) {
        self.reconcile(live, managers);
        // Forced: there are no conflicts.
        let changes = self.moved(live, new, managers, id, true).unwrap_or_default();
        let mut own = managers.0.remove(id).unwrap_or_default();
        own.set.subtract(&changes.removed, false);
        own.set.absorb(changes.modified);
        own.set.absorb(changes.added);
        let set = self.filter.apply(own.set);
        if !set.is_empty() {
            managers.0.insert(id.clone(), Owner { set, api_version: new.api_version.clone(), time: own.time });
        }
    }

    /// Merges a configuration into the live object. `Ok(None)`: the object is as it was.
    pub fn apply(
        &self,
        live: &Typed,
        config: &Typed,
        managers: &mut Managers,
        id: &ManagerId,
        force: bool,
    ) -> Result<Option<Value>, Failure> {
        self.reconcile(live, managers);
        let merged = merge(&live.value, &config.value, live.ty()).map_err(Failure::Merge)?;
        let mut new = Typed { value: Cow::Owned(merged), ..live.clone() };
        let set = self.filter.apply(to_set(&config.value, config.ty()));
        let time = managers.0.get(id).and_then(|o| o.time.clone());
        let last = managers.0.insert(id.clone(), Owner { set, api_version: config.api_version.clone(), time });
        if let Some(last) = last.filter(|l| !l.set.is_empty()) {
            new = self.prune(new, managers, &last);
        }
        self.moved(live, &new, managers, id, force).map_err(Failure::Conflicts)?;
        Ok((!equal(&live.value, &new.value)).then(|| new.value.into_owned()))
    }

    fn reconcile(&self, live: &Typed, managers: &mut Managers) {
        managers.0.retain(|_, owner| {
            let schema = if owner.api_version == live.api_version {
                Some(live.schema.clone())
            } else {
                self.versions.schema(&owner.api_version)
            };
            let Some(schema) = schema else { return false };
            if let Some(set) = reconcile(&owner.set, Type::of(&schema)) {
                owner.set = set;
            }
            true
        });
    }

    /// Takes from the other managers what changed. `Err`: some of it was theirs and `force` is off, and `managers` is of no use any
    /// more.
    fn moved(
        &self,
        live: &Typed,
        new: &Typed,
        managers: &mut Managers,
        id: &ManagerId,
        force: bool,
    ) -> Result<Comparison, Vec<Conflict>> {
        let mut changes: BTreeMap<String, Option<Comparison>> = BTreeMap::new();
        let own = compare(&live.value, &new.value, live.ty()).filter(self.filter);
        changes.insert(live.api_version.clone(), Some(own));
        for owner in managers.0.values() {
            if !changes.contains_key(&owner.api_version) {
                let (a, b) = (self.convert(live, &owner.api_version), self.convert(new, &owner.api_version));
                let change = a.zip(b).map(|(a, b)| compare(&a.value, &b.value, a.ty()).filter(self.filter));
                changes.insert(owner.api_version.clone(), change);
            }
        }
        let mut conflicts = Vec::new();
        let mut left = TOLD;
        managers.0.retain(|other, owner| {
            let Some(Some(change)) = changes.get(&owner.api_version) else { return false };
            if other != id {
                let mut lost = owner.set.intersection(&change.modified);
                lost.absorb(owner.set.intersection(&change.added));
                if !force {
                    let paths = lost.paths_within(&mut left).into_iter();
                    conflicts.extend(paths.map(|path| Conflict { manager: other.clone(), path }));
                }
                owner.set.subtract(&lost, false);
                owner.set.subtract(&change.removed, false);
            }
            !owner.set.is_empty()
        });
        if !force && !conflicts.is_empty() {
            return Err(conflicts);
        }
        Ok(changes.remove(&live.api_version).flatten().unwrap_or_default())
    }

    /// Removes what the manager applied last time and does not now, unless somebody else owns it.
    fn prune<'v>(&self, merged: Typed<'v>, managers: &Managers, last: &Owner) -> Typed<'v> {
        let api_version = merged.api_version.clone();
        let Some(merged_then) = self.convert(&merged, &last.api_version) else { return merged };
        let ty = merged_then.ty();
        let last_set = ensure_named(&last.set, ty);
        let without = remove(&merged_then.value, &last_set, ty);
        let pruned = Typed { value: Cow::Owned(without), ..merged_then.clone() };
        let pruned = self.add_back_owned(&merged_then, pruned, managers, &last.api_version);
        // What is gone and was never this manager's comes back as well.
        let Some(pruned) = self.convert(&pruned, &last.api_version) else { return merged };
        let named = |t: &Typed| ensure_named(&to_set(&t.value, t.ty()), t.ty());
        let gone = named(&merged_then).difference(&named(&pruned)).intersection(&last_set);
        let value = remove(&merged_then.value, &gone, ty);
        let result = Typed { value: Cow::Owned(value), ..merged_then.clone() };
        self.convert(&result, &api_version).unwrap_or(merged)
    }

    /// What pruning took and a manager owns, version by version, that of the pruned object first.
    fn add_back_owned<'v>(&self, merged: &Typed<'v>, pruned: Typed<'v>, managers: &Managers, first: &str) -> Typed<'v> {
        let mut owned: BTreeMap<&str, Set> = BTreeMap::new();
        for owner in managers.0.values() {
            let set = owned.entry(&owner.api_version).or_default();
            *set = set.union(&owner.set);
        }
        let mut versions: Vec<&str> = owned.keys().copied().collect();
        versions.sort_by_key(|v| *v != first);
        let (mut merged, mut pruned) = (merged.clone(), pruned);
        for version in versions {
            let Some((all, left)) = self.convert(&merged, version).zip(self.convert(&pruned, version)) else {
                continue;
            };
            let ty = all.ty();
            let named = |set: &Set| ensure_named(set, ty);
            let keep = named(&to_set(&left.value, ty)).union(&named(&owned[version]));
            let gone = named(&to_set(&all.value, ty)).difference(&keep);
            let value = remove(&all.value, &gone, ty);
            pruned = Typed { value: Cow::Owned(value), ..all.clone() };
            merged = all;
        }
        pruned
    }
}

/// Why an apply came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    Conflicts(Vec<Conflict>),
    Merge(String),
}

impl ManagerId {
    /// The manager as conflicts show it.
    pub fn shown(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}
