//! Watches over nodes: one whose heartbeats stop becomes unknown, and taints keep pods off nodes in trouble.
//!
//! Watches nodes, their leases in `kube-node-lease` and pods; writes node conditions, taints and the old os and arch labels,
//! and `Ready=False` on the pods of a node that is not heard of. Invariants: heartbeats are timed by our own clock from when
//! they are seen, so a clock that is off on a node does no harm; before a node is given up its lease is read from the
//! server itself; when no node at all is ready nothing is evicted, because then it is rather we who are cut off.

mod plan;

use crate::controller::{Context, Controller, Error, Key};
use crate::disruption::{self, index_by_node, pods_on};
use crate::op::Op;
use async_trait::async_trait;
use isopod_client::events::{Kind, ObjectRef};
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Lease, Node, Pod};
use isopod_client::{Change, Informer, ListScope};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

const LEASES: &str = "kube-node-lease";
/// A node that has never reported has this long to do so.
const STARTUP_GRACE: Duration = Duration::from_secs(60);

struct NodeLifecycle {
    context: Context,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    health: Mutex<HashMap<String, Health>>,
}

/// What was last seen of a node, and when.
#[derive(Clone, Debug, PartialEq)]
struct Health {
    uid: String,
    heartbeat: Option<String>,
    renewed: Option<String>,
    seen: Timestamp,
}

pub async fn run(context: Context) {
    let nodes = context.informer::<Node>(Node::resource());
    let pods = context.informer::<Pod>(Pod::resource());
    let leases = context.informers.get::<Lease>(Lease::resource(), ListScope::namespace(LEASES));
    index_by_node(&pods);
    nodes.synced().await;
    leases.synced().await;
    pods.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    let (all, again) = (nodes.clone(), queue.clone());
    context.feed(&nodes, move |change| {
        let (old, new) = match &change {
            Change::Applied { old, new } => (old.as_deref(), Some(&**new)),
            Change::Deleted(old) => (Some(&**old), None),
            Change::Resync => return,
        };
        // Whether any node is ready matters to every node.
        if old.is_some_and(plan::is_ready) != new.is_some_and(plan::is_ready) {
            all.list().iter().for_each(|n| again.add(Key::of(&n.metadata)));
        }
        if let Some(n) = new.or(old) {
            again.add(Key::of(&n.metadata));
        }
    });
    let again = queue.clone();
    context.feed(&leases, move |change| {
        if let Change::Applied { new, .. } = change {
            again.add(Key::new("", &new.metadata.name));
        }
    });
    let health = Mutex::default();
    let controller = Arc::new(NodeLifecycle { context: context.clone(), nodes, leases, pods, health });
    context.work(controller, queue, 4).await;
}

#[async_trait]
impl Controller for NodeLifecycle {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(node) = self.nodes.get("", &key.name) else {
            if let Some(gone) = self.health.lock().remove(&key.name) {
                self.node_event(
                    &key.name,
                    &gone.uid,
                    "RemovingNode",
                    format!("Removing Node {} from Controller", key.name),
                );
            }
            return Ok(None);
        };
        let now = self.context.clock.now();
        let lease = self.leases.get(LEASES, &key.name);
        let mut seen = self.observe(&node, lease.as_deref(), now);
        let grace = if node.condition("Ready").is_some() {
            self.context.options.node_monitor_grace_period
        } else {
            STARTUP_GRACE
        };
        if is_late(seen, grace, now) && !plan::is_unknown(&node) {
            // The cache may be behind: ask before giving a node up.
            let calls = self.context.calls(Lease::resource());
            let fresh: Option<Lease> = calls.find(LEASES, &key.name).await?;
            seen = self.observe(&node, fresh.as_ref(), now);
        }
        let late = is_late(seen, grace, now);
        let any_ready = self.nodes.list().iter().any(|n| plan::is_ready(n));
        let conditions = late.then(|| plan::unknown_conditions(&node, now)).flatten();
        if let Some(op) = &conditions {
            self.context.apply(op).await?;
            if plan::is_ready(&node) {
                let text = format!("Node {} status is now: NodeNotReady", key.name);
                self.node_event(&key.name, &node.metadata.uid, "NodeNotReady", text);
            }
            // The change comes back through the cache and brings the taints.
            return Ok(None);
        }
        self.context.apply_all(&plan::labels(&node)).await?;
        if let Some(op) = plan::taints(&node, any_ready, now) {
            self.context.apply(&op).await?;
        }
        if plan::is_unknown(&node) {
            self.mark_pods(&node, now).await?;
        }
        let wait = (seen + grace).duration_since(now);
        Ok((!late).then(|| wait.unsigned_abs() + Duration::from_millis(100)))
    }
}

fn is_late(seen: Timestamp, grace: Duration, now: Timestamp) -> bool {
    seen + grace < now
}

impl NodeLifecycle {
    /// Takes note of heartbeats and returns when the last one was seen.
    fn observe(&self, node: &Node, lease: Option<&Lease>, now: Timestamp) -> Timestamp {
        let heartbeat = node.condition("Ready").and_then(|c| c.last_heartbeat_time.clone());
        let renewed = lease.and_then(|l| l.spec.renew_time.clone());
        let uid = &node.metadata.uid;
        let mut all = self.health.lock();
        let known = all.get(&node.metadata.name).filter(|h| h.uid == *uid);
        let seen = match known {
            None => {
                let name = &node.metadata.name;
                self.node_event(name, uid, "RegisteredNode", format!("Registered Node {name} in Controller"));
                now
            }
            Some(h) if h.heartbeat != heartbeat || (renewed.is_some() && h.renewed != renewed) => now,
            Some(h) => h.seen,
        };
        all.insert(node.metadata.name.clone(), Health { uid: uid.clone(), heartbeat, renewed, seen });
        seen
    }

    fn node_event(&self, name: &str, uid: &str, reason: &str, message: String) {
        let about = ObjectRef {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            ..ObjectRef::default()
        };
        self.context.recorder.event(&about, Kind::Normal, reason, message);
    }

    /// Pods of a node that is not heard of get no traffic.
    async fn mark_pods(&self, node: &Node, now: Timestamp) -> Result<(), Error> {
        for pod in pods_on(&self.pods, &node.metadata.name) {
            if !pod.is_ready() {
                continue;
            }
            let op = disruption::set_condition(&pod, "Ready", "False", "", "", now);
            match self.context.apply(&op).await {
                Err(Error::Call { source, .. }) if source.is_not_found() || source.is_conflict() => continue,
                other => other?,
            };
            let about = ObjectRef::new("v1", "Pod", &pod.metadata);
            let op = Op::event(&about, Kind::Warning, "NodeNotReady", "Node is not ready");
            self.context.apply(&op).await?;
        }
        Ok(())
    }
}
