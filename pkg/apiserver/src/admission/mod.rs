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
pub mod metrics;
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
use isopod_kinds::Kind;
use metrics::Timings;
use rounds::Rounds;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Plugins that change what is to be written come first, then those that only refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Admit,
    Validate,
}

impl Step {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Step::Admit => "admit",
            Step::Validate => "validate",
        }
    }
}

/// A plugin, and what it is asked about.
pub struct Row {
    pub plugin: Box<dyn Plugin>,
    /// The resources that it has anything to do with, `deployments.apps`; none: all of them.
    pub about: &'static [&'static str],
    pub admits: &'static [Operation],
    pub validates: &'static [Operation],
    pub timings: Timings,
}

impl Row {
    fn handles(&self, step: Step, operation: Operation) -> bool {
        let operations = if step == Step::Admit { self.admits } else { self.validates };
        operations.contains(&operation)
    }

    fn concerns(&self, kind: &Kind) -> bool {
        self.about.is_empty() || self.about.iter().any(|resource| kind.is(resource))
    }

    /// As if it had been asked and had nothing to say.
    fn passed_over(&self, step: Step, operation: Operation) {
        self.timings.observe(step, operation, false, Duration::ZERO);
    }

    /// `lap`: when the plugin was asked; it becomes when the next one is, so that the clock is read once a plugin.
    fn done(
        &self,
        step: Step,
        operation: Operation,
        lap: &mut Instant,
        done: Result<(), Status>,
    ) -> Result<(), Status> {
        let now = Instant::now();
        self.timings.observe(step, operation, done.is_err(), now.duration_since(std::mem::replace(lap, now)));
        done.inspect_err(|status| tracing::debug!(plugin = self.plugin.name(), %status, "admission refused a write"))
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

    /// An object by resource, as it was when admission began or later.
    pub async fn read(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, Status> {
        self.server.read_at(&self.intent.moment, group, resource, namespace, name).await
    }

    /// All objects of a resource (in one namespace, or in all if it is empty), as they were when admission began or later.
    pub async fn read_all(&self, group: &str, resource: &str, namespace: &str) -> Result<Vec<Arc<Value>>, Status> {
        self.server.read_all_at(&self.intent.moment, group, resource, namespace).await
    }

    /// Whether this is about the resource itself (no subresource), `pods` or `deployments.apps`.
    pub fn is(&self, qualified: &str) -> bool {
        self.intent.subresource.is_empty() && self.intent.kind.is(qualified)
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

/// Which plugins are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    All,
    /// Those that do what objects of the cluster say.
    Configured,
}

/// Whether an object of the kind is as good as sure to be changed: what is created of a kind that a plugin is there for. To find out
/// whether it was costs as much as to take it for changed.
pub fn changes(server: &ApiServer, intent: &Intent, operation: Operation) -> bool {
    let is_for = |row: &Row| !row.about.is_empty() && row.concerns(&intent.kind);
    operation == Operation::Create
        && server.admission.iter().any(|row| row.handles(Step::Admit, operation) && is_for(row))
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
    admit(&Request::new(server, intent, operation, old, &rounds), new, Who::All).await
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
    if operation == Operation::Delete {
        // There is nothing that could be changed: the plugins of the first step look at it as those of the second do.
        look(&request, Step::Admit, new, Who::All).await?;
    }
    look(&request, Step::Validate, new, Who::All).await
}

/// Asks about an object that only a subresource has (a binding, an eviction, a scale, the options of a stream): webhooks and
/// policies alike.
pub async fn about(
    server: &ApiServer,
    intent: &Intent,
    operation: Operation,
    gvk: &Gvk,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let rounds = Rounds::default();
    let request = Request { gvk: Some(gvk.clone()), ..Request::new(server, intent, operation, old, &rounds) };
    admit(&request, new, Who::Configured).await?;
    look(&request, Step::Validate, Some(new), Who::Configured).await
}

/// The plugins that have a say.
fn asked<'a>(request: &Request<'a>, step: Step, who: Who) -> impl Iterator<Item = &'a Row> + use<'a> {
    let operation = request.operation;
    let rows = request.server.admission.iter();
    rows.filter(move |row| row.handles(step, operation) && (who == Who::All || row.plugin.is_configured()))
}

async fn admit(request: &Request<'_>, new: &mut Value, who: Who) -> Result<(), Status> {
    let begun = Instant::now();
    let mut lap = begun;
    let mut done = admit_once(request, new, who, &mut lap).await;
    if done.is_ok() && request.rounds.begin_second() {
        done = admit_once(request, new, who, &mut lap).await;
    }
    let metrics = &request.server.metrics.admission;
    metrics.step(Step::Admit, request.operation, done.is_err(), lap.duration_since(begun));
    done
}

async fn admit_once(request: &Request<'_>, new: &mut Value, who: Who, lap: &mut Instant) -> Result<(), Status> {
    for row in asked(request, Step::Admit, who) {
        if !row.concerns(&request.intent.kind) {
            row.passed_over(Step::Admit, request.operation);
            continue;
        }
        let done = row.plugin.mutate(request, new).await;
        row.done(Step::Admit, request.operation, lap, done)?;
    }
    Ok(())
}

async fn look(request: &Request<'_>, step: Step, new: Option<&Value>, who: Who) -> Result<(), Status> {
    let begun = Instant::now();
    let (mut lap, mut done) = (begun, Ok(()));
    for row in asked(request, step, who) {
        if !row.concerns(&request.intent.kind) {
            row.passed_over(step, request.operation);
            continue;
        }
        let answer = row.plugin.validate(request, new).await;
        done = row.done(step, request.operation, &mut lap, answer);
        if done.is_err() {
            break;
        }
    }
    request.server.metrics.admission.step(step, request.operation, done.is_err(), lap.duration_since(begun));
    done
}
