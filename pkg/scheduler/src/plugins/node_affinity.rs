//! `NodeAffinity`: `nodeSelector` and node affinity, required and preferred.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{Filter, NODE_ADDED, NODE_LABELS, Normalize, Plugin, Score, Wake, refuse};
use crate::pod::PodInfo;
use isopod_client::views::{NodeSelectorTerm, Requirement};

pub struct NodeAffinity;

fn holds(r: &Requirement, value: Option<&String>) -> bool {
    let number = |s: &str| s.parse::<i64>().ok();
    match r.operator.as_str() {
        "In" => value.is_some_and(|v| r.values.contains(v)),
        "NotIn" => value.is_none_or(|v| !r.values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        op @ ("Gt" | "Lt") => match (value.and_then(|v| number(v)), r.values.first().and_then(|v| number(v))) {
            (Some(have), Some(limit)) => {
                if op == "Gt" {
                    have > limit
                } else {
                    have < limit
                }
            }
            _ => false,
        },
        _ => false,
    }
}

/// A term without any requirement matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    if term.match_expressions.is_empty() && term.match_fields.is_empty() {
        return false;
    }
    let name = &node.node.metadata.name;
    term.match_expressions.iter().all(|r| holds(r, node.labels().get(&r.key)))
        && term.match_fields.iter().all(|r| r.key == "metadata.name" && holds(r, Some(name)))
}

/// Whether the node is one that the pod asks for.
pub fn matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    let spec = &pod.pod.spec;
    if !spec.node_selector.iter().all(|(k, v)| node.labels().get(k) == Some(v)) {
        return false;
    }
    let required = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    match required.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) {
        // The terms are alternatives.
        Some(selector) => selector.node_selector_terms.iter().any(|t| term_matches(t, node)),
        None => true,
    }
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
            let hits = preferred.iter().filter(|p| term_matches(&p.preference, node));
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
