//! Columns of workloads: apps, batch, autoscaling, and the core group's ReplicationController and PodTemplate.

use super::{
    AGE, NAME, boolean, column, condition_true, containers, field, human_duration, integer, map_text, or, pod,
    selector_text, since, text, wide,
};
use crate::access::Access;
use crate::kind::Column;
use isopod_api::GroupVersion;
use jiff::Timestamp;
use serde_json::Value;

const CONTAINERS: Column = wide("Containers", |o, _| containers(o.at("spec.template"), "name"));
const IMAGES: Column = wide("Images", |o, _| containers(o.at("spec.template"), "image"));
const SELECTOR: Column = wide("Selector", |o, _| selector_text(o.at("spec.selector")).into());

pub(super) fn columns(group: &str, kind: &str) -> Option<Vec<Column>> {
    Some(match (group, kind) {
        ("", "Pod") => pod::columns(),
        ("", "PodTemplate") => vec![
            NAME,
            text("Containers", |o, _| containers(o.at("template"), "name")),
            text("Images", |o, _| containers(o.at("template"), "image")),
            text("Pod Labels", |o, _| map_text(o.at("template.metadata.labels")).into()),
        ],
        ("", "ReplicationController") => {
            let selector = wide("Selector", |o, _| map_text(o.at("spec.selector")).into());
            replicas(vec![CONTAINERS, IMAGES, selector])
        }
        ("apps", "ReplicaSet") => replicas(vec![CONTAINERS, IMAGES, SELECTOR]),
        ("apps", "Deployment") => vec![
            NAME,
            text("Ready", ready_of_desired),
            text("Up-to-date", field!(int "status.updatedReplicas")),
            text("Available", field!(int "status.availableReplicas")),
            AGE,
            CONTAINERS,
            IMAGES,
            wide("Selector", |o, _| {
                let s = selector_text(o.at("spec.selector"));
                if s == "<none>" { "".into() } else { s.into() }
            }),
        ],
        ("apps", "StatefulSet") => vec![NAME, text("Ready", ready_of_desired), AGE, CONTAINERS, IMAGES],
        ("apps", "DaemonSet") => vec![
            NAME,
            integer("Desired", field!(int "status.desiredNumberScheduled")),
            integer("Current", field!(int "status.currentNumberScheduled")),
            integer("Ready", field!(int "status.numberReady")),
            integer("Up-to-date", field!(int "status.updatedNumberScheduled")),
            integer("Available", field!(int "status.numberAvailable")),
            text("Node Selector", |o, _| map_text(o.at("spec.template.spec.nodeSelector")).into()),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        ("apps", "ControllerRevision") => {
            vec![NAME, text("Controller", controller), text("Revision", field!(int "revision")), AGE]
        }
        ("batch", "Job") => vec![
            NAME,
            text("Status", |o, _| job_status(o).into()),
            text("Completions", completions),
            text("Duration", job_duration),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        ("batch", "CronJob") => cron_job(),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler(),
        ("autoscaling", "Scale") => vec![
            Column { format: "", ..NAME },
            integer("Desired", field!(int "spec.replicas")),
            integer("Available", field!(int "status.replicas")),
            AGE,
        ],
        _ => return None,
    })
}

fn replicas(rest: Vec<Column>) -> Vec<Column> {
    let mut all = vec![
        NAME,
        integer("Desired", field!(int "spec.replicas")),
        integer("Current", field!(int "status.replicas")),
        integer("Ready", field!(int "status.readyReplicas")),
        AGE,
    ];
    all.extend(rest);
    all
}

fn ready_of_desired(o: &Value, _: Timestamp) -> Value {
    format!("{}/{}", o.int_or("status.readyReplicas", 0), o.int_or("spec.replicas", 0)).into()
}

fn controller(o: &Value, _: Timestamp) -> Value {
    let Some(r) = o.list("metadata.ownerReferences").iter().find(|r| r.flag("controller")) else {
        return "<none>".into();
    };
    let group = GroupVersion::parse(r.text("apiVersion")).map_or_else(String::new, |gv| gv.group);
    let kind = if group.is_empty() { r.text("kind").to_owned() } else { format!("{}.{group}", r.text("kind")) };
    format!("{}/{}", kind.to_lowercase(), r.text("name")).into()
}

fn job_status(o: &Value) -> &'static str {
    for (condition, shown) in [("Complete", "Complete"), ("Failed", "Failed")] {
        if condition_true(o, condition) {
            return shown;
        }
    }
    if o.has("metadata.deletionTimestamp") {
        return "Terminating";
    }
    for (condition, shown) in
        [("Suspended", "Suspended"), ("FailureTarget", "FailureTarget"), ("SuccessCriteriaMet", "SuccessCriteriaMet")]
    {
        if condition_true(o, condition) {
            return shown;
        }
    }
    "Running"
}

fn completions(o: &Value, _: Timestamp) -> Value {
    let done = o.int_or("status.succeeded", 0);
    match (o.int("spec.completions"), o.int_or("spec.parallelism", 0)) {
        (Some(n), _) => format!("{done}/{n}"),
        (None, p) if p > 1 => format!("{done}/1 of {p}"),
        _ => format!("{done}/1"),
    }
    .into()
}

fn job_duration(o: &Value, now: Timestamp) -> Value {
    let time = |path| isopod_api::time::parse(o.text(path));
    match time("status.startTime") {
        None => "".into(),
        Some(start) => {
            let end = time("status.completionTime").unwrap_or(now);
            human_duration(end.as_nanosecond() - start.as_nanosecond()).into()
        }
    }
}

fn cron_job() -> Vec<Column> {
    vec![
        NAME,
        text("Schedule", field!(text "spec.schedule")),
        text("Timezone", field!(text "spec.timeZone" or "<none>")),
        boolean("Suspend", |o, _| match o.at("spec.suspend").as_bool() {
            Some(true) => "True".into(),
            Some(false) => "False".into(),
            None => "<unset>".into(),
        }),
        integer("Active", field!(count "status.active")),
        text("Last Schedule", |o, now| match o.text("status.lastScheduleTime") {
            "" => "<none>".into(),
            t => since(t, now).into(),
        }),
        AGE,
        wide("Containers", |o, _| containers(o.at("spec.jobTemplate.spec.template"), "name")),
        wide("Images", |o, _| containers(o.at("spec.jobTemplate.spec.template"), "image")),
        wide("Selector", |o, _| selector_text(o.at("spec.jobTemplate.spec.selector")).into()),
    ]
}

fn autoscaler() -> Vec<Column> {
    vec![
        NAME,
        text("Reference", |o, _| {
            format!("{}/{}", o.text("spec.scaleTargetRef.kind"), o.text("spec.scaleTargetRef.name")).into()
        }),
        text("Targets", |o, _| metrics(o).into()),
        column("MinPods", "string", |o, _| match o.int("spec.minReplicas") {
            Some(n) => n.to_string().into(),
            None => "<unset>".into(),
        }),
        text("MaxPods", field!(int "spec.maxReplicas")),
        text("Replicas", field!(int "status.currentReplicas")),
        AGE,
    ]
}

/// One metric of an autoscaler: its current value and its target.
fn metric(spec: &Value, status: &Value) -> String {
    let kind = spec.text("type");
    let source = match kind {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".into(),
    };
    let (s, current) = (spec.at(source), status.at(source).at("current"));
    let prefix = match kind {
        "Resource" | "ContainerResource" => format!("{}: ", s.text("name")),
        _ => String::new(),
    };
    let average = s.text("target.averageValue");
    if !average.is_empty() {
        let mark = if matches!(kind, "External" | "Object") { " (avg)" } else { "" };
        return format!("{prefix}{}/{average}{mark}", or(current.text("averageValue"), "<unknown>"));
    }
    if prefix.is_empty() {
        return format!("{}/{}", or(current.text("value"), "<unknown>"), or(s.text("target.value"), "<nil>"));
    }
    let percent = |v: Option<i64>, absent: &str| v.map_or_else(|| absent.to_owned(), |n| format!("{n}%"));
    let (now, target) = (current.int("averageUtilization"), s.int("target.averageUtilization"));
    format!("{prefix}{}/{}", percent(now, "<unknown>"), percent(target, "<auto>"))
}

fn metrics(o: &Value) -> String {
    // autoscaling/v1 has one number.
    if o.has("spec.targetCPUUtilizationPercentage") || o.has("status.currentCPUUtilizationPercentage") {
        let percent = |p: &str, absent: &str| o.int(p).map_or_else(|| absent.to_owned(), |n| format!("{n}%"));
        let now = percent("status.currentCPUUtilizationPercentage", "<unknown>");
        return format!("cpu: {now}/{}", percent("spec.targetCPUUtilizationPercentage", "<auto>"));
    }
    let (specs, statuses) = (o.list("spec.metrics"), o.list("status.currentMetrics"));
    let mut all: Vec<String> =
        specs.iter().enumerate().map(|(i, s)| metric(s, statuses.get(i).unwrap_or(&Value::Null))).collect();
    if all.is_empty() {
        return "<none>".into();
    }
    let more = all.len().saturating_sub(2);
    all.truncate(2);
    let shown = all.join(", ");
    if more > 0 { format!("{shown} + {more} more...") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::super::tests::cells;
    use serde_json::{Value, json};

    #[test]
    fn jobs_and_autoscalers() {
        let table = [
            (
                ("batch", "Job"),
                json!({"metadata": {"name": "j"}, "spec": {"completions": 2, "selector": {"matchLabels": {"a": "b"}}},
                    "status": {"succeeded": 1, "startTime": "2026-01-01T00:03:00Z"}}),
                json!(["j", "Running", "1/2", "2m", "5m", "", "", "a=b"]),
            ),
            (
                ("batch", "CronJob"),
                json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * * * *", "suspend": false}}),
                json!(["c", "* * * * *", "<none>", "False", 0, "<none>", "5m", "", "", "<none>"]),
            ),
            (
                ("autoscaling", "HorizontalPodAutoscaler"),
                json!({"metadata": {"name": "h"}, "spec": {"minReplicas": 1, "maxReplicas": 5, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
                    "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]}}),
                json!(["h", "Deployment/d", "cpu: <unknown>/80%", "1", 5, 0, "5m"]),
            ),
        ];
        for ((group, kind), obj, want) in table {
            assert_eq!(Value::from(cells(group, kind, obj)), want, "{kind}");
        }
    }
}
