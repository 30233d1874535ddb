//! Starts a job at every moment of a schedule.
//!
//! Watches cron jobs and their jobs; writes jobs and the cron job's status. Invariants: the job of a moment is named after
//! it, so that it is made once; a moment that was missed is made up for once, within the starting deadline.

mod schedule;
mod timing;

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use crate::ownership::controller_reference;
use crate::pod_control::failure_text;
use async_trait::async_trait;
use isopod_api::time;
use isopod_client::events::{Kind, ObjectRef};
use isopod_client::queue::WorkQueue;
use isopod_client::views::{ActiveJob, CronJob, CronJobStatus, Job};
use isopod_client::{Change, Informer, Propagation, decode};
use jiff::Timestamp;
use schedule::Schedule;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const API_VERSION: &str = "batch/v1";
const KIND: &str = "CronJob";
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Index of jobs by the uid of their controller.
const BY_CONTROLLER: &str = "controller";

struct CronJobs {
    context: Context,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
}

pub async fn run(context: Context) {
    let crons = context.informer::<CronJob>(CronJob::resource());
    let jobs = context.informer::<Job>(Job::resource());
    jobs.add_index(BY_CONTROLLER, |j| j.metadata.controller().map(|c| c.uid.clone()).into_iter().collect());
    crons.synced().await;
    jobs.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&crons, &queue);
    let again = queue.clone();
    context.feed(&jobs, move |change| {
        let (old, new) = match change {
            Change::Applied { old, new } => (old, Some(new)),
            Change::Deleted(old) => (Some(old), None),
            Change::Resync => return,
        };
        for job in old.iter().chain(&new) {
            if let Some(owner) = job.metadata.controller().filter(|c| c.kind == KIND) {
                again.add(Key::new(&job.metadata.namespace, &owner.name));
            }
        }
    });
    let controller = Arc::new(CronJobs { context: context.clone(), crons, jobs });
    context.work(controller, queue, 5).await;
}

/// An event to be recorded: kind, reason, message.
type Said = (Kind, &'static str, String);

/// The status after a look at the jobs, and what there is to say about it.
fn observe(cron: &CronJob, jobs: &[Arc<Job>]) -> (CronJobStatus, Vec<Said>) {
    let (mut status, mut said) = (cron.status.clone(), Vec::new());
    for job in jobs {
        let at = status.active.iter().position(|a| a.uid == job.metadata.uid);
        let name = &job.metadata.name;
        let Some(end) = job.finished() else {
            if at.is_none() {
                let text = format!("Saw a job that the controller did not create or forgot: {name}");
                said.push((Kind::Warning, "UnexpectedJob", text));
            }
            continue;
        };
        if let Some(at) = at {
            status.active.remove(at);
            said.push((Kind::Normal, "SawCompletedJob", format!("Saw completed job: {name}, condition: {}", end.kind)));
        }
        let moment = |t: Option<&str>| t.and_then(time::parse);
        let completed = job.status.completion_time.as_deref().filter(|_| end.kind == "Complete");
        if completed.is_some() && moment(completed) > moment(status.last_successful_time.as_deref()) {
            status.last_successful_time = completed.map(ToOwned::to_owned);
        }
    }
    (status, said)
}

/// The finished jobs that are more than the history keeps, oldest first.
fn forgotten<'a>(cron: &CronJob, jobs: &'a [Arc<Job>]) -> Vec<&'a Arc<Job>> {
    let mut out = Vec::new();
    let limits =
        [("Complete", cron.spec.successful_jobs_history_limit), ("Failed", cron.spec.failed_jobs_history_limit)];
    for (kind, limit) in limits {
        let Some(limit) = limit else { continue };
        let mut ended: Vec<_> = jobs.iter().filter(|j| j.finished().is_some_and(|c| c.kind == kind)).collect();
        // Those that never started are kept longest.
        ended.sort_by_key(|j| (j.status.start_time.is_none(), j.status.start_time.clone(), j.metadata.name.clone()));
        let surplus = ended.len().saturating_sub(limit.max(0) as usize);
        out.extend(ended.into_iter().take(surplus));
    }
    out
}

fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.metadata.name, at.as_second().div_euclid(60))
}

/// The job of one moment.
fn job(cron: &CronJob, at: Timestamp) -> Value {
    let template = cron.spec.job_template.parse();
    let zone = schedule::zone(cron.spec.time_zone.as_deref()).unwrap_or(jiff::tz::TimeZone::UTC);
    let local = at.to_zoned(zone);
    let offset = if local.offset().is_zero() { "Z".to_owned() } else { local.strftime("%:z").to_string() };
    let mut annotations = template["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations.insert(SCHEDULED_AT.into(), json!(format!("{}{offset}", local.strftime("%Y-%m-%dT%H:%M:%S"))));
    json!({
        "apiVersion": API_VERSION, "kind": "Job",
        "metadata": {
            "name": job_name(cron, at), "namespace": cron.metadata.namespace,
            "labels": template["metadata"].get("labels").cloned().unwrap_or_else(|| json!({})),
            "annotations": annotations,
            "ownerReferences": [controller_reference(API_VERSION, KIND, &cron.metadata)],
        },
        "spec": template["spec"],
    })
}

/// What a pass does about the schedule.
#[derive(Debug, PartialEq)]
enum Decision {
    /// Nothing until the object changes.
    Rest(Option<(&'static str, String)>),
    Wait(Option<Duration>, Option<(Kind, &'static str, String)>),
    Start {
        at: Timestamp,
        missed_many: bool,
    },
}

fn decide(cron: &CronJob, active: &[ActiveJob], now: Timestamp) -> Decision {
    let spec = &cron.spec;
    if let Err(why) = schedule::zone(spec.time_zone.as_deref()) {
        let name = spec.time_zone.as_deref().unwrap_or_default();
        return Decision::Rest(Some(("UnknownTimeZone", format!("invalid timeZone: {name:?}: {why}"))));
    }
    if spec.suspend {
        return Decision::Rest(None);
    }
    let schedule = match Schedule::parse(&spec.schedule, spec.time_zone.as_deref()) {
        Ok(schedule) => schedule,
        Err(why) => {
            let text = format!("unparseable schedule: {:?} : {why}", spec.schedule);
            return Decision::Rest(Some(("UnparseableSchedule", text)));
        }
    };
    let due = match timing::due(cron, &schedule, now) {
        Ok(due) => due,
        Err(why) => {
            let text = format!("invalid schedule: {} : {why}", spec.schedule);
            return Decision::Rest(Some(("InvalidSchedule", text)));
        }
    };
    let wait = |said| Decision::Wait(timing::wait(cron, &schedule, now), said);
    let Some(due) = due else { return wait(None) };
    if timing::is_too_late(cron, due.at, now) {
        let at = due.at.strftime("%a, %d %b %Y %H:%M:%S +0000");
        let text = format!("Missed scheduled time to start a job: {at}");
        return wait(Some((Kind::Warning, "MissSchedule", text)));
    }
    let last = cron.status.last_schedule_time.as_deref().and_then(time::parse);
    if last == Some(due.at) || active.iter().any(|a| a.name == job_name(cron, due.at)) {
        return wait(None);
    }
    if spec.concurrency_policy == "Forbid" && !active.is_empty() {
        let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
        return wait(Some((Kind::Normal, "JobAlreadyActive", text.to_owned())));
    }
    Decision::Start { at: due.at, missed_many: due.missed_many }
}

/// The write of a status that differs from the one in the object.
fn write(cron: &CronJob, new: &CronJobStatus) -> Option<Op> {
    if cron.status == *new {
        return None;
    }
    let active: Vec<Value> = new
        .active
        .iter()
        .map(|a| {
            json!({"kind": a.kind, "namespace": a.namespace, "name": a.name, "uid": a.uid,
                   "apiVersion": a.api_version, "resourceVersion": a.resource_version})
        })
        .collect();
    let body = json!({"status": {
        "active": if active.is_empty() { Value::Null } else { json!(active) },
        "lastScheduleTime": new.last_schedule_time,
        "lastSuccessfulTime": new.last_successful_time,
    }});
    let m = &cron.metadata;
    let op = Op::status(CronJob::resource(), &m.namespace, &m.name, body);
    Some(op.if_uid(&m.uid).if_unchanged(&m.resource_version))
}

#[async_trait]
impl Controller for CronJobs {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(cron) = self.crons.get(&key.namespace, &key.name) else { return Ok(None) };
        let jobs = self.jobs.by_index(BY_CONTROLLER, &cron.metadata.uid);
        let (mut status, said) = observe(&cron, &jobs);
        said.into_iter().for_each(|s| self.say(&cron, s));
        for job in forgotten(&cron, &jobs) {
            self.delete(&cron, &job.metadata.name, &job.metadata.uid, &mut status).await?;
        }
        self.drop_missing(&cron, &jobs, &mut status).await?;
        let next = if cron.metadata.is_being_deleted() { Ok(None) } else { self.serve(&cron, &mut status).await };
        if let Some(op) = write(&cron, &status) {
            self.context.apply(&op).await?;
        }
        next
    }
}

impl CronJobs {
    fn say(&self, cron: &CronJob, (kind, reason, message): Said) {
        let about = ObjectRef::new(API_VERSION, KIND, &cron.metadata);
        self.context.recorder.event(&about, kind, reason, message);
    }

    /// Takes jobs from the active ones that the server itself does not have.
    async fn drop_missing(&self, cron: &CronJob, jobs: &[Arc<Job>], status: &mut CronJobStatus) -> Result<(), Error> {
        let unseen: Vec<ActiveJob> =
            status.active.iter().filter(|a| !jobs.iter().any(|j| j.metadata.uid == a.uid)).cloned().collect();
        for active in unseen {
            let fresh: Option<Job> = self.context.calls(Job::resource()).find(&active.namespace, &active.name).await?;
            if fresh.is_none() {
                self.say(cron, (Kind::Normal, "MissingJob", format!("Active job went missing: {}", active.name)));
                status.active.retain(|a| a.uid != active.uid);
            }
        }
        Ok(())
    }

    async fn serve(&self, cron: &CronJob, status: &mut CronJobStatus) -> Result<Option<Duration>, Error> {
        let now = self.context.clock.now();
        match decide(cron, &status.active, now) {
            Decision::Rest(why) => {
                if let Some((reason, text)) = why {
                    self.say(cron, (Kind::Warning, reason, text));
                }
                Ok(None)
            }
            Decision::Wait(wait, said) => {
                said.into_iter().for_each(|s| self.say(cron, s));
                Ok(wait)
            }
            Decision::Start { at, missed_many } => {
                if missed_many {
                    let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
                    self.say(cron, (Kind::Warning, "TooManyMissedTimes", text.to_owned()));
                }
                if cron.spec.concurrency_policy == "Replace" {
                    for active in status.active.clone() {
                        self.delete(cron, &active.name, &active.uid, status).await?;
                    }
                }
                self.start(cron, at, status).await
            }
        }
    }

    async fn delete(&self, cron: &CronJob, name: &str, uid: &str, status: &mut CronJobStatus) -> Result<(), Error> {
        let op = Op::delete(Job::resource(), &cron.metadata.namespace, name).if_uid(uid);
        match self.context.apply(&op.propagate(Propagation::Background)).await {
            Ok(_) => {
                status.active.retain(|a| a.uid != uid);
                self.say(cron, (Kind::Normal, "SuccessfulDelete", format!("Deleted job {name}")));
                Ok(())
            }
            Err(e) => {
                let text = format!("Deleted job: {}", failure_text(&e));
                self.say(cron, (Kind::Warning, "FailedDelete", text));
                Err(e)
            }
        }
    }

    /// Makes the job of a moment. One that is there already was made by a pass whose status was lost.
    async fn start(
        &self,
        cron: &CronJob,
        at: Timestamp,
        status: &mut CronJobStatus,
    ) -> Result<Option<Duration>, Error> {
        let m = &cron.metadata;
        let made = match self.context.apply(&Op::create(Job::resource(), &m.namespace, job(cron, at))).await {
            Ok(made) => {
                let text = format!("Created job {}", job_name(cron, at));
                self.say(cron, (Kind::Normal, "SuccessfulCreate", text));
                made
            }
            Err(e) if e.api().is_some_and(isopod_client::Error::is_already_exists) => {
                self.context.calls(Job::resource()).get(&m.namespace, &job_name(cron, at)).await?
            }
            Err(e) => {
                if !e.api().is_some_and(isopod_client::Error::is_namespace_terminating) {
                    let text = format!("Error creating job: {}", failure_text(&e));
                    self.say(cron, (Kind::Warning, "FailedCreate", text));
                }
                return Err(e);
            }
        };
        let meta: isopod_client::views::Meta = decode::from_value(&made["metadata"]).unwrap_or_default();
        let is_ours = meta.controller().is_some_and(|c| c.uid == m.uid);
        if is_ours && !status.active.iter().any(|a| a.uid == meta.uid) {
            status.active.push(ActiveJob {
                kind: "Job".into(),
                namespace: meta.namespace,
                name: meta.name,
                uid: meta.uid,
                api_version: API_VERSION.into(),
                resource_version: meta.resource_version,
            });
            status.last_schedule_time = Some(time::format(at));
        }
        let schedule = Schedule::parse(&cron.spec.schedule, cron.spec.time_zone.as_deref());
        Ok(schedule.ok().and_then(|s| timing::wait(cron, &s, self.context.clock.now())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(spec: Value, status: Value) -> CronJob {
        let metadata = json!({"name": "c", "namespace": "ns", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"});
        let mut v = json!({"metadata": metadata, "status": status,
            "spec": {"schedule": "0 * * * *", "timeZone": "UTC", "jobTemplate": {"spec": {"x": 1}}}});
        isopod_client::calls::merge(&mut v, &json!({"spec": spec}));
        serde_json::from_str(&v.to_string()).unwrap()
    }

    fn finished(name: &str, kind: &str, at: &str) -> Arc<Job> {
        let v = json!({"metadata": {"name": name, "uid": name},
            "status": {"startTime": at, "completionTime": at, "conditions": [{"type": kind, "status": "True"}]}});
        Arc::new(serde_json::from_str(&v.to_string()).unwrap())
    }

    #[test]
    fn decisions() {
        let now: Timestamp = "2026-01-01T01:00:30Z".parse().unwrap();
        let active = [ActiveJob { name: "c-1".into(), ..ActiveJob::default() }];
        let at: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let start = |d: &Decision| *d == Decision::Start { at, missed_many: false };
        assert!(start(&decide(&cron(json!({}), json!({})), &active, now)));
        assert!(start(&decide(&cron(json!({"concurrencyPolicy": "Replace"}), json!({})), &active, now)));
        for (spec, status, reason) in [
            (json!({"concurrencyPolicy": "Forbid"}), json!({}), "JobAlreadyActive"),
            (json!({"schedule": "x"}), json!({}), "UnparseableSchedule"),
            (json!({"schedule": "0 0 31 2 *"}), json!({}), "InvalidSchedule"),
            (json!({"timeZone": "No/Where"}), json!({}), "UnknownTimeZone"),
            (json!({"suspend": true}), json!({}), ""),
            (json!({}), json!({"lastScheduleTime": "2026-01-01T01:00:00Z"}), ""),
        ] {
            let got = match decide(&cron(spec.clone(), status), &active, now) {
                Decision::Rest(why) => why.map_or("", |w| w.0),
                Decision::Wait(_, said) => said.map_or("", |s| s.1),
                Decision::Start { .. } => "start",
            };
            assert_eq!(got, reason, "{spec}");
        }
    }

    #[test]
    fn finished_jobs_leave_the_status_and_then_the_history() {
        let status = json!({"active": [{"name": "a", "uid": "a"}, {"name": "z", "uid": "z"}]});
        let cron = cron(json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0}), status);
        let jobs = [
            finished("a", "Complete", "2026-01-01T02:00:00Z"),
            finished("b", "Complete", "2026-01-01T01:00:00Z"),
            finished("f", "Failed", "2026-01-01T03:00:00Z"),
        ];
        let (new, said) = observe(&cron, &jobs);
        let active: Vec<_> = new.active.iter().map(|a| a.name.as_str()).collect();
        assert_eq!((active, new.last_successful_time.as_deref()), (vec!["z"], Some("2026-01-01T02:00:00Z")));
        assert_eq!(said.iter().map(|s| s.1).collect::<Vec<_>>(), ["SawCompletedJob"]);
        let gone: Vec<_> = forgotten(&cron, &jobs).iter().map(|j| j.metadata.name.clone()).collect();
        assert_eq!(gone, ["b", "f"]);
        assert!(write(&cron, &new).is_some());
        assert_eq!(write(&cron, &cron.status), None);
    }

    #[test]
    fn a_job_is_named_after_its_moment() {
        let cron = cron(json!({"timeZone": "Europe/Berlin"}), json!({}));
        let made = job(&cron, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(made["metadata"]["name"], "c-29453760");
        assert_eq!(made["metadata"]["annotations"][SCHEDULED_AT], "2026-01-01T01:00:00+01:00");
        assert_eq!(made["spec"], json!({"x": 1}));
    }
}
