//! Nobody gives away more than they hold: the checks on writes of RBAC objects
//! (`pkg/registry/rbac/{role,clusterrole,rolebinding,clusterrolebinding}/policybased`).

use crate::Attributes;
use crate::rbac::{Rbac, is_privileged};
use crate::rule::PolicyRule;
use isopod_api::UserInfo;
use serde_json::Value;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Why an RBAC object may not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The reason of a 403.
    #[error("{0}")]
    Forbidden(String),
    /// The message of a 404: the role that a binding refers to is not there, so what it would give away is not known.
    #[error("{0}")]
    NotFound(String),
}

/// The right with which `user` may write this object, over `old` if there is one, whatever it gives away. `None`: the user may
/// write it anyway. `kind` is one of the four RBAC kinds.
pub fn right(user: &UserInfo, kind: &str, new: &Value, old: Option<&Value>) -> Option<Attributes> {
    if is_privileged(user) || old.is_some_and(|old| differ_for_the_collector_only(old, new)) {
        return None;
    }
    let role = |field: &str| new["roleRef"][field].as_str().unwrap_or_default();
    let (verb, resource, name) = match kind {
        // The name is the request's: a create has none.
        "Role" | "ClusterRole" => {
            let name = old.and_then(|old| old["metadata"]["name"].as_str()).unwrap_or_default();
            ("escalate", if kind == "Role" { "roles" } else { "clusterroles" }, name)
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            ("bind", if role("kind") == "Role" { "roles" } else { "clusterroles" }, role("name"))
        }
        _ => return None,
    };
    Some(Attributes {
        user: user.clone(),
        verb: verb.to_owned(),
        is_resource: true,
        group: GROUP.to_owned(),
        version: "*".to_owned(),
        resource: resource.to_owned(),
        namespace: namespace(new).to_owned(),
        name: name.to_owned(),
        ..Default::default()
    })
}

/// May `user`, who has no such [`right`], write this object? Only what the user holds may be given away.
pub fn check(rbac: &Rbac, user: &UserInfo, kind: &str, new: &Value, old: Option<&Value>) -> Result<(), Refused> {
    match kind {
        "Role" | "ClusterRole" => check_role(rbac, user, new, old),
        "RoleBinding" | "ClusterRoleBinding" => check_binding(rbac, user, new),
        _ => Ok(()),
    }
}

fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

fn check_role(rbac: &Rbac, user: &UserInfo, new: &Value, old: Option<&Value>) -> Result<(), Refused> {
    let rules = PolicyRule::list_of(&new["rules"]);
    rbac.covers(user, namespace(new), &rules).map_err(Refused::Forbidden)?;
    // What an aggregated role will select is not known: only who holds everything may choose it.
    if aggregates(new) || old.is_some_and(aggregates) {
        let needed = "must have cluster-admin privileges to use the aggregationRule";
        return rbac.covers(user, "", &everything()).map_err(|_| Refused::Forbidden(needed.to_owned()));
    }
    Ok(())
}

fn check_binding(rbac: &Rbac, user: &UserInfo, new: &Value) -> Result<(), Refused> {
    let role = |field: &str| new["roleRef"][field].as_str().unwrap_or_default();
    let rules = rbac.role_rules(role("kind"), role("name"), namespace(new)).map_err(Refused::NotFound)?;
    rbac.covers(user, namespace(new), &rules).map_err(Refused::Forbidden)
}

fn aggregates(object: &Value) -> bool {
    object["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|s| !s.is_empty())
}

/// The garbage collector must be able to take an owner or a finalizer off any object.
fn differ_for_the_collector_only(old: &Value, new: &Value) -> bool {
    let rest = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            for field in ["ownerReferences", "finalizers", "managedFields"] {
                metadata.remove(field);
            }
        }
        object
    };
    rest(old) == rest(new)
}

fn everything() -> [PolicyRule; 2] {
    let all = || vec!["*".to_owned()];
    [
        PolicyRule { verbs: all(), api_groups: all(), resources: all(), ..Default::default() },
        PolicyRule { verbs: all(), non_resource_urls: all(), ..Default::default() },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authorizer, Decision};
    use serde_json::json;

    #[test]
    fn who_may_write_what() {
        let rbac = Rbac::new();
        let role = |name: &str, verb: &str, resource: &str, group: &str| {
            json!({"kind": "ClusterRole", "metadata": {"name": name},
                "rules": [{"verbs": [verb], "apiGroups": [group], "resources": [resource]}]})
        };
        let bind = |name: &str, role: &str, user: &str| {
            json!({"kind": "ClusterRoleBinding", "metadata": {"name": name},
                "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "User", "name": user}]})
        };
        for object in [
            role("get-pods", "get", "pods", ""),
            role("escalator", "escalate", "clusterroles", GROUP),
            role("binder", "bind", "clusterroles", GROUP),
            role("root", "*", "*", "*"),
            bind("a", "get-pods", "ann"),
            bind("b", "escalator", "eve"),
            bind("c", "binder", "bob"),
        ] {
            rbac.apply(&object);
        }
        let user = |name: &str| UserInfo::new(name, &[]);
        let masters = UserInfo::new("m", &["system:masters"]);
        let check = |user: &UserInfo, new: &Value, old: Option<&Value>| {
            let kind = new["kind"].as_str().unwrap();
            match right(user, kind, new, old) {
                Some(right) if !matches!(rbac.authorize(&right), Decision::Allow(_)) => {
                    check(&rbac, user, kind, new, old).is_ok()
                }
                _ => true,
            }
        };
        let (pods, all) = (role("x", "get", "pods", ""), role("x", "*", "*", "*"));
        assert!(check(&user("ann"), &pods, None));
        assert!(!check(&user("ann"), &all, None));
        let mut freed = all.clone();
        freed["metadata"]["finalizers"] = json!(["x/y"]);
        assert!(check(&user("ann"), &freed, Some(&all)), "the garbage collector's fields");
        freed["metadata"]["labels"] = json!({"a": "b"});
        assert!(!check(&user("ann"), &freed, Some(&all)));
        assert!(check(&user("eve"), &all, None));
        assert!(check(&masters, &all, None));
        assert!(check(&user("ann"), &bind("x", "get-pods", "zoe"), None));
        assert!(!check(&user("ann"), &bind("x", "root", "zoe"), None));
        assert!(check(&user("bob"), &bind("x", "root", "zoe"), None));
        assert!(!check(&user("ann"), &bind("x", "gone", "zoe"), None));
        let aggregated = json!({"kind": "ClusterRole", "metadata": {"name": "x"}, "rules": null,
            "aggregationRule": {"clusterRoleSelectors": [{}]}});
        assert!(!check(&user("ann"), &aggregated, None));
    }
}
