//! What extends the API server: webhooks and policies of admission, and API services.
//!
//! Invariant: CEL expressions are checked as upstream checks new ones, their types included.

use super::expressions::Surroundings;
use crate::access::{Access, set, unset};
use crate::cel::check::Type;
use crate::metadata::label_selector;
use crate::ownership;
use crate::strategy::{PLAIN, Strategy};
use crate::validation::check::{invalid_each, one_of_if_set, qualified_name, supported};
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const POLICIES: [&str; 2] = ["Fail", "Ignore"];
const MATCHES: [&str; 2] = ["Equivalent", "Exact"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
/// Words that CEL keeps for itself.
const RESERVED: [&str; 21] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "null",
    "package",
    "return",
    "true",
    "var",
    "void",
    "while",
];
const MAX_MATCH_CONDITIONS: usize = 64;
const MAX_AUDIT_ANNOTATIONS: usize = 20;

const BASE: Strategy = Strategy { unconditional_update: false, ..PLAIN };

pub fn strategy(kind: &str) -> Strategy {
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            Strategy { create: webhooks, update: |new, _| webhooks(new), ..BASE }
        }
        "ValidatingAdmissionPolicy" => {
            Strategy { owned: ownership::status_alone, create: policy, update: |new, _| policy(new), ..BASE }
        }
        "MutatingAdmissionPolicy" => {
            Strategy { create: mutating_policy, update: |new, _| mutating_policy(new), ..BASE }
        }
        "ValidatingAdmissionPolicyBinding" => {
            Strategy { create: |new| binding(new, true), update: |new, _| binding(new, true), ..BASE }
        }
        "MutatingAdmissionPolicyBinding" => {
            Strategy { create: |new| binding(new, false), update: |new, _| binding(new, false), ..BASE }
        }
        _ => BASE,
    }
}

pub const API_SERVICE: Strategy = Strategy {
    owned: ownership::status_alone,
    generation: false,
    name: Some(api_service_name),
    prepare_create: |ctx, new| {
        unset(new, "status");
        // What is served here is there at once.
        if !new.has("spec.service") {
            let now = isopod_api::time::format(ctx.now);
            let condition = json!({"type": "Available", "status": "True", "lastTransitionTime": now, "reason": "Local",
                "message": "Local APIServices are always available"});
            set(new, "status.conditions", json!([condition]));
        }
    },
    create: api_service,
    update: |new, _| api_service(new),
    update_status: |new, _| {
        let path = Path::new("status").child("conditions");
        let all = new.list("status.conditions").iter().enumerate();
        let check = |(i, c): (usize, &Value)| {
            let allowed = ["True", "False", "Unknown"];
            let p = path.index(i).child("status");
            let wrong = !allowed.contains(&c.text("status"));
            wrong.then(|| FieldError::not_supported(&p, c.text("status"), &allowed))
        };
        all.filter_map(check).collect()
    },
    ..BASE
};

fn webhooks(config: &Value) -> FieldErrors {
    let mut seen = BTreeSet::new();
    let mut errs = Vec::new();
    for (i, hook) in config.list("webhooks").iter().enumerate() {
        let p = Path::new("webhooks").index(i);
        errs.extend(webhook(hook, &p));
        errs.extend(review_versions(hook, &p.child("admissionReviewVersions")));
        let name = hook.text("name");
        if !name.is_empty() && !seen.insert(name) {
            errs.push(FieldError::duplicate(&p.child("name"), name));
        }
    }
    errs
}

fn webhook(hook: &Value, path: &Path) -> FieldErrors {
    let mut errs = names::fully_qualified_name(&path.child("name"), hook.text("name"));
    for (i, r) in hook.list("rules").iter().enumerate() {
        errs.extend(rule(r, &path.child("rules").index(i)));
    }
    errs.extend(one_of_if_set(hook, "failurePolicy", &POLICIES, path));
    errs.extend(one_of_if_set(hook, "matchPolicy", &MATCHES, path));
    match hook.at("sideEffects") {
        Value::Null => {
            let m = format!("must specify one of {}", SIDE_EFFECTS.join(", "));
            errs.push(FieldError::required(&path.child("sideEffects"), m));
        }
        v => errs.extend(supported(v.as_str().unwrap_or(""), &SIDE_EFFECTS, &path.child("sideEffects"))),
    }
    if let Some(n) = hook.int("timeoutSeconds").filter(|n| !(1..=30).contains(n)) {
        let m = "the timeout value must be between 1 and 30 seconds";
        errs.push(FieldError::invalid(&path.child("timeoutSeconds"), n, m));
    }
    for f in ["namespaceSelector", "objectSelector"].iter().filter(|f| hook.has(f)) {
        errs.extend(label_selector(hook.at(f), &path.child(f)));
    }
    errs.extend(one_of_if_set(hook, "reinvocationPolicy", &["IfNeeded", "Never"], path));
    let (client, p) = (hook.at("clientConfig"), path.child("clientConfig"));
    match (client.at("url").as_str(), client.has("service")) {
        (Some(url), false) => errs.extend(webhook_url(url, &p.child("url"))),
        (None, true) => errs.extend(webhook_service(client.at("service"), &p.child("service"))),
        _ => errs.push(FieldError::required(&p, "exactly one of url or service is required")),
    }
    errs.extend(match_conditions(hook, &path.child("matchConditions")));
    errs
}

pub(super) fn webhook_url(url: &str, path: &Path) -> FieldErrors {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or("") };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let mut errs = Vec::new();
    if scheme != "https" {
        errs.push(FieldError::invalid(path, scheme, format!("'https' is the only allowed URL scheme{FORM}")));
    }
    if host.is_empty() {
        errs.push(FieldError::invalid(path, host, format!("host must be specified{FORM}")));
    }
    let unwanted = [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ];
    errs.extend(
        unwanted.iter().filter(|(part, _)| !part.is_empty()).map(|(part, m)| FieldError::invalid(path, *part, *m)),
    );
    errs
}

pub(super) fn webhook_service(s: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    // Upstream mixes the two up: a missing name is told of the namespace, and the other way round.
    for (field, told) in [("namespace", "name"), ("name", "namespace")] {
        if s.is_empty_at(field) {
            errs.push(FieldError::required(&path.child(told), ""));
        }
    }
    errs.extend(service_port(s, path));
    let (url, p) = (s.text("path"), path.child("path"));
    if matches!(url, "" | "/") {
        return errs;
    }
    if url == "//" {
        errs.push(FieldError::invalid(&p, url, "segment[0] may not be empty"));
        return errs;
    }
    if !url.starts_with('/') {
        errs.push(FieldError::invalid(&p, url, "must start with a '/'"));
    }
    // Whatever stands first is dropped, as upstream does.
    let mut chars = url.chars();
    chars.next();
    let steps = chars.as_str();
    for (i, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        if step.is_empty() {
            errs.push(FieldError::invalid(&p, url, format!("segment[{i}] may not be empty")));
            continue;
        }
        let bad = names::dns1123_subdomain(step).into_iter();
        errs.extend(bad.map(|m| FieldError::invalid(&p, url, format!("segment[{i}]: {m}"))));
    }
    errs
}

fn service_port(s: &Value, path: &Path) -> Option<FieldError> {
    let port = s.int_or("port", 0);
    let msgs = names::port_num(port);
    let m = format!("port is not valid: {}", msgs.join(", "));
    (!msgs.is_empty()).then(|| FieldError::invalid(&path.child("port"), port, m))
}

fn review_versions(hook: &Value, path: &Path) -> FieldErrors {
    let versions = hook.texts("admissionReviewVersions");
    if versions.is_empty() {
        return vec![FieldError::required(path, format!("must specify one of {}", REVIEWS.join(", ")))];
    }
    let mut seen = BTreeSet::new();
    let mut errs = Vec::new();
    for (i, v) in versions.iter().enumerate() {
        if seen.insert(*v) {
            errs.extend(invalid_each(&path.index(i), v, names::dns1035_label(v)));
        } else {
            errs.push(FieldError::invalid(&path.index(i), *v, "duplicate version"));
        }
    }
    if !versions.iter().any(|v| REVIEWS.contains(v)) {
        let m = format!("must include at least one of {}", REVIEWS.join(", "));
        errs.push(FieldError::invalid(path, versions, m));
    }
    errs
}

/// A list that may hold `*` only by itself.
fn lone_wildcard(rule: &Value, field: &str, what: &str, path: &Path) -> FieldErrors {
    let (list, p) = (rule.texts(field), path.child(field));
    if list.is_empty() {
        return vec![FieldError::required(&p, "")];
    }
    if list.len() > 1 && list.contains(&"*") {
        return vec![FieldError::invalid(&p, list, format!("if '*' is present, must not specify other {what}"))];
    }
    Vec::new()
}

fn rule(r: &Value, path: &Path) -> FieldErrors {
    let mut errs = lone_wildcard(r, "operations", "operations", path);
    for (i, o) in r.texts("operations").iter().enumerate() {
        errs.extend(supported(o, &OPERATIONS, &path.child("operations").index(i)));
    }
    errs.extend(lone_wildcard(r, "apiGroups", "API groups", path));
    errs.extend(lone_wildcard(r, "apiVersions", "API versions", path));
    for (i, _) in r.texts("apiVersions").iter().enumerate().filter(|(_, v)| v.is_empty()) {
        errs.push(FieldError::required(&path.child("apiVersions").index(i), ""));
    }
    errs.extend(rule_resources(&r.texts("resources"), &path.child("resources")));
    errs.extend(one_of_if_set(r, "scope", &SCOPES, path));
    errs
}

fn rule_resources(all: &[&str], path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if all.is_empty() {
        errs.push(FieldError::required(path, ""));
    }
    let (mut any_sub, mut any_resource) = (BTreeSet::new(), BTreeSet::new());
    let mut plain = false;
    for (i, r) in all.iter().enumerate() {
        if r.is_empty() {
            errs.push(FieldError::required(&path.index(i), ""));
            continue;
        }
        let Some((resource, sub)) = r.split_once('/') else {
            plain = *r != "*";
            continue;
        };
        if any_sub.contains(resource) {
            let m = format!("if '{resource}/*' is present, must not specify {r}");
            errs.push(FieldError::invalid(&path.index(i), *r, m));
        }
        if any_resource.contains(sub) {
            let m = format!("if '*/{sub}' is present, must not specify {r}");
            errs.push(FieldError::invalid(&path.index(i), *r, m));
        }
        if sub == "*" {
            any_sub.insert(resource);
        }
        if resource == "*" {
            any_resource.insert(sub);
        }
    }
    if all.len() > 1 && all.contains(&"*/*") {
        errs.push(FieldError::invalid(path, all, "if '*/*' is present, must not specify other resources"));
    }
    if plain && all.contains(&"*") {
        let m = "if '*' is present, must not specify other resources without subresources";
        errs.push(FieldError::invalid(path, all, m));
    }
    errs
}

fn match_conditions(parent: &Value, path: &Path) -> FieldErrors {
    let all = parent.list("matchConditions");
    let mut seen = BTreeSet::new();
    let mut errs = Vec::new();
    if all.len() > MAX_MATCH_CONDITIONS {
        errs.push(FieldError::too_many(path, all.len(), MAX_MATCH_CONDITIONS));
    }
    for (i, c) in all.iter().enumerate() {
        let (name, p) = (c.text("name"), path.index(i));
        errs.extend(match c.text("expression").trim() {
            "" => Some(FieldError::required(&p.child("expression"), "")),
            text => Surroundings::of_conditions(parent).fault(text, text, true, &[Type::Bool], &p.child("expression")),
        });
        if name.is_empty() {
            errs.push(FieldError::required(&p.child("name"), ""));
            continue;
        }
        errs.extend(qualified_name(name, &p.child("name")));
        if !seen.insert(name) {
            errs.push(FieldError::duplicate(&p.child("name"), name));
        }
    }
    errs
}

/// What policies that validate and policies that mutate have in common.
fn policy_head(spec: &Value, path: &Path, mutates: bool) -> FieldErrors {
    let mut errs = needed(spec, "failurePolicy", &POLICIES, path);
    if spec.has("paramKind") {
        errs.extend(param_kind(spec.at("paramKind"), &path.child("paramKind")));
    }
    let constraints = path.child("matchConstraints");
    if spec.has("matchConstraints") {
        errs.extend(match_resources(spec.at("matchConstraints"), &constraints));
        if spec.list("matchConstraints.resourceRules").is_empty() {
            errs.push(FieldError::required(&constraints.child("resourceRules"), ""));
        }
        if mutates {
            errs.extend(mutable_operations(spec.at("matchConstraints"), &constraints));
        }
    } else {
        errs.push(FieldError::required(&constraints, ""));
    }
    errs.extend(match_conditions(spec, &path.child("matchConditions")));
    let mut around = Surroundings::of_policy(spec, mutates);
    for (i, v) in spec.list("variables").iter().enumerate() {
        let at = path.child("variables").index(i);
        let (name, text) = (v.text("name"), v.text("expression"));
        if name.trim().is_empty() {
            errs.push(FieldError::required(&at.child("name"), "name is not specified"));
        } else if !is_identifier(name) {
            errs.push(FieldError::invalid(&at.child("name"), name, "must be a valid CEL identifier"));
        }
        let p = at.child("expression");
        errs.extend(match text.trim() {
            "" => Some(FieldError::required(&p, "expression is not specified")),
            _ => around.fault(text, text, true, &[], &p),
        });
        around.define(v);
    }
    errs
}

/// Whether CEL can name a variable so.
fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        && !RESERVED.contains(&name)
}

/// Only requests that bring an object can be changed.
fn mutable_operations(m: &Value, path: &Path) -> FieldErrors {
    const MUTABLE: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];
    let p = path.child("resourceRules").child("operations");
    let all = m.list("resourceRules").iter().flat_map(|r| r.texts("operations"));
    all.flat_map(|op| supported(op, &MUTABLE, &p)).collect()
}

fn mutating_policy(p: &Value) -> FieldErrors {
    let (spec, path) = (p.at("spec"), Path::new("spec"));
    let mut errs = policy_head(spec, &path, true);
    let (all, at) = (spec.list("mutations"), path.child("mutations"));
    if all.is_empty() {
        errs.push(FieldError::required(&at, "mutations must contain at least one item"));
    }
    let around = Surroundings::after_variables(spec, true);
    for (i, m) in all.iter().enumerate() {
        errs.extend(mutation(m, &around, &at.index(i)));
    }
    let p = path.child("reinvocationPolicy");
    match spec.text("reinvocationPolicy") {
        "" => errs.push(FieldError::required(&p, "")),
        v => errs.extend(supported(v, &["IfNeeded", "Never"], &p)),
    }
    errs
}

fn mutation(m: &Value, around: &Surroundings, path: &Path) -> FieldErrors {
    let kind = m.text("patchType");
    let (used, other) = match kind {
        "JSONPatch" => ("jsonPatch", "applyConfiguration"),
        "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
        "" => return vec![FieldError::required(&path.child("patchType"), "")],
        _ => return supported(kind, &["ApplyConfiguration", "JSONPatch"], &path.child("patchType")),
    };
    let mut errs = Vec::new();
    let wanted = match used {
        "jsonPatch" => Type::list(Type::object("JSONPatch")),
        _ => Type::object("Object"),
    };
    let p = path.child(used);
    errs.extend(match m.at(used).text("expression").trim() {
        _ if !m.has(used) => Some(FieldError::required(&p, format!("must be specified when patchType is {kind}"))),
        "" => Some(FieldError::required(&p.child("expression"), "")),
        text => around.fault(text, text, true, &[wanted], &p.child("expression")),
    });
    if m.has(other) {
        let why = format!("must not be specified when patchType is {kind}");
        errs.push(FieldError::invalid(&path.child(other), format!("{{{other}}}"), why));
    }
    errs
}

fn policy(p: &Value) -> FieldErrors {
    let (spec, path) = (p.at("spec"), Path::new("spec"));
    let mut errs = policy_head(spec, &path, false);
    if spec.list("validations").is_empty() && spec.list("auditAnnotations").is_empty() {
        for f in ["validations", "auditAnnotations"] {
            let m = "validations or auditAnnotations must contain at least one item";
            errs.push(FieldError::required(&path.child(f), m));
        }
        return errs;
    }
    let around = Surroundings::after_variables(spec, false);
    for (i, v) in spec.list("validations").iter().enumerate() {
        errs.extend(policy_validation(v, &around, &path.child("validations").index(i)));
    }
    let name = p.text("metadata.name");
    errs.extend(audit_annotations(name, spec.list("auditAnnotations"), &around, &path.child("auditAnnotations")));
    errs
}

/// An enum that must be there.
fn needed(parent: &Value, field: &str, allowed: &[&str], path: &Path) -> FieldErrors {
    match parent.at(field) {
        Value::Null => vec![FieldError::required(&path.child(field), "")],
        v => supported(v.as_str().unwrap_or(""), allowed, &path.child(field)).into_iter().collect(),
    }
}

fn param_kind(k: &Value, path: &Path) -> FieldErrors {
    let (version, kind) = (k.text("apiVersion"), k.text("kind"));
    let p = path.child("apiVersion");
    let mut errs = Vec::new();
    let mut joined = |p: &Path, value: &str, before: &str, msgs: Vec<String>| {
        if !msgs.is_empty() {
            errs.push(FieldError::invalid(p, value, format!("{before}{}", msgs.join(","))));
        }
    };
    let parts: Vec<&str> = version.split('/').collect();
    match parts.as_slice() {
        [""] => errs.push(FieldError::required(&p, "")),
        [v] => joined(&p, v, "", names::dns1035_label(v)),
        [group, v] => {
            if !group.is_empty() {
                joined(&p, group, "", names::dns1123_subdomain(group));
            }
            if v.is_empty() {
                errs.push(FieldError::invalid(&p, version, "version must be specified"));
            } else {
                joined(&p, v, "", names::dns1035_label(v));
            }
        }
        _ => errs.push(FieldError::invalid(&p, version, format!("unexpected GroupVersion string: {version}"))),
    }
    let p = path.child("kind");
    if kind.is_empty() {
        errs.push(FieldError::required(&p, ""));
        return errs;
    }
    let msgs = names::dns1035_label(&kind.to_lowercase());
    if !msgs.is_empty() {
        let m = format!("may have mixed case, but should otherwise match: {}", msgs.join(","));
        errs.push(FieldError::invalid(&p, kind, m));
    }
    errs
}

fn match_resources(m: &Value, path: &Path) -> FieldErrors {
    let mut errs = needed(m, "matchPolicy", &MATCHES, path);
    for f in ["namespaceSelector", "objectSelector"] {
        match m.at(f) {
            Value::Null => errs.push(FieldError::required(&path.child(f), "")),
            s => errs.extend(label_selector(s, &path.child(f))),
        }
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for (i, r) in m.list(list).iter().enumerate() {
            let p = path.child(list).index(i);
            let mut seen = BTreeSet::new();
            for (j, name) in r.texts("resourceNames").into_iter().enumerate() {
                let p = p.child("resourceNames").index(j);
                errs.extend(invalid_each(&p, name, names::path_segment_name(name)));
                if !seen.insert(name) {
                    errs.push(FieldError::duplicate(&p, name));
                }
            }
            errs.extend(rule(r, &p));
        }
    }
    errs
}

fn policy_validation(v: &Value, around: &Surroundings, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let (text, p) = (v.text("expression"), path.child("expression"));
    errs.extend(match text.trim() {
        "" => Some(FieldError::required(&p, "expression is not specified")),
        _ => around.fault(text, text, true, &[Type::Bool], &p),
    });
    for f in ["messageExpression", "message"] {
        let (text, p) = (v.text(f), path.child(f));
        if !text.is_empty() && text.trim().is_empty() {
            errs.push(FieldError::invalid(&p, text, "must be non-empty if specified"));
        } else if f == "messageExpression" && !text.is_empty() {
            errs.extend(around.fault(text, text, false, &[Type::Text], &p));
        } else if f == "message" && text.trim().contains(['\n', '\r']) {
            errs.push(FieldError::invalid(&p, text, "must not contain line breaks"));
        }
    }
    errs.extend(one_of_if_set(v, "reason", &["Forbidden", "Invalid", "RequestEntityTooLarge"], path));
    errs
}

fn audit_annotations(policy: &str, all: &[Value], around: &Surroundings, path: &Path) -> FieldErrors {
    let mut seen = BTreeSet::new();
    let mut errs = Vec::new();
    if all.len() > MAX_AUDIT_ANNOTATIONS {
        let m = format!("must not have more than {MAX_AUDIT_ANNOTATIONS} auditAnnotations");
        errs.push(FieldError::invalid(path, all, m));
    }
    for (i, a) in all.iter().enumerate() {
        let p = path.index(i);
        let key = if policy.is_empty() { a.text("key").to_owned() } else { format!("{policy}/{}", a.text("key")) };
        errs.extend(qualified_name(&key, &p.child("key")));
        let (text, at) = (a.text("valueExpression"), p.child("valueExpression"));
        errs.extend(match text.trim() {
            "" => Some(FieldError::required(&at, "valueExpression is not specified")),
            trimmed => around.fault(trimmed, text, true, &[Type::Text, Type::Null], &at),
        });
        if !seen.insert(a.text("key")) {
            errs.push(FieldError::duplicate(&p.child("key"), a.text("key")));
        }
    }
    errs
}

fn binding(b: &Value, acts: bool) -> FieldErrors {
    let (spec, path) = (b.at("spec"), Path::new("spec"));
    let mut errs = Vec::new();
    match spec.text("policyName") {
        "" => errs.push(FieldError::required(&path.child("policyName"), "")),
        name => errs.extend(invalid_each(&path.child("policyName"), name, names::dns1123_subdomain(name))),
    }
    if spec.has("paramRef") {
        errs.extend(param_ref(spec.at("paramRef"), &path.child("paramRef")));
    }
    if spec.has("matchResources") {
        errs.extend(match_resources(spec.at("matchResources"), &path.child("matchResources")));
    }
    if acts {
        errs.extend(validation_actions(&spec.texts("validationActions"), &path.child("validationActions")));
    } else {
        errs.extend(mutable_operations(spec.at("matchResources"), &path.child("matchResources")));
    }
    errs
}

fn param_ref(r: &Value, path: &Path) -> FieldErrors {
    const BOTH: &str = "name and selector are mutually exclusive";
    let (name, selector) = (r.text("name"), r.has("selector"));
    let mut errs = Vec::new();
    if !name.is_empty() {
        errs.extend(invalid_each(&path.child("name"), name, names::path_segment_name(name)));
        if selector {
            errs.push(FieldError::forbidden(&path.child("name"), BOTH));
        }
    }
    if selector {
        errs.extend(label_selector(r.at("selector"), &path.child("selector")));
        if !name.is_empty() {
            errs.push(FieldError::forbidden(&path.child("selector"), BOTH));
        }
    } else if name.is_empty() {
        errs.push(FieldError::required(path, "one of name or selector must be specified"));
    }
    match r.text("parameterNotFoundAction") {
        "" => errs.push(FieldError::required(&path.child("parameterNotFoundAction"), "")),
        a => errs.extend(supported(a, &["Deny", "Allow"], &path.child("parameterNotFoundAction"))),
    }
    errs
}

fn validation_actions(all: &[&str], path: &Path) -> FieldErrors {
    let mut seen = BTreeSet::new();
    let mut errs = Vec::new();
    for (i, a) in all.iter().enumerate() {
        errs.extend(supported(a, &ACTIONS, &path.index(i)));
        if !seen.insert(*a) {
            errs.push(FieldError::duplicate(&path.index(i), *a));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let m = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errs.push(FieldError::invalid(path, all, m));
    }
    if all.is_empty() {
        errs.push(FieldError::required(path, "").declared());
    }
    errs
}

fn api_service_name(service: &Value, name: &str, _prefix: bool) -> Vec<String> {
    let wanted = format!("{}.{}", service.text("spec.version"), service.text("spec.group"));
    match names::path_segment_name(name) {
        wrong if !wrong.is_empty() => wrong,
        _ if name == wanted => Vec::new(),
        _ => vec![format!("must be `spec.version+\".\"+spec.group`: {wanted:?}")],
    }
}

fn api_service(s: &Value) -> FieldErrors {
    let (spec, path) = (s.at("spec"), Path::new("spec"));
    let (group, version) = (spec.text("group"), spec.text("version"));
    let mut errs = Vec::new();
    if group.is_empty() && version != "v1" {
        let m = "only v1 may have an empty group and it better be legacy kube";
        errs.push(FieldError::required(&path.child("group"), m));
    }
    if !group.is_empty() {
        errs.extend(invalid_each(&path.child("group"), group, names::dns1123_subdomain(group)));
    }
    errs.extend(invalid_each(&path.child("version"), version, names::dns1035_label(version)));
    for (field, most) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let n = spec.int_or(field, 0);
        if n <= 0 || n > most {
            errs.push(FieldError::invalid(&path.child(field), n, format!("must be positive and less than {most}")));
        }
    }
    let (bundle, insecure) = (spec.text("caBundle"), spec.flag("insecureSkipTLSVerify"));
    if !spec.has("service") {
        if !bundle.is_empty() {
            let bytes = bundle.len() / 4 * 3 - bundle.bytes().rev().take_while(|b| *b == b'=').count();
            let m = "local APIServices may not have a caBundle";
            errs.push(FieldError::invalid(&path.child("caBundle"), format!("{bytes} bytes"), m));
        }
        if insecure {
            let m = "local APIServices may not have insecureSkipTLSVerify";
            errs.push(FieldError::invalid(&path.child("insecureSkipTLSVerify"), true, m));
        }
        return errs;
    }
    let p = path.child("service");
    for f in ["namespace", "name"].iter().filter(|f| spec.at("service").is_empty_at(f)) {
        errs.push(FieldError::required(&p.child(f), ""));
    }
    errs.extend(service_port(spec.at("service"), &p));
    if insecure && !bundle.is_empty() {
        let m = "may not be true if caBundle is present";
        errs.push(FieldError::invalid(&path.child("insecureSkipTLSVerify"), true, m));
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(errs: &FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    fn hook() -> Value {
        json!({"name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "s", "namespace": "n", "port": 443, "path": "/a/b"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "scope": "*"}]})
    }

    #[test]
    fn webhooks_of_admission() {
        assert_eq!(webhooks(&json!({"webhooks": [hook()]})), Vec::new());
        let mut bad = hook();
        bad["clientConfig"] = json!({"url": "http://u@host?x=1#f"});
        bad["rules"][0]["resources"] = json!(["*", "pods"]);
        bad["rules"][0]["operations"] = json!(["*", "WALK"]);
        bad["sideEffects"] = json!("Some");
        bad["timeoutSeconds"] = json!(31);
        bad["admissionReviewVersions"] = json!(["v2"]);
        let all = say(&webhooks(&json!({"webhooks": [bad, bad.clone()]})));
        assert_eq!(all.len(), 21, "{all:#?}");
        assert!(all[0].contains("if '*' is present, must not specify other operations"), "{}", all[0]);
        assert!(all.last().is_some_and(|m| m == "webhooks[1].name: Duplicate value: \"a.example.com\""));
    }

    #[test]
    fn policies_and_bindings() {
        let constraints = json!({"matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {},
            "resourceRules": [hook()["rules"][0].clone()]});
        let good = json!({"spec": {"failurePolicy": "Fail", "matchConstraints": constraints,
            "validations": [{"expression": "true"}], "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}}});
        assert_eq!(policy(&good), Vec::new());
        let empty = say(&policy(&json!({"spec": {"failurePolicy": "Fail"}})));
        assert_eq!(empty[0], "spec.matchConstraints: Required value");
        assert_eq!(empty.len(), 3);
        let bad = json!({"spec": {"policyName": "p", "paramRef": {}, "validationActions": ["Deny", "Warn", "Deny"]}});
        assert_eq!(binding(&bad, true).len(), 4);
    }

    #[test]
    fn api_services() {
        let good = json!({"metadata": {"name": "v1.a.b"}, "spec": {"group": "a.b", "version": "v1",
            "groupPriorityMinimum": 100, "versionPriority": 10, "service": {"name": "s", "namespace": "n", "port": 443}}});
        assert_eq!(api_service(&good), Vec::new());
        let bad = json!({"metadata": {"name": "x"}, "spec": {"group": "a.b", "version": "v1", "caBundle": "AAAA",
            "groupPriorityMinimum": 100, "versionPriority": 10}});
        let told = ["spec.caBundle: Invalid value: \"3 bytes\": local APIServices may not have a caBundle"];
        assert_eq!(say(&api_service(&bad)), told);
        assert_eq!(api_service_name(&good, "v1.a.b", false), [""; 0]);
        assert_eq!(api_service_name(&bad, "x", false), ["must be `spec.version+\".\"+spec.group`: \"v1.a.b\""]);
        assert_eq!(api_service_name(&bad, "a/b", false), ["may not contain '/'"]);
    }

    #[test]
    fn mutating_policies() {
        let rule = json!({"operations": ["CREATE"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]});
        let good = json!({"metadata": {"name": "p"}, "spec": {
            "failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "matchConstraints": {"matchPolicy": "Exact", "namespaceSelector": {}, "objectSelector": {}, "resourceRules": [rule]},
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'test'}]"}}]}});
        assert_eq!(mutating_policy(&good), Vec::new());
        let mut bad = good;
        bad["spec"]["matchConstraints"]["resourceRules"][0]["operations"] = json!(["DELETE"]);
        bad["spec"]["mutations"][0] = json!({"patchType": "ApplyConfiguration", "jsonPatch": {}});
        bad["spec"]["variables"] = json!([{"name": "Not Valid!", "expression": "1"}]);
        let fields: Vec<String> = mutating_policy(&bad).into_iter().map(|e| e.field).collect();
        assert_eq!(
            fields,
            [
                "spec.matchConstraints.resourceRules.operations",
                "spec.variables[0].name",
                "spec.mutations[0].applyConfiguration",
                "spec.mutations[0].jsonPatch"
            ]
        );
    }
}
