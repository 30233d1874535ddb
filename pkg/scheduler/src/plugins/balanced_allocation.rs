//! `NodeResourcesBalancedAllocation`: prefers nodes whose CPU and memory would be used alike.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{Normalize, Plugin, Score, Wake};
use crate::pod::PodInfo;

pub struct BalancedAllocation;

/// 100 where both resources are used by the same share, 50 where one is full and the other free: half the difference of two
/// shares is their standard deviation. A resource that the node does not have is not compared.
fn balance(node: &NodeInfo, cpu: i64, memory: i64) -> i64 {
    let share = |used: i64, capacity: i64| (used as f64 / capacity as f64).min(1.0);
    let (cores, bytes) = (node.allocatable.cpu, node.allocatable.memory);
    let deviation = if cores <= 0 || bytes <= 0 { 0.0 } else { (share(cpu, cores) - share(memory, bytes)).abs() / 2.0 };
    ((1.0 - deviation) * 100.0) as i64
}

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }
    fn wakes_on(&self) -> Wake {
        0
    }
    fn score<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<(i64, Score<'a>)> {
        // A pod that asks for nothing cannot unbalance a node.
        if pod.requests.is_zero() {
            return None;
        }
        let of = Box::new(move |node: &NodeInfo| {
            let (cpu, memory) = (node.requested.cpu, node.requested.memory);
            let before = balance(node, cpu, memory);
            let after = balance(node, cpu + pod.requests.cpu, memory + pod.requests.memory);
            // What the pod betters counts, not what the others have made of the node: 75 where it changes nothing.
            50 + (50 + after - before) / 2
        });
        Some((1, Score { of, normalize: Normalize::No }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::*;
    use serde_json::{Value, json};

    #[test]
    fn a_node_that_the_pod_balances_is_preferred() {
        let requests = |cpu: &str, memory: &str| json!({"containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]});
        let used = |cpu: &str, memory: &str| {
            let mut spec = requests(cpu, memory);
            spec["nodeName"] = "n".into();
            json!({"spec": spec})
        };
        let score = |more: Value, there: &[Value], cpu: &str, memory: &str| {
            let (c, p) = (cluster(&[node("n", more)], there), pod(requests(cpu, memory)));
            BalancedAllocation.score(&p, &c).map(|(_, s)| (s.of)(c.node("n").unwrap()))
        };
        // The node has 4 cores and 8 GiB.
        for (there, cpu, memory, want) in [
            (vec![], "2", "4Gi", 75),
            (vec![], "2", "0", 62),
            (vec![], "4", "0", 50),
            (vec![used("2", "0")], "0", "4Gi", 87),
            (vec![used("4", "0")], "0", "8Gi", 100),
            (vec![used("1", "2Gi")], "1", "2Gi", 75),
            // More than is there counts as all of it.
            (vec![used("4", "8Gi")], "4", "8Gi", 75),
        ] {
            assert_eq!(score(json!({}), &there, cpu, memory), Some(want), "{there:?} and {cpu}, {memory}");
        }
        let no_memory = json!({"status": {"allocatable": {"memory": "0"}}});
        assert_eq!(score(no_memory, &[], "2", "0"), Some(75));
        assert_eq!(score(json!({}), &[], "0", "0"), None, "who asks for nothing prefers nothing");
    }
}
