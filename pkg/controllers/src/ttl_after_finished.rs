//! Deletes finished jobs when their time is over (`ttlSecondsAfterFinished`).

use crate::controller::{Context, Controller, Error, Key};
use crate::job::finished_at;
use crate::op::Op;
use async_trait::async_trait;
use isopod_client::queue::WorkQueue;
use isopod_client::views::Job;
use isopod_client::{Informer, Propagation};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

struct Finished {
    context: Context,
    jobs: Informer<Job>,
}

pub async fn run(context: Context) {
    let jobs = context.informer::<Job>(Job::resource());
    jobs.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&jobs, &queue);
    let controller = Arc::new(Finished { context: context.clone(), jobs });
    context.work(controller, queue, 2).await;
}

/// When the job is to be deleted; `None` when it stays.
fn due(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.ttl_seconds_after_finished.filter(|_| !job.metadata.is_being_deleted())?;
    finished_at(job)?.checked_add(SignedDuration::from_secs(i64::from(seconds))).ok()
}

#[async_trait]
impl Controller for Finished {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(cached) = self.jobs.get(&key.namespace, &key.name) else { return Ok(None) };
        let now = self.context.clock.now();
        let Some(at) = due(&cached) else { return Ok(None) };
        if at > now {
            return Ok(Some(at.duration_since(now).unsigned_abs()));
        }
        // The time may have been changed meanwhile, and a deletion cannot be taken back.
        let fresh: Option<Job> = self.context.calls(Job::resource()).find(&key.namespace, &key.name).await?;
        let Some(fresh) = fresh.filter(|f| due(f).is_some_and(|at| at <= now)) else { return Ok(None) };
        let m = &fresh.metadata;
        let op = Op::delete(Job::resource(), &m.namespace, &m.name).if_uid(&m.uid);
        let op = op.if_unchanged(&m.resource_version).propagate(Propagation::Foreground);
        self.context.apply(&op).await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn when_jobs_go() {
        let ended =
            |kind: &str| json!([{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        for (ttl, conditions, want) in [
            (json!(10), ended("Complete"), Some("2026-01-01T00:00:10Z")),
            (json!(0), ended("Failed"), Some("2026-01-01T00:00:00Z")),
            (json!(10), ended("SuccessCriteriaMet"), None),
            (Value::Null, ended("Complete"), None),
        ] {
            let job = json!({"spec": {"ttlSecondsAfterFinished": ttl}, "status": {"conditions": conditions}});
            let job: Job = serde_json::from_str(&job.to_string()).unwrap();
            assert_eq!(due(&job).map(isopod_api::time::format).as_deref(), want, "{ttl} {conditions}");
        }
    }
}
