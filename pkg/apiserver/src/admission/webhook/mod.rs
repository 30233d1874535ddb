//! `MutatingAdmissionWebhook` and `ValidatingAdmissionWebhook`: servers of the cluster's users that are asked about writes.
//!
//! Invariants:
//! - Mutating webhooks are asked one after another, each sees what the ones before it made, defaulted; validating ones are
//!   asked side by side, about the final object.
//! - A webhook is asked a second time at most, and only when it wants that and something changed after it.
//! - Nothing that configures admission is itself subject to webhooks: a broken one can always be taken away.

mod configuration;
mod review;

use super::configured::Configured;
use super::matching::View;
use super::subject::{Subject, concerned};
use super::{Operation, Plugin, Request, Rounds};
use crate::ApiServer;
use crate::pipeline::Intent;
use async_trait::async_trait;
use configuration::Hook;
use futures::future::join_all;
use isopod_api::{Gvk, Status};
use isopod_schema::patch::json_patch;
use review::Answer;
use serde_json::Value;

const MUTATING: &str = "MutatingAdmissionWebhook";

/// How asking a webhook ended, if not well.
enum Failure {
    /// It could not be asked or its answer is no answer: its failure policy decides.
    Calling(String),
    /// It refuses, or the request can be nothing but refused.
    Refused(Status),
}

pub struct MutatingWebhooks(Configured<Hook>);
pub struct ValidatingWebhooks(Configured<Hook>);

impl MutatingWebhooks {
    pub fn new() -> Self {
        MutatingWebhooks(Configured::new("mutatingwebhookconfigurations", configuration::hooks))
    }

    async fn dispatch(&self, request: &Request<'_>, mut new: Option<&mut Value>) -> Result<(), Status> {
        let hooks = self.0.get(request.server).await?;
        if hooks.is_empty() || !concerned(request) {
            return Ok(());
        }
        let second = request.rounds.enter(MUTATING, new.as_deref());
        for (index, hook) in hooks.iter().enumerate() {
            let subject = Subject::new(request, new.as_deref());
            let Some(view) = wanted(hook, &subject, new.as_deref()).await? else { continue };
            if second && !request.rounds.asks_again(MUTATING, &hook.id) {
                continue;
            }
            let place = format!("round_{}_index_{index}", u8::from(second));
            let asked = mutate_by(hook, &subject, &view, new.as_deref_mut(), &place).await;
            note_mutation(request, hook, &place, asked.as_ref().is_ok_and(|changed| *changed));
            let changed = match asked {
                Ok(changed) => changed,
                Err(failure) => {
                    tolerate(request, hook, failure, &format!("mutation.webhook.admission.k8s.io/{place}"))?;
                    false
                }
            };
            request.rounds.answered(MUTATING, &hook.id, changed, hook.reinvocable);
        }
        request.rounds.leave(MUTATING, new.as_deref());
        Ok(())
    }
}

/// How the webhook wants to see the request. `None`: it is not to be asked.
async fn wanted(hook: &Hook, subject: &Subject<'_>, new: Option<&Value>) -> Result<Option<View>, Status> {
    let Some(view) = hook.criteria.view(subject.request.server, subject, new).await? else { return Ok(None) };
    match hook.conditions.hold(subject, &view, new, None).await {
        Ok(true) => Ok(Some(view)),
        Ok(false) => Ok(None),
        Err(why) => Err(subject.request.forbidden(new, why)),
    }
}

#[async_trait]
impl Plugin for MutatingWebhooks {
    fn name(&self) -> &'static str {
        MUTATING
    }

    fn is_configured(&self) -> bool {
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
        ValidatingWebhooks(Configured::new("validatingwebhookconfigurations", configuration::hooks))
    }
}

#[async_trait]
impl Plugin for ValidatingWebhooks {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn is_configured(&self) -> bool {
        true
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        let hooks = self.0.get(request.server).await?;
        if hooks.is_empty() || !concerned(request) {
            return Ok(());
        }
        let subject = Subject::new(request, new);
        let mut asked = Vec::new();
        for hook in hooks.iter() {
            if let Some(view) = wanted(hook, &subject, new).await? {
                asked.push((hook, view));
            }
        }
        let answers = asked.iter().enumerate().map(|(index, (hook, view))| {
            let subject = &subject;
            async move {
                match ask(hook, subject, view, new, false).await {
                    Ok(_) => Ok(()),
                    Err(failure) => {
                        let key = format!("validating.webhook.admission.k8s.io/round_0_index_{index}");
                        tolerate(request, hook, failure, &key)
                    }
                }
            }
        });
        join_all(answers).await.into_iter().collect()
    }
}

/// Tells the audit log whether a webhook changed the object.
fn note_mutation(request: &Request<'_>, hook: &Hook, place: &str, changed: bool) {
    let trail = &request.intent.trail;
    if trail.is_recorded() {
        let (configuration, webhook) = (&hook.configuration, &hook.name);
        let value = format!("{{\"configuration\":{configuration:?},\"webhook\":{webhook:?},\"mutated\":{changed}}}");
        trail.annotate(format!("mutation.webhook.admission.k8s.io/{place}"), value);
    }
}

/// The same with the patch, where bodies are recorded.
fn note_patch(request: &Request<'_>, hook: &Hook, place: &str, patch: &[Value]) {
    request.intent.trail.annotate_body(format!("patch.webhook.admission.k8s.io/{place}"), || {
        let (configuration, webhook, patch) = (&hook.configuration, &hook.name, Value::from(patch.to_vec()));
        format!(
            "{{\"configuration\":{configuration:?},\"webhook\":{webhook:?},\"patch\":{patch},\"patchType\":\"JSONPatch\"}}"
        )
    });
}

/// What a failure means for the request. Behind `key` the audit log keeps which webhook was passed over.
fn tolerate(request: &Request<'_>, hook: &Hook, failure: Failure, key: &str) -> Result<(), Status> {
    match failure {
        Failure::Refused(status) => Err(status),
        Failure::Calling(why) if hook.ignores_failure => {
            tracing::warn!(webhook = hook.name, error = why, "a webhook failed and is ignored, as its policy says");
            request.intent.trail.annotate(format!("failed-open.{key}"), hook.name.as_str());
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
    for (key, value) in &answer.annotations {
        intent.trail.annotate(format!("{}/{key}", hook.name), value.as_str());
    }
    if answer.allowed { Ok(answer) } else { Err(Failure::Refused(review::refusal(&hook.name, &answer.status))) }
}

/// Asks a mutating webhook and makes the change that it wants. True: the object is another now.
async fn mutate_by(
    hook: &Hook,
    subject: &Subject<'_>,
    view: &View,
    new: Option<&mut Value>,
    place: &str,
) -> Result<bool, Failure> {
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
    let operations = answer.patch;
    let patched = json_patch(&shown, &Value::Array(operations.clone())).map_err(|e| internal(e.to_string()))?;
    note_patch(subject.request, hook, place, &operations);
    let changed = patched != shown;
    if changed {
        let made = subject.accept(view, patched).await.map_err(Failure::Refused)?;
        *new = made;
    }
    Ok(changed)
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
    let plugins = || server.admission.iter().filter(|p| p.is_configured());
    for plugin in plugins() {
        plugin.mutate(&request, new).await?;
    }
    if rounds.begin_second() {
        for plugin in plugins() {
            plugin.mutate(&request, new).await?;
        }
    }
    for plugin in plugins() {
        plugin.validate(&request, Some(new)).await?;
    }
    Ok(())
}
