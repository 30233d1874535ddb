//! Server-side printing: the columns of `kubectl get` for every built-in kind, as upstream's
//! (`pkg/printers/internalversion/printers.go`). The server always prints the wide form; kubectl hides columns of priority 1.
//!
//! Invariant: a cell is a pure function of the object and the time; texts such as `<none>` and `5m` are upstream's.

mod cluster;
mod network;
mod pod;
mod policy;
mod storage;
mod workload;

use crate::access::Access;
use crate::kind::{Column, Kind};
use isopod_api::Gvk;
use isopod_api::selector::LabelSelector;
use jiff::Timestamp;
use serde_json::Value;
use std::sync::Arc;

type Cell = fn(&Value, Timestamp) -> Value;

/// A row of the table: cells in the order of the kind's columns, and the conditions of a finished pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub cells: Vec<Value>,
    /// `metav1.TableRowCondition`s.
    pub conditions: Vec<Value>,
}

/// The row of one object.
pub fn table_row(kind: &Kind, obj: &Value, now: Timestamp) -> Row {
    let mut cells = kind.columns.cells(obj, now);
    // Upstream's rows of IPAddress hold an age for which there is no column; kubectl shows none.
    if kind.gvk.group == "networking.k8s.io" && kind.gvk.kind == "IPAddress" {
        cells.push(age(obj, now));
    }
    let pod = kind.gvk.group.is_empty() && kind.gvk.kind == "Pod";
    Row { cells, conditions: if pod { pod::row_conditions(obj) } else { Vec::new() } }
}

/// The columns of a built-in kind.
pub fn of(gvk: &Gvk) -> Arc<[Column]> {
    let (group, kind) = (gvk.group.as_str(), gvk.kind.as_str());
    let found = workload::columns(group, kind)
        .or_else(|| network::columns(group, kind))
        .or_else(|| cluster::columns(group, kind))
        .or_else(|| storage::columns(group, kind))
        .or_else(|| policy::columns(group, kind));
    found.unwrap_or_else(|| vec![NAME, CREATED_AT]).into()
}

const fn column(name: &'static str, kind: &'static str, cell: Cell) -> Column {
    Column { name, kind, format: "", description: "", priority: 0, cell }
}

pub(crate) const NAME: Column =
    Column { format: "name", description: "Name of the object", ..column("Name", "string", |o, _| name(o)) };
pub(crate) const AGE: Column = Column { description: "Time since the object was made", ..column("Age", "string", age) };
const CREATED_AT: Column = Column {
    description: "When the object was made",
    ..column("Created At", "date", |o, _| o.text("metadata.creationTimestamp").into())
};

/// A column of text.
const fn text(name: &'static str, cell: Cell) -> Column {
    column(name, "string", cell)
}
/// A column of text that only `-o wide` shows.
const fn wide(name: &'static str, cell: Cell) -> Column {
    Column { priority: 1, ..column(name, "string", cell) }
}
const fn integer(name: &'static str, cell: Cell) -> Column {
    column(name, "integer", cell)
}
const fn boolean(name: &'static str, cell: Cell) -> Column {
    column(name, "boolean", cell)
}

/// Cells that only read a field.
macro_rules! field {
    (text $path:literal) => {
        |o: &serde_json::Value, _| serde_json::Value::from($crate::access::Access::text(o, $path))
    };
    (text $path:literal or $absent:literal) => {
        |o: &serde_json::Value, _| {
            serde_json::Value::from(crate::columns::or($crate::access::Access::text(o, $path), $absent))
        }
    };
    (int $path:literal) => {
        |o: &serde_json::Value, _| serde_json::Value::from($crate::access::Access::int_or(o, $path, 0))
    };
    (flag $path:literal) => {
        |o: &serde_json::Value, _| serde_json::Value::from($crate::access::Access::flag(o, $path))
    };
    (count $path:literal) => {
        |o: &serde_json::Value, _| serde_json::Value::from($crate::access::Access::list(o, $path).len())
    };
}
use field;

fn or<'a>(s: &'a str, absent: &'a str) -> &'a str {
    if s.is_empty() { absent } else { s }
}

fn name(o: &Value) -> Value {
    o.text("metadata.name").into()
}

fn age(o: &Value, now: Timestamp) -> Value {
    since(o.text("metadata.creationTimestamp"), now).into()
}

/// How long ago a `metav1.Time` was: `5m`; `<unknown>` for none.
pub fn since(time: &str, now: Timestamp) -> String {
    match isopod_api::time::parse(time) {
        Some(t) => human_duration(now.as_nanosecond() - t.as_nanosecond()),
        None => "<unknown>".into(),
    }
}

/// Two or three significant figures of a duration in nanoseconds: `4m32s`, `3h5m`, `12d`.
pub fn human_duration(nanoseconds: i128) -> String {
    let pair = |big: i128, b: &str, small: i128, s: &str| {
        if small == 0 { format!("{big}{b}") } else { format!("{big}{b}{small}{s}") }
    };
    let seconds = nanoseconds / 1_000_000_000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match seconds {
        s if s < -1 => "<invalid>".into(),
        s if s < 0 => "0s".into(),
        s if s < 120 => format!("{s}s"),
        s if minutes < 10 => pair(minutes, "m", s % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => pair(days, "d", hours % 24, "h"),
        _ if hours < 24 * 365 * 2 => format!("{days}d"),
        _ if hours < 24 * 365 * 8 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// `a=b,c=d`, `<none>` where there are none.
fn map_text(map: &Value) -> String {
    let pairs: Vec<String> =
        map.entries("").iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",") }
}

/// A `metav1.LabelSelector` as text.
fn selector_text(selector: &Value) -> String {
    if selector.is_null() {
        return "<none>".into();
    }
    match LabelSelector::from_object(Some(selector)) {
        Ok(s) => or(&s.to_string(), "<none>").to_owned(),
        Err(_) => "<error>".into(),
    }
}

/// One field of each container, joined by commas.
fn containers(template: &Value, field: &str) -> Value {
    template.list("spec.containers").iter().map(|c| c.text(field)).collect::<Vec<_>>().join(",").into()
}

/// `a,b,c + 2 more...`: the first `max`.
fn with_more(all: &[String], max: usize) -> String {
    match all {
        [] => "<unset>".into(),
        _ if all.len() > max => format!("{} + {} more...", all[..max].join(","), all.len() - max),
        _ => all.join(","),
    }
}

/// The condition of a type.
fn condition<'a>(o: &'a Value, kind: &str) -> Option<&'a Value> {
    o.list("status.conditions").iter().find(|c| c.text("type") == kind)
}

fn condition_true(o: &Value, kind: &str) -> bool {
    condition(o, kind).is_some_and(|c| c.text("status") == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_as_kubectl_prints_them() {
        for (seconds, want) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (272, "4m32s"),
            (600, "10m"),
            (10799, "179m"),
            (10800, "3h"),
            (11100, "3h5m"),
            (8 * 3600, "8h"),
            (47 * 3600, "47h"),
            (49 * 3600, "2d1h"),
            (8 * 86400, "8d"),
            (730 * 86400, "2y"),
            (731 * 86400, "2y1d"),
            (3000 * 86400, "8y"),
        ] {
            assert_eq!(human_duration(seconds * 1_000_000_000), want, "{seconds}");
        }
    }

    /// Cells of `kind` for an object made five minutes before now.
    pub(super) fn cells(group: &str, kind: &str, mut obj: Value) -> Vec<Value> {
        obj["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
        of(&Gvk::new(group, "v1", kind)).iter().map(|c| (c.cell)(&obj, now)).collect()
    }

    #[test]
    fn rows_of_common_kinds() {
        let table = [
            (
                ("", "Service"),
                json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort", "clusterIPs": ["10.0.0.1"], "selector": {"a": "b"},
                    "ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
                json!(["web", "NodePort", "10.0.0.1", "<none>", "80:30000/TCP,53/UDP", "5m", "a=b"]),
            ),
            (
                ("apps", "Deployment"),
                json!({"metadata": {"name": "d"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}},
                    "template": {"spec": {"containers": [{"name": "x", "image": "i"}, {"name": "y", "image": "j"}]}}},
                    "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}}),
                json!(["d", "2/3", 3, 1, "5m", "x,y", "i,j", "a=b"]),
            ),
            (
                ("", "Node"),
                json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
                    "spec": {"unschedulable": true},
                    "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
                        "nodeInfo": {"kubeletVersion": "v1.37.0", "osImage": "Debian", "kernelVersion": "6.1", "architecture": "amd64"}}}),
                json!([
                    "n",
                    "Ready,SchedulingDisabled",
                    "control-plane",
                    "5m",
                    "v1.37.0",
                    "1.2.3.4",
                    "<none>",
                    "Debian",
                    "6.1 (amd64)",
                    "<unknown>"
                ]),
            ),
            (
                ("", "Event"),
                json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "Pulled", "message": " done ", "count": 2,
                    "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "f"}, "source": {"component": "kubelet", "host": "n"},
                    "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:04:00Z"}),
                json!(["60s", "Normal", "Pulled", "pod/p", "f", "kubelet, n", "done", "5m", 2, "e"]),
            ),
            (
                ("", "ConfigMap"),
                json!({"metadata": {"name": "c"}, "data": {"a": ""}, "binaryData": {"b": ""}}),
                json!(["c", 2, "5m"]),
            ),
            (("", "LimitRange"), json!({"metadata": {"name": "l"}}), json!(["l", "2026-01-01T00:00:00Z"])),
            (
                ("discovery.k8s.io", "EndpointSlice"),
                json!({"metadata": {"name": "s"}, "addressType": "IPv4", "ports": [{"port": 80}],
                    "endpoints": [{"addresses": ["a"]}, {"addresses": ["b"]}, {"addresses": ["c"]}, {"addresses": ["d"]}]}),
                json!(["s", "IPv4", "80", "a,b,c + 1 more...", "5m"]),
            ),
        ];
        for ((group, kind), obj, want) in table {
            assert_eq!(Value::from(cells(group, kind, obj)), want, "{kind}");
        }
    }
}
