//! Runs one pod of a daemon set on every node that it fits.
//!
//! Watches daemon sets, pods, nodes and controller revisions; writes pods, revisions and the set's status. Invariants: pods
//! are pinned to their node by affinity, and the scheduler binds them; while pods of an old revision are replaced, at most
//! `maxUnavailable` nodes are without an available pod, or at most `maxSurge` nodes have two; a failed pod is replaced
//! with a backoff, because a kubelet that refuses a pod refuses the next one too.

mod backoff;
mod pod;
mod roll;
mod status;

use crate::controller::{Context, Controller, Error, Key};
use crate::pod_control::{Owner, PodControl, is_available, name_and_uid, next_available};
use crate::revisions::{History, REVISION_LABEL, Revisions, Snapshot, hash_of, live_hashes};
use async_trait::async_trait;
use backoff::Backoff;
use isopod_client::events::Kind;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{DaemonSet, LabelSelector, Meta, Node, Pod, PodSpec};
use isopod_client::{Change, Informer, decode};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const API_VERSION: &str = "apps/v1";
const KIND: &str = "DaemonSet";

struct DaemonSets {
    context: Context,
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    pods: PodControl,
    revisions: Revisions,
    /// Of failed pods, by set, generation and node.
    backoff: Mutex<Backoff>,
}

pub async fn run(context: Context) {
    let sets = context.informer::<DaemonSet>(DaemonSet::resource());
    let nodes = context.informer::<Node>(Node::resource());
    let (pods, revisions) = (PodControl::new(&context), Revisions::new(&context));
    sets.synced().await;
    nodes.synced().await;
    pods.synced().await;
    revisions.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&sets, &queue);
    let (known, again) = (sets.clone(), queue.clone());
    pods.feed(KIND, &queue, move |orphan| add_adopters(&known, orphan, &again));
    let (known, again) = (sets.clone(), queue.clone());
    revisions.feed(KIND, &queue, move |orphan| add_adopters(&known, orphan, &again));
    feed_nodes(&context, &sets, &nodes, &queue);
    let backoff = Mutex::default();
    let controller = Arc::new(DaemonSets { context: context.clone(), sets, nodes, pods, revisions, backoff });
    context.work(controller, queue, 2).await;
}

/// Wakes the sets that may adopt an orphan.
fn add_adopters(sets: &Informer<DaemonSet>, orphan: &Meta, queue: &WorkQueue<Key>) {
    for set in sets.list_namespace(&orphan.namespace) {
        if !set.spec.selector.is_empty() && set.spec.selector.matches(&orphan.labels) {
            queue.add(Key::of(&set.metadata));
        }
    }
}

/// Where pods fit depends on the labels and taints of nodes.
fn feed_nodes(context: &Context, sets: &Informer<DaemonSet>, nodes: &Informer<Node>, queue: &WorkQueue<Key>) {
    let (sets, queue) = (sets.clone(), queue.clone());
    context.feed(nodes, move |change| {
        let concerns = match &change {
            Change::Applied { old: Some(old), new } => {
                old.metadata.labels != new.metadata.labels || old.spec.taints != new.spec.taints
            }
            Change::Applied { old: None, .. } | Change::Deleted(_) => true,
            Change::Resync => false,
        };
        if concerns {
            sets.list().iter().for_each(|s| queue.add(Key::of(&s.metadata)));
        }
    });
}

/// What a pass sees.
struct Observed<'a> {
    set: &'a DaemonSet,
    /// The spec of the template, with the tolerations of daemon pods.
    spec: PodSpec,
    nodes: Vec<Arc<Node>>,
    /// By the node that they are on or pinned to; pods that have ended and are being deleted are left out.
    pods: BTreeMap<String, Vec<Arc<Pod>>>,
    /// Of the present revision.
    hash: &'a str,
    now: Timestamp,
}

/// Whether pods of the set should be on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// One is made when there is none.
    Run,
    /// One that is there may stay.
    Stay,
    No,
}

impl Observed<'_> {
    fn fit(&self, node: &Node) -> Fit {
        let name = &node.metadata.name;
        if !(self.spec.node_name.is_empty() || self.spec.node_name == *name) || !self.spec.asks_for(&node.metadata) {
            return Fit::No;
        }
        let untolerated = |effect: &str| {
            let mut taints = node.spec.taints.iter().filter(|t| t.effect == effect);
            taints.any(|taint| !self.spec.tolerations.iter().any(|t| t.tolerates(taint)))
        };
        match (untolerated("NoExecute"), untolerated("NoSchedule")) {
            (true, _) => Fit::No,
            (false, true) => Fit::Stay,
            (false, false) => Fit::Run,
        }
    }

    fn pods_on(&self, node: &str) -> &[Arc<Pod>] {
        self.pods.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_available(pod, self.set.spec.min_ready_seconds, self.now)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        let label = |key: &str| pod.metadata.labels.get(key).map(String::as_str);
        let generation = pod::template_generation(&self.set.metadata);
        label(REVISION_LABEL) == Some(self.hash)
            || generation.is_some_and(|g| label(pod::GENERATION_LABEL) == Some(g.to_string().as_str()))
    }
}

/// What a pass does.
#[derive(Debug, Default, PartialEq)]
struct Step {
    /// The nodes that get a pod.
    create: Vec<String>,
    delete: Vec<Arc<Pod>>,
    /// The nodes whose failed pod is among the deleted.
    failed_on: BTreeSet<String>,
    /// When a failed pod may be deleted.
    look_again: Option<Duration>,
}

impl Step {
    fn is_empty(&self) -> bool {
        self.create.is_empty() && self.delete.is_empty()
    }
}

/// Scheduled ones first, then by age.
fn oldest_first(pods: &mut [Arc<Pod>]) {
    pods.sort_by(|a, b| {
        let rank =
            |p: &Pod| (p.spec.node_name.is_empty(), p.metadata.creation_timestamp.clone(), p.metadata.name.clone());
        rank(a).cmp(&rank(b))
    });
}

/// Makes missing pods and takes away those that are failed, too many or misplaced. `backoff` says how long a failed pod of
/// a node has to stay.
fn manage(o: &Observed<'_>, backoff: &dyn Fn(&str) -> Option<Duration>) -> Step {
    let mut step = Step::default();
    for node in &o.nodes {
        let name = &node.metadata.name;
        match o.fit(node) {
            Fit::Run if !o.pods.contains_key(name) => step.create.push(name.clone()),
            Fit::No => step.delete.extend(o.pods_on(name).iter().filter(|p| !p.metadata.is_being_deleted()).cloned()),
            fit => manage_node(o, name, fit, backoff, &mut step),
        }
    }
    // A pod that waits for a node which is gone is never scheduled, and nobody else deletes it.
    let known: BTreeSet<&str> = o.nodes.iter().map(|n| n.metadata.name.as_str()).collect();
    for (_, pods) in o.pods.iter().filter(|(node, _)| !known.contains(node.as_str())) {
        step.delete.extend(pods.iter().filter(|p| p.spec.node_name.is_empty()).cloned());
    }
    step.delete.retain(|p| !p.metadata.is_being_deleted());
    step
}

fn manage_node(o: &Observed<'_>, node: &str, fit: Fit, backoff: &dyn Fn(&str) -> Option<Duration>, step: &mut Step) {
    let mut running = Vec::new();
    for pod in o.pods_on(node).iter().filter(|p| !p.metadata.is_being_deleted()) {
        match pod.status.phase.as_str() {
            "Failed" => match backoff(node) {
                Some(wait) => step.look_again = Some(step.look_again.map_or(wait, |w| w.min(wait))),
                None => {
                    step.failed_on.insert(node.to_owned());
                    step.delete.push(pod.clone());
                }
            },
            "Succeeded" => step.delete.push(pod.clone()),
            _ => running.push(pod.clone()),
        }
    }
    oldest_first(&mut running);
    if !roll::allows_surge(o.set) {
        step.delete.extend(running.into_iter().skip(1));
        return;
    }
    if running.is_empty() && fit == Fit::Run {
        step.create.push(node.to_owned());
    }
    if running.len() < 2 {
        return;
    }
    // One of the new revision and one of an old one may be there: until the old one is not ready, or the new one available.
    let (mut new, mut old): (Vec<_>, Vec<_>) =
        running.into_iter().partition(|p| p.metadata.labels.get(REVISION_LABEL).map(String::as_str) == Some(o.hash));
    if let (Some(new), Some(kept)) = (new.first(), old.first())
        && (!kept.is_ready() || o.is_available(new))
    {
        step.delete.push(old.remove(0));
        step.delete.extend(old);
    } else {
        step.delete.extend(old.drain(1.min(old.len())..));
    }
    step.delete.extend(new.drain(1.min(new.len())..));
}

fn owner(set: &DaemonSet) -> Owner<'_> {
    Owner {
        api_version: API_VERSION,
        kind: KIND,
        resource: DaemonSet::resource(),
        meta: &set.metadata,
        finalizer: None,
    }
}

fn spec_of(template: &Value) -> PodSpec {
    decode::from_value(&template["spec"]).unwrap_or_default()
}

#[async_trait]
impl Controller for DaemonSets {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            self.pods.expectations.forget(key);
            return Ok(None);
        };
        if set.spec.selector == LabelSelector::default() {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.context.recorder.event(&owner(&set).object_ref(), Kind::Warning, "SelectingAll", text.to_owned());
            return Ok(None);
        }
        // Its revisions may be going already, and with them what the status is made of.
        if set.metadata.is_being_deleted() {
            return Ok(None);
        }
        let template = set.spec.template.parse();
        let history = self.record(&set, &template).await?;
        let hash = hash_of(&history.current, REVISION_LABEL).to_owned();
        let may_act = self.pods.expectations.are_met(key);
        let o = self.observe(&set, &template, &hash).await?;
        let acted = if may_act { self.act(key, &o, &template, &history).await } else { Ok(None) };
        let waiting: Vec<Arc<Pod>> = o.pods.values().flatten().cloned().collect();
        let next = next_available(&waiting, set.spec.min_ready_seconds, o.now);
        let new = status::calculate(&o, history.collision_count, may_act);
        if let Some(op) = status::write(&set, &new) {
            self.context.apply(&op).await?;
        }
        let again = acted?;
        if !may_act {
            return Ok(self.pods.expectations.expire_in(key));
        }
        Ok(again.into_iter().chain(next).min())
    }
}

impl DaemonSets {
    async fn record(&self, set: &DaemonSet, template: &Value) -> Result<History, Error> {
        let owner = owner(set);
        let owned = self.revisions.claim(&owner, &set.spec.selector).await?;
        let annotations = &set.metadata.annotations;
        let snapshot = Snapshot { owner: &owner, template: template.clone(), annotations, hash_label: REVISION_LABEL };
        self.revisions.record(&snapshot, owned, set.status.collision_count).await
    }

    async fn observe<'a>(&self, set: &'a DaemonSet, template: &Value, hash: &'a str) -> Result<Observed<'a>, Error> {
        let owned = self.pods.claim(&owner(set), &set.spec.selector, |_| false).await?;
        let mut pods: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in owned.into_iter().filter(|p| !(p.is_terminal() && p.metadata.is_being_deleted())) {
            if let Some(node) = pod::target_node(&pod) {
                pods.entry(node.to_owned()).or_default().push(pod);
            }
        }
        let spec = spec_of(&pod::with_tolerations(template));
        Ok(Observed { set, spec, nodes: self.nodes.list(), pods, hash, now: self.context.clock.now() })
    }

    async fn act(
        &self,
        key: &Key,
        o: &Observed<'_>,
        template: &Value,
        history: &History,
    ) -> Result<Option<Duration>, Error> {
        let m = &o.set.metadata;
        let of = |node: &str| format!("{}/{}/{node}", m.uid, o.set.status.observed_generation);
        let managed = manage(o, &|node| self.backoff.lock().left(&of(node), o.now));
        let look_again = managed.look_again;
        // Pods of old revisions are replaced once all nodes have what they need.
        let rolls = managed.is_empty() && o.set.spec.update_strategy.kind == "RollingUpdate";
        let step = if rolls { roll::roll(o) } else { managed };
        for node in &step.failed_on {
            self.backoff.lock().next(&of(node), o.now);
        }
        self.say(o, &step);
        if !step.is_empty() {
            let made = pod::template(template, &o.set.metadata, o.hash);
            let new = step.create.iter().map(|node| pod::pod(&made, &owner(o.set), node)).collect();
            self.pods.change(key, &owner(o.set), new, step.delete.iter().map(|p| name_and_uid(p)).collect()).await?;
        }
        let all = self.pods.of(&m.uid);
        let live = live_hashes(all.iter().map(|p| &p.metadata.labels));
        let limit = o.set.spec.revision_history_limit.unwrap_or(10);
        self.revisions.truncate(&history.old, limit, |r| live.contains(hash_of(r, REVISION_LABEL))).await?;
        Ok(look_again)
    }

    /// Says why pods that have ended are deleted.
    fn say(&self, o: &Observed<'_>, step: &Step) {
        let about = owner(o.set).object_ref();
        for pod in step.delete.iter().filter(|p| p.is_terminal()) {
            let m = &pod.metadata;
            let (kind, reason, phase, verb) = if pod.status.phase == "Failed" {
                (Kind::Warning, "FailedDaemonPod", "failed", "kill")
            } else {
                (Kind::Normal, "SucceededDaemonPod", "succeeded", "delete")
            };
            let node = pod::target_node(pod).unwrap_or_default();
            let text =
                format!("Found {phase} daemon pod {}/{} on node {node}, will try to {verb} it", m.namespace, m.name);
            self.context.recorder.event(&about, kind, reason, text);
        }
    }
}

#[cfg(test)]
mod testing {
    use super::*;
    use serde_json::json;

    pub fn node(name: &str, taints: Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": name, "labels": {"n": name}}, "spec": {"taints": taints}}),
            )
            .unwrap(),
        )
    }

    /// `state`: `ready`, `unready`, `going`, or a phase.
    pub fn pod(name: &str, node: &str, hash: &str, state: &str) -> Arc<Pod> {
        let going = (state == "going").then_some("2026-01-01T00:00:00Z");
        let phase = if ["ready", "unready", "going"].contains(&state) { "Running" } else { state };
        let ready = if state == "ready" { "True" } else { "False" };
        let v = json!({
            "metadata": {"name": name, "uid": name, "labels": {REVISION_LABEL: hash}, "deletionTimestamp": going,
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": node},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
        });
        Arc::new(serde_json::from_value(v).unwrap())
    }

    pub fn set(rolling: Value) -> DaemonSet {
        let v = json!({"metadata": {"name": "ds", "uid": "u", "generation": 2}, "spec": {
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}});
        serde_json::from_str(&v.to_string()).unwrap()
    }

    pub fn observed<'a>(set: &'a DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Observed<'a> {
        let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for p in pods {
            by_node.entry(p.spec.node_name.clone()).or_default().push(p.clone());
        }
        let (spec, nodes) = (PodSpec::default(), nodes.to_vec());
        Observed { set, spec, nodes, pods: by_node, hash: "new", now: Timestamp::UNIX_EPOCH }
    }

    pub fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|p| p.metadata.name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use serde_json::json;

    #[test]
    fn where_pods_run() {
        let set = set(json!({}));
        let taint = |effect: &str| json!([{"key": "k", "effect": effect}]);
        let tolerant = json!([{"key": "k", "operator": "Exists"}]);
        for (spec, taints, want) in [
            (json!({}), json!([]), Fit::Run),
            (json!({}), taint("NoSchedule"), Fit::Stay),
            (json!({}), taint("NoExecute"), Fit::No),
            (json!({}), taint("PreferNoSchedule"), Fit::Run),
            (json!({"tolerations": tolerant}), taint("NoExecute"), Fit::Run),
            (json!({"nodeSelector": {"n": "a"}}), json!([]), Fit::Run),
            (json!({"nodeSelector": {"n": "b"}}), json!([]), Fit::No),
            (json!({"nodeName": "b"}), json!([]), Fit::No),
        ] {
            let mut o = observed(&set, &[], &[]);
            o.spec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(o.fit(&node("a", taints)), want, "{spec}");
        }
    }

    #[test]
    fn each_node_keeps_one_pod() {
        let set = set(json!({"maxUnavailable": 1}));
        let nodes = ["a", "b", "c", "d"].map(|n| node(n, json!([])));
        let pods = [
            pod("p1", "b", "new", "ready"),
            pod("p2", "b", "new", "ready"),
            pod("p3", "c", "new", "Failed"),
            pod("p4", "d", "new", "going"),
        ];
        let step = manage(&observed(&set, &nodes, &pods), &|_| None);
        assert_eq!((step.create.as_slice(), names(&step.delete)), (&["a".to_owned()][..], vec!["p2", "p3"]));
        assert!(step.failed_on.contains("c"));
        let step = manage(&observed(&set, &nodes, &pods), &|_| Some(Duration::from_secs(4)));
        assert_eq!((names(&step.delete), step.look_again), (vec!["p2"], Some(Duration::from_secs(4))));
    }

    #[test]
    fn a_surging_node_has_two_until_the_new_one_serves() {
        let set = set(json!({"maxSurge": 1, "maxUnavailable": 0}));
        let nodes = [node("a", json!([]))];
        for (old, new, gone) in
            [("ready", "unready", vec![]), ("ready", "ready", vec!["old"]), ("unready", "unready", vec!["old"])]
        {
            let pods = [pod("old", "a", "old", old), pod("new", "a", "new", new)];
            let step = manage(&observed(&set, &nodes, &pods), &|_| None);
            assert_eq!(names(&step.delete), gone, "{old} {new}");
        }
    }
}
