//! What a node's conditions ask for: unknown conditions, taints, labels.

use crate::op::Op;
use isopod_api::time;
use isopod_client::Patch;
use isopod_client::views::{Node, Taint};
use jiff::Timestamp;
use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The taint of a condition that is true.
const PRESSURE: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];

/// Conditions that the kubelet keeps and that are unknown without it.
const KEPT_BY_KUBELET: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

fn ready(node: &Node) -> Option<&str> {
    node.condition("Ready").map(|c| c.status.as_str())
}

pub fn is_ready(node: &Node) -> bool {
    ready(node) == Some("True")
}

pub fn is_unknown(node: &Node) -> bool {
    ready(node) == Some("Unknown")
}

/// Makes what the kubelet reports unknown; nothing when it is already.
pub fn unknown_conditions(node: &Node, now: Timestamp) -> Option<Op> {
    let mut changes: Vec<Value> = Vec::new();
    for kind in KEPT_BY_KUBELET {
        let (reason, message) = match node.condition(kind) {
            Some(c) if c.status == "Unknown" => continue,
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let heartbeat = node
            .condition(kind)
            .and_then(|c| c.last_heartbeat_time.clone())
            .unwrap_or_else(|| node.metadata.creation_timestamp.clone());
        changes.push(json!({"type": kind, "status": "Unknown", "reason": reason, "message": message,
            "lastHeartbeatTime": heartbeat, "lastTransitionTime": time::format(now)}));
    }
    if changes.is_empty() {
        return None;
    }
    let patch = Patch::Strategic(json!({"status": {"conditions": changes}}));
    let m = &node.metadata;
    // A node that reports at this very moment wins.
    Some(Op::patch(Node::resource(), "", &m.name, patch).on_subresource("status").if_unchanged(&m.resource_version))
}

fn is_ours(taint: &Taint) -> bool {
    match taint.effect.as_str() {
        "NoSchedule" => {
            matches!(taint.key.as_str(), NOT_READY | UNREACHABLE | UNSCHEDULABLE)
                || PRESSURE.iter().any(|(_, key)| *key == taint.key)
        }
        "NoExecute" => matches!(taint.key.as_str(), NOT_READY | UNREACHABLE),
        _ => false,
    }
}

/// Key and effect of the taints that the node should have from us.
fn wanted(node: &Node, any_ready: bool) -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    // A node that has not reported yet keeps the taint that admission gave it.
    let trouble = match ready(node) {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        Some(_) => Some(NOT_READY),
        None => node.spec.taints.iter().any(|t| t.key == NOT_READY).then_some(NOT_READY),
    };
    if let Some(key) = trouble {
        wanted.push((key, "NoSchedule"));
        if any_ready && ready(node).is_some() {
            wanted.push((key, "NoExecute"));
        }
    }
    for (condition, key) in PRESSURE {
        if node.condition(condition).is_some_and(|c| c.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted
}

/// The write of taints that differ from those in the node. `any_ready`: some node of the cluster is ready.
pub fn taints(node: &Node, any_ready: bool, now: Timestamp) -> Option<Op> {
    let wanted = wanted(node, any_ready);
    let is_wanted = |t: &Taint| wanted.iter().any(|(key, effect)| t.key == *key && t.effect == *effect);
    let mut after: Vec<Taint> = node.spec.taints.iter().filter(|t| !is_ours(t) || is_wanted(t)).cloned().collect();
    for (key, effect) in &wanted {
        if !after.iter().any(|t| t.key == *key && t.effect == *effect) {
            after.push(Taint {
                key: (*key).to_owned(),
                value: String::new(),
                effect: (*effect).to_owned(),
                time_added: Some(time::format(now)),
            });
        }
    }
    if after == node.spec.taints {
        return None;
    }
    let list = if after.is_empty() { Value::Null } else { json!(after) };
    let m = &node.metadata;
    let patch = Patch::Merge(json!({"spec": {"taints": list}}));
    Some(Op::patch(Node::resource(), "", &m.name, patch).if_unchanged(&m.resource_version))
}

/// Keeps the old labels of operating system and architecture equal to the stable ones.
pub fn labels(node: &Node) -> Vec<Op> {
    let mut changes = serde_json::Map::new();
    for (stable, old) in
        [("kubernetes.io/os", "beta.kubernetes.io/os"), ("kubernetes.io/arch", "beta.kubernetes.io/arch")]
    {
        let labels = &node.metadata.labels;
        if let Some(value) = labels.get(stable).filter(|v| labels.get(old) != Some(v)) {
            changes.insert(old.to_owned(), json!(value));
        }
    }
    if changes.is_empty() {
        return Vec::new();
    }
    let patch = Patch::Merge(json!({"metadata": {"labels": changes}}));
    vec![Op::patch(Node::resource(), "", &node.metadata.name, patch).if_uid(&node.metadata.uid)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:10:00Z";

    fn node(ready: &str, spec: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1", "resourceVersion": "5"}, "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": ready}, {"type": "MemoryPressure", "status": "False"}]}}))
        .unwrap()
    }

    fn check(node: &Node, any_ready: bool, want: Option<&[(&str, &str)]>) {
        let got = taints(node, any_ready, NOW.parse().unwrap()).map(|op| {
            let Op::Patch { patch: Patch::Merge(body), .. } = op else { panic!() };
            let list = body["spec"]["taints"].as_array().cloned().unwrap_or_default();
            let text = |t: &Value, k: &str| t[k].as_str().unwrap().to_owned();
            list.iter().map(|t| (text(t, "key"), text(t, "effect"))).collect::<Vec<_>>()
        });
        let want = want.map(|w| w.iter().map(|(k, e)| ((*k).to_owned(), (*e).to_owned())).collect::<Vec<_>>());
        assert_eq!(got, want, "{:?}", node.spec);
    }

    #[test]
    fn taints_follow_the_conditions() {
        let (schedule, execute) = ("NoSchedule", "NoExecute");
        let own = json!({"taints": [{"key": "mine", "effect": "NoSchedule"}]});
        check(&node("True", json!({})), true, None);
        check(&node("False", json!({})), true, Some(&[(NOT_READY, schedule), (NOT_READY, execute)]));
        check(
            &node("Unknown", own),
            true,
            Some(&[("mine", schedule), (UNREACHABLE, schedule), (UNREACHABLE, execute)]),
        );
        // Nobody is ready: nothing is evicted.
        check(&node("Unknown", json!({})), false, Some(&[(UNREACHABLE, schedule)]));
        let fresh = json!({"taints": [{"key": NOT_READY, "effect": "NoSchedule"}]});
        check(&node("True", fresh.clone()), true, Some(&[]));
        let mut silent = node("True", fresh);
        silent.status.conditions.clear();
        check(&silent, true, None);
        check(&node("True", json!({"unschedulable": true})), true, Some(&[(UNSCHEDULABLE, schedule)]));
        // From unreachable to not ready and back the taints are swapped.
        let was = json!({"taints": [{"key": UNREACHABLE, "effect": "NoExecute"}, {"key": UNREACHABLE, "effect": "NoSchedule"}]});
        check(&node("False", was), true, Some(&[(NOT_READY, schedule), (NOT_READY, execute)]));
    }

    #[test]
    fn a_silent_node_becomes_unknown_once() {
        let now = NOW.parse().unwrap();
        let mut n = node("True", json!({}));
        let text = unknown_conditions(&n, now).unwrap().to_string();
        assert!(
            text.contains(r#""reason":"NodeStatusUnknown""#) && text.contains(r#""reason":"NodeStatusNeverUpdated""#),
            "{text}"
        );
        n.status.conditions = KEPT_BY_KUBELET
            .iter()
            .map(|k| serde_json::from_value(json!({"type": k, "status": "Unknown"})).unwrap())
            .collect();
        assert_eq!(unknown_conditions(&n, now), None);
    }
}
