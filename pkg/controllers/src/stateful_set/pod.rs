//! The pods of a stateful set: names, labels and volumes.

use super::{claims, owner};
use crate::op::Op;
use crate::pod_control::pod_from_template;
use crate::revisions::REVISION_LABEL;
use isopod_client::views::{Pod, StatefulSet};
use serde_json::{Value, json};

pub const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The number in the name of a pod of the set.
pub fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

pub fn name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.metadata.name)
}

pub fn pod(set: &StatefulSet, ordinal: i32, template: &Value, revision: &str) -> Value {
    let m = &set.metadata;
    let name = name(set, ordinal);
    let mut pod = pod_from_template(template, &m.name, &m.namespace, owner(set).reference());
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.remove("generateName");
    }
    pod["metadata"]["name"] = json!(name);
    pod["metadata"]["labels"][NAME_LABEL] = json!(name);
    pod["metadata"]["labels"][INDEX_LABEL] = json!(ordinal.to_string());
    pod["metadata"]["labels"][REVISION_LABEL] = json!(revision);
    pod["spec"]["hostname"] = json!(name);
    if !set.spec.service_name.is_empty() {
        pod["spec"]["subdomain"] = json!(set.spec.service_name);
    }
    let of_claims: Vec<Value> = set
        .spec
        .volume_claim_templates
        .iter()
        .map(|t| {
            let volume = t["metadata"]["name"].as_str().unwrap_or_default();
            json!({"name": volume, "persistentVolumeClaim": {"claimName": claims::name(set, volume, ordinal)}})
        })
        .collect();
    if !of_claims.is_empty() {
        let own = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        // A claim takes the place of a volume with its name.
        let others = own.into_iter().filter(|v| !of_claims.iter().any(|c| c["name"] == v["name"]));
        pod["spec"]["volumes"] = of_claims.iter().cloned().chain(others).collect();
    }
    pod
}

pub fn has_identity(pod: &Pod) -> bool {
    pod.metadata.labels.get(NAME_LABEL) == Some(&pod.metadata.name)
}

/// Gives an adopted pod the labels that the set's pods have.
pub fn identify(set: &StatefulSet, pod: &Pod) -> Op {
    let m = &pod.metadata;
    let index = ordinal(&set.metadata.name, &m.name).unwrap_or_default();
    let labels = json!({NAME_LABEL: m.name, INDEX_LABEL: index.to_string()});
    Op::modify(Pod::resource(), &m.namespace, &m.name, json!({"metadata": {"labels": labels}})).if_uid(&m.uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names() {
        for (pod, want) in [
            ("web-0", Some(0)),
            ("web-12", Some(12)),
            ("web-", None),
            ("web-a", None),
            ("other-1", None),
            ("web1", None),
        ] {
            assert_eq!(ordinal("web", pod), want, "{pod}");
        }
    }

    #[test]
    fn a_pod_has_its_name_and_its_claims() {
        let set = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"}, "spec": {
            "serviceName": "svc", "volumeClaimTemplates": [{"metadata": {"name": "data"}}]}});
        let set: StatefulSet = serde_json::from_str(&set.to_string()).unwrap();
        let template = json!({"metadata": {"labels": {"app": "a"}},
            "spec": {"volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}});
        let made = pod(&set, 3, &template, "web-abc");
        assert_eq!(made["metadata"]["name"], "web-3");
        assert_eq!(made["metadata"].get("generateName"), None);
        assert_eq!(
            made["metadata"]["labels"],
            json!({"app": "a", NAME_LABEL: "web-3", INDEX_LABEL: "3", REVISION_LABEL: "web-abc"})
        );
        assert_eq!((&made["spec"]["hostname"], &made["spec"]["subdomain"]), (&json!("web-3"), &json!("svc")));
        assert_eq!(
            made["spec"]["volumes"],
            json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-3"}}, {"name": "tmp", "emptyDir": {}}])
        );
    }
}
