//! The status of a deployment: counts from its replica sets, and the conditions Available, Progressing and ReplicaFailure.

use super::scale;
use crate::op::Op;
use isopod_api::time;
use isopod_client::views::{Condition, Deployment, DeploymentStatus, ReplicaSet};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

pub const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";

pub fn condition(kind: &str, status: &str, reason: &str, message: impl Into<String>, now: Timestamp) -> Condition {
    let now = time::format(now);
    Condition {
        kind: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
        ..Condition::default()
    }
}

pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.kind == kind)
}

/// Sets a condition. One with the same status and reason stays as it is; one with the same status keeps its transition.
pub fn set(conditions: &mut Vec<Condition>, mut new: Condition) {
    if let Some(old) = find(conditions, &new.kind) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time.clone_from(&old.last_transition_time);
        }
    }
    conditions.retain(|c| c.kind != new.kind);
    conditions.push(new);
}

/// A deadline of the largest number means none.
pub fn deadline(d: &Deployment) -> Option<i64> {
    d.spec.progress_deadline_seconds.filter(|s| *s != i32::MAX).map(i64::from)
}

pub fn is_complete(d: &Deployment, s: &DeploymentStatus) -> bool {
    let wanted = scale::replicas(d);
    s.updated_replicas == wanted
        && s.replicas == wanted
        && s.available_replicas == wanted
        && s.observed_generation >= d.metadata.generation
}

/// Counts and availability. `sets` holds the new one too.
pub fn calculate(d: &Deployment, sets: &[ReplicaSet], new: Option<&ReplicaSet>, now: Timestamp) -> DeploymentStatus {
    let sum = |f: fn(&ReplicaSet) -> i32| sets.iter().map(f).sum::<i32>();
    let available = sum(|s| s.status.available_replicas);
    let mut terminating = Some(0);
    for s in sets {
        terminating = match (terminating, s.status.terminating_replicas, s.status.observed_generation) {
            (sum, None, 0) => sum,
            (Some(sum), Some(n), _) => Some(sum + n),
            _ => None,
        };
    }
    let mut conditions = d.status.conditions.clone();
    let minimum = if available >= scale::replicas(d) - scale::max_unavailable(d) {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut conditions, condition("Available", minimum.0, minimum.1, minimum.2, now));
    DeploymentStatus {
        observed_generation: d.metadata.generation,
        replicas: sum(|s| s.status.replicas),
        updated_replicas: new.map_or(0, |n| n.status.replicas),
        ready_replicas: sum(|s| s.status.ready_replicas),
        available_replicas: available,
        unavailable_replicas: (sum(scale::size) - available).max(0),
        terminating_replicas: terminating,
        collision_count: d.status.collision_count,
        conditions,
    }
}

/// [`calculate`], and how the rollout goes.
pub fn of_rollout(d: &Deployment, sets: &[ReplicaSet], new: Option<&ReplicaSet>, now: Timestamp) -> DeploymentStatus {
    let mut s = calculate(d, sets, new, now);
    let current = find(&d.status.conditions, PROGRESSING);
    match deadline(d) {
        None => s.conditions.retain(|c| c.kind != PROGRESSING),
        Some(seconds) => {
            let rolled_out = s.replicas == s.updated_replicas && current.is_some_and(|c| c.reason == NEW_SET_AVAILABLE);
            if !rolled_out {
                progress(d, &mut s, new, current, seconds, now);
            }
        }
    }
    let failures = |set: &ReplicaSet| find(&set.status.conditions, FAILURE).cloned();
    match new.and_then(failures).or_else(|| sets.iter().find_map(failures)) {
        Some(mut c) => {
            c.last_update_time.clone_from(&c.last_transition_time);
            set(&mut s.conditions, c);
        }
        None => s.conditions.retain(|c| c.kind != FAILURE),
    }
    s
}

fn progress(
    d: &Deployment,
    s: &mut DeploymentStatus,
    new: Option<&ReplicaSet>,
    current: Option<&Condition>,
    deadline: i64,
    now: Timestamp,
) {
    let who = match new {
        Some(set) => format!("ReplicaSet {:?}", set.metadata.name),
        None => format!("Deployment {:?}", d.metadata.name),
    };
    let old = &d.status;
    let moved = s.updated_replicas > old.updated_replicas
        || s.replicas - s.updated_replicas < old.replicas - old.updated_replicas
        || s.ready_replicas > old.ready_replicas
        || s.available_replicas > old.available_replicas;
    if is_complete(d, s) {
        let text = format!("{who} has successfully progressed.");
        set(&mut s.conditions, condition(PROGRESSING, "True", NEW_SET_AVAILABLE, text, now));
    } else if moved {
        let mut c = condition(PROGRESSING, "True", "ReplicaSetUpdated", format!("{who} is progressing."), now);
        // Progress renews the time of update even if nothing else changes.
        if let Some(current) = current {
            if current.status == "True" {
                c.last_transition_time.clone_from(&current.last_transition_time);
            }
            s.conditions.retain(|c| c.kind != PROGRESSING);
        }
        set(&mut s.conditions, c);
    } else if has_timed_out(s, deadline, now) {
        let text = match new {
            Some(set) => format!("ReplicaSet {:?} has timed out progressing.", set.metadata.name),
            None => format!("Deployment {:?} has timed out progressing.", d.metadata.name),
        };
        set(&mut s.conditions, condition(PROGRESSING, "False", TIMED_OUT, text, now));
    }
}

fn has_timed_out(s: &DeploymentStatus, deadline: i64, now: Timestamp) -> bool {
    let Some(c) = find(&s.conditions, PROGRESSING) else { return false };
    match c.reason.as_str() {
        NEW_SET_AVAILABLE => false,
        TIMED_OUT => true,
        _ => c
            .last_update_time
            .as_deref()
            .and_then(time::parse)
            .is_some_and(|from| from + jiff::SignedDuration::from_secs(deadline) < now),
    }
}

/// When a rollout that does not move has to be looked at for its deadline.
pub fn look_again(d: &Deployment, s: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let deadline = deadline(d)?;
    let current = find(&s.conditions, PROGRESSING)?;
    if is_complete(d, s) || matches!(current.reason.as_str(), TIMED_OUT | NEW_SET_AVAILABLE) {
        return None;
    }
    let from = current.last_update_time.as_deref().and_then(time::parse)?;
    let left = deadline - now.duration_since(from).as_secs();
    Some(Duration::from_secs(left.max(0) as u64 + 1))
}

/// The condition of pausing and resuming, when it has to change.
pub fn paused(d: &Deployment, now: Timestamp) -> Option<Condition> {
    deadline(d)?;
    let current = find(&d.status.conditions, PROGRESSING).map(|c| c.reason.as_str());
    if current == Some(TIMED_OUT) {
        return None;
    }
    let was_paused = current == Some("DeploymentPaused");
    match (d.spec.paused, was_paused) {
        (true, false) => Some(condition(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused", now)),
        (false, true) => Some(condition(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed", now)),
        _ => None,
    }
}

pub fn conditions_json(conditions: &[Condition]) -> Value {
    conditions
        .iter()
        .map(|c| {
            json!({"type": c.kind, "status": c.status, "reason": c.reason, "message": c.message,
                   "lastUpdateTime": c.last_update_time, "lastTransitionTime": c.last_transition_time})
        })
        .collect()
}

/// The write of a status that differs from the one in the object.
pub fn write(d: &Deployment, s: &DeploymentStatus) -> Option<Op> {
    if d.status == *s {
        return None;
    }
    let status = json!({
        "observedGeneration": s.observed_generation,
        "replicas": s.replicas,
        "updatedReplicas": s.updated_replicas,
        "readyReplicas": s.ready_replicas,
        "availableReplicas": s.available_replicas,
        "unavailableReplicas": s.unavailable_replicas,
        "terminatingReplicas": s.terminating_replicas,
        "collisionCount": s.collision_count,
        "conditions": conditions_json(&s.conditions),
    });
    Some(write_part(d, json!({"status": status})))
}

/// A write of some fields of the status.
pub fn write_part(d: &Deployment, body: Value) -> Op {
    let m = &d.metadata;
    Op::status(isopod_client::views::Deployment::resource(), &m.namespace, &m.name, body).if_uid(&m.uid)
}

/// Reports that the new replica set could not be created.
pub fn creation_failed(d: &Deployment, message: &str, now: Timestamp) -> Option<Op> {
    deadline(d)?;
    let mut conditions = d.status.conditions.clone();
    set(&mut conditions, condition(PROGRESSING, "False", "ReplicaSetCreateError", message, now));
    (conditions != d.status.conditions)
        .then(|| write_part(d, json!({"status": {"conditions": conditions_json(&conditions)}})))
}
