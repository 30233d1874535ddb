//! Resource names and amounts: containers' requests and limits, pod-level resources, quotas, limit ranges.

use super::check::{child, dns_label, invalid_each};
use crate::access::Access;
use crate::metadata::NOT_NEGATIVE;
use isopod_api::names;
use isopod_api::quantity::Quantity;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;
use std::collections::BTreeSet;

const STANDARD: [&str; 18] = [
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
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
];
const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// The amount that a JSON string holds; zero where it holds none.
pub fn amount(v: &Value) -> Quantity {
    v.as_str().and_then(|s| Quantity::parse(s).ok()).unwrap_or_default()
}

pub fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

pub fn overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name)
        || matches!(name, "services.nodeports" | "services.loadbalancers")
        || is_huge_page(name)
        || name.starts_with("requests.hugepages-")
}

pub fn resource_name(name: &str, path: &Path) -> FieldErrors {
    let errs = invalid_each(path, name, names::qualified_name(name));
    if errs.is_empty() && !name.contains('/') && !is_standard(name) {
        return vec![FieldError::invalid(path, name, "must be a standard resource type or fully qualified")];
    }
    errs
}

pub fn container_resource_name(name: &str, path: &Path) -> FieldErrors {
    let mut errs = resource_name(name, path);
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge_page(name);
    if !name.contains('/') && !standard {
        errs.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
    } else if !is_native(name) && !is_extended(name) {
        errs.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
    }
    errs
}

fn pod_resource_name(name: &str, path: &Path) -> FieldErrors {
    let errs = resource_name(name, path);
    if errs.is_empty() && !matches!(name, "cpu" | "memory") && !is_huge_page(name) {
        return vec![FieldError::not_supported(path, name, &["cpu", "hugepages-", "memory"])];
    }
    errs
}

pub fn quota_resource_name(name: &str, path: &Path) -> FieldErrors {
    let mut errs = resource_name(name, path);
    let standard = (is_standard(name) && name != "storage") || name.starts_with("count/");
    if !name.contains('/') && !standard {
        errs.push(FieldError::invalid(path, name, "must be a standard resource for quota"));
    }
    errs
}

pub fn non_negative_quantity(v: &Value, path: &Path) -> FieldErrors {
    let q = amount(v);
    if q.sign() < 0 { vec![FieldError::invalid(path, q.to_string(), NOT_NEGATIVE)] } else { Vec::new() }
}

/// Not negative; whole where the resource is counted.
pub fn resource_value(name: &str, v: &Value, path: &Path) -> FieldErrors {
    let mut errs = non_negative_quantity(v, path);
    let q = amount(v);
    if (COUNTED.contains(&name) || is_extended(name)) && !q.is_whole_to_validation() {
        errs.push(FieldError::invalid(path, q.to_string(), "must be an integer"));
    }
    errs
}

fn huge_page_multiple(name: &str, q: &Quantity, path: &Path) -> FieldErrors {
    let Some(size) = name.strip_prefix("hugepages-") else { return Vec::new() };
    let whole = Quantity::parse(size).ok().filter(|s| s.sign() > 0 && s.milli_value() % 1000 == 0);
    if whole.is_some_and(|s| q.value() % s.value() == 0) {
        return Vec::new();
    }
    let m = format!("{q} is not positive integer multiple of {name}");
    vec![FieldError::invalid(path, q.to_string(), m)]
}

pub fn container_requirements(r: &Value, claims: &BTreeSet<&str>, path: &Path) -> FieldErrors {
    requirements(r, container_resource_name, claims, path)
}

pub fn pod_requirements(r: &Value, claims: &BTreeSet<&str>, path: &Path) -> FieldErrors {
    requirements(r, pod_resource_name, claims, path)
}

/// Limits of `spec.overhead`.
pub fn overhead(list: &Value, path: &Path) -> FieldErrors {
    let r = serde_json::json!({ "limits": list });
    container_requirements(&r, &BTreeSet::new(), path)
}

fn requirements(
    r: &Value,
    name_rule: fn(&str, &Path) -> FieldErrors,
    claims: &BTreeSet<&str>,
    path: &Path,
) -> FieldErrors {
    let mut errs = Vec::new();
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    let (mut compute, mut huge) = (false, false);
    let mut note = |name: &str| {
        compute |= matches!(name, "cpu" | "memory");
        huge |= is_huge_page(name);
    };
    for (name, v) in r.entries("limits") {
        let p = limits_path.key(name);
        errs.extend(name_rule(name, &p));
        errs.extend(resource_value(name, v, &p));
        errs.extend(huge_page_multiple(name, &amount(v), &p));
        note(name);
    }
    for (name, v) in r.entries("requests") {
        let (p, q) = (requests_path.key(name), amount(v));
        errs.extend(name_rule(name, &p));
        errs.extend(resource_value(name, v, &p));
        let limit = r.entry("limits", name);
        if !limit.is_null() {
            let l = amount(limit);
            if q != l && !overcommit_allowed(name) {
                let m = format!("must be equal to {name} limit of {l}");
                errs.push(FieldError::invalid(&requests_path, q.to_string(), m));
            } else if q > l {
                let m = format!("must be less than or equal to {name} limit of {l}");
                errs.push(FieldError::invalid(&requests_path, q.to_string(), m));
            }
        } else if !overcommit_allowed(name) {
            errs.push(FieldError::required(&limits_path, "Limit must be set for non overcommitable resources"));
        }
        errs.extend(huge_page_multiple(name, &q, &p));
        note(name);
    }
    if huge && !compute {
        errs.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
    errs.extend(claim_names(r.at("claims"), claims, &path.child("claims")));
    errs
}

fn claim_names(list: &Value, pod_claims: &BTreeSet<&str>, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (i, c) in list.list("").iter().enumerate() {
        let (p, name, request) = (path.index(i), c.text("name"), c.text("request"));
        if name.is_empty() {
            errs.push(FieldError::required(&p, ""));
            continue;
        }
        if seen.contains(name) {
            errs.push(FieldError::duplicate(&p, name));
        } else {
            let mut key = name.to_owned();
            if !request.is_empty() {
                errs.extend(dns_label(request, &child(&p, "request")));
                key = format!("{name}/{request}");
            }
            let of_name = |k: &String| k.split_once('/').is_some_and(|(n, _)| n == name);
            if seen.contains(&key) || (request.is_empty() && seen.iter().any(of_name)) {
                errs.push(FieldError::duplicate(&p, key.as_str()));
            }
            seen.insert(key);
        }
        if !pod_claims.contains(name) {
            let mut e = FieldError::not_found(&p, name);
            let all = pod_claims.iter().copied().collect::<Vec<_>>().join(", ");
            let known = if all.is_empty() { " which is empty".to_owned() } else { format!(": {all}") };
            e.detail = format!("must be one of the names in pod.spec.resourceClaims{known}");
            errs.push(e);
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn say(r: Value) -> Vec<String> {
        container_requirements(&r, &BTreeSet::new(), &Path::new("resources")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn requests_and_limits() {
        let none: [&str; 0] = [];
        assert_eq!(say(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}})), none);
        assert_eq!(
            say(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})),
            ["resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"]
        );
        assert_eq!(
            say(json!({"requests": {"memory": "-1"}})),
            ["resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0"]
        );
        assert_eq!(
            say(json!({"limits": {"example.com/gpu": "500m"}})),
            ["resources.limits[example.com/gpu]: Invalid value: \"500m\": must be an integer"]
        );
        assert_eq!(
            say(json!({"requests": {"example.com/gpu": "1"}})),
            ["resources.limits: Required value: Limit must be set for non overcommitable resources"]
        );
        assert_eq!(
            say(json!({"limits": {"pods": "1"}})),
            ["resources.limits[pods]: Invalid value: \"pods\": must be a standard resource for containers"]
        );
        assert_eq!(say(json!({"limits": {"hugepages-2Mi": "3Mi", "cpu": "1"}})).len(), 1);
        assert_eq!(
            say(json!({"claims": [{"name": "a"}]})),
            [
                "resources.claims[0]: Not found: \"a\": must be one of the names in pod.spec.resourceClaims which is empty"
            ]
        );
    }
}
