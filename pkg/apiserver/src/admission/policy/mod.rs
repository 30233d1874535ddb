//! `ValidatingAdmissionPolicy` and `MutatingAdmissionPolicy`: rules in CEL that objects of the cluster state. A policy says what
//! is checked or changed, bindings say where and with which parameters (KEP-3488, KEP-3962).

mod mutating;
mod validating;

pub use mutating::MutatingPolicies;
pub use validating::ValidatingPolicies;

use super::configured::Configured;
use super::expressions::{Compiled, Conditions, Definitions, Scope};
use super::matching::{Criteria, View};
use super::metrics::Owner;
use super::subject::Subject;
use crate::ApiServer;
use isopod_api::selector::LabelSelector;
use isopod_api::{Gvr, Status};
use isopod_kinds::Kind;
use isopod_kinds::access::Access;
use isopod_kinds::policy_types;
use serde_json::Value;
use std::sync::Arc;

/// What both sorts of policy have.
struct Policy<R> {
    name: String,
    criteria: Criteria,
    conditions: Conditions,
    /// `apiVersion` and `kind` of its parameters.
    param_kind: Option<(String, String)>,
    variables: Definitions,
    ignores_failure: bool,
    rules: R,
}

impl<R> Policy<R> {
    fn new(policy: &Value, rules: R) -> Self {
        let spec = policy.at("spec");
        let ignores_failure = spec.text("failurePolicy") == "Ignore";
        let around = policy_types::of_any_kind(spec);
        let variable = |v: &Value| (v.text("name").to_owned(), Compiled::new(v.text("expression"), &around));
        let kind = spec.at("paramKind");
        let name = policy.text("metadata.name").to_owned();
        // Upstream says so of policies that mutate too.
        let owner = Owner { name: name.clone(), kind: "policy", step: "validate" };
        Policy {
            name,
            criteria: Criteria::of_policy(spec.at("matchConstraints")),
            conditions: Conditions::new(spec.list("matchConditions"), ignores_failure, owner),
            param_kind: kind.is_object().then(|| (kind.text("apiVersion").to_owned(), kind.text("kind").to_owned())),
            variables: Arc::new(spec.list("variables").iter().map(variable).collect()),
            ignores_failure,
            rules,
        }
    }
}

/// Where a policy applies.
struct Binding {
    name: String,
    policy: String,
    criteria: Criteria,
    param_ref: Value,
    /// `validationActions`.
    actions: Vec<String>,
}

impl Binding {
    fn new(binding: &Value) -> Vec<Self> {
        let spec = binding.at("spec");
        vec![Binding {
            name: binding.text("metadata.name").to_owned(),
            policy: spec.text("policyName").to_owned(),
            criteria: Criteria::of_policy(spec.at("matchResources")),
            param_ref: spec.at("paramRef").clone(),
            actions: spec.texts("validationActions").into_iter().map(str::to_owned).collect(),
        }]
    }
}

/// The policies of one sort, and their bindings.
struct Policies<R> {
    policies: Configured<Policy<R>>,
    bindings: Configured<Binding>,
}

/// A policy that is to be looked at for a request, through one of its bindings, with one of its parameters.
struct Turn<'a, R> {
    policy: &'a Policy<R>,
    binding: &'a Binding,
    view: View,
    params: Option<Arc<Value>>,
}

/// Why a policy cannot be looked at.
struct Misconfigured<'a, R> {
    policy: &'a Policy<R>,
    binding: &'a Binding,
    why: String,
}

type Turns<'a, R> = Vec<Result<Turn<'a, R>, Misconfigured<'a, R>>>;

/// Which policies concern the request, in the order of their names.
async fn turns<'a, R>(
    policies: &'a [Policy<R>],
    bindings: &'a [Binding],
    subject: &Subject<'_>,
    new: Option<&Value>,
) -> Result<Turns<'a, R>, Status> {
    let server = subject.request.server;
    let mut turns = Vec::new();
    for policy in policies {
        let own: Vec<&Binding> = of_policy(bindings, &policy.name);
        if own.is_empty() {
            continue;
        }
        let Some(view) = policy.criteria.view(server, subject, new).await? else { continue };
        for binding in own {
            if binding.criteria.view(server, subject, new).await?.is_none() {
                continue;
            }
            match params(server, policy.param_kind.as_ref(), &binding.param_ref, &subject.namespace).await {
                Ok(all) => {
                    turns
                        .extend(all.into_iter().map(|params| Ok(Turn { policy, binding, view: view.clone(), params })));
                }
                Err(why) => turns.push(Err(Misconfigured { policy, binding, why })),
            }
        }
    }
    Ok(turns)
}

fn of_policy<'a>(bindings: &'a [Binding], policy: &str) -> Vec<&'a Binding> {
    bindings.iter().filter(|b| b.policy == policy).collect()
}

/// The objects with which a policy is looked at; `None`: it is looked at once without any.
async fn params(
    server: &ApiServer,
    kind: Option<&(String, String)>,
    reference: &Value,
    namespace: &str,
) -> Result<Vec<Option<Arc<Value>>>, String> {
    let (Some((api_version, name)), false) = (kind, reference.is_null()) else { return Ok(vec![None]) };
    let unknown = || format!("failed to find resource referenced by paramKind: '{api_version}, Kind={name}'");
    let kind = server.registry.load().kind(api_version, name).cloned().ok_or_else(unknown)?;
    let namespace = place(&kind, reference, namespace)?;
    let told = |s: Status| s.message;
    let (group, resource) = (&kind.gvk.group, &kind.resource);
    let found: Vec<Arc<Value>> = match reference.text("name") {
        "" => {
            let selector = LabelSelector::from_object(reference.get("selector")).map_err(|e| e.to_string())?;
            let all = server.read_all(group, resource, &namespace).await.map_err(told)?;
            all.into_iter().filter(|o| selector.matches(&**o)).collect()
        }
        name => server.read(group, resource, &namespace, name).await.map_err(told)?.into_iter().collect(),
    };
    if found.is_empty() && reference.text("parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found.into_iter().map(Some).collect())
}

/// The namespace in which parameters are looked for.
fn place(kind: &Kind, reference: &Value, of_request: &str) -> Result<String, String> {
    let named = reference.text("namespace");
    match (kind.namespaced, named, of_request) {
        (false, "", _) => Ok(String::new()),
        (false, ..) => Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into()),
        (true, "", "") => {
            Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into())
        }
        (true, "", namespace) => Ok(namespace.to_owned()),
        (true, named, _) => Ok(named.to_owned()),
    }
}

/// The namespace of the request, for expressions. A Namespace is in none.
async fn namespace_object(subject: &Subject<'_>) -> Result<Option<Arc<Value>>, Status> {
    if subject.namespace.is_empty() || subject.is_namespace() {
        return Ok(None);
    }
    let found = subject.request.read("", "namespaces", "", &subject.namespace).await?;
    let missing = || Status::not_found(&Gvr::new("", "v1", "namespaces"), &subject.namespace);
    found.ok_or_else(missing).map(Some)
}

impl<R> Turn<'_, R> {
    /// What the policy's expressions see.
    fn scope(&self, subject: &Subject<'_>, new: Option<&Value>, namespace: Option<&Value>) -> Scope {
        let scope = Scope::new(subject, &self.view, new, self.params.as_deref());
        scope.with_namespace(namespace).with_definitions(&self.policy.variables)
    }
}
