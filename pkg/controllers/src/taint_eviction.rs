//! Evicts pods from nodes with `NoExecute` taints that they do not tolerate, or no longer.
//!
//! Watches nodes and pods; marks pods as disrupted and deletes them. Invariant: a pod's time runs from when the taint was
//! added, so a restart of ours neither shortens nor lengthens it.

use crate::controller::{Context, Controller, Error, Key};
use crate::disruption::{self, Disruption, index_by_node, pods_on};
use crate::op::Op;
use async_trait::async_trait;
use isopod_api::time;
use isopod_client::events::{Kind, ObjectRef};
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Node, Pod, Toleration};
use isopod_client::{Change, Informer};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

const WHY: Disruption =
    Disruption { reason: "DeletionByTaintManager", message: "Taint manager: deleting due to NoExecute taint" };

struct TaintEviction {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
}

pub async fn run(context: Context) {
    let nodes = context.informer::<Node>(Node::resource());
    let pods = context.informer::<Pod>(Pod::resource());
    index_by_node(&pods);
    nodes.synced().await;
    pods.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    let again = queue.clone();
    context.feed(&pods, move |change| {
        if let Change::Applied { old, new } = change {
            let moved =
                |o: &Arc<Pod>| o.spec.node_name != new.spec.node_name || o.spec.tolerations != new.spec.tolerations;
            if !new.spec.node_name.is_empty() && old.as_ref().is_none_or(moved) {
                again.add(Key::of(&new.metadata));
            }
        }
    });
    let (on_node, again) = (pods.clone(), queue.clone());
    context.feed(&nodes, move |change| {
        let Change::Applied { old, new } = change else { return };
        let evicting = |n: &Node| n.spec.taints.iter().filter(|t| t.effect == "NoExecute").cloned().collect::<Vec<_>>();
        if old.map(|o| evicting(&o)).unwrap_or_default() != evicting(&new) {
            pods_on(&on_node, &new.metadata.name).iter().for_each(|p| again.add(Key::of(&p.metadata)));
        }
    });
    let controller = Arc::new(TaintEviction { context: context.clone(), nodes, pods });
    context.work(controller, queue, 4).await;
}

/// When the pod has to go; `None` when it may stay.
fn evict_at(pod: &Pod, node: &Node, now: Timestamp) -> Option<Timestamp> {
    let mut earliest: Option<Timestamp> = None;
    for taint in node.spec.taints.iter().filter(|t| t.effect == "NoExecute") {
        let matching: Vec<&Toleration> = pod.spec.tolerations.iter().filter(|t| t.tolerates(taint)).collect();
        if matching.is_empty() {
            return Some(now);
        }
        // Of several tolerations of one taint, the shortest time counts; one without a time lasts.
        let Some(seconds) = matching.iter().filter_map(|t| t.toleration_seconds).min() else { continue };
        let since = taint.time_added.as_deref().and_then(time::parse).unwrap_or(now);
        let at = if seconds <= 0 { now } else { since + SignedDuration::from_secs(seconds) };
        earliest = Some(earliest.map_or(at, |e| e.min(at)));
    }
    earliest
}

#[async_trait]
impl Controller for TaintEviction {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(None) };
        let Some(node) = self.nodes.get("", &pod.spec.node_name) else { return Ok(None) };
        if pod.metadata.is_being_deleted() {
            return Ok(None);
        }
        let now = self.context.clock.now();
        match evict_at(&pod, &node, now) {
            None => Ok(None),
            Some(at) if at > now => Ok(Some(at.duration_since(now).unsigned_abs() + Duration::from_millis(10))),
            Some(_) => {
                let about = ObjectRef::new("v1", "Pod", &pod.metadata);
                let text = format!("Marking for deletion Pod {key}");
                let mut ops = vec![Op::event(&about, Kind::Normal, "TaintManagerEviction", text)];
                ops.extend(disruption::mark(&pod, &WHY, now));
                ops.push(Op::delete(Pod::resource(), &key.namespace, &key.name).if_uid(&pod.metadata.uid));
                self.context.apply_all(&ops).await.map(|()| None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_time_of_eviction() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let node = |taints: Value| -> Node { serde_json::from_value(json!({"spec": {"taints": taints}})).unwrap() };
        let unreachable = json!([{"key": "u", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]);
        let at = |s: &str| Some(s.parse::<Timestamp>().unwrap());
        for (taints, tolerations, want) in [
            (json!([]), json!([]), None),
            (json!([{"key": "u", "effect": "NoSchedule"}]), json!([]), None),
            (unreachable.clone(), json!([]), Some(now)),
            (unreachable.clone(), json!([{"key": "u", "operator": "Exists"}]), None),
            (unreachable.clone(), json!([{"operator": "Exists"}]), None),
            (
                unreachable.clone(),
                json!([{"key": "u", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]),
                at("2026-01-01T00:05:00Z"),
            ),
            (
                unreachable.clone(),
                json!([{"key": "u", "operator": "Exists", "tolerationSeconds": 300}, {"operator": "Exists", "tolerationSeconds": 90}]),
                at("2026-01-01T00:01:30Z"),
            ),
            (unreachable, json!([{"key": "u", "value": "x"}]), Some(now)),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": {"tolerations": tolerations}})).unwrap();
            assert_eq!(evict_at(&pod, &node(taints.clone()), now), want, "{taints} {tolerations}");
        }
    }
}
