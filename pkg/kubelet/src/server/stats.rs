//! `/stats/summary`, `/metrics/resource` and `/metrics`: what the node and its containers use.

use super::{Endpoints, json_response};
use crate::machine;
use crate::state::label;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use isopod_api::time;
use isopod_runtime::{ContainerState, ContainerStats, ContainerStatus};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

struct Used {
    container: ContainerStatus,
    stats: ContainerStats,
}

impl Used {
    fn label(&self, name: &str) -> &str {
        self.container.config.labels.get(name).map_or("", String::as_str)
    }
}

async fn used(state: &Endpoints) -> Vec<Used> {
    let runtime = &state.kubelet.shared.runtime;
    let mut out = Vec::new();
    for container in runtime.containers().await.unwrap_or_default() {
        if container.state != ContainerState::Running {
            continue;
        }
        // One that ends meanwhile is left out.
        if let Ok(stats) = runtime.container_stats(&container.id).await {
            out.push(Used { container, stats });
        }
    }
    out
}

fn at(nanos: i64) -> String {
    Timestamp::from_nanosecond(i128::from(nanos)).map(time::format).unwrap_or_default()
}

/// Core-nanoseconds of the machine since it booted, from `/proc/stat` (its unit is a hundredth of a second).
fn node_cpu(stat: &str) -> u64 {
    let fields = stat.lines().next().and_then(|l| l.strip_prefix("cpu ")).unwrap_or_default();
    let numbers: Vec<u64> = fields.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // All but idle and iowait; guest times are part of user times.
    let busy: u64 = numbers.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, n)| n).sum();
    busy * 10_000_000
}

fn node_usage(state: &Endpoints) -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let total = state.kubelet.shared.machine.memory;
    (node_cpu(&stat), total.saturating_sub(machine::available_memory()))
}

fn cpu_memory(time: &str, s: &ContainerStats) -> (Value, Value) {
    let cpu = json!({"time": time, "usageCoreNanoSeconds": s.cpu_usage});
    let memory = json!({"time": time, "usageBytes": s.memory_usage, "workingSetBytes": s.memory_working_set, "rssBytes": s.memory_rss});
    (cpu, memory)
}

pub async fn summary(State(state): State<Endpoints>) -> Response {
    let mut pods: BTreeMap<(String, String, String), Vec<Value>> = BTreeMap::new();
    let mut totals: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for u in used(&state).await {
        let time = at(u.stats.timestamp);
        let (cpu, memory) = cpu_memory(&time, &u.stats);
        let total = totals.entry(u.label(label::POD_UID).to_owned()).or_default();
        total.0 += u.stats.cpu_usage;
        total.1 += u.stats.memory_working_set;
        let key = (u.label(label::POD_NAMESPACE), u.label(label::POD_NAME), u.label(label::POD_UID));
        pods.entry((key.0.to_owned(), key.1.to_owned(), key.2.to_owned())).or_default().push(json!({
            "name": u.container.config.name, "startTime": at(u.container.started_at), "cpu": cpu, "memory": memory,
            "rootfs": {"time": time, "usedBytes": u.stats.writable_layer},
        }));
    }
    let shared = &state.kubelet.shared;
    let now = time::format(shared.clock.now());
    let pods: Vec<Value> = pods
        .into_iter()
        .map(|((namespace, name, uid), containers)| {
            let (cpu, memory) = totals.get(&uid).copied().unwrap_or_default();
            json!({"podRef": {"name": name, "namespace": namespace, "uid": uid}, "containers": containers,
                "cpu": {"time": now, "usageCoreNanoSeconds": cpu}, "memory": {"time": now, "workingSetBytes": memory}})
        })
        .collect();
    let (cpu, memory) = node_usage(&state);
    let fs = |u: isopod_runtime::FsUsage| {
        json!({"time": now, "availableBytes": u.available, "capacityBytes": u.capacity, "usedBytes": u.used,
            "inodes": u.inodes, "inodesFree": u.inodes_free})
    };
    let image_fs = shared.runtime.image_fs().await.map(fs).unwrap_or(Value::Null);
    json_response(&json!({
        "node": {
            "nodeName": shared.cfg.node_name,
            "cpu": {"time": now, "usageCoreNanoSeconds": cpu},
            "memory": {"time": now, "workingSetBytes": memory, "availableBytes": machine::available_memory()},
            "fs": image_fs, "runtime": {"imageFs": image_fs},
        },
        "pods": pods,
    }))
}

fn text(body: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body).into_response()
}

pub async fn resource_metrics(State(state): State<Endpoints>) -> Response {
    let used = used(&state).await;
    let (cpu, memory) = node_usage(&state);
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, lines: &[(String, f64)]| {
        let _ = writeln!(out, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        for (labels, value) in lines {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    let each = |value: &dyn Fn(&Used) -> f64| -> Vec<(String, f64)> {
        let labels = |u: &Used| {
            let (c, ns, p) = (&u.container.config.name, u.label(label::POD_NAMESPACE), u.label(label::POD_NAME));
            format!("{{container={c:?},namespace={ns:?},pod={p:?}}}")
        };
        used.iter().map(|u| (labels(u), value(u))).collect()
    };
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        &each(&|u| seconds(u.stats.cpu_usage)),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        &each(&|u| u.stats.memory_working_set as f64),
    );
    family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        &each(&|u| u.container.started_at as f64 / 1e9),
    );
    let node = |v: f64| [(String::new(), v)];
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        &node(seconds(cpu)),
    );
    family("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes", &node(memory as f64));
    text(out)
}

pub async fn metrics(State(state): State<Endpoints>) -> Response {
    let kubelet = &state.kubelet;
    let containers = kubelet.shared.runtime.containers().await.unwrap_or_default();
    let running = containers.iter().filter(|c| c.state == ContainerState::Running).count();
    let sandboxes = kubelet.shared.runtime.sandboxes().await.unwrap_or_default();
    let ready = sandboxes.iter().filter(|s| s.state == isopod_runtime::SandboxState::Ready).count();
    let mut out = String::new();
    let _ = writeln!(
        out,
        "# HELP kubelet_running_pods [BETA] Number of pods that have a running pod sandbox\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods {ready}"
    );
    let _ = writeln!(
        out,
        "# HELP kubelet_running_containers [BETA] Number of containers currently running\n# TYPE kubelet_running_containers gauge\nkubelet_running_containers{{container_state=\"running\"}} {running}"
    );
    let _ = writeln!(
        out,
        "# HELP kubelet_desired_pods [ALPHA] The number of pods the kubelet is being instructed to run.\n# TYPE kubelet_desired_pods gauge\nkubelet_desired_pods{{static=\"\"}} {}",
        kubelet.pods.len()
    );
    text(out)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_machines_cpu_time_leaves_idle_out() {
        assert_eq!(super::node_cpu("cpu  10 1 5 1000 50 1 2 0 3 0\ncpu0 1\n"), 19 * 10_000_000);
    }
}
