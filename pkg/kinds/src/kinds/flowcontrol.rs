//! FlowSchemas and PriorityLevelConfigurations.

use crate::access::Access;
use crate::ownership;
use crate::strategy::{PLAIN, Strategy};
use crate::validation::check::{invalid_each, required, supported};
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const EXEMPT: &str = "exempt";
const MAX_PRECEDENCE: i64 = 10_000;
const MAX_QUEUES: i64 = 10_000_000;
/// Bits of the hash that deals hands of queues.
const MAX_HASH_BITS: u32 = 60;
const VERBS: [&str; 9] = ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
/// Kind of a subject and the field that says more.
const SUBJECTS: [(&str, &str); 3] = [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];

pub fn strategy(kind: &str) -> Strategy {
    match kind {
        "FlowSchema" => Strategy {
            owned: ownership::status_alone,
            create: schema,
            update: |new, _| schema(new),
            update_status: |new, _| condition_types(new),
            ..PLAIN
        },
        _ => Strategy {
            owned: ownership::status_alone,
            create: level,
            update: |new, _| level(new),
            update_status: |new, _| condition_types(new),
            ..PLAIN
        },
    }
}

fn condition_types(obj: &Value) -> FieldErrors {
    let mut seen = BTreeSet::new();
    let mut errs = Vec::new();
    for (i, c) in obj.list("status.conditions").iter().enumerate() {
        let p = Path::new("status").child("conditions").index(i);
        if !seen.insert(c.text("type")) {
            errs.push(FieldError::duplicate(&p.child("type"), c.text("type")));
        }
        errs.extend(required(c, "type", &p));
    }
    errs
}

fn schema(s: &Value) -> FieldErrors {
    let (spec, path) = (s.at("spec"), Path::new("spec"));
    let (n, p) = (spec.int_or("matchingPrecedence", 0), path.child("matchingPrecedence"));
    let mut errs = Vec::new();
    if n <= 0 {
        errs.push(FieldError::invalid(&p, n, "must be a positive value"));
    }
    if n > MAX_PRECEDENCE {
        errs.push(FieldError::invalid(&p, n, format!("must not be greater than {MAX_PRECEDENCE}")));
    }
    if n == 1 && s.text("metadata.name") != EXEMPT {
        errs.push(FieldError::invalid(&p, n, "only the schema named 'exempt' may have matchingPrecedence 1"));
    }
    if spec.has("distinguisherMethod") {
        let p = path.child("distinguisherMethod").child("type");
        let (method, known) = (spec.text("distinguisherMethod.type"), ["ByNamespace", "ByUser"]);
        if !known.contains(&method) {
            // The whole struct is shown.
            errs.push(FieldError::not_supported(&p, json!({"Type": method}), &known));
        }
    }
    let p = path.child("priorityLevelConfiguration").child("name");
    match spec.text("priorityLevelConfiguration.name") {
        "" => errs.push(FieldError::required(&p, "must reference a priority level")),
        name => errs.extend(invalid_each(&p, name, names::dns1123_subdomain(name))),
    }
    for (i, r) in spec.list("rules").iter().enumerate() {
        errs.extend(rules(r, &path.child("rules").index(i)));
    }
    errs.extend(condition_types(s));
    errs
}

fn rules(r: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if r.list("subjects").is_empty() {
        errs.push(FieldError::required(&path.child("subjects"), "subjects must contain at least one value"));
    }
    for (i, s) in r.list("subjects").iter().enumerate() {
        errs.extend(subject(s, &path.child("subjects").index(i)));
    }
    if r.list("resourceRules").is_empty() && r.list("nonResourceRules").is_empty() {
        let m = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errs.push(FieldError::required(path, m));
    }
    for (i, rule) in r.list("resourceRules").iter().enumerate() {
        errs.extend(resource_rule(rule, &path.child("resourceRules").index(i)));
    }
    for (i, rule) in r.list("nonResourceRules").iter().enumerate() {
        let p = path.child("nonResourceRules").index(i);
        errs.extend(verbs(rule, &p));
        errs.extend(lone_wildcard(rule, "nonResourceURLs", URLS, "non-resource URLs", &p));
        let urls = rule.texts("nonResourceURLs");
        if !urls.contains(&"*") {
            let p = p.child("nonResourceURLs");
            errs.extend(urls.iter().enumerate().filter_map(|(i, u)| url_path(u, &p.index(i))));
        }
    }
    errs
}

const URLS: &str = "nonResourceURLs must contain at least one value";

fn subject(s: &Value, path: &Path) -> FieldErrors {
    let kind = s.text("kind");
    let Some((_, own)) = SUBJECTS.iter().find(|(k, _)| *k == kind) else {
        let p = path.child("kind");
        return vec![FieldError::not_supported(&p, kind, &["Group", "ServiceAccount", "User"])];
    };
    let (about, p) = (s.at(own), path.child(own));
    let mut errs = Vec::new();
    match (about, about.text("name")) {
        (Value::Null, _) => {
            errs.push(FieldError::required(&p, format!("{own} is required when subject kind is '{kind}'")));
        }
        (_, "") => errs.push(FieldError::required(&p.child("name"), "")),
        (_, name) if kind == "ServiceAccount" && name != "*" => {
            errs.extend(invalid_each(&p.child("name"), name, names::dns1123_subdomain(name)));
        }
        _ => {}
    }
    if kind == "ServiceAccount" && !about.is_null() {
        match about.text("namespace") {
            "" => errs.push(FieldError::required(&p.child("namespace"), "must specify namespace for service account")),
            ns => errs.extend(invalid_each(&p.child("namespace"), ns, names::dns1123_label(ns))),
        }
    }
    for (k, field) in SUBJECTS.iter().filter(|(k, field)| *k != kind && s.has(field)) {
        let m = format!("{field} is forbidden when subject kind is not '{k}'");
        errs.push(FieldError::forbidden(&path.child(field), m));
    }
    errs
}

/// A list that is not empty and may hold `*` only by itself.
fn lone_wildcard(rule: &Value, field: &str, empty: &str, what: &str, path: &Path) -> FieldErrors {
    let (list, p) = (rule.texts(field), path.child(field));
    if list.is_empty() {
        return vec![FieldError::required(&p, empty)];
    }
    if list.len() > 1 && list.contains(&"*") {
        return vec![FieldError::invalid(&p, list, format!("if '*' is present, must not specify other {what}"))];
    }
    Vec::new()
}

fn verbs(rule: &Value, path: &Path) -> FieldErrors {
    let mut errs = lone_wildcard(rule, "verbs", "verbs must contain at least one value", "verbs", path);
    let list = rule.texts("verbs");
    if !list.contains(&"*") && list.iter().any(|v| !VERBS.contains(v)) {
        errs.push(FieldError::not_supported(&path.child("verbs"), list, &VERBS));
    }
    errs
}

fn resource_rule(rule: &Value, path: &Path) -> FieldErrors {
    let mut errs = verbs(rule, path);
    let m = "resource rules must supply at least one api group";
    errs.extend(lone_wildcard(rule, "apiGroups", m, "api groups", path));
    let m = "resource rules must supply at least one resource";
    errs.extend(lone_wildcard(rule, "resources", m, "resources", path));
    let namespaces = rule.texts("namespaces");
    if !namespaces.is_empty() || !rule.flag("clusterScope") {
        let m = "resource rules that are not cluster scoped must supply at least one namespace";
        errs.extend(lone_wildcard(rule, "namespaces", m, "namespaces", path));
    }
    for (i, ns) in namespaces.iter().enumerate().filter(|_| !namespaces.contains(&"*")) {
        let p = path.child("namespaces").index(i);
        let intro = "each member of this list must be '*' or a DNS-1123 label; ";
        let bad = names::dns1123_label(ns).into_iter();
        errs.extend(bad.map(|m| FieldError::invalid(&p, *ns, format!("{intro}{m}"))));
    }
    errs
}

fn url_path(url: &str, path: &Path) -> Option<FieldError> {
    let stars = url.matches('*').count();
    let why = match url {
        "" => "must not be empty",
        "/" => return None,
        _ if !url.starts_with('/') => "must start with slash",
        _ if url.contains(' ') => "must not contain white-space",
        _ if url.contains("//") => "must not contain double slash",
        _ if stars > 1 || (stars == 1 && !url.ends_with("/*")) => "wildcard can only do suffix matching",
        _ => return None,
    };
    Some(FieldError::invalid(path, url, why))
}

fn level(l: &Value) -> FieldErrors {
    let (spec, path) = (l.at("spec"), Path::new("spec"));
    let kind = spec.text("type");
    let mut errs = Vec::new();
    if (l.text("metadata.name") == EXEMPT) != (kind == "Exempt") {
        let m = "must be 'Exempt' if and only if `name` is 'exempt'";
        errs.push(FieldError::invalid(&path.child("type"), kind, m));
    }
    let (exempt, limited) = (path.child("exempt"), path.child("limited"));
    match kind {
        "Exempt" => {
            if spec.has("limited") {
                errs.push(FieldError::forbidden(&limited, "").declared());
            }
            errs.extend(shares(spec.at("exempt"), &exempt));
            errs.extend(lendable(spec.at("exempt"), &exempt));
        }
        "Limited" => {
            if spec.has("exempt") {
                errs.push(FieldError::forbidden(&exempt, "").declared());
            }
            if spec.has("limited") {
                errs.extend(limits(spec.at("limited"), &limited));
            } else {
                errs.push(FieldError::required(&limited, "").declared());
            }
        }
        other => {
            let set = [("limited", &limited), ("exempt", &exempt)].into_iter().filter(|(f, _)| spec.has(f));
            errs.extend(set.map(|(_, p)| FieldError::forbidden(p, "").declared()));
            errs.extend(match other {
                "" => vec![FieldError::required(&path.child("type"), "").declared()],
                _ => supported(other, &["Exempt", "Limited"], &path.child("type")),
            });
        }
    }
    errs.extend(condition_types(l));
    errs
}

fn shares(v: &Value, path: &Path) -> Option<FieldError> {
    let n = v.int("nominalConcurrencyShares").filter(|n| *n < 0)?;
    Some(FieldError::invalid(&path.child("nominalConcurrencyShares"), n, "must be a non-negative integer"))
}

fn lendable(v: &Value, path: &Path) -> Option<FieldError> {
    let n = v.int("lendablePercent").filter(|n| !(0..=100).contains(n))?;
    Some(FieldError::invalid(&path.child("lendablePercent"), n, "must be between 0 and 100, inclusive"))
}

fn limits(l: &Value, path: &Path) -> FieldErrors {
    let mut errs: FieldErrors = shares(l, path).into_iter().collect();
    let (response, p) = (l.at("limitResponse"), path.child("limitResponse"));
    let queuing = p.child("queuing");
    match (response.text("type"), response.has("queuing")) {
        ("Reject", true) => {
            errs.push(FieldError::forbidden(&queuing, "").declared());
        }
        ("Queue", false) => {
            errs.push(FieldError::required(&queuing, "").declared());
        }
        ("Queue", true) => errs.extend(queues(response.at("queuing"), &queuing)),
        ("Reject", false) => {}
        (other, queued) => {
            if queued {
                errs.push(FieldError::forbidden(&queuing, "").declared());
            }
            errs.extend(match other {
                "" => vec![FieldError::required(&p.child("type"), "").declared()],
                _ => supported(other, &["Queue", "Reject"], &p.child("type")),
            });
        }
    }
    errs.extend(lendable(l, path));
    if let Some(n) = l.int("borrowingLimitPercent").filter(|n| *n < 0) {
        let m = "if specified, must be a non-negative integer";
        errs.push(FieldError::invalid(&path.child("borrowingLimitPercent"), n, m));
    }
    errs
}

fn queues(q: &Value, path: &Path) -> FieldErrors {
    let (length, queues, hand) = (q.int_or("queueLengthLimit", 0), q.int_or("queues", 0), q.int_or("handSize", 0));
    let mut errs = Vec::new();
    if length <= 0 {
        errs.push(FieldError::invalid(&path.child("queueLengthLimit"), length, "must be positive"));
    }
    if queues <= 0 {
        errs.push(FieldError::invalid(&path.child("queues"), queues, "must be positive"));
    } else if queues > MAX_QUEUES {
        errs.push(FieldError::invalid(&path.child("queues"), queues, format!("must not be greater than {MAX_QUEUES}")));
    }
    let p = path.child("handSize");
    let bits = entropy_bits(queues, hand);
    if hand <= 0 {
        errs.push(FieldError::invalid(&p, hand, "must be positive"));
    } else if hand > queues {
        errs.push(FieldError::invalid(&p, hand, format!("should not be greater than queues ({queues})")));
    } else if bits > MAX_HASH_BITS {
        let m = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MAX_HASH_BITS}"
        );
        errs.push(FieldError::invalid(&p, hand, m));
    }
    errs
}

/// Bits that it takes to deal a hand out of so many queues.
fn entropy_bits(queues: i64, hand: i64) -> u32 {
    ((queues as f64).log2() * hand as f64).ceil().max(0.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn flow_schemas() {
        let good = json!({"metadata": {"name": "f"}, "spec": {"matchingPrecedence": 5,
            "priorityLevelConfiguration": {"name": "p"}, "rules": [{
                "subjects": [{"kind": "Group", "group": {"name": "*"}}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["/healthz", "/apis/*"]}],
                "resourceRules": [{"verbs": ["get"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}]}]}});
        assert_eq!(schema(&good), Vec::new());
        let mut bad = good;
        bad["spec"]["matchingPrecedence"] = json!(1);
        bad["spec"]["rules"][0]["subjects"] = json!([{"kind": "User", "group": {}}]);
        bad["spec"]["rules"][0]["nonResourceRules"][0] = json!({"verbs": ["fly"], "nonResourceURLs": ["a"]});
        let all: Vec<String> = schema(&bad).iter().map(ToString::to_string).collect();
        assert_eq!(all.len(), 5, "{all:?}");
        assert!(all[1].contains("user is required when subject kind is 'User'"));
    }

    #[test]
    fn priority_levels() {
        let queue = json!({"queues": 64, "handSize": 6, "queueLengthLimit": 50});
        let good = json!({"metadata": {"name": "p"}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 30, "lendablePercent": 0, "limitResponse": {"type": "Queue", "queuing": queue}}}});
        assert_eq!(level(&good), Vec::new());
        let mut bad = good;
        bad["spec"]["limited"]["limitResponse"]["queuing"]["handSize"] = json!(11);
        bad["spec"]["limited"]["lendablePercent"] = json!(101);
        assert_eq!(level(&bad).len(), 2);
        assert_eq!(level(&json!({"metadata": {"name": "exempt"}, "spec": {"type": "Limited"}})).len(), 2);
    }
}
