//! Stopping containers: preStop, the stop signal, and the kill at the end of the grace, each in a task that wakes the worker.

use super::Worker;
use crate::hooks;
use crate::plan::{Kill, KillReason};
use crate::pod::{PodExt, init_containers, is_sidecar};
use isopod_base::errors::Chain;
use isopod_runtime::ContainerStatus;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;
use std::time::Duration;
use tokio::task::AbortHandle;

/// Every container has at least this long to stop (upstream's `minimumGracePeriodInSeconds`).
const MIN_GRACE: Duration = Duration::from_secs(2);
const DEFAULT_GRACE: i64 = 30;

/// A container that is being stopped.
pub struct Killing {
    /// When it is killed at the latest.
    until: Timestamp,
    task: AbortHandle,
}

impl Drop for Killing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Worker {
    /// How long the pod's containers have to stop when the pod ends.
    pub(super) fn pod_grace(&self) -> Duration {
        let spec = self.pod.spec().termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE);
        let seconds =
            if self.pod.is_deleted() { self.pod.metadata.deletion_grace_period_seconds.unwrap_or(spec) } else { spec };
        Duration::from_secs(seconds.max(0) as u64)
    }

    fn grace(&self, c: Option<&Container>, reason: KillReason) -> Duration {
        let probe = match reason {
            KillReason::Startup => c.and_then(|c| c.startup_probe.as_ref()),
            KillReason::Liveness => c.and_then(|c| c.liveness_probe.as_ref()),
            KillReason::Other => None,
        };
        match probe.and_then(|p| p.termination_grace_period_seconds).filter(|_| !self.pod.is_deleted()) {
            Some(seconds) => Duration::from_secs(seconds.max(0) as u64),
            None => self.pod_grace(),
        }
    }

    /// Stops one container for a reason of its own.
    pub(super) fn kill_one(&mut self, kill: &Kill) {
        if self.killing.contains_key(&kill.id) {
            return;
        }
        let Some(status) = self.state.containers.iter().find(|c| c.id == kill.id).cloned() else { return };
        let grace = self.grace(self.pod.container(&kill.name).as_ref(), kill.reason);
        self.start_killing(&status, &kill.message, grace);
    }

    /// Stops everything that runs, sidecars last and in reverse order. True when nothing runs.
    pub(super) fn kill_all(&mut self) -> bool {
        let running: Vec<ContainerStatus> = self.state.running().cloned().collect();
        if running.is_empty() {
            self.deadline = None;
            return true;
        }
        let now = self.now();
        let until = now + self.pod_grace();
        // A shorter grace than before counts at once.
        let deadline = self.deadline.map_or(until, |d| d.min(until));
        self.deadline = Some(deadline);
        let pod = self.pod.clone();
        let inits = init_containers(pod.spec());
        let place = |c: &ContainerStatus| inits.iter().position(|i| i.name == c.config.name && is_sidecar(i));
        let late = now >= deadline;
        let mut last_first = running.clone();
        last_first.sort_by_key(|c| std::cmp::Reverse(place(c)));
        let others_run = running.iter().any(|c| place(c).is_none());
        let turn = last_first.first().map(|c| c.id.clone());
        let left = remaining(deadline, now);
        for c in &running {
            let its_turn = place(c).is_none() || late || (!others_run && turn.as_deref() == Some(&c.id));
            if !its_turn {
                continue;
            }
            match self.killing.get(&c.id) {
                Some(k) if k.until <= deadline + MIN_GRACE => {}
                // It had longer: now it has less. Its preStop hook has had its chance.
                Some(_) => self.hasten(c, left),
                None => self.start_killing(c, "", left),
            }
        }
        false
    }

    /// When a sidecar that waits for its turn waits no more.
    pub(super) fn kill_deadline(&self) -> Option<Timestamp> {
        let waits = self.state.running().any(|c| !self.killing.contains_key(&c.id));
        self.deadline.filter(|_| waits)
    }

    fn hasten(&mut self, c: &ContainerStatus, grace: Duration) {
        let grace = grace.max(MIN_GRACE);
        let (runtime, wake, id) = (self.shared.runtime.clone(), self.wake.clone(), c.id.clone());
        let task = tokio::spawn(async move {
            if let Err(e) = runtime.stop_container(&id, grace).await {
                tracing::warn!(container = id, error = %Chain(&e), "cannot stop the container");
            }
            wake.notify_one();
        });
        let until = self.now() + grace;
        self.killing.insert(c.id.clone(), Killing { until, task: task.abort_handle() });
    }

    fn start_killing(&mut self, status: &ContainerStatus, message: &str, grace: Duration) {
        let name = status.config.name.clone();
        let about = self.pod.container_reference(&name);
        let message = if message.is_empty() { format!("Stopping container {name}") } else { message.to_owned() };
        self.shared.recorder.normal(&about, "Killing", message);
        let (shared, wake, pod, id) = (self.shared.clone(), self.wake.clone(), self.pod.clone(), status.id.clone());
        let (ip, until) = (self.pod_ip(), self.now() + grace);
        let task = tokio::spawn(async move {
            let spec = pod.container(&name);
            let hook = spec.as_ref().and_then(|c| c.lifecycle.as_ref()).and_then(|l| l.pre_stop.as_ref());
            if let (Some(c), Some(hook), false) = (&spec, hook, grace.is_zero()) {
                let run = hooks::run(&*shared.runtime, &shared.clock, &pod, c, &id, &ip, hook);
                let outcome = tokio::select! {
                    r = run => r,
                    () = shared.clock.sleep(grace) => Err("the grace period ended before it".into()),
                };
                if let Err(e) = outcome {
                    tracing::info!(pod = %pod.display(), container = name, error = e, "preStop hook failed");
                    shared.recorder.warning(&about, "FailedPreStopHook", "PreStopHook failed");
                }
            }
            let left = remaining(until, shared.clock.now()).max(MIN_GRACE);
            if let Err(e) = shared.runtime.stop_container(&id, left).await {
                tracing::warn!(pod = %pod.display(), container = name, error = %Chain(&e), "cannot stop the container");
                // The worker looks again; do not let it do so at once for ever.
                shared.clock.sleep(Duration::from_secs(1)).await;
            }
            wake.notify_one();
        });
        self.killing.insert(status.id.clone(), Killing { until, task: task.abort_handle() });
    }

    /// Forgets kills whose task has ended though the container still runs: they are tried again.
    pub(super) fn drop_failed_kills(&mut self) {
        self.killing.retain(|_, k| !k.task.is_finished());
    }
}

fn remaining(until: Timestamp, now: Timestamp) -> Duration {
    until.duration_since(now).max(SignedDuration::ZERO).unsigned_abs()
}
