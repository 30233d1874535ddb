//! Rolls deployments out: one replica set for each pod template, scaled against each other.
//!
//! Watches deployments, replica sets and pods; writes replica sets (create, scale, annotations, owner references, delete
//! when past the history limit) and the deployment's status and revision annotation. Invariants: at most `maxSurge` pods
//! above and at least `replicas - maxUnavailable` available during a rolling update; a paused deployment is scaled but not
//! rolled; each pass does what one look at the present state asks for, so that it may be interrupted anywhere.

mod plan;
mod revision;
mod rollout;
mod scale;
mod status;

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use crate::ownership::{self, Claim};
use crate::pod_control::{index_pods, pods_of};
use crate::template;
use async_trait::async_trait;
use isopod_client::events::{Kind, ObjectRef};
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Deployment, Meta, Pod, ReplicaSet};
use isopod_client::{Change, Informer};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const API_VERSION: &str = "apps/v1";
const KIND: &str = "Deployment";

struct Deployments {
    context: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
}

pub async fn run(context: Context) {
    let deployments = context.informer::<Deployment>(Deployment::resource());
    let sets = context.informer::<ReplicaSet>(ReplicaSet::resource());
    let pods = context.informer::<Pod>(Pod::resource());
    index_pods(&pods);
    deployments.synced().await;
    sets.synced().await;
    pods.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&deployments, &queue);
    feed_sets(&context, &deployments, &sets, &queue);
    feed_pods(&context, &deployments, &sets, &pods, &queue);
    let controller = Arc::new(Deployments { context: context.clone(), deployments, sets, pods });
    context.work(controller, queue, 5).await;
}

fn controller_of(meta: &Meta, kind: &str) -> Option<Key> {
    meta.controller().filter(|c| c.kind == kind).map(|c| Key::new(&meta.namespace, &c.name))
}

fn feed_sets(
    context: &Context,
    deployments: &Informer<Deployment>,
    sets: &Informer<ReplicaSet>,
    queue: &WorkQueue<Key>,
) {
    let (deployments, queue) = (deployments.clone(), queue.clone());
    context.feed(sets, move |change| {
        let (old, new) = match change {
            Change::Applied { old, new } => (old, Some(new)),
            Change::Deleted(old) => (Some(old), None),
            Change::Resync => return,
        };
        for set in old.iter().chain(&new) {
            if let Some(key) = controller_of(&set.metadata, KIND) {
                queue.add(key);
            }
        }
        if let Some(orphan) = new.filter(|n| n.metadata.controller().is_none()) {
            for d in deployments.list_namespace(&orphan.metadata.namespace) {
                if !d.spec.selector.is_empty() && d.spec.selector.matches(&orphan.metadata.labels) {
                    queue.add(Key::of(&d.metadata));
                }
            }
        }
    });
}

/// A `Recreate` deployment waits for its old pods to be gone.
fn feed_pods(
    context: &Context,
    deployments: &Informer<Deployment>,
    sets: &Informer<ReplicaSet>,
    pods: &Informer<Pod>,
    queue: &WorkQueue<Key>,
) {
    let (deployments, sets, queue) = (deployments.clone(), sets.clone(), queue.clone());
    context.feed(pods, move |change| {
        let Change::Deleted(pod) = change else { return };
        let owner = controller_of(&pod.metadata, "ReplicaSet").and_then(|k| sets.get(&k.namespace, &k.name));
        let Some(key) = owner.and_then(|s| controller_of(&s.metadata, KIND)) else { return };
        if deployments.get(&key.namespace, &key.name).is_some_and(|d| d.spec.strategy.kind == "Recreate") {
            queue.add(key);
        }
    });
}

#[async_trait]
impl Controller for Deployments {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(deployment) = self.deployments.get(&key.namespace, &key.name) else { return Ok(None) };
        if deployment.spec.selector.is_empty() {
            let about = ObjectRef::new(API_VERSION, KIND, &deployment.metadata);
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.context.recorder.event(&about, Kind::Warning, "SelectingAll", text);
            return Ok(None);
        }
        let sets = self.claim(&deployment).await?;
        let has_live_pods = |set: &ReplicaSet| pods_of(&self.pods, &set.metadata.uid).iter().any(|p| !p.is_terminal());
        let old_pods = sets.iter().filter(|s| has_live_pods(s)).map(|s| s.metadata.uid.clone()).collect();
        let observed = plan::Observed { deployment: &deployment, sets: &sets, with_pods: old_pods };
        let plan = plan::plan(&observed, self.context.clock.now());
        for op in &plan.ops {
            match self.context.apply(op).await {
                Ok(_) => {}
                Err(e) => return self.failed(&deployment, op, e).await,
            }
        }
        Ok(plan.look_again)
    }
}

impl Deployments {
    /// The replica sets of the deployment, after adopting and releasing.
    async fn claim(&self, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>, Error> {
        let meta = &deployment.metadata;
        let (mut owned, mut is_alive) = (Vec::new(), None);
        for set in self.sets.list_namespace(&meta.namespace) {
            let claim = ownership::claim(meta, &deployment.spec.selector, &set.metadata);
            let op = match claim {
                Claim::Owned => {
                    owned.push(set);
                    continue;
                }
                Claim::NotOurs => continue,
                Claim::Release => ownership::release(ReplicaSet::resource(), &set.metadata, &meta.uid),
                Claim::Adopt => {
                    if is_alive.is_none() {
                        let calls = self.context.calls(Deployment::resource());
                        let fresh: Option<Deployment> = calls.find(&meta.namespace, &meta.name).await?;
                        let same = |f: &Deployment| f.metadata.uid == meta.uid && !f.metadata.is_being_deleted();
                        is_alive = Some(fresh.as_ref().is_some_and(same));
                    }
                    if is_alive == Some(false) {
                        continue;
                    }
                    let reference = ownership::controller_reference(API_VERSION, KIND, meta);
                    ownership::adopt(ReplicaSet::resource(), &set.metadata, reference)
                }
            };
            match self.context.apply(&op).await {
                Ok(_) if claim == Claim::Adopt => owned.push(set),
                Ok(_) => {}
                Err(Error::Call { source, .. }) if source.is_not_found() || source.is_invalid() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(owned)
    }

    /// A step failed. Only a replica set that could not be created needs more than another try.
    async fn failed(&self, deployment: &Deployment, op: &Op, error: Error) -> Result<Option<Duration>, Error> {
        let Op::Create { object, .. } = op else { return Err(error) };
        let Some(answer) = error.api() else { return Err(error) };
        if answer.is_namespace_terminating() {
            return Ok(None);
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if answer.is_already_exists() {
            return self.collided(deployment, name, error).await;
        }
        let message = format!("Failed to create new replica set {name:?}: {answer}");
        let about = ObjectRef::new(API_VERSION, KIND, &deployment.metadata);
        self.context.recorder.event(&about, Kind::Warning, "ReplicaSetCreateError", message.clone());
        if let Some(op) = status::creation_failed(deployment, &message, self.context.clock.now()) {
            // What is reported is the failure itself.
            let _ = self.context.apply(&op).await;
        }
        Err(error)
    }

    /// The name of the new replica set is taken: by ourselves (the cache is behind), or by another template with the same
    /// hash, which a higher collision count resolves.
    async fn collided(&self, deployment: &Deployment, name: &str, error: Error) -> Result<Option<Duration>, Error> {
        let meta = &deployment.metadata;
        let calls = self.context.calls(ReplicaSet::resource());
        let taken: Option<ReplicaSet> = calls.find(&meta.namespace, name).await?;
        let ours = taken.is_some_and(|set| {
            set.metadata.controller().is_some_and(|c| c.uid == meta.uid)
                && template::are_equal(&set.spec.template.parse(), &deployment.spec.template.parse())
        });
        if !ours {
            let count = deployment.status.collision_count.unwrap_or_default() + 1;
            let body = json!({"status": {"collisionCount": count}});
            let op = Op::status(Deployment::resource(), &meta.namespace, &meta.name, body)
                .if_unchanged(&meta.resource_version);
            self.context.apply(&op).await?;
        }
        Err(error)
    }
}

/// A merge patch of a replica set's annotations.
fn annotations_patch(changes: &std::collections::BTreeMap<String, String>) -> Value {
    json!({"metadata": {"annotations": changes}})
}
