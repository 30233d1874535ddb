//! The RBAC authorizer: an index of bindings by subject over the rules of the roles, kept up to date object by object.
//!
//! Invariants: a decision reads memory only; a role that is not there grants nothing and is named in the refusal; a role grants
//! what its own `rules` say: those of an aggregated ClusterRole are written there by the controller that collects them.

use crate::rule::{PolicyRule, compact, missing, quoted};
use crate::{Attributes, Authorizer, Decision, Rules, aggregate_text};
use isopod_api::{UserInfo, user};
use parking_lot::RwLock;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// `namespace` is empty for cluster-wide objects.
type Name = (String, String);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

#[derive(Clone, Debug)]
struct RoleRef {
    kind: String,
    name: String,
}

struct Binding {
    role: RoleRef,
    /// Each subject and how a reason names it.
    subjects: Vec<(Subject, String)>,
}

#[derive(Default)]
struct Index {
    roles: HashMap<Name, Arc<[PolicyRule]>>,
    cluster_roles: HashMap<String, Arc<[PolicyRule]>>,
    bindings: HashMap<Name, Binding>,
    /// For each namespace ("" is the whole cluster) and subject the names of its bindings, sorted.
    by_subject: HashMap<String, HashMap<Subject, Vec<String>>>,
}

/// See the module. Share it in an `Arc`.
#[derive(Default)]
pub struct Rbac {
    index: RwLock<Index>,
}

fn text<'a>(v: &'a Value, pointer: &str) -> &'a str {
    v.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn name_of(object: &Value) -> Name {
    (text(object, "/metadata/namespace").to_owned(), text(object, "/metadata/name").to_owned())
}

impl Rbac {
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all and takes in these objects, each with its kind. Decisions see the old ones or the new ones, nothing between.
    pub fn replace(&self, objects: &[(&str, Value)]) {
        let new = Rbac::new();
        for (kind, object) in objects {
            new.apply_kind(kind, object);
        }
        *self.index.write() = new.index.into_inner();
    }

    /// Takes in a Role, ClusterRole, RoleBinding or ClusterRoleBinding, new or changed; its `kind` must be set.
    pub fn apply(&self, object: &Value) {
        self.apply_kind(text(object, "/kind"), object);
    }

    /// As [`Rbac::apply`], for an object that does not say its kind (list items).
    pub fn apply_kind(&self, kind: &str, object: &Value) {
        let name = name_of(object);
        let mut index = self.index.write();
        match kind {
            "Role" => {
                index.roles.insert(name, PolicyRule::list_of(&object["rules"]).into());
            }
            "ClusterRole" => {
                index.cluster_roles.insert(name.1, PolicyRule::list_of(&object["rules"]).into());
            }
            "RoleBinding" | "ClusterRoleBinding" => {
                index.unbind(&name);
                index.bind(name, object);
            }
            _ => {}
        }
    }

    /// Forgets an object that was deleted. `namespace` is empty for cluster-wide kinds.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut index = self.index.write();
        match kind {
            "Role" => {
                index.roles.remove(&key);
            }
            "ClusterRole" => {
                index.cluster_roles.remove(name);
            }
            "RoleBinding" | "ClusterRoleBinding" => index.unbind(&key),
            _ => {}
        }
    }

    /// May the user give these rules away in the namespace? The error is upstream's sentence.
    /// Members of `system:masters`, and users with the verbs `escalate` or `bind`, are the caller's to let through first:
    /// see [`crate::escalation`].
    pub fn covers(&self, user: &UserInfo, namespace: &str, rules: &[PolicyRule]) -> Result<(), String> {
        let Rules { rules: held, errors } = self.rules_for(user, namespace);
        let missing = missing(&held, rules);
        if missing.is_empty() {
            return Ok(());
        }
        let mut shown: Vec<String> = compact(missing).iter().map(ToString::to_string).collect();
        shown.sort();
        shown.dedup();
        let mut message = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            quoted(&user.groups),
            shown.join("\n")
        );
        if !errors.is_empty() {
            message.push_str(&format!("; resolution errors: {}", aggregate_text(&errors)));
        }
        Err(message)
    }

    /// The rules of the role that a binding in `namespace` refers to.
    pub fn role_rules(&self, kind: &str, name: &str, namespace: &str) -> Result<Vec<PolicyRule>, String> {
        let role = RoleRef { kind: kind.to_owned(), name: name.to_owned() };
        self.index.read().resolve(&role, namespace).map(|rules| rules.to_vec())
    }
}

impl Index {
    fn bind(&mut self, name: Name, object: &Value) {
        let namespace = name.0.as_str();
        let none = Vec::new();
        let listed = object["subjects"].as_array().unwrap_or(&none);
        let subjects: Vec<(Subject, String)> = listed.iter().filter_map(|s| subject(s, namespace)).collect();
        let by_subject = self.by_subject.entry(namespace.to_owned()).or_default();
        for (subject, _) in &subjects {
            let names = by_subject.entry(subject.clone()).or_default();
            if let Err(at) = names.binary_search(&name.1) {
                names.insert(at, name.1.clone());
            }
        }
        let role =
            RoleRef { kind: text(object, "/roleRef/kind").to_owned(), name: text(object, "/roleRef/name").to_owned() };
        self.bindings.insert(name, Binding { role, subjects });
    }

    fn unbind(&mut self, name: &Name) {
        let Some(binding) = self.bindings.remove(name) else { return };
        let Some(by_subject) = self.by_subject.get_mut(&name.0) else { return };
        for (subject, _) in &binding.subjects {
            if let Some(names) = by_subject.get_mut(subject) {
                names.retain(|n| *n != name.1);
                if names.is_empty() {
                    by_subject.remove(subject);
                }
            }
        }
        if by_subject.is_empty() {
            self.by_subject.remove(&name.0);
        }
    }

    fn resolve(&self, role: &RoleRef, namespace: &str) -> Result<&Arc<[PolicyRule]>, String> {
        match role.kind.as_str() {
            "Role" => {
                let found = self.roles.get(&(namespace.to_owned(), role.name.clone()));
                found.ok_or_else(|| format!("role.rbac.authorization.k8s.io {:?} not found", role.name))
            }
            "ClusterRole" => {
                let found = self.cluster_roles.get(&role.name);
                found.ok_or_else(|| format!("clusterrole.rbac.authorization.k8s.io {:?} not found", role.name))
            }
            other => Err(format!("unsupported role reference kind: {other:?}")),
        }
    }

    /// Shows each rule that applies to the user, with a sentence maker for where it comes from, until `see` returns false.
    /// Returns what could not be resolved.
    fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        see: &mut dyn FnMut(&PolicyRule, &dyn fmt::Display) -> bool,
    ) -> Vec<String> {
        let mut errors = Vec::new();
        let scopes = if namespace.is_empty() { &[""][..] } else { &["", namespace][..] };
        for scope in scopes {
            let Some(by_subject) = self.by_subject.get(*scope) else { continue };
            let subjects = std::iter::once(Subject::User(user.name.clone()))
                .chain(user.groups.iter().map(|g| Subject::Group(g.clone())));
            let mut seen: Vec<&String> = Vec::new();
            for subject in subjects {
                for name in by_subject.get(&subject).into_iter().flatten() {
                    // A binding may name the user and several of the groups.
                    if seen.contains(&name) {
                        continue;
                    }
                    seen.push(name);
                    let Some(binding) = self.bindings.get(&((*scope).to_owned(), name.clone())) else { continue };
                    match self.resolve(&binding.role, scope) {
                        Err(e) => errors.push(e),
                        Ok(rules) => {
                            let source = Source { namespace: scope, name, binding, subject: &subject };
                            for rule in rules.iter() {
                                if !see(rule, &source) {
                                    return errors;
                                }
                            }
                        }
                    }
                }
            }
        }
        errors
    }
}

/// A subject of a binding in `namespace`, and how upstream's reasons name it.
fn subject(s: &Value, namespace: &str) -> Option<(Subject, String)> {
    let (kind, name) = (text(s, "/kind"), text(s, "/name"));
    match kind {
        "User" => Some((Subject::User(name.to_owned()), format!("User {name:?}"))),
        "Group" => Some((Subject::Group(name.to_owned()), format!("Group {name:?}"))),
        "ServiceAccount" => {
            let own = text(s, "/namespace");
            let home = if own.is_empty() { namespace } else { own };
            // Without a namespace it names nobody.
            let user = format!("system:serviceaccount:{home}:{name}");
            (!home.is_empty()).then(|| (Subject::User(user), format!("ServiceAccount {:?}", format!("{name}/{home}"))))
        }
        _ => None,
    }
}

struct Source<'a> {
    namespace: &'a str,
    name: &'a str,
    binding: &'a Binding,
    subject: &'a Subject,
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = &self.binding.role;
        let subject = self.binding.subjects.iter().find(|(s, _)| s == self.subject).map_or("", |(_, shown)| shown);
        if self.namespace.is_empty() {
            write!(f, "ClusterRoleBinding {:?} of {} {:?} to {subject}", self.name, role.kind, role.name)
        } else {
            let name = format!("{}/{}", self.name, self.namespace);
            write!(f, "RoleBinding {name:?} of {} {:?} to {subject}", role.kind, role.name)
        }
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, a: &Attributes) -> Decision {
        let mut reason = None;
        let errors = self.index.read().visit(&a.user, &a.namespace, &mut |rule, source| {
            if rule.allows(a) {
                reason = Some(format!("RBAC: allowed by {source}"));
            }
            reason.is_none()
        });
        match reason {
            Some(reason) => Decision::Allow(reason),
            None if errors.is_empty() => Decision::NoOpinion(String::new()),
            None => Decision::NoOpinion(format!("RBAC: {}", aggregate_text(&errors))),
        }
    }

    /// Every rule that applies to the user in a namespace; empty: cluster-wide ones only.
    fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        let mut rules = Vec::new();
        let errors = self.index.read().visit(user, namespace, &mut |rule, _| {
            rules.push(rule.clone());
            true
        });
        Rules { rules, errors }
    }
}

/// Is the user above all rules?
pub fn is_privileged(user: &UserInfo) -> bool {
    user.in_group(user::SYSTEM_MASTERS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rbac() -> Rbac {
        let rbac = Rbac::new();
        for object in [
            json!({"kind": "ClusterRole", "metadata": {"name": "reader", "labels": {"to": "all"}},
                "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}]}),
            json!({"kind": "ClusterRole", "metadata": {"name": "all"},
                "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]},
                "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}]}),
            json!({"kind": "Role", "metadata": {"name": "writer", "namespace": "a"},
                "rules": [{"verbs": ["create"], "apiGroups": [""], "resources": ["pods"]}]}),
            json!({"kind": "ClusterRoleBinding", "metadata": {"name": "b1"},
                "roleRef": {"kind": "ClusterRole", "name": "all"}, "subjects": [{"kind": "Group", "name": "dev"}]}),
            json!({"kind": "RoleBinding", "metadata": {"name": "b2", "namespace": "a"},
                "roleRef": {"kind": "Role", "name": "writer"},
                "subjects": [{"kind": "ServiceAccount", "name": "sa"}, {"kind": "User", "name": "jane"}]}),
            json!({"kind": "RoleBinding", "metadata": {"name": "b3", "namespace": "a"},
                "roleRef": {"kind": "Role", "name": "gone"}, "subjects": [{"kind": "User", "name": "jane"}]}),
        ] {
            rbac.apply(&object);
        }
        rbac
    }

    fn ask(user: UserInfo, verb: &str, namespace: &str) -> Attributes {
        Attributes {
            user,
            verb: verb.into(),
            is_resource: true,
            resource: "pods".into(),
            namespace: namespace.into(),
            ..Default::default()
        }
    }

    fn allowed(text: &str) -> Decision {
        Decision::Allow(format!("RBAC: allowed by {text}"))
    }

    #[test]
    fn decisions_and_their_reasons() {
        let rbac = rbac();
        let dev = || UserInfo::new("bob", &["dev"]);
        let jane = || UserInfo::new("jane", &[]);
        let account = || UserInfo::new("system:serviceaccount:a:sa", &[]);
        let group = allowed(r#"ClusterRoleBinding "b1" of ClusterRole "all" to Group "dev""#);
        let table = [
            (ask(dev(), "get", "a"), group.clone()),
            (ask(dev(), "list", ""), group),
            (ask(dev(), "create", "a"), Decision::NoOpinion(String::new())),
            (ask(account(), "create", "a"), allowed(r#"RoleBinding "b2/a" of Role "writer" to ServiceAccount "sa/a""#)),
            (ask(account(), "create", "b"), Decision::NoOpinion(String::new())),
            (ask(jane(), "create", "a"), allowed(r#"RoleBinding "b2/a" of Role "writer" to User "jane""#)),
            (
                ask(jane(), "delete", "a"),
                Decision::NoOpinion(r#"RBAC: role.rbac.authorization.k8s.io "gone" not found"#.into()),
            ),
        ];
        for (ask, want) in table {
            assert_eq!(rbac.authorize(&ask), want, "{ask:?}");
        }
    }

    #[test]
    fn follows_changes() {
        let rbac = rbac();
        let dev = UserInfo::new("bob", &["dev"]);
        let can = |verb: &str| matches!(rbac.authorize(&ask(dev.clone(), verb, "a")), Decision::Allow(_));
        assert!(!can("watch"));
        rbac.apply(&json!({"kind": "ClusterRole", "metadata": {"name": "more", "labels": {"to": "all"}},
            "rules": [{"verbs": ["watch"], "apiGroups": [""], "resources": ["pods"]}]}));
        assert!(!can("watch"), "nobody has collected it yet");
        let all = |verbs: &[&str]| {
            json!({"kind": "ClusterRole", "metadata": {"name": "all"},
                "rules": [{"verbs": verbs, "apiGroups": [""], "resources": ["pods"]}]})
        };
        rbac.apply(&all(&["watch"]));
        assert!(!can("get") && can("watch"));
        rbac.remove("ClusterRole", "", "reader");
        assert!(can("watch"));
        rbac.apply(&json!({"kind": "ClusterRoleBinding", "metadata": {"name": "b1"},
            "roleRef": {"kind": "ClusterRole", "name": "all"}, "subjects": [{"kind": "Group", "name": "ops"}]}));
        assert!(!can("watch"));
        rbac.remove("ClusterRoleBinding", "", "b1");
        assert_eq!(rbac.rules_for(&UserInfo::new("x", &["ops"]), "a").rules, []);
    }

    #[test]
    fn granting_needs_holding() {
        let rbac = rbac();
        let jane = UserInfo::new("jane", &["dev"]);
        let wanted = rbac.role_rules("ClusterRole", "reader", "").unwrap();
        assert_eq!(rbac.covers(&jane, "a", &wanted), Ok(()));
        let refused = rbac.covers(&UserInfo::new("x", &[]), "a", &wanted).unwrap_err();
        assert_eq!(
            refused,
            "user \"x\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
             {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\" \"list\"]}"
        );
    }
}
