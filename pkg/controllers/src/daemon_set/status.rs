//! The status of a daemon set, node by node.

use super::{Fit, Observed, oldest_first};
use crate::op::Op;
use isopod_client::views::{DaemonSet, DaemonSetStatus};
use serde_json::json;

/// `acted`: whether the pass did what this generation asks for.
pub fn calculate(o: &Observed<'_>, collision_count: Option<i32>, acted: bool) -> DaemonSetStatus {
    let mut s = DaemonSetStatus {
        observed_generation: if acted { o.set.metadata.generation } else { o.set.status.observed_generation },
        collision_count,
        ..DaemonSetStatus::default()
    };
    for node in &o.nodes {
        let mut pods = o.pods_on(&node.metadata.name).to_vec();
        oldest_first(&mut pods);
        if o.fit(node) != Fit::Run {
            s.number_misscheduled += i32::from(!pods.is_empty());
            continue;
        }
        s.desired_number_scheduled += 1;
        let Some(pod) = pods.first() else { continue };
        s.current_number_scheduled += 1;
        s.number_ready += i32::from(pod.is_ready());
        s.number_available += i32::from(o.is_available(pod));
        s.updated_number_scheduled += i32::from(o.is_updated(pod));
    }
    s.number_unavailable = s.desired_number_scheduled - s.number_available;
    s
}

/// The write of a status that differs from the one in the object.
pub fn write(set: &DaemonSet, new: &DaemonSetStatus) -> Option<Op> {
    if set.status == *new {
        return None;
    }
    let body = json!({"status": {
        "observedGeneration": new.observed_generation,
        "currentNumberScheduled": new.current_number_scheduled,
        "numberMisscheduled": new.number_misscheduled,
        "desiredNumberScheduled": new.desired_number_scheduled,
        "numberReady": new.number_ready,
        "updatedNumberScheduled": new.updated_number_scheduled,
        "numberAvailable": new.number_available,
        "numberUnavailable": new.number_unavailable,
        "collisionCount": new.collision_count,
    }});
    let m = &set.metadata;
    Some(Op::status(DaemonSet::resource(), &m.namespace, &m.name, body).if_uid(&m.uid))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn nodes_are_counted() {
        let set = set(json!({}));
        let tainted = json!([{"key": "k", "effect": "NoSchedule"}]);
        let nodes = [node("a", json!([])), node("b", json!([])), node("c", json!([])), node("d", tainted)];
        let pods = [pod("a", "a", "new", "ready"), pod("b", "b", "old", "unready"), pod("d", "d", "new", "ready")];
        let s = calculate(&observed(&set, &nodes, &pods), None, true);
        assert_eq!((s.desired_number_scheduled, s.current_number_scheduled, s.number_misscheduled), (3, 2, 1));
        assert_eq!((s.number_ready, s.number_available, s.number_unavailable), (1, 1, 2));
        assert_eq!((s.updated_number_scheduled, s.observed_generation), (1, 2));
        let mut same = set.clone();
        same.status = s.clone();
        assert_eq!(write(&same, &s), None);
        assert!(write(&set, &s).unwrap().to_string().contains(r#""numberReady":1"#));
    }
}
