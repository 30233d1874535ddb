//! What is to be done for a pod, computed from the pod and what the runtime has of it. Pure: no hint of what happened before.
//!
//! The order of decisions is upstream's `computePodActions` (kuberuntime).

use crate::pod::{PodExt, init_containers, is_sidecar, restart_policy, restarts_after};
use crate::resize::{self, Change};
use crate::state::PodState;
use isopod_runtime::{ContainerState, ContainerStatus, SandboxState};
use k8s_openapi::api::core::v1::{Container, Pod};

/// What probes say of one container. `None`: no result yet, or no such probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeResults {
    pub startup: Option<bool>,
    pub liveness: Option<bool>,
    pub readiness: Option<bool>,
}

/// Why a container is killed: it chooses the grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    Liveness,
    Startup,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    pub id: String,
    pub name: String,
    pub message: String,
    pub reason: KillReason,
}

/// Names are of containers in the pod's spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Everything of the pod ends.
    pub kill_pod: bool,
    /// A new sandbox is made after that, with this attempt.
    pub create_sandbox: Option<u32>,
    pub kill: Vec<Kill>,
    pub start_init: Vec<String>,
    pub start_ephemeral: Vec<String>,
    pub start: Vec<String>,
    /// Running containers whose limits change where they run.
    pub resize: Vec<String>,
}

/// Why a new sandbox is needed, or `None`; with the attempt that it would have.
pub fn sandbox_change(pod: &Pod, state: &PodState) -> Option<(u32, &'static str)> {
    let Some(newest) = state.sandbox() else { return Some((0, "")) };
    let next = newest.config.id.attempt + 1;
    if state.sandboxes.iter().filter(|s| s.state == SandboxState::Ready).count() > 1 {
        return Some((next, "more than one ready sandbox"));
    }
    if newest.state != SandboxState::Ready {
        return Some((next, "the sandbox is not ready"));
    }
    if !pod.host_network() && newest.ips.is_empty() {
        return Some((next, "the sandbox has no IP address"));
    }
    None
}

fn exited(c: &ContainerStatus) -> bool {
    matches!(c.state, ContainerState::Exited)
}

fn succeeded(name: &str, state: &PodState) -> bool {
    state.latest(name).is_some_and(|c| exited(c) && c.exit_code == 0)
}

/// Whether a container that does not run is to be started (upstream's `ShouldContainerBeRestarted`).
pub fn should_start(c: &Container, pod: &Pod, state: &PodState) -> bool {
    if pod.is_deleted() {
        return false;
    }
    match state.latest(&c.name) {
        None => true,
        Some(s) => match s.state {
            ContainerState::Running => false,
            ContainerState::Created | ContainerState::Unknown => true,
            ContainerState::Exited => restarts_after(c, pod.spec(), s.exit_code),
        },
    }
}

fn restarts_on_failure(pod: &Pod) -> bool {
    restart_policy(pod.spec()) != "Never"
}

fn changed(c: &Container, s: &ContainerStatus) -> bool {
    c.image.as_deref().is_some_and(|image| image != s.config.image)
}

/// An ordinary container was ever made, in any sandbox.
pub fn any_regular_created(pod: &Pod, state: &PodState) -> bool {
    pod.spec().containers.iter().any(|c| state.latest(&c.name).is_some())
}

/// An ordinary container has started in the present sandbox: initialization is over.
pub fn initialized_before(pod: &Pod, state: &PodState) -> bool {
    let started = |c: &ContainerStatus| matches!(c.state, ContainerState::Running | ContainerState::Exited);
    pod.spec().containers.iter().any(|c| state.active(&c.name).is_some_and(started))
}

/// `probes` gives the results of a container by its id.
pub fn plan(pod: &Pod, state: &PodState, probes: &dyn Fn(&str) -> ProbeResults) -> Plan {
    if let Some((attempt, _)) = sandbox_change(pod, state) {
        return plan_sandbox(pod, state, attempt);
    }
    let mut plan = Plan::default();
    for c in pod.spec().ephemeral_containers.iter().flatten() {
        if state.latest(&c.name).is_none() {
            plan.start_ephemeral.push(c.name.clone());
        }
    }
    let initialized = plan_init(pod, state, probes, &mut plan);
    if plan.kill_pod || !initialized {
        return plan;
    }
    plan_regular(pod, state, probes, &mut plan);
    plan
}

fn plan_sandbox(pod: &Pod, state: &PodState, attempt: u32) -> Plan {
    let mut plan = Plan { kill_pod: !state.sandboxes.is_empty(), create_sandbox: Some(attempt), ..Default::default() };
    let spec = pod.spec();
    if !restarts_on_failure(pod) && attempt != 0 && !state.containers.is_empty() {
        plan.create_sandbox = None;
        plan.kill_pod = true;
        return plan;
    }
    let runs_once = |c: &Container| c.restart_policy.as_deref().unwrap_or(restart_policy(spec)) == "OnFailure";
    let wanted = spec.containers.iter().filter(|c| !(runs_once(c) && succeeded(&c.name, state)));
    let wanted: Vec<String> = wanted.map(|c| c.name.clone()).collect();
    if wanted.is_empty() && any_regular_created(pod, state) {
        plan.create_sandbox = None;
        plan.kill_pod = true;
        return plan;
    }
    match init_containers(spec).first() {
        Some(first) => plan.start_init.push(first.name.clone()),
        None => plan.start = wanted,
    }
    plan
}

/// Walks the init containers from the last: the newest that was started tells how far initialization came, since those
/// before it may have been removed. True when it is over.
fn plan_init(pod: &Pod, state: &PodState, probes: &dyn Fn(&str) -> ProbeResults, plan: &mut Plan) -> bool {
    let inits = init_containers(pod.spec());
    if inits.is_empty() {
        return true;
    }
    let mut done = initialized_before(pod, state);
    let mut seen_later = done;
    // From last to first; reversed at the end.
    let mut start = Vec::new();
    for (i, c) in inits.iter().enumerate().rev() {
        let Some(status) = state.active(&c.name) else {
            if seen_later && is_sidecar(c) {
                start.push(i);
            }
            continue;
        };
        if seen_later && !is_sidecar(c) {
            continue;
        }
        let ready = match status.state {
            ContainerState::Created => {
                start.push(i);
                false
            }
            ContainerState::Running if is_sidecar(c) => sidecar_runs(c, i, status, probes, plan, &mut start),
            ContainerState::Running => {
                keeps_running(c, status, plan);
                false
            }
            ContainerState::Exited if is_sidecar(c) => {
                start.push(i);
                false
            }
            ContainerState::Exited if status.exit_code == 0 => true,
            ContainerState::Exited | ContainerState::Unknown => {
                if !runs_again(c, pod, status) {
                    plan.kill_pod = true;
                    return false;
                }
                if status.state == ContainerState::Unknown {
                    plan.kill.push(kill(
                        status,
                        "Init container is in \"unknown\" state, try killing it before restart",
                        KillReason::Other,
                    ));
                }
                start.push(i);
                false
            }
        };
        if ready {
            if i + 1 == inits.len() {
                done = true;
            } else if !seen_later {
                start.push(i + 1);
            }
        }
        seen_later = true;
    }
    if !seen_later {
        start.push(0);
    }
    start.sort_unstable();
    start.dedup();
    plan.start_init = start.into_iter().map(|i| inits[i].name.clone()).collect();
    done
}

/// Whether an init container that has failed is started once more.
fn runs_again(c: &Container, pod: &Pod, status: &ContainerStatus) -> bool {
    match exited(status) {
        _ if is_sidecar(c) => true,
        true => restarts_after(c, pod.spec(), status.exit_code),
        false => restarts_on_failure(pod),
    }
}

/// A running sidecar: true when the next init container may start.
fn sidecar_runs(
    c: &Container,
    i: usize,
    status: &ContainerStatus,
    probes: &dyn Fn(&str) -> ProbeResults,
    plan: &mut Plan,
    start: &mut Vec<usize>,
) -> bool {
    let results = probes(&status.id);
    if c.startup_probe.is_some() && results.startup != Some(true) {
        if results.startup == Some(false) {
            plan.kill.push(kill(
                status,
                &format!("Init container {} failed startup probe", c.name),
                KillReason::Startup,
            ));
            start.push(i);
        }
        return false;
    }
    if changed(c, status) {
        plan.kill.push(kill(status, &format!("Init container {} definition changed", c.name), KillReason::Other));
        start.push(i);
    } else if c.liveness_probe.is_some() && results.liveness == Some(false) {
        plan.kill.push(kill(status, &format!("Init container {} failed liveness probe", c.name), KillReason::Liveness));
        start.push(i);
    } else if !keeps_running(c, status, plan) {
        start.push(i);
    }
    true
}

/// Plans the resize of a running container. False: its resize policy wants it started anew.
fn keeps_running(c: &Container, status: &ContainerStatus, plan: &mut Plan) -> bool {
    match resize::change(c, status) {
        Change::None => {}
        Change::Update => plan.resize.push(c.name.clone()),
        Change::Restart => {
            plan.kill.push(kill(status, &format!("Container {} resize requires restart", c.name), KillReason::Other));
            return false;
        }
    }
    true
}

fn kill(status: &ContainerStatus, message: &str, reason: KillReason) -> Kill {
    Kill { id: status.id.clone(), name: status.config.name.clone(), message: message.to_owned(), reason }
}

fn plan_regular(pod: &Pod, state: &PodState, probes: &dyn Fn(&str) -> ProbeResults, plan: &mut Plan) {
    let mut kept = 0;
    for c in &pod.spec().containers {
        let status = state.latest(&c.name);
        let Some(status) = status.filter(|s| s.state == ContainerState::Running) else {
            if should_start(c, pod, state) {
                plan.start.push(c.name.clone());
                if let Some(s) = status.filter(|s| s.state == ContainerState::Unknown) {
                    let why = "Container is in \"unknown\" state, try killing it before restart";
                    plan.kill.push(kill(s, why, KillReason::Other));
                }
            }
            continue;
        };
        let results = probes(&status.id);
        let mut restart = c.restart_policy.as_deref().unwrap_or(restart_policy(pod.spec())) != "Never";
        let (message, reason) = if changed(c, status) {
            restart = true;
            (format!("Container {} definition changed", c.name), KillReason::Other)
        } else if c.liveness_probe.is_some() && results.liveness == Some(false) {
            (format!("Container {} failed liveness probe", c.name), KillReason::Liveness)
        } else if c.startup_probe.is_some() && results.startup == Some(false) {
            (format!("Container {} failed startup probe", c.name), KillReason::Startup)
        } else {
            if keeps_running(c, status, plan) {
                kept += 1;
            } else {
                plan.start.push(c.name.clone());
            }
            continue;
        };
        let message = if restart { format!("{message}, will be restarted") } else { message };
        if restart {
            plan.start.push(c.name.clone());
        }
        plan.kill.push(kill(status, &message, reason));
    }
    if kept == 0 && plan.start.is_empty() {
        plan.kill_pod = true;
        plan.start_init.clear();
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
