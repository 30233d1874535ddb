//! How controllers take pods away: failed first, with the reason as a condition, then deleted.

use crate::op::Op;
use isopod_api::time;
use isopod_client::views::Pod;
use isopod_client::{Delete, Informer, Patch, Preconditions};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;

const BY_NODE: &str = "node";

pub fn index_by_node(pods: &Informer<Pod>) {
    pods.add_index(BY_NODE, |p| vec![p.spec.node_name.clone()]);
}

/// The pods bound to a node; the empty name gives those bound to none.
pub fn pods_on(pods: &Informer<Pod>, node: &str) -> Vec<Arc<Pod>> {
    pods.by_index(BY_NODE, node)
}

/// Reason and message of the condition `DisruptionTarget` (KEP-3329).
pub struct Disruption {
    pub reason: &'static str,
    pub message: &'static str,
}

fn status_patch(pod: &Pod, status: Value) -> Op {
    let m = &pod.metadata;
    let patch = Patch::Strategic(json!({"status": status}));
    Op::patch(Pod::resource(), &m.namespace, &m.name, patch).on_subresource("status").if_uid(&m.uid)
}

/// One condition of a pod's status.
pub fn set_condition(pod: &Pod, kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Op {
    status_patch(pod, json!({"conditions": [condition(pod, kind, status, reason, message, now)]}))
}

fn condition(pod: &Pod, kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    let same = pod.condition(kind).filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    let mut c =
        json!({"type": kind, "status": status, "lastTransitionTime": same.unwrap_or_else(|| time::format(now))});
    if !reason.is_empty() {
        c["reason"] = json!(reason);
        c["message"] = json!(message);
    }
    c
}

/// Marks the pod as disrupted; the kubelet ends it.
pub fn mark(pod: &Pod, why: &Disruption, now: Timestamp) -> Option<Op> {
    let marked = |c: &isopod_client::views::Condition| c.status == "True" && c.reason == why.reason;
    let needed = !pod.condition("DisruptionTarget").is_some_and(marked);
    needed.then(|| set_condition(pod, "DisruptionTarget", "True", why.reason, why.message, now))
}

/// Takes away a pod that no kubelet will end: failed, unless it has finished, and deleted at once.
pub fn remove(pod: &Pod, why: Option<&Disruption>, now: Timestamp) -> Vec<Op> {
    let mut ops = Vec::new();
    if !pod.is_terminal() {
        let mut status = json!({"phase": "Failed"});
        if let Some(why) = why {
            status["conditions"] = json!([condition(pod, "DisruptionTarget", "True", why.reason, why.message, now)]);
        }
        ops.push(status_patch(pod, status));
    }
    let options = Delete {
        preconditions: Preconditions::uid(&pod.metadata.uid),
        grace_period_seconds: Some(0),
        propagation: None,
    };
    let (namespace, name) = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
    ops.push(Op::Delete { resource: Pod::resource(), namespace, name, options });
    ops
}
