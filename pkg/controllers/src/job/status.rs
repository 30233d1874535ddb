//! The status of a job: pods are counted once, when their finalizer goes (KEP-2307).
//!
//! Invariant: a pod that has ended stands in `uncountedTerminatedPods` before its finalizer is removed, and moves to the
//! counters after that; a crash in between counts it neither twice nor not at all.

use super::indexes::Indexes;
use super::plan::{Counts, Ending, Observed};
use super::pod;
use super::policy::{self, Verdict, has_failed};
use crate::op::Op;
use isopod_api::time;
use isopod_client::views::{Condition, Job, JobStatus, Pod};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;

/// Pods that are counted in one pass: their uids must have room in the status.
const MOST_UNCOUNTED: usize = 500;

pub fn condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Condition {
    Condition {
        kind: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_probe_time: Some(time::format(now)),
        last_transition_time: Some(time::format(now)),
        ..Condition::default()
    }
}

/// Sets a condition, unless it says so already; what was never true need not be denied. Whether something changed.
pub fn set_condition(status: &mut JobStatus, new: Condition) -> bool {
    match status.conditions.iter_mut().find(|c| c.kind == new.kind) {
        Some(old) if (&old.status, &old.reason, &old.message) == (&new.status, &new.reason, &new.message) => false,
        Some(old) => {
            *old = new;
            true
        }
        None if new.status == "False" => false,
        None => {
            status.conditions.push(new);
            true
        }
    }
}

/// The pods whose finalizer goes now.
pub struct Tracked {
    pub untrack: Vec<Arc<Pod>>,
    /// Whether pods are left for the next pass.
    pub is_partial: bool,
}

/// Notes in `status` the pods that have ended, and how the job ends.
pub fn track(o: &Observed<'_>, c: &Counts, ending: Option<&Ending>, status: &mut JobStatus) -> Tracked {
    let mut pods: Vec<&Arc<Pod>> = o.pods.iter().filter(|p| o.is_uncounted(p)).collect();
    if o.is_indexed() {
        pods.sort_by_key(|p| pod::index(p));
    }
    count_untracked(status, &pods.iter().map(|p| p.metadata.uid.clone()).collect());
    let mut tracked = Tracked { untrack: Vec::new(), is_partial: false };
    let mut new_indexes = Vec::new();
    for pod in pods {
        if !is_done_with(o, c, ending, pod) {
            continue;
        }
        tracked.untrack.push(pod.clone());
        note(o, c, ending, pod, status, &mut new_indexes);
        let uncounted = &status.uncounted_terminated_pods;
        if new_indexes.len() + uncounted.succeeded.len() + uncounted.failed.len() >= MOST_UNCOUNTED {
            tracked.is_partial = true;
            break;
        }
    }
    if o.is_indexed() {
        let succeeded = c.counted_indexes.union(&Indexes::of(new_indexes));
        status.succeeded = succeeded.total();
        status.completed_indexes = succeeded.to_string();
        status.failed_indexes = c.failed_indexes.as_ref().map(ToString::to_string);
    }
    if let Some(ending) = ending {
        let interim = if ending.is_failure { "FailureTarget" } else { "SuccessCriteriaMet" };
        if o.job.condition(interim).is_none() {
            status.conditions.push(condition(interim, "True", &ending.reason, &ending.message, o.now));
        }
    }
    tracked
}

/// Whether the pod need not be kept: it or the whole job has ended, and no new pod takes over its failures.
fn is_done_with(o: &Observed<'_>, c: &Counts, ending: Option<&Ending>, pod: &Pod) -> bool {
    if o.job.metadata.is_being_deleted() || ending.is_some() || pod.status.phase == "Succeeded" {
        return true;
    }
    let is_predecessor = c.predecessors.values().any(|p| p.metadata.uid == pod.metadata.uid);
    has_failed(pod, o.job) && !is_predecessor
}

fn note(
    o: &Observed<'_>,
    c: &Counts,
    ending: Option<&Ending>,
    pod: &Pod,
    status: &mut JobStatus,
    new_indexes: &mut Vec<i32>,
) {
    let uid = &pod.metadata.uid;
    let uncounted = &mut status.uncounted_terminated_pods;
    let has_index = !o.is_indexed() || o.index(pod).is_some();
    if pod.status.phase == "Succeeded" && !uncounted.failed.contains(uid) {
        match o.index(pod).filter(|_| o.is_indexed()) {
            // The index itself is what is counted once.
            Some(index) if !c.counted_indexes.has(index) => new_indexes.push(index),
            _ if !o.is_indexed() && !uncounted.succeeded.contains(uid) => uncounted.succeeded.push(uid.clone()),
            _ => {}
        }
    } else if has_failed(pod, o.job) || ending.is_some_and(|e| e.is_failure) {
        let counts = policy::verdict(pod, o.job) != Verdict::Ignore;
        if counts && has_index && !uncounted.failed.contains(uid) {
            uncounted.failed.push(uid.clone());
        }
    }
}

/// Moves pods that no more have their finalizer to the counters.
pub fn count_untracked(status: &mut JobStatus, tracked: &HashSet<String>) {
    let uncounted = &mut status.uncounted_terminated_pods;
    for (uids, counter) in
        [(&mut uncounted.succeeded, &mut status.succeeded), (&mut uncounted.failed, &mut status.failed)]
    {
        let before = uids.len();
        uids.retain(|uid| tracked.contains(uid));
        *counter += (before - uids.len()) as i32;
    }
}

/// Adds the last condition, once nothing is left to be counted or to end. Whether the job has finished.
pub fn finish(status: &mut JobStatus, ending: &Ending, now: Timestamp) -> bool {
    let uncounted = &status.uncounted_terminated_pods;
    let is_waiting = !uncounted.succeeded.is_empty() || !uncounted.failed.is_empty();
    if is_waiting || status.terminating.unwrap_or_default() > 0 {
        return false;
    }
    let kind = if ending.is_failure { "Failed" } else { "Complete" };
    set_condition(status, condition(kind, "True", &ending.reason, &ending.message, now));
    if !ending.is_failure {
        status.completion_time = Some(time::format(now));
    }
    true
}

/// The write of the whole status over the revision of the job that it was made from: nothing is counted from a stale cache.
pub fn write(job: &Job, resource_version: &str, new: &JobStatus) -> Op {
    let conditions: Vec<Value> = new
        .conditions
        .iter()
        .map(|c| {
            json!({"type": c.kind, "status": c.status, "reason": c.reason, "message": c.message,
                   "lastProbeTime": c.last_probe_time, "lastTransitionTime": c.last_transition_time})
        })
        .collect();
    let uids = |list: &[String]| if list.is_empty() { Value::Null } else { json!(list) };
    let uncounted = &new.uncounted_terminated_pods;
    let some = |n: i32| if n == 0 { Value::Null } else { json!(n) };
    let text = |s: &str| if s.is_empty() { Value::Null } else { json!(s) };
    let body = json!({"status": {
        "conditions": if conditions.is_empty() { Value::Null } else { json!(conditions) },
        "startTime": new.start_time,
        "completionTime": new.completion_time,
        "active": some(new.active),
        "succeeded": some(new.succeeded),
        "failed": some(new.failed),
        "terminating": new.terminating,
        "ready": new.ready,
        "completedIndexes": text(&new.completed_indexes),
        "failedIndexes": new.failed_indexes,
        "uncountedTerminatedPods": {"succeeded": uids(&uncounted.succeeded), "failed": uids(&uncounted.failed)},
    }});
    let m = &job.metadata;
    Op::status(Job::resource(), &m.namespace, &m.name, body).if_uid(&m.uid).if_unchanged(resource_version)
}

#[cfg(test)]
mod tests {
    use super::super::backoff::Failures;
    use super::super::plan::count;
    use super::*;

    fn tracked(spec: Value, status: Value, pods: &[(&str, &str)], ending: Option<&Ending>) -> (JobStatus, Vec<String>) {
        let job = json!({"metadata": {"name": "j"}, "spec": spec, "status": status});
        let job: Job = serde_json::from_str(&job.to_string()).unwrap();
        let pod = |(uid, phase): &(&str, &str)| -> Arc<Pod> {
            let index = uid.trim_start_matches('p');
            let annotations = json!({"batch.kubernetes.io/job-completion-index": index});
            Arc::new(
                serde_json::from_value(json!({"metadata": {"uid": uid, "finalizers": [pod::FINALIZER],
                    "annotations": annotations}, "status": {"phase": phase}}))
                .unwrap(),
            )
        };
        let pods: Vec<_> = pods.iter().map(pod).collect();
        let (untracked, now) = (HashSet::new(), Timestamp::UNIX_EPOCH);
        let failures = Failures::default();
        let o = Observed { job: &job, pods: &pods, untracked: &untracked, failures, restarts_in_place: false, now };
        let mut status = job.status.clone();
        let tracked = track(&o, &count(&o), ending, &mut status);
        (status, tracked.untrack.iter().map(|p| p.metadata.uid.clone()).collect())
    }

    #[test]
    fn ended_pods_are_noted_and_then_counted() {
        let pods = [("p0", "Succeeded"), ("p1", "Failed"), ("p2", "Running")];
        let (mut status, untrack) = tracked(json!({}), json!({"succeeded": 3}), &pods, None);
        assert_eq!(untrack, ["p0", "p1"]);
        let uncounted = &status.uncounted_terminated_pods;
        assert_eq!(
            (uncounted.succeeded.as_slice(), uncounted.failed.as_slice()),
            (&["p0".into()][..], &["p1".into()][..])
        );
        assert_eq!((status.succeeded, status.failed), (3, 0));
        count_untracked(&mut status, &HashSet::from(["p1".to_owned()]));
        assert_eq!((status.succeeded, status.failed), (4, 0));
        assert_eq!(status.uncounted_terminated_pods.failed, ["p1"]);
        // What stands there from an interrupted pass is not noted again.
        let again = json!({"uncountedTerminatedPods": {"succeeded": ["p0", "gone"]}});
        let (status, _) = tracked(json!({}), again, &pods, None);
        assert_eq!((status.succeeded, status.uncounted_terminated_pods.succeeded.len()), (1, 1));
    }

    #[test]
    fn indexes_are_counted_by_themselves() {
        let spec = json!({"completionMode": "Indexed", "completions": 3});
        let pods = [("p2", "Succeeded"), ("p0", "Succeeded"), ("p9", "Succeeded")];
        let (status, untrack) = tracked(spec, json!({"completedIndexes": "0", "succeeded": 1}), &pods, None);
        assert_eq!((status.completed_indexes.as_str(), status.succeeded, untrack.len()), ("0,2", 2, 3));
    }

    #[test]
    fn an_ending_takes_all_pods_and_waits_for_them() {
        let ending = Ending { is_failure: true, reason: "R".into(), message: "m".into() };
        let (mut status, untrack) = tracked(json!({}), json!({}), &[("p0", "Running")], Some(&ending));
        assert_eq!((untrack.len(), status.conditions[0].kind.as_str()), (1, "FailureTarget"));
        let now = Timestamp::UNIX_EPOCH;
        assert!(!finish(&mut status, &ending, now), "not counted yet");
        count_untracked(&mut status, &HashSet::new());
        status.terminating = Some(1);
        assert!(!finish(&mut status, &ending, now), "not ended yet");
        status.terminating = Some(0);
        assert!(finish(&mut status, &ending, now));
        let kinds: Vec<_> = status.conditions.iter().map(|c| c.kind.as_str()).collect();
        assert_eq!((kinds, status.failed), (vec!["FailureTarget", "Failed"], 1));
        assert_eq!(status.completion_time, None);
    }
}
