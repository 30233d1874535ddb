//! The state of one pass: the replica sets as they will be after the steps so far, and the steps.

pub mod recreate;
pub mod rolling;

use super::plan::Plan;
use super::{API_VERSION, KIND, revision, scale, status};
use crate::op::Op;
use crate::ownership;
use crate::template;
use isopod_client::events::{Kind, ObjectRef};
use isopod_client::views::{Condition, Deployment, DeploymentStatus, ReplicaSet};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

type Calculate = fn(&Deployment, &[ReplicaSet], Option<&ReplicaSet>, Timestamp) -> DeploymentStatus;

pub struct Rollout {
    /// With the conditions that this pass has set.
    pub d: Deployment,
    written: Deployment,
    /// Oldest first.
    pub old: Vec<ReplicaSet>,
    pub new: Option<ReplicaSet>,
    now: Timestamp,
    ops: Vec<Op>,
    look_again: Option<Duration>,
}

impl Rollout {
    pub fn new(d: &Deployment, sets: &[Arc<ReplicaSet>], now: Timestamp) -> Self {
        let wanted = d.spec.template.parse();
        let mut old: Vec<ReplicaSet> = sets.iter().map(|s| (**s).clone()).collect();
        old.sort_by(by_age);
        // Of several with the wanted template the oldest is the new one.
        let at = old.iter().position(|s| template::are_equal(&s.spec.template.parse(), &wanted));
        let new = at.map(|i| old.remove(i));
        Rollout { d: d.clone(), written: d.clone(), old, new, now, ops: Vec::new(), look_again: None }
    }

    pub fn finish(self) -> Plan {
        Plan { ops: self.ops, look_again: self.look_again }
    }

    /// All sets, the new one last.
    pub fn all(&self) -> Vec<ReplicaSet> {
        self.old.iter().chain(&self.new).cloned().collect()
    }

    pub fn total(&self) -> i32 {
        self.old.iter().chain(&self.new).map(scale::size).sum()
    }

    fn about(&self) -> ObjectRef {
        ObjectRef::new(API_VERSION, KIND, &self.d.metadata)
    }

    pub fn event(&mut self, kind: Kind, reason: &'static str, message: String) {
        self.ops.push(Op::event(&self.about(), kind, reason, message));
    }

    /// Sets a condition now, apart from the status at the end.
    pub fn set_condition(&mut self, condition: Condition) {
        status::set(&mut self.d.status.conditions, condition);
        self.write_conditions();
    }

    fn write_conditions(&mut self) {
        let body = json!({"status": {"conditions": status::conditions_json(&self.d.status.conditions)}});
        self.ops.push(status::write_part(&self.d, body));
        self.written.status.conditions.clone_from(&self.d.status.conditions);
    }

    /// Gives the new set the annotations that it should have and the deployment its revision; makes the new set if it is
    /// not there and `create` says so.
    pub fn sync_revision(&mut self, create: bool) {
        let revision = old_revision(&self.old) + 1;
        if let Some(mut new) = self.new.take() {
            self.sync_existing(&mut new, revision);
            self.new = Some(new);
        } else if create {
            self.create(revision);
        }
    }

    fn sync_existing(&mut self, new: &mut ReplicaSet, revision: i64) {
        let changed = revision::set_annotations(&self.d, &mut new.metadata.annotations, revision, true);
        let min_ready = self.d.spec.min_ready_seconds;
        if !changed.is_empty() || new.spec.min_ready_seconds != min_ready {
            let mut body = super::annotations_patch(&changed);
            if new.spec.min_ready_seconds != min_ready {
                new.spec.min_ready_seconds = min_ready;
                body["spec"] = json!({"minReadySeconds": min_ready});
            }
            self.modify_set(new, body);
        }
        let revision = new.metadata.annotations.get(revision::REVISION).cloned().unwrap_or_default();
        self.set_revision(&revision);
        let unknown = status::find(&self.d.status.conditions, status::PROGRESSING).is_none();
        if unknown && status::deadline(&self.d).is_some() {
            let text = format!("Found new replica set {:?}", new.metadata.name);
            let found = status::condition(status::PROGRESSING, "True", "FoundNewReplicaSet", text, self.now);
            self.set_condition(found);
        }
    }

    fn set_revision(&mut self, revision: &str) {
        if self.d.metadata.annotations.get(revision::REVISION).map(String::as_str) != Some(revision) {
            self.d.metadata.annotations.insert(revision::REVISION.into(), revision.to_owned());
            let body = json!({"metadata": {"annotations": {revision::REVISION: revision}}});
            let m = &self.d.metadata;
            self.ops.push(Op::modify(Deployment::resource(), &m.namespace, &m.name, body).if_uid(&m.uid));
        }
    }

    fn create(&mut self, revision: i64) {
        let d = &self.d;
        let parsed = d.spec.template.parse();
        let hash = template::hash(&parsed, d.status.collision_count);
        let with_hash = template::with_hash(&parsed, &hash);
        let name = template::set_name(&d.metadata.name, &hash);
        let size = scale::new_set_size(d, self.total(), 0);
        let mut annotations = Default::default();
        revision::set_annotations(d, &mut annotations, revision, false);
        let selector = serde_json::to_value(&d.spec.selector).unwrap_or_default();
        let object = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": d.metadata.namespace, "annotations": annotations,
                "labels": with_hash["metadata"]["labels"],
                "ownerReferences": [ownership::controller_reference(API_VERSION, KIND, &d.metadata)],
            },
            "spec": {
                "replicas": size, "minReadySeconds": d.spec.min_ready_seconds,
                "selector": template::selector_with_hash(&selector, &hash), "template": with_hash,
            },
        });
        self.ops.push(Op::create(ReplicaSet::resource(), &d.metadata.namespace, object.clone()));
        self.new = isopod_client::decode::from_value(&object).ok();
        if size > 0 {
            self.event(Kind::Normal, "ScalingReplicaSet", format!("Scaled up replica set {name} from 0 to {size}"));
        }
        self.set_revision(&revision.to_string());
        if status::deadline(&self.d).is_some() {
            let text = format!("Created new replica set {name:?}");
            let made = status::condition(status::PROGRESSING, "True", "NewReplicaSetCreated", text, self.now);
            // Written with the status at the end of the pass.
            status::set(&mut self.d.status.conditions, made);
        }
    }

    fn modify_set(&mut self, set: &ReplicaSet, body: Value) {
        let m = &set.metadata;
        let op = Op::modify(ReplicaSet::resource(), &m.namespace, &m.name, body).if_uid(&m.uid);
        // The set as it was looked at: a stale cache must not scale twice. One made or changed in this pass has no
        // revision that could be known.
        let touched = self.ops.iter().any(|o| {
            matches!(o, Op::Modify { name, resource, .. }
            if *name == m.name && *resource == ReplicaSet::resource())
        });
        self.ops.push(if touched { op } else { op.if_unchanged(&m.resource_version) });
    }

    /// Scales a set to `size`. `force` renews the annotations of scale even if the size stays. Returns whether it was
    /// scaled.
    pub fn scale_set(&mut self, set: &mut ReplicaSet, size: i32, force: bool) -> bool {
        let before = scale::size(set);
        let mut changed = revision::scale_annotations(&self.d);
        changed.retain(|k, v| set.metadata.annotations.get(k) != Some(v));
        if before == size && (!force || changed.is_empty()) {
            return false;
        }
        let mut body = json!({});
        if !changed.is_empty() {
            body = super::annotations_patch(&changed);
        }
        if before != size {
            body["spec"] = json!({"replicas": size});
        }
        self.modify_set(set, body);
        set.metadata.annotations.extend(changed);
        set.spec.replicas = Some(size);
        if before == size {
            return false;
        }
        let way = if before < size { "up" } else { "down" };
        let text = format!("Scaled {way} replica set {} from {before} to {size}", set.metadata.name);
        self.event(Kind::Normal, "ScalingReplicaSet", text);
        true
    }

    pub fn scale_new(&mut self, size: i32) -> bool {
        let Some(mut new) = self.new.take() else { return false };
        let scaled = self.scale_set(&mut new, size, false);
        self.new = Some(new);
        scaled
    }

    /// Scales the old set at `index`.
    pub fn scale_old(&mut self, index: usize, size: i32) -> bool {
        let mut set = std::mem::take(&mut self.old[index]);
        let scaled = self.scale_set(&mut set, size, false);
        self.old[index] = set;
        scaled
    }

    /// Whether the deployment was scaled since its sets were last sized.
    pub fn is_scaling(&self) -> bool {
        let active = self.old.iter().chain(&self.new).filter(|s| scale::size(s) > 0);
        active.filter_map(revision::desired).any(|desired| desired != scale::replicas(&self.d))
    }

    /// Brings the sets to the deployment's size without rolling further.
    pub fn scale(&mut self) {
        let wanted = scale::replicas(&self.d);
        let active = self.old.iter().chain(&self.new).filter(|s| scale::size(s) > 0).count();
        if active <= 1 {
            self.scale_only(wanted);
        } else if self.new_is_saturated() {
            for i in 0..self.old.len() {
                if scale::size(&self.old[i]) > 0 {
                    self.scale_old(i, 0);
                }
            }
        } else if scale::is_rolling(&self.d) {
            self.scale_in_proportion(wanted);
        }
    }

    /// One set is active, or none: that one, or the newest, takes everything.
    fn scale_only(&mut self, wanted: i32) {
        match self.old.iter().position(|s| scale::size(s) > 0) {
            Some(i) => drop(self.scale_old(i, wanted)),
            None if self.new.is_some() => drop(self.scale_new(wanted)),
            None if !self.old.is_empty() => drop(self.scale_old(self.old.len() - 1, wanted)),
            None => {}
        }
    }

    fn new_is_saturated(&self) -> bool {
        let wanted = scale::replicas(&self.d);
        self.new.as_ref().is_some_and(|n| {
            revision::desired(n) == Some(wanted) && scale::size(n) == wanted && n.status.available_replicas == wanted
        })
    }

    fn scale_in_proportion(&mut self, wanted: i32) {
        let allowed = if wanted > 0 { wanted + scale::max_surge(&self.d) } else { 0 };
        let to_add = allowed - self.total();
        let mut sets = self.all();
        sets.retain(|s| scale::size(s) > 0);
        // The largest first; of equals the newer grow first and the older shrink first.
        sets.sort_by(|a, b| {
            let age = by_age(a, b);
            scale::size(b).cmp(&scale::size(a)).then(if to_add > 0 { age.reverse() } else { age })
        });
        let mut added = 0;
        let mut sizes: Vec<i32> = Vec::new();
        for set in &sets {
            let share = if to_add == 0 { 0 } else { scale::proportion(set, &self.d, to_add, added) };
            sizes.push(scale::size(set) + share);
            added += share;
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (mut set, size) in sets.into_iter().zip(sizes) {
            self.scale_set(&mut set, size, true);
            match self.old.iter_mut().find(|o| o.metadata.uid == set.metadata.uid) {
                Some(old) => *old = set,
                None => self.new = Some(set),
            }
        }
    }

    /// Deletes the oldest empty sets past the history limit.
    pub fn clean_up(&mut self) {
        let Some(limit) = self.d.spec.revision_history_limit.filter(|l| *l != i32::MAX) else { return };
        let mut sets: Vec<&ReplicaSet> = self.old.iter().filter(|s| !s.metadata.is_being_deleted()).collect();
        let surplus = sets.len().saturating_sub(limit.max(0) as usize);
        sets.sort_by(|a, b| {
            let numbers = revision::of(&a.metadata.annotations).zip(revision::of(&b.metadata.annotations));
            numbers.map_or(std::cmp::Ordering::Equal, |(a, b)| a.cmp(&b)).then_with(|| by_age(a, b))
        });
        let is_done = |s: &ReplicaSet| {
            s.status.replicas == 0 && scale::size(s) == 0 && s.metadata.generation <= s.status.observed_generation
        };
        let gone: Vec<Op> = sets
            .iter()
            .take(surplus)
            .filter(|s| is_done(s))
            .map(|s| {
                Op::delete(ReplicaSet::resource(), &s.metadata.namespace, &s.metadata.name).if_uid(&s.metadata.uid)
            })
            .collect();
        self.ops.extend(gone);
    }

    /// Takes the template of an earlier revision back (0: the one before the newest).
    pub fn roll_back(&mut self, to: i64) {
        let sets: Vec<Arc<ReplicaSet>> = self.all().into_iter().map(Arc::new).collect();
        let to = if to == 0 { revision::last(&sets) } else { to };
        const NOT_FOUND: &str = "DeploymentRollbackRevisionNotFound";
        let mut change = json!({"metadata": {"annotations": {revision::ROLLBACK_TO: null}}});
        let found = sets.iter().find(|s| to != 0 && revision::of(&s.metadata.annotations) == Some(to));
        match found {
            None if to == 0 => self.event(Kind::Warning, NOT_FOUND, "Unable to find last revision.".into()),
            None => {
                self.event(Kind::Warning, NOT_FOUND, "Unable to find the revision to rollback to.".into());
            }
            Some(set) => {
                let theirs = set.spec.template.parse();
                let name = self.d.metadata.name.clone();
                if template::are_equal(&theirs, &self.d.spec.template.parse()) {
                    let text =
                        format!("The rollback revision contains the same template as current deployment {name:?}");
                    self.event(Kind::Warning, "DeploymentRollbackTemplateUnchanged", text);
                } else {
                    self.take_back(set, theirs, &mut change);
                    let text = format!("Rolled back deployment {name:?} to revision {to}");
                    self.event(Kind::Normal, "DeploymentRollback", text);
                }
            }
        }
        let m = &self.d.metadata;
        self.ops.push(Op::modify(Deployment::resource(), &m.namespace, &m.name, change).if_uid(&m.uid));
    }

    fn take_back(&self, set: &ReplicaSet, mut theirs: Value, change: &mut Value) {
        if let Some(labels) = theirs.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            labels.remove(template::HASH_LABEL);
        }
        // A merge patch must also remove what the old template did not have.
        let mine = self.d.spec.template.parse();
        change["spec"] = json!({"template": replacing(&mine, &theirs)});
        for key in self.d.metadata.annotations.keys().filter(|k| !revision::is_kept_apart(k)) {
            change["metadata"]["annotations"][key] = Value::Null;
        }
        for (key, value) in set.metadata.annotations.iter().filter(|(k, _)| !revision::is_kept_apart(k)) {
            change["metadata"]["annotations"][key] = json!(value);
        }
    }

    /// Writes the status as `calculate` gives it, if it changed.
    pub fn status(&mut self, calculate: Calculate) {
        let all = self.all();
        let new = calculate(&self.d, &all, self.new.as_ref(), self.now);
        self.ops.extend(status::write(&self.written, &new));
        self.look_again = status::look_again(&self.d, &new, self.now);
        self.d.status = new;
    }
}

/// The merge patch that turns `from` into `to`.
fn replacing(from: &Value, to: &Value) -> Value {
    let (Some(old), Some(new)) = (from.as_object(), to.as_object()) else { return to.clone() };
    let mut patch = serde_json::Map::new();
    for key in old.keys().filter(|k| !new.contains_key(*k)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        patch.insert(key.clone(), old.get(key).map_or_else(|| value.clone(), |o| replacing(o, value)));
    }
    Value::Object(patch)
}

fn old_revision(old: &[ReplicaSet]) -> i64 {
    old.iter().filter_map(|s| revision::of(&s.metadata.annotations)).max().unwrap_or(0).max(0)
}

fn by_age(a: &ReplicaSet, b: &ReplicaSet) -> std::cmp::Ordering {
    let key = |s: &ReplicaSet| (s.metadata.creation_timestamp.clone(), s.metadata.name.clone());
    key(a).cmp(&key(b))
}
