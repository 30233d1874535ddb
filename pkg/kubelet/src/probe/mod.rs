//! Liveness, readiness and startup probes: a task for each of a running container, results by container id.
//!
//! Invariants: liveness and readiness wait until the startup probe has succeeded; a result changes only at its threshold; a
//! change wakes the pod.

pub mod grpc;
pub mod http;

use crate::plan::ProbeResults;
use crate::pod::PodExt;
use http::{Target, dial_error};
use isopod_base::clock::Clock;
use isopod_client::events::Recorder;
use isopod_runtime::{ContainerStatus, Runtime, RuntimeError};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// What the probes of a node share.
#[derive(Clone)]
pub struct Prober {
    pub runtime: Arc<dyn Runtime>,
    pub recorder: Recorder,
    pub clock: Clock,
}

struct Probed {
    results: watch::Sender<ProbeResults>,
    tasks: JoinSet<()>,
    /// Only readiness is left while the pod ends.
    ending: bool,
}

/// The probes of one pod.
pub struct PodProbes {
    prober: Prober,
    wake: Arc<Notify>,
    containers: HashMap<String, Probed>,
}

/// The number of a port that may be a name.
pub fn port_number(port: &IntOrString, c: &Container) -> Result<u16, String> {
    let by_name = |name: &str| {
        let named = c.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
        named.map(|p| p.container_port).or_else(|| name.parse().ok())
    };
    let (number, text) = match port {
        IntOrString::Int(n) => (Some(*n), n.to_string()),
        IntOrString::String(s) => (by_name(s), s.clone()),
    };
    match number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0) {
        Some(n) => Ok(n),
        None => Err(format!("couldn't find port: {text:?}")),
    }
}

impl PodProbes {
    pub fn new(prober: Prober, wake: Arc<Notify>) -> Self {
        PodProbes { prober, wake, containers: HashMap::new() }
    }

    pub fn results(&self, container_id: &str) -> ProbeResults {
        self.containers.get(container_id).map(|p| *p.results.borrow()).unwrap_or_default()
    }

    /// Probes exactly the running containers. `seed` gives the results that a container starts with: those that the API
    /// shows when a running container is adopted.
    pub fn sync(
        &mut self,
        pod: &Arc<Pod>,
        running: &[&ContainerStatus],
        pod_ip: &str,
        seed: &dyn Fn(&str) -> ProbeResults,
    ) {
        self.containers.retain(|id, _| running.iter().any(|c| c.id == *id));
        for status in running {
            let Some(c) = pod.container(&status.config.name) else { continue };
            if c.startup_probe.is_none() && c.liveness_probe.is_none() && c.readiness_probe.is_none() {
                continue;
            }
            if !self.containers.contains_key(&status.id) {
                let probed = self.start(pod, &c, status, pod_ip, seed(&status.id));
                self.containers.insert(status.id.clone(), probed);
            }
        }
    }

    /// While a pod ends, only its readiness matters.
    pub fn end(&mut self, pod: &Arc<Pod>, running: &[&ContainerStatus], pod_ip: &str) {
        self.containers.retain(|id, _| running.iter().any(|c| c.id == *id));
        for status in running {
            let Some(probed) = self.containers.get_mut(&status.id).filter(|p| !p.ending) else { continue };
            probed.ending = true;
            probed.tasks.abort_all();
            if let Some(c) = pod.container(&status.config.name)
                && let Some(spec) = c.readiness_probe.clone()
            {
                let task = ProbeTask::new(&self.prober, &self.wake, pod, &c, status, pod_ip, Kind::Readiness, spec);
                probed.tasks.spawn(task.run(probed.results.clone()));
            }
        }
    }

    fn start(
        &self,
        pod: &Arc<Pod>,
        c: &Container,
        status: &ContainerStatus,
        pod_ip: &str,
        seed: ProbeResults,
    ) -> Probed {
        let results = watch::Sender::new(seed);
        let mut tasks = JoinSet::new();
        for (kind, spec) in [
            (Kind::Startup, &c.startup_probe),
            (Kind::Liveness, &c.liveness_probe),
            (Kind::Readiness, &c.readiness_probe),
        ] {
            if let Some(spec) = spec.clone() {
                let task = ProbeTask::new(&self.prober, &self.wake, pod, c, status, pod_ip, kind, spec);
                tasks.spawn(task.run(results.clone()));
            }
        }
        Probed { results, tasks, ending: false }
    }
}

struct ProbeTask {
    prober: Prober,
    wake: Arc<Notify>,
    pod: Arc<Pod>,
    container: Container,
    container_id: String,
    started_at: Timestamp,
    pod_ip: String,
    kind: Kind,
    spec: Probe,
}

fn seconds(n: Option<i32>, default: i32) -> Duration {
    Duration::from_secs(n.filter(|n| *n > 0).unwrap_or(default) as u64)
}

impl ProbeTask {
    fn new(
        prober: &Prober,
        wake: &Arc<Notify>,
        pod: &Arc<Pod>,
        c: &Container,
        status: &ContainerStatus,
        pod_ip: &str,
        kind: Kind,
        spec: Probe,
    ) -> Self {
        ProbeTask {
            prober: prober.clone(),
            wake: wake.clone(),
            pod: pod.clone(),
            container: c.clone(),
            container_id: status.id.clone(),
            started_at: Timestamp::from_nanosecond(i128::from(status.started_at)).unwrap_or(Timestamp::UNIX_EPOCH),
            pod_ip: pod_ip.to_owned(),
            kind,
            spec,
        }
    }

    fn current(&self, r: &ProbeResults) -> Option<bool> {
        match self.kind {
            Kind::Startup => r.startup,
            Kind::Liveness => r.liveness,
            Kind::Readiness => r.readiness,
        }
    }

    async fn run(self, results: watch::Sender<ProbeResults>) {
        if self.kind == Kind::Startup && results.borrow().startup == Some(true) {
            return;
        }
        let clock = &self.prober.clock;
        if self.kind != Kind::Startup && self.container.startup_probe.is_some() {
            let mut changes = results.subscribe();
            if changes.wait_for(|r| r.startup == Some(true)).await.is_err() {
                return;
            }
        }
        let delay = Duration::from_secs(self.spec.initial_delay_seconds.unwrap_or(0).max(0) as u64);
        clock.sleep_until(self.started_at + delay).await;
        let (mut last, mut run) = (None, 0);
        loop {
            let outcome = self.once().await;
            if let Err(output) = &outcome {
                let about = self.pod.container_reference(&self.container.name);
                let message = format!("{} probe failed: {output}", self.kind.name());
                self.prober.recorder.warning(&about, "Unhealthy", message);
            }
            let good = outcome.is_ok();
            run = if last == Some(good) { run + 1 } else { 1 };
            last = Some(good);
            let threshold =
                if good { self.spec.success_threshold.unwrap_or(1) } else { self.spec.failure_threshold.unwrap_or(3) };
            if run >= threshold.max(1) {
                self.set(&results, good);
                // The container is restarted, or has started for good: no more of this probe until there is a new one.
                if self.kind == Kind::Startup || (self.kind == Kind::Liveness && !good) {
                    return;
                }
            }
            clock.sleep(seconds(self.spec.period_seconds, 10)).await;
        }
    }

    fn set(&self, results: &watch::Sender<ProbeResults>, good: bool) {
        if self.current(&results.borrow()) == Some(good) {
            return;
        }
        results.send_modify(|r| match self.kind {
            Kind::Startup => r.startup = Some(good),
            Kind::Liveness => r.liveness = Some(good),
            Kind::Readiness => r.readiness = Some(good),
        });
        self.wake.notify_one();
    }

    /// One try; the error is the text of the event.
    async fn once(&self) -> Result<(), String> {
        let timeout = seconds(self.spec.timeout_seconds, 1);
        if let Some(exec) = &self.spec.exec {
            let command = exec.command.clone().unwrap_or_default();
            let shown = command.join(" ");
            return match self.prober.runtime.exec_sync(&self.container_id, command, Some(timeout)).await {
                Ok(out) if out.exit_code == 0 => Ok(()),
                Ok(out) => Err(String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()),
                Err(RuntimeError::ExecTimeout(_)) => {
                    Err(format!("command timed out: {shown:?} timed out after {timeout:?}"))
                }
                Err(e) => Err(isopod_base::errors::Chain(&e).to_string()),
            };
        }
        if let Some(action) = &self.spec.http_get {
            let port = port_number(&action.port, &self.container)?;
            let target = Target::new(action, port, &self.pod_ip, "kube-probe/1.37");
            return match http::get(&target, timeout).await {
                Ok(a) if (200..400).contains(&a.status) => Ok(()),
                Ok(a) => Err(format!("HTTP probe failed with statuscode: {}", a.status)),
                Err(e) => Err(format!("Get {:?}: {e}", target.url())),
            };
        }
        if let Some(action) = &self.spec.tcp_socket {
            let port = port_number(&action.port, &self.container)?;
            let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&self.pod_ip);
            return tcp(&address(host, port), timeout).await;
        }
        if let Some(action) = &self.spec.grpc {
            let port = u16::try_from(action.port).map_err(|_| format!("invalid port number: {}", action.port))?;
            let service = action.service.as_deref().unwrap_or_default();
            return grpc::check(&address(&self.pod_ip, port), service, timeout).await;
        }
        Err(format!("missing probe handler for {}:{}", self.pod.display(), self.container.name))
    }
}

pub fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn tcp(addr: &str, timeout: Duration) -> Result<(), String> {
    match tokio::time::timeout(timeout, tokio::net::TcpStream::connect(addr)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(format!("dial tcp {addr}: {}", dial_error(&e))),
        Err(_) => Err(format!("dial tcp {addr}: i/o timeout")),
    }
}
