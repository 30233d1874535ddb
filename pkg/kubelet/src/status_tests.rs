//! Tables: a pod, what the runtime has of it, and the status that a user sees.

use super::*;
use isopod_runtime::{ContainerConfig, SandboxConfig, SandboxState, SandboxStatus};
use serde_json::{Value, json};

const T: i64 = 1_700_000_000;

fn container(name: &str, state: Running, exit_code: i32, attempt: u32) -> RuntimeContainer {
    RuntimeContainer {
        id: format!("{name}{attempt}"),
        sandbox_id: "s".into(),
        config: ContainerConfig {
            name: name.into(),
            image: "img".into(),
            image_id: "sha256:1".into(),
            attempt,
            ..Default::default()
        },
        state,
        created_at: (T + i64::from(attempt)) * 1_000_000_000,
        started_at: T * 1_000_000_000,
        finished_at: T * 1_000_000_000,
        exit_code,
        signal: None,
        reason: String::new(),
        message: String::new(),
        pid: 1,
        uid: 0,
        log_path: Default::default(),
        mounts: vec![],
    }
}

struct Case {
    pod: Value,
    containers: Vec<RuntimeContainer>,
    waiting: Vec<(&'static str, &'static str)>,
    probes: ProbeResults,
    old: Value,
    terminal: bool,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            pod: json!({}),
            containers: vec![],
            waiting: vec![],
            probes: Default::default(),
            old: json!({}),
            terminal: false,
        }
    }
}

fn run(case: Case) -> PodStatus {
    let mut spec = case.pod;
    for list in ["containers", "initContainers"] {
        for c in spec[list].as_array_mut().into_iter().flatten() {
            c["image"] = json!("img");
        }
    }
    let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u", "generation": 1}, "spec": spec})).unwrap();
    let sandbox = SandboxStatus {
        id: "s".into(),
        config: SandboxConfig::default(),
        state: SandboxState::Ready,
        created_at: T,
        ips: vec!["10.0.0.7".parse().unwrap()],
        pid: 1,
    };
    let state = PodState::new(vec![sandbox], case.containers);
    let old: PodStatus = serde_json::from_value(case.old).unwrap();
    let waiting = case
        .waiting
        .iter()
        .map(|(name, reason)| ((*name).to_owned(), Waiting { reason: (*reason).to_owned(), message: "why".into() }));
    let cx = Context {
        old: &old,
        waiting: &waiting.collect(),
        probes: &|_| case.probes,
        messages: &HashMap::new(),
        host_ips: &["192.168.0.1".parse().unwrap()],
        verdict: None,
        resize: &Default::default(),
        terminal: case.terminal,
        now: Timestamp::from_second(T + 5).unwrap(),
    };
    generate(&pod, &state, &cx)
}

fn condition<'a>(s: &'a PodStatus, kind: &str) -> &'a k8s_openapi::api::core::v1::PodCondition {
    s.conditions.as_ref().unwrap().iter().find(|c| c.type_ == kind).unwrap()
}

#[test]
fn phases() {
    use Running::{Exited, Running as Runs};
    let spec = |policy: &str| json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]});
    let c = container;
    let cases: Vec<(Value, Vec<RuntimeContainer>, bool, &str)> = vec![
        (spec("Always"), vec![], false, "Pending"),
        (spec("Always"), vec![c("a", Runs, 0, 0)], false, "Pending"),
        (spec("Always"), vec![c("a", Runs, 0, 0), c("b", Runs, 0, 0)], false, "Running"),
        (spec("Always"), vec![c("a", Exited, 1, 0), c("b", Exited, 0, 0)], false, "Running"),
        (spec("Always"), vec![c("a", Exited, 1, 0), c("b", Exited, 0, 0)], true, "Failed"),
        (spec("Always"), vec![c("a", Exited, 0, 0), c("b", Exited, 0, 0)], true, "Succeeded"),
        (spec("Never"), vec![c("a", Exited, 1, 0), c("b", Exited, 0, 0)], false, "Failed"),
        (spec("Never"), vec![c("a", Exited, 0, 0), c("b", Exited, 0, 0)], false, "Succeeded"),
        (spec("OnFailure"), vec![c("a", Exited, 1, 0), c("b", Exited, 0, 0)], false, "Running"),
        (spec("OnFailure"), vec![c("a", Exited, 0, 0), c("b", Runs, 0, 0)], false, "Running"),
    ];
    for (pod, containers, terminal, want) in cases {
        let text = format!("{pod} {terminal}");
        let got = run(Case { pod, containers, terminal, ..Default::default() });
        assert_eq!(got.phase.as_deref(), Some(want), "{text}");
    }
}

#[test]
fn init_containers_hold_the_phase_back() {
    use Running::{Exited, Running as Runs};
    let spec = |policy: &str| json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let s = run(Case { pod: spec("Always"), containers: vec![container("i", Runs, 0, 0)], ..Default::default() });
    assert_eq!(s.phase.as_deref(), Some("Pending"));
    assert_eq!(condition(&s, "Initialized").message.as_deref(), Some("containers with incomplete status: [i]"));
    let main = &s.container_statuses.as_ref().unwrap()[0];
    assert_eq!(main.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("PodInitializing"));
    let failed = run(Case { pod: spec("Never"), containers: vec![container("i", Exited, 2, 0)], ..Default::default() });
    assert_eq!(failed.phase.as_deref(), Some("Failed"));
    let done = vec![container("i", Exited, 0, 0), container("a", Runs, 0, 0)];
    let s = run(Case { pod: spec("Never"), containers: done, ..Default::default() });
    assert_eq!(s.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&s, "Initialized").status, "True");
    assert!(s.init_container_statuses.unwrap()[0].ready);
}

#[test]
fn a_crash_loop_shows_its_last_end() {
    let s = run(Case {
        pod: json!({"containers": [{"name": "a"}]}),
        containers: vec![container("a", Running::Exited, 1, 0), container("a", Running::Exited, 7, 1)],
        waiting: vec![("a", "CrashLoopBackOff")],
        ..Default::default()
    });
    assert_eq!(s.phase.as_deref(), Some("Running"));
    let c = &s.container_statuses.as_ref().unwrap()[0];
    assert_eq!(c.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
    let last = terminated(c.last_state.as_ref()).unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref(), c.restart_count), (7, Some("Error"), 1));
    assert_eq!((c.ready, c.started), (false, Some(false)));
}

#[test]
fn readiness_follows_the_probes() {
    let pod = || json!({"containers": [{"name": "a", "readinessProbe": {}, "startupProbe": {}}]});
    let runs = || vec![container("a", Running::Running, 0, 0)];
    let cases = [
        (None, None, Some(false), false),
        (Some(true), None, Some(true), false),
        (Some(true), Some(true), Some(true), true),
        (Some(true), Some(false), Some(true), false),
    ];
    for (startup, readiness, started, ready) in cases {
        let probes = ProbeResults { startup, readiness, liveness: None };
        let s = run(Case { pod: pod(), containers: runs(), probes, ..Default::default() });
        let c = &s.container_statuses.as_ref().unwrap()[0];
        assert_eq!((c.started, c.ready), (started, ready), "{startup:?} {readiness:?}");
        let word = if ready { "True" } else { "False" };
        assert_eq!(condition(&s, "Ready").status, word);
        assert_eq!(condition(&s, "ContainersReady").status, word);
    }
}

#[test]
fn readiness_gates_and_transition_times() {
    let gated = json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "x.io/g"}]});
    let old = json!({"conditions": [
        {"type": "Ready", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"},
        {"type": "ContainersReady", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"},
    ]});
    let s =
        run(Case { pod: gated, containers: vec![container("a", Running::Running, 0, 0)], old, ..Default::default() });
    let ready = condition(&s, "Ready");
    assert_eq!(ready.reason.as_deref(), Some("ReadinessGatesNotReady"));
    assert_eq!(
        ready.message.as_deref(),
        Some("corresponding condition of pod readiness gate \"x.io/g\" does not exist.")
    );
    assert_eq!(ready.last_transition_time, Some(Time("2020-01-01T00:00:00Z".parse().unwrap())));
    // That one has changed.
    assert_eq!(
        condition(&s, "ContainersReady").last_transition_time,
        Some(Time(Timestamp::from_second(T + 5).unwrap()))
    );
}

#[test]
fn addresses_and_identity() {
    let s = run(Case {
        pod: json!({"containers": [{"name": "a"}]}),
        containers: vec![container("a", Running::Running, 0, 0)],
        ..Default::default()
    });
    assert_eq!((s.pod_ip.as_deref(), s.host_ip.as_deref()), (Some("10.0.0.7"), Some("192.168.0.1")));
    assert_eq!(s.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(s.container_statuses.unwrap()[0].container_id.as_deref(), Some("isopod://a0"));
    let host = run(Case { pod: json!({"hostNetwork": true, "containers": [{"name": "a"}]}), ..Default::default() });
    assert_eq!(host.pod_ip.as_deref(), Some("192.168.0.1"));
}

#[test]
fn a_running_container_that_vanished_counts_as_ended() {
    let old = json!({"containerStatuses": [{"name": "a", "image": "img", "imageID": "", "ready": true, "restartCount": 2,
        "containerID": "isopod://gone", "state": {"running": {}}}]});
    let s = run(Case { pod: json!({"containers": [{"name": "a"}]}), old, ..Default::default() });
    let c = &s.container_statuses.as_ref().unwrap()[0];
    assert_eq!(c.restart_count, 3);
    assert_eq!(terminated(c.last_state.as_ref()).unwrap().reason.as_deref(), Some("ContainerStatusUnknown"));
    assert_eq!(s.phase.as_deref(), Some("Running"));
}
