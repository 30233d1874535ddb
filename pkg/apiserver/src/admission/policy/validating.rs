//! `ValidatingAdmissionPolicy`: what holds of every object, or is told.

use super::{Binding, Policies, Policy, Turn, namespace_object, turns};
use crate::admission::configured::Configured;
use crate::admission::expressions::{Compiled, OUT_OF_BUDGET, POLICY_BUDGET, Scope};
use crate::admission::subject::{Subject, concerned};
use crate::admission::{Plugin, Request};
use async_trait::async_trait;
use isopod_api::{Cause, Status};
use isopod_kinds::access::Access;
use isopod_kinds::cel::Val;
use isopod_kinds::policy_types;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Longer messages that expressions make are not shown.
const MAX_MESSAGE: usize = 5 << 10;

struct Validation {
    expression: Compiled,
    message: String,
    message_expression: Option<Compiled>,
    reason: String,
}

struct Rules {
    validations: Vec<Validation>,
    /// Keys and values of `auditAnnotations`.
    annotations: Vec<(String, Compiled)>,
}

fn policy(policy: &Value) -> Vec<Policy<Rules>> {
    let around = policy_types::of_any_kind(policy.at("spec"));
    let compiled = |text: &str| Compiled::new(text, &around);
    let validation = |v: &Value| Validation {
        expression: compiled(v.text("expression")),
        message: v.text("message").trim().to_owned(),
        message_expression: v.has("messageExpression").then(|| compiled(v.text("messageExpression"))),
        reason: v.text("reason").to_owned(),
    };
    let annotation = |a: &Value| (a.text("key").to_owned(), compiled(a.text("valueExpression")));
    let spec = policy.at("spec");
    let rules = Rules {
        validations: spec.list("validations").iter().map(validation).collect(),
        annotations: spec.list("auditAnnotations").iter().map(annotation).collect(),
    };
    vec![Policy::new(policy, rules)]
}

/// What one validation found wrong.
struct Finding {
    /// Which validation.
    index: usize,
    message: String,
    reason: String,
    /// It could not be evaluated.
    failed: bool,
    /// It is of an annotation for the audit log, and refuses the request whatever the binding says.
    of_annotation: bool,
    took: Duration,
}

impl Finding {
    fn failure(index: usize, message: String, took: Duration) -> Self {
        Finding { index, message, reason: String::new(), failed: true, of_annotation: false, took }
    }
}

pub struct ValidatingPolicies(Policies<Rules>);

impl ValidatingPolicies {
    pub fn new() -> Self {
        ValidatingPolicies(Policies {
            policies: Configured::new("validatingadmissionpolicies", policy),
            bindings: Configured::new("validatingadmissionpolicybindings", Binding::new),
        })
    }
}

#[async_trait]
impl Plugin for ValidatingPolicies {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn is_configured(&self) -> bool {
        true
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        let policies = self.0.policies.get(request).await?;
        if policies.is_empty() || !concerned(request) {
            return Ok(());
        }
        let bindings = self.0.bindings.get(request).await?;
        let subject = Subject::new(request, new);
        let turns = turns(&policies, &bindings, &subject, new).await?;
        if turns.is_empty() {
            return Ok(());
        }
        let namespace = namespace_object(&subject).await?;
        let mut denied = None;
        let mut notes = Notes::default();
        for turn in turns {
            let turn = match turn {
                Ok(turn) => turn,
                Err(wrong) if wrong.policy.ignores_failure => continue,
                Err(wrong) => {
                    let why = format!("failed to configure binding: {}", wrong.why);
                    let finding = Finding::failure(0, why, Duration::ZERO);
                    denied = denied.or(Some(denial(request, new, wrong.policy, wrong.binding, &finding)));
                    continue;
                }
            };
            let find = || findings(&turn, &subject, new, namespace.as_deref(), &mut notes);
            for finding in request.answers.settled(find).await {
                if let Some(status) = act(request, new, &turn, &finding, &mut notes) {
                    denied = denied.or(Some(status));
                }
            }
        }
        notes.publish(request);
        denied.map_or(Ok(()), Err)
    }
}

/// Does with a finding what the binding says. A denial is returned.
fn act(
    request: &Request<'_>,
    new: Option<&Value>,
    turn: &Turn<'_, Rules>,
    finding: &Finding,
    notes: &mut Notes,
) -> Option<Status> {
    let (policy, binding) = (turn.policy, turn.binding);
    let names = [policy.name.as_str(), binding.name.as_str()];
    let metrics = &request.server.metrics.admission;
    let did = |action: &str| metrics.validating_policy(names, action, &finding.message, finding.took);
    if finding.failed && policy.ignores_failure {
        if !finding.of_annotation {
            did("allow");
        }
        return None;
    }
    let has = |action: &str| binding.actions.iter().any(|a| a == action);
    let tells = |action: &str| !finding.of_annotation && has(action);
    if tells("Warn") {
        request.intent.warn([format!(
            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
            names[0], names[1], finding.message
        )]);
        did("warn");
    }
    if tells("Audit") {
        notes.failures.push(json!({
            "message": finding.message, "policy": names[0], "binding": names[1],
            "expressionIndex": finding.index, "validationActions": binding.actions,
        }));
        did("audit");
    }
    if !has("Deny") && !finding.of_annotation {
        return None;
    }
    did("deny");
    Some(denial(request, new, policy, binding, finding))
}

fn denial(
    request: &Request<'_>,
    new: Option<&Value>,
    policy: &Policy<Rules>,
    binding: &Binding,
    finding: &Finding,
) -> Status {
    let why = format!(
        "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {}",
        policy.name, binding.name, finding.message
    );
    let mut status = request.forbidden(new, &why);
    status.reason = if finding.reason.is_empty() { "Invalid".to_owned() } else { finding.reason.clone() };
    status.code = match status.reason.as_str() {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    let cause = Cause { message: why, ..Cause::default() };
    status.details.get_or_insert_default().causes.push(cause);
    status
}

/// What goes to the audit log: values of annotations, of several bindings together, and what validations found.
#[derive(Default)]
struct Notes {
    annotations: BTreeMap<String, Vec<String>>,
    failures: Vec<Value>,
}

/// More findings, and longer values, are not recorded.
const MAX_FAILURES: usize = 50;
const MAX_ANNOTATION: usize = 10 << 10;

impl Notes {
    fn add(&mut self, key: String, value: &str) {
        let end = (0..=value.len().min(MAX_ANNOTATION)).rev().find(|i| value.is_char_boundary(*i)).unwrap_or(0);
        let values = self.annotations.entry(key).or_default();
        if end > 0 && !values.iter().any(|v| *v == value[..end]) {
            values.push(value[..end].to_owned());
        }
    }

    fn publish(mut self, request: &Request<'_>) {
        let trail = &request.intent.trail;
        for (key, values) in self.annotations.into_iter().filter(|(_, v)| !v.is_empty()) {
            trail.annotate(key, values.join(", "));
        }
        if !self.failures.is_empty() {
            self.failures.truncate(MAX_FAILURES);
            trail.annotate(
                "validation.policy.admission.k8s.io/validation_failure",
                Value::from(self.failures).to_string(),
            );
        }
    }
}

/// What a policy finds wrong with the request.
fn findings(
    turn: &Turn<'_, Rules>,
    subject: &Subject<'_>,
    new: Option<&Value>,
    namespace: Option<&Value>,
    notes: &mut Notes,
) -> Vec<Finding> {
    let scope = turn.scope(subject, new, namespace);
    let with_authorizer = scope.with_authorizer(subject);
    match turn.policy.conditions.hold_in(subject, &with_authorizer) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(e) => return vec![Finding::failure(0, e, Duration::ZERO)],
    }
    let mut budget = POLICY_BUDGET;
    let mut found = Vec::new();
    for (index, validation) in turn.policy.rules.validations.iter().enumerate() {
        let begun = Instant::now();
        match validation.expression.run(&with_authorizer, &mut budget) {
            Ok(Val::Bool(true)) => {}
            Ok(_) => {
                let (took, reason) = (begun.elapsed(), validation.reason.clone());
                let message = message(validation, &scope, &mut budget);
                found.push(Finding { index, message, reason, failed: false, of_annotation: false, took });
            }
            // That is all that is told then.
            Err(e) if e == OUT_OF_BUDGET => return vec![Finding::failure(0, e, begun.elapsed())],
            Err(e) => found.push(Finding::failure(index, e, begun.elapsed())),
        }
    }
    let mut budget = POLICY_BUDGET;
    for (key, annotation) in &turn.policy.rules.annotations {
        let begun = Instant::now();
        let why = match annotation.run(&scope, &mut budget) {
            Ok(Val::Null) => continue,
            Ok(Val::Text(text)) => {
                notes.add(format!("{}/{key}", turn.policy.name), text.trim());
                continue;
            }
            Ok(other) => format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                annotation.text,
                other.type_name()
            ),
            Err(e) => e,
        };
        found.push(Finding { of_annotation: true, ..Finding::failure(0, why, begun.elapsed()) });
    }
    found
}

/// The message of a validation that does not hold.
fn message(validation: &Validation, scope: &Scope, budget: &mut u64) -> String {
    let made = validation.message_expression.as_ref().and_then(|e| match e.run(scope, budget) {
        Ok(Val::Text(text)) => Some(text.trim().to_owned()),
        _ => None,
    });
    let fits = |m: &String| !m.is_empty() && m.len() <= MAX_MESSAGE && !m.contains('\n');
    if let Some(made) = made.filter(fits) {
        return made;
    }
    match validation.message.as_str() {
        "" => format!("failed expression: {}", validation.expression.text.trim()),
        stated => stated.to_owned(),
    }
}
