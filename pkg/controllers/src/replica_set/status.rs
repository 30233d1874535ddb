//! The status of a replica set, from its pods.

use crate::op::Op;
use crate::pod_control::is_available;
use isopod_api::time;
use isopod_client::Resource;
use isopod_client::views::{Condition, Pod, ReplicaSet, ReplicaSetStatus};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;

const FAILURE: &str = "ReplicaFailure";

/// `terminating`: the number of pods that are ending, of kinds that count them; `failure`: the number of active pods and the error of a pass that failed.
pub fn calculate(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: Option<usize>,
    failure: Option<(usize, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let template = set.spec.template.parse();
    let labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let has_labels = |p: &Pod| labels.iter().all(|(k, v)| p.metadata.labels.get(k).map(String::as_str) == v.as_str());
    let count = |f: &dyn Fn(&Pod) -> bool| active.iter().filter(|p| f(p)).count() as i32;
    let mut conditions = set.status.conditions.clone();
    let failing = conditions.iter().any(|c| c.kind == FAILURE);
    match failure {
        Some((pods, message)) if !failing => {
            let reason =
                if pods < set.spec.replicas.unwrap_or(1).max(0) as usize { "FailedCreate" } else { "FailedDelete" };
            conditions.push(Condition {
                kind: FAILURE.into(),
                status: "True".into(),
                reason: reason.into(),
                message,
                last_transition_time: Some(time::format(now)),
                ..Condition::default()
            });
        }
        None if failing => conditions.retain(|c| c.kind != FAILURE),
        _ => {}
    }
    ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: count(&has_labels),
        ready_replicas: count(&Pod::is_ready),
        available_replicas: count(&|p| is_available(p, set.spec.min_ready_seconds, now)),
        terminating_replicas: terminating.map(|n| n as i32),
        observed_generation: set.metadata.generation,
        conditions,
    }
}

/// The write of a status that differs from the one in the object.
pub fn write(resource: Resource, set: &ReplicaSet, new: &ReplicaSetStatus) -> Option<Op> {
    if set.status == *new {
        return None;
    }
    let conditions: Vec<Value> = new
        .conditions
        .iter()
        .map(|c| {
            json!({"type": c.kind, "status": c.status, "reason": c.reason, "message": c.message,
                   "lastTransitionTime": c.last_transition_time})
        })
        .collect();
    let status = json!({
        "replicas": new.replicas,
        "fullyLabeledReplicas": new.fully_labeled_replicas,
        "readyReplicas": new.ready_replicas,
        "availableReplicas": new.available_replicas,
        "terminatingReplicas": new.terminating_replicas,
        "observedGeneration": new.observed_generation,
        "conditions": conditions,
    });
    let m = &set.metadata;
    Some(Op::status(resource, &m.namespace, &m.name, json!({"status": status})).if_uid(&m.uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ready: &str, since: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"labels": {"app": "a"}}, "status": {"conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": since}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn counts() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "ns", "uid": "u", "generation": 3},
            "spec": {"replicas": 3, "minReadySeconds": 30, "template": {"metadata": {"labels": {"app": "a"}}}},
        }))
        .unwrap();
        let pods = [
            pod("True", "2026-01-01T00:00:00Z"),
            pod("True", "2026-01-01T00:00:50Z"),
            pod("False", "2026-01-01T00:00:00Z"),
        ];
        let new = calculate(&set, &pods, Some(0), None, now);
        assert_eq!(
            (new.replicas, new.fully_labeled_replicas, new.ready_replicas, new.available_replicas),
            (3, 3, 2, 1)
        );
        let failed = calculate(&set, &[], None, Some((0, "no".into())), now);
        assert_eq!(failed.conditions[0].reason, "FailedCreate");
        let mut same = set.clone();
        same.status = new.clone();
        assert_eq!(write(ReplicaSet::resource(), &same, &new), None);
        assert!(write(ReplicaSet::resource(), &set, &new).unwrap().to_string().contains(r#""availableReplicas":1"#));
    }
}
