//! ResourceQuotas and LimitRanges.

use crate::access::{Access, set};
use crate::metadata::IMMUTABLE;
use crate::strategy::{PLAIN, STATELESS, Strategy};
use crate::validation::check::qualified_name;
use crate::validation::resources::{
    amount, container_resource_name, overcommit_allowed, quota_resource_name, resource_name, resource_value,
};
use isopod_api::quantity::{Format, Quantity};
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;
use std::collections::BTreeSet;

pub const QUOTA: Strategy = Strategy {
    generation: false,
    create: quota,
    update: quota_update,
    update_status: |new, _| {
        let p = Path::new("status");
        let mut errs = amounts(new.at("status.hard"), &p.child("hard"));
        errs.extend(amounts(new.at("status.used"), &p.child("used")));
        errs
    },
    ..PLAIN
};

pub const LIMIT_RANGE: Strategy = Strategy {
    create_on_update: true,
    // It may come without a name.
    prepare_create: |_, new| {
        if new.text("metadata.name").is_empty() {
            let uid = new.text("metadata.uid").to_owned();
            set(new, "metadata.name", uid);
        }
    },
    create: limit_range,
    update: |new, _| limit_range(new),
    ..STATELESS
};

fn amounts(list: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (k, v) in list.entries("") {
        errs.extend(quota_resource_name(k, &path.key(k)));
        errs.extend(resource_value(k, v, &path.key(k)));
    }
    errs
}

const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

fn scope_counts(scope: &str, resource: &str) -> bool {
    let compute = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory", "pods"];
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => compute.contains(&resource),
    }
}

fn quota(q: &Value) -> FieldErrors {
    let (spec, p) = (q.at("spec"), Path::new("spec"));
    let mut errs = amounts(spec.at("hard"), &p.child("hard"));
    let hard: Vec<&str> = spec.entries("hard").into_iter().map(|(k, _)| k).collect();
    let sp = p.child("scopes");
    let shown = || spec.at("scopes").clone();
    let scopes = spec.texts("scopes");
    for s in &scopes {
        if !SCOPES.contains(s) {
            errs.push(FieldError::invalid(&sp, shown(), "unsupported scope"));
        }
        for _ in hard.iter().filter(|r| !r.contains('/') && !scope_counts(s, r)) {
            errs.push(FieldError::invalid(&sp, shown(), "unsupported scope applied to resource"));
        }
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|s| scopes.contains(s)) {
            errs.push(FieldError::invalid(&sp, shown(), "conflicting scopes"));
        }
    }
    errs.extend(scope_selector(spec, &hard, &p.child("scopeSelector").child("matchExpressions")));
    errs
}

fn scope_selector(spec: &Value, hard: &[&str], path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for r in spec.list("scopeSelector.matchExpressions") {
        let (scope, op, values) = (r.text("scopeName"), r.text("operator"), r.list("values"));
        if !SCOPES.contains(&scope) {
            errs.push(FieldError::invalid(&path.child("scopeName"), scope, "unsupported scope"));
        }
        for _ in hard.iter().filter(|h| !h.contains('/') && !scope_counts(scope, h)) {
            let m = "unsupported scope applied to resource";
            errs.push(FieldError::invalid(path, spec.at("scopeSelector").clone(), m));
        }
        if !matches!(scope, "PriorityClass" | "VolumeAttributesClass") && SCOPES.contains(&scope) && op != "Exists" {
            let m = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errs.push(FieldError::invalid(&path.child("operator"), op, m));
        }
        match op {
            "In" | "NotIn" if values.is_empty() => {
                let m = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errs.push(FieldError::required(&path.child("values"), m));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let m = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errs.push(FieldError::invalid(&path.child("values"), r.at("values").clone(), m));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errs.push(FieldError::invalid(&path.child("operator"), op, "not a valid selector operator")),
        }
    }
    errs
}

fn quota_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = quota(new);
    let scopes = |q: &Value| -> BTreeSet<String> { q.texts("spec.scopes").into_iter().map(str::to_owned).collect() };
    if scopes(new) != scopes(old) {
        errs.push(FieldError::invalid(&Path::new("spec").child("scopes"), new.at("spec.scopes").clone(), IMMUTABLE));
    }
    errs
}

fn limit_range(l: &Value) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, item) in l.list("spec.limits").iter().enumerate() {
        let p = Path::new("spec").child("limits").index(i);
        let kind = item.text("type");
        let e = qualified_name(kind, &p.child("type"));
        if e.is_empty() && !kind.contains('/') && !["Pod", "Container", "PersistentVolumeClaim"].contains(&kind) {
            let m = "must be a standard limit type or fully qualified";
            errs.push(FieldError::invalid(&p.child("type"), kind, m));
        }
        errs.extend(e);
        if !seen.insert(kind) {
            errs.push(FieldError::duplicate(&p.child("type"), kind));
        }
        errs.extend(limit_item(item, kind, &p));
    }
    errs
}

fn limit_item(item: &Value, kind: &str, path: &Path) -> FieldErrors {
    let rule = if matches!(kind, "Pod" | "Container") { container_resource_name } else { resource_name };
    let mut errs = Vec::new();
    let mut keys: BTreeSet<&str> = BTreeSet::new();
    let defaults = ["default", "defaultRequest"];
    for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        if kind == "Pod" && defaults.contains(&list) {
            if !item.is_empty_at(list) {
                let m = "may not be specified when `type` is 'Pod'";
                errs.push(FieldError::forbidden(&path.child(list), m));
            }
            continue;
        }
        if list == "maxLimitRequestRatio"
            && kind == "PersistentVolumeClaim"
            && !item.has("min.storage")
            && !item.has("max.storage")
        {
            let m = "either minimum or maximum storage value is required, but neither was provided";
            errs.push(FieldError::required(&path.child("limits"), m));
        }
        for (k, _) in item.entries(list) {
            errs.extend(rule(k, &path.child(list).key(k)));
            keys.insert(k);
        }
    }
    errs.extend(keys.into_iter().flat_map(|k| limit_order(item, k, kind, path)));
    errs
}

/// min ≤ default request ≤ default ≤ max, for one resource.
fn limit_order(item: &Value, k: &str, kind: &str, path: &Path) -> FieldErrors {
    let get = |list: &str| {
        let skip = kind == "Pod" && list.starts_with("default");
        let v = item.entry(list, k);
        (!v.is_null() && !skip).then(|| amount(v))
    };
    let (min, max) = (get("min"), get("max"));
    let (default, request, ratio) = (get("default"), get("defaultRequest"), get("maxLimitRequestRatio"));
    let mut errs = Vec::new();
    let mut above =
        |a: &Option<Quantity>, b: &Option<Quantity>, shown: &Option<Quantity>, list: &str, text: [&str; 2]| {
            if let (Some(a), Some(b), Some(s)) = (a, b, shown)
                && a > b
            {
                let m = format!("{} {a} is greater than {} {b}", text[0], text[1]);
                errs.push(FieldError::invalid(&path.child(list).key(k), s.to_string(), m));
            }
        };
    above(&min, &max, &min, "min", ["min value", "max value"]);
    above(&min, &request, &request, "defaultRequest", ["min value", "default request value"]);
    above(&request, &max, &request, "defaultRequest", ["default request value", "max value"]);
    above(&request, &default, &request, "defaultRequest", ["default request value", "default limit value"]);
    above(&min, &default, &min, "default", ["min value", "default value"]);
    above(&default, &max, &max, "default", ["default value", "max value"]);
    if let Some(r) = &ratio {
        let p = path.child("maxLimitRequestRatio").key(k);
        if *r < Quantity::new(1, Format::DecimalSi) {
            errs.push(FieldError::invalid(&p, r.to_string(), format!("ratio {r} is less than 1")));
        }
        if let (Some(min), Some(max)) = (&min, &max) {
            let limit = max.as_f64() / min.as_f64();
            if r.as_f64() > limit {
                let m = format!("ratio {r} is greater than max/min = {limit:.6}");
                errs.push(FieldError::invalid(&p, r.to_string(), m));
            }
        }
    }
    if let (Some(d), Some(r), false) = (&default, &request, overcommit_allowed(k))
        && d != r
    {
        let m = format!("default value {d} must equal to defaultRequest value {r} in {k}");
        errs.push(FieldError::invalid(&path.child("defaultRequest").key(k), r.to_string(), m));
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn say(errs: FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn quotas_and_limits() {
        assert_eq!(
            say(quota(&json!({"spec": {"hard": {"pods": "10", "requests.cpu": "1", "count/deployments.apps": "2"}}}))),
            [""; 0]
        );
        assert_eq!(
            say(quota(&json!({"spec": {"hard": {"foo": "1"}}}))),
            [
                "spec.hard[foo]: Invalid value: \"foo\": must be a standard resource type or fully qualified",
                "spec.hard[foo]: Invalid value: \"foo\": must be a standard resource for quota"
            ]
        );
        let item = |v: Value| json!({"spec": {"limits": [v]}});
        assert_eq!(
            say(limit_range(&item(json!({"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1"}})))),
            [""; 0]
        );
        assert_eq!(
            say(limit_range(&item(json!({"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "2"}})))),
            ["spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"]
        );
        assert_eq!(
            say(limit_range(&item(json!({"type": "Pod", "default": {"cpu": "1"}})))),
            ["spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'"]
        );
    }
}
