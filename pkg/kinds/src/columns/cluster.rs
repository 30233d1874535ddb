//! Columns of nodes, namespaces, events, configuration, leases, and of the component status.

use super::{AGE, NAME, condition, field, integer, or, since, text, wide};
use crate::access::Access;
use crate::kind::Column;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeSet;

pub(super) fn columns(group: &str, kind: &str) -> Option<Vec<Column>> {
    Some(match (group, kind) {
        ("", "Node") => vec![
            NAME,
            text("Status", |o, _| node_status(o).into()),
            text("Roles", |o, _| node_roles(o).into()),
            AGE,
            text("Version", field!(text "status.nodeInfo.kubeletVersion")),
            wide("Internal-IP", |o, _| address(o, "InternalIP")),
            wide("External-IP", |o, _| address(o, "ExternalIP")),
            wide("OS-Image", field!(text "status.nodeInfo.osImage" or "<unknown>")),
            wide("Kernel-Version", |o, _| {
                let kernel = or(o.text("status.nodeInfo.kernelVersion"), "<unknown>");
                match o.text("status.nodeInfo.architecture") {
                    "" => kernel.into(),
                    arch => format!("{kernel} ({arch})").into(),
                }
            }),
            wide("Container-Runtime", field!(text "status.nodeInfo.containerRuntimeVersion" or "<unknown>")),
        ],
        ("", "Namespace") => vec![NAME, text("Status", field!(text "status.phase")), AGE],
        ("" | "events.k8s.io", "Event") => events(),
        ("", "ConfigMap") => {
            let count = |o: &Value, _| (o.entries("data").len() + o.entries("binaryData").len()).into();
            vec![NAME, text("Data", count), AGE]
        }
        ("", "Secret") => {
            vec![NAME, text("Type", field!(text "type")), text("Data", |o, _| o.entries("data").len().into()), AGE]
        }
        ("", "ServiceAccount") => vec![NAME, AGE],
        ("", "ResourceQuota") => {
            vec![NAME, text("Request", |o, _| quota(o, false).into()), text("Limit", |o, _| quota(o, true).into()), AGE]
        }
        ("", "ComponentStatus") => vec![
            NAME,
            text("Status", |o, _| match health(o) {
                None => "Unknown".into(),
                Some(c) if c.text("status") == "True" => "Healthy".into(),
                Some(_) => "Unhealthy".into(),
            }),
            text("Message", |o, _| health(o).map_or("", |c| c.text("message")).into()),
            text("Error", |o, _| health(o).map_or("", |c| c.text("error")).into()),
        ],
        ("coordination.k8s.io", "Lease") => vec![NAME, text("Holder", field!(text "spec.holderIdentity")), AGE],
        ("coordination.k8s.io", "LeaseCandidate") => vec![
            NAME,
            text("LeaseName", field!(text "spec.leaseName")),
            text("BinaryVersion", field!(text "spec.binaryVersion")),
            text("EmulationVersion", field!(text "spec.emulationVersion")),
            AGE,
        ],
        ("node.k8s.io", "RuntimeClass") => vec![NAME, text("Handler", field!(text "handler")), AGE],
        ("apiregistration.k8s.io", "APIService") => vec![
            NAME,
            text("Service", |o, _| match o.at("spec.service") {
                Value::Null => "Local".into(),
                s => format!("{}/{}", s.text("namespace"), s.text("name")).into(),
            }),
            text("Available", api_service_available),
            AGE,
        ],
        ("internal.apiserver.k8s.io", "StorageVersion") => vec![
            NAME,
            text("CommonEncodingVersion", field!(text "status.commonEncodingVersion" or "<unset>")),
            text("StorageVersions", storage_versions),
            AGE,
        ],
        _ => return None,
    })
}

fn node_status(o: &Value) -> String {
    let ready = match condition(o, "Ready") {
        None => "Unknown",
        Some(c) if c.text("status") == "True" => "Ready",
        Some(_) => "NotReady",
    };
    if o.flag("spec.unschedulable") { format!("{ready},SchedulingDisabled") } else { ready.into() }
}

fn node_roles(o: &Value) -> String {
    let role = |(k, v): (&str, &Value)| match k.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => Some(role.to_owned()),
        None if k == "kubernetes.io/role" => v.as_str().map(str::to_owned),
        None => None,
    };
    let labels = o.entries("metadata.labels");
    let roles: BTreeSet<String> = labels.into_iter().filter_map(role).filter(|r| !r.is_empty()).collect();
    or(&roles.into_iter().collect::<Vec<_>>().join(","), "<none>").to_owned()
}

fn address(o: &Value, kind: &str) -> Value {
    let found = o.list("status.addresses").iter().find(|a| a.text("type") == kind);
    found.map_or("<none>", |a| a.text("address")).into()
}

/// The first of these fields that is set: events of the two groups spell them differently.
fn first<'a>(o: &'a Value, paths: &[&str]) -> &'a str {
    paths.iter().map(|p| o.text(p)).find(|s| !s.is_empty()).unwrap_or("")
}

fn first_seen(o: &Value, now: Timestamp) -> String {
    since(first(o, &["firstTimestamp", "deprecatedFirstTimestamp", "eventTime"]), now)
}

fn last_seen(o: &Value, now: Timestamp) -> Value {
    if o.has("series") {
        return since(o.text("series.lastObservedTime"), now).into();
    }
    match first(o, &["lastTimestamp", "deprecatedLastTimestamp"]) {
        "" => first_seen(o, now).into(),
        t => since(t, now).into(),
    }
}

fn event_source(o: &Value) -> String {
    let component =
        first(o, &["source.component", "deprecatedSource.component", "reportingComponent", "reportingController"]);
    match first(o, &["source.host", "deprecatedSource.host", "reportingInstance"]) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}

fn event_count(o: &Value) -> i64 {
    match o.int("series.count") {
        Some(n) => n,
        None => o.int_or("count", o.int_or("deprecatedCount", 0)).max(1),
    }
}

fn events() -> Vec<Column> {
    let target = |o: &Value, _: Timestamp| {
        let kind = first(o, &["involvedObject.kind", "regarding.kind"]).to_lowercase();
        match first(o, &["involvedObject.name", "regarding.name"]) {
            "" => kind.into(),
            name => format!("{kind}/{name}").into(),
        }
    };
    vec![
        text("Last Seen", last_seen),
        text("Type", field!(text "type")),
        text("Reason", field!(text "reason")),
        text("Object", target),
        wide("Subobject", |o, _| first(o, &["involvedObject.fieldPath", "regarding.fieldPath"]).into()),
        wide("Source", |o, _| event_source(o).into()),
        text("Message", |o, _| first(o, &["message", "note"]).trim().into()),
        wide("First Seen", |o, now| first_seen(o, now).into()),
        wide("Count", |o, _| event_count(o).into()),
        Column { priority: 1, ..NAME },
    ]
}

fn quota(o: &Value, limits: bool) -> String {
    let part = |(name, hard): (&str, &Value)| {
        let used = o.entry_text("status.used", name);
        format!("{name}: {}/{}", or(used, "0"), hard.as_str().unwrap_or_default())
    };
    let wanted = |(name, _): &(&str, &Value)| name.starts_with("limits.") == limits;
    o.entries("status.hard").into_iter().filter(wanted).map(part).collect::<Vec<_>>().join(", ")
}

fn health(o: &Value) -> Option<&Value> {
    o.list("conditions").iter().find(|c| c.text("type") == "Healthy")
}

fn api_service_available(o: &Value, _: Timestamp) -> Value {
    match condition(o, "Available") {
        None => "Unknown".into(),
        Some(c) if c.text("status") == "True" || c.text("reason").is_empty() => c.text("status").into(),
        Some(c) => format!("{} ({})", c.text("status"), c.text("reason")).into(),
    }
}

fn storage_versions(o: &Value, _: Timestamp) -> Value {
    let one = |s: &Value| format!("{}={}", s.text("apiServerID"), s.text("encodingVersion"));
    super::with_more(&o.list("status.storageVersions").iter().map(one).collect::<Vec<_>>(), 3).into()
}

/// Kept here because the integer column of nodes' CSI drivers is counted like these.
pub(super) const DRIVERS: Column = integer("Drivers", field!(count "spec.drivers"));
