//! What an authorizer decides on, and what it answers.

use isopod_api::UserInfo;

/// One request, as authorizers see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub user: UserInfo,
    /// `get list watch create update patch delete deletecollection`, or the lower-case HTTP method for a non-resource path.
    pub verb: String,
    /// False: only `verb` and `path` count.
    pub is_resource: bool,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub path: String,
    /// The `field=value` terms of the request's field selector: a kubelet may list the pods of its node only.
    pub fields: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    /// No later authorizer may allow it.
    Deny(String),
    NoOpinion(String),
}

/// Decides from what it has in memory: it is asked once for every request and must not wait.
pub trait Authorizer: Send + Sync {
    fn authorize(&self, attributes: &Attributes) -> Decision;
}

impl Attributes {
    /// Upstream's sentence for a refusal: `User "jane" cannot list resource "pods" in API group "" in the namespace "x"`.
    pub fn refusal(&self) -> String {
        let mut s = format!("User {:?} cannot {}", self.user.name, self.verb);
        if !self.is_resource {
            return format!("{s} path {:?}", self.path);
        }
        let resource = match self.subresource.as_str() {
            "" => self.resource.clone(),
            sub => format!("{}/{sub}", self.resource),
        };
        s.push_str(&format!(" resource {resource:?} in API group {:?}", self.group));
        if self.namespace.is_empty() {
            s.push_str(" at the cluster scope");
        } else {
            s.push_str(&format!(" in the namespace {:?}", self.namespace));
        }
        s
    }
}
