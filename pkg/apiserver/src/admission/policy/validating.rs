//! `ValidatingAdmissionPolicy`: what holds of every object, or is told.

use super::{Binding, Policies, Policy, Turn, namespace_object, turns};
use crate::admission::configured::Configured;
use crate::admission::expressions::{Compiled, POLICY_BUDGET, Scope};
use crate::admission::subject::{Subject, concerned};
use crate::admission::{Plugin, Request};
use async_trait::async_trait;
use isopod_api::{Cause, Status};
use isopod_kinds::access::Access;
use isopod_kinds::cel::Val;
use serde_json::Value;

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
    /// Keys and values of `auditAnnotations`. Their values are not recorded, but an error in one counts.
    annotations: Vec<Compiled>,
}

fn policy(policy: &Value) -> Vec<Policy<Rules>> {
    let validation = |v: &Value| Validation {
        expression: Compiled::new(v.text("expression")),
        message: v.text("message").trim().to_owned(),
        message_expression: v.has("messageExpression").then(|| Compiled::new(v.text("messageExpression"))),
        reason: v.text("reason").to_owned(),
    };
    let spec = policy.at("spec");
    let rules = Rules {
        validations: spec.list("validations").iter().map(validation).collect(),
        annotations: spec.list("auditAnnotations").iter().map(|a| Compiled::new(a.text("valueExpression"))).collect(),
    };
    vec![Policy::new(policy, rules)]
}

/// What one validation found wrong.
struct Finding {
    message: String,
    reason: String,
    /// It could not be evaluated.
    failed: bool,
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
        let policies = self.0.policies.get(request.server).await?;
        if policies.is_empty() || !concerned(request) {
            return Ok(());
        }
        let bindings = self.0.bindings.get(request.server).await?;
        let subject = Subject::new(request, new);
        let turns = turns(&policies, &bindings, &subject, new).await?;
        if turns.is_empty() {
            return Ok(());
        }
        let namespace = namespace_object(&subject).await?;
        let mut denied = None;
        for turn in turns {
            let (policy, binding, findings) = match turn {
                Ok(turn) => {
                    let findings = findings(&turn, &subject, new, namespace.as_ref());
                    (turn.policy, turn.binding, findings)
                }
                Err(wrong) => {
                    let message = format!("failed to configure binding: {}", wrong.why);
                    let found = Finding { message, reason: String::new(), failed: true };
                    (wrong.policy, wrong.binding, vec![found])
                }
            };
            for finding in findings.into_iter().filter(|f| !(f.failed && policy.ignores_failure)) {
                if let Some(status) = act(request, new, policy, binding, &finding) {
                    denied = denied.or(Some(status));
                }
            }
        }
        denied.map_or(Ok(()), Err)
    }
}

/// Does with a finding what the binding says. A denial is returned.
fn act(
    request: &Request<'_>,
    new: Option<&Value>,
    policy: &Policy<Rules>,
    binding: &Binding,
    finding: &Finding,
) -> Option<Status> {
    let (policy, binding_name) = (&policy.name, &binding.name);
    let has = |action: &str| binding.actions.iter().any(|a| a == action);
    if has("Warn") {
        request.intent.warn([format!(
            "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding_name}': {}",
            finding.message
        )]);
    }
    if has("Audit") {
        tracing::info!(policy, binding = binding_name, finding = finding.message, "a validation failed");
    }
    if !has("Deny") {
        return None;
    }
    let why = format!(
        "ValidatingAdmissionPolicy '{policy}' with binding '{binding_name}' denied request: {}",
        finding.message
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
    Some(status)
}

/// What a policy finds wrong with the request.
fn findings(
    turn: &Turn<'_, Rules>,
    subject: &Subject<'_>,
    new: Option<&Value>,
    namespace: Option<&Value>,
) -> Vec<Finding> {
    let failure = |message: String| Finding { message, reason: String::new(), failed: true };
    let scope = turn.scope(subject, new, namespace);
    let with_authorizer = scope.with_authorizer(subject);
    match turn.policy.conditions.hold_in(&with_authorizer) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(e) => return vec![failure(e)],
    }
    let mut budget = POLICY_BUDGET;
    let mut found = Vec::new();
    for validation in &turn.policy.rules.validations {
        match validation.expression.run(&with_authorizer, &mut budget) {
            Ok(Val::Bool(true)) => {}
            Ok(_) => {
                let message = message(validation, &scope, &mut budget);
                found.push(Finding { message, reason: validation.reason.clone(), failed: false });
            }
            Err(e) => found.push(failure(e)),
        }
    }
    let mut budget = POLICY_BUDGET;
    for annotation in &turn.policy.rules.annotations {
        match annotation.run(&scope, &mut budget) {
            Ok(Val::Text(_) | Val::Null) => {}
            Ok(other) => found.push(failure(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                annotation.text,
                other.type_name()
            ))),
            Err(e) => found.push(failure(e)),
        }
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
