//! A pod's status from the pod, what the runtime has of it, and what probes and failed starts say. Pure.
//!
//! Follows upstream's `generateAPIPodStatus`, `getPhase` and `status/generate.go`; their reasons and messages are exact.

use crate::conditions;
use crate::plan::{self, ProbeResults, any_regular_created, should_start};
use crate::pod::{PodExt, ephemeral, init_containers, is_sidecar, restarts_after};
use crate::resize::{self, Progress};
use crate::resources::qos_class;
use crate::state::{PodState, annotation};
use isopod_runtime::{ContainerState as Running, ContainerStatus as RuntimeContainer, Nanos};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::HashMap;
use std::net::IpAddr;

/// Why a container waits: reason and message, as the last try to start it left them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// An end that the kubelet decided: `DeadlineExceeded`, a rejected admission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
}

/// What the status depends on besides the pod and the runtime.
pub struct Context<'a> {
    /// The status that was last generated, or the API's.
    pub old: &'a PodStatus,
    pub waiting: &'a HashMap<String, Waiting>,
    /// Results by container id.
    pub probes: &'a dyn Fn(&str) -> ProbeResults,
    /// Termination messages by container id.
    pub messages: &'a HashMap<String, String>,
    pub host_ips: &'a [IpAddr],
    pub verdict: Option<&'a Verdict>,
    pub resize: &'a Progress,
    /// No container will be started again: everything has stopped for good.
    pub terminal: bool,
    pub now: Timestamp,
}

pub fn time(t: Timestamp) -> Time {
    Time(Timestamp::from_second(t.as_second()).unwrap_or(t))
}

/// Whole seconds; the runtime's 0 is "not yet".
pub fn nanos(n: Nanos) -> Option<Time> {
    (n > 0).then(|| Timestamp::from_second(n.div_euclid(1_000_000_000)).ok().map(Time)).flatten()
}

pub fn generate(pod: &Pod, state: &PodState, cx: &Context<'_>) -> PodStatus {
    let spec = pod.spec();
    let mut s = PodStatus {
        qos_class: Some(cx.old.qos_class.clone().unwrap_or_else(|| qos_class(pod).to_owned())),
        start_time: Some(cx.old.start_time.clone().unwrap_or_else(|| time(cx.now))),
        nominated_node_name: cx.old.nominated_node_name.clone(),
        observed_generation: pod.metadata.generation,
        ..Default::default()
    };
    let has_init = !init_containers(spec).is_empty();
    s.init_container_statuses = list(statuses(pod, init_containers(spec), state, cx, Among::Init));
    let old = Among::Regular { has_init };
    s.container_statuses = list(statuses(pod, &spec.containers, state, cx, old));
    let ephemerals: Vec<Container> = spec.ephemeral_containers.iter().flatten().map(ephemeral).collect();
    s.ephemeral_container_statuses = list(statuses(pod, &ephemerals, state, cx, Among::Ephemeral));
    mark_ready(pod, &mut s, cx);
    let phase = phase(pod, &s, cx.terminal, plan::initialized_before(pod, state));
    set_phase(pod, &mut s, phase, cx);
    s.conditions = Some(conditions::generate(pod, state, &s, cx));
    addresses(pod, state, &mut s, cx);
    s
}

fn list<T>(v: Vec<T>) -> Option<Vec<T>> {
    (!v.is_empty()).then_some(v)
}

/// A phase once terminal stays; what goes with it stays too.
fn set_phase(pod: &Pod, s: &mut PodStatus, phase: &str, cx: &Context<'_>) {
    let terminal = |p: Option<&str>| matches!(p, Some("Succeeded" | "Failed"));
    let old = cx.old.phase.as_deref();
    let mut phase = phase.to_owned();
    if terminal(old) && !terminal(Some(&phase)) {
        phase = old.unwrap_or_default().to_owned();
    }
    if old == Some(&phase) {
        s.reason = cx.old.reason.clone().or_else(|| pod.stat().reason.clone());
        s.message = cx.old.message.clone().or_else(|| pod.stat().message.clone());
    }
    if let Some(v) = cx.verdict {
        phase = "Failed".into();
        s.reason = Some(v.reason.clone());
        s.message = Some(v.message.clone());
    }
    if pod.is_terminal() && phase != pod.phase() {
        phase = pod.phase().to_owned();
    }
    s.phase = Some(phase);
}

fn addresses(pod: &Pod, state: &PodState, s: &mut PodStatus, cx: &Context<'_>) {
    let mut hosts: Vec<String> = cx.host_ips.iter().map(IpAddr::to_string).collect();
    hosts.truncate(2);
    s.host_ip = hosts.first().cloned();
    s.host_ips = list(hosts.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
    let ips: Vec<String> = if pod.host_network() {
        hosts
    } else {
        // A pod that ended keeps no address.
        let live = !matches!(s.phase.as_deref(), Some("Succeeded" | "Failed"));
        let ips = state.sandbox().filter(|sb| live && sb.state == isopod_runtime::SandboxState::Ready);
        ips.map(|sb| sb.ips.iter().map(IpAddr::to_string).collect()).unwrap_or_else(|| {
            let old = cx.old.pod_ips.iter().flatten();
            old.map(|ip| ip.ip.clone()).collect()
        })
    };
    s.pod_ip = ips.first().cloned();
    s.pod_ips = list(ips.into_iter().map(|ip| PodIP { ip }).collect());
}

#[derive(Clone, Copy, PartialEq)]
enum Among {
    Init,
    Regular { has_init: bool },
    Ephemeral,
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    let w = ContainerStateWaiting { reason: text(reason), message: text(message) };
    ContainerState { waiting: Some(w), ..Default::default() }
}

pub fn is_running(s: &ContainerStatus) -> bool {
    s.state.as_ref().is_some_and(|s| s.running.is_some())
}

pub fn terminated(s: Option<&ContainerState>) -> Option<&ContainerStateTerminated> {
    s?.terminated.as_ref()
}

fn statuses(
    pod: &Pod,
    containers: &[Container],
    state: &PodState,
    cx: &Context<'_>,
    among: Among,
) -> Vec<ContainerStatus> {
    let old_list = match among {
        Among::Init => &cx.old.init_container_statuses,
        Among::Regular { .. } => &cx.old.container_statuses,
        Among::Ephemeral => &cx.old.ephemeral_container_statuses,
    };
    let with_init = match among {
        Among::Init => true,
        Among::Regular { has_init } => has_init,
        Among::Ephemeral => false,
    };
    let default_reason = if with_init { "PodInitializing" } else { "ContainerCreating" };
    let old_of = |name: &str| old_list.iter().flatten().find(|s| s.name == name);
    let one = |c: &Container| {
        let old = old_of(&c.name);
        let mut mine = state.containers.iter().filter(|s| s.config.name == c.name);
        let mut status = match mine.next() {
            Some(newest) => {
                let mut status = convert(newest, old, cx);
                if let Some(before) = mine.next() {
                    status.last_state = convert(before, old, cx).state;
                }
                if among != Among::Ephemeral {
                    show_resources(c, newest, &mut status);
                }
                status
            }
            None => unseen(pod, c, old, default_reason),
        };
        status.volume_mounts = mounts(c);
        apply_waiting(pod, c, state, cx, among, &mut status);
        status
    };
    let mut out: Vec<ContainerStatus> = containers.iter().map(one).collect();
    if among != Among::Init {
        out.sort_by(|a, b| a.name.cmp(&b.name));
    }
    out
}

/// What the container was granted, and what it runs with.
fn show_resources(c: &Container, latest: &RuntimeContainer, status: &mut ContainerStatus) {
    let granted = c.resources.clone().unwrap_or_default();
    status.allocated_resources = granted.requests.clone().filter(|r| !r.is_empty());
    let runs_with = (latest.state == Running::Running).then(|| resize::actuated(latest)).flatten();
    status.resources = Some(runs_with.unwrap_or(granted));
}

fn mounts(c: &Container) -> Option<Vec<VolumeMountStatus>> {
    let one = |m: &k8s_openapi::api::core::v1::VolumeMount| VolumeMountStatus {
        name: m.name.clone(),
        mount_path: m.mount_path.clone(),
        read_only: m.read_only.filter(|r| *r),
        recursive_read_only: (m.read_only == Some(true)).then(|| match m.recursive_read_only.as_deref() {
            Some("Enabled" | "IfPossible") => "Enabled".to_owned(),
            _ => "Disabled".to_owned(),
        }),
        ..Default::default()
    };
    list(c.volume_mounts.iter().flatten().map(one).collect())
}

/// The status of a container that the runtime does not have.
fn unseen(pod: &Pod, c: &Container, old: Option<&ContainerStatus>, default_reason: &str) -> ContainerStatus {
    let mut s = ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        state: Some(waiting(default_reason, "")),
        ..Default::default()
    };
    let Some(old) = old else { return s };
    if terminated(old.state.as_ref()).is_some() {
        return old.clone();
    }
    s.restart_count = old.restart_count;
    s.last_state = old.last_state.clone();
    if is_running(old) && terminated(old.last_state.as_ref()).is_none() {
        // It ran and is gone: that is an end, though nobody knows its exit code.
        s.last_state = Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                reason: Some("ContainerStatusUnknown".into()),
                message: Some(
                    "The container could not be located when the pod was deleted.  The container used to be Running"
                        .into(),
                ),
                exit_code: 137,
                ..Default::default()
            }),
            ..Default::default()
        });
        s.restart_count += i32::from(!pod.is_deleted());
    }
    s
}

pub fn container_id(id: &str) -> String {
    format!("isopod://{id}")
}

fn convert(c: &RuntimeContainer, old: Option<&ContainerStatus>, cx: &Context<'_>) -> ContainerStatus {
    let image_ref = c.config.annotations.get(annotation::IMAGE_REF).filter(|r| !r.is_empty());
    let mut s = ContainerStatus {
        name: c.config.name.clone(),
        image: c.config.image.clone(),
        image_id: image_ref.unwrap_or(&c.config.image_id).clone(),
        container_id: Some(container_id(&c.id)),
        restart_count: c.config.attempt as i32,
        ..Default::default()
    };
    if let Some(old) = old {
        let same = old.container_id == s.container_id;
        s.last_state = match terminated(old.state.as_ref()) {
            Some(_) if !same => old.state.clone(),
            _ => old.last_state.clone(),
        };
        s.restart_count = s.restart_count.max(if same { 0 } else { old.restart_count });
    }
    let text = |t: &str| (!t.is_empty()).then(|| t.to_owned());
    s.state = Some(match c.state {
        Running::Running => ContainerState {
            running: Some(ContainerStateRunning { started_at: nanos(c.started_at) }),
            ..Default::default()
        },
        Running::Exited => {
            let reason = match c.reason.as_str() {
                "" if c.exit_code == 0 => "Completed",
                "" => "Error",
                known => known,
            };
            let message = cx.messages.get(&c.id).map(String::as_str).filter(|m| !m.is_empty()).unwrap_or(&c.message);
            let end = ContainerStateTerminated {
                exit_code: c.exit_code,
                signal: None,
                reason: Some(reason.to_owned()),
                message: text(message),
                started_at: nanos(c.started_at).or_else(|| nanos(c.created_at)),
                finished_at: nanos(c.finished_at),
                container_id: Some(container_id(&c.id)),
            };
            ContainerState { terminated: Some(end), ..Default::default() }
        }
        Running::Unknown if old.is_some_and(is_running) => ContainerState {
            terminated: Some(ContainerStateTerminated {
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("The container could not be located when the pod was terminated".into()),
                exit_code: 137,
                ..Default::default()
            }),
            ..Default::default()
        },
        Running::Created | Running::Unknown => waiting("", ""),
    });
    s
}

/// What failed to start, or will be started again after a while, waits and says why.
fn apply_waiting(pod: &Pod, c: &Container, state: &PodState, cx: &Context<'_>, among: Among, s: &mut ContainerStatus) {
    let latest = state.latest(&c.name);
    if among == Among::Init {
        if latest.is_some_and(|l| l.state == Running::Exited && l.exit_code == 0) && !is_sidecar(c) {
            return;
        }
        let waits = s.state.as_ref().is_some_and(|s| s.waiting.is_some());
        if latest.is_none() && any_regular_created(pod, state) && !is_sidecar(c) && waits {
            s.state = Some(ContainerState {
                terminated: Some(ContainerStateTerminated {
                    reason: Some("Completed".into()),
                    message: Some(
                        "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally"
                            .into(),
                    ),
                    ..Default::default()
                }),
                ..Default::default()
            });
            return;
        }
    }
    if !should_start(c, pod, state) || cx.terminal || cx.verdict.is_some() {
        return;
    }
    let Some(w) = cx.waiting.get(&c.name) else { return };
    if terminated(s.state.as_ref()).is_some() {
        s.last_state = s.state.take();
    }
    s.state = Some(waiting(&w.reason, &w.message));
}

/// `started` and `ready` from the probes (upstream's prober `UpdatePodStatus`).
fn mark_ready(pod: &Pod, s: &mut PodStatus, cx: &Context<'_>) {
    let results = |s: &ContainerStatus| {
        let id = s.container_id.as_deref().and_then(|id| id.strip_prefix("isopod://"));
        id.map(cx.probes).unwrap_or_default()
    };
    let spec = pod.spec();
    let mark = |s: &mut ContainerStatus, c: Option<&Container>, one_shot: bool| {
        let r = results(s);
        let startup = c.is_some_and(|c| c.startup_probe.is_some());
        let started = is_running(s) && (!startup || r.startup == Some(true));
        s.started = Some(started);
        s.ready = if one_shot {
            terminated(s.state.as_ref()).is_some_and(|t| t.exit_code == 0)
        } else {
            let probed = c.is_some_and(|c| c.readiness_probe.is_some());
            started && (!probed || r.readiness == Some(true))
        };
    };
    for s in s.container_statuses.iter_mut().flatten() {
        let c = spec.containers.iter().find(|c| c.name == s.name);
        mark(s, c, false);
    }
    for s in s.init_container_statuses.iter_mut().flatten() {
        let c = init_containers(spec).iter().find(|c| c.name == s.name);
        mark(s, c, !c.is_some_and(is_sidecar));
    }
    for s in s.ephemeral_container_statuses.iter_mut().flatten() {
        s.ready = false;
    }
}

#[derive(Default)]
struct Count {
    pending_init: u32,
    pending_sidecars: u32,
    failed_for_good: u32,
    unknown: u32,
    running: u32,
    waiting: u32,
    stopped: u32,
    stopped_for_good: u32,
    succeeded: u32,
}

/// The phase that these container statuses make.
fn phase(pod: &Pod, s: &PodStatus, terminal: bool, initialized: bool) -> &'static str {
    let n = count(pod, s);
    if n.failed_for_good > 0 {
        return "Failed";
    }
    if n.pending_init > 0 || (n.pending_sidecars > 0 && !initialized) || n.waiting > 0 {
        return "Pending";
    }
    if n.running > 0 && n.unknown == 0 {
        return "Running";
    }
    if n.running == 0 && n.stopped > 0 && n.unknown == 0 {
        if !terminal && n.stopped != n.stopped_for_good {
            return "Running";
        }
        return if n.stopped == n.succeeded { "Succeeded" } else { "Failed" };
    }
    "Pending"
}

fn count(pod: &Pod, s: &PodStatus) -> Count {
    let spec = pod.spec();
    let mut n = Count::default();
    let find =
        |list: &Option<Vec<ContainerStatus>>, name: &str| list.iter().flatten().find(|s| s.name == name).cloned();
    for c in init_containers(spec) {
        let status = find(&s.init_container_statuses, &c.name);
        if is_sidecar(c) { count_sidecar(&mut n, status.as_ref()) } else { count_init(&mut n, pod, c, status.as_ref()) }
    }
    for c in &spec.containers {
        let Some(status) = find(&s.container_statuses, &c.name) else {
            n.unknown += 1;
            continue;
        };
        let now = terminated(status.state.as_ref());
        let end = now.or_else(|| terminated(status.last_state.as_ref()));
        if is_running(&status) {
            n.running += 1;
        } else if let Some(end) = end {
            n.stopped += 1;
            n.stopped_for_good += u32::from(!restarts_after(c, spec, end.exit_code));
            n.succeeded += u32::from(now.is_some_and(|t| t.exit_code == 0));
        } else if status.state.as_ref().is_some_and(|s| s.waiting.is_some()) {
            n.waiting += 1;
        } else {
            n.unknown += 1;
        }
    }
    n
}

fn count_init(n: &mut Count, pod: &Pod, c: &Container, status: Option<&ContainerStatus>) {
    let Some(status) = status else {
        n.pending_init += 1;
        return;
    };
    let waits = status.state.as_ref().is_some_and(|s| s.waiting.is_some());
    let end = terminated(status.state.as_ref()).or_else(|| terminated(status.last_state.as_ref()).filter(|_| waits));
    match end {
        Some(end) if end.exit_code != 0 => {
            n.failed_for_good += u32::from(!restarts_after(c, pod.spec(), end.exit_code));
            // It runs again: initialization goes on.
            n.pending_init += 1;
        }
        Some(_) => {}
        None => n.pending_init += 1,
    }
}

fn count_sidecar(n: &mut Count, status: Option<&ContainerStatus>) {
    let Some(status) = status else {
        n.unknown += 1;
        return;
    };
    if is_running(status) {
        n.pending_sidecars += u32::from(status.started != Some(true));
        n.running += 1;
    } else if terminated(status.state.as_ref()).is_none() && terminated(status.last_state.as_ref()).is_none() {
        n.pending_sidecars += 1;
        n.waiting += 1;
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
