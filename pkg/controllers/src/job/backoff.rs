//! How long a job waits before it makes a pod in place of a failed one.

use isopod_api::time;
use isopod_client::views::{ContainerStatus, Pod};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(600);

/// Failures since the last success.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Failures {
    pub count: i32,
    pub last: Option<Timestamp>,
}

impl Failures {
    /// With the pods that have ended since.
    pub fn with(self, succeeded: &[Arc<Pod>], failed: &[Arc<Pod>]) -> Self {
        let times = |pods: &[Arc<Pod>]| -> Vec<Timestamp> { pods.iter().filter_map(|p| finished_at(p)).collect() };
        let failed = times(failed);
        let success = times(succeeded).into_iter().max();
        let before = if succeeded.is_empty() { self } else { Failures::default() };
        let after: Vec<Timestamp> = failed.into_iter().filter(|f| success.is_none_or(|s| *f > s)).collect();
        Failures {
            count: before.count.saturating_add(after.len() as i32),
            last: after.into_iter().max().or(before.last),
        }
    }

    /// How long to wait from now on.
    pub fn left(self, now: Timestamp) -> Option<Duration> {
        let last = self.last.filter(|_| self.count > 0)?;
        let doublings = u32::try_from(self.count - 1).unwrap_or(0).min(16);
        let wait = (FIRST * 2u32.pow(doublings)).min(LONGEST);
        let passed = now.duration_since(last);
        let left = SignedDuration::try_from(wait).ok()? - passed;
        left.is_positive().then(|| left.unsigned_abs())
    }
}

/// When the pod ended, as well as it can be told: by its containers, its readiness, its deletion, its creation.
pub fn finished_at(pod: &Pod) -> Option<Timestamp> {
    let sidecars: Vec<&str> =
        pod.spec.init_containers.iter().filter(|c| c.restart_policy == "Always").map(|c| c.name.as_str()).collect();
    let ended = |c: &ContainerStatus| {
        let at = c.state.terminated.as_ref().and_then(|t| t.finished_at.as_deref());
        at.and_then(time::parse)
    };
    let of_sidecars = pod.status.init_container_statuses.iter().filter(|c| sidecars.contains(&c.name.as_str()));
    let all: Option<Vec<Timestamp>> = pod.status.container_statuses.iter().chain(of_sidecars).map(ended).collect();
    let unready = || {
        let ready = pod.condition("Ready").filter(|c| c.status == "False")?;
        time::parse(ready.last_transition_time.as_deref()?)
    };
    let deleted = || {
        let at = time::parse(pod.metadata.deletion_timestamp.as_deref()?)?;
        Some(at - SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or_default()))
    };
    let created = || time::parse(&pod.metadata.creation_timestamp);
    all.and_then(|t| t.into_iter().max()).or_else(unready).or_else(deleted).or_else(created)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(finished: &str) -> Arc<Pod> {
        let terminated = json!({"terminated": {"exitCode": 1, "finishedAt": finished}});
        let v = json!({"status": {"containerStatuses": [{"name": "c", "state": terminated}]}});
        Arc::new(serde_json::from_value(v).unwrap())
    }

    #[test]
    fn waits_double_until_a_success() {
        let at = |s: &str| -> Timestamp { format!("2026-01-01T00:{s}Z").parse().unwrap() };
        let none = Failures::default();
        assert_eq!(none.left(at("00:00")), None);
        let one = none.with(&[], &[pod("2026-01-01T00:00:00Z")]);
        assert_eq!(one.left(at("00:04")), Some(Duration::from_secs(6)));
        assert_eq!(one.left(at("00:10")), None);
        let two = one.with(&[], &[pod("2026-01-01T00:01:00Z")]);
        assert_eq!((two.count, two.left(at("01:00"))), (2, Some(Duration::from_secs(20))));
        let many = Failures { count: 90, last: Some(at("00:00")) };
        assert_eq!(many.left(at("00:00")), Some(LONGEST));
        let success = [pod("2026-01-01T00:02:00Z")];
        let failed = [pod("2026-01-01T00:01:30Z"), pod("2026-01-01T00:03:00Z")];
        assert_eq!(two.with(&success, &failed), Failures { count: 1, last: Some(at("03:00")) });
        assert_eq!(two.with(&success, &[]), none);
        assert_eq!(two.with(&[], &[]), two);
    }

    #[test]
    fn the_end_of_a_pod_without_statuses() {
        let with = |v: serde_json::Value| -> Option<String> {
            finished_at(&serde_json::from_value(v).unwrap()).map(time::format)
        };
        let deleted =
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:01:00Z", "deletionGracePeriodSeconds": 30}});
        assert_eq!(with(deleted).as_deref(), Some("2026-01-01T00:00:30Z"));
        let created = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}});
        assert_eq!(with(created).as_deref(), Some("2026-01-01T00:00:00Z"));
    }
}
