//! The loop: takes in changes, tries one pod after another, binds in the background.

use crate::algorithm::{Refusal, Search};
use crate::cluster::Cluster;
use crate::framework::{
    ANY, NAMESPACE_LABELS, NODE_ADDED, NODE_LABELS, NODE_SIZE, NODE_TAINTS, POD_GONE, POD_PLACED, Wake,
};
use crate::plugins::ALL;
use crate::pod::PodInfo;
use crate::preemption::{self, Preemption};
use crate::queue::Queue;
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use isopod_client::events::{ObjectRef, Recorder};
use isopod_client::views::{MetaOnly, Namespace, Node, Pod, PodDisruptionBudget};
use isopod_client::{Calls, Change, Delete, Informer, Informers, ListScope, Patch, Preconditions};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// What `spec.schedulerName` says for pods of this scheduler.
pub const NAME: &str = "default-scheduler";
/// The user as which it speaks to the API server.
pub const USER: &str = "system:kube-scheduler";
/// Bindings and status patches under way at once.
const IN_FLIGHT: usize = 32;

/// A binding ended.
struct Bound {
    pod: Arc<PodInfo>,
    attempts: u32,
    ok: bool,
}

/// Runs until `stop`. `client` speaks as [`USER`].
pub async fn run(client: kube::Client, clock: Clock, stop: CancellationToken) {
    let informers = Informers::with_clock(client.clone(), clock.clone());
    let nodes = informers.get::<Node>(Node::resource(), ListScope::all());
    let pods = informers.get::<Pod>(Pod::resource(), ListScope::all());
    let namespaces = informers.get::<Namespace>(Namespace::resource(), ListScope::all());
    let budgets = informers.get::<PodDisruptionBudget>(PodDisruptionBudget::resource(), ListScope::all());
    let (bound, mut ended) = mpsc::unbounded_channel();
    let mut scheduler = Scheduler {
        cluster: Cluster::default(),
        queue: Queue::default(),
        search: Search::default(),
        budgets: budgets.clone(),
        pods: Calls::new(client.clone(), Pod::resource()),
        recorder: Recorder::new(client, NAME, "", clock.clone()),
        clock: clock.clone(),
        bound,
        permits: Arc::new(Semaphore::new(IN_FLIGHT)),
    };
    let (mut nodes, mut pods, mut namespaces) = {
        tokio::select! {
            () = async {
                nodes.synced().await;
                pods.synced().await;
                namespaces.synced().await;
                budgets.synced().await;
            } => {}
            () = stop.cancelled() => return,
        }
        (nodes.subscribe(), pods.subscribe(), namespaces.subscribe())
    };
    loop {
        while let Ok(c) = namespaces.try_recv() {
            scheduler.on_namespace(c);
        }
        while let Ok(c) = nodes.try_recv() {
            scheduler.on_node(c);
        }
        while let Ok(c) = pods.try_recv() {
            scheduler.on_pod(c);
        }
        while let Ok(b) = ended.try_recv() {
            scheduler.on_bound(b);
        }
        if stop.is_cancelled() {
            return;
        }
        if scheduler.try_next() {
            // Others on this thread get their turn.
            tokio::task::yield_now().await;
            continue;
        }
        let deadline = scheduler.queue.next_deadline();
        let timer = async {
            match deadline {
                Some(at) => clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(c) = namespaces.recv() => scheduler.on_namespace(c),
            Some(c) = nodes.recv() => scheduler.on_node(c),
            Some(c) = pods.recv() => scheduler.on_pod(c),
            Some(b) = ended.recv() => scheduler.on_bound(b),
            () = timer => {}
            () = stop.cancelled() => return,
        }
    }
}

struct Scheduler {
    cluster: Cluster,
    queue: Queue,
    search: Search,
    budgets: Informer<PodDisruptionBudget>,
    pods: Calls,
    recorder: Recorder,
    clock: Clock,
    bound: mpsc::UnboundedSender<Bound>,
    permits: Arc<Semaphore>,
}

impl Scheduler {
    fn wake(&mut self, what: Wake) {
        if what != 0 {
            self.queue.wake(what, self.clock.now());
        }
    }

    fn on_namespace(&mut self, change: Change<Namespace>) {
        match change {
            Change::Applied { old, new } => {
                if old.is_none_or(|o| o.metadata.labels != new.metadata.labels) {
                    self.cluster.namespaces.insert(new.metadata.name.clone(), new.metadata.labels.clone());
                    self.wake(NAMESPACE_LABELS);
                }
            }
            Change::Deleted(old) => drop(self.cluster.namespaces.remove(&old.metadata.name)),
            Change::Resync => {}
        }
    }

    fn on_node(&mut self, change: Change<Node>) {
        match change {
            Change::Applied { old, new } => {
                let what = old.as_ref().map_or(NODE_ADDED, |old| node_changes(old, &new));
                self.cluster.set_node(new);
                self.wake(what);
            }
            Change::Deleted(old) => self.cluster.remove_node(&old.metadata.name),
            Change::Resync => {}
        }
    }

    fn on_pod(&mut self, change: Change<Pod>) {
        match change {
            Change::Applied { old, new } => {
                if let Some(old) = &old
                    && old.metadata.uid != new.metadata.uid
                {
                    self.forget(&old.metadata.uid);
                }
                self.on_pod_state(old.as_deref(), &new);
            }
            Change::Deleted(old) => self.forget(&old.metadata.uid),
            Change::Resync => {}
        }
    }

    fn on_pod_state(&mut self, old: Option<&Pod>, new: &Arc<Pod>) {
        let uid = new.metadata.uid.as_str();
        if !new.spec.node_name.is_empty() {
            self.queue.remove(uid);
            self.cluster.withdraw(uid);
            let was_there = self.cluster.is_placed(uid);
            self.cluster.observe(new);
            let relabeled = old.is_some_and(|o| o.metadata.labels != new.metadata.labels);
            if new.is_terminal() {
                self.wake(if was_there { POD_GONE } else { 0 });
            } else if !was_there || relabeled {
                self.wake(POD_PLACED);
            }
            return;
        }
        let ours = new.spec.scheduler_name == NAME && new.spec.scheduling_gates.is_empty() && new.is_active();
        if !ours {
            self.queue.remove(uid);
            self.cluster.withdraw(uid);
            return;
        }
        if !new.status.nominated_node_name.is_empty() && !self.cluster.is_placed(uid) {
            self.cluster.nominate(Arc::new(PodInfo::new(new.clone())), &new.status.nominated_node_name);
        }
        // Its own status patch is no reason to try it again; nor is a pod tried whose binding is under way.
        let matters = old.is_none_or(|o| o.spec != new.spec || o.metadata.labels != new.metadata.labels);
        if matters && !self.cluster.is_placed(uid) {
            self.queue.add(Arc::new(PodInfo::new(new.clone())), self.clock.now());
        }
    }

    fn forget(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.cluster.withdraw(uid);
        if self.cluster.remove_pod(uid) {
            self.wake(POD_GONE);
        }
    }

    /// Tries the next pod. Tells whether there was one.
    fn try_next(&mut self) -> bool {
        let Some((pod, tried)) = self.queue.pop(self.clock.now()) else { return false };
        let attempts = tried + 1;
        let search = &mut self.search;
        match self.cluster.with_nominated(&pod, |cluster| search.choose(&pod, cluster, ALL)) {
            Ok(node) => {
                self.cluster.withdraw(pod.uid());
                self.cluster.place(pod.clone(), &node);
                self.bind(pod, node, attempts);
            }
            Err(refusal) => {
                self.make_room(&pod, &refusal);
                let wakes_on = if refusal.nodes == 0 { NODE_ADDED } else { refusal.wakes_on };
                self.queue.failed(pod, attempts, wakes_on, self.clock.now());
            }
        }
        true
    }

    fn bind(&self, pod: Arc<PodInfo>, node: String, attempts: u32) {
        let (calls, bound, permits) = (self.pods.clone(), self.bound.clone(), self.permits.clone());
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            let _permit = permits.acquire_owned().await;
            let meta = &pod.pod.metadata;
            let result = calls.bind(&meta.namespace, &meta.name, &meta.uid, &node).await;
            let about = ObjectRef::new("v1", "Pod", meta);
            match &result {
                Ok(()) => {
                    let text = format!("Successfully assigned {}/{} to {node}", meta.namespace, meta.name);
                    recorder.normal(&about, "Scheduled", text);
                }
                // Deleted, or bound by another, meanwhile: the informer tells.
                Err(e) if e.is_not_found() || e.is_conflict() => {
                    tracing::debug!(pod = %meta.name, error = %Chain(e), "not bound")
                }
                Err(e) => recorder.warning(&about, "FailedScheduling", format!("binding rejected: {}", Chain(e))),
            }
            // The loop may have ended.
            let _ = bound.send(Bound { ok: result.is_ok(), pod, attempts });
        });
    }

    fn on_bound(&mut self, b: Bound) {
        if b.ok {
            return;
        }
        self.cluster.remove_pod(b.pod.uid());
        self.queue.failed(b.pod, b.attempts, 0, self.clock.now());
        self.wake(ANY);
    }

    /// The pod fits nowhere: says so, and asks those of lower priority to leave a node where that helps.
    fn make_room(&mut self, pod: &Arc<PodInfo>, refusal: &Refusal) {
        if refusal.nodes == 0 {
            return self.say_unschedulable(pod, refusal.to_string(), None);
        }
        match preemption::find(pod, &mut self.cluster, ALL, &self.budgets.list()) {
            Ok(found) => {
                let node = found.node.clone();
                for other in self.cluster.outranked(pod, &node) {
                    self.cluster.withdraw(other.uid());
                    self.patch_status(&other, json!({"nominatedNodeName": null}));
                }
                self.cluster.nominate(pod.clone(), &node);
                self.say_unschedulable(pod, refusal.to_string(), Some(&node));
                self.preempt(pod, found);
            }
            Err(why) => self.say_unschedulable(pod, format!("{refusal} {why}"), None),
        }
    }

    /// An event, and the pod's `PodScheduled` condition where it does not say so yet.
    fn say_unschedulable(&self, pod: &Arc<PodInfo>, message: String, nominated: Option<&str>) {
        let meta = &pod.pod.metadata;
        self.recorder.warning(&ObjectRef::new("v1", "Pod", meta), "FailedScheduling", message.clone());
        let present = pod.pod.condition("PodScheduled");
        let said = present.is_some_and(|c| c.status == "False" && c.reason == "Unschedulable" && c.message == message);
        if said && nominated.is_none_or(|n| n == pod.pod.status.nominated_node_name) {
            return;
        }
        let since = match present {
            Some(c) if c.status == "False" => c.last_transition_time.clone().unwrap_or_default(),
            _ => isopod_api::time::format(self.clock.now()),
        };
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastProbeTime": null, "lastTransitionTime": since, "observedGeneration": meta.generation});
        let mut status = json!({"conditions": [condition]});
        if let Some(node) = nominated {
            status["nominatedNodeName"] = node.into();
        }
        self.patch_status(pod, status);
    }

    /// Writes a part of a pod's status in the background.
    fn patch_status(&self, pod: &Arc<PodInfo>, status: Value) {
        let (calls, permits, pod) = (self.pods.clone(), self.permits.clone(), pod.clone());
        tokio::spawn(async move {
            let _permit = permits.acquire_owned().await;
            if let Err(e) = write_status(&calls, &pod, status).await {
                tell(&pod, &e, "cannot write its status");
            }
        });
    }

    /// Deletes the victims in the background, each with the condition that says why (KEP-3329).
    fn preempt(&self, pod: &Arc<PodInfo>, found: Preemption) {
        let (calls, permits, recorder) = (self.pods.clone(), self.permits.clone(), self.recorder.clone());
        let (winner, now) = (pod.uid().to_owned(), isopod_api::time::format(self.clock.now()));
        tokio::spawn(async move {
            let _permit = permits.acquire_owned().await;
            for victim in found.victims {
                let meta = &victim.pod.metadata;
                if meta.is_being_deleted() {
                    continue;
                }
                let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
                    "message": format!("{NAME}: preempting to accommodate a higher priority pod"),
                    "lastProbeTime": null, "lastTransitionTime": now, "observedGeneration": meta.generation});
                let options = Delete { preconditions: Preconditions::uid(&meta.uid), ..Default::default() };
                let done = match write_status(&calls, &victim, json!({"conditions": [condition]})).await {
                    Ok(()) => calls.delete(&meta.namespace, &meta.name, &options).await.map(drop),
                    failed => failed,
                };
                match done {
                    Ok(()) => {
                        let text = format!("Preempted by pod {winner} on node {}", found.node);
                        recorder.normal(&ObjectRef::new("v1", "Pod", meta), "Preempted", text);
                    }
                    Err(e) => tell(&victim, &e, "cannot preempt it"),
                }
            }
        });
    }
}

async fn write_status(calls: &Calls, pod: &PodInfo, status: Value) -> Result<(), isopod_client::Error> {
    let meta = &pod.pod.metadata;
    let patch = Patch::Strategic(json!({ "status": status }));
    let only = Preconditions::uid(&meta.uid);
    calls.patch::<MetaOnly>(&meta.namespace, &meta.name, Some("status"), patch, &only).await.map(drop)
}

/// Logs what failed on a pod, unless it has gone or another was faster.
fn tell(pod: &PodInfo, error: &isopod_client::Error, what: &str) {
    if !error.is_not_found() && !error.is_conflict() {
        let meta = &pod.pod.metadata;
        tracing::warn!(pod = %format!("{}/{}", meta.namespace, meta.name), error = %Chain(error), "{what}");
    }
}

/// Which of a node's changes may make a pod fit.
fn node_changes(old: &Node, new: &Node) -> Wake {
    let mut what = 0;
    if old.metadata.labels != new.metadata.labels {
        what |= NODE_LABELS;
    }
    if old.spec.taints != new.spec.taints || old.spec.unschedulable != new.spec.unschedulable {
        what |= NODE_TAINTS;
    }
    if old.status.allocatable != new.status.allocatable {
        what |= NODE_SIZE;
    }
    what
}
