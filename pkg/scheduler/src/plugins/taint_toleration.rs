//! `TaintToleration`: taints with `NoSchedule` and `NoExecute` keep pods away, those with `PreferNoSchedule` cost score.

use crate::cluster::Cluster;
use crate::framework::{Filter, NODE_TAINTS, Normalize, Plugin, Score, Wake, refuse};
use crate::pod::PodInfo;
use isopod_client::views::{Taint, Toleration};

pub struct TaintToleration;

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    toleration.tolerates(taint)
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }
    fn wakes_on(&self) -> Wake {
        NODE_TAINTS
    }
    fn filter<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Filter<'a>> {
        let tolerations = &pod.pod.spec.tolerations;
        Some(Box::new(move |node| {
            let mut hard =
                node.node.spec.taints.iter().filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"));
            if hard.any(|taint| !tolerations.iter().any(|t| tolerates(t, taint))) {
                return refuse("node(s) had untolerated taint(s)");
            }
            Ok(())
        }))
    }
    fn score<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<(i64, Score<'a>)> {
        let soft = |t: &&Taint| t.effect == "PreferNoSchedule";
        let intolerable = move |taint: &Taint| !pod.pod.spec.tolerations.iter().any(|t| tolerates(t, taint));
        let of = Box::new(move |node: &crate::cluster::NodeInfo| {
            node.node.spec.taints.iter().filter(soft).filter(|t| intolerable(t)).count() as i64
        });
        Some((3, Score { of, normalize: Normalize::Reversed }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tolerations() {
        let taint = |v: &str| Taint { key: "k".into(), value: v.into(), effect: "NoSchedule".into(), time_added: None };
        for (toleration, value, want) in [
            (json!({}), "v", false),
            (json!({"operator": "Exists"}), "v", true),
            (json!({"key": "k", "operator": "Exists"}), "v", true),
            (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), "v", false),
            (json!({"key": "k", "value": "v"}), "v", true),
            (json!({"key": "k", "operator": "Equal", "value": "w"}), "v", false),
            (json!({"key": "x", "operator": "Exists"}), "v", false),
            (json!({"key": "k", "operator": "Gt", "value": "5"}), "7", true),
            (json!({"key": "k", "operator": "Lt", "value": "5"}), "7", false),
            (json!({"key": "k", "operator": "Gt", "value": "5"}), "much", false),
        ] {
            let t: Toleration = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates(&t, &taint(value)), want, "{toleration} {value}");
        }
    }
}
