//! What expressions of webhooks and policies may speak of: the objects of the request, the request, parameters, variables, the
//! authorizer (`apiserver/pkg/admission/plugin/cel`, `pkg/cel/library/authz.go`).

use super::answers::Answers;
use super::matching::View;
use super::metrics::Owner;
use super::subject::Subject;
use crate::authorization::Verdict;
use isopod_api::UserInfo;
use isopod_auth::{Attributes, Decision};
use isopod_kinds::access::Access;
use isopod_kinds::cel::check::{Environment, Library};
use isopod_kinds::cel::{self, Foreign, Program, Val, Variables};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// What all conditions of one webhook or policy may cost together, in upstream's units.
const CONDITIONS_BUDGET: u64 = 2_500_000;
/// What one expression may cost.
const CALL_BUDGET: u64 = 1_000_000;
/// What the expressions of one policy may cost together.
pub const POLICY_BUDGET: u64 = 10_000_000;
/// They cost more.
pub const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// An expression with its text.
pub struct Compiled {
    pub text: String,
    pub program: Result<Program, String>,
}

impl Compiled {
    /// `around`: what it may speak of.
    pub fn new(text: &str, around: &Environment) -> Self {
        Compiled { text: text.to_owned(), program: Program::compile_for(text, around) }
    }

    /// Its value; what it costs, with the variables that are evaluated for it, is taken from `budget`.
    pub fn run(&self, scope: &Scope, budget: &mut u64) -> Result<Val, String> {
        let program = self.program.as_ref().map_err(Clone::clone)?;
        let mut left = CALL_BUDGET;
        let value = program.run(scope, &mut left);
        let cost = (CALL_BUDGET - left).saturating_add(std::mem::take(&mut *scope.0.spent.lock()));
        *budget = budget.checked_sub(cost).ok_or(OUT_OF_BUDGET)?;
        value.map_err(|e| format!("expression '{}' resulted in error: {e}", self.text.trim()))
    }
}

/// `matchConditions`.
pub struct Conditions {
    all: Vec<Compiled>,
    ignores_failure: bool,
    pub owner: Owner,
}

impl Conditions {
    pub fn new(conditions: &[Value], ignores_failure: bool, owner: Owner) -> Self {
        let around = cel::admission(Library::Stored, true, true);
        let all = conditions.iter().map(|c| Compiled::new(c.text("expression"), &around)).collect();
        Conditions { all, ignores_failure, owner }
    }

    /// Whether all of them hold. One that does not hold decides, whatever the others do; else an error does, unless failures
    /// are ignored, which is as if it did not hold.
    pub async fn hold(
        &self,
        subject: &Subject<'_>,
        view: &View,
        new: Option<&Value>,
        params: Option<&Value>,
    ) -> Result<bool, String> {
        if self.all.is_empty() {
            return Ok(true);
        }
        let scope = Scope::new(subject, view, new, params).with_authorizer(subject);
        subject.request.answers.settled(|| self.hold_in(subject, &scope)).await
    }

    pub fn hold_in(&self, subject: &Subject<'_>, scope: &Scope) -> Result<bool, String> {
        let begun = Instant::now();
        let held = self.evaluate(subject, scope);
        // What lacks an answer is evaluated again.
        if !matches!(held, Ok(true)) && !subject.request.answers.are_open() {
            let metrics = &subject.request.server.metrics.admission;
            metrics.conditions(&self.owner, subject.request.operation, begun.elapsed());
        }
        held
    }

    fn evaluate(&self, subject: &Subject<'_>, scope: &Scope) -> Result<bool, String> {
        let mut budget = CONDITIONS_BUDGET;
        let mut failures = Vec::new();
        for condition in &self.all {
            match condition.run(scope, &mut budget) {
                Ok(Val::Bool(false)) => return Ok(false),
                Ok(Val::Bool(true)) => {}
                Ok(_) => failures.push("must evaluate to bool".to_owned()),
                Err(e) if e == OUT_OF_BUDGET => return Err(e),
                Err(e) => {
                    let metrics = &subject.request.server.metrics.admission;
                    metrics.condition_failed(&self.owner, subject.request.operation);
                    failures.push(e);
                }
            }
        }
        match failures.len() {
            0 => Ok(true),
            _ if self.ignores_failure => Ok(false),
            1 => Err(failures.remove(0)),
            _ => Err(format!("[{}]", failures.join(", "))),
        }
    }
}

/// Named expressions, each of which may speak of those before it.
pub type Definitions = Arc<Vec<(String, Compiled)>>;

/// The names of one evaluation.
#[derive(Clone)]
pub struct Scope(Arc<Names>);

#[derive(Default)]
struct Names {
    values: HashMap<&'static str, Val>,
    definitions: Definitions,
    /// Variables are evaluated when they are asked for, once.
    evaluated: Mutex<HashMap<String, Result<Val, String>>>,
    /// What that has cost and nobody has paid yet.
    spent: Mutex<u64>,
    /// What the authorizer has said so far, where there is one.
    answers: Option<Answers>,
}

impl Scope {
    pub fn new(subject: &Subject<'_>, view: &View, new: Option<&Value>, params: Option<&Value>) -> Self {
        let value = |v: Option<Value>| v.map_or(Val::Null, |v| Val::from_json(&v));
        let values = HashMap::from([
            ("object", value(subject.in_version(new, view))),
            ("oldObject", value(subject.in_version(subject.old, view))),
            ("request", Val::from_json(&subject.describe(view))),
            ("params", params.map_or(Val::Null, Val::from_json)),
            ("namespaceObject", Val::Null),
        ]);
        Scope(Arc::new(Names { values, ..Names::default() }))
    }

    /// The same, to be changed, with variables not yet evaluated.
    fn copied(&self) -> Names {
        let Names { values, definitions, answers, .. } = &*self.0;
        let (values, definitions) = (values.clone(), definitions.clone());
        Names { values, definitions, answers: answers.clone(), ..Names::default() }
    }

    /// The same with other names.
    fn changed(&self, change: impl FnOnce(&mut HashMap<&'static str, Val>)) -> Self {
        let mut names = self.copied();
        change(&mut names.values);
        Scope(Arc::new(names))
    }

    pub fn with_authorizer(&self, subject: &Subject<'_>) -> Self {
        let mut names = self.copied();
        names.values.insert("authorizer", Val::Foreign(Arc::new(Authorization::new(subject))));
        names.answers = Some(subject.request.answers.clone());
        Scope(Arc::new(names))
    }

    pub fn with_namespace(&self, namespace: Option<&Value>) -> Self {
        self.changed(|v| drop(v.insert("namespaceObject", namespace.map_or(Val::Null, Val::from_json))))
    }

    pub fn with_definitions(&self, definitions: &Definitions) -> Self {
        Scope(Arc::new(Names { definitions: definitions.clone(), ..self.copied() }))
    }
}

impl Variables for Scope {
    fn get(&self, name: &str) -> Option<Result<Val, String>> {
        if name == "variables" {
            return Some(Ok(Val::Foreign(Arc::new(Defined(self.clone())))));
        }
        self.0.values.get(name).map(|v| Ok(v.clone()))
    }
}

/// `variables`.
struct Defined(Scope);

impl std::fmt::Debug for Defined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("variables")
    }
}

impl Defined {
    /// What it costs is told with what the whole expression does.
    fn evaluated(&self, definition: &Compiled) -> Result<Val, String> {
        let program = definition.program.as_ref().map_err(Clone::clone)?;
        let mut left = CALL_BUDGET;
        let value = program.run(&self.0, &mut left);
        *self.0.0.spent.lock() += CALL_BUDGET - left;
        value.map_err(|e| format!("expression '{}' resulted in error: {e}", definition.text.trim()))
    }
}

impl Foreign for Defined {
    fn type_name(&self) -> &'static str {
        "kubernetes.variables"
    }

    fn field(&self, name: &str) -> Option<Result<Val, String>> {
        let names = &self.0.0;
        if let Some(known) = names.evaluated.lock().get(name) {
            return Some(known.clone());
        }
        let (_, definition) = names.definitions.iter().find(|(n, _)| n == name)?;
        let value = self.evaluated(definition);
        let value = value.map_err(|e| format!("composited variable {name:?} fails to evaluate: {e}"));
        // What lacks an answer is evaluated again.
        if !names.answers.as_ref().is_some_and(Answers::are_open) {
            names.evaluated.lock().insert(name.to_owned(), value.clone());
        }
        Some(value)
    }

    fn call(&self, _name: &str, _arguments: &[Val]) -> Option<Result<Val, String>> {
        None
    }
}

/// `authorizer`, and what its methods make: a path, a group, a resource, a decision.
#[derive(Clone)]
struct Authorization {
    answers: Answers,
    attributes: Attributes,
    /// What `authorizer.requestResource` is about.
    request: Arc<Attributes>,
    step: Step,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Whole,
    Path,
    Group,
    Resource,
    Decided { allowed: bool, reason: String, error: String },
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "authorizer: {:?}", self.step)
    }
}

impl Authorization {
    fn new(subject: &Subject<'_>) -> Self {
        let intent = subject.intent();
        let gvr = intent.kind.gvr();
        let user = intent.user.clone();
        let request = Attributes {
            user: user.clone(),
            is_resource: true,
            group: gvr.group,
            version: gvr.version,
            resource: gvr.resource,
            subresource: intent.subresource.clone(),
            namespace: intent.namespace.clone(),
            name: subject.name.clone(),
            ..Attributes::default()
        };
        Authorization {
            answers: subject.request.answers.clone(),
            attributes: Attributes { user, ..Attributes::default() },
            request: Arc::new(request),
            step: Step::Whole,
        }
    }

    fn next(&self, step: Step, change: impl FnOnce(&mut Attributes)) -> Option<Result<Val, String>> {
        let mut next = Authorization { step, ..self.clone() };
        change(&mut next.attributes);
        Some(Ok(Val::Foreign(Arc::new(next))))
    }

    fn check(&self, verb: &str) -> Option<Result<Val, String>> {
        let attributes = Attributes { verb: verb.to_owned(), ..self.attributes.clone() };
        let Some(Verdict { decision, error }) = self.answers.get(&attributes) else {
            return Some(Err("the authorizer has not answered yet".to_owned()));
        };
        let (allowed, reason) = match decision {
            Decision::Allow(reason) => (true, reason),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => (false, reason),
        };
        self.next(Step::Decided { allowed, reason, error }, |_| {})
    }
}

impl Foreign for Authorization {
    fn type_name(&self) -> &'static str {
        match self.step {
            Step::Whole => "kubernetes.authorization.Authorizer",
            Step::Path => "kubernetes.authorization.PathCheck",
            Step::Group => "kubernetes.authorization.GroupCheck",
            Step::Resource => "kubernetes.authorization.ResourceCheck",
            Step::Decided { .. } => "kubernetes.authorization.Decision",
        }
    }

    fn field(&self, name: &str) -> Option<Result<Val, String>> {
        let request = (*self.request).clone();
        match (&self.step, name) {
            (Step::Whole, "requestResource") => self.next(Step::Resource, |a| *a = request),
            _ => None,
        }
    }

    fn call(&self, name: &str, arguments: &[Val]) -> Option<Result<Val, String>> {
        let texts: Option<Vec<String>> = arguments
            .iter()
            .map(|a| match a {
                Val::Text(t) => Some(t.to_string()),
                _ => None,
            })
            .collect();
        let texts = texts?;
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        match (&self.step, name, &texts[..]) {
            (Step::Whole, "path", [""]) => Some(Err("path must not be empty".into())),
            (Step::Whole, "path", [path]) => self.next(Step::Path, |a| a.path = (*path).to_owned()),
            (Step::Whole, "group", [group]) => self.next(Step::Group, |a| a.group = (*group).to_owned()),
            (Step::Whole, "serviceAccount", [namespace, name]) => {
                let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
                let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
                let user = UserInfo::new(format!("system:serviceaccount:{namespace}:{name}"), &groups);
                self.next(Step::Whole, |a| a.user = user)
            }
            (Step::Group, "resource", [resource]) => self.next(Step::Resource, |a| {
                a.is_resource = true;
                a.version = "*".into();
                a.resource = (*resource).to_owned();
            }),
            (Step::Resource, "subresource", [sub]) => self.next(Step::Resource, |a| a.subresource = (*sub).to_owned()),
            (Step::Resource, "namespace", [ns]) => self.next(Step::Resource, |a| a.namespace = (*ns).to_owned()),
            (Step::Resource, "name", [name]) => self.next(Step::Resource, |a| a.name = (*name).to_owned()),
            (Step::Resource, "fieldSelector", [text]) => {
                let terms = isopod_api::selector::FieldSelector::parse(text).map(|s| s.terms).unwrap_or_default();
                self.next(Step::Resource, |a| a.fields = terms)
            }
            (Step::Resource, "labelSelector", [text]) => {
                let terms = isopod_api::selector::LabelSelector::parse(text);
                let terms = terms.map(|s| s.requirements().to_vec()).unwrap_or_default();
                self.next(Step::Resource, |a| a.labels = terms)
            }
            (Step::Resource | Step::Path, "check", [verb]) => self.check(verb),
            (Step::Decided { allowed, .. }, "allowed", []) => Some(Ok(Val::Bool(*allowed))),
            (Step::Decided { reason, .. }, "reason", []) => Some(Ok(Val::text(reason.as_str()))),
            (Step::Decided { error, .. }, "errored", []) => Some(Ok(Val::Bool(!error.is_empty()))),
            (Step::Decided { error, .. }, "error", []) => Some(Ok(Val::text(error.as_str()))),
            _ => None,
        }
    }
}
