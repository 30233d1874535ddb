//! `NodeResourcesFit`: a node has room for what the pod requests; the emptier node (`LeastAllocated`) is preferred.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{Filter, NODE_ADDED, NODE_SIZE, Normalize, POD_GONE, Plugin, Reasons, Score, Wake};
use crate::pod::PodInfo;

pub struct ResourcesFit;

fn missing(pod: &PodInfo, node: &NodeInfo) -> Reasons {
    let mut reasons = Reasons::new();
    if node.pods.len() as i64 + 1 > node.max_pods {
        reasons.push("Too many pods".into());
    }
    let (want, have, used) = (&pod.requests, &node.allocatable, &node.requested);
    if want.is_zero() {
        return reasons;
    }
    if want.cpu > 0 && want.cpu > have.cpu - used.cpu {
        reasons.push("Insufficient cpu".into());
    }
    if want.memory > 0 && want.memory > have.memory - used.memory {
        reasons.push("Insufficient memory".into());
    }
    if want.ephemeral_storage > 0 && want.ephemeral_storage > have.ephemeral_storage - used.ephemeral_storage {
        reasons.push("Insufficient ephemeral-storage".into());
    }
    for (name, n) in want.others.iter().filter(|(_, n)| **n > 0) {
        let of = |a: &crate::amounts::Amounts| a.others.get(name).copied().unwrap_or(0);
        if *n > of(have) - of(used) {
            reasons.push(format!("Insufficient {name}").into());
        }
    }
    reasons
}

/// The share of a resource that stays free, 0 to 100.
fn free(capacity: i64, used: i64) -> i64 {
    if capacity <= 0 || used > capacity { 0 } else { (capacity - used) * 100 / capacity }
}

impl Plugin for ResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }
    fn wakes_on(&self) -> Wake {
        NODE_ADDED | NODE_SIZE | POD_GONE
    }
    fn filter<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Filter<'a>> {
        Some(Box::new(move |node| {
            let reasons = missing(pod, node);
            if reasons.is_empty() { Ok(()) } else { Err(reasons) }
        }))
    }
    fn score<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<(i64, Score<'a>)> {
        let of = Box::new(move |node: &NodeInfo| {
            let cpu = free(node.allocatable.cpu, node.nonzero.cpu + pod.nonzero.cpu);
            let memory = free(node.allocatable.memory, node.nonzero.memory + pod.nonzero.memory);
            (cpu + memory) / 2
        });
        Some((1, Score { of, normalize: Normalize::No }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::*;
    use serde_json::json;

    #[test]
    fn room_is_what_is_allocatable_less_what_is_requested() {
        let small = node(
            "n",
            json!({"status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "2", "example.com/gpu": "1"}}}),
        );
        let bound = json!({"spec": {"nodeName": "n", "containers": [{"resources": {"requests": {"cpu": "500m", "example.com/gpu": "1"}}}]}});
        let c = cluster(&[small], std::slice::from_ref(&bound));
        let full = cluster(&[node("n", json!({"status": {"allocatable": {"pods": "1"}}}))], &[bound]);
        let ask = |requests| pod(json!({"containers": [{"resources": {"requests": requests}}]}));
        for (requests, want) in [
            (json!({"cpu": "500m"}), vec![]),
            (json!({"cpu": "501m"}), vec!["Insufficient cpu"]),
            (json!({"cpu": "2", "memory": "2Gi"}), vec!["Insufficient cpu", "Insufficient memory"]),
            (json!({"example.com/gpu": "1"}), vec!["Insufficient example.com/gpu"]),
            (json!({"example.com/none": "1"}), vec!["Insufficient example.com/none"]),
            (json!({}), vec![]),
        ] {
            assert_eq!(missing(&ask(requests.clone()), c.node("n").unwrap()), want, "{requests}");
        }
        assert_eq!(missing(&ask(json!({})), full.node("n").unwrap()), ["Too many pods"]);
    }
}
