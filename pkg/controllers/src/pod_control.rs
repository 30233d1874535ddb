//! The pods of an owner: which they are, and how they are made and taken away.
//!
//! Invariants: what was done and is not yet seen stands in the expectations, so that a slow cache never makes an owner
//! create or delete twice; pods are adopted only when the server itself says that the owner lives.

use crate::controller::{Context, Error, Key};
use crate::expectations::Expectations;
use crate::op::Op;
use crate::ownership::{self, Claim};
use futures::future::join_all;
use isopod_api::time;
use isopod_client::events::{Kind, ObjectRef};
use isopod_client::queue::WorkQueue;
use isopod_client::views::{LabelSelector, Meta, MetaOnly, OwnerReference, Pod};
use isopod_client::{Change, Informer, Patch, Resource};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Index of pods by the uid of their controller; orphans are under [`orphans_of`] their namespace.
const BY_CONTROLLER: &str = "controller";

/// Creations or deletions of one pass.
pub const BURST: usize = 500;

fn orphans_of(namespace: &str) -> String {
    format!("orphans in {namespace}")
}

pub fn index_pods(pods: &Informer<Pod>) {
    pods.add_index(BY_CONTROLLER, |p| {
        vec![p.metadata.controller().map_or_else(|| orphans_of(&p.metadata.namespace), |c| c.uid.clone())]
    });
}

/// The pods that the owner with this uid controls.
pub fn pods_of(pods: &Informer<Pod>, owner_uid: &str) -> Vec<Arc<Pod>> {
    pods.by_index(BY_CONTROLLER, owner_uid)
}

/// The object that controls pods.
pub struct Owner<'a> {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub resource: Resource,
    pub meta: &'a Meta,
    /// What pods get with the owner when they are adopted.
    pub finalizer: Option<&'static str>,
}

impl Owner<'_> {
    pub fn reference(&self) -> Value {
        ownership::controller_reference(self.api_version, self.kind, self.meta)
    }
    fn adopt(&self, pod: &Meta) -> Op {
        let mut patch = json!({"metadata": {"ownerReferences": [self.reference()], "uid": pod.uid}});
        if let Some(finalizer) = self.finalizer {
            patch["metadata"]["finalizers"] = json!([finalizer]);
        }
        Op::patch(Pod::resource(), &pod.namespace, &pod.name, Patch::Strategic(patch))
    }
    pub fn object_ref(&self) -> ObjectRef {
        ObjectRef::new(self.api_version, self.kind, self.meta)
    }

    /// Asks the server itself whether the owner still is and is not being deleted: a stale cache must not adopt.
    pub async fn is_alive(&self, context: &Context) -> Result<bool, Error> {
        let calls = context.calls(self.resource.clone());
        let fresh: Option<MetaOnly> = calls.find(&self.meta.namespace, &self.meta.name).await?;
        Ok(fresh.is_some_and(|f| f.metadata.uid == self.meta.uid && !f.metadata.is_being_deleted()))
    }
}

pub struct PodControl {
    context: Context,
    pods: Informer<Pod>,
    pub expectations: Arc<Expectations>,
}

impl PodControl {
    pub fn new(context: &Context) -> Self {
        let pods = context.informer::<Pod>(Pod::resource());
        index_pods(&pods);
        let expectations = Arc::new(Expectations::new(context.clock.clone()));
        PodControl { context: context.clone(), pods, expectations }
    }

    pub async fn synced(&self) {
        self.pods.synced().await;
    }

    pub fn of(&self, owner_uid: &str) -> Vec<Arc<Pod>> {
        pods_of(&self.pods, owner_uid)
    }

    /// Feeds the owners of the pods that change; `orphaned` is told of every pod without a controller.
    pub fn feed(&self, kind: &'static str, queue: &WorkQueue<Key>, mut orphaned: impl FnMut(&Meta) + Send + 'static) {
        let (queue, expectations) = (queue.clone(), self.expectations.clone());
        self.context.feed(&self.pods, move |change| match change {
            Change::Applied { old, new } => {
                let (before, now) = (old.as_ref().and_then(|o| controller_of(o, kind)), controller_of(&new, kind));
                if let Some(key) = before.filter(|b| Some(b) != now.as_ref()) {
                    queue.add(key);
                }
                match now {
                    Some(key) => {
                        note(&expectations, &key, old.as_deref(), &new);
                        queue.add(key);
                    }
                    None if new.metadata.controller().is_none() => orphaned(&new.metadata),
                    None => {}
                }
            }
            Change::Deleted(pod) => {
                if let Some(key) = controller_of(&pod, kind) {
                    expectations.deleted(&key, &pod.metadata.uid);
                    queue.add(key);
                }
            }
            Change::Resync => {}
        });
    }

    /// The pods of the owner, after adopting and releasing. Those that are `ignored` are left alone.
    pub async fn claim(
        &self,
        owner: &Owner<'_>,
        selector: &LabelSelector,
        ignored: impl Fn(&Pod) -> bool,
    ) -> Result<Vec<Arc<Pod>>, Error> {
        let (mut owned, mut may_adopt) = (Vec::new(), None);
        let orphans = self.pods.by_index(BY_CONTROLLER, &orphans_of(&owner.meta.namespace));
        for pod in self.of(&owner.meta.uid).into_iter().chain(orphans).filter(|p| !ignored(p)) {
            let claim = ownership::claim(owner.meta, selector, &pod.metadata);
            let op = match claim {
                Claim::Owned => {
                    owned.push(pod);
                    continue;
                }
                Claim::NotOurs => continue,
                Claim::Release if pod.metadata.is_being_deleted() => continue,
                Claim::Release => ownership::release(Pod::resource(), &pod.metadata, &owner.meta.uid),
                Claim::Adopt => {
                    if may_adopt.is_none() {
                        may_adopt = Some(owner.is_alive(&self.context).await?);
                    }
                    if may_adopt == Some(false) {
                        continue;
                    }
                    owner.adopt(&pod.metadata)
                }
            };
            match self.context.apply(&op).await {
                Ok(_) if claim == Claim::Adopt => owned.push(pod),
                Ok(_) => {}
                Err(Error::Call { source, .. }) if source.is_not_found() || source.is_invalid() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(owned)
    }

    /// Creates `new` and deletes `surplus` (by name and uid), each of at most [`BURST`], and expects to see that.
    pub async fn change(
        &self,
        key: &Key,
        owner: &Owner<'_>,
        mut new: Vec<Value>,
        mut surplus: Vec<(String, String)>,
    ) -> Result<(), Error> {
        new.truncate(BURST);
        surplus.truncate(BURST);
        self.expectations.expect(key, new.len(), surplus.iter().map(|(_, uid)| uid.clone()));
        let created = self.create(key, owner, new).await;
        let deleted = self.delete(key, owner, &surplus).await;
        created.and(deleted)
    }

    /// Creates in batches of 1, 2, 4 …: when the first ones fail (a quota), the others are not tried.
    async fn create(&self, key: &Key, owner: &Owner<'_>, mut new: Vec<Value>) -> Result<(), Error> {
        let about = owner.object_ref();
        let mut batch = 1;
        while !new.is_empty() {
            let ops: Vec<Op> = new
                .drain(..batch.min(new.len()))
                .map(|object| Op::create(Pod::resource(), &key.namespace, object))
                .collect();
            let answers = join_all(ops.iter().map(|op| self.context.apply(op))).await;
            let mut first_error = None;
            for answer in answers {
                match answer {
                    Ok(pod) => {
                        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                        let text = format!("Created pod: {name}");
                        self.context.recorder.event(&about, Kind::Normal, "SuccessfulCreate", text);
                    }
                    Err(e) => {
                        self.expectations.created(key, 1);
                        if e.api().is_some_and(isopod_client::Error::is_namespace_terminating) {
                            self.expectations.created(key, new.len());
                            return Ok(());
                        }
                        let text = format!("Error creating: {}", failure_text(&e));
                        self.context.recorder.event(&about, Kind::Warning, "FailedCreate", text);
                        first_error.get_or_insert(e);
                    }
                }
            }
            if let Some(e) = first_error {
                self.expectations.created(key, new.len());
                return Err(e);
            }
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, key: &Key, owner: &Owner<'_>, pods: &[(String, String)]) -> Result<(), Error> {
        let about = owner.object_ref();
        let deletions = pods.iter().map(|(name, uid)| async move {
            let op = Op::delete(Pod::resource(), &key.namespace, name).if_uid(uid);
            self.context.apply(&op).await
        });
        let mut first_error = None;
        for (answer, (name, uid)) in join_all(deletions).await.into_iter().zip(pods) {
            match answer {
                Ok(answer) => {
                    // Gone already: its deletion will not be seen again.
                    if answer.is_null() {
                        self.expectations.deleted(key, uid);
                    }
                    let text = format!("Deleted pod: {name}");
                    self.context.recorder.event(&about, Kind::Normal, "SuccessfulDelete", text);
                }
                Err(e) => {
                    self.expectations.deleted(key, uid);
                    let text = format!("Error deleting: {}", failure_text(&e));
                    self.context.recorder.event(&about, Kind::Warning, "FailedDelete", text);
                    first_error.get_or_insert(e);
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

pub fn failure_text(e: &Error) -> String {
    e.api().map_or_else(|| e.to_string(), ToString::to_string)
}

/// The owner of the kind that controls the pod.
pub fn controller_of(pod: &Pod, kind: &str) -> Option<Key> {
    let owner: &OwnerReference = pod.metadata.controller()?;
    (owner.kind == kind).then(|| Key::new(&pod.metadata.namespace, &owner.name))
}

/// Notes what a change of a pod shows of what was done.
fn note(expectations: &Expectations, key: &Key, old: Option<&Pod>, new: &Pod) {
    let remade = old.filter(|o| o.metadata.uid != new.metadata.uid);
    if let Some(old) = remade {
        expectations.deleted(key, &old.metadata.uid);
    }
    if old.is_none() || remade.is_some() {
        expectations.created(key, 1);
    }
    if new.metadata.is_being_deleted() {
        expectations.deleted(key, &new.metadata.uid);
    }
}

/// The name and uid by which a pod is deleted.
pub fn name_and_uid(pod: &Pod) -> (String, String) {
    (pod.metadata.name.clone(), pod.metadata.uid.clone())
}

/// The pod that an owner makes: its template, and the owner as controller.
pub fn pod_from_template(template: &Value, owner_name: &str, namespace: &str, reference: Value) -> Value {
    // A name too long for a prefix is cut by the server, which keeps room for the suffix.
    let mut metadata =
        json!({"generateName": format!("{owner_name}-"), "namespace": namespace, "ownerReferences": [reference]});
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(v) = template["metadata"].get(field).filter(|v| !v.is_null()) {
            metadata[field] = v.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// Ready for at least `min_ready` seconds.
pub fn is_available(pod: &Pod, min_ready: i32, now: Timestamp) -> bool {
    let Some(ready) = pod.condition("Ready").filter(|c| c.status == "True") else { return false };
    if min_ready == 0 {
        return true;
    }
    let since = ready.last_transition_time.as_deref().and_then(time::parse);
    since.is_some_and(|t| now.duration_since(t).as_secs() >= i64::from(min_ready))
}

/// When the next ready pod becomes available.
pub fn next_available(pods: &[Arc<Pod>], min_ready: i32, now: Timestamp) -> Option<Duration> {
    if min_ready == 0 {
        return None;
    }
    let waits = pods.iter().filter(|p| !is_available(p, min_ready, now)).filter_map(|p| {
        let ready = p.condition("Ready").filter(|c| c.status == "True")?;
        let since = ready.last_transition_time.as_deref().and_then(time::parse)?;
        let left = since + jiff::SignedDuration::from_secs(i64::from(min_ready)) - now;
        Some(Duration::from_millis(left.total(jiff::Unit::Millisecond).unwrap_or(1000.0).max(1.0) as u64))
    });
    waits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_pod_becomes_available() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let pod = |status: &str, since: &str| -> Arc<Pod> {
            let ready = json!({"type": "Ready", "status": status, "lastTransitionTime": since});
            Arc::new(serde_json::from_value(json!({"status": {"conditions": [ready]}})).unwrap())
        };
        let pods = [
            pod("True", "2026-01-01T00:00:00Z"),
            pod("True", "2026-01-01T00:00:50Z"),
            pod("False", "2026-01-01T00:00:00Z"),
        ];
        assert_eq!(pods.each_ref().map(|p| is_available(p, 30, now)), [true, false, false]);
        assert_eq!(pods.each_ref().map(|p| is_available(p, 0, now)), [true, true, false]);
        assert_eq!(next_available(&pods, 30, now), Some(Duration::from_secs(20)));
        assert_eq!(next_available(&pods, 0, now), None);
    }

    #[test]
    fn a_pod_takes_what_the_template_says() {
        let template =
            json!({"metadata": {"labels": {"a": "b"}, "annotations": null, "name": "ignored"}, "spec": {"x": 1}});
        let pod = pod_from_template(&template, "web-1", "ns", json!({"uid": "u"}));
        assert_eq!(
            pod,
            json!({"apiVersion": "v1", "kind": "Pod", "spec": {"x": 1}, "metadata": {
                "generateName": "web-1-", "namespace": "ns", "labels": {"a": "b"}, "ownerReferences": [{"uid": "u"}]}})
        );
    }
}
