//! Runs the pods of a stateful set: each with a number, a name, and claims of its own.
//!
//! Watches stateful sets, pods, claims and controller revisions; writes pods, claims, revisions and the set's status.
//! Invariants: a number has one pod at a time, and a pod that replaces another waits until that one is gone; an ordered set
//! makes pods upwards and takes them away downwards, one at a time, and only while the others are available; claims outlive
//! their pods unless the set's retention policy says otherwise.

mod claims;
mod plan;
mod pod;
mod status;

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use crate::pod_control::{Owner, PodControl, failure_text, next_available};
use crate::revisions::{History, Revisions, Snapshot, live_hashes, template_of};
use async_trait::async_trait;
use isopod_client::events::Kind;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{ControllerRevision, LabelSelector, Meta, PersistentVolumeClaim, Pod, StatefulSet};
use isopod_client::{Change, Informer};
use plan::{Observed, Step};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

const API_VERSION: &str = "apps/v1";
const KIND: &str = "StatefulSet";
/// The label of a revision that carries its hash.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

struct StatefulSets {
    context: Context,
    sets: Informer<StatefulSet>,
    claims: Informer<PersistentVolumeClaim>,
    pods: PodControl,
    revisions: Revisions,
}

pub async fn run(context: Context) {
    let sets = context.informer::<StatefulSet>(StatefulSet::resource());
    let claims = context.informer::<PersistentVolumeClaim>(PersistentVolumeClaim::resource());
    let (pods, revisions) = (PodControl::new(&context), Revisions::new(&context));
    sets.synced().await;
    claims.synced().await;
    pods.synced().await;
    revisions.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&sets, &queue);
    let (known, again) = (sets.clone(), queue.clone());
    pods.feed(KIND, &queue, move |orphan| add_adopters(&known, orphan, &again));
    let (known, again) = (sets.clone(), queue.clone());
    revisions.feed(KIND, &queue, move |orphan| add_adopters(&known, orphan, &again));
    feed_claims(&context, &sets, &claims, &queue);
    let controller = Arc::new(StatefulSets { context: context.clone(), sets, claims, pods, revisions });
    context.work(controller, queue, 5).await;
}

/// Wakes the sets that may adopt an orphan.
fn add_adopters(sets: &Informer<StatefulSet>, orphan: &Meta, queue: &WorkQueue<Key>) {
    for set in sets.list_namespace(&orphan.namespace) {
        if !set.spec.selector.is_empty() && set.spec.selector.matches(&orphan.labels) {
            queue.add(Key::of(&set.metadata));
        }
    }
}

/// A pod may wait for a claim of its predecessor to be gone.
fn feed_claims(
    context: &Context,
    sets: &Informer<StatefulSet>,
    claims: &Informer<PersistentVolumeClaim>,
    queue: &WorkQueue<Key>,
) {
    let (sets, queue) = (sets.clone(), queue.clone());
    context.feed(claims, move |change| {
        let Change::Deleted(claim) = change else { return };
        for set in sets.list_namespace(&claim.metadata.namespace) {
            if !set.spec.volume_claim_templates.is_empty() {
                queue.add(Key::of(&set.metadata));
            }
        }
    });
}

fn owner(set: &StatefulSet) -> Owner<'_> {
    Owner {
        api_version: API_VERSION,
        kind: KIND,
        resource: StatefulSet::resource(),
        meta: &set.metadata,
        finalizer: None,
    }
}

/// The revision that pods below the partition have, and its template.
fn current(
    set: &StatefulSet,
    owned: &[Arc<ControllerRevision>],
    update: &ControllerRevision,
    template: &Value,
) -> (String, Value) {
    let named = owned.iter().find(|r| r.metadata.name == set.status.current_revision);
    match named.filter(|r| r.metadata.name != update.metadata.name) {
        Some(revision) => (revision.metadata.name.clone(), template_of(revision)),
        None => (update.metadata.name.clone(), template.clone()),
    }
}

#[async_trait]
impl Controller for StatefulSets {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            self.pods.expectations.forget(key);
            return Ok(None);
        };
        if set.spec.selector == LabelSelector::default() {
            return Ok(None);
        }
        if !self.pods.expectations.are_met(key) {
            return Ok(self.pods.expectations.expire_in(key));
        }
        let template = set.spec.template.parse();
        let owned = self.revisions.claim(&owner(&set), &set.spec.selector).await?;
        let history = self.record(&set, &template, owned.clone()).await?;
        let (current_name, current_template) = current(&set, &owned, &history.current, &template);
        let is_member = |p: &Pod| pod::ordinal(&set.metadata.name, &p.metadata.name).is_some();
        let pods = self.pods.claim(&owner(&set), &set.spec.selector, |p| !is_member(p)).await?;
        let now = self.context.clock.now();
        let observed = Observed {
            set: &set,
            pods: &pods,
            claim: &|name| self.claims.get(&key.namespace, name),
            current: (&current_name, &current_template),
            update: (&history.current.metadata.name, &template),
            now,
        };
        let steps = if set.metadata.is_being_deleted() { plan::Plan::default() } else { plan::plan(&observed) };
        let acted = self.carry_out(key, &set, &steps.steps).await;
        let new = status::calculate(&observed, &steps, history.collision_count);
        if let Some(op) = status::write(&set, &new) {
            self.context.apply(&op).await?;
        }
        acted?;
        self.truncate(&set, &history, &current_name, &pods).await?;
        Ok(next_available(&pods, set.spec.min_ready_seconds, now))
    }
}

impl StatefulSets {
    async fn record(
        &self,
        set: &StatefulSet,
        template: &Value,
        owned: Vec<Arc<ControllerRevision>>,
    ) -> Result<History, Error> {
        let owner = owner(set);
        let annotations = &set.metadata.annotations;
        let snapshot = Snapshot { owner: &owner, template: template.clone(), annotations, hash_label: HASH_LABEL };
        // The count is never missing in the status of a stateful set.
        self.revisions.record(&snapshot, owned, Some(set.status.collision_count.unwrap_or_default())).await
    }

    async fn truncate(
        &self,
        set: &StatefulSet,
        history: &History,
        current: &str,
        pods: &[Arc<Pod>],
    ) -> Result<(), Error> {
        let live = live_hashes(pods.iter().map(|p| &p.metadata.labels));
        let unused =
            |r: &&Arc<ControllerRevision>| r.metadata.name != current && !live.contains(r.metadata.name.as_str());
        let old: Vec<_> = history.old.iter().filter(unused).cloned().collect();
        self.revisions.truncate(&old, set.spec.revision_history_limit.unwrap_or(10), |_| false).await
    }

    /// Does the steps in order, up to the first that fails, and expects to see what they do.
    async fn carry_out(&self, key: &Key, set: &StatefulSet, steps: &[Step]) -> Result<(), Error> {
        let creations = steps.iter().filter(|s| matches!(s, Step::CreatePod(_))).count();
        let deletions: Vec<String> = steps
            .iter()
            .filter_map(|s| if let Step::DeletePod(p) = s { Some(p.metadata.uid.clone()) } else { None })
            .collect();
        if steps.is_empty() {
            return Ok(());
        }
        self.pods.expectations.expect(key, creations, deletions);
        for (at, step) in steps.iter().enumerate() {
            let op = step.op(set);
            let done = self.context.apply(&op).await;
            self.say(set, step, done.as_ref().err());
            match done {
                // Gone already: its deletion will not be seen again.
                Ok(Value::Null) => self.unexpect(key, &steps[at..=at]),
                Ok(_) => {}
                Err(e) => {
                    self.unexpect(key, &steps[at..]);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    fn unexpect(&self, key: &Key, undone: &[Step]) {
        for step in undone {
            match step {
                Step::CreatePod(_) => self.pods.expectations.created(key, 1),
                Step::DeletePod(p) => self.pods.expectations.deleted(key, &p.metadata.uid),
                _ => {}
            }
        }
    }

    fn say(&self, set: &StatefulSet, step: &Step, error: Option<&Error>) {
        let (verb, what, pod) = match step {
            Step::CreatePod(object) => ("Create", String::new(), object["metadata"]["name"].as_str()),
            Step::DeletePod(pod) => ("Delete", String::new(), Some(pod.metadata.name.as_str())),
            Step::Identify(pod) => ("Update", String::new(), Some(pod.metadata.name.as_str())),
            Step::CreateClaim { claim, pod } => {
                ("Create", format!("Claim {} ", claim["metadata"]["name"].as_str().unwrap_or_default()), Some(&**pod))
            }
            Step::OwnClaim { .. } => return,
        };
        // Another pass was faster.
        if error.and_then(Error::api).is_some_and(isopod_client::Error::is_already_exists) {
            return;
        }
        let (pod, name) = (pod.unwrap_or_default(), &set.metadata.name);
        let is_claim = !what.is_empty();
        let (kind, outcome, text) = match error {
            None => (Kind::Normal, "Successful", if is_claim { "success".to_owned() } else { "successful".to_owned() }),
            Some(e) => (Kind::Warning, "Failed", format!("failed error: {}", failure_text(e))),
        };
        let joint = if is_claim && error.is_some() { "for " } else { "" };
        let message = format!("{verb} {what}{joint}Pod {pod} in StatefulSet {name} {text}");
        self.context.recorder.event(&owner(set).object_ref(), kind, &format!("{outcome}{verb}"), message);
    }
}

impl Step {
    fn op(&self, set: &StatefulSet) -> Op {
        let namespace = &set.metadata.namespace;
        match self {
            Step::CreateClaim { claim, .. } => Op::create(PersistentVolumeClaim::resource(), namespace, claim.clone()),
            Step::CreatePod(object) => Op::create(Pod::resource(), namespace, object.clone()),
            Step::DeletePod(pod) => {
                Op::delete(Pod::resource(), namespace, &pod.metadata.name).if_uid(&pod.metadata.uid)
            }
            Step::Identify(pod) => pod::identify(set, pod),
            Step::OwnClaim { claim, owners } => claims::own(claim, owners),
        }
    }
}
