//! What the API server itself says in the status of a definition: which of its names are accepted, and the conditions. Pure
//! functions; upstream has a controller for each (`apiextensions-apiserver/pkg/controller`).

use crate::access::{Access, same, set, unset};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Holds a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Whether a condition of the definition is true.
pub fn is_true(definition: &Value, kind: &str) -> bool {
    condition(definition, kind).is_some_and(|c| c.text("status") == "True")
}

fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a Value> {
    definition.list("status.conditions").iter().find(|c| c.text("type") == kind)
}

/// Sets a condition; its time changes with its status.
pub fn set_condition(definition: &mut Value, kind: &str, status: &str, reason: &str, message: &str, now: &str) {
    let wanted =
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now});
    if !definition.at("status.conditions").is_array() {
        set(definition, "status.conditions", json!([]));
    }
    let Some(all) = definition["status"]["conditions"].as_array_mut() else { return };
    match all.iter_mut().find(|c| c.text("type") == kind) {
        None => all.push(wanted),
        Some(known) => {
            let since = known["lastTransitionTime"].clone();
            let stays = known.text("status") == status && !since.is_null();
            *known = wanted;
            if stays {
                known["lastTransitionTime"] = since;
            }
        }
    }
}

/// Whether a definition's resources are served.
pub fn is_served(definition: &Value) -> bool {
    is_true(definition, "NamesAccepted") || is_true(definition, "Established")
}

/// Brings the status up to date: `others` are the other definitions of its group, which hold the names that they were granted.
pub fn settle<'a>(definition: &mut Value, others: impl Iterator<Item = &'a Value>, now: &str) {
    accept_names(definition, others, now);
    if is_true(definition, "NamesAccepted") && !is_true(definition, "Established") {
        let message = "the initial names have been accepted";
        set_condition(definition, "Established", "True", "InitialNamesAccepted", message, now);
    }
    if definition.flag("spec.preserveUnknownFields") {
        let message = "spec.preserveUnknownFields: Invalid value: true: must be false";
        set_condition(definition, "NonStructuralSchema", "True", "Violations", message, now);
    } else if let Some(all) = definition.at("status.conditions").as_array()
        && all.iter().any(|c| c.text("type") == "NonStructuralSchema")
    {
        let left: Vec<Value> = all.iter().filter(|c| c.text("type") != "NonStructuralSchema").cloned().collect();
        set(definition, "status.conditions", left);
    }
    approve(definition, now);
}

fn accept_names<'a>(definition: &mut Value, others: impl Iterator<Item = &'a Value>, now: &str) {
    let wanted = definition.at("spec.names").clone();
    let before = definition.at("status.acceptedNames").clone();
    if same(&wanted, &before) && condition(definition, "NamesAccepted").is_some() {
        return;
    }
    let (mut resources, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for other in others {
        let names = other.at("status.acceptedNames");
        resources.extend(["plural", "singular"].map(|n| names.text(n).to_owned()));
        resources.extend(names.texts("shortNames").into_iter().map(str::to_owned));
        kinds.extend(["kind", "listKind"].map(|n| names.text(n).to_owned()));
    }
    let mut accepted = before.clone();
    let mut conflict = None;
    let taken = |name: &str, had: &str, used: &BTreeSet<String>| name != had && used.contains(name);
    let in_use = |name: &str| format!("{name:?} is already in use");
    let one = |accepted: &mut Value, conflict: &mut Option<(&str, String)>, field: &str, reason, used| {
        let name = wanted.text(field);
        match taken(name, before.text(field), used) {
            true => *conflict = Some((reason, in_use(name))),
            false => set(accepted, field, name),
        }
    };
    one(&mut accepted, &mut conflict, "plural", "PluralConflict", &resources);
    one(&mut accepted, &mut conflict, "singular", "SingularConflict", &resources);
    let had = before.texts("shortNames");
    let short = wanted.texts("shortNames");
    let clashes: Vec<String> =
        short.iter().filter(|n| !had.contains(n) && resources.contains(**n)).map(|n| in_use(n)).collect();
    match clashes.as_slice() {
        [] => copy(&mut accepted, &wanted, "shortNames"),
        [only] => conflict = Some(("ShortNamesConflict", only.clone())),
        many => conflict = Some(("ShortNamesConflict", format!("[{}]", many.join(", ")))),
    }
    one(&mut accepted, &mut conflict, "kind", "KindConflict", &kinds);
    one(&mut accepted, &mut conflict, "listKind", "ListKindConflict", &kinds);
    copy(&mut accepted, &wanted, "categories");
    set(definition, "status.acceptedNames", accepted);
    match conflict {
        None => set_condition(definition, "NamesAccepted", "True", "NoConflicts", "no conflicts found", now),
        Some((reason, message)) => {
            set_condition(definition, "NamesAccepted", "False", reason, &message, now);
            if condition(definition, "Established").is_none() {
                let message = "not all names are accepted";
                set_condition(definition, "Established", "False", "NotAccepted", message, now);
            }
        }
    }
}

fn copy(to: &mut Value, from: &Value, field: &str) {
    match from.at(field) {
        Value::Null => unset(to, field),
        value => set(to, field, value.clone()),
    }
}

/// Groups of the community need an approval (kubernetes/enhancements#1111).
fn approve(definition: &mut Value, now: &str) {
    let group = definition.text("spec.group");
    let protected = |domain: &str| group == domain || group.strip_suffix(domain).is_some_and(|g| g.ends_with('.'));
    if !protected("k8s.io") && !protected("kubernetes.io") {
        return;
    }
    let annotation = definition.entry_text("metadata.annotations", "api-approved.kubernetes.io").to_owned();
    let rule = "protected groups must have approval annotation \"api-approved.kubernetes.io\"";
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let url = annotation.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty());
    let (status, reason, message) = match annotation.as_str() {
        "" => ("False", "MissingAnnotation", format!("{rule}, {see}")),
        a if a.starts_with("unapproved") => ("False", "UnapprovedAnnotation", format!("not approved: {a:?}")),
        a if url => ("True", "ApprovedAnnotation", format!("approved in {a}")),
        _ => {
            let form = "with either a URL or a reason starting with \"unapproved\"";
            ("False", "InvalidAnnotation", format!("{rule} {form}, {see}"))
        }
    };
    set_condition(definition, "KubernetesAPIApprovalPolicyConformant", status, reason, &message, now);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &[&str]) -> Value {
        json!({"spec": {"group": "example.com", "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind,
            "listKind": format!("{kind}List"), "shortNames": short}}})
    }

    fn shown(d: &Value, kind: &str) -> String {
        let c = condition(d, kind).cloned().unwrap_or_default();
        format!("{} {}: {}", c.text("status"), c.text("reason"), c.text("message"))
    }

    #[test]
    fn names_belong_to_whom_they_were_granted_first() {
        let mut first = definition("foos", "Foo", &["f"]);
        settle(&mut first, std::iter::empty(), "t1");
        assert_eq!(shown(&first, "NamesAccepted"), "True NoConflicts: no conflicts found");
        assert_eq!(shown(&first, "Established"), "True InitialNamesAccepted: the initial names have been accepted");
        assert!(same(first.at("status.acceptedNames"), first.at("spec.names")));
        let settled = first.clone();
        settle(&mut first, std::iter::empty(), "t2");
        assert_eq!(first, settled, "nothing to say");

        let mut second = definition("foos2", "Foo", &["f", "g"]);
        settle(&mut second, [&first].into_iter(), "t3");
        assert_eq!(shown(&second, "NamesAccepted"), "False ListKindConflict: \"FooList\" is already in use");
        assert_eq!(shown(&second, "Established"), "False NotAccepted: not all names are accepted");
        assert_eq!(second.text("status.acceptedNames.plural"), "foos2");
        assert!(!is_served(&second));
        settle(&mut second, std::iter::empty(), "t4");
        assert!(is_served(&second) && is_true(&second, "Established"), "the names are free now");
    }

    #[test]
    fn protected_groups_need_an_approval() {
        for (annotation, want) in [
            ("https://x/1", "True ApprovedAnnotation: approved in https://x/1"),
            ("unapproved, test", "False UnapprovedAnnotation: not approved: \"unapproved, test\""),
        ] {
            let mut d = definition("foos", "Foo", &[]);
            set(&mut d, "spec.group", "x.k8s.io");
            d["metadata"] = json!({"annotations": {"api-approved.kubernetes.io": annotation}});
            settle(&mut d, std::iter::empty(), "t");
            assert_eq!(shown(&d, "KubernetesAPIApprovalPolicyConformant"), want);
        }
    }
}
