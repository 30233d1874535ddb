//! The pod conditions that the kubelet owns, with upstream's reasons and messages (`pkg/kubelet/status/generate.go`).

use crate::plan::sandbox_change;
use crate::pod::{PodExt, init_containers, is_sidecar};
use crate::resize;
use crate::state::PodState;
use crate::status::{Context, is_running, terminated, time};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};

/// Those that every pod has, in the order in which upstream writes them; then those of resizes.
pub const OWNED: [&str; 7] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    resize::PENDING,
    resize::IN_PROGRESS,
];

/// A condition before it is compared with the old one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Claim {
    fn yes() -> Self {
        Claim { holds: true, reason: "", message: String::new() }
    }
    fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Claim { holds: false, reason, message: message.into() }
    }
}

/// The owned conditions, then those of the old status that others own.
pub fn generate(pod: &Pod, state: &PodState, s: &PodStatus, cx: &Context<'_>) -> Vec<PodCondition> {
    let containers_ready = containers_ready(pod, s);
    let claims = [
        ready_to_start(pod, state),
        initialized(pod, s),
        ready(pod, &containers_ready),
        containers_ready.clone(),
        Claim::yes(),
    ];
    let mut out: Vec<PodCondition> =
        OWNED.iter().zip(claims).map(|(kind, claim)| finish(pod, kind, claim, cx)).collect();
    out.extend(cx.resize.conditions(cx.old, cx.now));
    let others = pod.stat().conditions.iter().flatten().filter(|c| !OWNED.contains(&c.type_.as_str()));
    out.extend(others.cloned());
    out
}

/// Keeps the time of the last transition while the status stays.
fn finish(pod: &Pod, kind: &str, claim: Claim, cx: &Context<'_>) -> PodCondition {
    let status = if claim.holds { "True" } else { "False" };
    let old = cx.old.conditions.iter().flatten().find(|c| c.type_ == kind);
    let kept = old.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    let text = |t: &str| (!t.is_empty()).then(|| t.to_owned());
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: text(claim.reason),
        message: text(&claim.message),
        observed_generation: pod.metadata.generation,
        last_transition_time: Some(kept.unwrap_or_else(|| time(cx.now))),
        last_probe_time: None,
    }
}

fn find<'a>(list: &'a Option<Vec<ContainerStatus>>, name: &str) -> Option<&'a ContainerStatus> {
    list.iter().flatten().find(|s| s.name == name)
}

/// Go prints a list of names as `[a b]`.
fn go_list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn describe(unknown: &[&str], others: &[&str], word: &str) -> String {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: {}", go_list(unknown)));
    }
    if !others.is_empty() {
        parts.push(format!("containers with {word} status: {}", go_list(others)));
    }
    parts.join(", ")
}

fn containers_ready(pod: &Pod, s: &PodStatus) -> Claim {
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    let spec = pod.spec();
    let sidecars = init_containers(spec).iter().filter(|c| is_sidecar(c));
    let sidecars = sidecars.map(|c| (c, find(&s.init_container_statuses, &c.name)));
    let regular = spec.containers.iter().map(|c| (c, find(&s.container_statuses, &c.name)));
    for (c, status) in sidecars.chain(regular) {
        match status {
            None => unknown.push(c.name.as_str()),
            Some(status) if !status.ready => unready.push(c.name.as_str()),
            Some(_) => {}
        }
    }
    match s.phase.as_deref() {
        Some("Succeeded") if unknown.is_empty() => return Claim::no("PodCompleted", ""),
        Some("Failed") => return Claim::no("PodFailed", ""),
        _ => {}
    }
    match describe(&unknown, &unready, "unready") {
        m if m.is_empty() => Claim::yes(),
        m => Claim::no("ContainersNotReady", m),
    }
}

fn ready(pod: &Pod, containers: &Claim) -> Claim {
    if !containers.holds {
        return containers.clone();
    }
    let mut missing = Vec::new();
    for gate in pod.spec().readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match pod.stat().conditions.iter().flatten().find(|c| c.type_ == *kind) {
            None => missing.push(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            Some(c) if c.status != "True" => {
                missing.push(format!("the status of pod readiness gate {kind:?} is not \"True\", but {}", c.status));
            }
            Some(_) => {}
        }
    }
    if missing.is_empty() { Claim::yes() } else { Claim::no("ReadinessGatesNotReady", missing.join(", ")) }
}

fn initialized(pod: &Pod, s: &PodStatus) -> Claim {
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for c in init_containers(pod.spec()) {
        match find(&s.init_container_statuses, &c.name) {
            None => unknown.push(c.name.as_str()),
            Some(status) => {
                let done = if is_sidecar(c) { status.started == Some(true) } else { status.ready };
                if !done {
                    incomplete.push(c.name.as_str());
                }
            }
        }
    }
    if s.phase.as_deref() == Some("Succeeded") && unknown.is_empty() {
        return Claim { holds: true, reason: "PodCompleted", message: String::new() };
    }
    let started = |s: &ContainerStatus| {
        is_running(s) || terminated(s.state.as_ref()).is_some() || terminated(s.last_state.as_ref()).is_some()
    };
    if s.container_statuses.iter().flatten().any(started) {
        return Claim::yes();
    }
    match describe(&unknown, &incomplete, "incomplete") {
        m if m.is_empty() => Claim::yes(),
        m => Claim::no("ContainersNotInitialized", m),
    }
}

fn ready_to_start(pod: &Pod, state: &PodState) -> Claim {
    match sandbox_change(pod, state) {
        None => Claim::yes(),
        Some((_, why)) => Claim::no(
            "PodSandboxNotReady",
            if why.is_empty() { "No sandbox for pod can be found. Need to start a new one" } else { why },
        ),
    }
}
