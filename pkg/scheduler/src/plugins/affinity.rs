//! When a term of pod affinity is about a pod: its namespaces and its label selector.

use crate::cluster::Cluster;
use isopod_client::views::{Pod, PodAffinityTerm};

/// Whether `term` of a pod in `own_namespace` is about `other`. Without namespaces and selector: the own namespace. A missing
/// label selector matches nothing.
pub fn is_about(term: &PodAffinityTerm, own_namespace: &str, other: &Pod, cluster: &Cluster) -> bool {
    let ns = other.metadata.namespace.as_str();
    let in_namespaces = if term.namespaces.is_empty() && term.namespace_selector.is_none() {
        ns == own_namespace
    } else {
        let selected = |s: &isopod_client::views::LabelSelector| {
            s.is_empty() || cluster.namespaces.get(ns).is_some_and(|labels| s.matches(labels))
        };
        term.namespaces.iter().any(|n| n == ns) || term.namespace_selector.as_ref().is_some_and(selected)
    };
    in_namespaces && term.label_selector.as_ref().is_some_and(|s| s.matches(&other.metadata.labels))
}
