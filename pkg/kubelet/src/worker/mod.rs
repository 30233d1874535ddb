//! One pod's worker: a task that is woken by events (the API, the runtime, probes, pulls, deadlines) and brings the runtime and
//! the status in line with the pod. One code path, idempotent; start at [`Worker::run`] and `sync`.
//!
//! Invariants: nothing here waits for a pull or for a container to stop (they run beside and wake the worker); the pod's
//! object is removed from the API only after nothing of it is left on the node.

mod active;
mod ending;
mod kill;
mod report;
mod resize;
mod start;

use crate::allocation::Allocation;
use crate::backoff::Backoff;
use crate::downward::Addresses;
use crate::images::PodImages;
use crate::objects::PodObjects;
use crate::pod::PodExt;
use crate::probe::PodProbes;
use crate::resize::Progress;
use crate::shared::Shared;
use crate::state::PodState;
use crate::status::{Verdict, Waiting};
use crate::volumes::{Certificates, Tokens};
use isopod_base::errors::Chain;
use isopod_runtime::{ImageStatus, RuntimeError};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kill::Killing;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// The first wait after a failed try; it doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(60);
const MAX_SAID: usize = 64;

/// What of a pod the runtime had before its worker started.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub sandboxes: Vec<String>,
    pub containers: Vec<String>,
}

/// When to look again without being woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Wait(Option<Timestamp>),
    /// Nothing of the pod is left.
    Done,
}

impl Next {
    fn sooner(self, at: Option<Timestamp>) -> Next {
        match (self, at) {
            (Next::Wait(Some(a)), Some(b)) => Next::Wait(Some(a.min(b))),
            (Next::Wait(None), at) => Next::Wait(at),
            (next, _) => next,
        }
    }
}

pub struct Worker {
    shared: Arc<Shared>,
    /// The API's pod; `None` once it is gone there.
    api: watch::Receiver<Option<Arc<Pod>>>,
    /// The last pod seen.
    pod: Arc<Pod>,
    wake: Arc<Notify>,
    known: Known,
    state: PodState,
    waiting: HashMap<String, Waiting>,
    backoff: Backoff,
    /// Containers whose end was counted by the back-off, by container name.
    counted: HashMap<String, String>,
    images: PodImages,
    /// Images that are here for a container that still waits for others, by container and name.
    fetched: HashMap<(String, String), ImageStatus>,
    probes: PodProbes,
    objects: PodObjects,
    tokens: Tokens,
    certificates: Certificates,
    /// Termination messages by container id.
    messages: HashMap<String, String>,
    killing: HashMap<String, Killing>,
    /// Set when the pod starts to end: its containers have until then.
    deadline: Option<Timestamp>,
    status: PodStatus,
    /// The status in the API, as far as we know.
    written: Value,
    verdict: Option<Verdict>,
    admitted: bool,
    /// What the node grants the pod; `None` until it is admitted.
    allocation: Option<Allocation>,
    resize: Progress,
    freed: watch::Receiver<u64>,
    /// No container will start again.
    finished: bool,
    /// Everything on the node but the records has been taken away.
    torn_down: bool,
    failures: u32,
    /// Events that were said and need not be said again.
    said: HashSet<String>,
}

impl Worker {
    pub fn new(
        shared: Arc<Shared>,
        pod: Arc<Pod>,
        api: watch::Receiver<Option<Arc<Pod>>>,
        wake: Arc<Notify>,
        known: Known,
    ) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let max = shared.cfg.max_restart_backoff;
        let allocation = Allocation::load(&shared.cfg.pod_dir(pod.uid())).unwrap_or_else(|e| {
            tracing::warn!(pod = %pod.display(), error = %e, "cannot read what the pod was granted");
            None
        });
        Worker {
            images: PodImages::new(shared.puller.clone(), wake.clone(), max),
            probes: PodProbes::new(shared.prober.clone(), wake.clone()),
            objects: shared.objects.of_pod(pod.ns(), wake.clone()),
            tokens: Tokens::new(shared.client.clone()),
            certificates: Certificates::new(shared.client.clone(), &shared.cfg.node_name),
            backoff: Backoff::new(max),
            written: crate::status_patch::to_json(&status),
            // What has containers was admitted before.
            admitted: !known.containers.is_empty()
                || pod.stat().container_statuses.iter().flatten().any(|s| s.container_id.is_some()),
            allocation,
            resize: Progress::default(),
            freed: shared.freed.subscribe(),
            finished: pod.is_terminal(),
            status,
            shared,
            api,
            pod,
            wake,
            known,
            state: PodState::default(),
            waiting: HashMap::new(),
            fetched: HashMap::new(),
            counted: HashMap::new(),
            messages: HashMap::new(),
            killing: HashMap::new(),
            deadline: None,
            verdict: None,
            torn_down: false,
            failures: 0,
            said: HashSet::new(),
        }
    }

    /// Runs until nothing of the pod is left, or until `stop`: then its containers go on, and are adopted later.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let next = tokio::select! {
                next = self.sync() => next,
                () = stop.cancelled() => return,
            };
            let until = match next {
                Next::Done => break,
                Next::Wait(at) => at,
            };
            let clock = self.shared.clock.clone();
            let deadline = async {
                match until {
                    Some(at) => clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                Ok(()) = self.freed.changed(), if self.resize.pending.is_some() => {}
                () = deadline => {}
                () = stop.cancelled() => return,
            }
        }
        self.shared.release(self.pod.uid());
    }

    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    async fn sync(&mut self) -> Next {
        let latest = self.api.borrow_and_update().clone();
        let gone = latest.is_none();
        if let Some(pod) = latest {
            self.pod = self.granted(pod);
        }
        if let Err(e) = self.refresh().await {
            tracing::warn!(pod = %self.pod.display(), error = %Chain(&e), "cannot read the runtime's state");
            return self.retry();
        }
        if !gone && !self.pod.is_deleted() && !self.pod.is_terminal() && !self.finished {
            self.admit();
        }
        let ends = gone || self.pod.is_deleted() || self.finished || self.verdict.is_some() || self.pod.is_terminal();
        if ends {
            return self.end(gone).await;
        }
        self.run_pod().await
    }

    /// The next try after a failure.
    fn retry(&mut self) -> Next {
        let wait = RETRY.saturating_mul(1 << self.failures.min(10)).min(MAX_RETRY);
        self.failures += 1;
        Next::Wait(Some(self.now() + wait))
    }

    /// Reads the pod's own sandboxes and containers from the runtime, and what ended containers left to say.
    async fn refresh(&mut self) -> Result<(), RuntimeError> {
        let runtime = self.shared.runtime.clone();
        let (mut sandboxes, mut containers) = (Vec::new(), Vec::new());
        for id in std::mem::take(&mut self.known.sandboxes) {
            match runtime.sandbox(&id).await {
                Ok(s) => sandboxes.push(s),
                Err(RuntimeError::NoSuchSandbox(_)) => continue,
                Err(e) => {
                    self.known.sandboxes.push(id);
                    return Err(e);
                }
            }
            self.known.sandboxes.push(id);
        }
        for id in std::mem::take(&mut self.known.containers) {
            match runtime.container(&id).await {
                Ok(c) => containers.push(c),
                Err(RuntimeError::NoSuchContainer(_)) => continue,
                Err(e) => {
                    self.known.containers.push(id);
                    return Err(e);
                }
            }
            self.known.containers.push(id);
        }
        self.state = PodState::new(sandboxes, containers);
        self.read_messages();
        let running: HashSet<&str> = self.state.running().map(|c| c.id.as_str()).collect();
        self.killing.retain(|id, _| running.contains(id.as_str()));
        Ok(())
    }

    fn admit(&mut self) {
        let shared = self.shared.clone();
        let mut admitted = shared.admitted.lock();
        if self.admitted {
            // An adopted pod counts too; it is not asked again.
            admitted.insert(self.pod.uid().to_owned(), self.pod.clone());
            self.allocate();
            return;
        }
        let others: Vec<Arc<Pod>> =
            admitted.iter().filter(|(uid, _)| *uid != self.pod.uid()).map(|(_, p)| p.clone()).collect();
        let node = shared.node.get("", &shared.cfg.node_name);
        let cfg = &shared.cfg;
        match crate::admission::admit(&self.pod, node.as_deref(), &others, &cfg.allowed_unsafe_sysctls, cfg.max_pods) {
            Ok(()) => {
                admitted.insert(self.pod.uid().to_owned(), self.pod.clone());
                self.admitted = true;
                self.allocate();
            }
            Err(verdict) => {
                let text = verdict.message.trim_start_matches("Pod was rejected: ").to_owned();
                shared.recorder.warning(&self.pod.reference(), &verdict.reason, text);
                self.verdict = Some(verdict);
            }
        }
    }

    fn pod_ips(&self) -> Vec<IpAddr> {
        if self.pod.host_network() {
            return self.shared.host_ips().to_vec();
        }
        self.state.sandbox().map(|s| s.ips.clone()).unwrap_or_default()
    }

    fn pod_ip(&self) -> String {
        self.pod_ips().first().map(IpAddr::to_string).unwrap_or_default()
    }

    fn addresses(&self) -> Addresses {
        Addresses { pod_ips: self.pod_ips(), host_ips: self.shared.host_ips().to_vec() }
    }

    /// True the first time; after many other texts it may be said again.
    fn first_time(&mut self, text: String) -> bool {
        if self.said.len() >= MAX_SAID {
            self.said.clear();
        }
        self.said.insert(text)
    }

    /// Says a warning about the pod, not over and over.
    fn warn_once(&mut self, reason: &str, message: String) {
        if self.first_time(format!("{reason} {message}")) {
            self.shared.recorder.warning(&self.pod.reference(), reason, message);
        }
    }
}
