//! What a kubelet may say about its own node: nothing that would draw pods to it which it should not get.

use super::{Asker, Operation};
use isopod_api::Status;
use serde_json::Value;
use std::collections::BTreeSet;

const LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
/// Domains whose labels are the kubelet's to set, and the one whose labels never are.
const OPEN: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
const CLOSED: &str = "node-restriction.kubernetes.io";

pub fn admit(asker: &Asker) -> Result<(), Status> {
    let (node, name) = (asker.node, asker.name());
    if name != node {
        return asker.refuse(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let (new, old) = (asker.written(), asker.old());
    let labels = forbidden(&new["metadata"]["labels"], &old["metadata"]["labels"]);
    match asker.request.operation {
        Operation::Create if !new["spec"]["configSource"].is_null() => {
            asker.refuse(format!("node {node:?} is not allowed to create pods with a non-nil configSource"))
        }
        Operation::Create if !labels.is_empty() => {
            asker.refuse(format!("node {node:?} is not allowed to set the following labels: {}", labels.join(", ")))
        }
        Operation::Update => changes(asker, &labels),
        Operation::Create | Operation::Delete | Operation::Connect => Ok(()),
    }
}

fn changes(asker: &Asker, labels: &[&str]) -> Result<(), Status> {
    let (node, new, old) = (asker.node, asker.written(), asker.old());
    let source = &new["spec"]["configSource"];
    if !source.is_null() && *source != old["spec"]["configSource"] {
        return asker
            .refuse(format!("node {node:?} is not allowed to update configSource to a new non-nil configSource"));
    }
    if entries(&new["spec"]["taints"]) != entries(&old["spec"]["taints"]) {
        return asker.refuse(format!("node {node:?} is not allowed to modify taints"));
    }
    if entries(&new["metadata"]["ownerReferences"]) != entries(&old["metadata"]["ownerReferences"]) {
        return asker.refuse(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    if !labels.is_empty() {
        return asker.refuse(format!("is not allowed to modify labels: {}", labels.join(", ")));
    }
    Ok(())
}

/// An absent list is an empty one.
fn entries(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The labels that differ and are not the kubelet's to change, sorted.
fn forbidden<'a>(new: &'a Value, old: &'a Value) -> Vec<&'a str> {
    let keys: BTreeSet<&str> =
        [new, old].iter().filter_map(|l| l.as_object()).flat_map(|l| l.keys().map(String::as_str)).collect();
    keys.into_iter().filter(|k| new.get(k) != old.get(k) && is_forbidden(k)).collect()
}

fn is_forbidden(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let within = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|d| d.ends_with('.'));
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    within(CLOSED) || (kubernetes && !LABELS.contains(&label) && !OPEN.into_iter().any(within))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_that_would_draw_pods_are_not_the_kubelets() {
        let cases = [
            ("mine", false),
            ("example.com/rack", false),
            ("kubernetes.io/hostname", false),
            ("kubernetes.io/other", true),
            ("node-role.kubernetes.io/control-plane", true),
            ("node.kubernetes.io/speed", false),
            ("gpu.node.kubernetes.io/speed", false),
            ("node-restriction.kubernetes.io/tier", true),
            ("a.node-restriction.kubernetes.io/tier", true),
            ("x.k8s.io/y", true),
            ("notkubernetes.io/y", false),
        ];
        for (label, wanted) in cases {
            assert_eq!(is_forbidden(label), wanted, "{label}");
        }
        let (new, old) = (json!({"k8s.io/a": "1", "k8s.io/b": "1"}), json!({"k8s.io/a": "1", "k8s.io/c": "1"}));
        assert_eq!(forbidden(&new, &old), ["k8s.io/b", "k8s.io/c"]);
    }
}
