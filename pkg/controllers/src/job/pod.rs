//! The pods of a job: their finalizer, and their index.

use crate::op::Op;
use crate::pod_control::{Owner, pod_from_template};
use isopod_client::Patch;
use isopod_client::views::{Meta, Pod};
use serde_json::{Value, json};

/// Keeps an ended pod until it is counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Characters of a name before its random suffix.
const LONGEST_PREFIX: usize = 58;

pub fn is_tracked(pod: &Meta) -> bool {
    pod.finalizers.iter().any(|f| f == FINALIZER)
}

pub fn untrack(pod: &Meta) -> Op {
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER], "uid": pod.uid}});
    Op::patch(Pod::resource(), &pod.namespace, &pod.name, Patch::Strategic(patch))
}

pub fn index(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.get(INDEX)?.parse().ok().filter(|i| *i >= 0)
}

fn count(pod: &Pod, key: &str) -> i32 {
    pod.metadata.annotations.get(key).and_then(|v| v.parse().ok()).filter(|n| *n >= 0).unwrap_or_default()
}

/// How often the index had failed when this pod was made.
pub fn index_failures(pod: &Pod) -> i32 {
    count(pod, FAILURES)
}

/// As [`index_failures`], with failures that do not count.
pub fn all_index_failures(pod: &Pod) -> i32 {
    count(pod, FAILURES) + count(pod, IGNORED_FAILURES)
}

/// What a new pod of an index with a backoff limit of its own takes over: failures, and those that do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexFailures {
    pub counted: i32,
    pub ignored: i32,
}

impl IndexFailures {
    /// After the failure of `pod`.
    pub fn after(pod: &Pod, counts: bool) -> Self {
        let (counted, ignored) = (count(pod, FAILURES), count(pod, IGNORED_FAILURES));
        IndexFailures { counted: counted + i32::from(counts), ignored: ignored + i32::from(!counts) }
    }
}

pub fn pod(template: &Value, owner: &Owner<'_>, index: Option<i32>, failures: Option<IndexFailures>) -> Value {
    let m = owner.meta;
    let mut pod = pod_from_template(template, &m.name, &m.namespace, owner.reference());
    let finalizers = pod["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !finalizers.contains(&json!(FINALIZER)) {
        pod["metadata"]["finalizers"] = finalizers.into_iter().chain([json!(FINALIZER)]).collect();
    }
    let Some(index) = index else { return pod };
    let text = index.to_string();
    let room = LONGEST_PREFIX - text.len() - 2;
    pod["metadata"]["generateName"] = json!(format!("{}-{text}-", &m.name[..m.name.len().min(room)]));
    pod["metadata"]["annotations"][INDEX] = json!(text);
    pod["metadata"]["labels"][INDEX] = json!(text);
    pod["spec"]["hostname"] = json!(format!("{}-{text}", m.name));
    if let Some(failures) = failures {
        pod["metadata"]["annotations"][FAILURES] = json!(failures.counted.to_string());
        if failures.ignored > 0 {
            pod["metadata"]["annotations"][IGNORED_FAILURES] = json!(failures.ignored.to_string());
        }
    }
    for list in ["initContainers", "containers"] {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            add_variable(container);
        }
    }
    pod
}

fn add_variable(container: &mut Value) {
    let mut variables = container["env"].as_array().cloned().unwrap_or_default();
    if !variables.iter().any(|v| v["name"] == INDEX_VARIABLE) {
        let field = json!({"fieldRef": {"fieldPath": format!("metadata.labels['{INDEX}']")}});
        variables.push(json!({"name": INDEX_VARIABLE, "valueFrom": field}));
        container["env"] = Value::Array(variables);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_client::views::Job;

    #[test]
    fn a_pod_knows_its_index() {
        let meta: Meta = serde_json::from_value(json!({"name": "j", "namespace": "ns", "uid": "u"})).unwrap();
        let owner = Owner {
            api_version: "batch/v1",
            kind: "Job",
            resource: Job::resource(),
            meta: &meta,
            finalizer: Some(FINALIZER),
        };
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}});
        let plain = pod(&template, &owner, None, None);
        assert_eq!(plain["metadata"]["finalizers"], json!([FINALIZER]));
        assert_eq!(plain["metadata"]["generateName"], "j-");
        let failures = IndexFailures { counted: 2, ignored: 1 };
        let indexed = pod(&template, &owner, Some(3), Some(failures));
        assert_eq!(indexed["metadata"]["generateName"], "j-3-");
        assert_eq!(indexed["metadata"]["labels"], json!({"a": "b", INDEX: "3"}));
        assert_eq!(indexed["spec"]["hostname"], "j-3");
        assert_eq!(indexed["spec"]["containers"][0]["env"][0]["name"], INDEX_VARIABLE);
        let view: Pod = serde_json::from_value(indexed).unwrap();
        assert_eq!((index(&view), index_failures(&view), all_index_failures(&view)), (Some(3), 2, 3));
        assert_eq!(IndexFailures::after(&view, true), IndexFailures { counted: 3, ignored: 1 });
        assert!(is_tracked(&view.metadata));
    }
}
