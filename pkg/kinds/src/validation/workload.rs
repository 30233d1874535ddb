//! Validation of replicated workloads: selectors, strategies, templates, and what may change.

use super::check::{at_most_100_percent, child, dns_label, int_or_percent, non_negative, percent_value, supported};
use super::{claim, pod};
use crate::access::{self, Access};
use crate::metadata::{immutable, label_selector};
use isopod_api::selector::LabelSelector;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::{Value, json};

fn spec_path() -> Path {
    Path::new("spec")
}

fn matches(selector: &LabelSelector, labels: &Value) -> bool {
    let empty = serde_json::Map::new();
    selector.matches(labels.as_object().unwrap_or(&empty))
}

/// A selector that says something; `noun` names the kind in upstream's message.
fn selector(spec: &Value, noun: &str, path: &Path) -> FieldErrors {
    let (s, p) = (spec.at("selector"), path.child("selector"));
    if s.is_null() {
        return vec![FieldError::required(&p, "")];
    }
    let mut errs = label_selector(s, &p);
    if s.is_empty_at("matchLabels") && s.is_empty_at("matchExpressions") {
        let m = format!("empty selector is invalid for {noun}");
        errs.push(FieldError::invalid(&p, s.clone(), m));
    }
    errs
}

/// The template of something that keeps pods running; `noun` as in "… in ReplicaSet is not Supported".
fn running_template(t: &Value, noun: &str, path: &Path) -> FieldErrors {
    let mut errs = pod::template(t, path);
    errs.extend(always_restarts(t, noun, path));
    errs
}

fn always_restarts(t: &Value, noun: &str, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let policy = t.text("spec.restartPolicy");
    if policy != "Always" {
        errs.push(FieldError::not_supported(&child(path, "spec.restartPolicy"), policy, &["Always"]));
    }
    if t.has("spec.activeDeadlineSeconds") {
        let m = format!("activeDeadlineSeconds in {noun} is not Supported");
        errs.push(FieldError::forbidden(&child(path, "spec.activeDeadlineSeconds"), m));
    }
    errs
}

fn selects_template(s: &Value, t: &Value, path: &Path) -> FieldErrors {
    let labels = t.at("metadata.labels");
    match LabelSelector::from_object((!s.is_null()).then_some(s)) {
        Err(_) => Vec::new(),
        Ok(sel) if sel.is_everything() || matches(&sel, labels) => Vec::new(),
        Ok(_) => {
            let m = "`selector` does not match template `labels`";
            vec![FieldError::invalid(&child(path, "metadata.labels"), labels.clone(), m)]
        }
    }
}

fn replica_template(spec: &Value, path: &Path) -> FieldErrors {
    let (s, t, p) = (spec.at("selector"), spec.at("template"), path.child("template"));
    if LabelSelector::from_object((!s.is_null()).then_some(s)).is_err() {
        return vec![FieldError::invalid(&path.child("selector"), s.clone(), "invalid label selector")];
    }
    // A selector that is missing matches nothing, and is an error of its own already.
    let mut errs = if s.is_null() { mismatch_of_nothing(t, &p) } else { selects_template(s, t, &p) };
    errs.extend(running_template(t, "ReplicaSet", &p));
    errs
}

fn mismatch_of_nothing(t: &Value, path: &Path) -> FieldErrors {
    let m = "`selector` does not match template `labels`";
    vec![FieldError::invalid(&child(path, "metadata.labels"), t.at("metadata.labels").clone(), m)]
}

pub fn replica_set(new: &Value) -> FieldErrors {
    let (spec, path) = (new.at("spec"), spec_path());
    let mut errs = non_negative(spec, &["replicas", "minReadySeconds"], &path);
    errs.extend(selector(spec, "deployment", &path));
    errs.extend(replica_template(spec, &path));
    errs
}

pub fn replica_set_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = replica_set(new);
    errs.extend(immutable(new.at("spec"), old.at("spec"), "selector", &spec_path()));
    errs
}

/// Counts of a status: none negative, none of `parts` above `status.replicas`.
fn counts(status: &Value, fields: &[&str], parts: &[&str], ready: &str) -> FieldErrors {
    let path = Path::new("status");
    let mut errs = non_negative(status, fields, &path);
    let total = status.int_or("replicas", 0);
    for f in parts {
        let n = status.int_or(f, 0);
        if n > total {
            errs.push(FieldError::invalid(&path.child(f), n, "cannot be greater than status.replicas"));
        }
    }
    let available = status.int_or("availableReplicas", 0);
    if available > status.int_or("readyReplicas", 0) {
        let m = format!("cannot be greater than {ready}");
        errs.push(FieldError::invalid(&path.child("availableReplicas"), available, m));
    }
    errs
}

fn collisions(new: &Value, old: &Value) -> FieldErrors {
    let (n, o) = (new.int("status.collisionCount"), old.int("status.collisionCount"));
    if o.is_some_and(|o| n.is_none_or(|n| n < o)) {
        let p = Path::new("status").child("collisionCount");
        return vec![FieldError::invalid(&p, n.unwrap_or(0), "cannot be decremented")];
    }
    Vec::new()
}

pub fn replica_set_status(new: &Value, _: &Value) -> FieldErrors {
    let fields = [
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "observedGeneration",
        "terminatingReplicas",
    ];
    let parts = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
    counts(new.at("status"), &fields, &parts, "readyReplicas")
}

fn int_or_percent_is_zero(v: &Value) -> bool {
    percent_value(v).or_else(|| v.as_i64()).unwrap_or(0) == 0
}

fn strategy(s: &Value, path: &Path) -> FieldErrors {
    let (r, p) = (s.at("rollingUpdate"), path.child("rollingUpdate"));
    match s.text("type") {
        "Recreate" if !r.is_null() => {
            vec![FieldError::forbidden(&p, "may not be specified when strategy `type` is 'Recreate'")]
        }
        "Recreate" => Vec::new(),
        "RollingUpdate" if r.is_null() => {
            vec![FieldError::required(&p, "this should be defaulted and never be nil")]
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (r.at("maxUnavailable"), r.at("maxSurge"));
            let up = p.child("maxUnavailable");
            let mut errs = int_or_percent(unavailable, &up);
            errs.extend(int_or_percent(surge, &p.child("maxSurge")));
            if int_or_percent_is_zero(unavailable) && int_or_percent_is_zero(surge) {
                errs.push(FieldError::invalid(&up, unavailable.clone(), "may not be 0 when `maxSurge` is 0"));
            }
            errs.extend(at_most_100_percent(unavailable, &up));
            errs
        }
        _ => {
            vec![FieldError::not_supported(path, s.clone(), &["Recreate", "RollingUpdate"])]
        }
    }
}

pub fn deployment(new: &Value) -> FieldErrors {
    let (spec, path) = (new.at("spec"), spec_path());
    let mut errs = non_negative(spec, &["replicas"], &path);
    errs.extend(selector(spec, "deployment", &path));
    errs.extend(replica_template(spec, &path));
    errs.extend(strategy(spec.at("strategy"), &path.child("strategy")));
    errs.extend(non_negative(spec, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], &path));
    if let Some(n) = spec.int("progressDeadlineSeconds").filter(|n| *n <= spec.int_or("minReadySeconds", 0)) {
        let m = "must be greater than minReadySeconds";
        errs.push(FieldError::invalid(&path.child("progressDeadlineSeconds"), n, m));
    }
    errs
}

pub fn deployment_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = deployment(new);
    errs.extend(immutable(new.at("spec"), old.at("spec"), "selector", &spec_path()));
    errs
}

pub fn deployment_status(new: &Value, old: &Value) -> FieldErrors {
    let fields = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "terminatingReplicas",
        "collisionCount",
    ];
    let parts = ["updatedReplicas", "readyReplicas", "availableReplicas"];
    let mut errs = counts(new.at("status"), &fields, &parts, "readyReplicas");
    errs.extend(collisions(new, old));
    errs
}

pub fn daemon_set(new: &Value) -> FieldErrors {
    let (spec, path) = (new.at("spec"), spec_path());
    let s = spec.at("selector");
    let mut errs = label_selector(s, &path.child("selector"));
    let t = path.child("template");
    errs.extend(if s.is_null() {
        mismatch_of_nothing(spec.at("template"), &t)
    } else {
        selects_template(s, spec.at("template"), &t)
    });
    if !s.is_null() && s.is_empty_at("matchLabels") && s.is_empty_at("matchExpressions") {
        let m = "empty selector is invalid for daemonset";
        errs.push(FieldError::invalid(&path.child("selector"), s.clone(), m));
    }
    errs.extend(running_template(spec.at("template"), "DaemonSet", &t));
    errs.extend(non_negative(spec, &["minReadySeconds"], &path));
    errs.extend(daemon_strategy(spec.at("updateStrategy"), &path.child("updateStrategy")));
    errs.extend(non_negative(spec, &["revisionHistoryLimit"], &path));
    errs
}

fn daemon_strategy(s: &Value, path: &Path) -> FieldErrors {
    let (r, p) = (s.at("rollingUpdate"), path.child("rollingUpdate"));
    match s.text("type") {
        "OnDelete" => Vec::new(),
        "RollingUpdate" if r.is_null() => vec![FieldError::required(&p, "")],
        "RollingUpdate" => {
            let (unavailable, surge) = (r.at("maxUnavailable"), r.at("maxSurge"));
            let (up, sp) = (p.child("maxUnavailable"), p.child("maxSurge"));
            let mut errs = int_or_percent(unavailable, &up);
            errs.extend(int_or_percent(surge, &sp));
            errs.extend(at_most_100_percent(unavailable, &up));
            errs.extend(at_most_100_percent(surge, &sp));
            match (int_or_percent_is_zero(unavailable), int_or_percent_is_zero(surge)) {
                (false, false) => {
                    let m = "may not be set when maxUnavailable is non-zero";
                    errs.push(FieldError::invalid(&sp, surge.clone(), m));
                }
                (true, true) => errs.push(FieldError::required(&up, "cannot be 0 when maxSurge is 0")),
                _ => {}
            }
            errs
        }
        _ => {
            vec![FieldError::not_supported(path, s.clone(), &["RollingUpdate", "OnDelete"])]
        }
    }
}

pub fn daemon_set_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = immutable(new.at("spec"), old.at("spec"), "selector", &spec_path());
    errs.extend(daemon_set(new));
    errs
}

pub fn daemon_set_status(new: &Value, old: &Value) -> FieldErrors {
    let fields = [
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ];
    let mut errs = non_negative(new.at("status"), &fields, &Path::new("status"));
    errs.extend(collisions(new, old));
    errs
}

pub fn stateful_set(new: &Value) -> FieldErrors {
    let (spec, path) = (new.at("spec"), spec_path());
    let mut errs = Vec::new();
    let p = path.child("podManagementPolicy");
    match spec.text("podManagementPolicy") {
        "" => errs.push(FieldError::required(&p, "")),
        "OrderedReady" | "Parallel" => {}
        v => errs.push(FieldError::invalid(&p, v, "must be 'OrderedReady' or 'Parallel'")),
    }
    errs.extend(stateful_strategy(spec.at("updateStrategy"), &path.child("updateStrategy")));
    for f in ["whenDeleted", "whenScaled"] {
        let p = path.child("persistentVolumeClaimRetentionPolicy");
        let r = spec.at("persistentVolumeClaimRetentionPolicy");
        if !r.is_null() {
            errs.extend(supported(r.text(f), &["Retain", "Delete"], &p.child(f)));
        }
    }
    for (i, c) in spec.list("volumeClaimTemplates").iter().enumerate() {
        let p = path.child("volumeClaimTemplates").index(i).child("spec");
        errs.extend(claim::claim_spec(c.at("spec"), &p));
    }
    errs.extend(non_negative(spec, &["replicas", "minReadySeconds"], &path));
    errs.extend(non_negative(spec, &["ordinals.start"], &path));
    if !spec.text("serviceName").is_empty() {
        errs.extend(dns_label(spec.text("serviceName"), &path.child("serviceName")));
    }
    errs.extend(selector(spec, "statefulset", &path));
    let (s, t) = (spec.at("selector"), path.child("template"));
    if LabelSelector::from_object((!s.is_null()).then_some(s)).is_err() {
        errs.push(FieldError::invalid(&path.child("selector"), s.clone(), ""));
    } else {
        let template = stateful_template(spec);
        errs.extend(if s.is_null() { mismatch_of_nothing(&template, &t) } else { selects_template(s, &template, &t) });
        errs.extend(pod::template(&template, &t));
    }
    errs.extend(always_restarts(spec.at("template"), "StatefulSet", &t));
    errs
}

/// The template with the claims' volumes, and without the names that the controller sets.
fn stateful_template(spec: &Value) -> Value {
    let mut t = spec.at("template").clone();
    access::unset(&mut t, "spec.subdomain");
    access::unset(&mut t, "spec.hostname");
    let named = spec.list("volumeClaimTemplates").iter().map(|c| c.text("metadata.name"));
    let claims: std::collections::BTreeSet<&str> = named.collect();
    if !claims.is_empty() {
        let own = t.list("spec.volumes").iter().filter(|v| !claims.contains(&v.text("name"))).cloned();
        let volumes = claims.iter().map(|n| json!({"name": n, "persistentVolumeClaim": {"claimName": n}}));
        let all: Vec<Value> = volumes.chain(own).collect();
        access::set(&mut t, "spec.volumes", all);
    }
    t
}

fn stateful_strategy(s: &Value, path: &Path) -> FieldErrors {
    let (r, p) = (s.at("rollingUpdate"), path.child("rollingUpdate"));
    match s.text("type") {
        "" => vec![FieldError::required(path, "")],
        "OnDelete" if !r.is_null() => {
            vec![FieldError::invalid(&p, r.clone(), "only allowed for updateStrategy 'RollingUpdate'")]
        }
        "OnDelete" => Vec::new(),
        "RollingUpdate" => {
            let mut errs = non_negative(r, &["partition"], &p);
            if r.has("maxUnavailable") {
                let (v, p) = (r.at("maxUnavailable"), p.child("maxUnavailable"));
                errs.extend(int_or_percent(v, &p));
                if int_or_percent_is_zero(v) {
                    errs.push(FieldError::invalid(&p, v.clone(), "cannot be 0"));
                }
                errs.extend(at_most_100_percent(v, &p));
            }
            errs
        }
        _ => {
            let m = "must be 'RollingUpdate' or 'OnDelete'";
            vec![FieldError::invalid(path, s.clone(), m)]
        }
    }
}

pub fn stateful_set_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = stateful_set(new);
    for f in ["selector", "volumeClaimTemplates", "serviceName", "podManagementPolicy"] {
        errs.extend(immutable(new.at("spec"), old.at("spec"), f, &spec_path()));
    }
    errs
}

pub fn stateful_set_status(new: &Value, old: &Value) -> FieldErrors {
    let fields = [
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
        "observedGeneration",
        "collisionCount",
    ];
    let parts = ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
    let mut errs = counts(new.at("status"), &fields, &parts, "status.readyReplicas");
    errs.extend(collisions(new, old));
    errs
}

pub fn replication_controller(new: &Value) -> FieldErrors {
    let (spec, path) = (new.at("spec"), spec_path());
    let mut errs = non_negative(spec, &["minReadySeconds"], &path);
    if spec.is_empty_at("selector") {
        errs.push(FieldError::required(&path.child("selector"), ""));
    }
    if spec.has("replicas") {
        errs.extend(non_negative(spec, &["replicas"], &path));
    } else {
        errs.push(FieldError::required(&path.child("replicas"), ""));
    }
    let (t, p) = (spec.at("template"), path.child("template"));
    if t.is_null() {
        errs.push(FieldError::required(&p, ""));
        return errs;
    }
    errs.extend(selects_template(&json!({"matchLabels": spec.at("selector")}), t, &p));
    errs.extend(running_template(t, "ReplicationController", &p));
    errs
}

pub fn revision(new: &Value) -> FieldErrors {
    let mut errs = non_negative(new, &["revision"], &Path::root());
    match new.at("data") {
        Value::Null => errs.push(FieldError::required(&Path::new("data"), "data is mandatory")),
        Value::Object(_) => {}
        _ => errs.push(FieldError::required(&Path::new("data"), "data must be a valid JSON object")),
    }
    errs
}

pub fn revision_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = non_negative(new, &["revision"], &Path::root());
    errs.extend(immutable(new, old, "data", &Path::root()));
    errs
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn valid() -> Value {
        json!({"metadata": {"name": "d"}, "spec": {
            "replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30, "securityContext": {},
                "containers": [{"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]}},
        }})
    }

    fn with(path: &str, v: Value) -> Value {
        let mut d = valid();
        access::set(&mut d, path, v);
        d
    }

    fn say(errs: FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn deployments() {
        assert_eq!(say(deployment(&valid())), [""; 0]);
        assert_eq!(say(replica_set(&valid())), [""; 0]);
        let table = [
            ("spec.replicas", json!(-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
            (
                "spec.selector",
                json!({"matchLabels": {"x": "y"}}),
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
            ),
            ("spec.selector", Value::Null, "spec.selector: Required value"),
            ("spec.selector", json!({}), "spec.selector: Invalid value: {}: empty selector is invalid for deployment"),
            (
                "spec.strategy.rollingUpdate",
                json!({"maxSurge": 0, "maxUnavailable": 0}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ),
            (
                "spec.template.spec.restartPolicy",
                json!("Never"),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                "spec.progressDeadlineSeconds",
                json!(0),
                "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds",
            ),
        ];
        for (path, v, want) in table {
            assert_eq!(say(deployment(&with(path, v.clone()))).first().map(String::as_str), Some(want), "{path} {v}");
        }
        let new = with("spec.selector", json!({"matchLabels": {"a": "b", "c": "d"}}));
        let errs = say(deployment_update(&new, &valid()));
        assert_eq!(
            errs.last().unwrap(),
            "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"c\":\"d\"}}: field is immutable"
        );
        let status = json!({"status": {"replicas": 1, "readyReplicas": 2}});
        assert_eq!(
            say(deployment_status(&status, &json!({}))),
            ["status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"]
        );
    }

    #[test]
    fn stateful_sets_and_daemon_sets() {
        let mut s = valid();
        access::set(&mut s, "spec.podManagementPolicy", "OrderedReady");
        access::set(&mut s, "spec.updateStrategy", json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}));
        access::set(
            &mut s,
            "spec.template.spec.containers",
            json!([{"name": "c", "image": "i", "imagePullPolicy": "Always",
            "terminationMessagePolicy": "File", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]),
        );
        access::set(
            &mut s,
            "spec.volumeClaimTemplates",
            json!([{"metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]),
        );
        assert_eq!(say(stateful_set(&s)), [""; 0]);
        let mut other = s.clone();
        access::set(&mut other, "spec.serviceName", "x");
        assert_eq!(
            say(stateful_set_update(&other, &s)),
            ["spec.serviceName: Invalid value: \"x\": field is immutable"]
        );
        let mut d = valid();
        access::set(
            &mut d,
            "spec.updateStrategy",
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 0}}),
        );
        assert_eq!(
            say(daemon_set(&d)),
            ["spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"]
        );
    }
}
