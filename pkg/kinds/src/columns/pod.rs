//! The pod's row: READY, STATUS and RESTARTS are computed together, as upstream's `printPod` does.

use super::{AGE, NAME, condition, condition_true, field, or, since, text, wide};
use crate::access::Access;
use crate::kind::Column;
use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) fn columns() -> Vec<Column> {
    vec![
        NAME,
        text("Ready", |o, _| {
            let s = summary(o);
            format!("{}/{}", s.ready, s.total).into()
        }),
        text("Status", |o, _| summary(o).reason.into()),
        text("Restarts", restarts),
        AGE,
        wide("IP", |o, _| or(o.list("status.podIPs").first().map_or("", |i| i.text("ip")), "<none>").into()),
        wide("Node", field!(text "spec.nodeName" or "<none>")),
        wide("Nominated Node", field!(text "status.nominatedNodeName" or "<none>")),
        wide("Readiness Gates", readiness_gates),
    ]
}

/// `Completed` conditions of the row: kubectl hides such pods with `--field-selector`-less filters of its own.
pub(super) fn row_conditions(pod: &Value) -> Vec<Value> {
    let (reason, message) = match pod.text("status.phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return Vec::new(),
    };
    vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
}

#[derive(Default)]
struct Summary<'a> {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<(Timestamp, &'a str)>,
}

/// The restarts of containers and when the last one was.
#[derive(Clone, Copy, Default)]
struct Restarts<'a> {
    count: i64,
    last: Option<(Timestamp, &'a str)>,
}

impl<'a> Restarts<'a> {
    fn add(&mut self, status: &'a Value) {
        self.count += status.int_or("restartCount", 0);
        let at = status.text("lastState.terminated.finishedAt");
        if let Some(t) = isopod_api::time::parse(at)
            && self.last.is_none_or(|(before, _)| before < t)
        {
            self.last = Some((t, at));
        }
    }
}

fn is_sidecar(pod: &Value, name: &str) -> bool {
    let init = pod.list("spec.initContainers").iter().find(|c| c.text("name") == name);
    init.is_some_and(|c| c.text("restartPolicy") == "Always")
}

fn summary(pod: &Value) -> Summary<'_> {
    let sidecars = pod.list("spec.initContainers").iter().filter(|c| c.text("restartPolicy") == "Always").count();
    let mut s = Summary { total: pod.list("spec.containers").len() + sidecars, ..Default::default() };
    s.reason = or(pod.text("status.reason"), pod.text("status.phase")).to_owned();
    if condition(pod, "PodScheduled").is_some_and(|c| c.text("reason") == "SchedulingGated") {
        s.reason = "SchedulingGated".into();
    }
    let (initializing, all, sidecars) = init_containers(pod, &mut s);
    let mut restarts = all;
    if !initializing || condition_true(pod, "Initialized") {
        restarts = sidecars;
        main_containers(pod, &mut s, &mut restarts);
    }
    let phase = pod.text("status.phase");
    if pod.has("metadata.deletionTimestamp") {
        if pod.text("status.reason") == "NodeLost" {
            s.reason = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            s.reason = "Terminating".into();
        }
    }
    (s.restarts, s.last_restart) = (restarts.count, restarts.last);
    s
}

fn exit_reason(terminated: &Value) -> String {
    match (terminated.text("reason"), terminated.int_or("signal", 0)) {
        ("", 0) => format!("ExitCode:{}", terminated.int_or("exitCode", 0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// Whether the pod is still initializing; restarts of all init containers; restarts of the sidecars.
fn init_containers<'a>(pod: &'a Value, s: &mut Summary) -> (bool, Restarts<'a>, Restarts<'a>) {
    let (mut all, mut sidecars) = (Restarts::default(), Restarts::default());
    for (i, c) in pod.list("status.initContainerStatuses").iter().enumerate() {
        all.add(c);
        let sidecar = is_sidecar(pod, c.text("name"));
        if sidecar {
            sidecars.add(c);
        }
        let terminated = c.at("state.terminated");
        if !terminated.is_null() && terminated.int_or("exitCode", 0) == 0 {
            continue;
        }
        if sidecar && c.flag("started") {
            s.ready += usize::from(c.flag("ready"));
            continue;
        }
        let waiting = c.text("state.waiting.reason");
        s.reason = if !terminated.is_null() {
            format!("Init:{}", exit_reason(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", pod.list("spec.initContainers").len())
        };
        return (true, all, sidecars);
    }
    (false, all, sidecars)
}

fn main_containers<'a>(pod: &'a Value, s: &mut Summary, restarts: &mut Restarts<'a>) {
    let (mut running, mut error) = (false, String::new());
    for c in pod.list("status.containerStatuses").iter().rev() {
        restarts.add(c);
        let terminated = c.at("state.terminated");
        let waiting = c.text("state.waiting.reason");
        if !waiting.is_empty() {
            s.reason = waiting.to_owned();
        } else if !terminated.is_null() {
            s.reason = exit_reason(terminated);
            if terminated.int_or("exitCode", 0) != 0 {
                error = s.reason.clone();
            }
        } else if c.flag("ready") && c.has("state.running") {
            running = true;
            s.ready += 1;
        }
    }
    // A pod of which one container has completed and another still runs is running.
    if s.reason == "Completed" {
        if running && condition_true(pod, "Ready") {
            s.reason = "Running".into();
        } else if !error.is_empty() {
            s.reason = error;
        } else if running {
            s.reason = "NotReady".into();
        }
    }
}

fn restarts(pod: &Value, now: Timestamp) -> Value {
    let s = summary(pod);
    match s.last_restart {
        Some((_, at)) if s.restarts != 0 => format!("{} ({} ago)", s.restarts, since(at, now)).into(),
        _ => s.restarts.to_string().into(),
    }
}

fn readiness_gates(pod: &Value, _: Timestamp) -> Value {
    let gates = pod.list("spec.readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let passed = gates.iter().filter(|g| condition_true(pod, g.text("conditionType"))).count();
    format!("{passed}/{}", gates.len()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(spec: Value, status: Value, deleted: bool) -> (String, String, String) {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
        if deleted {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
        let s = summary(&pod);
        (format!("{}/{}", s.ready, s.total), s.reason, restarts(&pod, now).as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn ready_status_restarts() {
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let init = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
        let up = |restarts: i64| {
            json!({"name": "a", "ready": true, "state": {"running": {}}, "restartCount": restarts,
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:02:00Z"}}})
        };
        let done = json!({"name": "b", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let crash = json!({"name": "b", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let table = [
            (two.clone(), json!({"phase": "Pending"}), false, ("0/2", "Pending", "0")),
            (
                two.clone(),
                json!({"phase": "Running", "containerStatuses": [up(3), crash]}),
                false,
                ("1/2", "CrashLoopBackOff", "4 (3m ago)"),
            ),
            (
                two.clone(),
                json!({"phase": "Running", "containerStatuses": [done.clone(), up(0)], "conditions": ready}),
                false,
                ("1/2", "Running", "0"),
            ),
            (
                two.clone(),
                json!({"phase": "Running", "containerStatuses": [done, up(0)]}),
                false,
                ("1/2", "NotReady", "0"),
            ),
            (two.clone(), json!({"phase": "Running", "containerStatuses": [up(0)]}), true, ("1/2", "Terminating", "0")),
            (two.clone(), json!({"phase": "Failed", "reason": "Evicted"}), true, ("0/2", "Evicted", "0")),
            (
                two,
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
                false,
                ("0/2", "SchedulingGated", "0"),
            ),
            (
                init.clone(),
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                false,
                ("0/2", "Init:0/2", "0"),
            ),
            (
                init.clone(),
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 3}}}]}),
                false,
                ("0/2", "Init:ExitCode:3", "2"),
            ),
            (
                init,
                json!({"phase": "Running", "containerStatuses": [up(0)], "initContainerStatuses": [
                    {"name": "i", "restartCount": 5, "state": {"terminated": {"exitCode": 0}}},
                    {"name": "s", "restartCount": 1, "started": true, "ready": true, "state": {"running": {}}}]}),
                false,
                ("2/2", "Running", "1 (3m ago)"),
            ),
        ];
        for (spec, status, deleted, (ready, reason, restarts)) in table {
            assert_eq!(row(spec, status.clone(), deleted), (ready.into(), reason.into(), restarts.into()), "{status}");
        }
    }
}
