//! The status of a stateful set.

use super::plan::{Observed, Plan, is_running_and_ready, revision};
use crate::op::Op;
use isopod_client::views::{Pod, StatefulSet, StatefulSetStatus};
use serde_json::json;

pub fn calculate(o: &Observed<'_>, plan: &Plan, collision_count: Option<i32>) -> StatefulSetStatus {
    let count = |f: &dyn Fn(&Pod) -> bool| o.pods.iter().filter(|p| !p.status.phase.is_empty() && f(p)).count() as i32;
    let stays = |p: &Pod| !p.metadata.is_being_deleted();
    let mut s = StatefulSetStatus {
        observed_generation: o.set.metadata.generation,
        replicas: count(&|_| true),
        ready_replicas: count(&is_running_and_ready),
        available_replicas: count(&|p| is_running_and_ready(p) && o.is_available(p)),
        current_replicas: count(&|p| stays(p) && revision(p) == o.current.0) - plan.replaced,
        updated_replicas: count(&|p| stays(p) && revision(p) == o.update.0),
        current_revision: o.current.0.to_owned(),
        update_revision: o.update.0.to_owned(),
        collision_count,
    };
    let wanted = o.set.spec.replicas.unwrap_or(1);
    // The update is complete.
    if [s.updated_replicas, s.ready_replicas, s.replicas] == [wanted; 3] {
        s.current_replicas = s.updated_replicas;
        s.current_revision.clone_from(&s.update_revision);
    }
    s
}

/// The write of a status that differs from the one in the object.
pub fn write(set: &StatefulSet, new: &StatefulSetStatus) -> Option<Op> {
    if set.status == *new {
        return None;
    }
    let body = json!({"status": {
        "observedGeneration": new.observed_generation,
        "replicas": new.replicas,
        "readyReplicas": new.ready_replicas,
        "availableReplicas": new.available_replicas,
        "currentReplicas": new.current_replicas,
        "updatedReplicas": new.updated_replicas,
        "currentRevision": new.current_revision,
        "updateRevision": new.update_revision,
        "collisionCount": new.collision_count,
    }});
    let m = &set.metadata;
    Some(Op::status(StatefulSet::resource(), &m.namespace, &m.name, body).if_uid(&m.uid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revisions::REVISION_LABEL;
    use jiff::Timestamp;
    use serde_json::Value;
    use std::sync::Arc;

    fn calculated(pods: &[(&str, &str)], replaced: i32) -> StatefulSetStatus {
        let set = json!({"metadata": {"name": "web", "generation": 4}, "spec": {"replicas": 2}});
        let set: StatefulSet = serde_json::from_str(&set.to_string()).unwrap();
        let pod = |(revision, ready): &(&str, &str)| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"labels": {REVISION_LABEL: revision}}, "status": {
                    "phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}}))
                .unwrap(),
            )
        };
        let pods: Vec<_> = pods.iter().map(pod).collect();
        let (current, update) = (("old", &Value::Null), ("new", &Value::Null));
        let now = Timestamp::UNIX_EPOCH;
        let o = Observed { set: &set, pods: &pods, claim: &|_| None, current, update, now };
        calculate(&o, &Plan { replaced, ..Plan::default() }, Some(0))
    }

    #[test]
    fn an_update_completes_when_all_are_new_and_ready() {
        let s = calculated(&[("old", "True"), ("new", "False")], 1);
        assert_eq!((s.replicas, s.ready_replicas, s.current_replicas, s.updated_replicas), (2, 1, 0, 1));
        assert_eq!((s.current_revision.as_str(), s.update_revision.as_str()), ("old", "new"));
        let s = calculated(&[("new", "True"), ("new", "True")], 0);
        assert_eq!((s.current_revision.as_str(), s.current_replicas, s.observed_generation), ("new", 2, 4));
    }
}
