//! Attribute-based access control: a file of policies, one a line, that is read at the start
//! (`pkg/auth/authorizer/abac`, `pkg/apis/abac`).

use crate::rule::PolicyRule;
use crate::{Attributes, Authorizer, Decision, Rules};
use isopod_api::{UserInfo, user};
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

const VERSION: &str = "abac.authorization.kubernetes.io/v1beta1";

#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    #[error("cannot read the policy file {0:?}")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("error reading policy file {}, line {line}: {text}: {why}", path.display())]
    Line { path: PathBuf, line: usize, text: String, why: String },
}

/// Who may do what. `*` is everything; a field that is empty is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    api_group: String,
    resource: String,
    namespace: String,
    #[serde(rename = "nonResourcePath")]
    path: String,
}

/// See the module.
pub struct Abac(Vec<Policy>);

impl Abac {
    pub fn read(path: &Path) -> Result<Self, PolicyFileError> {
        let text = std::fs::read_to_string(path).map_err(|e| PolicyFileError::Read(path.to_owned(), e))?;
        let mut policies = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let wrong =
                |why: String| PolicyFileError::Line { path: path.to_owned(), line: i + 1, text: line.to_owned(), why };
            policies.push(Policy::of(line).map_err(wrong)?);
        }
        Ok(Abac(policies))
    }
}

impl Policy {
    fn of(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let text = |key: &str| value[key].as_str().unwrap_or_default();
        match (text("apiVersion"), text("kind")) {
            (VERSION, "Policy") => Policy::deserialize(&value["spec"]).map_err(|e| e.to_string()),
            // Without a version, and of a version or kind that nobody knows, it is of the oldest.
            _ => Policy::deserialize(&value).map(Policy::of_the_oldest_version).map_err(|e| e.to_string()),
        }
    }

    /// What was left out meant everything then.
    fn of_the_oldest_version(self) -> Self {
        let everything = |text: String| if text.is_empty() { "*".to_owned() } else { text };
        let path = if self.namespace.is_empty() && self.resource.is_empty() { "*" } else { "" };
        let everybody = self.user.is_empty() && self.group.is_empty() || self.user == "*" || self.group == "*";
        let (user, group) =
            if everybody { (String::new(), user::AUTHENTICATED.to_owned()) } else { (self.user, self.group) };
        Policy {
            user,
            group,
            readonly: self.readonly,
            api_group: "*".to_owned(),
            resource: everything(self.resource),
            namespace: everything(self.namespace),
            path: path.to_owned(),
        }
    }

    fn is_about(&self, user: &UserInfo) -> bool {
        let named = self.user.is_empty() || self.user == "*" || self.user == user.name;
        let grouped = self.group.is_empty() || self.group == "*" || user.in_group(&self.group);
        named && grouped && !(self.user.is_empty() && self.group.is_empty())
    }

    fn allows(&self, a: &Attributes) -> bool {
        let is = |policy: &str, asked: &str| policy == "*" || policy == asked;
        let what = match a.is_resource {
            true => {
                is(&self.namespace, &a.namespace) && is(&self.resource, &a.resource) && is(&self.api_group, &a.group)
            }
            false => {
                let begin = self.path.ends_with('*').then(|| self.path.trim_end_matches('*'));
                self.path == a.path || begin.is_some_and(|b| a.path.starts_with(b))
            }
        };
        what && (a.is_read_only() || !self.readonly) && self.is_about(&a.user)
    }

    fn rules(&self) -> impl Iterator<Item = PolicyRule> {
        let one = |text: &str| vec![text.to_owned()];
        let verbs: Vec<String> =
            if self.readonly { ["get", "list", "watch"].map(str::to_owned).to_vec() } else { one("*") };
        let resource = (!self.resource.is_empty()).then(|| PolicyRule {
            verbs: verbs.clone(),
            api_groups: one(&self.api_group),
            resources: one(&self.resource),
            ..Default::default()
        });
        let path = (!self.path.is_empty()).then(|| PolicyRule {
            verbs,
            non_resource_urls: one(&self.path),
            ..Default::default()
        });
        resource.into_iter().chain(path)
    }
}

impl Authorizer for Abac {
    fn authorize(&self, attributes: &Attributes) -> Decision {
        match self.0.iter().any(|p| p.allows(attributes)) {
            true => Decision::Allow(String::new()),
            false => Decision::NoOpinion("No policy matched.".to_owned()),
        }
    }

    fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        let here = |p: &&Policy| p.is_about(user) && (p.namespace == "*" || p.namespace == namespace);
        Rules { rules: self.0.iter().filter(here).flat_map(Policy::rules).collect(), errors: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abac(text: &str) -> Result<Abac, String> {
        let path = std::env::temp_dir().join(format!("isopod-abac-{}-{:p}", std::process::id(), text));
        std::fs::write(&path, text).unwrap();
        let read = Abac::read(&path).map_err(|e| e.to_string().replace(&path.display().to_string(), "FILE"));
        std::fs::remove_file(path).unwrap();
        read
    }

    fn ask(user: &str, verb: &str, what: &str) -> Attributes {
        let user = UserInfo::new(user, &["dev"]);
        match what.strip_prefix('/') {
            Some(_) => Attributes { user, verb: verb.into(), path: what.into(), ..Default::default() },
            None => {
                let (namespace, resource) = what.split_once('/').unwrap_or(("", what));
                let (namespace, resource) = (namespace.into(), resource.into());
                Attributes { user, verb: verb.into(), is_resource: true, namespace, resource, ..Default::default() }
            }
        }
    }

    #[test]
    fn policies_are_read_as_upstream_reads_them() {
        let v1beta1 = |spec: &str| format!("{{\"apiVersion\":\"{VERSION}\",\"kind\":\"Policy\",\"spec\":{spec}}}");
        let lines = [
            "# a comment".to_owned(),
            String::new(),
            v1beta1(r#"{"user":"alice","namespace":"a","resource":"pods","apiGroup":"*","readonly":true}"#),
            v1beta1(r#"{"group":"dev","nonResourcePath":"/docs/*"}"#),
            v1beta1(r#"{"namespace":"*","resource":"*","apiGroup":"*"}"#),
            r#"{"user":"old","resource":"secrets"}"#.to_owned(),
            r#"{"user":"*","readonly":true,"namespace":"open"}"#.to_owned(),
        ];
        let abac = abac(&lines.join("\n")).unwrap();
        for (user, verb, what, want) in [
            ("alice", "get", "a/pods", true),
            ("alice", "delete", "a/pods", false),
            ("alice", "get", "b/pods", false),
            ("bob", "get", "a/pods", false),
            ("bob", "post", "/docs/x", true),
            ("bob", "get", "/doc", false),
            ("old", "delete", "any/secrets", true),
            ("old", "get", "/version", false),
            ("bob", "list", "open/pods", true),
            ("bob", "create", "open/pods", false),
        ] {
            let got = matches!(abac.authorize(&ask(user, verb, what)), Decision::Allow(_));
            assert_eq!(got, want, "{user} {verb} {what}");
        }
        let rules = abac.rules_for(&UserInfo::new("alice", &[]), "a").rules;
        assert_eq!(rules.len(), 1, "the one of everybody is for another namespace: {rules:?}");
        assert_eq!(rules[0].verbs, ["get", "list", "watch"]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let why = abac("{\"user\":\"a\"}\n{\"user\":1}").err().unwrap();
        assert!(why.starts_with("error reading policy file FILE, line 2: {\"user\":1}: "), "{why}");
    }
}
