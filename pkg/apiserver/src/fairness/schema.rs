//! Which flow schema a request belongs to: the first one, by precedence and then by name, that has a rule for it.

use crate::request::RequestInfo;
use isopod_api::UserInfo;
use isopod_kinds::access::Access;
use serde_json::Value;

const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// What tells the flows of a schema apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distinguisher {
    None,
    User,
    Namespace,
}

/// A flow schema, ready for use.
#[derive(Debug)]
pub struct Schema {
    pub name: String,
    pub uid: String,
    pub precedence: i64,
    /// The name of its priority level.
    pub level: String,
    pub distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

#[derive(Debug)]
enum Subject {
    Everybody,
    User(String),
    Group(String),
    /// The user's name begins so.
    Users(String),
}

/// A list, or everything.
#[derive(Debug)]
struct Any(Option<Vec<String>>);

#[derive(Debug)]
struct ResourceRule {
    verbs: Any,
    groups: Any,
    resources: Any,
    namespaces: Any,
    cluster_scope: bool,
}

#[derive(Debug)]
struct PathRule {
    verbs: Any,
    paths: Vec<String>,
}

impl Any {
    fn new(list: &[&str]) -> Self {
        Any((list != ["*"]).then(|| list.iter().map(|s| (*s).to_owned()).collect()))
    }

    fn has(&self, s: &str) -> bool {
        self.0.as_ref().is_none_or(|list| list.iter().any(|l| l == s))
    }

    /// `<resource>/<subresource>`.
    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        if subresource.is_empty() {
            return self.has(resource);
        }
        let is = |l: &String| l.strip_prefix(resource).and_then(|l| l.strip_prefix('/')) == Some(subresource);
        self.0.as_ref().is_none_or(|list| list.iter().any(is))
    }
}

impl Schema {
    pub fn new(object: &Value) -> Self {
        let spec = object.at("spec");
        Schema {
            name: object.text("metadata.name").to_owned(),
            uid: object.text("metadata.uid").to_owned(),
            precedence: spec.int_or("matchingPrecedence", 1000),
            level: spec.text("priorityLevelConfiguration.name").to_owned(),
            distinguisher: match spec.text("distinguisherMethod.type") {
                "ByUser" => Distinguisher::User,
                "ByNamespace" => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: spec.list("rules").iter().map(Rule::new).collect(),
        }
    }

    pub fn matches(&self, info: &RequestInfo, user: &UserInfo) -> bool {
        self.rules.iter().any(|rule| rule.matches(info, user))
    }

    /// What the request's flow is called within the schema.
    pub fn flow<'a>(&self, info: &'a RequestInfo, user: &'a UserInfo) -> &'a str {
        match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &user.name,
            Distinguisher::Namespace => &info.namespace,
        }
    }
}

impl Rule {
    fn new(rule: &Value) -> Self {
        let resource = |r: &Value| ResourceRule {
            verbs: Any::new(&r.texts("verbs")),
            groups: Any::new(&r.texts("apiGroups")),
            resources: Any::new(&r.texts("resources")),
            namespaces: Any::new(&r.texts("namespaces")),
            cluster_scope: r.flag("clusterScope"),
        };
        let path = |r: &Value| PathRule {
            verbs: Any::new(&r.texts("verbs")),
            paths: r.texts("nonResourceURLs").into_iter().map(str::to_owned).collect(),
        };
        Rule {
            subjects: rule.list("subjects").iter().filter_map(Subject::new).collect(),
            resources: rule.list("resourceRules").iter().map(resource).collect(),
            paths: rule.list("nonResourceRules").iter().map(path).collect(),
        }
    }

    fn matches(&self, info: &RequestInfo, user: &UserInfo) -> bool {
        self.subjects.iter().any(|s| s.is(user))
            && match info.is_resource {
                true => self.resources.iter().any(|r| r.matches(info)),
                false => self.paths.iter().any(|p| p.matches(info)),
            }
    }
}

impl Subject {
    fn new(subject: &Value) -> Option<Self> {
        Some(match subject.text("kind") {
            "User" => match subject.text("user.name") {
                "*" => Subject::Everybody,
                name => Subject::User(name.to_owned()),
            },
            "Group" => match subject.text("group.name") {
                "*" => Subject::Everybody,
                name => Subject::Group(name.to_owned()),
            },
            "ServiceAccount" => {
                let of = format!("{SERVICE_ACCOUNT}{}:", subject.text("serviceAccount.namespace"));
                match subject.text("serviceAccount.name") {
                    "*" => Subject::Users(of),
                    name => Subject::User(format!("{of}{name}")),
                }
            }
            _ => return None,
        })
    }

    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Subject::Everybody => true,
            Subject::User(name) => user.name == *name,
            Subject::Group(name) => user.groups.iter().any(|g| g == name),
            Subject::Users(prefix) => user.name.starts_with(prefix.as_str()),
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        self.verbs.has(&info.verb)
            && self.resources.has_resource(&info.resource, &info.subresource)
            && self.groups.has(&info.group)
            && if info.namespace.is_empty() { self.cluster_scope } else { self.namespaces.has(&info.namespace) }
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        self.verbs.has(&info.verb) && self.paths.iter().any(|path| path_matches(path, &info.path))
    }
}

/// A path stands for everything below it, with a star at its end or without.
fn path_matches(rule: &str, path: &str) -> bool {
    if rule == "*" || rule == path {
        return true;
    }
    let prefix = rule.strip_suffix('*').unwrap_or(rule);
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;
    use http::Method;
    use isopod_kinds::bootstrap::fairness;

    fn schemas() -> Vec<Schema> {
        let objects = fairness::mandatory().schemas.into_iter().chain(fairness::suggested().schemas);
        let mut all: Vec<Schema> = objects.map(|o| Schema::new(&o)).collect();
        all.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        all
    }

    fn check(user: &str, groups: &[&str], method: Method, path: &str, want: (&str, &str)) {
        let (user, info) = (UserInfo::new(user, groups), RequestInfo::parse(&method, path, &Query::default()).unwrap());
        let schemas = schemas();
        let found = schemas.iter().find(|s| s.matches(&info, &user)).expect("the last one takes everything");
        assert_eq!((found.name.as_str(), found.flow(&info, &user)), want, "{path}");
    }

    #[test]
    fn requests_go_where_upstream_sends_them() {
        let get = || Method::GET;
        check("root", &["system:masters"], get(), "/api/v1/pods", ("exempt", ""));
        check("joe", &[], get(), "/healthz", ("probes", ""));
        check("joe", &[], get(), "/readyz/etcd", ("probes", ""));
        check("joe", &[], get(), "/api/v1/pods", ("global-default", "joe"));
        let nodes = ["system:nodes"];
        check("system:node:a", &nodes, get(), "/api/v1/nodes/a", ("system-node-high", "system:node:a"));
        check("system:node:a", &nodes, get(), "/api/v1/namespaces/x/pods", ("system-nodes", "system:node:a"));
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/x";
        check("system:kube-scheduler", &[], get(), lease, ("system-leader-election", "system:kube-scheduler"));
        check("system:kube-scheduler", &[], get(), "/api/v1/namespaces/x/pods", ("kube-scheduler", "x"));
        let account = "system:serviceaccount:kube-system:gc";
        let accounts = ["system:serviceaccounts"];
        check(account, &accounts, get(), "/api/v1/namespaces/x/pods", ("kube-system-service-accounts", "x"));
        let account = "system:serviceaccount:kube-systems:gc";
        check(account, &accounts, get(), "/api/v1/pods", ("service-accounts", account));
    }

    #[test]
    fn paths() {
        assert!(path_matches("/healthz", "/healthz/etcd") && path_matches("/apis/*", "/apis/apps"));
        assert!(!path_matches("/healthz", "/healthzz") && !path_matches("/apis/*", "/apis"));
        assert!(path_matches("*", "/") && path_matches("/", "/metrics"));
    }

    #[test]
    fn a_subresource_is_asked_for_by_its_own_name() {
        let any = Any::new(&["pods", "nodes/status"]);
        assert!(any.has_resource("nodes", "status") && any.has_resource("pods", ""));
        assert!(!any.has_resource("pods", "log") && !any.has_resource("nodes", ""));
    }
}
