//! Validation of `metadata`, the same for every kind but for the rule of its name
//! (`apimachinery/pkg/api/validation/objectmeta.go`).

use crate::access::{Access, same};
use crate::kind::Kind;
use isopod_api::names::{self, NameRule};
use isopod_api::{FieldError, FieldErrors, GroupVersion, Gvk, Path};
use serde_json::Value;
use std::collections::BTreeSet;

pub const IMMUTABLE: &str = "field is immutable";
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// How a kind's names are checked. CRDs and most built-in kinds: DNS-1123 subdomain.
pub fn name_rule(gvk: &Gvk) -> NameRule {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Namespace" | "Service") | ("apps", "StatefulSet") => names::name_is_dns_label,
        ("", "Event") | ("rbac.authorization.k8s.io", _) => names::name_is_path_segment,
        ("certificates.k8s.io", _) => names::name_is_path_segment,
        ("networking.k8s.io", "IPAddress") => ip_name,
        ("", "ReplicationController") => declared_name,
        ("coordination.k8s.io", "LeaseCandidate") => |name, _| names::config_map_key(name),
        _ => names::name_is_dns_subdomain,
    }
}

/// The rule of a name that is declared for the type: nothing is said of what names are generated from.
fn declared_name(name: &str, prefix: bool) -> Vec<String> {
    if prefix {
        return Vec::new();
    }
    names::name_is_dns_subdomain(name, false).into_iter().map(|m| m.replace("253 characters", "253 bytes")).collect()
}

fn ip_name(name: &str, _prefix: bool) -> Vec<String> {
    names::ip(&Path::root(), name).into_iter().map(|e| e.detail).collect()
}

/// Kinds whose own rules say nothing of the metadata, or say it themselves: what holds for all objects is looked at only
/// when these have nothing to say.
fn own_rules_first(gvk: &Gvk) -> bool {
    matches!(
        (gvk.group.as_str(), gvk.kind.as_str()),
        ("" | "events.k8s.io", "Event") | ("policy", "PodDisruptionBudget")
    )
}

/// All rules of a new object; `own` are those of its kind.
pub fn with_own_rules(kind: &Kind, obj: &Value, own: impl FnOnce() -> FieldErrors) -> FieldErrors {
    if own_rules_first(&kind.gvk) {
        let errs = own();
        let all = || create(obj.at("metadata"), kind.namespaced, &names::name_is_path_segment, &Path::new("metadata"));
        return if errs.is_empty() { all() } else { errs };
    }
    let mut errs = validate_create(kind, obj);
    errs.extend(own());
    errs
}

pub fn validate_create(kind: &Kind, obj: &Value) -> FieldErrors {
    let path = Path::new("metadata");
    let mut errs = create_as(kind, obj, &path);
    if !kind.schema.custom && qualifies_finalizers(&kind.gvk) {
        errs.extend(kube_finalizers(obj.at("metadata"), &path));
    }
    errs
}

/// The metadata of a new object with the names of its kind.
fn create_as(kind: &Kind, obj: &Value, path: &Path) -> FieldErrors {
    let rule = |name: &str, prefix: bool| {
        let own = kind.hooks.name(obj, name, prefix);
        own.unwrap_or_else(|| name_rule(&kind.gvk)(name, prefix))
    };
    create(obj.at("metadata"), kind.namespaced, &rule, path)
}

/// Kinds whose finalizers must be standard ones or have a domain: all that upstream validates as it does the core group.
fn qualifies_finalizers(gvk: &Gvk) -> bool {
    let others = ["apiextensions", "apiregistration", "admissionregistration", "coordination", "node"];
    match gvk.group.strip_suffix(".k8s.io") {
        Some(group) => !others.contains(&group),
        None => {
            matches!(gvk.group.as_str(), "apps" | "batch" | "autoscaling")
                || gvk.group.is_empty() && gvk.kind != "Event"
        }
    }
}

pub fn kube_finalizers(meta: &Value, path: &Path) -> FieldErrors {
    let p = path.child("finalizers");
    meta.texts("finalizers").iter().enumerate().flat_map(|(i, f)| kube_finalizer(f, &p.index(i))).collect()
}

pub fn kube_finalizer(name: &str, path: &Path) -> FieldErrors {
    if name.contains('/') || ["kubernetes", "orphan", "foregroundDeletion"].contains(&name) {
        return Vec::new();
    }
    let m = "name is neither a standard finalizer name nor is it fully qualified";
    vec![FieldError::invalid(path, name, m)]
}

pub fn validate_update(kind: &Kind, new: &Value, old: &Value) -> FieldErrors {
    let (meta, path) = (new.at("metadata"), Path::new("metadata"));
    let change = update(meta, old.at("metadata"), &path);
    // Upstream looks at the metadata for what all kinds share, and again for the kind. Where declarative rules know the
    // kind, what was told twice is dropped.
    let again = match kind.gvk.group.as_str() {
        "apiextensions.k8s.io" => Vec::new(),
        "apiregistration.k8s.io" => create_as(kind, new, &path),
        _ => return change,
    };
    let shared = create(meta, kind.namespaced, &names::name_is_path_segment, &path);
    [shared, change.clone(), change, again].concat()
}

/// All of a new object's metadata, also of one that is embedded (a pod template's has its own, weaker rules).
pub fn create(meta: &Value, namespaced: bool, rule: &dyn Fn(&str, bool) -> Vec<String>, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let generate = meta.text("generateName");
    if !generate.is_empty() {
        let p = path.child("generateName");
        errs.extend(rule(generate, true).into_iter().map(|m| FieldError::invalid(&p, generate, m)));
    }
    let (name, p) = (meta.text("name"), path.child("name"));
    if name.is_empty() {
        errs.push(FieldError::required(&p, "name or generateName is required"));
    } else {
        errs.extend(rule(name, false).into_iter().map(|m| FieldError::invalid(&p, name, m)));
    }
    let (ns, p) = (meta.text("namespace"), path.child("namespace"));
    match (namespaced, ns.is_empty()) {
        (true, true) => errs.push(FieldError::required(&p, "")),
        (true, false) => errs.extend(names::dns1123_label(ns).into_iter().map(|m| FieldError::invalid(&p, ns, m))),
        (false, false) => errs.push(FieldError::forbidden(&p, "not allowed on this type")),
        (false, true) => {}
    }
    errs.extend(non_negative(meta, "generation", path));
    errs.extend(labels(meta.at("labels"), &path.child("labels")));
    errs.extend(annotations(meta.at("annotations"), &path.child("annotations")));
    errs.extend(owners(meta.at("ownerReferences"), &path.child("ownerReferences")));
    errs.extend(finalizers(meta.at("finalizers"), &path.child("finalizers")));
    errs.extend(managed_fields(meta.at("managedFields"), &path.child("managedFields")));
    errs
}

pub fn update(new: &Value, old: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if old.has("deletionTimestamp") {
        let had: BTreeSet<&str> = old.texts("finalizers").into_iter().collect();
        let now: BTreeSet<&str> = new.texts("finalizers").into_iter().collect();
        let extra: Vec<String> = now.difference(&had).map(|f| format!("{f:?}")).collect();
        if !extra.is_empty() {
            let list = extra.join(", ");
            let why = "no new finalizers can be added if the object is being deleted, found new finalizers";
            errs.push(FieldError::forbidden(&path.child("finalizers"), format!("{why} []string{{{list}}}")));
        }
    }
    if new.text("resourceVersion").is_empty() {
        errs.push(FieldError::invalid(&path.child("resourceVersion"), "", "must be specified for an update"));
    }
    errs.extend(non_negative(new, "generation", path));
    let (g, before) = (new.int_or("generation", 0), old.int_or("generation", 0));
    if g < before {
        errs.push(FieldError::invalid(&path.child("generation"), g, "must not be decremented"));
    }
    let fixed = ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];
    errs.extend(fixed.iter().flat_map(|f| immutable(new, old, f, path)));
    errs.extend(labels(new.at("labels"), &path.child("labels")));
    errs.extend(annotations(new.at("annotations"), &path.child("annotations")));
    errs.extend(owners(new.at("ownerReferences"), &path.child("ownerReferences")));
    errs.extend(managed_fields(new.at("managedFields"), &path.child("managedFields")));
    errs
}

/// `field` (a dotted path below `path`) must not change.
pub fn immutable(new: &Value, old: &Value, field: &str, path: &Path) -> FieldErrors {
    let (n, o) = (new.at(field), old.at(field));
    if same(n, o) {
        return Vec::new();
    }
    let p = field.split('.').fold(path.clone(), |p, f| p.child(f));
    // Go prints an absent string as "".
    let shown = if n.is_null() && o.is_string() { Value::from("") } else { n.clone() };
    vec![FieldError::invalid(&p, shown, IMMUTABLE)]
}

/// The same as a declarative rule, which shows no value.
pub fn fixed(new: &Value, old: &Value, field: &str, path: &Path) -> FieldErrors {
    let shown = |e: FieldError| FieldError { shown: Some("null".to_owned()), ..e }.declared();
    immutable(new, old, field, path).into_iter().map(shown).collect()
}

pub fn non_negative(parent: &Value, field: &str, path: &Path) -> FieldErrors {
    match parent.int(field) {
        Some(n) if n < 0 => vec![FieldError::invalid(&path.child(field), n, NOT_NEGATIVE)],
        _ => Vec::new(),
    }
}

pub fn labels(map: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (k, v) in map.entries("") {
        errs.extend(label_name(k, path));
        let v = v.as_str().unwrap_or("");
        errs.extend(names::label_value(v).into_iter().map(|m| FieldError::invalid(path, v, m)));
    }
    errs
}

pub fn label_name(key: &str, path: &Path) -> FieldErrors {
    names::qualified_name(key).into_iter().map(|m| FieldError::invalid(path, key, m)).collect()
}

pub fn annotations(map: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut size = 0;
    for (k, v) in map.entries("") {
        let msgs = names::qualified_name(&k.to_lowercase());
        errs.extend(msgs.into_iter().map(|m| FieldError::invalid(path, k, m)));
        size += k.len() + v.as_str().map_or(0, str::len);
    }
    if size > names::ANNOTATIONS_MAX_BYTES {
        errs.push(FieldError::too_long(path, names::ANNOTATIONS_MAX_BYTES));
    }
    errs
}

/// A `metav1.LabelSelector`; null is fine.
pub fn label_selector(selector: &Value, path: &Path) -> FieldErrors {
    let mut errs = labels(selector.at("matchLabels"), &path.child("matchLabels"));
    for (i, r) in selector.list("matchExpressions").iter().enumerate() {
        errs.extend(selector_requirement(r, &path.child("matchExpressions").index(i)));
    }
    errs
}

fn selector_requirement(r: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let (values, p) = (r.texts("values"), path.child("values"));
    match r.text("operator") {
        "In" | "NotIn" if values.is_empty() => {
            errs.push(FieldError::required(&p, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errs.push(FieldError::forbidden(&p, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errs.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    errs.extend(label_name(r.text("key"), &path.child("key")));
    for (i, v) in values.iter().enumerate() {
        errs.extend(names::label_value(v).into_iter().map(|m| FieldError::invalid(&p.index(i), *v, m)));
    }
    errs
}

fn owners(refs: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut controller = String::new();
    for (i, r) in refs.list("").iter().enumerate() {
        let p = path.index(i);
        let (api, kind) = (r.text("apiVersion"), r.text("kind"));
        if api.is_empty() {
            errs.push(FieldError::required(&p.child("apiVersion"), "must not be empty"));
        } else if GroupVersion::parse(api).is_none() {
            let m = "must be <group>/<version> or <version>";
            errs.push(FieldError::invalid(&p.child("apiVersion"), api, m));
        }
        for f in ["kind", "name", "uid"] {
            if r.text(f).is_empty() {
                errs.push(FieldError::required(&p.child(f), "must not be empty"));
            }
        }
        if (api, kind) == ("v1", "Event") {
            let m = "/v1, Kind=Event is disallowed from being an owner";
            errs.push(FieldError::invalid(&p, r.clone(), m));
        }
        if r.flag("controller") {
            let this = format!("{kind}/{}", r.text("name"));
            if controller.is_empty() {
                controller = this;
            } else {
                let m = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {this}"
                );
                errs.push(FieldError::invalid(path, refs.clone(), m));
            }
        }
    }
    errs
}

fn finalizers(list: &Value, path: &Path) -> FieldErrors {
    let names_: Vec<&str> = list.texts("");
    let mut errs: FieldErrors = names_.iter().flat_map(|f| label_name(f, path)).collect();
    if names_.contains(&"orphan") && names_.contains(&"foregroundDeletion") {
        let m = "finalizer orphan and foregroundDeletion cannot be both set";
        errs.push(FieldError::invalid(path, list.clone(), m));
    }
    errs
}

fn managed_fields(list: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (i, f) in list.list("").iter().enumerate() {
        let p = path.index(i);
        match f.text("operation") {
            "" => errs.push(FieldError::required(&p.child("operation"), "must not be empty")),
            "Apply" | "Update" => {}
            op => errs.push(FieldError::not_supported(&p.child("operation"), op, &["Apply", "Update"])),
        }
        if !matches!(f.text("fieldsType"), "" | "FieldsV1") {
            errs.push(FieldError::invalid(&p.child("fieldsType"), f.text("fieldsType"), "must be `FieldsV1`"));
        }
        errs.extend(field_manager(f.text("manager"), &p.child("manager")));
        if f.text("subresource").len() > 256 {
            errs.push(FieldError::too_long(&p.child("subresource"), 256));
        }
    }
    errs
}

/// The name of a field manager, also as the query parameter `fieldManager`.
pub fn field_manager(name: &str, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if name.len() > 128 {
        errs.push(FieldError::too_long(path, 128));
    }
    for (i, c) in name.char_indices().filter(|(_, c)| c.is_control() || (c.is_whitespace() && *c != ' ')) {
        let m = format!("invalid character U+{:04X} (at position {i})", u32::from(c));
        errs.push(FieldError::invalid(path, name, m));
    }
    errs
}

/// Conditions as `metav1.Condition` (PodDisruptionBudget, ServiceCIDR …).
pub fn conditions(list: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, c) in list.list("").iter().enumerate() {
        let (p, kind) = (path.index(i), c.text("type"));
        if !seen.insert(kind) {
            errs.push(FieldError::duplicate(&p, kind));
        }
        if kind.is_empty() {
            errs.push(FieldError::required(&p.child("type"), "is required"));
        } else {
            errs.extend(label_name(kind, &p.child("type")));
        }
        match c.text("status") {
            "" => errs.push(FieldError::required(&p.child("status"), "")),
            "True" | "False" | "Unknown" => {}
            s => errs.push(FieldError::not_supported(&p.child("status"), s, &["False", "True", "Unknown"])),
        }
        if let Some(g) = c.int("observedGeneration").filter(|g| *g < 0) {
            let m = "must be greater than or equal to zero";
            errs.push(FieldError::invalid(&p.child("observedGeneration"), g, m));
        }
        for f in ["lastTransitionTime", "reason"] {
            if c.text(f).is_empty() {
                errs.push(FieldError::required(&p.child(f), ""));
            }
        }
        if c.text("message").len() > 32 * 1024 {
            errs.push(FieldError::too_long(&p.child("message"), 32 * 1024));
        }
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

    fn made(meta: Value) -> Vec<String> {
        say(create(&meta, true, &names::name_is_dns_subdomain, &Path::new("metadata")))
    }

    #[test]
    fn new_metadata() {
        assert_eq!(made(json!({"name": "a", "namespace": "b"})), [""; 0]);
        assert_eq!(
            made(json!({})),
            ["metadata.name: Required value: name or generateName is required", "metadata.namespace: Required value"]
        );
        let errs = made(json!({"name": "A", "namespace": "b", "labels": {"x": "-"}, "finalizers": ["bad name"]}));
        assert_eq!(errs.len(), 3);
        assert!(
            errs[0].starts_with("metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must"),
            "{errs:?}"
        );
        assert!(errs[1].starts_with("metadata.labels: Invalid value: \"-\": a valid label must be an empty string"));
        let owner = |c: bool| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": c});
        let errs = made(json!({"name": "a", "namespace": "b", "ownerReferences": [owner(true), owner(true)]}));
        assert!(errs[0].contains(
            "Only one reference can have Controller set to true. Found \"true\" in references for Pod/p and Pod/p"
        ));
        let errs = made(json!({"name": "a", "namespace": "b", "ownerReferences": [{"apiVersion": "a/b/c"}]}));
        assert_eq!(errs.len(), 4);
    }

    #[test]
    fn changed_metadata() {
        let p = Path::new("metadata");
        let old =
            json!({"name": "a", "uid": "1", "resourceVersion": "4", "deletionTimestamp": "t", "finalizers": ["x/y"]});
        assert!(update(&old, &old, &p).is_empty());
        let new = json!({"name": "b", "uid": "1", "deletionTimestamp": "t", "finalizers": ["x/y", "x/z"]});
        assert_eq!(
            say(update(&new, &old, &p)),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"x/z\"}",
                "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
                "metadata.name: Invalid value: \"b\": field is immutable",
            ]
        );
    }

    #[test]
    fn selectors() {
        let p = Path::new("spec.selector");
        let s = json!({"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "", "operator": "Zzz"}]});
        let errs = say(label_selector(&s, &p));
        assert_eq!(
            errs[0],
            "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
        );
        assert_eq!(
            errs[1],
            "spec.selector.matchExpressions[1].operator: Invalid value: \"Zzz\": not a valid selector operator"
        );
    }
}
