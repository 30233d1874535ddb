//! Environment variables, and references to fields, keys and resources, which volumes use too.

use super::check::{dns_label, dns_subdomain, invalid_each, no_backsteps, required};
use super::resources::amount;
use crate::access::Access;
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;

const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
pub const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// What `fieldPath` may name at all, before its use is considered.
const FIELD_LABELS: [&str; 14] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

pub fn env(list: &[Value], path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (i, e) in list.iter().enumerate() {
        let (p, name) = (path.index(i), e.text("name"));
        if name.is_empty() {
            errs.push(FieldError::required(&p.child("name"), ""));
        } else {
            errs.extend(invalid_each(&p.child("name"), name, names::relaxed_env_var_name(name)));
        }
        if e.has("valueFrom") {
            errs.extend(value_from(e, &p.child("valueFrom")));
        }
    }
    errs
}

fn value_from(e: &Value, path: &Path) -> FieldErrors {
    let from = e.at("valueFrom");
    let mut errs = Vec::new();
    let mut sources = 0;
    for kind in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let v = from.at(kind);
        if v.is_null() {
            continue;
        }
        sources += 1;
        let p = path.child(kind);
        errs.extend(match kind {
            "fieldRef" => field_ref(v, &ENV_FIELDS, &p),
            "resourceFieldRef" => resource_field_ref(v, false, &p),
            "fileKeyRef" => file_key_ref(v, &p),
            _ => key_ref(v, &p),
        });
    }
    if sources == 0 {
        let m =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errs.push(FieldError::invalid(path, "", m));
    } else if !e.text("value").is_empty() {
        errs.push(FieldError::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if sources > 1 {
        errs.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
    }
    errs
}

/// `metadata.labels['app']` as path and key.
fn subscript(field: &str) -> Option<(&str, &str)> {
    let (path, rest) = field.split_once("['")?;
    Some((path, rest.strip_suffix("']")?))
}

pub fn field_ref(v: &Value, allowed: &[&str], path: &Path) -> FieldErrors {
    for f in ["apiVersion", "fieldPath"] {
        if v.text(f).is_empty() {
            return vec![FieldError::required(&path.child(f), "")];
        }
    }
    let (field, p) = (v.text("fieldPath"), path.child("fieldPath"));
    let failed = |m: String| vec![FieldError::invalid(&p, field, format!("error converting fieldPath: {m}"))];
    if v.text("apiVersion") != "v1" {
        return failed(format!("unsupported pod version: {}", v.text("apiVersion")));
    }
    if let Some((base, key)) = subscript(field) {
        return match base {
            "metadata.annotations" => {
                invalid_each(path, &key.to_lowercase(), names::qualified_name(&key.to_lowercase()))
            }
            "metadata.labels" => invalid_each(path, key, names::qualified_name(key)),
            _ => failed(format!("field label does not support subscript: {field}")),
        };
    }
    if !FIELD_LABELS.contains(&field) && field != "spec.host" {
        return failed(format!("field label not supported: {field}"));
    }
    let field = if field == "spec.host" { "spec.nodeName" } else { field };
    if allowed.contains(&field) { Vec::new() } else { vec![FieldError::not_supported(&p, field, allowed)] }
}

pub fn resource_field_ref(v: &Value, in_volume: bool, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let resource = v.text("resource");
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if in_volume && v.text("containerName").is_empty() {
        errs.push(FieldError::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errs.push(FieldError::required(&path.child("resource"), ""));
    } else if !RESOURCES.contains(&resource) && !huge {
        errs.push(FieldError::not_supported(&path.child("resource"), resource, &RESOURCES));
    }
    errs.extend(divisor(resource, v.at("divisor"), path));
    errs
}

fn divisor(resource: &str, divisor: &Value, path: &Path) -> FieldErrors {
    let q = amount(divisor);
    if q.is_zero() {
        return Vec::new();
    }
    const SIZES: &str = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";
    let text = q.to_string();
    let (allowed, noun) = match resource {
        "limits.cpu" | "requests.cpu" => ("1m, 1", "cpu"),
        "limits.memory" | "requests.memory" => (SIZES, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (SIZES, "local ephemeral storage"),
        r if r.contains(".hugepages-") => (SIZES, "hugepages"),
        _ => return Vec::new(),
    };
    if allowed.split(", ").any(|a| a == text) {
        return Vec::new();
    }
    let list = if noun == "cpu" { "1m and 1" } else { SIZES };
    let m = format!("only divisor's values {list} are supported with the {noun} resource");
    vec![FieldError::invalid(&path.child("divisor"), resource, m)]
}

/// A key of a ConfigMap or Secret.
fn key_ref(v: &Value, path: &Path) -> FieldErrors {
    let mut errs = dns_subdomain(v.text("name"), &path.child("name"));
    match v.text("key") {
        "" => errs.push(FieldError::required(&path.child("key"), "")),
        key => errs.extend(invalid_each(&path.child("key"), key, names::config_map_key(key))),
    }
    errs
}

fn file_key_ref(v: &Value, path: &Path) -> FieldErrors {
    let mut errs = match v.text("key") {
        "" => required(v, "key", path),
        key => invalid_each(&path.child("key"), key, names::relaxed_env_var_name(key)),
    };
    errs.extend(match v.text("volumeName") {
        "" => required(v, "volumeName", path),
        name => dns_label(name, &path.child("volumeName")),
    });
    errs.extend(match v.text("path") {
        "" => required(v, "path", path),
        file => no_backsteps(file, &path.child("path")),
    });
    errs
}

pub fn env_from(list: &[Value], path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (i, e) in list.iter().enumerate() {
        let (p, prefix) = (path.index(i), e.text("prefix"));
        if !prefix.is_empty() {
            errs.extend(invalid_each(&p.child("prefix"), prefix, names::relaxed_env_var_name(prefix)));
        }
        let mut sources = 0;
        for kind in ["configMapRef", "secretRef"] {
            if !e.has(kind) {
                continue;
            }
            sources += 1;
            let (name, p) = (e.at(kind).text("name"), p.child(kind).child("name"));
            if name.is_empty() {
                errs.push(FieldError::required(&p, ""));
            } else {
                errs.extend(invalid_each(&p, name, names::name_is_dns_subdomain(name, true)));
            }
        }
        match sources {
            0 => errs.push(FieldError::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => errs.push(FieldError::invalid(path, "", "may not have more than one field specified at a time")),
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn say(e: Value) -> Vec<String> {
        env(&[e], &Path::new("env")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn variables() {
        let field = |f: &str| json!({"name": "A", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": f}}});
        for ok in [json!({"name": "a b"}), field("status.podIP"), field("metadata.labels['a']")] {
            assert_eq!(say(ok), [""; 0]);
        }
        assert_eq!(say(json!({})), ["env[0].name: Required value"]);
        assert_eq!(
            say(field("metadata.labels")),
            [
                "env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"metadata.labels\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\""
            ]
        );
        assert_eq!(
            say(field("spec.foo")),
            [
                "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.foo\": error converting fieldPath: field label not supported: spec.foo"
            ]
        );
        assert_eq!(
            say(json!({"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}})),
            ["env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"]
        );
        assert_eq!(
            say(json!({"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}}})),
            [
                "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource"
            ]
        );
    }
}
