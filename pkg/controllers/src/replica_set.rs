//! Keeps as many pods as a replica set asks for, and likewise for replication controllers.
//!
//! Watches the sets and pods; writes pods (create, delete, owner references) and the set's status. Invariants:
//! a set acts only when its cache shows everything that it did before (see [`crate::expectations`]), so it never creates or
//! deletes too many; it touches only pods that it controls, and adopts only orphans that its selector matches.

mod ranking;
mod status;

use crate::controller::{Context, Controller, Error, Key};
use crate::expectations::Expectations;
use crate::op::Op;
use crate::ownership::{self, Claim};
use async_trait::async_trait;
use futures::future::join_all;
use isopod_client::events::{Kind, ObjectRef};
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Meta, MetaOnly, OwnerReference, Pod, ReplicaSet, ReplicationController};
use isopod_client::{Change, Informer, Resource, View};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// A kind that asks for replicas of a pod.
trait Set: View + AsRef<ReplicaSet> {
    const API_VERSION: &str;
    const KIND: &str;
    /// Whether the kind's status counts the pods that are ending.
    const COUNTS_TERMINATING: bool;
    fn resource() -> Resource;
}

impl Set for ReplicaSet {
    const API_VERSION: &str = "apps/v1";
    const KIND: &str = "ReplicaSet";
    const COUNTS_TERMINATING: bool = true;
    fn resource() -> Resource {
        ReplicaSet::resource()
    }
}

impl Set for ReplicationController {
    const API_VERSION: &str = "v1";
    const KIND: &str = "ReplicationController";
    const COUNTS_TERMINATING: bool = false;
    fn resource() -> Resource {
        ReplicationController::resource()
    }
}

/// Creations or deletions of one pass.
const BURST: usize = 500;
/// Index of pods by the uid of their controller; orphans are under [`orphans_of`] their namespace.
const BY_CONTROLLER: &str = "controller";
/// Index of replica sets by the uid of their controller.
const SETS_BY_CONTROLLER: &str = "controller";

struct Replicas<T: Set> {
    context: Context,
    sets: Informer<T>,
    pods: Informer<Pod>,
    expectations: Arc<Expectations>,
}

fn orphans_of(namespace: &str) -> String {
    format!("orphans in {namespace}")
}

pub(crate) fn index_pods(pods: &Informer<Pod>) {
    pods.add_index(BY_CONTROLLER, |p| {
        vec![p.metadata.controller().map_or_else(|| orphans_of(&p.metadata.namespace), |c| c.uid.clone())]
    });
}

/// The pods that the owner with this uid controls.
pub(crate) fn pods_of(pods: &Informer<Pod>, owner_uid: &str) -> Vec<Arc<Pod>> {
    pods.by_index(BY_CONTROLLER, owner_uid)
}

pub async fn run(context: Context) {
    run_for::<ReplicaSet>(context).await;
}

/// The controller of replication controllers.
pub(crate) mod replication {
    pub async fn run(context: super::Context) {
        super::run_for::<super::ReplicationController>(context).await;
    }
}

async fn run_for<T: Set>(context: Context) {
    let sets = context.informer::<T>(T::resource());
    let pods = context.informer::<Pod>(Pod::resource());
    index_pods(&pods);
    sets.add_index(SETS_BY_CONTROLLER, |s| {
        s.as_ref().metadata.controller().map(|c| c.uid.clone()).into_iter().collect()
    });
    sets.synced().await;
    pods.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    let expectations = Arc::new(Expectations::new(context.clock.clone()));
    context.feed_own(&sets, &queue);
    feed_pods(&context, &sets, &pods, &queue, &expectations);
    let controller = Arc::new(Replicas { context: context.clone(), sets, pods, expectations });
    context.work(controller, queue, 5).await;
}

fn feed_pods<T: Set>(
    context: &Context,
    sets: &Informer<T>,
    pods: &Informer<Pod>,
    queue: &WorkQueue<Key>,
    expectations: &Arc<Expectations>,
) {
    let (sets, queue, expectations) = (sets.clone(), queue.clone(), expectations.clone());
    context.feed(pods, move |change| match change {
        Change::Applied { old, new } => {
            if let Some(old) = &old
                && controller_of::<T>(old) != controller_of::<T>(&new)
                && let Some(key) = controller_of::<T>(old)
            {
                queue.add(key);
            }
            match controller_of::<T>(&new) {
                Some(key) => {
                    let remade = old.as_ref().is_some_and(|o| o.metadata.uid != new.metadata.uid);
                    if let (true, Some(old)) = (remade, &old) {
                        expectations.deleted(&key, &old.metadata.uid);
                    }
                    if old.is_none() || remade {
                        expectations.created(&key, 1);
                    }
                    if new.metadata.is_being_deleted() {
                        expectations.deleted(&key, &new.metadata.uid);
                    }
                    queue.add(key);
                }
                None if new.metadata.controller().is_none() => add_adopters(&sets, &new.metadata, &queue),
                None => {}
            }
        }
        Change::Deleted(pod) => {
            if let Some(key) = controller_of::<T>(&pod) {
                expectations.deleted(&key, &pod.metadata.uid);
                queue.add(key);
            }
        }
        Change::Resync => {}
    });
}

fn controller_of<T: Set>(pod: &Pod) -> Option<Key> {
    let owner: &OwnerReference = pod.metadata.controller()?;
    (owner.kind == T::KIND).then(|| Key::new(&pod.metadata.namespace, &owner.name))
}

/// Wakes the sets that may adopt an orphan.
fn add_adopters<T: Set>(sets: &Informer<T>, orphan: &Meta, queue: &WorkQueue<Key>) {
    for set in sets.list_namespace(&orphan.namespace) {
        let set: &ReplicaSet = (*set).as_ref();
        if !set.spec.selector.is_empty() && set.spec.selector.matches(&orphan.labels) {
            queue.add(Key::of(&set.metadata));
        }
    }
}

/// What a replica set needs, given its active pods.
#[derive(Debug, PartialEq)]
enum Need {
    Nothing,
    Create(usize),
    /// Pods by name and uid.
    Delete(Vec<(String, String)>),
}

fn plan(set: &ReplicaSet, active: &[Arc<Pod>], related: &[Arc<Pod>], now: jiff::Timestamp) -> Need {
    let wanted = set.spec.replicas.unwrap_or(1).max(0) as usize;
    if set.metadata.is_being_deleted() || active.len() == wanted {
        return Need::Nothing;
    }
    if active.len() < wanted {
        return Need::Create((wanted - active.len()).min(BURST));
    }
    let surplus = (active.len() - wanted).min(BURST);
    let chosen = ranking::first_to_delete(active, related, surplus, now);
    Need::Delete(chosen.into_iter().map(|p| (p.metadata.name.clone(), p.metadata.uid.clone())).collect())
}

/// The pod that a set makes: its template, and the set as controller.
pub(crate) fn pod_from_template(template: &Value, owner_name: &str, namespace: &str, reference: Value) -> Value {
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

#[async_trait]
impl<T: Set> Controller for Replicas<T> {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        let set: &ReplicaSet = (*set).as_ref();
        let may_act = self.expectations.are_met(key);
        let (active, terminating) = self.claim(set).await?;
        let now = self.context.clock.now();
        let failed = if may_act {
            let need = plan(set, &active, &self.related(set), now);
            self.act(key, set, need).await.err()
        } else {
            None
        };
        let failure = failed.as_ref().map(|e| (active.len(), failure_text(e)));
        let terminating = T::COUNTS_TERMINATING.then_some(terminating.len());
        let new = status::calculate(set, &active, terminating, failure, now);
        if let Some(op) = status::write(T::resource(), set, &new) {
            self.context.apply(&op).await?;
        }
        match failed {
            Some(e) => Err(e),
            None if !may_act => Ok(self.expectations.expire_in(key)),
            None => Ok(status::next_check(set, &active, now)),
        }
    }
}

fn failure_text(e: &Error) -> String {
    e.api().map_or_else(|| e.to_string(), ToString::to_string)
}

impl<T: Set> Replicas<T> {
    /// The active and the terminating pods of the set, after adopting and releasing.
    async fn claim(&self, set: &ReplicaSet) -> Result<(Vec<Arc<Pod>>, Vec<Arc<Pod>>), Error> {
        let (mut active, mut terminating, mut may_adopt) = (Vec::new(), Vec::new(), None);
        let orphans = self.pods.by_index(BY_CONTROLLER, &orphans_of(&set.metadata.namespace));
        for pod in pods_of(&self.pods, &set.metadata.uid).into_iter().chain(orphans) {
            if pod.is_terminal() {
                continue;
            }
            let claim = ownership::claim(&set.metadata, &set.spec.selector, &pod.metadata);
            if pod.metadata.is_being_deleted() {
                if claim == Claim::Owned {
                    terminating.push(pod);
                }
                continue;
            }
            let op = match claim {
                Claim::Owned => {
                    active.push(pod);
                    continue;
                }
                Claim::NotOurs => continue,
                Claim::Release => ownership::release(Pod::resource(), &pod.metadata, &set.metadata.uid),
                Claim::Adopt => {
                    if may_adopt.is_none() {
                        may_adopt = Some(self.is_alive(set).await?);
                    }
                    if may_adopt == Some(false) {
                        continue;
                    }
                    let reference = ownership::controller_reference(T::API_VERSION, T::KIND, &set.metadata);
                    ownership::adopt(Pod::resource(), &pod.metadata, reference)
                }
            };
            match self.context.apply(&op).await {
                Ok(_) if claim == Claim::Adopt => active.push(pod),
                Ok(_) => {}
                Err(Error::Call { source, .. }) if source.is_not_found() || source.is_invalid() => {}
                Err(e) => return Err(e),
            }
        }
        Ok((active, terminating))
    }

    /// Asks the server itself whether the set still is and is not being deleted: a stale cache must not adopt.
    async fn is_alive(&self, set: &ReplicaSet) -> Result<bool, Error> {
        let calls = self.context.calls(T::resource());
        let fresh: Option<MetaOnly> = calls.find(&set.metadata.namespace, &set.metadata.name).await?;
        Ok(fresh.is_some_and(|f| f.metadata.uid == set.metadata.uid && !f.metadata.is_being_deleted()))
    }

    /// The pods of all sets with the same controller: pods of one deployment are spread over nodes together.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        match set.metadata.controller() {
            None => pods_of(&self.pods, &set.metadata.uid),
            Some(c) => self
                .sets
                .by_index(SETS_BY_CONTROLLER, &c.uid)
                .iter()
                .flat_map(|s| pods_of(&self.pods, s.uid()))
                .collect(),
        }
    }

    async fn act(&self, key: &Key, set: &ReplicaSet, need: Need) -> Result<(), Error> {
        match need {
            Need::Nothing => Ok(()),
            Need::Create(count) => self.create(key, set, count).await,
            Need::Delete(pods) => self.delete(key, set, pods).await,
        }
    }

    /// Creates in batches of 1, 2, 4 …: when the first ones fail (a quota), the others are not tried.
    async fn create(&self, key: &Key, set: &ReplicaSet, count: usize) -> Result<(), Error> {
        let about = ObjectRef::new(T::API_VERSION, T::KIND, &set.metadata);
        let reference = ownership::controller_reference(T::API_VERSION, T::KIND, &set.metadata);
        let object = pod_from_template(&set.spec.template.parse(), &key.name, &key.namespace, reference);
        let op = Op::create(Pod::resource(), &key.namespace, object);
        self.expectations.expect_creations(key, count);
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            batch = batch.min(left);
            let answers = join_all((0..batch).map(|_| self.context.apply(&op))).await;
            left -= batch;
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
                            self.expectations.created(key, left);
                            return Ok(());
                        }
                        let text = format!("Error creating: {}", failure_text(&e));
                        self.context.recorder.event(&about, Kind::Warning, "FailedCreate", text);
                        first_error.get_or_insert(e);
                    }
                }
            }
            if let Some(e) = first_error {
                self.expectations.created(key, left);
                return Err(e);
            }
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, key: &Key, set: &ReplicaSet, pods: Vec<(String, String)>) -> Result<(), Error> {
        let about = ObjectRef::new(T::API_VERSION, T::KIND, &set.metadata);
        self.expectations.expect_deletions(key, pods.iter().map(|(_, uid)| uid.clone()));
        let deletions = pods.iter().map(|(name, uid)| async move {
            let op = Op::delete(Pod::resource(), &key.namespace, name).if_uid(uid);
            self.context.apply(&op).await
        });
        let mut first_error = None;
        for (answer, (name, uid)) in join_all(deletions).await.into_iter().zip(&pods) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"replicas": replicas}})).unwrap()
    }
    fn pods(names: &[&str]) -> Vec<Arc<Pod>> {
        let pod = |n: &&str| serde_json::from_value(json!({"metadata": {"name": n, "uid": n}})).unwrap();
        names.iter().map(|n| Arc::new(pod(n))).collect()
    }

    #[test]
    fn plans() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        assert_eq!(plan(&set(3), &pods(&["a"]), &[], now), Need::Create(2));
        assert_eq!(plan(&set(1000), &[], &[], now), Need::Create(BURST));
        assert_eq!(plan(&set(1), &pods(&["a"]), &[], now), Need::Nothing);
        let Need::Delete(names) = plan(&set(1), &pods(&["a", "b"]), &[], now) else { panic!() };
        assert_eq!(names.len(), 1);
        let mut going = set(3);
        going.metadata.deletion_timestamp = Some("2026-01-01T00:00:00Z".into());
        assert_eq!(plan(&going, &[], &[], now), Need::Nothing);
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
