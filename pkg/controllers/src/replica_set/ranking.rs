//! Which pods go first when a replica set has too many: those that serve least.

use isopod_api::time;
use isopod_client::views::Pod;
use jiff::Timestamp;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// `count` of `pods`, in the order in which they should go. `related` are the pods to be spread over nodes together.
pub fn first_to_delete(pods: &[Arc<Pod>], related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|p| p.is_active()) {
        *on_node.entry(&pod.spec.node_name).or_default() += 1;
    }
    let neighbours = |p: &Pod| on_node.get(p.spec.node_name.as_str()).copied().unwrap_or_default();
    let mut sorted = pods.to_vec();
    sorted.sort_by(|a, b| compare(a, b, neighbours(a), neighbours(b), now));
    sorted.truncate(count);
    sorted
}

fn compare(a: &Pod, b: &Pod, neighbours_a: usize, neighbours_b: usize, now: Timestamp) -> Ordering {
    let is_assigned = |p: &Pod| !p.spec.node_name.is_empty();
    let cost = |p: &Pod| p.metadata.annotations.get(DELETION_COST).and_then(|c| c.parse::<i32>().ok()).unwrap_or(0);
    is_assigned(a)
        .cmp(&is_assigned(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| a.is_ready().cmp(&b.is_ready()))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| neighbours_b.cmp(&neighbours_a))
        .then_with(|| match (a.is_ready(), b.is_ready()) {
            (true, true) => by_age(ready_since(a), ready_since(b), a, b, now),
            _ => Ordering::Equal,
        })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| {
            by_age(time::parse(&a.metadata.creation_timestamp), time::parse(&b.metadata.creation_timestamp), a, b, now)
        })
}

fn phase_rank(pod: &Pod) -> u8 {
    match pod.status.phase.as_str() {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    }
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    pod.condition("Ready").and_then(|c| c.last_transition_time.as_deref()).and_then(time::parse)
}

fn restarts(pod: &Pod) -> i32 {
    pod.status.container_statuses.iter().map(|c| c.restart_count).max().unwrap_or_default()
}

/// The younger first; ages within one power of two count as the same and the uid decides, so that not always the newest
/// go. A missing time is the youngest.
fn by_age(a: Option<Timestamp>, b: Option<Timestamp>, pod_a: &Pod, pod_b: &Pod, now: Timestamp) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) if a == b => Ordering::Equal,
        (Some(a), Some(b)) => {
            magnitude(a, now).cmp(&magnitude(b, now)).then_with(|| pod_a.metadata.uid.cmp(&pod_b.metadata.uid))
        }
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

fn magnitude(since: Timestamp, now: Timestamp) -> i32 {
    let age = now.duration_since(since).as_nanos();
    if age > 0 { age.ilog2() as i32 } else { -1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, node: &str, phase: &str, ready: bool, created: &str) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name, "creationTimestamp": created},
                "spec": {"nodeName": node},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": created}]},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn who_serves_least_goes_first() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let old = "2026-01-01T00:00:00Z";
        let pods = [
            pod("ready-old", "n1", "Running", true, old),
            pod("ready-young", "n1", "Running", true, "2026-01-01T23:59:00Z"),
            pod("unready", "n1", "Running", false, old),
            pod("pending", "n1", "Pending", false, old),
            pod("unassigned", "", "Pending", false, old),
        ];
        let order: Vec<String> =
            first_to_delete(&pods, &pods, 5, now).iter().map(|p| p.metadata.name.clone()).collect();
        assert_eq!(order, ["unassigned", "pending", "unready", "ready-young", "ready-old"]);
    }

    #[test]
    fn crowded_nodes_lose_first_and_cost_goes_before_that() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let t = "2026-01-01T00:00:00Z";
        let alone = pod("alone", "n1", "Running", true, t);
        let crowded = [pod("b", "n2", "Running", true, t), pod("c", "n2", "Running", true, t)];
        let all = [alone.clone(), crowded[0].clone(), crowded[1].clone()];
        assert_eq!(first_to_delete(&all, &all, 1, now)[0].spec.node_name, "n2");
        let mut cheap = (*alone).clone();
        cheap.metadata.annotations.insert(DELETION_COST.into(), "-5".into());
        let all = [Arc::new(cheap), crowded[0].clone()];
        assert_eq!(first_to_delete(&all, &all, 1, now)[0].metadata.name, "alone");
    }
}
