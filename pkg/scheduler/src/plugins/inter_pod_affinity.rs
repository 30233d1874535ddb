//! `InterPodAffinity`: pods that want to be, or not to be, in the same topology as other pods.

use super::affinity::is_about;
use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{
    Filter, NAMESPACE_LABELS, NODE_ADDED, NODE_LABELS, Normalize, POD_GONE, POD_PLACED, Plugin, Score, Wake, refuse,
};
use crate::pod::PodInfo;
use isopod_client::views::PodAffinityTerm;
use std::collections::{HashMap, HashSet};

pub struct InterPodAffinity;

/// A topology: key and value of a node's label.
type Topology<'a> = (&'a str, &'a str);

/// The weight of another pod's required affinity to this one in scores.
const HARD_WEIGHT: i64 = 1;

fn topology<'a>(node: &'a NodeInfo, key: &'a str) -> Option<Topology<'a>> {
    node.labels().get(key).map(|v| (key, v.as_str()))
}

/// Per term of `terms`: the topologies in which a pod stands that the term is about.
fn where_matching<'a>(terms: &'a [PodAffinityTerm], pod: &PodInfo, cluster: &'a Cluster) -> Vec<HashSet<Topology<'a>>> {
    let ns = &pod.pod.metadata.namespace;
    let mut found = vec![HashSet::new(); terms.len()];
    if terms.is_empty() {
        return found;
    }
    for node in cluster.nodes() {
        for (term, set) in terms.iter().zip(&mut found) {
            let Some(t) = topology(node, &term.topology_key) else { continue };
            if !set.contains(&t) && node.pods.values().any(|p| is_about(term, ns, &p.pod, cluster)) {
                set.insert(t);
            }
        }
    }
    found
}

/// The topologies from which anti-affinity of pods that are there keeps this pod.
fn kept_out<'a>(pod: &PodInfo, cluster: &'a Cluster) -> HashSet<Topology<'a>> {
    let mut out = HashSet::new();
    for node in cluster.nodes().iter().filter(|n| n.with_affinity > 0) {
        for other in node.pods.values() {
            for term in other.required_anti_affinity() {
                if is_about(term, &other.pod.metadata.namespace, &pod.pod, cluster) {
                    out.extend(topology(node, &term.topology_key));
                }
            }
        }
    }
    out
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }
    fn wakes_on(&self) -> Wake {
        NODE_ADDED | NODE_LABELS | POD_PLACED | POD_GONE | NAMESPACE_LABELS
    }

    fn filter<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Filter<'a>> {
        let out = kept_out(pod, cluster);
        let (wants, avoids) = (pod.required_affinity(), pod.required_anti_affinity());
        if out.is_empty() && wants.is_empty() && avoids.is_empty() {
            return None;
        }
        let near = where_matching(wants, pod, cluster);
        let far = where_matching(avoids, pod, cluster);
        // The first of a group of pods that want each other may go anywhere that has the topology.
        let ns = &pod.pod.metadata.namespace;
        let first = near.iter().all(HashSet::is_empty) && wants.iter().all(|t| is_about(t, ns, &pod.pod, cluster));
        Some(Box::new(move |node| {
            let has_all = wants
                .iter()
                .zip(&near)
                .all(|(term, set)| topology(node, &term.topology_key).is_some_and(|t| first || set.contains(&t)));
            if !has_all {
                return refuse("node(s) didn't match pod affinity rules");
            }
            let meets = |(term, set): (&PodAffinityTerm, &HashSet<Topology>)| {
                topology(node, &term.topology_key).is_some_and(|t| set.contains(&t))
            };
            if avoids.iter().zip(&far).any(meets) {
                return refuse("node(s) didn't match pod anti-affinity rules");
            }
            if node.labels().iter().any(|(k, v)| out.contains(&(k.as_str(), v.as_str()))) {
                return refuse("node(s) didn't satisfy existing pods anti-affinity rules");
            }
            Ok(())
        }))
    }

    fn score<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<(i64, Score<'a>)> {
        let mut worth: HashMap<Topology<'a>, i64> = HashMap::new();
        let mine = !pod.preferred_affinity().is_empty() || !pod.preferred_anti_affinity().is_empty();
        for node in cluster.nodes().iter().filter(|n| mine || n.with_affinity > 0) {
            for other in node.pods.values() {
                add_worth(&mut worth, pod, other, node, cluster);
            }
        }
        if worth.is_empty() {
            return None;
        }
        let of = Box::new(move |node: &NodeInfo| {
            node.labels().iter().filter_map(|(k, v)| worth.get(&(k.as_str(), v.as_str()))).sum()
        });
        Some((2, Score { of, normalize: Normalize::Range }))
    }
}

/// What `other` on `node` makes its topologies worth to `pod`: by the pod's own wishes, and by those of `other`.
fn add_worth<'a>(
    worth: &mut HashMap<Topology<'a>, i64>,
    pod: &'a PodInfo,
    other: &'a PodInfo,
    node: &'a NodeInfo,
    cluster: &Cluster,
) {
    let mut add = |term: &'a PodAffinityTerm, of: &PodInfo, about: &PodInfo, weight: i64| {
        if is_about(term, &of.pod.metadata.namespace, &about.pod, cluster)
            && let Some(t) = topology(node, &term.topology_key)
        {
            *worth.entry(t).or_default() += weight;
        }
    };
    for (of, about) in [(pod, other), (other, pod)] {
        for t in of.preferred_affinity() {
            add(&t.pod_affinity_term, of, about, i64::from(t.weight));
        }
        for t in of.preferred_anti_affinity() {
            add(&t.pod_affinity_term, of, about, -i64::from(t.weight));
        }
    }
    for t in other.required_affinity() {
        add(t, other, pod, HARD_WEIGHT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::*;
    use serde_json::{Value, json};

    fn fits(spec: Value, others: &[Value]) -> Vec<String> {
        let zone = |n: &str, z: &str| node(n, json!({"metadata": {"labels": {"zone": z}}}));
        let c = cluster(&[zone("a", "1"), zone("b", "1"), zone("c", "2")], others);
        let p = pod(spec);
        let filter = InterPodAffinity.filter(&p, &c);
        let ok = |n: &&NodeInfo| filter.as_ref().is_none_or(|f| f(n).is_ok());
        c.nodes().iter().filter(ok).map(|n| n.name().to_owned()).collect()
    }

    fn rule(kind: &str, key: &str, app: &str) -> Value {
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]}}})
    }

    fn bound(app: &str, node: &str, mut spec: Value) -> Value {
        spec["nodeName"] = node.into();
        json!({"metadata": {"namespace": "default", "labels": {"app": app}}, "spec": spec})
    }

    #[test]
    fn required_rules() {
        let db = bound("db", "a", json!({}));
        assert_eq!(fits(rule("podAffinity", "zone", "db"), std::slice::from_ref(&db)), ["a", "b"]);
        assert_eq!(fits(rule("podAntiAffinity", "zone", "db"), std::slice::from_ref(&db)), ["c"]);
        assert_eq!(
            fits(rule("podAntiAffinity", "kubernetes.io/hostname", "db"), std::slice::from_ref(&db)),
            ["b", "c"]
        );
        // No db anywhere: nothing fits. A pod that wants its own kind may be the first.
        assert!(fits(rule("podAffinity", "zone", "none"), std::slice::from_ref(&db)).is_empty());
        assert_eq!(fits(rule("podAffinity", "zone", "web"), std::slice::from_ref(&db)), ["a", "b", "c"]);
        // A pod that is there keeps others out.
        let hermit = bound("hermit", "c", rule("podAntiAffinity", "zone", "web"));
        assert_eq!(fits(json!({}), &[hermit]), ["a", "b"]);
        // Another namespace does not count.
        let mut elsewhere = db;
        elsewhere["metadata"]["namespace"] = "other".into();
        assert_eq!(fits(rule("podAntiAffinity", "zone", "db"), &[elsewhere]), ["a", "b", "c"]);
    }

    #[test]
    fn preferred_rules_add_their_weights() {
        let prefer = |kind: &str, key: &str, app: &str, weight: i32| {
            let term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}});
            json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": weight, "podAffinityTerm": term}]}}})
        };
        let scores = |spec: &Value, others: &[Value]| -> Option<Vec<i64>> {
            let zone = |n: &str, z: &str| node(n, json!({"metadata": {"labels": {"zone": z}}}));
            let c = cluster(&[zone("a", "1"), zone("b", "1"), zone("c", "2")], others);
            let p = pod(spec.clone());
            let (_, score) = InterPodAffinity.score(&p, &c)?;
            Some(c.nodes().iter().map(|n| (score.of)(n)).collect())
        };
        let host = "kubernetes.io/hostname";
        let db = || bound("db", "a", json!({}));
        for (spec, others, want) in [
            (prefer("podAffinity", "zone", "db", 10), vec![db()], Some(vec![10, 10, 0])),
            (prefer("podAffinity", host, "db", 10), vec![db()], Some(vec![10, 0, 0])),
            // Two of them are worth twice as much.
            (prefer("podAffinity", "zone", "db", 10), vec![db(), db()], Some(vec![20, 20, 0])),
            (prefer("podAntiAffinity", "zone", "db", 10), vec![db()], Some(vec![-10, -10, 0])),
            (prefer("podAffinity", "zone", "none", 10), vec![db()], None),
            // The wishes of those that are there count as well, what they require included.
            (json!({}), vec![bound("db", "c", prefer("podAffinity", "zone", "web", 7))], Some(vec![0, 0, 7])),
            (json!({}), vec![bound("db", "c", prefer("podAntiAffinity", host, "web", 7))], Some(vec![0, 0, -7])),
            (json!({}), vec![bound("db", "a", rule("podAffinity", "zone", "web"))], Some(vec![1, 1, 0])),
            (json!({}), vec![db()], None),
        ] {
            assert_eq!(scores(&spec, &others), want, "{spec} beside {others:?}");
        }
    }
}
