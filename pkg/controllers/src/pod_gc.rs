//! Takes away pods that nobody else will: of nodes that are gone, terminating without ever having had a node, on nodes
//! declared out of service, and finished ones above a limit.
//!
//! Watches pods and nodes; fails and deletes pods. Invariant: a node counts as gone only when it has been missing for
//! [`QUARANTINE`] and the server itself says so.

use crate::controller::{Context, Controller, Error, Key};
use crate::disruption::{self, Disruption};
use async_trait::async_trait;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{MetaOnly, Node, Pod};
use isopod_client::{Change, Informer};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const NODE_GONE: Disruption = Disruption { reason: "DeletionByPodGC", message: "PodGC: node no longer exists" };

struct PodGc {
    context: Context,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    /// Nodes that pods name and that are missing, and since when.
    missing: Mutex<BTreeMap<String, Timestamp>>,
}

/// There is one key: a pass looks at all pods.
fn everything() -> Key {
    Key::new("", "all pods")
}

pub async fn run(context: Context) {
    let pods = context.informer::<Pod>(Pod::resource());
    let nodes = context.informer::<Node>(Node::resource());
    pods.synced().await;
    nodes.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    let (known, again, threshold) = (nodes.clone(), queue.clone(), context.options.terminated_pod_gc_threshold);
    context.feed(&pods, move |change| {
        if let Change::Applied { new, .. } = change {
            let node = &new.spec.node_name;
            let concerns = (new.metadata.is_being_deleted()
                && (node.is_empty() || known.get("", node).is_some_and(|n| is_out_of_service(&n))))
                || (new.is_terminal() && threshold > 0)
                || (!node.is_empty() && known.get("", node).is_none());
            if concerns {
                again.add(everything());
            }
        }
    });
    let again = queue.clone();
    context.feed(&nodes, move |change| match change {
        Change::Deleted(_) | Change::Resync => again.add(everything()),
        Change::Applied { new, .. } if is_out_of_service(&new) => again.add(everything()),
        Change::Applied { .. } => {}
    });
    let controller = Arc::new(PodGc { context: context.clone(), pods, nodes, missing: Mutex::default() });
    context.work(controller, queue, 1).await;
}

fn is_out_of_service(node: &Node) -> bool {
    let ready = node.condition("Ready").is_some_and(|c| c.status == "True");
    !ready && node.spec.taints.iter().any(|t| t.key == OUT_OF_SERVICE)
}

/// The pods to take away; of those whose node is gone, `true`.
fn plan(
    pods: &[Arc<Pod>],
    node: &dyn Fn(&str) -> Option<Arc<Node>>,
    gone: &BTreeSet<String>,
    threshold: usize,
) -> Vec<(Arc<Pod>, bool)> {
    let mut finished: Vec<&Arc<Pod>> = pods.iter().filter(|p| p.is_terminal()).collect();
    let surplus = if threshold == 0 { 0 } else { finished.len().saturating_sub(threshold) };
    // Evicted ones first: the others are the history of jobs and the like.
    finished.sort_by_key(|p| {
        (p.status.reason != "Evicted", p.metadata.creation_timestamp.clone(), p.metadata.name.clone())
    });
    let finished: BTreeSet<&str> = finished.iter().take(surplus).map(|p| p.metadata.uid.as_str()).collect();
    let mut out = Vec::new();
    for pod in pods {
        let name = &pod.spec.node_name;
        let node_is_gone = gone.contains(name);
        let stuck =
            pod.metadata.is_being_deleted() && (name.is_empty() || node(name).is_some_and(|n| is_out_of_service(&n)));
        if node_is_gone || stuck || finished.contains(pod.metadata.uid.as_str()) {
            out.push((pod.clone(), node_is_gone));
        }
    }
    out
}

#[async_trait]
impl Controller for PodGc {
    async fn reconcile(&self, _: &Key) -> Result<Option<Duration>, Error> {
        let now = self.context.clock.now();
        let pods = self.pods.list();
        let (gone, next) = self.gone_nodes(&pods, now).await?;
        let node = |name: &str| self.nodes.get("", name);
        let doomed = plan(&pods, &node, &gone, self.context.options.terminated_pod_gc_threshold);
        let mut failed = None;
        for (pod, node_is_gone) in doomed {
            let ops = disruption::remove(&pod, node_is_gone.then_some(&NODE_GONE), now);
            match self.context.apply_all(&ops).await {
                Err(Error::Call { source, .. }) if source.is_not_found() || source.is_conflict() => {}
                Err(e) => failed = Some(e),
                Ok(()) => tracing::debug!(pod = %Key::of(&pod.metadata), "took a pod away that nobody would end"),
            }
        }
        failed.map_or(Ok(next), Err)
    }
}

impl PodGc {
    /// The nodes that are certainly gone, and when the next one may be.
    async fn gone_nodes(
        &self,
        pods: &[Arc<Pod>],
        now: Timestamp,
    ) -> Result<(BTreeSet<String>, Option<Duration>), Error> {
        let due: Vec<String> = {
            let mut missing = self.missing.lock();
            let named: BTreeSet<&String> = pods.iter().map(|p| &p.spec.node_name).filter(|n| !n.is_empty()).collect();
            missing.retain(|name, _| named.contains(name) && self.nodes.get("", name).is_none());
            for name in named {
                if self.nodes.get("", name).is_none() {
                    missing.entry(name.clone()).or_insert(now);
                }
            }
            missing.iter().filter(|(_, since)| **since + QUARANTINE <= now).map(|(n, _)| n.clone()).collect()
        };
        let calls = self.context.calls(Node::resource());
        let mut gone = BTreeSet::new();
        for name in due {
            if calls.find::<MetaOnly>("", &name).await?.is_none() {
                gone.insert(name);
            } else {
                self.missing.lock().remove(&name);
            }
        }
        let missing = self.missing.lock();
        let waits = missing.iter().filter(|(n, _)| !gone.contains(*n));
        let next = waits.map(|(_, since)| (*since + QUARANTINE).duration_since(now).unsigned_abs()).min();
        Ok((gone, next.map(|n| n + Duration::from_millis(10))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, node: &str, phase: &str, extra: Value) -> Arc<Pod> {
        let mut v = json!({"metadata": {"name": name, "uid": name, "creationTimestamp": format!("2026-01-01T00:00:0{}Z", name.len())},
            "spec": {"nodeName": node}, "status": {"phase": phase}});
        isopod_client::calls::merge(&mut v, &extra);
        Arc::new(serde_json::from_value(v).unwrap())
    }

    #[test]
    fn who_is_taken_away() {
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let pods = [
            pod("a", "n1", "Running", json!({})),
            pod("bb", "gone", "Running", json!({})),
            pod("ccc", "", "Pending", going.clone()),
            pod("dddd", "n1", "Running", going.clone()),
            pod("eeeee", "broken", "Running", going),
            pod("ffffff", "n1", "Succeeded", json!({})),
            pod("ggggggg", "n1", "Failed", json!({"status": {"reason": "Evicted"}})),
        ];
        let node = |name: &str| -> Option<Arc<Node>> {
            let taints =
                if name == "broken" { json!([{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]) } else { json!([]) };
            (name != "gone").then(|| Arc::new(serde_json::from_value(json!({"spec": {"taints": taints}})).unwrap()))
        };
        let gone = BTreeSet::from(["gone".to_owned()]);
        let got: Vec<String> = plan(&pods, &node, &gone, 1).iter().map(|(p, _)| p.metadata.name.clone()).collect();
        assert_eq!(got, ["bb", "ccc", "eeeee", "ggggggg"]);
    }
}
