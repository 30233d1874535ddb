//! Names of resources and the request paths made from them.

use isopod_api::Gvr;
use std::fmt::Write;

/// A resource as requests name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    pub gvr: Gvr,
    pub namespaced: bool,
}

impl Resource {
    /// `Resource::namespaced("apps", "v1", "deployments")`; the core group is `""`.
    pub fn namespaced(group: &str, version: &str, resource: &str) -> Self {
        Resource { gvr: Gvr::new(group, version, resource), namespaced: true }
    }
    pub fn cluster(group: &str, version: &str, resource: &str) -> Self {
        Resource { gvr: Gvr::new(group, version, resource), namespaced: false }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.gvr.group.is_empty() {
            self.gvr.version.clone()
        } else {
            format!("{}/{}", self.gvr.group, self.gvr.version)
        }
    }

    /// `/apis/apps/v1/namespaces/<ns>/deployments`; an empty namespace means all of them (or a cluster resource).
    pub fn collection(&self, namespace: &str) -> String {
        let mut path = if self.gvr.group.is_empty() {
            format!("/api/{}", self.gvr.version)
        } else {
            format!("/apis/{}/{}", self.gvr.group, self.gvr.version)
        };
        if self.namespaced && !namespace.is_empty() {
            let _ = write!(path, "/namespaces/{}", escape(namespace));
        }
        let _ = write!(path, "/{}", self.gvr.resource);
        path
    }

    pub fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.collection(namespace), escape(name))
    }

    pub fn subresource(&self, namespace: &str, name: &str, subresource: &str) -> String {
        format!("{}/{subresource}", self.object(namespace, name))
    }
}

/// Which objects of a resource: all by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListScope {
    /// Empty: all namespaces.
    pub namespace: String,
    pub label_selector: String,
    pub field_selector: String,
}

impl ListScope {
    pub fn all() -> Self {
        Self::default()
    }
    pub fn namespace(ns: impl Into<String>) -> Self {
        ListScope { namespace: ns.into(), ..Self::default() }
    }
    pub fn fields(selector: impl Into<String>) -> Self {
        ListScope { field_selector: selector.into(), ..Self::default() }
    }
    pub fn labels(selector: impl Into<String>) -> Self {
        ListScope { label_selector: selector.into(), ..Self::default() }
    }
}

/// Builds a query string.
#[derive(Default)]
pub(crate) struct Query(String);

impl Query {
    /// Adds `key=value`, unless the value is empty.
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        if !value.is_empty() {
            self.0.push(if self.0.is_empty() { '?' } else { '&' });
            self.0.push_str(key);
            self.0.push('=');
            self.0.push_str(&escape(value));
        }
        self
    }
    pub(crate) fn scope(self, scope: &ListScope) -> Self {
        self.set("labelSelector", &scope.label_selector).set("fieldSelector", &scope.field_selector)
    }
    pub(crate) fn on(self, path: &str) -> String {
        format!("{path}{}", self.0)
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
pub(crate) fn escape(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for b in s.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~') {
            out.push(b as char);
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let pods = Resource::namespaced("", "v1", "pods");
        let nodes = Resource::cluster("", "v1", "nodes");
        let deployments = Resource::namespaced("apps", "v1", "deployments");
        let roles = Resource::cluster("rbac.authorization.k8s.io", "v1", "clusterroles");
        for (got, want) in [
            (pods.collection(""), "/api/v1/pods"),
            (pods.subresource("a", "b", "binding"), "/api/v1/namespaces/a/pods/b/binding"),
            (nodes.object("", "n1"), "/api/v1/nodes/n1"),
            (deployments.object("d", "x"), "/apis/apps/v1/namespaces/d/deployments/x"),
            (roles.object("", "system:node"), "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode"),
        ] {
            assert_eq!(got, want);
        }
    }

    #[test]
    fn queries() {
        let scope = ListScope { label_selector: "a=b,c".into(), ..ListScope::default() };
        assert_eq!(Query::default().set("limit", "5").scope(&scope).on("/x"), "/x?limit=5&labelSelector=a%3Db%2Cc");
        assert_eq!(Query::default().scope(&ListScope::all()).on("/x"), "/x");
    }
}
