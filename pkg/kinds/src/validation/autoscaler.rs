//! Validation of HorizontalPodAutoscalers (autoscaling/v2; v1 is converted before).

use super::check::{dns_label, invalid_each, non_negative, one_of_if_set, supported};
use super::resources::{amount, container_resource_name, non_negative_quantity};
use crate::access::Access;
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, GroupVersion, Path};
use serde_json::Value;

const TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];

pub fn create(h: &Value) -> FieldErrors {
    check(h, Group::of(h, None))
}

pub fn update(new: &Value, old: &Value) -> FieldErrors {
    check(new, Group::of(new, Some(old)))
}

/// What is asked of a reference's `apiVersion`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    /// It names a group.
    Needed,
    /// The core group, without a name, will do.
    Optional,
    /// It was there before.
    Unchecked,
}

impl Group {
    fn of(new: &Value, old: Option<&Value>) -> Self {
        let target = |h: &Value| {
            let r = h.at("spec.scaleTargetRef");
            (r.text("apiVersion").to_owned(), r.text("kind").to_owned())
        };
        match old {
            Some(old) if target(old) == target(new) => Group::Unchecked,
            _ if target(new).1 == "ReplicationController" => Group::Optional,
            _ => Group::Needed,
        }
    }
}

fn check(h: &Value, group: Group) -> FieldErrors {
    let (spec, p) = (h.at("spec"), Path::new("spec"));
    let (min, max, mp) = (spec.int("minReplicas"), spec.int_or("maxReplicas", 0), p.child("maxReplicas"));
    let mut errs = Vec::new();
    if let Some(n) = min.filter(|n| *n < 0) {
        let m = "must be greater than or equal to 0";
        errs.push(FieldError::invalid(&p.child("minReplicas"), n, m).declared());
    }
    match max {
        0 => errs.push(FieldError::required(&mp, "").declared()),
        n if n < 0 => errs.push(FieldError::invalid(&mp, n, "must be greater than or equal to 1").declared()),
        _ => {}
    }
    if min.is_some_and(|n| max < n) {
        errs.push(FieldError::invalid(&mp, max, "must be greater than or equal to `minReplicas`"));
    }
    errs.extend(reference(spec.at("scaleTargetRef"), group, &p.child("scaleTargetRef")));
    for (i, m) in spec.list("metrics").iter().enumerate() {
        errs.extend(metric(m, &p.child("metrics").index(i)));
    }
    // What runs nothing has no use of resources to go by.
    if min == Some(0) && !spec.list("metrics").iter().any(|m| matches!(m.text("type"), "Object" | "External")) {
        let m = "must specify at least one Object or External metric to support scaling to zero replicas";
        errs.push(FieldError::forbidden(&p.child("metrics"), m));
    }
    for f in ["scaleUp", "scaleDown"] {
        let r = spec.at("behavior").at(f);
        if !r.is_null() {
            errs.extend(scaling_rules(r, &p.child("behavior").child(f)));
        }
    }
    errs
}

pub fn status(h: &Value, _: &Value) -> FieldErrors {
    non_negative(h.at("status"), &["currentReplicas", "desiredReplicas"], &Path::new("status"))
}

fn reference(r: &Value, group: Group, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for f in ["kind", "name"] {
        match r.text(f) {
            "" => errs.push(FieldError::required(&path.child(f), "")),
            v => errs.extend(invalid_each(&path.child(f), v, names::path_segment_name(v))),
        }
    }
    let api = r.text("apiVersion");
    let wrong = match GroupVersion::parse(api) {
        _ if group == Group::Unchecked => None,
        None if !api.is_empty() => Some(format!("unexpected GroupVersion string: {api}")),
        gv if group == Group::Needed && gv.as_ref().is_none_or(|gv| gv.group.is_empty()) => {
            Some("apiVersion must specify API group".to_owned())
        }
        _ => None,
    };
    errs.extend(wrong.map(|m| FieldError::invalid(&path.child("apiVersion"), api, m)));
    errs
}

fn scaling_rules(r: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let p = path.child("stabilizationWindowSeconds");
    match r.int("stabilizationWindowSeconds") {
        Some(n) if n < 0 => errs.push(FieldError::invalid(&p, n, "must be greater than or equal to zero")),
        Some(n) if n > 3600 => errs.push(FieldError::invalid(&p, n, "must be less than or equal to 3600")),
        _ => {}
    }
    errs.extend(one_of_if_set(r, "selectPolicy", &["Disabled", "Max", "Min"], path));
    let (list, p) = (r.list("policies"), path.child("policies"));
    if list.is_empty() {
        errs.push(FieldError::required(&p, "must specify at least one Policy"));
    }
    for (i, policy) in list.iter().enumerate() {
        let p = p.index(i);
        errs.extend(supported(policy.text("type"), &["Percent", "Pods"], &p.child("type")));
        for f in ["value", "periodSeconds"] {
            let n = policy.int_or(f, 0);
            if n <= 0 {
                errs.push(FieldError::invalid(&p.child(f), n, "must be greater than zero"));
            }
            if f == "periodSeconds" && n > 1800 {
                errs.push(FieldError::invalid(&p.child(f), n, "must be less than or equal to 1800"));
            }
        }
    }
    if r.has("tolerance") {
        errs.extend(non_negative_quantity(r.at("tolerance"), &path.child("tolerance")));
    }
    errs
}

fn metric(m: &Value, path: &Path) -> FieldErrors {
    let (kind, p) = (m.text("type"), path.child("type"));
    let mut errs = Vec::new();
    if kind.is_empty() {
        errs.push(FieldError::required(&p, "must specify a metric source type"));
    }
    if !TYPES.contains(&kind) {
        errs.push(FieldError::not_supported(&p, kind, &TYPES));
    }
    let present: Vec<&str> =
        ["object", "external", "pods", "resource", "containerResource"].into_iter().filter(|f| m.has(f)).collect();
    if let Some(f) = present.first() {
        errs.extend(source(f, m.at(f), &path.child(f)));
    }
    let expected = match kind {
        "Object" => "object",
        "Pods" => "pods",
        "Resource" => "resource",
        "External" => "external",
        "ContainerResource" => "containerResource",
        _ => "",
    };
    if !expected.is_empty() && !m.has(expected) {
        let why = "must populate information for the given metric source";
        errs.push(FieldError::required(&path.child(expected), why));
    }
    if present.len() != 1 {
        for f in present.iter().filter(|f| **f != expected) {
            errs.push(FieldError::forbidden(&path.child(f), "must populate the given metric source only"));
        }
    }
    errs
}

fn source(kind: &str, s: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let (target, tp) = (s.at("target"), path.child("target"));
    if kind == "object" {
        errs.extend(reference(s.at("describedObject"), Group::Optional, &path.child("describedObject")));
    }
    if matches!(kind, "object" | "external" | "pods") {
        let p = path.child("metric").child("name");
        match s.text("metric.name") {
            "" => errs.push(FieldError::required(&p, "must specify a metric name")),
            name => errs.extend(invalid_each(&p, name, names::path_segment_name(name))),
        }
    } else {
        let p = path.child("name");
        match s.text("name") {
            "" => errs.push(FieldError::required(&p, "must specify a resource name")),
            name if kind == "containerResource" => errs.extend(container_resource_name(name, &p)),
            _ => {}
        }
    }
    if kind == "containerResource" {
        let p = path.child("container");
        match s.text("container") {
            "" => errs.push(FieldError::required(&p, "must specify a container")),
            name => errs.extend(dns_label(name, &p)),
        }
    }
    errs.extend(metric_target(target, &tp));
    let has = |f: &str| target.has(f);
    let average = tp.child("averageValue");
    match kind {
        "object" if !has("value") && !has("averageValue") => {
            errs.push(FieldError::required(&average, "must set either a target value or averageValue"));
        }
        "external" if !has("value") && !has("averageValue") => {
            let m = "must set either a target value for metric or a per-pod target";
            errs.push(FieldError::required(&average, m));
        }
        "external" if has("value") && has("averageValue") => {
            let m = "may not set both a target value for metric and a per-pod target";
            errs.push(FieldError::forbidden(&tp.child("value"), m));
        }
        "pods" if !has("averageValue") => {
            errs.push(FieldError::required(&average, "must specify a positive target averageValue"));
        }
        "resource" | "containerResource" => match (has("averageUtilization"), has("averageValue")) {
            (false, false) => {
                let m = "must set either a target raw value or a target utilization";
                errs.push(FieldError::required(&tp.child("averageUtilization"), m));
            }
            (true, true) => {
                let m = "may not set both a target raw value and a target utilization";
                errs.push(FieldError::forbidden(&average, m));
            }
            _ => {}
        },
        _ => {}
    }
    errs
}

fn metric_target(t: &Value, path: &Path) -> FieldErrors {
    let (kind, p) = (t.text("type"), path.child("type"));
    let mut errs = Vec::new();
    if kind.is_empty() {
        errs.push(FieldError::required(&p, "must specify a metric target type"));
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        errs.push(FieldError::invalid(&p, kind, "must be either Utilization, Value, or AverageValue"));
    }
    for f in ["value", "averageValue"] {
        if t.has(f) && amount(t.at(f)).sign() != 1 {
            errs.push(FieldError::invalid(&path.child(f), t.at(f).clone(), "must be positive"));
        }
    }
    if let Some(n) = t.int("averageUtilization").filter(|n| *n < 1) {
        errs.push(FieldError::invalid(&path.child("averageUtilization"), n, "must be greater than 0"));
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn say(v: Value) -> Vec<String> {
        create(&json!({ "spec": v })).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn autoscalers() {
        let target = json!({"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"});
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
        assert_eq!(
            say(json!({"minReplicas": 1, "maxReplicas": 3, "scaleTargetRef": target, "metrics": [cpu]})),
            [""; 0]
        );
        assert_eq!(
            say(json!({"minReplicas": 5, "maxReplicas": 3, "scaleTargetRef": target})),
            ["spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"]
        );
        assert_eq!(
            say(json!({"maxReplicas": 3, "scaleTargetRef": {}})),
            [
                "spec.scaleTargetRef.kind: Required value",
                "spec.scaleTargetRef.name: Required value",
                "spec.scaleTargetRef.apiVersion: Invalid value: \"\": apiVersion must specify API group"
            ]
        );
        assert_eq!(
            say(json!({"maxReplicas": 3, "scaleTargetRef": target, "metrics": [{"type": "Pods"}]})),
            ["spec.metrics[0].pods: Required value: must populate information for the given metric source"]
        );
    }
}
