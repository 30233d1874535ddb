//! From a job and its pods to what is counted, how it ends, and which pods are made and taken away.

use super::backoff::{Failures, finished_at};
use super::indexes::Indexes;
use super::pod::{self, IndexFailures};
use super::policy::{self, Verdict, has_failed, replaces_only_failed};
use crate::pod_control::BURST;
use crate::replica_set::ranking::first_to_delete;
use isopod_api::time;
use isopod_client::views::{Job, Pod};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// What a pass sees.
pub struct Observed<'a> {
    pub job: &'a Job,
    pub pods: &'a [Arc<Pod>],
    /// Uids of pods whose finalizer is gone, which the cache may not show yet.
    pub untracked: &'a HashSet<String>,
    /// Failures before this pass.
    pub failures: Failures,
    /// Whether the containers of a failed pod are started again in it.
    pub restarts_in_place: bool,
    pub now: Timestamp,
}

impl Observed<'_> {
    pub fn completions(&self) -> i32 {
        self.job.spec.completions.unwrap_or_default()
    }
    /// Whether the pod is still to be counted.
    pub fn is_uncounted(&self, pod: &Pod) -> bool {
        pod::is_tracked(&pod.metadata) && !self.untracked.contains(&pod.metadata.uid)
    }
    pub fn index(&self, pod: &Pod) -> Option<i32> {
        pod::index(pod).filter(|i| *i < self.completions())
    }
    pub fn is_indexed(&self) -> bool {
        self.job.is_indexed()
    }
    fn has_limit_per_index(&self) -> bool {
        self.is_indexed() && self.job.spec.backoff_limit_per_index.is_some()
    }
    fn fails(&self, pod: &Pod) -> bool {
        has_failed(pod, self.job)
    }
}

#[derive(Default)]
pub struct Counts {
    pub active: Vec<Arc<Pod>>,
    pub ready: i32,
    pub terminating: i32,
    pub succeeded: i32,
    pub failed: i32,
    pub failures: Failures,
    /// Of an indexed job: those of the status, and with the pods that have succeeded since.
    pub counted_indexes: Indexes,
    pub succeeded_indexes: Indexes,
    /// Of a job with a limit for each index.
    pub failed_indexes: Option<Indexes>,
    /// Failed pods that stay until their index has a new one, which takes over their number of failures.
    pub predecessors: BTreeMap<i32, Arc<Pod>>,
}

pub fn count(o: &Observed<'_>) -> Counts {
    let (job, uncounted) = (o.job, &o.job.status.uncounted_terminated_pods);
    let new = |known: &[String], f: &dyn Fn(&Pod) -> bool| -> Vec<Arc<Pod>> {
        let is_new = |p: &&Arc<Pod>| {
            let valid = !o.is_indexed() || o.index(p).is_some();
            o.is_uncounted(p) && valid && !known.contains(&p.metadata.uid) && f(p)
        };
        o.pods.iter().filter(is_new).cloned().collect()
    };
    let succeeded = new(&uncounted.succeeded, &|p| p.status.phase == "Succeeded");
    let failed = new(&uncounted.failed, &|p| o.fails(p));
    let counting = failed.iter().filter(|p| policy::verdict(p, job) != Verdict::Ignore).count();
    let active: Vec<Arc<Pod>> = o.pods.iter().filter(|p| p.is_active()).cloned().collect();
    let mut c = Counts {
        ready: active.iter().filter(|p| p.is_ready()).count() as i32,
        terminating: o.pods.iter().filter(|p| !p.is_terminal() && p.metadata.is_being_deleted()).count() as i32,
        active,
        succeeded: job.status.succeeded + (succeeded.len() + uncounted.succeeded.len()) as i32,
        failed: job.status.failed + (counting + uncounted.failed.len()) as i32,
        failures: o.failures.with(&succeeded, &failed),
        ..Counts::default()
    };
    if o.is_indexed() {
        count_indexes(o, &mut c);
    }
    c
}

fn count_indexes(o: &Observed<'_>, c: &mut Counts) {
    let indexes_of = |f: &dyn Fn(&Pod) -> bool| {
        Indexes::of(o.pods.iter().filter(|p| pod::is_tracked(&p.metadata) && f(p)).filter_map(|p| o.index(p)))
    };
    c.counted_indexes = Indexes::parse(&o.job.status.completed_indexes, o.completions());
    c.succeeded_indexes = c.counted_indexes.union(&indexes_of(&|p| p.status.phase == "Succeeded"));
    c.succeeded = c.succeeded_indexes.total();
    let Some(limit) = o.job.spec.backoff_limit_per_index else { return };
    let before = Indexes::parse(o.job.status.failed_indexes.as_deref().unwrap_or_default(), o.completions());
    let ends_index = |p: &Pod| {
        o.fails(p)
            && match policy::verdict(p, o.job) {
                Verdict::FailIndex => true,
                Verdict::Ignore => false,
                Verdict::Count | Verdict::FailJob(_) => pod::index_failures(p) >= limit,
            }
    };
    let failed = before.union(&indexes_of(&ends_index));
    let running = Indexes::of(c.active.iter().filter_map(|p| pod::index(p)));
    for pod in o.pods.iter().filter(|p| o.is_uncounted(p) && o.fails(p)) {
        let Some(index) = o.index(pod) else { continue };
        if c.succeeded_indexes.has(index) || failed.has(index) || running.has(index) {
            continue;
        }
        let rank = |p: &Pod| (pod::all_index_failures(p), finished_at(p));
        match c.predecessors.get(&index) {
            Some(other) if rank(other) > rank(pod) => {}
            _ => drop(c.predecessors.insert(index, pod.clone())),
        }
    }
    c.failed_indexes = Some(failed);
}

/// Why a job ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    pub is_failure: bool,
    pub reason: String,
    pub message: String,
}

impl Ending {
    fn failure(reason: &str, message: impl Into<String>) -> Self {
        Ending { is_failure: true, reason: reason.to_owned(), message: message.into() }
    }
    fn success(reason: &str, message: impl Into<String>) -> Self {
        Ending { is_failure: false, reason: reason.to_owned(), message: message.into() }
    }
    pub fn completed() -> Self {
        Ending::success("CompletionsReached", "Reached expected number of succeeded pods")
    }
}

/// Whether the job ends before its completions are reached: what was decided in an earlier pass stands; failures go before
/// success.
pub fn ending(o: &Observed<'_>, c: &Counts) -> Option<Ending> {
    for (kind, is_failure) in [("SuccessCriteriaMet", false), ("FailureTarget", true)] {
        if let Some(decided) = o.job.condition(kind) {
            let (reason, message) = (decided.reason.clone(), decided.message.clone());
            return Some(Ending { is_failure, reason, message });
        }
    }
    let failed = o.pods.iter().filter(|p| o.fails(p)).map(|p| policy::verdict(p, o.job));
    let by_policy = failed.into_iter().find_map(|v| match v {
        Verdict::FailJob(message) => Some(Ending::failure("PodFailurePolicy", message)),
        _ => None,
    });
    by_policy.or_else(|| by_limits(o, c)).or_else(|| by_indexes(o, c)).or_else(|| {
        let policy = o.job.spec.success_policy.as_ref().filter(|_| o.is_indexed())?;
        let message = policy::success(policy, o.completions(), &c.succeeded_indexes)?;
        Some(Ending::success("SuccessPolicy", message))
    })
}

fn by_limits(o: &Observed<'_>, c: &Counts) -> Option<Ending> {
    let limit = o.job.spec.backoff_limit.unwrap_or(6);
    if c.failed > limit || (o.restarts_in_place && restarts(o) >= limit.max(1)) {
        return Some(Ending::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    }
    let is_over = deadline(o.job).is_some_and(|d| d <= o.now);
    is_over.then(|| Ending::failure("DeadlineExceeded", "Job was active longer than specified deadline"))
}

fn restarts(o: &Observed<'_>) -> i32 {
    let running = o.pods.iter().filter(|p| matches!(p.status.phase.as_str(), "Running" | "Pending"));
    running
        .flat_map(|p| p.status.container_statuses.iter().chain(&p.status.init_container_statuses))
        .map(|c| c.restart_count)
        .sum()
}

/// When the job has been active for too long.
pub fn deadline(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.active_deadline_seconds.filter(|_| !job.spec.suspend)?;
    let start = job.status.start_time.as_deref().and_then(time::parse)?;
    start.checked_add(SignedDuration::from_secs(seconds)).ok()
}

fn by_indexes(o: &Observed<'_>, c: &Counts) -> Option<Ending> {
    let failed = c.failed_indexes.as_ref()?.total();
    if o.job.spec.max_failed_indexes.is_some_and(|max| failed > max) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return Some(Ending::failure("MaxFailedIndexesExceeded", message));
    }
    let all_ended = failed > 0 && failed + c.succeeded_indexes.total() >= o.completions();
    all_ended.then(|| Ending::failure("FailedIndexes", "Job has failed indexes"))
}

/// Whether as many pods as asked for have succeeded.
pub fn is_complete(o: &Observed<'_>, c: &Counts, active: usize) -> bool {
    active == 0 && o.job.spec.completions.map_or(c.succeeded > 0, |n| c.succeeded >= n)
}

/// The pods that a pass makes (by index) and takes away.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    pub create: Vec<(Option<i32>, Option<IndexFailures>)>,
    pub delete: Vec<Arc<Pod>>,
    pub look_again: Option<Duration>,
}

pub fn manage(o: &Observed<'_>, c: &Counts) -> Changes {
    let active = c.active.len() as i32;
    let parallelism = o.job.spec.parallelism.unwrap_or(1);
    let wanted = match o.job.spec.completions {
        _ if o.job.spec.suspend => 0,
        // Once one has succeeded, the others may end and no more are made.
        None if c.succeeded > 0 => active,
        None => parallelism,
        Some(completions) => (completions - c.succeeded).min(parallelism).max(0),
    };
    let mut delete = surplus(o, c, (active - wanted).max(0) as usize);
    delete.truncate(BURST);
    if !delete.is_empty() || o.job.spec.suspend {
        return Changes { delete, ..Changes::default() };
    }
    let ending = if replaces_only_failed(o.job) { c.terminating } else { 0 };
    let missing = (wanted - ending - active).clamp(0, BURST as i32) as usize;
    if missing == 0 {
        return Changes::default();
    }
    if !o.has_limit_per_index()
        && let Some(wait) = c.failures.left(o.now)
    {
        return Changes { look_again: Some(wait), ..Changes::default() };
    }
    if !o.is_indexed() {
        return Changes { create: vec![(None, None); missing], ..Changes::default() };
    }
    new_indexes(o, c, missing)
}

fn new_indexes(o: &Observed<'_>, c: &Counts, missing: usize) -> Changes {
    let mut taken = c.succeeded_indexes.union(&Indexes::of(c.active.iter().filter_map(|p| pod::index(p))));
    if replaces_only_failed(o.job) {
        let ending = o.pods.iter().filter(|p| !p.is_terminal() && p.metadata.is_being_deleted());
        taken = taken.union(&Indexes::of(ending.filter_map(|p| pod::index(p))));
    }
    if let Some(failed) = &c.failed_indexes {
        taken = taken.union(failed);
    }
    let (mut create, mut waits) = (Vec::new(), Vec::new());
    for index in taken.first_missing(missing, o.completions()) {
        if !o.has_limit_per_index() {
            create.push((Some(index), None));
            continue;
        }
        let before = c.predecessors.get(&index);
        let count = before.map_or(0, |p| pod::all_index_failures(p) + 1);
        let failures = Failures { count, last: before.and_then(|p| finished_at(p)) };
        match failures.left(o.now) {
            Some(wait) => waits.push(wait),
            None => {
                let takes_over = before.map(|p| IndexFailures::after(p, policy::verdict(p, o.job) != Verdict::Ignore));
                create.push((Some(index), Some(takes_over.unwrap_or_default())));
            }
        }
    }
    Changes { create, delete: Vec::new(), look_again: waits.into_iter().min() }
}

/// At least `count` active pods: first those whose index is no index of the job, or that of another pod.
fn surplus(o: &Observed<'_>, c: &Counts, count: usize) -> Vec<Arc<Pod>> {
    if !o.is_indexed() {
        return first_to_delete(&c.active, &[], count, o.now);
    }
    // Those that serve most come first and keep their index.
    let mut by_rank = first_to_delete(&c.active, &[], c.active.len(), o.now);
    by_rank.reverse();
    let mut seen = BTreeSet::new();
    let (left, mut gone): (Vec<_>, Vec<_>) =
        by_rank.into_iter().partition(|p| o.index(p).is_some_and(|i| seen.insert(i)));
    gone.extend(first_to_delete(&left, &[], count.saturating_sub(gone.len()), o.now));
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-01-01T00:00:30Z";

    fn job(spec: Value, status: Value) -> Job {
        let v = json!({"metadata": {"name": "j", "namespace": "ns"}, "spec": spec, "status": status});
        serde_json::from_str(&v.to_string()).unwrap()
    }

    /// `state`: a phase, or `going`; an index after a colon; failures of the index after another.
    fn pod(name: &str, text: &str) -> Arc<Pod> {
        let mut parts = text.split(':');
        let state = parts.next().unwrap();
        let mut annotations = json!({});
        if let Some(index) = parts.next() {
            annotations["batch.kubernetes.io/job-completion-index"] = json!(index);
        }
        if let Some(failures) = parts.next() {
            annotations["batch.kubernetes.io/job-index-failure-count"] = json!(failures);
        }
        let going = (state == "going").then_some("2026-01-01T00:00:00Z");
        let phase = if state == "going" { "Running" } else { state };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name, "deletionTimestamp": going, "finalizers": [pod::FINALIZER],
                             "annotations": annotations, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "status": {"phase": phase},
            }))
            .unwrap(),
        )
    }

    fn with<T>(job: &Job, states: &[&str], f: impl Fn(&Observed<'_>, &Counts) -> T) -> T {
        let pods: Vec<_> = states.iter().enumerate().map(|(i, s)| pod(&format!("p{i}"), s)).collect();
        let (untracked, now) = (HashSet::new(), NOW.parse().unwrap());
        let failures = Failures::default();
        let o = Observed { job, pods: &pods, untracked: &untracked, failures, restarts_in_place: false, now };
        f(&o, &count(&o))
    }

    fn reason(job: &Job, states: &[&str]) -> Option<String> {
        with(job, states, |o, c| ending(o, c).map(|e| e.reason))
    }

    /// Numbers of pods made (or their indexes) and the names of those taken away.
    fn changes(job: &Job, states: &[&str]) -> String {
        with(job, states, |o, c| {
            let changes = manage(o, c);
            let made: Vec<String> = changes
                .create
                .iter()
                .map(|(i, f)| match (i, f) {
                    (Some(i), Some(f)) => format!("{i}/{}", f.counted),
                    (Some(i), None) => i.to_string(),
                    _ => "+".into(),
                })
                .collect();
            let gone: Vec<_> = changes.delete.iter().map(|p| p.metadata.name.clone()).collect();
            format!("{} -{} {:?}", made.join(","), gone.join(","), changes.look_again.map(|w| w.as_secs()))
        })
    }

    #[test]
    fn as_many_pods_as_are_missing() {
        for (spec, status, states, want) in [
            (json!({"parallelism": 2, "completions": 3}), json!({}), vec![], "+,+ - None"),
            (json!({"parallelism": 2, "completions": 3}), json!({}), vec!["Running"], "+ - None"),
            (json!({"parallelism": 2, "completions": 3}), json!({"succeeded": 2}), vec![], "+ - None"),
            (json!({"parallelism": 2}), json!({}), vec!["Succeeded", "Running"], " - None"),
            (json!({"parallelism": 1, "completions": 3}), json!({}), vec!["Running", "Pending"], " -p1 None"),
            (json!({"parallelism": 1, "completions": 3, "suspend": true}), json!({}), vec!["Running"], " -p0 None"),
            (json!({"parallelism": 1, "completions": 1, "suspend": true}), json!({}), vec![], " - None"),
            (json!({"parallelism": 1, "completions": 1}), json!({}), vec!["going"], "+ - None"),
            (
                json!({"parallelism": 1, "completions": 1, "podReplacementPolicy": "Failed"}),
                json!({}),
                vec!["going"],
                " - None",
            ),
        ] {
            assert_eq!(changes(&job(spec.clone(), status), &states), want, "{spec} {states:?}");
        }
        // The failed pod ended 30 seconds ago; after two failures the wait is 20, after three 40.
        let j = job(json!({"parallelism": 1, "completions": 1}), json!({}));
        assert_eq!(changes(&j, &["Failed", "Failed", "Failed"]), " - Some(10)");
    }

    #[test]
    fn indexes_are_taken_in_order() {
        let spec = |extra: Value| {
            let mut v = json!({"parallelism": 3, "completions": 5, "completionMode": "Indexed"});
            isopod_client::calls::merge(&mut v, &extra);
            v
        };
        let done = json!({"completedIndexes": "1", "succeeded": 1});
        let limited = json!({"backoffLimitPerIndex": 2});
        for (extra, status, states, want) in [
            (json!({}), done.clone(), vec!["Running:0"], "2,3 - None"),
            (json!({}), json!({}), vec!["Running:0", "Pending:0", "Running:9"], " -p2,p1 None"),
            (limited.clone(), json!({}), vec![], "0/0,1/0,2/0 - None"),
            (limited.clone(), json!({}), vec!["Failed:0:0"], "0/1,1/0,2/0 - None"),
            (limited, json!({"failedIndexes": "0"}), vec!["Failed:1:2"], "2/0,3/0,4/0 - None"),
        ] {
            let got = changes(&job(spec(extra.clone()), status), &states);
            assert_eq!(got, want, "{extra} {states:?}");
        }
    }

    #[test]
    fn how_jobs_end() {
        let indexed = |extra: Value| {
            let mut v = json!({"parallelism": 2, "completions": 3, "completionMode": "Indexed"});
            isopod_client::calls::merge(&mut v, &extra);
            v
        };
        let policy = json!({"rules": [{"succeededIndexes": "0-1"}]});
        let started = json!({"startTime": "2026-01-01T00:00:00Z"});
        for (spec, status, states, want) in [
            (json!({"backoffLimit": 1}), json!({}), vec!["Failed"], None),
            (json!({"backoffLimit": 1}), json!({"failed": 1}), vec!["Failed"], Some("BackoffLimitExceeded")),
            (json!({"backoffLimit": 1}), json!({"uncountedTerminatedPods": {"failed": ["p0"]}}), vec!["Failed"], None),
            (json!({"activeDeadlineSeconds": 30}), started.clone(), vec![], Some("DeadlineExceeded")),
            (json!({"activeDeadlineSeconds": 31}), started.clone(), vec![], None),
            (json!({"activeDeadlineSeconds": 1, "suspend": true}), started, vec![], None),
            (
                indexed(json!({"successPolicy": policy})),
                json!({}),
                vec!["Succeeded:0", "Succeeded:1"],
                Some("SuccessPolicy"),
            ),
            (indexed(json!({"successPolicy": policy})), json!({}), vec!["Succeeded:0"], None),
            (
                indexed(json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 0})),
                json!({}),
                vec!["Failed:0:0"],
                Some("MaxFailedIndexesExceeded"),
            ),
            (
                indexed(json!({"backoffLimitPerIndex": 0})),
                json!({"completedIndexes": "1,2"}),
                vec!["Failed:0:0"],
                Some("FailedIndexes"),
            ),
            (indexed(json!({"backoffLimitPerIndex": 1})), json!({"completedIndexes": "1,2"}), vec!["Failed:0:0"], None),
            (
                json!({}),
                json!({"conditions": [{"type": "FailureTarget", "status": "True", "reason": "Why"}]}),
                vec![],
                Some("Why"),
            ),
        ] {
            assert_eq!(reason(&job(spec.clone(), status), &states).as_deref(), want, "{spec} {states:?}");
        }
    }

    #[test]
    fn completion_waits_for_active_pods() {
        let fixed = job(json!({"completions": 2}), json!({"succeeded": 1}));
        assert!(with(&fixed, &["Succeeded"], |o, c| is_complete(o, c, 0)));
        assert!(!with(&fixed, &["Running"], |o, c| is_complete(o, c, 1)));
        let queue = job(json!({"parallelism": 2}), json!({}));
        assert!(!with(&queue, &["Succeeded", "Running"], |o, c| is_complete(o, c, c.active.len())));
        assert!(with(&queue, &["Succeeded"], |o, c| is_complete(o, c, 0)));
    }
}
