//! What an authorizer decides on, and what it answers.

use crate::rule::PolicyRule;
use isopod_api::UserInfo;
use isopod_api::selector::{FieldTerm, Requirement};

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
    /// The terms of the request's field selector: a kubelet may list the pods of its node only.
    pub fields: Vec<FieldTerm>,
    /// Those of its label selector.
    pub labels: Vec<Requirement>,
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

    /// What it would allow a user in a namespace, as far as that can be told.
    fn rules_for(&self, _user: &UserInfo, _namespace: &str) -> Rules {
        Rules::default()
    }
}

/// What a user may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub rules: Vec<PolicyRule>,
    /// What could not be resolved: with any, there may be more rules than these.
    pub errors: Vec<String>,
}

/// Go's aggregated errors: one by itself, several as `[a, b]`, each once.
pub fn aggregate_text(errors: &[String]) -> String {
    let mut once: Vec<&str> = Vec::new();
    for e in errors {
        if !once.contains(&e.as_str()) {
            once.push(e);
        }
    }
    if once.len() == 1 { once[0].to_owned() } else { format!("[{}]", once.join(", ")) }
}

impl Attributes {
    /// Whether nothing is changed by it (`apiserver/pkg/authorization/authorizer`).
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    /// The value that the field selector asks of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|t| t.equal && t.field == name).map(|t| t.value.as_str())
    }

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
