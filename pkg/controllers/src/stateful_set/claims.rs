//! The claims of a stateful set's pods, and who owns them (`persistentVolumeClaimRetentionPolicy`, KEP-1847).

use super::{API_VERSION, KIND};
use crate::op::Op;
use crate::ownership::controller_reference;
use isopod_client::views::{OwnerReference, PersistentVolumeClaim, Pod, StatefulSet};
use serde_json::{Value, json};

pub fn name(set: &StatefulSet, template: &str, ordinal: i32) -> String {
    format!("{template}-{}-{ordinal}", set.metadata.name)
}

/// The claims that the pod with this number has.
pub fn wanted(set: &StatefulSet, ordinal: i32) -> Vec<Value> {
    let claim = |template: &Value| {
        let mut claim = template.clone();
        claim["apiVersion"] = json!("v1");
        claim["kind"] = json!("PersistentVolumeClaim");
        claim["metadata"]["namespace"] = json!(set.metadata.namespace);
        claim["metadata"]["name"] =
            json!(name(set, template["metadata"]["name"].as_str().unwrap_or_default(), ordinal));
        for (key, value) in &set.spec.selector.match_labels {
            claim["metadata"]["labels"][key] = json!(value);
        }
        if let Some(claim) = claim.as_object_mut() {
            claim.remove("status");
        }
        claim
    };
    set.spec.volume_claim_templates.iter().map(claim).collect()
}

/// Whether claims go with the set, and with a pod that is scaled away.
fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    policy.map_or((false, false), |p| (p.when_deleted == "Delete", p.when_scaled == "Delete"))
}

fn is_to(r: &OwnerReference, api_version: &str, kind: &str, name: &str) -> bool {
    r.api_version == api_version && r.kind == kind && r.name == name
}

/// A claim that goes with a pod which is not this one must be gone before the pod is made.
pub fn is_stale(set: &StatefulSet, claim: &PersistentVolumeClaim, pod_name: &str, pod_uid: &str) -> bool {
    let refs = &claim.metadata.owner_references;
    policy(set).1 && refs.iter().any(|r| is_to(r, "v1", "Pod", pod_name) && r.uid != pod_uid)
}

/// The owners that the claim should have, when they are others than it has. `in_range`: the set asks for the pod.
pub fn owners(set: &StatefulSet, pod: &Pod, claim: &PersistentVolumeClaim, in_range: bool) -> Option<Vec<Value>> {
    let (m, p) = (&set.metadata, &pod.metadata);
    let refs = &claim.metadata.owner_references;
    let to_set = |r: &OwnerReference| is_to(r, API_VERSION, KIND, &m.name);
    let to_pod = |r: &OwnerReference| is_to(r, "v1", "Pod", &p.name);
    // Left by an earlier set or pod of that name: the garbage collector's business.
    if refs.iter().any(|r| (to_set(r) && r.uid != m.uid) || (to_pod(r) && r.uid != p.uid)) {
        return None;
    }
    let ours = |r: &OwnerReference| to_set(r) || to_pod(r);
    let (with_set, with_scale) = policy(set);
    let foreign = (with_set || with_scale) && refs.iter().any(|r| !ours(r) && r.controller);
    let of_set = !foreign && with_set && (in_range || !with_scale);
    let of_pod = !foreign && with_scale && !in_range;
    let controls = |to: &dyn Fn(&OwnerReference) -> bool| refs.iter().any(|r| to(r) && r.controller);
    let has = |to: &dyn Fn(&OwnerReference) -> bool| refs.iter().any(to);
    let is_right = |wanted: bool, to: &dyn Fn(&OwnerReference) -> bool| if wanted { controls(to) } else { !has(to) };
    if is_right(of_set, &to_set) && is_right(of_pod, &to_pod) {
        return None;
    }
    let mut new: Vec<Value> = refs.iter().filter(|r| !ours(r)).map(reference).collect();
    if of_set {
        new.push(controller_reference(API_VERSION, KIND, m));
    }
    if of_pod {
        new.push(controller_reference("v1", "Pod", p));
    }
    Some(new)
}

fn reference(r: &OwnerReference) -> Value {
    let mut v = json!({"apiVersion": r.api_version, "kind": r.kind, "name": r.name, "uid": r.uid});
    for (field, is) in [("controller", r.controller), ("blockOwnerDeletion", r.block_owner_deletion)] {
        if is {
            v[field] = json!(true);
        }
    }
    v
}

pub fn own(claim: &PersistentVolumeClaim, owners: &[Value]) -> Op {
    let m = &claim.metadata;
    let change = json!({"metadata": {"ownerReferences": owners}});
    Op::modify(PersistentVolumeClaim::resource(), &m.namespace, &m.name, change).if_unchanged(&m.resource_version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(deleted: &str, scaled: &str) -> StatefulSet {
        let v = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "set"}, "spec": {
            "selector": {"matchLabels": {"app": "a"}},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled},
            "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"x": "y"}}, "spec": {"s": 1}, "status": {}}]}});
        serde_json::from_str(&v.to_string()).unwrap()
    }

    #[test]
    fn claims_are_named_after_template_and_pod() {
        let claims = wanted(&set("Retain", "Retain"), 2);
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0]["metadata"]["name"], "data-web-2");
        assert_eq!(claims[0]["metadata"]["labels"], json!({"x": "y", "app": "a"}));
        assert_eq!(claims[0].get("status"), None);
    }

    #[test]
    fn owners_follow_the_policy() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web-0", "uid": "pod"}})).unwrap();
        let to_set =
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "set", "controller": true});
        let to_pod = json!({"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "pod", "controller": true});
        let stale = json!({"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "old", "controller": true});
        let other = json!({"apiVersion": "v1", "kind": "X", "name": "x", "uid": "x", "controller": true});
        for (deleted, scaled, in_range, refs, want) in [
            ("Retain", "Retain", true, json!([]), None),
            ("Retain", "Retain", true, json!([to_set]), Some(vec![])),
            ("Delete", "Retain", true, json!([]), Some(vec!["set"])),
            ("Delete", "Retain", true, json!([to_set]), None),
            ("Delete", "Retain", false, json!([to_set]), None),
            ("Retain", "Delete", true, json!([]), None),
            ("Retain", "Delete", false, json!([]), Some(vec!["pod"])),
            ("Delete", "Delete", true, json!([to_pod]), Some(vec!["set"])),
            ("Delete", "Delete", false, json!([to_set]), Some(vec!["pod"])),
            ("Delete", "Delete", false, json!([stale]), None),
            ("Delete", "Delete", true, json!([other]), None),
            ("Delete", "Delete", true, json!([other, to_set]), Some(vec!["x"])),
        ] {
            let claim = json!({"metadata": {"name": "data-web-0", "ownerReferences": refs}});
            let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
            let got = owners(&set(deleted, scaled), &pod, &claim, in_range);
            let uids: Option<Vec<_>> = got.map(|l| l.iter().map(|r| r["uid"].as_str().unwrap().to_owned()).collect());
            assert_eq!(uids, want.map(|l| l.iter().map(ToString::to_string).collect()), "{deleted} {scaled} {refs}");
        }
    }

    #[test]
    fn a_claim_of_an_earlier_pod_is_stale() {
        let refs = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "old"}]);
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"ownerReferences": refs}})).unwrap();
        assert!(is_stale(&set("Retain", "Delete"), &claim, "web-0", ""));
        assert!(!is_stale(&set("Retain", "Delete"), &claim, "web-0", "old"));
        assert!(!is_stale(&set("Delete", "Retain"), &claim, "web-0", ""));
    }
}
