//! Pods: what a create resets and computes (QoS class, scheduling gates), and how long a delete waits.

use crate::access::{Access, keep, list_mut, map_mut, set, unset};
use crate::kind::Ctx;
use crate::ownership;
use crate::strategy::{PLAIN, Strategy, text_at};
use crate::validation::{pod, pod_update, pod_warnings};
use isopod_api::quantity::Quantity;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub const STRATEGY: Strategy = Strategy {
    fields: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
        "spec.host",
    ],
    owned: ownership::pod,
    select,
    grace,
    prepare_create,
    prepare_update,
    create: pod::create,
    update: pod_update::update,
    update_status: pod_update::status,
    update_other: pod_update::other,
    warnings: pod_warnings::pod,
    ..PLAIN
};

fn select(pod: &Value, path: &str) -> String {
    match path {
        "spec.host" => pod.text("spec.nodeName").to_owned(),
        "spec.hostNetwork" => pod.flag(path).to_string(),
        "status.podIPs" => pod.list(path).first().map_or_else(String::new, |i| i.text("ip").to_owned()),
        _ => text_at(pod, path),
    }
}

/// Pods that run nowhere or are done go at once.
fn grace(pod: &Value, asked: Option<i64>) -> Option<i64> {
    let period = asked.or_else(|| pod.int("spec.terminationGracePeriodSeconds")).unwrap_or(0);
    let done = matches!(pod.text("status.phase"), "Failed" | "Succeeded");
    let period = if pod.text("spec.nodeName").is_empty() || done { 0 } else { period };
    Some(if period < 0 { 1 } else { period })
}

fn prepare_create(_: &Ctx, pod: &mut Value) {
    set(pod, "status", json!({"phase": "Pending"}));
    if !pod.list("spec.schedulingGates").is_empty() {
        let gated = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": null,
        }]);
        set(pod, "status.conditions", gated);
    }
    merge_label_keys(pod);
    default_pod_resources(pod);
    let class = qos_class(pod);
    set(pod, "status.qosClass", class);
}

fn prepare_update(ctx: &Ctx, new: &mut Value, old: &Value) {
    match ctx.subresource {
        "status" => {
            keep(new, old, "spec");
            keep(new, old, "metadata.ownerReferences");
            for f in ["qosClass", "resourceClaimStatuses", "extendedResourceClaimStatus"] {
                let path = format!("status.{f}");
                if new.is_empty_at(&path) {
                    keep(new, old, &path);
                }
            }
            keep_observed_generation(new, old);
        }
        "ephemeralcontainers" => {
            let added = new.at("spec.ephemeralContainers").clone();
            keep(new, old, "spec");
            keep(new, old, "status");
            match added {
                Value::Null => unset(new, "spec.ephemeralContainers"),
                list => set(new, "spec.ephemeralContainers", list),
            }
        }
        "resize" => keep_all_but_resources(new, old),
        _ => {
            keep(new, old, "status");
            if !new.has("spec.resources") {
                keep(new, old, "spec.resources");
            }
        }
    }
}

/// A kubelet that does not know observedGeneration does not erase it.
fn keep_observed_generation(new: &mut Value, old: &Value) {
    if new.int_or("status.observedGeneration", 0) == 0 && old.has("status.observedGeneration") {
        keep(new, old, "status.observedGeneration");
    }
    for c in list_mut(new, "status.conditions") {
        if c.int_or("observedGeneration", 0) == 0 {
            let before = old.list("status.conditions").iter().find(|o| o.text("type") == c.text("type"));
            if let Some(n) = before.and_then(|o| o.int("observedGeneration")) {
                set(c, "observedGeneration", n);
            }
        }
    }
}

/// A resize changes resources and resize policies of containers, and the pod's resources.
fn keep_all_but_resources(new: &mut Value, old: &Value) {
    let mut spec = old.at("spec").clone();
    for list in ["containers", "initContainers"] {
        let asked = new.at("spec").list(list);
        let stored = list_mut(&mut spec, list);
        if asked.len() != stored.len() {
            return; // validation refuses it
        }
        for (to, from) in stored.iter_mut().zip(asked) {
            if to.text("name") == from.text("name") {
                keep(to, from, "resources");
                keep(to, from, "resizePolicy");
            }
        }
    }
    keep(&mut spec, new.at("spec"), "resources");
    set(new, "spec", spec);
    keep(new, old, "status");
}

/// Merges the pod's own labels into the selectors that ask for it (`matchLabelKeys`, `mismatchLabelKeys`).
fn merge_label_keys(pod: &mut Value) {
    let labels = pod.at("metadata.labels").clone();
    let merge = |term: &mut Value, keys: &str, operator: &str| {
        if !term.has("labelSelector") {
            return;
        }
        let keys: Vec<String> = term.texts(keys).into_iter().map(str::to_owned).collect();
        let mut all = term.list("labelSelector.matchExpressions").to_vec();
        let before = all.len();
        for key in keys {
            if let Some(v) = labels.get(&key) {
                all.push(json!({"key": key, "operator": operator, "values": [v]}));
            }
        }
        if all.len() > before {
            set(term, "labelSelector.matchExpressions", all);
        }
    };
    for side in ["podAffinity", "podAntiAffinity"] {
        for list in
            ["preferredDuringSchedulingIgnoredDuringExecution", "requiredDuringSchedulingIgnoredDuringExecution"]
        {
            for entry in list_mut(pod, &format!("spec.affinity.{side}.{list}")) {
                let term = if entry.has("podAffinityTerm") { &mut entry["podAffinityTerm"] } else { entry };
                merge(term, "matchLabelKeys", "In");
                merge(term, "mismatchLabelKeys", "NotIn");
            }
        }
    }
    for constraint in list_mut(pod, "spec.topologySpreadConstraints") {
        merge(constraint, "matchLabelKeys", "In");
    }
}

fn amount(v: &Value) -> Quantity {
    v.as_str().and_then(|s| Quantity::parse(s).ok()).unwrap_or_default()
}

/// What the containers ask for together: the sum of the main ones and the sidecars, or the largest moment of starting.
fn aggregate_requests(pod: &Value) -> BTreeMap<String, Quantity> {
    let mut total: BTreeMap<String, Quantity> = BTreeMap::new();
    let add = |to: &mut BTreeMap<String, Quantity>, c: &Value| {
        for (k, v) in c.entries("resources.requests") {
            to.entry(k.to_owned()).or_default().add(&amount(v));
        }
    };
    for c in pod.list("spec.containers") {
        add(&mut total, c);
    }
    let mut sidecars: BTreeMap<String, Quantity> = BTreeMap::new();
    let mut peak: BTreeMap<String, Quantity> = BTreeMap::new();
    for c in pod.list("spec.initContainers") {
        let mut moment = sidecars.clone();
        add(&mut moment, c);
        if c.text("restartPolicy") == "Always" {
            add(&mut sidecars, c);
            add(&mut total, c);
        }
        for (k, q) in moment {
            let p = peak.entry(k).or_default();
            if q > *p {
                *p = q;
            }
        }
    }
    for (k, q) in peak {
        let t = total.entry(k).or_default();
        if q > *t {
            *t = q;
        }
    }
    total
}

fn pod_level_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// Pod-level requests default to what the containers ask for, then to the pod-level limits (KEP-2837).
fn default_pod_resources(pod: &mut Value) {
    let r = pod.at("spec.resources");
    if r.is_empty_at("requests") && r.is_empty_at("limits") {
        return;
    }
    let sums = aggregate_requests(pod);
    let limits: Vec<(String, Value)> =
        pod.entries("spec.resources.limits").into_iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    let requests = map_mut(pod, "spec.resources.requests");
    for (k, q) in sums.into_iter().filter(|(k, _)| matches!(k.as_str(), "cpu" | "memory")) {
        requests.entry(k).or_insert_with(|| q.to_string().into());
    }
    for (k, v) in limits.into_iter().filter(|(k, _)| pod_level_resource(k)) {
        requests.entry(k).or_insert(v);
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(pod: &Value) -> &'static str {
    let own = pod.at("spec.resources");
    if !own.is_empty_at("requests") || !own.is_empty_at("limits") {
        return requirements_class(own);
    }
    let all = pod.list("spec.initContainers").iter().chain(pod.list("spec.containers"));
    let mut classes = all.map(|c| requirements_class(c.at("resources")));
    let first = classes.next().unwrap_or("BestEffort");
    if classes.all(|c| c == first) { first } else { "Burstable" }
}

fn requirements_class(r: &Value) -> &'static str {
    let class = |name: &str| {
        let (request, limit) = (amount(r.entry("requests", name)), amount(r.entry("limits", name)));
        match request == limit {
            false => "Burstable",
            true if request.is_zero() => "BestEffort",
            true => "Guaranteed",
        }
    };
    let (cpu, memory) = (class("cpu"), class("memory"));
    if cpu == memory { cpu } else { "Burstable" }
}

pub use pod_update::{binding as validate_binding, log_options as validate_log_options};

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_api::UserInfo;

    #[test]
    fn classes_of_service() {
        let pod = |rs: &[Value]| json!({"spec": {"containers": rs.iter().map(|r| json!({"resources": r})).collect::<Vec<_>>()}});
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let full = json!({"requests": both, "limits": both});
        for (pod, want) in [
            (pod(&[json!({})]), "BestEffort"),
            (pod(std::slice::from_ref(&full)), "Guaranteed"),
            (pod(&[full.clone(), json!({})]), "Burstable"),
            (pod(&[json!({"requests": {"cpu": "1"}})]), "Burstable"),
            (pod(&[json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1000m"}})]), "Burstable"),
            (json!({"spec": {"containers": [{}], "resources": full}}), "Guaranteed"),
        ] {
            assert_eq!(qos_class(&pod), want, "{pod}");
        }
    }

    #[test]
    fn grace_periods() {
        let on = |phase: &str, period: i64| json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": period}, "status": {"phase": phase}});
        for (pod, asked, want) in [
            (on("Running", 30), None, 30),
            (on("Running", 30), Some(5), 5),
            (on("Running", 30), Some(-5), 1),
            (on("Failed", 30), None, 0),
            (json!({"spec": {"terminationGracePeriodSeconds": 30}}), None, 0),
        ] {
            assert_eq!(grace(&pod, asked), Some(want), "{pod}");
        }
    }

    #[test]
    fn a_new_pod_and_an_update() {
        let user = UserInfo::default();
        let mut ctx = Ctx { now: jiff::Timestamp::UNIX_EPOCH, user: &user, subresource: "", dry_run: false };
        let mut pod = json!({
            "metadata": {"name": "p", "labels": {"rev": "3"}},
            "spec": {"schedulingGates": [{"name": "a"}], "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
                "topologySpreadConstraints": [{"matchLabelKeys": ["rev"], "labelSelector": {}}]},
            "status": {"phase": "Running"},
        });
        prepare_create(&ctx, &mut pod);
        assert_eq!((pod.text("status.phase"), pod.text("status.qosClass")), ("Pending", "Burstable"));
        assert_eq!(pod.list("status.conditions")[0]["reason"], "SchedulingGated");
        assert_eq!(
            pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchExpressions"][0]["values"],
            json!(["3"])
        );
        ctx.subresource = "resize";
        let mut new = pod.clone();
        new["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "2"}});
        new["spec"]["containers"][0]["image"] = "other".into();
        prepare_update(&ctx, &mut new, &pod);
        assert_eq!(new["spec"]["containers"][0], json!({"name": "c", "resources": {"requests": {"cpu": "2"}}}));
        ctx.subresource = "status";
        let mut new = json!({"metadata": {}, "spec": {}, "status": {"phase": "Running"}});
        prepare_update(&ctx, &mut new, &pod);
        assert_eq!(
            (new.text("status.phase"), new.text("status.qosClass"), &new["spec"]),
            ("Running", "Burstable", &pod["spec"])
        );
    }
}
