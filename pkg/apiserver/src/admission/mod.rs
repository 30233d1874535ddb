//! Admission: what the cluster asks of every write beyond the rules of its kind. One file a plugin, one row in [`all`].
//!
//! Invariants: mutating plugins run before validating ones; validating ones see the final object.

pub mod all;
mod answers;
pub mod certificates;
pub mod claim_resize;
mod configured;
pub mod default_class;
pub mod default_toleration_seconds;
mod expressions;
pub mod limit_ranger;
mod matching;
pub mod namespace_lifecycle;
pub mod node_restriction;
pub mod pod_security;
pub mod policy;
pub mod priority;
pub mod rbac_escalation;
pub mod resource_quota;
mod rounds;
pub mod runtime_class;
pub mod service_account;
pub mod storage_object_in_use_protection;
mod subject;
pub mod taint_nodes_by_condition;
pub mod webhook;

use crate::ApiServer;
use crate::pipeline::Intent;
use answers::Answers;
use async_trait::async_trait;
use isopod_api::{Gvk, Status};
use rounds::Rounds;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    /// A stream to a pod, a service or a node.
    Connect,
}

impl Operation {
    /// As webhooks and policies name it.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// What a plugin looks at. The server is there to read other objects.
pub struct Request<'a> {
    pub server: &'a ApiServer,
    pub intent: &'a Intent,
    pub operation: Operation,
    pub old: Option<&'a Value>,
    /// The object's type, where it is not the kind's.
    pub gvk: Option<Gvk>,
    pub rounds: &'a Rounds,
    pub answers: Answers,
}

impl<'a> Request<'a> {
    pub fn new(
        server: &'a ApiServer,
        intent: &'a Intent,
        operation: Operation,
        old: Option<&'a Value>,
        rounds: &'a Rounds,
    ) -> Self {
        let answers = Answers::new(server.config.authorizer.clone());
        Request { server, intent, operation, old, gvk: None, rounds, answers }
    }

    /// Whether this is about the resource itself (no subresource), `pods` or `deployments.apps`.
    pub fn is(&self, qualified: &str) -> bool {
        self.intent.subresource.is_empty() && self.intent.kind.gvr().qualified() == qualified
    }

    /// 403 with a plugin's reason, as upstream's `admission.NewForbidden` words it.
    pub fn forbidden(&self, object: Option<&Value>, why: impl std::fmt::Display) -> Status {
        let meta = object.or(self.old).map(|o| &o["metadata"]);
        let text = |key: &str| meta.and_then(|m| m[key].as_str()).filter(|s| !s.is_empty());
        let name = match text("name").or(Some(&self.intent.name).filter(|n| !n.is_empty()).map(String::as_str)) {
            Some(name) => name.to_owned(),
            None => text("generateName").map(str::to_owned).unwrap_or_else(|| "Unknown".into()),
        };
        Status::forbidden(&self.intent.kind.gvr(), &name, why)
    }
}

/// One admission plugin. The defaults let everything pass.
#[async_trait]
pub trait Plugin: Send + Sync {
    /// As in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;

    /// Whether it does what objects of the cluster say: webhooks, policies.
    fn is_configured(&self) -> bool {
        false
    }

    /// Changes or refuses what is to be written.
    async fn mutate(&self, _request: &Request<'_>, _new: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    /// Refuses. `new` is `None` for a delete.
    async fn validate(&self, _request: &Request<'_>, _new: Option<&Value>) -> Result<(), Status> {
        Ok(())
    }
}

/// Runs the mutating plugins; a second time if webhooks changed what the others have seen.
pub async fn mutate(
    server: &ApiServer,
    intent: &Intent,
    operation: Operation,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let rounds = Rounds::default();
    let request = Request::new(server, intent, operation, old, &rounds);
    for plugin in &server.admission {
        plugin.mutate(&request, new).await.inspect_err(|e| refused(plugin.name(), e))?;
    }
    if !rounds.begin_second() {
        return Ok(());
    }
    for plugin in &server.admission {
        plugin.mutate(&request, new).await.inspect_err(|e| refused(plugin.name(), e))?;
    }
    Ok(())
}

/// Runs the validating plugins.
pub async fn validate(
    server: &ApiServer,
    intent: &Intent,
    operation: Operation,
    new: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Status> {
    let rounds = Rounds::default();
    let request = Request::new(server, intent, operation, old, &rounds);
    for plugin in &server.admission {
        plugin.validate(&request, new).await.inspect_err(|e| refused(plugin.name(), e))?;
    }
    Ok(())
}

fn refused(plugin: &str, status: &Status) {
    tracing::debug!(plugin, %status, "admission refused a write");
}
