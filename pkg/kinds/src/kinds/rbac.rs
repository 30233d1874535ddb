//! Roles and bindings.

use crate::access::Access;
use crate::metadata::{immutable, label_selector};
use crate::strategy::{STATELESS, Strategy};
use crate::validation::check::{invalid_each, required};
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;

const GROUP: &str = "rbac.authorization.k8s.io";
const BASE: Strategy = Strategy { create_on_update: true, ..STATELESS };

pub fn strategy(kind: &str) -> Strategy {
    match kind {
        "Role" => Strategy { create: |r| rules(r, true), update: |r, _| rules(r, true), ..BASE },
        "ClusterRole" => Strategy { create: cluster_role, update: |r, _| cluster_role(r), ..BASE },
        "RoleBinding" => {
            Strategy { create: |b| binding(b, true), update: |new, old| binding_update(new, old, true), ..BASE }
        }
        "ClusterRoleBinding" => {
            Strategy { create: |b| binding(b, false), update: |new, old| binding_update(new, old, false), ..BASE }
        }
        _ => BASE,
    }
}

fn rules(role: &Value, namespaced: bool) -> FieldErrors {
    let list = role.list("rules").iter().enumerate();
    list.flat_map(|(i, r)| rule(r, namespaced, &Path::new("rules").index(i))).collect()
}

/// One policy rule; access reviews show the same errors.
pub fn rule(r: &Value, namespaced: bool, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let empty = |f: &str| r.list(f).is_empty();
    if empty("verbs") {
        errs.push(FieldError::required(&path.child("verbs"), "").declared());
    }
    if !empty("nonResourceURLs") {
        let (p, urls) = (path.child("nonResourceURLs"), r.at("nonResourceURLs"));
        if namespaced {
            let m = "namespaced rules cannot apply to non-resource URLs";
            errs.push(FieldError::invalid(&p, urls.clone(), m));
        }
        if !empty("apiGroups") || !empty("resources") || !empty("resourceNames") {
            let m = "rules cannot apply to both regular resources and non-resource URLs";
            errs.push(FieldError::invalid(&p, urls.clone(), m));
        }
        return errs;
    }
    for (f, what) in [("apiGroups", "api group"), ("resources", "resource")] {
        if empty(f) {
            let m = format!("resource rules must supply at least one {what}");
            errs.push(FieldError::required(&path.child(f), m));
        }
    }
    errs
}

fn cluster_role(role: &Value) -> FieldErrors {
    let mut errs = rules(role, false);
    if role.has("aggregationRule") {
        let p = Path::new("aggregationRule").child("clusterRoleSelectors");
        let list = role.list("aggregationRule.clusterRoleSelectors");
        if list.is_empty() {
            let m = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errs.push(FieldError::required(&p, m));
        }
        for (i, s) in list.iter().enumerate() {
            errs.extend(label_selector(s, &p.index(i)));
        }
    }
    errs
}

fn binding(b: &Value, namespaced: bool) -> FieldErrors {
    let (r, p) = (b.at("roleRef"), Path::new("roleRef"));
    let mut errs = Vec::new();
    if r.text("apiGroup") != GROUP {
        errs.push(FieldError::not_supported(&p.child("apiGroup"), r.text("apiGroup"), &[GROUP]));
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    errs.extend(crate::validation::check::supported(r.text("kind"), kinds, &p.child("kind")));
    errs.extend(match r.text("name") {
        "" => required(r, "name", &p),
        name => invalid_each(&p.child("name"), name, names::path_segment_name(name)),
    });
    for (i, s) in b.list("subjects").iter().enumerate() {
        errs.extend(subject(s, namespaced, &Path::new("subjects").index(i)));
    }
    errs
}

fn subject(s: &Value, namespaced: bool, path: &Path) -> FieldErrors {
    let (name, group) = (s.text("name"), s.text("apiGroup"));
    let mut errs: FieldErrors = required(s, "name", path).into_iter().map(FieldError::declared).collect();
    match s.text("kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                errs.extend(invalid_each(&path.child("name"), name, names::dns1123_subdomain(name)));
            }
            if !group.is_empty() {
                errs.push(FieldError::not_supported(&path.child("apiGroup"), group, &[""]));
            }
            if !namespaced && s.text("namespace").is_empty() {
                errs.push(FieldError::required(&path.child("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errs.push(FieldError::not_supported(&path.child("apiGroup"), group, &[GROUP]));
            }
        }
        kind => {
            let known = ["ServiceAccount", "User", "Group"];
            errs.push(FieldError::not_supported(&path.child("kind"), kind, &known));
        }
    }
    errs
}

fn binding_update(new: &Value, old: &Value, namespaced: bool) -> FieldErrors {
    let mut errs = binding(new, namespaced);
    errs.extend(immutable(new, old, "roleRef", &Path::root()));
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
    fn roles_and_bindings() {
        let ok = json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
        assert_eq!(say(rules(&ok, true)), [""; 0]);
        assert_eq!(
            say(rules(&json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}, {}]}), true)),
            [
                "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
                "rules[1].verbs: Required value",
                "rules[1].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[1].resources: Required value: resource rules must supply at least one resource"
            ]
        );
        let b = json!({"roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "x"}, "subjects": [{"kind": "ServiceAccount", "name": "a"}]});
        assert_eq!(say(binding(&b, true)), [""; 0]);
        assert_eq!(say(binding(&b, false)), ["subjects[0].namespace: Required value"]);
        let other = json!({"roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "x"}});
        assert_eq!(say(binding_update(&other, &b, true)).len(), 1);
    }
}
