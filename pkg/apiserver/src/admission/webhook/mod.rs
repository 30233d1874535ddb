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
use super::metrics::Asked;
use super::subject::{Subject, concerned};
use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use configuration::Hook;
use futures::future::join_all;
use isopod_api::Status;
use isopod_schema::patch::json_patch;
use review::Answer;
use serde_json::Value;
use std::time::{Duration, Instant};

const MUTATING: &str = "MutatingAdmissionWebhook";
/// What metrics call the two sorts.
const ADMIT: &str = "admit";
const VALIDATING: &str = "validating";

/// How asking a webhook ended, if not well.
enum Failure {
    /// It could not be asked or its answer is no answer: its failure policy decides. The code is for metrics.
    Calling { why: String, code: u16 },
    /// It refuses.
    Refused(Status),
    /// The request can be nothing but refused, whatever the webhook says.
    Impossible(Status),
}

impl Failure {
    fn calling(code: u16, why: impl Into<String>) -> Self {
        Failure::Calling { why: why.into(), code }
    }
}

pub struct MutatingWebhooks(Configured<Hook>);
pub struct ValidatingWebhooks(Configured<Hook>);

impl MutatingWebhooks {
    pub fn new() -> Self {
        MutatingWebhooks(Configured::new("mutatingwebhookconfigurations", |c| configuration::hooks(c, ADMIT)))
    }

    async fn dispatch(&self, request: &Request<'_>, mut new: Option<&mut Value>) -> Result<(), Status> {
        let hooks = self.0.get(request).await?;
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
            let begun = Instant::now();
            let asked = mutate_by(hook, &subject, &view, new.as_deref_mut(), &place).await;
            observe(request, hook, ADMIT, asked.as_ref().err(), begun.elapsed());
            note_mutation(request, hook, &place, asked.as_ref().is_ok_and(|changed| *changed));
            let changed = match asked {
                Ok(changed) => changed,
                Err(failure) => {
                    tolerate(request, hook, failure, ADMIT, &format!("mutation.webhook.admission.k8s.io/{place}"))?;
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
        Ok(false) => {
            let metrics = &subject.request.server.metrics.admission;
            metrics.condition_excluded(&hook.conditions.owner, subject.request.operation);
            Ok(None)
        }
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
        ValidatingWebhooks(Configured::new("validatingwebhookconfigurations", |c| configuration::hooks(c, VALIDATING)))
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
        let hooks = self.0.get(request).await?;
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
                let begun = Instant::now();
                let asked = ask(hook, subject, view, new, false).await;
                observe(request, hook, VALIDATING, asked.as_ref().err(), begun.elapsed());
                match asked {
                    Ok(_) => Ok(()),
                    Err(failure) => {
                        let key = format!("validating.webhook.admission.k8s.io/round_0_index_{index}");
                        tolerate(request, hook, failure, VALIDATING, &key)
                    }
                }
            }
        });
        join_all(answers).await.into_iter().collect()
    }
}

/// Counts how asking a webhook ended.
fn observe(request: &Request<'_>, hook: &Hook, step: &'static str, failure: Option<&Failure>, took: Duration) {
    let (code, refused) = match failure {
        None => (200, None),
        Some(Failure::Calling { code, .. }) => (*code, (!hook.ignores_failure).then_some("calling_webhook_error")),
        Some(Failure::Refused(status)) => (status.code, Some("no_error")),
        Some(Failure::Impossible(_)) => (0, Some("apiserver_internal_error")),
    };
    let (webhook, operation) = (hook.name.as_str(), request.operation);
    request.server.metrics.admission.webhook(&Asked { webhook, step, operation, took, code, refused });
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
fn tolerate(request: &Request<'_>, hook: &Hook, failure: Failure, step: &str, key: &str) -> Result<(), Status> {
    match failure {
        Failure::Refused(status) | Failure::Impossible(status) => Err(status),
        Failure::Calling { why, .. } if hook.ignores_failure => {
            request.server.metrics.admission.webhook_passed_over(&hook.name, step);
            tracing::warn!(webhook = hook.name, error = why, "a webhook failed and is ignored, as its policy says");
            request.intent.trail.annotate(format!("failed-open.{key}"), hook.name.as_str());
            Ok(())
        }
        Failure::Calling { why, .. } => Err(Status::internal(format!("failed calling webhook {:?}: {why}", hook.name))),
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
        return Err(Failure::Impossible(Status::bad_request(why)));
    }
    let version = review::version(hook).ok_or_else(|| {
        let why =
            "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)";
        Failure::calling(400, why)
    })?;
    let callout =
        hook.callout.as_ref().map_err(|e| Failure::calling(500, format!("could not get REST client: {e}")))?;
    let uid = uuid::Uuid::new_v4().to_string();
    let (new, old) = (subject.in_version(new, view), subject.in_version(subject.old, view));
    let question = review::question(version, &uid, subject, view, new.as_ref(), old.as_ref());
    let said = callout.post(subject.request.server, &question, hook.timeout).await;
    let said = said.map_err(|e| Failure::calling(503, format!("failed to call webhook: {e}")))?;
    let answer = review::answer(version, &uid, &said, mutating);
    let answer = answer.map_err(|e| Failure::calling(503, format!("received invalid webhook response: {e}")))?;
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
    let internal = |why: String| Failure::Impossible(Status::internal(why));
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
        let made = subject.accept(view, patched).await.map_err(Failure::Impossible)?;
        *new = made;
    }
    Ok(changed)
}
