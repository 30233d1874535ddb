//! Pods: what one requests and limits in total (KEP-753, KEP-1287, KEP-2837), what a quota counts of it, and its scopes.

use super::amounts::{Amounts, number};
use super::usage::{is_extended_request, is_native, selects};
use crate::access::Access;
use crate::kinds::pod::qos_class;
use isopod_api::{names, time};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What a total of a pod contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Total {
    /// What the spec's containers and the pod itself declare: what limit ranges look at.
    Declared,
    /// What the pod holds: overhead too, and during a resize the larger of what is wanted, allocated and in use.
    Held,
}

/// `requests` or `limits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Requests,
    Limits,
}

impl Side {
    fn field(self) -> &'static str {
        match self {
            Side::Requests => "requests",
            Side::Limits => "limits",
        }
    }
}

/// The sum over containers and sidecars or the hungriest moment of initialization, whichever is more; amounts of the whole
/// pod replace it.
pub fn total(pod: &Value, side: Side, total: Total) -> Amounts {
    let mut sum = containers(pod, side, total);
    let whole = Amounts::read(pod.at("spec.resources").at(side.field()));
    let of_pod = |n: &&String| matches!(n.as_str(), "cpu" | "memory") || (total == Total::Held && is_huge_page(n));
    for name in whole.0.keys().filter(of_pod) {
        sum.set(name.clone(), whole.0[name].clone());
    }
    if total == Total::Held {
        let overhead = Amounts::read(pod.at("spec.overhead"));
        match side {
            Side::Requests => sum.add(&overhead),
            // A pod without a limit has none because of its overhead.
            Side::Limits => {
                let limited: Vec<&str> = sum.0.iter().filter(|(_, v)| !v.is_zero()).map(|(k, _)| k.as_str()).collect();
                let more = overhead.only(limited);
                sum.add(&more);
            }
        }
    }
    sum
}

fn containers(pod: &Value, side: Side, total: Total) -> Amounts {
    let declared = |c: &Value| Amounts::read(c.at("resources").at(side.field()));
    if total == Total::Declared {
        return aggregate(pod, &declared);
    }
    let infeasible = pod
        .list("status.conditions")
        .iter()
        .find(|c| c.text("type") == "PodResizePending")
        .is_some_and(|c| c.text("reason") == "Infeasible");
    let status = statuses(pod);
    let known = |c: &Value, paths: &[&str]| {
        let found = status.get(c.text("name")).and_then(|s| paths.iter().map(|p| s.at(p)).find(|v| v.is_object()));
        match found {
            Some(list) => Amounts::read(list),
            None if infeasible => Amounts::default(),
            None => declared(c),
        }
    };
    let mut all = if infeasible { Amounts::default() } else { aggregate(pod, &declared) };
    match side {
        Side::Requests => {
            all.raise(&aggregate(pod, &|c| known(c, &["resources.requests", "allocatedResources"])));
            all.raise(&aggregate(pod, &|c| known(c, &["allocatedResources"])));
        }
        Side::Limits => all.raise(&aggregate(pod, &|c| known(c, &["resources.limits"]))),
    }
    all
}

fn statuses(pod: &Value) -> BTreeMap<&str, &Value> {
    let lists = ["status.initContainerStatuses", "status.containerStatuses"];
    lists.iter().flat_map(|l| pod.list(l)).map(|s| (s.text("name"), s)).collect()
}

fn aggregate(pod: &Value, of: &dyn Fn(&Value) -> Amounts) -> Amounts {
    let (mut sum, mut sidecars, mut peak) = (Amounts::default(), Amounts::default(), Amounts::default());
    for container in pod.list("spec.containers") {
        sum.add(&of(container));
    }
    for container in pod.list("spec.initContainers") {
        let mut moment = of(container);
        if container.text("restartPolicy") == "Always" {
            sum.add(&moment);
            sidecars.add(&moment);
            moment = sidecars.clone();
        } else {
            moment.add(&sidecars);
        }
        peak.raise(&moment);
    }
    sum.raise(&peak);
    sum
}

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether a device class may stand behind the name, or a device plugin.
fn is_device(name: &str) -> bool {
    let extended = !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty();
    extended || name.starts_with("deviceclass.resource.kubernetes.io/")
}

/// The names of quotas that pods count against.
pub fn counts(name: &str) -> bool {
    const NAMES: [&str; 11] = [
        "count/pods",
        "cpu",
        "memory",
        "ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "pods",
    ];
    NAMES.contains(&name) || is_huge_page(name) || name.starts_with("requests.hugepages-") || is_extended_request(name)
}

/// Amounts by the names that quotas give them.
fn quota_names(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut out = Amounts::default();
    out.set("pods", number(1));
    for (name, amount) in &requests.0 {
        let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || is_huge_page(name);
        if standard {
            out.set(name.clone(), amount.clone());
        }
        if standard || is_device(name) {
            out.set(format!("requests.{name}"), amount.clone());
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            out.set(format!("limits.{name}"), amount.clone());
        }
    }
    out
}

/// Whether the pod still holds resources: it has not ended, and its grace has not run out.
fn holds(pod: &Value, now: Timestamp) -> bool {
    if matches!(pod.text("status.phase"), "Failed" | "Succeeded") {
        return false;
    }
    let deleted = time::parse(pod.text("metadata.deletionTimestamp"));
    match (deleted, pod.int("metadata.deletionGracePeriodSeconds")) {
        (Some(at), Some(grace)) => now <= at + SignedDuration::from_secs(grace),
        _ => true,
    }
}

pub fn usage(pod: &Value, now: Timestamp) -> Amounts {
    let mut out = Amounts::default();
    out.set("count/pods", number(1));
    if holds(pod, now) {
        out.add(&quota_names(&total(pod, Side::Requests, Total::Held), &total(pod, Side::Limits, Total::Held)));
    }
    out
}

/// A quota of computing resources wants every container to say what it takes, unless the whole pod does.
pub fn must_specify(required: &[&str], pod: &Value) -> Result<(), String> {
    let of_pod = |n: &str| matches!(n, "cpu" | "memory") || is_huge_page(n);
    let whole = ["spec.resources.requests", "spec.resources.limits"];
    if whole.iter().flat_map(|l| pod.entries(l)).any(|(name, _)| of_pod(name)) {
        return Ok(());
    }
    let checked = ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in pod.list("spec.containers").iter().chain(pod.list("spec.initContainers")) {
        let (requests, limits) = (container.at("resources.requests"), container.at("resources.limits"));
        let said = quota_names(&Amounts::read(requests), &Amounts::read(limits));
        for name in checked.into_iter().filter(|n| required.contains(n) && said.get(n).is_none()) {
            missing.entry(name).or_default().insert(container.text("name"));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let part = |(name, of): (&&str, &BTreeSet<&str>)| {
        format!("{name} for: {}", of.iter().copied().collect::<Vec<_>>().join(","))
    };
    Err(format!("must specify {}", missing.iter().map(part).collect::<Vec<_>>().join("; ")))
}

/// Whether the pod ends by itself.
pub fn is_terminating(pod: &Value) -> bool {
    pod.int("spec.activeDeadlineSeconds").is_some_and(|s| s >= 0)
}

/// Whether the pod is in the scope that one requirement of a quota names.
pub fn in_scope(pod: &Value, requirement: &Value) -> bool {
    match requirement.text("scopeName") {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => qos_class(pod) == "BestEffort",
        "NotBestEffort" => qos_class(pod) != "BestEffort",
        "PriorityClass" => {
            let class = Some(pod.text("spec.priorityClassName")).filter(|c| !c.is_empty());
            selects(requirement, class)
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn crosses_namespaces(pod: &Value) -> bool {
    let crosses = |term: &Value| !term.is_empty_at("namespaces") || term.has("namespaceSelector");
    ["podAffinity", "podAntiAffinity"].iter().any(|side| {
        let affinity = pod.at("spec.affinity").at(side);
        affinity.list("requiredDuringSchedulingIgnoredDuringExecution").iter().any(crosses)
            || affinity
                .list("preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .any(|t| crosses(t.at("podAffinityTerm")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(name: &str, cpu: &str, more: Value) -> Value {
        let mut c = json!({"name": name, "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}});
        c.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        c
    }

    #[test]
    fn totals() {
        let always = json!({"restartPolicy": "Always"});
        let (a, b) = (container("a", "100m", json!({})), container("b", "200m", json!({})));
        let init = container("i", "1", json!({}));
        let sidecar = container("s", "300m", always);
        for (spec, declared, held) in [
            (json!({"containers": [a, b]}), "cpu=300m", "cpu=300m"),
            (json!({"containers": [a], "initContainers": [init]}), "cpu=1", "cpu=1"),
            (json!({"containers": [a, b], "initContainers": [sidecar, init]}), "cpu=1300m", "cpu=1300m"),
            (json!({"containers": [a, b], "initContainers": [init, sidecar]}), "cpu=1", "cpu=1"),
            (json!({"containers": [a], "overhead": {"cpu": "5m"}}), "cpu=100m", "cpu=105m"),
            (
                json!({"containers": [a], "resources": {"requests": {"cpu": "2", "hugepages-2Mi": "2Mi"}}}),
                "cpu=2",
                "cpu=2,hugepages-2Mi=2Mi",
            ),
        ] {
            let pod = json!({ "spec": spec });
            assert_eq!(total(&pod, Side::Requests, Total::Declared).to_string(), declared, "{spec}");
            assert_eq!(total(&pod, Side::Requests, Total::Held).to_string(), held, "{spec}");
        }
    }

    #[test]
    fn during_a_resize_the_larger_counts() {
        let pod = |spec: &str, status: Value, reason: &str| {
            let conditions = json!([{"type": "PodResizePending", "reason": reason}]);
            json!({"spec": {"containers": [container("a", spec, json!({}))]},
                "status": {"conditions": conditions, "containerStatuses": [status]}})
        };
        let in_use = json!({"name": "a", "allocatedResources": {"cpu": "2"}, "resources": {"requests": {"cpu": "1"}}});
        for (spec, reason, want) in
            [("1", "Deferred", "cpu=2"), ("3", "Deferred", "cpu=3"), ("3", "Infeasible", "cpu=2")]
        {
            let pod = pod(spec, in_use.clone(), reason);
            assert_eq!(total(&pod, Side::Requests, Total::Held).to_string(), want, "{spec} {reason}");
        }
    }

    #[test]
    fn what_pods_use() {
        let now = time::parse("2026-01-01T00:01:00Z").unwrap();
        let resources = json!({"requests": {"cpu": "1", "example.com/gpu": "2", "hugepages-2Mi": "4Mi"}, "limits": {"memory": "1Gi"}});
        let running = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        let all = "count/pods=1,cpu=1,hugepages-2Mi=4Mi,limits.memory=1Gi,pods=1,requests.cpu=1,requests.example.com/gpu=2,requests.hugepages-2Mi=4Mi";
        for (status, meta, want) in [
            (json!({"phase": "Running"}), json!({}), all),
            (json!({"phase": "Succeeded"}), json!({}), "count/pods=1"),
            (
                json!({}),
                json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30}),
                "count/pods=1",
            ),
            (json!({}), json!({"deletionTimestamp": "2026-01-01T00:00:40Z", "deletionGracePeriodSeconds": 30}), all),
        ] {
            let mut pod = running.clone();
            (pod["status"], pod["metadata"]) = (status, meta);
            assert_eq!(usage(&pod, now).to_string(), want, "{pod}");
        }
    }

    #[test]
    fn containers_must_say_what_they_take() {
        let pod =
            json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "resources": {"limits": {"cpu": "1"}}}]}});
        let err = must_specify(&["limits.cpu", "requests.memory", "pods"], &pod);
        assert_eq!(err.unwrap_err(), "must specify limits.cpu for: b; requests.memory for: a,b");
        assert_eq!(must_specify(&["pods", "requests.ephemeral-storage"], &pod), Ok(()));
        let mut whole = pod;
        whole["spec"]["resources"] = json!({"limits": {"memory": "1Gi"}});
        assert_eq!(must_specify(&["limits.cpu"], &whole), Ok(()));
    }

    #[test]
    fn scopes() {
        let term = json!({"requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["x"]}]});
        let pod = json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high", "affinity": {"podAffinity": term},
            "containers": [{"name": "c"}]}});
        let plain = json!({"spec": {"containers": [container("c", "1", json!({}))]}});
        let class = |op: &str, values: Value| json!({"scopeName": "PriorityClass", "operator": op, "values": values});
        let exists = |scope: &str| json!({"scopeName": scope, "operator": "Exists"});
        for (requirement, of_pod, of_plain) in [
            (exists("Terminating"), true, false),
            (exists("NotTerminating"), false, true),
            (exists("BestEffort"), true, false),
            (exists("NotBestEffort"), false, true),
            (exists("CrossNamespacePodAffinity"), true, false),
            (exists("VolumeAttributesClass"), false, false),
            (exists("PriorityClass"), true, false),
            (class("DoesNotExist", json!([])), false, true),
            (class("In", json!(["high"])), true, false),
            (class("NotIn", json!(["high"])), false, true),
        ] {
            assert_eq!(
                (in_scope(&pod, &requirement), in_scope(&plain, &requirement)),
                (of_pod, of_plain),
                "{requirement}"
            );
        }
    }
}
