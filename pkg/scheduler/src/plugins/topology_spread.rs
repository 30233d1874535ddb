//! `PodTopologySpread`: keeps the numbers of matching pods in the topologies within `maxSkew` of each other.

use super::node_affinity;
use super::taint_toleration::tolerates;
use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{Filter, NODE_ADDED, NODE_LABELS, Normalize, POD_GONE, POD_PLACED, Plugin, Score, Wake, refuse};
use crate::pod::PodInfo;
use isopod_client::views::TopologySpreadConstraint;
use std::collections::HashMap;

pub struct TopologySpread;

/// A constraint with the number of matching pods in each topology.
struct Counted<'a> {
    constraint: &'a TopologySpreadConstraint,
    counts: HashMap<&'a str, i64>,
    /// 1 when the pod itself matches and so adds to where it goes.
    own: i64,
}

impl Counted<'_> {
    /// The smallest count; 0 while there are fewer topologies than `minDomains`.
    fn least(&self) -> i64 {
        let wanted = self.constraint.min_domains.unwrap_or(1).max(1) as usize;
        if self.counts.len() < wanted { 0 } else { self.counts.values().copied().min().unwrap_or(0) }
    }
}

fn hard(c: &&TopologySpreadConstraint) -> bool {
    c.when_unsatisfiable != "ScheduleAnyway"
}

/// Whether a node's pods count: by default only nodes that the pod could select count, tainted ones too (KEP-3094).
fn counts_here(c: &TopologySpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    let affine = c.node_affinity_policy.as_deref() == Some("Ignore") || node_affinity::matches(pod, node);
    let tolerated = || {
        let mut taints = node.node.spec.taints.iter().filter(|t| t.effect != "PreferNoSchedule");
        taints.all(|taint| pod.pod.spec.tolerations.iter().any(|t| tolerates(t, taint)))
    };
    affine && (c.node_taints_policy.as_deref() != Some("Honor") || tolerated())
}

fn count<'a>(
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    wanted: impl Fn(&&TopologySpreadConstraint) -> bool,
) -> Vec<Counted<'a>> {
    let constraints: Vec<_> = pod.pod.spec.topology_spread_constraints.iter().filter(&wanted).collect();
    let (ns, labels) = (&pod.pod.metadata.namespace, &pod.pod.metadata.labels);
    constraints
        .iter()
        .map(|c| {
            let selects = |labels| c.label_selector.as_ref().is_some_and(|s| s.matches(labels));
            let mut counts = HashMap::new();
            for node in cluster.nodes() {
                // Only nodes that have the labels of all constraints take part.
                let in_all = constraints.iter().all(|c| node.labels().contains_key(&c.topology_key));
                let Some(value) = node.labels().get(&c.topology_key).filter(|_| in_all && counts_here(c, pod, node))
                else {
                    continue;
                };
                let here = node.pods.values().filter(|p| {
                    let m = &p.pod.metadata;
                    m.namespace == *ns && !m.is_being_deleted() && selects(&m.labels)
                });
                *counts.entry(value.as_str()).or_insert(0) += here.count() as i64;
            }
            Counted { constraint: c, counts, own: i64::from(selects(labels)) }
        })
        .collect()
}

impl Plugin for TopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }
    fn wakes_on(&self) -> Wake {
        NODE_ADDED | NODE_LABELS | POD_PLACED | POD_GONE
    }

    fn filter<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Filter<'a>> {
        let counted = count(pod, cluster, hard);
        if counted.is_empty() {
            return None;
        }
        Some(Box::new(move |node| {
            for c in &counted {
                let Some(value) = node.labels().get(&c.constraint.topology_key) else {
                    return refuse("node(s) didn't match pod topology spread constraints (missing required label)");
                };
                let here = c.counts.get(value.as_str()).copied().unwrap_or(0);
                if here + c.own - c.least() > i64::from(c.constraint.max_skew) {
                    return refuse("node(s) didn't match pod topology spread constraints");
                }
            }
            Ok(())
        }))
    }

    fn score<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<(i64, Score<'a>)> {
        let counted = count(pod, cluster, |c| !hard(c));
        if counted.is_empty() {
            return None;
        }
        let of = Box::new(move |node: &NodeInfo| {
            let here = |c: &Counted| {
                let value = node.labels().get(&c.constraint.topology_key);
                // Many small topologies weigh more than few large ones.
                let weight = ((c.counts.len() + 2) as f64).ln();
                let n = value.and_then(|v| c.counts.get(v.as_str())).copied().unwrap_or(0);
                (n as f64 * weight) as i64 + i64::from(c.constraint.max_skew) - 1
            };
            counted.iter().map(here).sum()
        });
        Some((2, Score { of, normalize: Normalize::Reversed }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::*;
    use serde_json::{Value, json};

    #[test]
    fn skew_stays_within_the_limit() {
        let zone = |n: &str, z: &str| node(n, json!({"metadata": {"labels": {"zone": z}}}));
        let nodes = [zone("a", "1"), zone("b", "2"), node("bare", json!({}))];
        let web =
            |n: &str| json!({"metadata": {"namespace": "default", "labels": {"app": "web"}}, "spec": {"nodeName": n}});
        let spec = |more: Value| {
            let mut c = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}});
            isopod_client::calls::merge(&mut c, &more);
            json!({"topologySpreadConstraints": [c]})
        };
        for (pods, more, want) in [
            (vec![], json!({}), vec!["a", "b"]),
            (vec![web("a")], json!({}), vec!["b"]),
            (vec![web("a"), web("b")], json!({}), vec!["a", "b"]),
            (vec![web("a")], json!({"maxSkew": 2}), vec!["a", "b"]),
            (vec![web("a"), web("b")], json!({"minDomains": 3}), vec![]),
        ] {
            let (c, p) = (cluster(&nodes, &pods), pod(spec(more.clone())));
            let filter = TopologySpread.filter(&p, &c).unwrap();
            let fits: Vec<_> = c.nodes().iter().filter(|n| filter(n).is_ok()).map(|n| n.name()).collect();
            assert_eq!(fits, want, "{} pods, {more}", pods.len());
        }
    }
}
