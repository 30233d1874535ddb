//! Choosing a node: filter, score, pick. A pure function over the cluster's picture.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{Filter, Normalize, Plugin, Reasons, Wake};
use crate::pod::PodInfo;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// Why no node takes the pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    pub nodes: usize,
    /// Reason → on how many nodes.
    pub reasons: BTreeMap<Cow<'static, str>, usize>,
    /// Changes that may help.
    pub wakes_on: Wake,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available:", self.nodes)?;
        // Upstream sorts the finished texts.
        let mut texts: Vec<String> = self.reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        texts.sort();
        write!(f, " {}.", texts.join(", "))
    }
}

/// How many fitting nodes are enough to choose from in a cluster of `nodes` (upstream's adaptive share).
fn enough(nodes: usize) -> usize {
    const MIN_NODES: usize = 100;
    const MIN_PERCENT: usize = 5;
    if nodes < MIN_NODES {
        return nodes;
    }
    let percent = (50usize.saturating_sub(nodes / 125)).max(MIN_PERCENT);
    (nodes * percent / 100).max(MIN_NODES)
}

/// Keeps where the last search ended, so that all nodes get their turn.
#[derive(Default)]
pub struct Search {
    next: usize,
}

impl Search {
    /// The best node's name for this pod.
    pub fn choose(&mut self, pod: &PodInfo, cluster: &Cluster, plugins: &[&dyn Plugin]) -> Result<String, Refusal> {
        let nodes = cluster.nodes();
        let filters: Vec<(&dyn Plugin, Filter)> =
            plugins.iter().filter_map(|p| Some((*p, p.filter(pod, cluster)?))).collect();
        let mut refusal = Refusal { nodes: nodes.len(), wakes_on: crate::framework::NODE_ADDED, ..Default::default() };
        let (mut fitting, wanted) = (Vec::new(), enough(nodes.len()));
        let mut looked = 0;
        while looked < nodes.len() && fitting.len() < wanted {
            let node = &nodes[(self.next + looked) % nodes.len()];
            looked += 1;
            match first_refusal(&filters, node) {
                None => fitting.push(node),
                Some((plugin, reasons)) => {
                    tracing::trace!(node = node.name(), plugin = plugin.name(), ?reasons, "refused");
                    refusal.wakes_on |= plugin.wakes_on();
                    for reason in reasons {
                        *refusal.reasons.entry(reason).or_default() += 1;
                    }
                }
            }
        }
        self.next = if nodes.is_empty() { 0 } else { (self.next + looked) % nodes.len() };
        match fitting.as_slice() {
            [] => Err(refusal),
            [only] => Ok(only.name().to_owned()),
            _ => Ok(best(&fitting, pod, cluster, plugins).name().to_owned()),
        }
    }
}

/// Whether a node takes the pod, as the cluster is now.
pub fn fits(pod: &PodInfo, cluster: &Cluster, node: &str, plugins: &[&dyn Plugin]) -> bool {
    let Some(node) = cluster.nodes().iter().find(|n| n.name() == node) else { return false };
    plugins.iter().filter_map(|p| p.filter(pod, cluster)).all(|filter| filter(node).is_ok())
}

fn first_refusal<'p>(filters: &[(&'p dyn Plugin, Filter)], node: &NodeInfo) -> Option<(&'p dyn Plugin, Reasons)> {
    filters.iter().find_map(|(plugin, filter)| filter(node).err().map(|reasons| (*plugin, reasons)))
}

/// The highest sum of weighted scores; the first of equals, which the rotating start makes a different one each time.
fn best<'a>(nodes: &[&'a NodeInfo], pod: &PodInfo, cluster: &Cluster, plugins: &[&dyn Plugin]) -> &'a NodeInfo {
    let mut sums = vec![0i64; nodes.len()];
    for plugin in plugins {
        let Some((weight, score)) = plugin.score(pod, cluster) else { continue };
        let mut scores: Vec<i64> = nodes.iter().map(|n| (score.of)(n)).collect();
        normalize(&mut scores, score.normalize);
        for (sum, s) in sums.iter_mut().zip(scores) {
            *sum += weight * s;
        }
    }
    let mut top = 0;
    for i in 1..nodes.len() {
        if sums[i] > sums[top] {
            top = i;
        }
    }
    nodes[top]
}

fn normalize(scores: &mut [i64], how: Normalize) {
    let max = scores.iter().copied().max().unwrap_or(0);
    let min = scores.iter().copied().min().unwrap_or(0);
    for s in scores {
        *s = match how {
            Normalize::No => *s,
            Normalize::ToMax if max == 0 => 0,
            Normalize::ToMax => *s * 100 / max,
            Normalize::Reversed if max == 0 => 100,
            Normalize::Reversed => 100 - *s * 100 / max,
            Normalize::Range if max == min => 0,
            Normalize::Range => (*s - min) * 100 / (max - min),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::*;
    use crate::plugins::ALL;
    use serde_json::{Value, json};

    fn choose(nodes: &[Value], pods: &[Value], spec: Value) -> Result<String, String> {
        let (c, p) = (cluster(nodes, pods), pod(spec));
        Search::default().choose(&p, &c, ALL).map_err(|r| r.to_string())
    }

    #[test]
    fn refusals_are_counted_in_upstreams_words() {
        let nodes = [
            node("a", json!({"status": {"allocatable": {"cpu": "1"}}})),
            node("b", json!({"status": {"allocatable": {"cpu": "1"}}})),
            node("c", json!({"spec": {"unschedulable": true}})),
        ];
        let big = json!({"containers": [{"resources": {"requests": {"cpu": "2"}}}]});
        let text = choose(&nodes, &[], big).unwrap_err();
        assert_eq!(text, "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu.");
        assert_eq!(choose(&[], &[], json!({})).unwrap_err(), "no nodes available to schedule pods");
    }

    #[test]
    fn the_emptier_node_wins() {
        let busy = json!({"spec": {"nodeName": "a", "containers": [{"resources": {"requests": {"cpu": "3", "memory": "6Gi"}}}]}});
        let spec = json!({"containers": [{"resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}]});
        assert_eq!(choose(&[node("a", json!({})), node("b", json!({}))], &[busy], spec).unwrap(), "b");
    }

    #[test]
    fn a_large_cluster_is_sampled() {
        assert_eq!((enough(50), enough(1000), enough(5000), enough(20000)), (50, 420, 500, 1000));
    }
}
