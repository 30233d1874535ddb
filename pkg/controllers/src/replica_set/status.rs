//! The status of a replica set, from its pods.

use crate::op::Op;
use isopod_api::time;
use isopod_client::Resource;
use isopod_client::views::{Condition, Pod, ReplicaSet, ReplicaSetStatus};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const FAILURE: &str = "ReplicaFailure";

/// Ready for at least `min_ready` seconds.
pub(crate) fn is_available(pod: &Pod, min_ready: i32, now: Timestamp) -> bool {
    let Some(ready) = pod.condition("Ready").filter(|c| c.status == "True") else { return false };
    if min_ready == 0 {
        return true;
    }
    let since = ready.last_transition_time.as_deref().and_then(time::parse);
    since.is_some_and(|t| now.duration_since(t).as_secs() >= i64::from(min_ready))
}

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

/// When the next ready pod becomes available.
pub fn next_check(set: &ReplicaSet, active: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let min_ready = i64::from(set.spec.min_ready_seconds);
    if min_ready == 0 {
        return None;
    }
    let waits = active.iter().filter(|p| !is_available(p, set.spec.min_ready_seconds, now)).filter_map(|p| {
        let ready = p.condition("Ready").filter(|c| c.status == "True")?;
        let since = ready.last_transition_time.as_deref().and_then(time::parse)?;
        let left = since + jiff::SignedDuration::from_secs(min_ready) - now;
        Some(Duration::from_millis(left.total(jiff::Unit::Millisecond).unwrap_or(1000.0).max(1.0) as u64))
    });
    waits.min()
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
    fn counts_and_the_next_check() {
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
        assert_eq!(next_check(&set, &pods, now), Some(Duration::from_secs(20)));
        let failed = calculate(&set, &[], None, Some((0, "no".into())), now);
        assert_eq!(failed.conditions[0].reason, "FailedCreate");
        let mut same = set.clone();
        same.status = new.clone();
        assert_eq!(write(ReplicaSet::resource(), &same, &new), None);
        assert!(write(ReplicaSet::resource(), &set, &new).unwrap().to_string().contains(r#""availableReplicas":1"#));
    }
}
