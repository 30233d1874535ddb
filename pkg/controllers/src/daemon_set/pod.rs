//! The pods of a daemon set: pinned to a node, and tolerating what may be wrong with it.

use crate::pod_control::{Owner, pod_from_template};
use crate::revisions::REVISION_LABEL;
use isopod_client::views::{Meta, Pod};
use serde_json::{Value, json};

pub const GENERATION_LABEL: &str = "pod-template-generation";
const GENERATION: &str = "deprecated.daemonset.template.generation";

/// The deprecated count of templates.
pub fn template_generation(set: &Meta) -> Option<i64> {
    set.annotations.get(GENERATION)?.parse().ok()
}

/// The node that a pod is on, or is pinned to.
pub fn target_node(pod: &Pod) -> Option<&str> {
    if !pod.spec.node_name.is_empty() {
        return Some(&pod.spec.node_name);
    }
    let affinity = pod.spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|t| &t.match_fields);
    let pin = fields.find(|r| r.key == "metadata.name" && r.operator == "In")?;
    match &pin.values[..] {
        [name] => Some(name),
        _ => None,
    }
}

/// The template with the tolerations that every daemon pod has: no trouble of a node ends it.
pub fn with_tolerations(template: &Value) -> Value {
    let mut template = template.clone();
    let mut tolerated = vec![
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    if template["spec"]["hostNetwork"] == json!(true) {
        tolerated.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    let mut tolerations = template["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for (key, effect) in tolerated {
        let new = json!({"key": key, "operator": "Exists", "effect": effect});
        let same = |t: &&mut Value| ["key", "operator", "effect"].iter().all(|f| t[*f] == new[*f]);
        match tolerations.iter_mut().find(same) {
            // One with a time becomes one without.
            Some(present) => *present = new,
            None => tolerations.push(new),
        }
    }
    template["spec"]["tolerations"] = Value::Array(tolerations);
    template
}

/// The template of pods of the revision with this hash.
pub fn template(template: &Value, set: &Meta, hash: &str) -> Value {
    let mut template = with_tolerations(template);
    if let Some(generation) = template_generation(set) {
        template["metadata"]["labels"][GENERATION_LABEL] = json!(generation.to_string());
    }
    template["metadata"]["labels"][REVISION_LABEL] = json!(hash);
    template
}

/// A pod for a node, from a template that [`template`] made.
pub fn pod(template: &Value, owner: &Owner<'_>, node: &str) -> Value {
    let mut pod = pod_from_template(template, &owner.meta.name, &owner.meta.namespace, owner.reference());
    let pin = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]);
    // The node was chosen by the terms that stood here.
    pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!({"nodeSelectorTerms": pin});
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_client::views::DaemonSet;

    #[test]
    fn a_pod_is_pinned_and_tolerant() {
        let meta = json!({"name": "ds", "namespace": "ns", "uid": "u", "annotations": {GENERATION: "3"}});
        let meta: Meta = serde_json::from_value(meta).unwrap();
        let owner = Owner {
            api_version: "apps/v1",
            kind: "DaemonSet",
            resource: DaemonSet::resource(),
            meta: &meta,
            finalizer: None,
        };
        let given = json!({"metadata": {"labels": {"app": "a"}}, "spec": {
            "hostNetwork": true,
            "affinity": {"podAntiAffinity": {}},
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
                             "tolerationSeconds": 5}]}});
        let made = pod(&template(&given, &meta, "abc"), &owner, "n1");
        assert_eq!(made["metadata"]["labels"], json!({"app": "a", GENERATION_LABEL: "3", REVISION_LABEL: "abc"}));
        let tolerations = made["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(tolerations.len(), 7);
        assert!(tolerations.iter().all(|t| t.get("tolerationSeconds").is_none()));
        assert!(made["spec"]["affinity"].get("podAntiAffinity").is_some());
        let view: Pod = serde_json::from_value(made).unwrap();
        assert_eq!(target_node(&view), Some("n1"));
        assert_eq!(target_node(&Pod::default()), None);
    }
}
