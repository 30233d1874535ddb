//! Where a pod may run: affinity, tolerations, topology spread, node selectors.

use super::check::{invalid_each, one_of_if_set, positive};
use crate::access::{Access, same};
use crate::kinds::node::taint_effect;
use crate::metadata::{label_name, label_selector};
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;
use std::collections::BTreeSet;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub fn affinity(a: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let (node, p) = (a.at("nodeAffinity"), path.child("nodeAffinity"));
    if node.has(REQUIRED) {
        errs.extend(node_selector(node.at(REQUIRED), &p.child(REQUIRED)));
    }
    for (i, t) in node.list(PREFERRED).iter().enumerate() {
        let p = p.child(PREFERRED).index(i);
        errs.extend(weight(t, &p));
        errs.extend(node_selector_term(t.at("preference"), true, &p.child("preference")));
    }
    for side in ["podAffinity", "podAntiAffinity"] {
        let (v, p) = (a.at(side), path.child(side));
        for (i, t) in v.list(REQUIRED).iter().enumerate() {
            errs.extend(pod_affinity_term(t, &p.child(REQUIRED).index(i)));
        }
        for (i, t) in v.list(PREFERRED).iter().enumerate() {
            let p = p.child(PREFERRED).index(i);
            errs.extend(weight(t, &p));
            errs.extend(pod_affinity_term(t.at("podAffinityTerm"), &p.child("podAffinityTerm")));
        }
    }
    errs
}

fn weight(t: &Value, path: &Path) -> FieldErrors {
    match t.int_or("weight", 0) {
        1..=100 => Vec::new(),
        n => vec![FieldError::invalid(&path.child("weight"), n, "must be in the range 1-100")],
    }
}

pub fn node_selector(s: &Value, path: &Path) -> FieldErrors {
    let (terms, p) = (s.list("nodeSelectorTerms"), path.child("nodeSelectorTerms"));
    if terms.is_empty() {
        return vec![FieldError::required(&p, "must have at least one node selector term")];
    }
    terms.iter().enumerate().flat_map(|(i, t)| node_selector_term(t, false, &p.index(i))).collect()
}

fn node_selector_term(t: &Value, any_value: bool, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (i, r) in t.list("matchExpressions").iter().enumerate() {
        errs.extend(node_requirement(r, any_value, &path.child("matchExpressions").index(i)));
    }
    for (i, r) in t.list("matchFields").iter().enumerate() {
        errs.extend(node_field_requirement(r, &path.child("matchFields").index(i)));
    }
    errs
}

fn node_requirement(r: &Value, any_value: bool, path: &Path) -> FieldErrors {
    let (values, p) = (r.texts("values"), path.child("values"));
    let mut errs = Vec::new();
    match (r.text("operator"), values.len()) {
        ("In" | "NotIn", 0) => {
            errs.push(FieldError::required(&p, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        ("In" | "NotIn", _) | ("Exists" | "DoesNotExist", 0) | ("Gt" | "Lt", 1) => {}
        ("Exists" | "DoesNotExist", _) => {
            let m = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errs.push(FieldError::forbidden(&p, m));
        }
        ("Gt" | "Lt", _) => {
            let m = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errs.push(FieldError::required(&p, m));
        }
        (op, _) => errs.push(FieldError::invalid(&path.child("operator"), op, "not a valid selector operator")),
    }
    errs.extend(label_name(r.text("key"), &path.child("key")));
    if !any_value {
        for (i, v) in values.iter().enumerate() {
            errs.extend(invalid_each(&p.index(i), v, names::label_value(v)));
        }
    }
    errs
}

fn node_field_requirement(r: &Value, path: &Path) -> FieldErrors {
    let (values, p) = (r.texts("values"), path.child("values"));
    let mut errs = Vec::new();
    match (r.text("operator"), values.len()) {
        ("In" | "NotIn", 1) => {}
        ("In" | "NotIn", _) => {
            let m = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errs.push(FieldError::required(&p, m));
        }
        (op, _) => errs.push(FieldError::invalid(&path.child("operator"), op, "not a valid selector operator")),
    }
    if r.text("key") == "metadata.name" {
        for (i, v) in values.iter().enumerate() {
            errs.extend(invalid_each(&p.index(i), v, names::dns1123_subdomain(v)));
        }
    } else {
        errs.push(FieldError::invalid(&path.child("key"), r.text("key"), "not a valid field selector key"));
    }
    errs
}

fn pod_affinity_term(t: &Value, path: &Path) -> FieldErrors {
    let mut errs = label_selector(t.at("labelSelector"), &path.child("labelSelector"));
    errs.extend(label_selector(t.at("namespaceSelector"), &path.child("namespaceSelector")));
    for ns in t.texts("namespaces") {
        errs.extend(invalid_each(&path.child("namespace"), ns, names::dns1123_label(ns)));
    }
    errs.extend(label_keys(t, path));
    let key = t.text("topologyKey");
    if key.is_empty() {
        errs.push(FieldError::required(&path.child("topologyKey"), "can not be empty"));
    }
    errs.extend(label_name(key, &path.child("topologyKey")));
    errs
}

/// `matchLabelKeys` and `mismatchLabelKeys` beside a selector.
fn label_keys(t: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for f in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = t.texts(f);
        if keys.is_empty() {
            continue;
        }
        let p = path.child(f);
        if !t.has("labelSelector") {
            errs.push(FieldError::forbidden(&p, "must not be specified when labelSelector is not set"));
            continue;
        }
        for (i, k) in keys.iter().enumerate() {
            errs.extend(label_name(k, &p.index(i)));
        }
    }
    let keys = t.texts("matchLabelKeys");
    // The server itself adds one expression for each key: only a second one is the user's.
    let mut seen: BTreeSet<&str> = t.entries("labelSelector.matchLabels").into_iter().map(|(k, _)| k).collect();
    for e in t.list("labelSelector.matchExpressions") {
        let key = e.text("key");
        if let Some(i) = keys.iter().position(|k| *k == key).filter(|_| seen.contains(key)) {
            let m = "exists in both matchLabelKeys and labelSelector";
            errs.push(FieldError::invalid(&path.index(i), key, m));
        }
        seen.insert(key);
    }
    let mismatch = t.texts("mismatchLabelKeys");
    for (i, k) in keys.iter().enumerate().filter(|(_, k)| mismatch.contains(k)) {
        let m = "exists in both matchLabelKeys and mismatchLabelKeys";
        errs.push(FieldError::invalid(&path.child("matchLabelKeys").index(i), *k, m));
    }
    errs
}

pub fn tolerations(list: &[Value], path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (i, t) in list.iter().enumerate() {
        let p = path.index(i);
        let (key, op, value, effect) = (t.text("key"), t.text("operator"), t.text("value"), t.text("effect"));
        let operator = p.child("operator");
        if !key.is_empty() {
            errs.extend(label_name(key, &p.child("key")));
        } else if op != "Exists" {
            let m = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errs.push(FieldError::invalid(&operator, op, m));
        }
        if t.has("tolerationSeconds") && effect != "NoExecute" {
            let m = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errs.push(FieldError::invalid(&p.child("effect"), effect, m));
        }
        match op {
            "Equal" | "" => {
                let msgs = names::label_value(value);
                if !msgs.is_empty() {
                    errs.push(FieldError::invalid(&operator, value, msgs.join(";")));
                }
            }
            "Exists" if value.is_empty() => {}
            "Exists" => {
                errs.push(FieldError::invalid(&operator, value, "value must be empty when `operator` is 'Exists'"));
            }
            "Lt" | "Gt" => errs.push(FieldError::not_supported(&operator, op, &["Equal", "Exists", "Lt", "Gt"])),
            _ => errs.push(FieldError::not_supported(&operator, op, &["Equal", "Exists"])),
        }
        errs.extend(taint_effect(effect, true, &p.child("effect")));
    }
    errs
}

pub fn topology_spread(list: &[Value], path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (i, c) in list.iter().enumerate() {
        let p = path.index(i);
        errs.extend(positive(c, "maxSkew", &p));
        let (key, action) = (c.text("topologyKey"), c.text("whenUnsatisfiable"));
        if key.is_empty() {
            errs.push(FieldError::required(&p.child("topologyKey"), "can not be empty"));
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&action) {
            errs.push(FieldError::not_supported(&p.child("whenUnsatisfiable"), action, &actions));
        }
        let twin = |o: &&Value| o.text("topologyKey") == key && o.text("whenUnsatisfiable") == action;
        if list[i + 1..].iter().any(|o| twin(&o)) {
            let p = p.child("{topologyKey, whenUnsatisfiable}");
            errs.push(FieldError::duplicate(&p, format!("{{{key}, {action}}}")));
        }
        if let Some(n) = c.int("minDomains") {
            errs.extend(positive(c, "minDomains", &p));
            if action != "DoNotSchedule" {
                let m = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errs.push(FieldError::invalid(&p.child("minDomains"), n, m));
            }
        }
        for f in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            errs.extend(one_of_if_set(c, f, &["Honor", "Ignore"], &p));
        }
        errs.extend(label_keys(c, &p));
        errs.extend(label_selector(c.at("labelSelector"), &p.child("labelSelector")));
    }
    errs
}

/// A gated pod may only narrow where it runs.
pub fn node_affinity_only_narrows(new: &Value, old: &Value, path: &Path) -> FieldErrors {
    let before = old.at(REQUIRED).list("nodeSelectorTerms");
    if before.is_empty() {
        return Vec::new();
    }
    let now = new.at(REQUIRED).list("nodeSelectorTerms");
    let p = path.child(REQUIRED).child("nodeSelectorTerms");
    if before.len() != now.len() {
        let m = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return vec![FieldError::invalid(&p, Value::from(now.to_vec()), m)];
    }
    let grown = |n: &Value, o: &Value| {
        let lists = ["matchExpressions", "matchFields"];
        let was_empty = lists.iter().all(|f| o.list(f).is_empty());
        let is_empty = lists.iter().all(|f| n.list(f).is_empty());
        let prefix = |f: &&str| {
            let (a, b) = (n.list(f), o.list(f));
            a.len() >= b.len() && a.iter().zip(b).all(|(x, y)| same(x, y))
        };
        (!was_empty || is_empty) && lists.iter().all(prefix)
    };
    let changed = now.iter().zip(before).enumerate().filter(|(_, (n, o))| !grown(n, o));
    let m = "only additions are allowed (no mutations or deletions)";
    changed.map(|(i, (n, _))| FieldError::invalid(&p.index(i), n.clone(), m)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn say(errs: FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_of_placement() {
        let p = Path::new("t");
        assert_eq!(
            say(tolerations(
                &[
                    json!({"operator": "Equal"}),
                    json!({"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 1})
                ],
                &p
            )),
            [
                "t[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
                "t[1].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when `tolerationSeconds` is set"
            ]
        );
        let c = json!({"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "Maybe"});
        assert_eq!(
            say(topology_spread(&[c], &p)),
            [
                "t[0].maxSkew: Invalid value: 0: must be greater than zero",
                "t[0].whenUnsatisfiable: Unsupported value: \"Maybe\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\""
            ]
        );
        let a = json!({"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": []}}, "podAffinity": {REQUIRED: [{}]}});
        assert_eq!(say(affinity(&a, &p)).len(), 4);
    }
}
