//! Upstream's bootstrap policy: the roles and bindings that a cluster is born with.
//!
//! `policy.txt` is generated from upstream's own test data by `hack/bootstrap-policy/generate.py`. An object begins at the
//! left margin: kind, name (with its namespace before a slash), labels beyond the one that all have. Below it, indented:
//! `VERBS GROUPS RESOURCES [NAMES]` or `VERBS URLS` for a rule, lists joined by commas and `""` for the core group;
//! `aggregate LABEL=VALUE` for what a role collects; `to KIND NAME` for the role of a binding; `KIND NAME` for a subject.

use serde_json::{Map, Value, json};

const POLICY: &str = include_str!("policy.txt");
const GROUP: &str = "rbac.authorization.k8s.io";

/// Every object of the policy. Aggregated roles come without rules: a controller collects them.
pub fn objects() -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    for line in POLICY.lines() {
        match line.strip_prefix("  ") {
            None => objects.push(begin(line)),
            Some(part) => {
                if let Some(object) = objects.last_mut() {
                    extend(object, part);
                }
            }
        }
    }
    objects
}

fn begin(line: &str) -> Value {
    let mut words = line.split(' ');
    let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut labels = Map::from_iter([("kubernetes.io/bootstrapping".to_owned(), "rbac-defaults".into())]);
    for (key, value) in words.filter_map(|w| w.split_once('=')) {
        labels.insert(key.to_owned(), value.into());
    }
    let mut metadata = json!({
        "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" },
        "labels": labels,
    });
    let name = match name.split_once('/') {
        Some((namespace, name)) => {
            metadata["namespace"] = namespace.into();
            name
        }
        None => name,
    };
    metadata["name"] = name.into();
    json!({ "apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata })
}

fn push(object: &mut Value, field: &str, item: Value) {
    if let Some(list) = object.as_object_mut().map(|o| o.entry(field).or_insert_with(|| json!([]))) {
        list.as_array_mut().into_iter().for_each(|l| l.push(item.clone()));
    }
}

fn extend(object: &mut Value, part: &str) {
    let words: Vec<&str> = part.split(' ').collect();
    let list = |s: &str| -> Value { s.split(',').map(|x| if x == "\"\"" { "" } else { x }).collect() };
    match words[..] {
        ["aggregate", label] => {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            let selector = json!({ "matchLabels": { key: value } });
            push(&mut object["aggregationRule"], "clusterRoleSelectors", selector.clone());
            if object["aggregationRule"].is_null() {
                object["aggregationRule"] = json!({ "clusterRoleSelectors": [selector] });
            }
        }
        ["to", kind, name] => object["roleRef"] = json!({ "apiGroup": GROUP, "kind": kind, "name": name }),
        ["ServiceAccount", name] => {
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            push(object, "subjects", json!({ "kind": "ServiceAccount", "namespace": namespace, "name": name }));
        }
        [kind @ ("User" | "Group"), name] => {
            push(object, "subjects", json!({ "apiGroup": GROUP, "kind": kind, "name": name }));
        }
        [verbs, urls] => push(object, "rules", json!({ "verbs": list(verbs), "nonResourceURLs": list(urls) })),
        [verbs, groups, resources, ref names @ ..] => {
            let mut rule = json!({ "verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources) });
            if let [names] = names {
                rule["resourceNames"] = list(names);
            }
            push(object, "rules", rule);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, Authorizer, Decision, rbac::Rbac};
    use isopod_api::UserInfo;

    #[test]
    fn every_line_is_understood() {
        let objects = objects();
        assert_eq!(objects.len(), 141);
        for o in &objects {
            let kind = o["kind"].as_str().unwrap();
            assert!(["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"].contains(&kind), "{o}");
            assert!(!o["metadata"]["name"].as_str().unwrap().is_empty());
            assert_eq!(kind.ends_with("Binding"), o.get("roleRef").is_some(), "{o}");
            assert_eq!(!kind.starts_with("Cluster"), o["metadata"].get("namespace").is_some(), "{o}");
        }
    }

    #[test]
    fn the_policy_lets_the_right_ones_in() {
        let rbac = Rbac::new();
        objects().iter().for_each(|o| rbac.apply(o));
        rbac.apply(&json!({"kind": "RoleBinding", "metadata": {"namespace": "a", "name": "e"},
            "roleRef": {"kind": "ClusterRole", "name": "system:aggregate-to-edit"},
            "subjects": [{"kind": "User", "name": "ed"}]}));
        let can = |user: UserInfo, verb: &str, group: &str, resource: &str, namespace: &str| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let a = Attributes {
                user,
                verb: verb.into(),
                is_resource: true,
                group: group.into(),
                resource: resource.into(),
                subresource: subresource.into(),
                namespace: namespace.into(),
                ..Default::default()
            };
            matches!(rbac.authorize(&a), Decision::Allow(_))
        };
        let masters = || UserInfo::new("admin", &["system:masters"]);
        let scheduler = || UserInfo::new("system:kube-scheduler", &[]);
        let deployments = || UserInfo::new("system:serviceaccount:kube-system:deployment-controller", &[]);
        let ed = || UserInfo::new("ed", &[]);
        assert!(can(masters(), "delete", "apps", "deployments", "x"));
        assert!(can(scheduler(), "create", "", "pods/binding", "x"));
        assert!(!can(scheduler(), "create", "", "pods", "x"));
        assert!(can(deployments(), "create", "apps", "replicasets", "x"));
        assert!(!can(deployments(), "delete", "", "nodes", ""));
        assert!(can(ed(), "create", "apps", "deployments", "a"));
        assert!(!can(ed(), "get", "", "services", "a"), "that is in view");
        assert!(!can(ed(), "create", "", "resourcequotas", "a"));
        assert!(!can(ed(), "create", "apps", "deployments", "b"));
        let version = Attributes {
            user: UserInfo::anonymous(),
            verb: "get".into(),
            path: "/version".into(),
            ..Default::default()
        };
        assert!(matches!(rbac.authorize(&version), Decision::Allow(_)));
    }
}
