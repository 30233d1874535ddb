//! `NodeResourcesBalancedAllocation`: prefers nodes whose CPU and memory would be used alike.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{Normalize, Plugin, Score, Wake};
use crate::pod::PodInfo;

pub struct BalancedAllocation;

/// How far the shares of two resources lie apart: half their difference is their standard deviation.
fn deviation(node: &NodeInfo, cpu: i64, memory: i64) -> f64 {
    let share = |used: i64, capacity: i64| {
        if capacity <= 0 { 1.0 } else { (used as f64 / capacity as f64).min(1.0) }
    };
    (share(cpu, node.allocatable.cpu) - share(memory, node.allocatable.memory)).abs() / 2.0
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
            let after =
                deviation(node, node.requested.cpu + pod.requests.cpu, node.requested.memory + pod.requests.memory);
            ((1.0 - after) * 100.0) as i64
        });
        Some((1, Score { of, normalize: Normalize::No }))
    }
}
