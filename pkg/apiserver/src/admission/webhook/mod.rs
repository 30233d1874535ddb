//! `MutatingAdmissionWebhook` and `ValidatingAdmissionWebhook`: servers of the cluster's users that are asked about writes.
//!
//! Invariants:
//! - Mutating webhooks are asked one after another, each sees what the ones before it made, defaulted; validating ones are
//!   asked side by side, about the final object.
//! - A webhook is asked a second time at most, and only when it wants that and something changed after it.
//! - Nothing that configures admission is itself subject to webhooks: a broken one can always be taken away.

mod configuration;
mod review;
mod rules;

use super::{Operation, Plugin, Request};
use crate::ApiServer;
use crate::encode::decode::{self, FieldValidation};
use crate::ownership::Served;
use crate::pipeline::{self, Intent};
use async_trait::async_trait;
use configuration::{Configurations, Hook};
use futures::future::join_all;
use isopod_api::{Gvk, Status};
use isopod_schema::managed::Versions;
use isopod_schema::patch::json_patch;
use review::Answer;
use rules::View;
use serde_json::Value;
use std::collections::BTreeSet;

/// Kinds that no webhook is asked about.
const EXEMPT: [&str; 6] = [
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
];

/// What is known of the mutating webhooks during one request.
#[derive(Default)]
pub struct Rounds {
    /// The second round: only those that want it are asked, and no new ones.
    pub second: bool,
    /// Something changed that webhooks asked before should see.
    pub wanted: bool,
    /// Asked already, and ready to be asked again.
    asked: BTreeSet<String>,
    /// To be asked again.
    again: BTreeSet<String>,
    /// What the last webhook left.
    output: Option<Value>,
}

impl Rounds {
    fn ask_again(&mut self) {
        self.again.append(&mut self.asked);
    }
}

/// A request as webhooks see it.
pub struct Subject<'a> {
    request: &'a Request<'a>,
    operation: &'static str,
    /// The type of the object: the kind's own, or the subresource's.
    gvk: Gvk,
    /// Of a Namespace: itself.
    namespace: String,
    name: String,
    old: Option<&'a Value>,
}

impl<'a> Subject<'a> {
    fn new(request: &'a Request<'a>, new: Option<&Value>) -> Self {
        let intent = request.intent;
        let mut name = intent.name.clone();
        if name.is_empty() {
            name = new.and_then(|n| n["metadata"]["name"].as_str()).unwrap_or_default().to_owned();
        }
        let is_namespace = intent.kind.gvk.group.is_empty() && intent.kind.resource == "namespaces";
        Subject {
            request,
            operation: request.operation.name(),
            gvk: request.gvk.clone().unwrap_or_else(|| intent.kind.gvk.clone()),
            namespace: if is_namespace { name.clone() } else { intent.namespace.clone() },
            name,
            old: request.old,
        }
    }

    fn intent(&self) -> &'a Intent {
        self.request.intent
    }

    fn subresource(&self) -> &'a str {
        &self.request.intent.subresource
    }

    fn is_namespace(&self) -> bool {
        let kind = &self.intent().kind;
        kind.gvk.group.is_empty() && kind.resource == "namespaces"
    }

    /// The object in the version that the webhook wants.
    fn in_version(&self, object: Option<&Value>, view: &View) -> Option<Value> {
        let object = object?;
        if view.gvk == self.gvk {
            let mut object = object.clone();
            object["apiVersion"] = self.gvk.api_version().into();
            object["kind"] = self.gvk.kind.clone().into();
            return Some(object);
        }
        let versions = Served::new(self.request.server, &self.intent().kind);
        Some(versions.convert(object, &self.gvk.api_version(), &view.gvk.api_version()))
    }
}

/// How asking a webhook ended, if not well.
enum Failure {
    /// It could not be asked or its answer is no answer: its failure policy decides.
    Calling(String),
    /// It refuses, or the request can be nothing but refused.
    Refused(Status),
}

/// Whether webhooks are asked about this request in the course of the pipeline. About the types that only subresources have,
/// they are asked where those come in.
fn concerned(request: &Request<'_>) -> bool {
    let intent = request.intent;
    let exempt =
        intent.kind.gvk.group == "admissionregistration.k8s.io" && EXEMPT.contains(&intent.kind.gvk.kind.as_str());
    let sub = intent.kind.subresources.iter().find(|s| s.name == intent.subresource);
    let foreign = sub.and_then(|s| s.gvk.as_ref()).is_some_and(|gvk| *gvk != intent.kind.gvk);
    !exempt && !intent.webhooks_asked && (!foreign || request.gvk.is_some())
}

pub struct MutatingWebhooks(Configurations);
pub struct ValidatingWebhooks(Configurations);

impl MutatingWebhooks {
    pub fn new() -> Self {
        MutatingWebhooks(Configurations::new("mutatingwebhookconfigurations"))
    }

    async fn dispatch(&self, request: &Request<'_>, mut new: Option<&mut Value>) -> Result<(), Status> {
        let hooks = self.0.hooks(request.server).await?;
        if hooks.is_empty() || !concerned(request) {
            return Ok(());
        }
        let second = {
            let mut rounds = request.rounds.lock();
            if rounds.second && rounds.output.as_ref() != new.as_deref() {
                rounds.ask_again();
            }
            rounds.second
        };
        for hook in hooks.iter() {
            let subject = Subject::new(request, new.as_deref());
            let Some(view) = rules::view(request.server, hook, &subject, new.as_deref()).await? else { continue };
            if second && !request.rounds.lock().again.remove(&hook.id) {
                continue;
            }
            let changed = match mutate_by(hook, &subject, &view, new.as_deref_mut()).await {
                Ok(changed) => changed,
                Err(failure) => {
                    tolerate(hook, failure)?;
                    false
                }
            };
            let mut rounds = request.rounds.lock();
            if changed {
                rounds.ask_again();
                rounds.wanted = true;
            }
            if hook.reinvocable {
                rounds.asked.insert(hook.id.clone());
            }
        }
        request.rounds.lock().output = new.map(|n| n.clone());
        Ok(())
    }
}

#[async_trait]
impl Plugin for MutatingWebhooks {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn is_webhooks(&self) -> bool {
        true
    }

    async fn mutate(&self, request: &Request<'_>, new: &mut Value) -> Result<(), Status> {
        self.dispatch(request, Some(new)).await
    }

    async fn validate(&self, request: &Request<'_>, _new: Option<&Value>) -> Result<(), Status> {
        // A delete has no object that could be changed, but these are asked about it all the same.
        if request.operation == Operation::Delete { self.dispatch(request, None).await } else { Ok(()) }
    }
}

impl ValidatingWebhooks {
    pub fn new() -> Self {
        ValidatingWebhooks(Configurations::new("validatingwebhookconfigurations"))
    }
}

#[async_trait]
impl Plugin for ValidatingWebhooks {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn is_webhooks(&self) -> bool {
        true
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        let hooks = self.0.hooks(request.server).await?;
        if hooks.is_empty() || !concerned(request) {
            return Ok(());
        }
        let subject = Subject::new(request, new);
        let mut asked = Vec::new();
        for hook in hooks.iter() {
            if let Some(view) = rules::view(request.server, hook, &subject, new).await? {
                asked.push((hook, view));
            }
        }
        let answers = asked.iter().map(|(hook, view)| async {
            match ask(hook, &subject, view, new, false).await {
                Ok(_) => Ok(()),
                Err(failure) => tolerate(hook, failure),
            }
        });
        join_all(answers).await.into_iter().collect()
    }
}

/// What a failure means for the request.
fn tolerate(hook: &Hook, failure: Failure) -> Result<(), Status> {
    match failure {
        Failure::Refused(status) => Err(status),
        Failure::Calling(why) if hook.ignores_failure => {
            tracing::warn!(webhook = hook.name, error = why, "a webhook failed and is ignored, as its policy says");
            Ok(())
        }
        Failure::Calling(why) => Err(Status::internal(format!("failed calling webhook {:?}: {why}", hook.name))),
    }
}

/// Asks a webhook. A request that it lets pass is `Ok`.
async fn ask(
    hook: &Hook,
    subject: &Subject<'_>,
    view: &View,
    new: Option<&Value>,
    mutating: bool,
) -> Result<Answer, Failure> {
    let intent = subject.intent();
    if intent.dry_run && !hook.dry_run {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Failure::Refused(Status::bad_request(why)));
    }
    let version = review::version(hook).ok_or_else(|| {
        let why =
            "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)";
        Failure::Calling(why.into())
    })?;
    let callout = hook.callout.as_ref().map_err(|e| Failure::Calling(format!("could not get REST client: {e}")))?;
    let uid = uuid::Uuid::new_v4().to_string();
    let (new, old) = (subject.in_version(new, view), subject.in_version(subject.old, view));
    let question = review::question(version, &uid, subject, view, new.as_ref(), old.as_ref());
    let said = callout.post(subject.request.server, &question, hook.timeout).await;
    let said = said.map_err(|e| Failure::Calling(format!("failed to call webhook: {e}")))?;
    let answer = review::answer(version, &uid, &said, mutating);
    let answer = answer.map_err(|e| Failure::Calling(format!("received invalid webhook response: {e}")))?;
    intent.warn(answer.warnings.iter().cloned());
    if answer.allowed { Ok(answer) } else { Err(Failure::Refused(review::refusal(&hook.name, &answer.status))) }
}

/// Asks a mutating webhook and makes the change that it wants. True: the object is another now.
async fn mutate_by(hook: &Hook, subject: &Subject<'_>, view: &View, new: Option<&mut Value>) -> Result<bool, Failure> {
    let answer = ask(hook, subject, view, new.as_deref(), true).await?;
    if answer.patch.is_empty() {
        return Ok(false);
    }
    let internal = |why: String| Failure::Refused(Status::internal(why));
    let Some(new) = new else {
        let why = "attempted to modify the object, which is not supported for this operation";
        return Err(internal(format!("admission webhook {:?} {why}", hook.name)));
    };
    let shown = subject.in_version(Some(new), view).unwrap_or_default();
    let patched = json_patch(&shown, &Value::Array(answer.patch)).map_err(|e| internal(e.to_string()))?;
    let changed = patched != shown;
    if changed {
        let made = accept(subject, view, patched).map_err(Failure::Refused)?;
        *new = made;
    }
    Ok(changed)
}

/// The changed object as this server's: read as from a client, in the request's version, defaulted.
fn accept(subject: &Subject<'_>, view: &View, patched: Value) -> Result<Value, Status> {
    let intent = subject.intent();
    let schema = match &subject.request.gvk {
        Some(gvk) => isopod_schema::facts::builtin().object_of(gvk),
        None => {
            let registry = subject.request.server.registry.load();
            let kind = registry.kind(&view.gvk.api_version(), &view.gvk.kind);
            kind.map(|k| k.schema.clone())
        }
    };
    let schema = schema.ok_or_else(|| Status::internal(format!("no schema of {}", view.gvk.kind)))?;
    let mut object = decode::value(patched, &view.gvk, &schema, FieldValidation::Ignore)?.value;
    if subject.request.gvk.is_some() {
        return Ok(object);
    }
    if view.gvk != intent.kind.gvk {
        let versions = Served::new(subject.request.server, &intent.kind);
        object = versions.convert(&object, &view.gvk.api_version(), &intent.kind.gvk.api_version());
    }
    pipeline::apply_defaults(intent, &mut object);
    Ok(object)
}

/// Asks about an object that only a subresource has (a binding, an eviction, a scale, the options of a stream).
pub async fn about(
    server: &ApiServer,
    intent: &Intent,
    operation: Operation,
    gvk: &Gvk,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let rounds = Default::default();
    let request = Request { gvk: Some(gvk.clone()), ..Request::new(server, intent, operation, old, &rounds) };
    let plugins = || server.admission.iter().filter(|p| p.is_webhooks());
    for plugin in plugins() {
        plugin.mutate(&request, new).await?;
    }
    let again = std::mem::replace(&mut request.rounds.lock().second, true);
    if request.rounds.lock().wanted && !again {
        for plugin in plugins() {
            plugin.mutate(&request, new).await?;
        }
    }
    for plugin in plugins() {
        plugin.validate(&request, Some(new)).await?;
    }
    Ok(())
}
