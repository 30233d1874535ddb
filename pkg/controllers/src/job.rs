//! Runs the pods of a job until enough of them have succeeded, or too many have failed.
//!
//! Watches jobs and pods; writes pods (create, delete, finalizers) and the job's status. Invariants: every ended pod is
//! counted exactly once (see [`status`]); a pass acts only on a job that is as new as what this controller wrote last; a
//! finished job is not touched any more.

mod backoff;
mod indexes;
mod orphans;
mod plan;
mod pod;
mod policy;
mod status;

use crate::controller::{Context, Controller, Error, Key};
use crate::pod_control::{BURST, Owner, PodControl, name_and_uid};
use async_trait::async_trait;
use backoff::Failures;
use futures::future::join_all;
use isopod_api::time;
use isopod_client::Informer;
use isopod_client::events::Kind;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Job, JobStatus, Meta, Pod};
use jiff::Timestamp;
use parking_lot::Mutex;
use plan::{Changes, Counts, Ending, Observed};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

const API_VERSION: &str = "batch/v1";
const KIND: &str = "Job";
/// Who manages a job that names nobody.
const MANAGER: &str = "kubernetes.io/job-controller";
/// When to look again at a job whose newest state has not arrived: its arrival wakes it sooner.
const CACHE_WAIT: Duration = Duration::from_secs(1);

struct Jobs {
    context: Context,
    jobs: Informer<Job>,
    pods: PodControl,
    memory: Mutex<HashMap<Key, Memory>>,
}

/// What is remembered of a job between passes.
#[derive(Clone, Default)]
struct Memory {
    uid: String,
    failures: Failures,
    /// Uids of pods whose finalizer was removed, until the cache shows it.
    untracked: HashSet<String>,
    /// The revision of the last write of its status.
    written: u64,
}

pub async fn run(context: Context) {
    let jobs = context.informer::<Job>(Job::resource());
    let pods = PodControl::new(&context);
    jobs.synced().await;
    pods.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&jobs, &queue);
    let (known, again) = (jobs.clone(), queue.clone());
    pods.feed(KIND, &queue, move |orphan| add_adopters(&known, orphan, &again));
    let orphans = orphans::run(context.clone(), jobs.clone());
    let controller = Arc::new(Jobs { context: context.clone(), jobs, pods, memory: Mutex::default() });
    tokio::join!(context.work(controller, queue, 5), orphans);
}

/// Wakes the jobs that may adopt an orphan.
fn add_adopters(jobs: &Informer<Job>, orphan: &Meta, queue: &WorkQueue<Key>) {
    for job in jobs.list_namespace(&orphan.namespace) {
        if !job.spec.selector.is_empty() && job.spec.selector.matches(&orphan.labels) {
            queue.add(Key::of(&job.metadata));
        }
    }
}

fn owner(job: &Job) -> Owner<'_> {
    let finalizer = Some(pod::FINALIZER);
    Owner { api_version: API_VERSION, kind: KIND, resource: Job::resource(), meta: &job.metadata, finalizer }
}

fn is_ours(job: &Job) -> bool {
    job.spec.managed_by.as_ref().is_none_or(|m| m == MANAGER)
}

#[async_trait]
impl Controller for Jobs {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let job = self.jobs.get(&key.namespace, &key.name);
        let Some(job) = job.filter(|j| is_ours(j) && j.finished().is_none()) else {
            self.pods.expectations.forget(key);
            self.memory.lock().remove(key);
            return Ok(None);
        };
        let memory = self.remembered(key, &job);
        if job.metadata.resource_version.parse().is_ok_and(|r: u64| r < memory.written) {
            return Ok(Some(CACHE_WAIT));
        }
        let may_act = self.pods.expectations.are_met(key);
        let pods = self.pods.claim(&owner(&job), &job.spec.selector, |_| false).await?;
        let untracked = self.still_untracked(key, &memory, &pods);
        let template = job.spec.template.parse();
        let observed = Observed {
            job: &job,
            pods: &pods,
            untracked: &untracked,
            failures: memory.failures,
            restarts_in_place: template["spec"]["restartPolicy"] == "OnFailure",
            now: self.context.clock.now(),
        };
        let mut pass = Pass { key, o: &observed, counts: plan::count(&observed), status: job.status.clone() };
        pass.start();
        let (ending, acted) = self.act(&mut pass, &template, may_act).await;
        self.settle(pass, ending).await?;
        let look_again = acted?;
        let deadline = plan::deadline(&job).map(|d| d.duration_since(observed.now).unsigned_abs());
        let expired = (!may_act).then(|| self.pods.expectations.expire_in(key)).flatten();
        Ok([look_again, deadline, expired].into_iter().flatten().min())
    }
}

/// One pass over a job.
struct Pass<'a> {
    key: &'a Key,
    o: &'a Observed<'a>,
    counts: Counts,
    /// As it will be written.
    status: JobStatus,
}

impl Pass<'_> {
    fn start(&mut self) {
        let job = self.o.job;
        if self.status.start_time.is_none() && !job.spec.suspend {
            self.status.start_time = Some(time::format(self.o.now));
        }
    }

    /// Pods that are active, ready and terminating once `deleted` of the active ones have been deleted and `created` made.
    fn set_numbers(&mut self, deleted: &[Arc<Pod>], created: usize) {
        let ready = deleted.iter().filter(|p| p.is_ready()).count();
        self.status.active = (self.counts.active.len() + created - deleted.len()) as i32;
        self.status.ready = Some(self.counts.ready - ready as i32);
        self.status.terminating = Some(self.counts.terminating + deleted.len() as i32);
    }

    /// The condition `Suspended`; the event when it has changed.
    fn suspend(&mut self) -> Option<(&'static str, &'static str)> {
        let now = self.o.now;
        if self.o.job.spec.suspend {
            let new = status::condition("Suspended", "True", "JobSuspended", "Job suspended", now);
            let changed = status::set_condition(&mut self.status, new);
            changed.then(|| {
                self.status.start_time = None;
                ("Suspended", "Job suspended")
            })
        } else {
            let new = status::condition("Suspended", "False", "JobResumed", "Job resumed", now);
            // The time that a job may be active begins anew.
            status::set_condition(&mut self.status, new).then(|| {
                self.status.start_time = Some(time::format(now));
                ("Resumed", "Job resumed")
            })
        }
    }
}

impl Jobs {
    fn remembered(&self, key: &Key, job: &Job) -> Memory {
        let mut all = self.memory.lock();
        let memory = all.entry(key.clone()).or_default();
        if memory.uid != job.metadata.uid {
            *memory = Memory { uid: job.metadata.uid.clone(), ..Memory::default() };
        }
        memory.clone()
    }

    /// The pods that the cache still shows with the finalizer that was removed.
    fn still_untracked(&self, key: &Key, memory: &Memory, pods: &[Arc<Pod>]) -> HashSet<String> {
        let shown = pods.iter().filter(|p| pod::is_tracked(&p.metadata)).map(|p| &p.metadata.uid);
        let left: HashSet<String> = shown.filter(|uid| memory.untracked.contains(*uid)).cloned().collect();
        if let Some(memory) = self.memory.lock().get_mut(key) {
            memory.untracked.clone_from(&left);
        }
        left
    }

    /// Makes and deletes pods. Returns how the job ends, if it does, and when to look again.
    async fn act(
        &self,
        pass: &mut Pass<'_>,
        template: &Value,
        may_act: bool,
    ) -> (Option<Ending>, Result<Option<Duration>, Error>) {
        pass.set_numbers(&[], 0);
        // Not all pods are known: they may neither be counted as all, nor made.
        if !may_act {
            return (None, Ok(None));
        }
        if let Some(ending) = plan::ending(pass.o, &pass.counts) {
            let active: Vec<Arc<Pod>> = pass.counts.active.iter().take(BURST).cloned().collect();
            let deleted = self.change(pass, template, &Changes { delete: active.clone(), ..Changes::default() }).await;
            let all = deleted.is_ok() && active.len() == pass.counts.active.len();
            if deleted.is_ok() {
                pass.set_numbers(&active, 0);
            }
            return (Some(ending).filter(|_| all), deleted.map(|()| None));
        }
        if pass.o.job.metadata.is_being_deleted() {
            return (None, Ok(None));
        }
        let changes = plan::manage(pass.o, &pass.counts);
        let changed = self.untrack_and_change(pass, template, &changes).await;
        if changed.is_ok() {
            pass.set_numbers(&changes.delete, changes.create.len());
        }
        if plan::is_complete(pass.o, &pass.counts, pass.status.active as usize) {
            return (Some(Ending::completed()), changed.map(|()| None));
        }
        if let Some((reason, message)) = pass.suspend() {
            self.context.recorder.event(&owner(pass.o.job).object_ref(), Kind::Normal, reason, message.to_owned());
        }
        (None, changed.map(|()| changes.look_again))
    }

    /// A pod that is taken away because there are too many is not counted as failed.
    async fn untrack_and_change(&self, pass: &Pass<'_>, template: &Value, changes: &Changes) -> Result<(), Error> {
        for pod in changes.delete.iter().filter(|p| pod::is_tracked(&p.metadata)) {
            self.context.apply(&pod::untrack(&pod.metadata)).await?;
        }
        self.change(pass, template, changes).await
    }

    async fn change(&self, pass: &Pass<'_>, template: &Value, changes: &Changes) -> Result<(), Error> {
        if changes.create.is_empty() && changes.delete.is_empty() {
            return Ok(());
        }
        let owner = owner(pass.o.job);
        let new =
            changes.create.iter().map(|(index, failures)| pod::pod(template, &owner, *index, *failures)).collect();
        let surplus = changes.delete.iter().map(|p| name_and_uid(p)).collect();
        self.pods.change(pass.key, &owner, new, surplus).await
    }

    /// Writes the status, removes the finalizers of pods that stand in it, and counts these.
    async fn settle(&self, mut pass: Pass<'_>, ending: Option<Ending>) -> Result<(), Error> {
        let job = pass.o.job;
        let tracked = status::track(pass.o, &pass.counts, ending.as_ref(), &mut pass.status);
        let mut revision = job.metadata.resource_version.clone();
        let mut written = job.status.clone();
        if pass.status != written {
            revision = self.write(&pass, &revision).await?;
            written = pass.status.clone();
        }
        self.remember_failures(&pass);
        let (left, failed) = self.untrack(&pass, &tracked.untrack).await;
        status::count_untracked(&mut pass.status, &left);
        let finished = failed.is_ok()
            && !tracked.is_partial
            && ending.as_ref().is_some_and(|e| status::finish(&mut pass.status, e, pass.o.now));
        if pass.status != written {
            self.write(&pass, &revision).await?;
        }
        if let Some(ending) = ending.filter(|_| finished) {
            self.say_finished(&pass, &ending);
        }
        failed
    }

    async fn write(&self, pass: &Pass<'_>, revision: &str) -> Result<String, Error> {
        let answer = self.context.apply(&status::write(pass.o.job, revision, &pass.status)).await?;
        let revision = answer["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        if let (Some(memory), Ok(number)) = (self.memory.lock().get_mut(pass.key), revision.parse()) {
            memory.written = number;
        }
        Ok(revision)
    }

    fn remember_failures(&self, pass: &Pass<'_>) {
        if let Some(memory) = self.memory.lock().get_mut(pass.key) {
            memory.failures = pass.counts.failures;
        }
    }

    /// Removes finalizers. Returns the uids of the pods that still have theirs.
    async fn untrack(&self, pass: &Pass<'_>, pods: &[Arc<Pod>]) -> (HashSet<String>, Result<(), Error>) {
        let tracked = pass.o.pods.iter().filter(|p| pass.o.is_uncounted(p));
        let mut left: HashSet<String> = tracked.map(|p| p.metadata.uid.clone()).collect();
        let ops: Vec<_> = pods.iter().map(|p| pod::untrack(&p.metadata)).collect();
        let answers = join_all(ops.iter().map(|op| self.context.apply(op))).await;
        let mut result = Ok(());
        for (answer, pod) in answers.into_iter().zip(pods) {
            match answer {
                Err(e) if !e.api().is_some_and(isopod_client::Error::is_not_found) => result = Err(e),
                _ => {
                    left.remove(&pod.metadata.uid);
                    if let Some(memory) = self.memory.lock().get_mut(pass.key) {
                        memory.untracked.insert(pod.metadata.uid.clone());
                    }
                }
            }
        }
        (left, result)
    }

    fn say_finished(&self, pass: &Pass<'_>, ending: &Ending) {
        let about = owner(pass.o.job).object_ref();
        let record =
            |kind, reason: &str, text: &str| self.context.recorder.event(&about, kind, reason, text.to_owned());
        if ending.is_failure {
            return record(Kind::Warning, &ending.reason, &ending.message);
        }
        if pass.o.job.spec.completions.is_some_and(|n| pass.status.succeeded > n) {
            let text = "Too many succeeded pods running after completion count reached";
            record(Kind::Warning, "TooManySucceededPods", text);
        }
        record(Kind::Normal, "Completed", "Job completed");
    }
}

/// When the job finished.
pub(crate) fn finished_at(job: &Job) -> Option<Timestamp> {
    job.finished()?.last_transition_time.as_deref().and_then(time::parse)
}
