//! `NodeAffinity`: `nodeSelector` and node affinity, required and preferred.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{Filter, NODE_ADDED, NODE_LABELS, Normalize, Plugin, Score, Wake, refuse};
use crate::pod::PodInfo;

pub struct NodeAffinity;

/// Whether the node is one that the pod asks for.
pub fn matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.pod.spec.asks_for(&node.node.metadata)
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }
    fn wakes_on(&self) -> Wake {
        NODE_ADDED | NODE_LABELS
    }
    fn filter<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Filter<'a>> {
        let spec = &pod.pod.spec;
        if spec.node_selector.is_empty() && spec.affinity.as_ref().is_none_or(|a| a.node_affinity.is_none()) {
            return None;
        }
        Some(Box::new(move |node| {
            if matches(pod, node) { Ok(()) } else { refuse("node(s) didn't match Pod's node affinity/selector") }
        }))
    }
    fn score<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<(i64, Score<'a>)> {
        let affinity = pod.pod.spec.affinity.as_ref()?.node_affinity.as_ref()?;
        let preferred = &affinity.preferred_during_scheduling_ignored_during_execution;
        if preferred.is_empty() {
            return None;
        }
        let of = Box::new(move |node: &NodeInfo| {
            let hits = preferred.iter().filter(|p| p.preference.matches(&node.node.metadata));
            hits.map(|p| i64::from(p.weight)).sum()
        });
        Some((2, Score { of, normalize: Normalize::ToMax }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::*;
    use serde_json::json;

    #[test]
    fn selectors_and_required_terms() {
        let nodes = [node("n", json!({"metadata": {"labels": {"disk": "fast", "cores": "8"}}}))];
        let c = cluster(&nodes, &[]);
        let term = |t: serde_json::Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [t]}}}});
        let expr = |key: &str, op: &str, values: &[&str]| {
            term(json!({"matchExpressions": [{"key": key, "operator": op, "values": values}]}))
        };
        for (spec, want) in [
            (json!({"nodeSelector": {"disk": "fast"}}), true),
            (json!({"nodeSelector": {"disk": "slow"}}), false),
            (expr("disk", "In", &["fast", "x"]), true),
            (expr("disk", "NotIn", &["fast"]), false),
            (expr("none", "NotIn", &["fast"]), true),
            (expr("none", "Exists", &[]), false),
            (expr("none", "DoesNotExist", &[]), true),
            (expr("cores", "Gt", &["4"]), true),
            (expr("cores", "Lt", &["4"]), false),
            (expr("disk", "Gt", &["4"]), false),
            (term(json!({})), false),
            (term(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]})), true),
            (term(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]})), false),
        ] {
            assert_eq!(matches(&pod(spec.clone()), c.node("n").unwrap()), want, "{spec}");
        }
    }

    #[test]
    fn preferred_terms_add_their_weights() {
        let labels = |name: &str, labels: serde_json::Value| node(name, json!({"metadata": {"labels": labels}}));
        let c = cluster(
            &[
                labels("a", json!({"disk": "fast"})),
                labels("b", json!({"disk": "fast", "zone": "1"})),
                labels("c", json!({})),
            ],
            &[],
        );
        let prefer = |key: &str, value: &str, weight: i32| json!({"weight": weight, "preference": {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}});
        let spec = |terms: serde_json::Value| json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}}});
        let none = json!([{"weight": 9, "preference": {}}]);
        for (terms, want) in [
            (json!([prefer("disk", "fast", 10)]), [10, 10, 0]),
            (json!([prefer("disk", "fast", 10), prefer("zone", "1", 5)]), [10, 15, 0]),
            (json!([prefer("disk", "slow", 10)]), [0, 0, 0]),
            (none, [0, 0, 0]),
        ] {
            let p = pod(spec(terms.clone()));
            let (_, score) = NodeAffinity.score(&p, &c).unwrap();
            assert_eq!(score.normalize, Normalize::ToMax);
            let got: Vec<i64> = c.nodes().iter().map(|n| (score.of)(n)).collect();
            assert_eq!(got, want, "{terms}");
        }
        assert!(NodeAffinity.score(&pod(json!({})), &c).is_none());
    }
}
