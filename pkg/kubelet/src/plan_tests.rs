//! Tables: a pod and what the runtime has of it, and what is to be done.

use super::*;
use isopod_runtime::{ContainerConfig, PodId, SandboxConfig, SandboxStatus};
use serde_json::{Value, json};

/// `name state` or `name exit N`; `@0` at the end puts it into the first of several sandboxes.
fn container(text: &str, order: i64) -> ContainerStatus {
    let words: Vec<&str> = text.split(' ').collect();
    let (state, exit_code) = match words[1] {
        "running" => (ContainerState::Running, 0),
        "created" => (ContainerState::Created, 0),
        "unknown" => (ContainerState::Unknown, 0),
        _ => (ContainerState::Exited, words[2].parse().unwrap()),
    };
    let old = words.contains(&"@old");
    ContainerStatus {
        id: format!("{}-{order}", words[0]),
        sandbox_id: if old { "s0".into() } else { "s1".into() },
        config: ContainerConfig { name: words[0].into(), image: "img".into(), ..Default::default() },
        state,
        created_at: order,
        started_at: order,
        finished_at: 0,
        exit_code,
        signal: None,
        reason: String::new(),
        message: String::new(),
        pid: 0,
        uid: 0,
        log_path: Default::default(),
        mounts: vec![],
    }
}

fn sandbox(id: &str, state: SandboxState, attempt: u32) -> SandboxStatus {
    SandboxStatus {
        id: id.into(),
        config: SandboxConfig { id: PodId { attempt, ..Default::default() }, ..Default::default() },
        state,
        created_at: i64::from(attempt),
        ips: vec!["10.0.0.1".parse().unwrap()],
        pid: 1,
    }
}

fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    for list in ["containers", "initContainers"] {
        for c in spec[list].as_array_mut().into_iter().flatten() {
            c["image"] = json!("img");
        }
    }
    serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap()
}

fn state(containers: &[&str]) -> PodState {
    let containers = containers.iter().enumerate().map(|(i, c)| container(c, i as i64)).collect();
    PodState::new(vec![sandbox("s1", SandboxState::Ready, 0)], containers)
}

/// `failed` names containers whose liveness probe failed.
fn check(spec: Value, containers: &[&str], failed: &[&str], want: Plan) {
    let probes =
        |id: &str| ProbeResults { liveness: Some(!failed.iter().any(|f| id.starts_with(f))), ..Default::default() };
    let got = plan(&pod(spec.clone()), &state(containers), &probes);
    assert_eq!(got, want, "{spec} {containers:?}");
}

fn start(names: &[&str]) -> Plan {
    Plan { start: names.iter().map(|n| (*n).to_owned()).collect(), ..Default::default() }
}

fn start_init(names: &[&str]) -> Plan {
    Plan { start_init: names.iter().map(|n| (*n).to_owned()).collect(), ..Default::default() }
}

fn kill_pod() -> Plan {
    Plan { kill_pod: true, ..Default::default() }
}

#[test]
fn restart_policies() {
    let two = |policy: &str| json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]});
    check(two("Always"), &[], &[], start(&["a", "b"]));
    check(two("Always"), &["a running", "b running"], &[], Plan::default());
    check(two("Always"), &["a exit 0", "b running"], &[], start(&["a"]));
    check(two("OnFailure"), &["a exit 0", "b running"], &[], Plan::default());
    check(two("OnFailure"), &["a exit 1", "b exit 0"], &[], start(&["a"]));
    check(two("Never"), &["a exit 1", "b running"], &[], Plan::default());
    check(two("Never"), &["a exit 1", "b exit 0"], &[], kill_pod());
    check(two("OnFailure"), &["a exit 0", "b exit 0"], &[], kill_pod());
    let rules = json!({"restartPolicy": "Never", "containers": [{"name": "a", "restartPolicy": "Never", "restartPolicyRules": [
        {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]});
    check(rules.clone(), &["a exit 42"], &[], start(&["a"]));
    check(rules, &["a exit 41"], &[], kill_pod());
}

#[test]
fn a_failed_liveness_probe_kills_and_restarts() {
    let probed = |policy: &str| json!({"restartPolicy": policy, "containers": [{"name": "a", "livenessProbe": {}}, {"name": "b"}]});
    let kill = |message: &str| Kill {
        id: "a-0".into(),
        name: "a".into(),
        message: message.into(),
        reason: KillReason::Liveness,
    };
    let again = Plan { kill: vec![kill("Container a failed liveness probe, will be restarted")], ..start(&["a"]) };
    check(probed("Always"), &["a running", "b running"], &["a"], again);
    let once = Plan { kill: vec![kill("Container a failed liveness probe")], ..Default::default() };
    check(probed("Never"), &["a running", "b running"], &["a"], once);
}

#[test]
fn init_containers_run_in_order() {
    let spec = |policy: &str| json!({"restartPolicy": policy, "initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "a"}]});
    check(spec("Always"), &[], &[], start_init(&["i1"]));
    check(spec("Always"), &["i1 running"], &[], Plan::default());
    check(spec("Always"), &["i1 exit 0"], &[], start_init(&["i2"]));
    check(spec("Always"), &["i1 exit 0", "i2 exit 1"], &[], start_init(&["i2"]));
    check(spec("Never"), &["i1 exit 1"], &[], kill_pod());
    check(spec("Always"), &["i1 exit 0", "i2 exit 0"], &[], start(&["a"]));
    // Removed init containers do not run again once an ordinary container has started.
    check(spec("Always"), &["a exit 1"], &[], start(&["a"]));
    check(spec("Always"), &["a running"], &[], Plan::default());
}

#[test]
fn sidecars_start_in_order_and_again() {
    let spec = |policy: &str| {
        json!({"restartPolicy": policy, "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}],
               "containers": [{"name": "a"}]})
    };
    check(spec("Never"), &[], &[], start_init(&["s"]));
    check(spec("Never"), &["s running"], &[], start_init(&["i"]));
    check(spec("Never"), &["s exit 1", "i running"], &[], start_init(&["s"]));
    check(spec("Never"), &["s running", "i exit 0"], &[], start(&["a"]));
    check(spec("Never"), &["s exit 1", "a running"], &[], start_init(&["s"]));
    // The sidecar does not keep the pod alive.
    check(spec("Never"), &["s running", "a exit 0"], &[], kill_pod());
}

#[test]
fn a_sidecar_with_a_startup_probe_holds_back_what_follows() {
    let p = pod(
        json!({"initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {}}], "containers": [{"name": "a"}]}),
    );
    let with = |startup| plan(&p, &state(&["s running"]), &|_| ProbeResults { startup, ..Default::default() });
    assert_eq!(with(None), Plan::default());
    assert_eq!(with(Some(true)), start(&["a"]));
    assert_eq!(with(Some(false)).start_init, ["s"]);
}

#[test]
fn sandboxes_are_made_anew() {
    let p = |policy: &str| pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
    let none = |_: &str| ProbeResults::default();
    let fresh = plan(&p("Always"), &PodState::default(), &none);
    assert_eq!(fresh, Plan { create_sandbox: Some(0), ..start(&["a"]) });
    let dead = |c: &[&str]| {
        let containers = c.iter().enumerate().map(|(i, c)| container(c, i as i64)).collect();
        PodState::new(vec![sandbox("s1", SandboxState::NotReady, 0)], containers)
    };
    let again = plan(&p("Always"), &dead(&["a exit 137"]), &none);
    assert_eq!(again, Plan { kill_pod: true, create_sandbox: Some(1), ..start(&["a"]) });
    assert_eq!(plan(&p("Never"), &dead(&["a exit 137"]), &none), kill_pod());
    assert_eq!(plan(&p("OnFailure"), &dead(&["a exit 0"]), &none), kill_pod());
}

#[test]
fn running_containers_take_what_they_are_granted() {
    let resources = |cpu: &str| json!({"requests": {"cpu": cpu}});
    let restart = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
    let with = |spec: Value, running: &[&str]| {
        let mut state = state(running);
        for c in &mut state.containers {
            let made = (crate::state::annotation::RESOURCES.to_owned(), resources("1").to_string());
            c.config.annotations.extend([made]);
        }
        plan(&pod(spec), &state, &|_| ProbeResults::default())
    };
    let one = |cpu: &str| json!({"containers": [{"name": "a", "resources": resources(cpu)}]});
    assert_eq!(with(one("1"), &["a running"]), Plan::default());
    assert_eq!(with(one("2"), &["a running"]).resize, ["a"]);
    let again = json!({"containers": [{"name": "a", "resources": resources("2"), "resizePolicy": restart}]});
    let plan = with(again, &["a running"]);
    assert_eq!((plan.kill.len(), plan.start, plan.kill_pod), (1, vec!["a".to_owned()], false));
    assert_eq!(plan.kill[0].message, "Container a resize requires restart");
    let init = json!({"initContainers": [{"name": "i", "resources": resources("2")}], "containers": [{"name": "a"}]});
    assert_eq!(with(init, &["i running"]), Plan { resize: vec!["i".to_owned()], ..Plan::default() });
}
