//! Keeps as many pods as a replica set asks for, and likewise for replication controllers.
//!
//! Watches the sets and pods; writes pods (create, delete, owner references) and the set's status. Invariants:
//! a set acts only when its cache shows everything that it did before (see [`crate::expectations`]), so it never creates or
//! deletes too many; it touches only pods that it controls, and adopts only orphans that its selector matches.

pub(crate) mod ranking;
mod status;

use crate::controller::{Context, Controller, Error, Key};
use crate::pod_control::{BURST, Owner, PodControl, failure_text, name_and_uid, next_available, pod_from_template};
use async_trait::async_trait;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Meta, Pod, ReplicaSet, ReplicationController};
use isopod_client::{Informer, Resource, View};
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

/// Index of replica sets by the uid of their controller.
const SETS_BY_CONTROLLER: &str = "controller";

struct Replicas<T: Set> {
    context: Context,
    sets: Informer<T>,
    pods: PodControl,
}

fn owner<T: Set>(set: &ReplicaSet) -> Owner<'_> {
    Owner { api_version: T::API_VERSION, kind: T::KIND, resource: T::resource(), meta: &set.metadata, finalizer: None }
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
    let pods = PodControl::new(&context);
    sets.add_index(SETS_BY_CONTROLLER, |s| {
        s.as_ref().metadata.controller().map(|c| c.uid.clone()).into_iter().collect()
    });
    sets.synced().await;
    pods.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&sets, &queue);
    let (known, again) = (sets.clone(), queue.clone());
    pods.feed(T::KIND, &queue, move |orphan| add_adopters(&known, orphan, &again));
    let controller = Arc::new(Replicas { context: context.clone(), sets, pods });
    context.work(controller, queue, 5).await;
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
    Need::Delete(chosen.into_iter().map(|p| name_and_uid(&p)).collect())
}

#[async_trait]
impl<T: Set> Controller for Replicas<T> {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            self.pods.expectations.forget(key);
            return Ok(None);
        };
        let set: &ReplicaSet = (*set).as_ref();
        let may_act = self.pods.expectations.are_met(key);
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
            None if !may_act => Ok(self.pods.expectations.expire_in(key)),
            None => Ok(next_available(&active, set.spec.min_ready_seconds, now)),
        }
    }
}

impl<T: Set> Replicas<T> {
    /// The active and the terminating pods of the set, after adopting and releasing.
    async fn claim(&self, set: &ReplicaSet) -> Result<(Vec<Arc<Pod>>, Vec<Arc<Pod>>), Error> {
        let owned = self.pods.claim(&owner::<T>(set), &set.spec.selector, Pod::is_terminal).await?;
        Ok(owned.into_iter().partition(|p| !p.metadata.is_being_deleted()))
    }

    /// The pods of all sets with the same controller: pods of one deployment are spread over nodes together.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        match set.metadata.controller() {
            None => self.pods.of(&set.metadata.uid),
            Some(c) => {
                self.sets.by_index(SETS_BY_CONTROLLER, &c.uid).iter().flat_map(|s| self.pods.of(s.uid())).collect()
            }
        }
    }

    async fn act(&self, key: &Key, set: &ReplicaSet, need: Need) -> Result<(), Error> {
        let (new, surplus) = match need {
            Need::Nothing => return Ok(()),
            Need::Create(count) => {
                let reference = owner::<T>(set).reference();
                let pod = pod_from_template(&set.spec.template.parse(), &key.name, &key.namespace, reference);
                (vec![pod; count], Vec::new())
            }
            Need::Delete(pods) => (Vec::new(), pods),
        };
        self.pods.change(key, &owner::<T>(set), new, surplus).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
}
