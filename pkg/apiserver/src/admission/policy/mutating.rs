//! `MutatingAdmissionPolicy`: what is changed in every object, by an apply configuration or a JSON patch that an expression
//! makes.

use super::{Binding, Policies, Policy, Turn, namespace_object, turns};
use crate::admission::configured::Configured;
use crate::admission::expressions::{Compiled, POLICY_BUDGET};
use crate::admission::subject::{Subject, concerned};
use crate::admission::{Plugin, Request};
use async_trait::async_trait;
use isopod_api::{Cause, Status};
use isopod_kinds::access::Access;
use isopod_kinds::cel::Val;
use isopod_kinds::cel::check::Library;
use isopod_kinds::policy_types;
use isopod_schema::managed::{self, Type};
use isopod_schema::patch::json_patch;
use serde_json::{Value, json};
use std::time::Instant;

const NAME: &str = "MutatingAdmissionPolicy";

enum Mutation {
    Apply(Compiled),
    Patch(Compiled),
}

struct Rules {
    mutations: Vec<Mutation>,
    reinvocable: bool,
}

fn policy(policy: &Value) -> Vec<Policy<Rules>> {
    let mut around = policy_types::of_any_kind(policy.at("spec"));
    around.library = Library::Patch;
    let mutation = |m: &Value| match m.text("patchType") {
        "JSONPatch" => Mutation::Patch(Compiled::new(m.text("jsonPatch.expression"), &around)),
        _ => Mutation::Apply(Compiled::new(m.text("applyConfiguration.expression"), &around)),
    };
    let rules = Rules {
        mutations: policy.list("spec.mutations").iter().map(mutation).collect(),
        reinvocable: policy.text("spec.reinvocationPolicy") == "IfNeeded",
    };
    vec![Policy::new(policy, rules)]
}

pub struct MutatingPolicies(Policies<Rules>);

impl MutatingPolicies {
    pub fn new() -> Self {
        MutatingPolicies(Policies {
            policies: Configured::new("mutatingadmissionpolicies", policy),
            bindings: Configured::new("mutatingadmissionpolicybindings", Binding::new),
        })
    }
}

#[async_trait]
impl Plugin for MutatingPolicies {
    fn name(&self) -> &'static str {
        NAME
    }

    fn is_configured(&self) -> bool {
        true
    }

    async fn mutate(&self, request: &Request<'_>, new: &mut Value) -> Result<(), Status> {
        let policies = self.0.policies.get(request).await?;
        if policies.is_empty() || !concerned(request) {
            return Ok(());
        }
        let bindings = self.0.bindings.get(request).await?;
        let second = request.rounds.enter(NAME, Some(new));
        let subject = Subject::new(request, Some(new));
        let turns = turns(&policies, &bindings, &subject, Some(new)).await?;
        let namespace = if turns.is_empty() { None } else { namespace_object(&subject).await? };
        let mut errors = Vec::new();
        for turn in turns {
            let turn = match turn {
                Ok(turn) => turn,
                Err(wrong) => {
                    let why = format!("failed to configure binding: {}", wrong.why);
                    errors.push((wrong.policy, wrong.binding, why));
                    continue;
                }
            };
            let id = turn.id();
            if second && !request.rounds.asks_again(NAME, &id) {
                continue;
            }
            let before = new.clone();
            let begun = Instant::now();
            let done = turn.mutate(&subject, new, namespace.as_deref()).await;
            let names = [turn.policy.name.as_str(), turn.binding.name.as_str()];
            let failure = done.as_ref().err().map(String::as_str);
            request.server.metrics.admission.mutating_policy(names, failure, begun.elapsed());
            if let Err(why) = done {
                errors.push((turn.policy, turn.binding, why));
            }
            request.rounds.answered(NAME, &id, *new != before, turn.policy.rules.reinvocable);
        }
        request.rounds.leave(NAME, Some(new));
        refuse(request, new, errors)
    }
}

/// 403 or 422 with what went wrong, where a policy's failures count.
fn refuse(request: &Request<'_>, new: &Value, errors: Vec<(&Policy<Rules>, &Binding, String)>) -> Result<(), Status> {
    let told: Vec<String> = errors
        .into_iter()
        .filter(|(policy, ..)| !policy.ignores_failure)
        .map(|(policy, binding, why)| {
            format!("policy '{}' with binding '{}' denied request: {why}", policy.name, binding.name)
        })
        .collect();
    let Some(first) = told.first() else { return Ok(()) };
    let mut status = request.forbidden(Some(new), "admission request denied by policy");
    status.message = first.clone();
    status.reason = "Invalid".into();
    let causes = told.into_iter().map(|message| Cause { message, ..Cause::default() });
    status.details.get_or_insert_default().causes.extend(causes);
    Err(status)
}

impl Turn<'_, Rules> {
    fn id(&self) -> String {
        let meta = self.params.as_ref().map(|p| &p["metadata"]);
        let text = |key: &str| meta.and_then(|m| m[key].as_str()).unwrap_or_default();
        format!("{}/{}/{}/{}", self.policy.name, self.binding.name, text("namespace"), text("name"))
    }

    /// Makes the policy's changes, one after another.
    async fn mutate(&self, subject: &Subject<'_>, new: &mut Value, namespace: Option<&Value>) -> Result<(), String> {
        subject.convert(Some(new), &self.view).await.map_err(|s| s.message)?;
        let first = self.scope(subject, Some(new), namespace).with_authorizer(subject);
        let answers = &subject.request.answers;
        if !answers.settled(|| self.policy.conditions.hold_in(subject, &first)).await? {
            return Ok(());
        }
        for mutation in &self.policy.rules.mutations {
            let scope = self.scope(subject, Some(new), namespace).with_authorizer(subject);
            let current = subject.in_version(Some(new), &self.view).unwrap_or_default();
            let changed = match mutation {
                Mutation::Apply(expression) => {
                    let made = answers.settled(|| expression.run(&scope, &mut POLICY_BUDGET.clone())).await?;
                    self.apply(subject, &current, &made)?
                }
                Mutation::Patch(expression) => {
                    let made = answers.settled(|| expression.run(&scope, &mut POLICY_BUDGET.clone())).await?;
                    json_patch(&current, &operations(&made)?).map_err(|e| e.to_string())?
                }
            };
            if changed != current {
                *new = subject.accept(&self.view, changed).await.map_err(|s| s.message)?;
                subject.convert(Some(new), &self.view).await.map_err(|s| s.message)?;
            }
        }
        Ok(())
    }

    /// Merges an apply configuration into the object.
    fn apply(&self, subject: &Subject<'_>, current: &Value, made: &Val) -> Result<Value, String> {
        check_types(made, "Object")?;
        let mut configuration = made.to_json()?;
        configuration["apiVersion"] = current["apiVersion"].clone();
        configuration["kind"] = current["kind"].clone();
        let schema = subject.schema(&self.view).map_err(|s| s.message)?;
        let ty = Type::of(&schema);
        managed::validate(&configuration, ty, false)
            .map_err(|e| format!("error applying patch: failed to convert patch object to typed object: {e}"))?;
        let atomics = managed::atomics(&configuration, ty);
        if !atomics.is_empty() {
            return Err(format!(
                "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
                atomics.join(", ")
            ));
        }
        managed::merge(current, &configuration, ty).map_err(|e| format!("error applying patch: {e}"))
    }
}

/// An object's types are named after the places of its fields: `Object.spec` stands in `spec`.
fn check_types(value: &Val, path: &str) -> Result<(), String> {
    match value {
        Val::Message(name, fields) => {
            if **name != *path {
                return Err(format!(
                    "type mismatch: unexpected type name {name:?}, expected {path:?}, which matches field name path from root Object type"
                ));
            }
            fields.iter().try_for_each(|(field, value)| check_types(value, &format!("{path}.{field}")))
        }
        Val::List(items) => items.iter().try_for_each(|i| check_types(i, path)),
        Val::Map(map) => map.iter().try_for_each(|(key, value)| match key {
            isopod_kinds::cel::Key::Text(key) => check_types(value, &format!("{path}.{key}")),
            _ => Ok(()),
        }),
        _ => Ok(()),
    }
}

/// The operations of a JSON patch, from a list of `JSONPatch`.
fn operations(made: &Val) -> Result<Value, String> {
    let Val::List(items) = made else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".into());
    };
    let operation = |item: &Val| match item {
        Val::Message(name, fields) if &**name == "JSONPatch" => {
            let mut out = json!({});
            for (key, value) in fields.iter() {
                out[key] = value.to_json().map_err(|e| {
                    format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {e}")
                })?;
            }
            Ok(out)
        }
        other => Err(format!(
            "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch, got element of {}",
            other.type_name()
        )),
    };
    items.iter().map(operation).collect::<Result<Vec<_>, String>>().map(Value::Array)
}
