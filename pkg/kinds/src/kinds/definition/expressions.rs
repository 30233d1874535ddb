//! Rules in CEL (`x-kubernetes-validations`): whether they compile, and whether evaluating them could cost too much
//! (`apiextensions-apiserver/pkg/apis/apiextensions/validation`).

use crate::access::Access;
use crate::cel::Declared;
use crate::cel::check::cost::estimate;
use crate::cel::check::{Checked, Environment, Library, Type, check};
use crate::cel::timing::COMPILATION;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What one expression may cost, in as many values as a request can have.
const EXPRESSION_LIMIT: u64 = 10_000_000;
/// What all rules of a schema may cost together.
const SCHEMA_LIMIT: u64 = 100_000_000;
/// How many rules are named when all together cost too much.
const MOST_NAMED: usize = 4;

/// What was accepted before may stay.
#[derive(Default)]
pub(super) struct Accepted {
    expressions: BTreeSet<String>,
    schemas: Vec<Value>,
}

impl Accepted {
    pub fn of(schemas: &[&Value]) -> Self {
        let mut expressions = BTreeSet::new();
        schemas.iter().for_each(|s| collect(s, &mut expressions));
        Accepted { expressions, schemas: schemas.iter().map(|s| (*s).clone()).collect() }
    }

    fn library(&self, expression: &str) -> Library {
        if self.expressions.contains(expression) { Library::Stored } else { Library::New }
    }
}

fn collect(part: &Value, expressions: &mut BTreeSet<String>) {
    match part {
        Value::Object(fields) => {
            for rule in part.list("x-kubernetes-validations") {
                expressions.extend([rule.text("rule").to_owned(), rule.text("messageExpression").to_owned()]);
            }
            fields.values().for_each(|v| collect(v, expressions));
        }
        Value::Array(items) => items.iter().for_each(|v| collect(v, expressions)),
        _ => {}
    }
}

/// What the rules of one schema cost.
pub(super) struct Costs<'a> {
    accepted: &'a Accepted,
    /// The schema is as it was: single rules may stay expensive.
    unchanged: bool,
    total: u64,
    expensive: Vec<(Path, u64)>,
}

impl<'a> Costs<'a> {
    pub fn new(accepted: &'a Accepted, schema: &Value) -> Self {
        Costs { accepted, unchanged: accepted.schemas.contains(schema), total: 0, expensive: Vec::new() }
    }

    fn add(&mut self, what: &str, cost: u64, path: &Path) -> Option<FieldError> {
        self.total = self.total.saturating_add(cost);
        if cost >= SCHEMA_LIMIT / 100 {
            self.expensive.push((path.clone(), cost));
        }
        let too_much = !self.unchanged && cost > EXPRESSION_LIMIT;
        too_much.then(|| FieldError::forbidden(path, exceeds(what, cost, EXPRESSION_LIMIT)))
    }

    /// What is wrong with all of them together.
    pub fn faults(mut self, path: &Path) -> FieldErrors {
        if self.total <= SCHEMA_LIMIT {
            return Vec::new();
        }
        self.expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
        let named = self.expensive.iter().take(MOST_NAMED);
        let mut errs: FieldErrors = named.map(|(p, _)| FieldError::forbidden(p, why)).collect();
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errs.push(FieldError::forbidden(path, exceeds(what, self.total, SCHEMA_LIMIT)));
        errs
    }

    /// What is wrong with the rules of one place.
    pub fn rules(&mut self, s: &Value, root: bool, level: &Level, path: &Path) -> FieldErrors {
        let _timed = COMPILATION.start();
        let path = path.child("x-kubernetes-validations");
        let resource = root || s.flag("x-kubernetes-embedded-resource");
        let Some(declared) = Declared::of(s, resource) else {
            let m = "internal error: failed to construct type information for x-kubernetes-validations rules: unable to \
                     convert structural schema to CEL declarations";
            return vec![FieldError::internal(&path, m)];
        };
        let all = s.list("x-kubernetes-validations").iter().enumerate();
        let all = all.filter(|(_, r)| !r.text("rule").trim().is_empty());
        all.flat_map(|(i, r)| self.rule(r, &declared, level, &path.index(i))).collect()
    }

    /// Of the message nothing is told where the rule is wrong.
    fn rule(&mut self, r: &Value, declared: &Declared, level: &Level, path: &Path) -> FieldErrors {
        let mut errs = Vec::new();
        let mut uses_old = false;
        match self.compiled(r, "rule", declared) {
            Err(why) => errs.push(in_go_names(r, FieldError::invalid(&path.child("rule"), "", why))),
            Ok(rule) => {
                uses_old = rule.references.contains("oldSelf");
                let count = level.count.unwrap_or_else(|| declared.cardinality());
                let cost = estimate(&rule, declared).max.saturating_mul(count);
                errs.extend(self.add("estimated rule cost", cost, &path.child("rule")));
                errs.extend(self.message(r, declared, &path.child("messageExpression")));
            }
        }
        errs.extend(level.old_self(r, uses_old, path));
        errs
    }

    fn message(&mut self, r: &Value, declared: &Declared, path: &Path) -> Option<FieldError> {
        if r.text("messageExpression").is_empty() {
            return None;
        }
        match self.compiled(r, "messageExpression", declared) {
            Ok(message) => self.add("estimated messageExpression cost", estimate(&message, declared).max, path),
            Err(why) => Some(in_go_names(r, FieldError::invalid(path, "", why))),
        }
    }

    fn compiled(&self, rule: &Value, field: &str, declared: &Declared) -> Result<Checked, String> {
        let text = rule.text(field);
        let environment = surroundings(declared, rule.flag("optionalOldSelf"), self.accepted.library(text));
        let (wanted, failed, otherwise) = match field {
            "rule" => (Type::Bool, "compilation failed", "cel expression must evaluate to a bool"),
            _ => (Type::Text, "messageExpression compilation failed", "messageExpression must evaluate to a string"),
        };
        let checked = check(text, &environment).map_err(|e| format!("{failed}: {e}"))?;
        if *checked.result() == wanted { Ok(checked) } else { Err(otherwise.to_owned()) }
    }
}

/// Where a schema stands, as far as its rules are concerned.
#[derive(Clone)]
pub(super) struct Level {
    /// How many values it can have in one object. `None`: nothing bounds that.
    count: Option<u64>,
    /// The list around it whose elements have no old values.
    uncorrelated: Option<Path>,
}

impl Level {
    pub fn root() -> Self {
        Level { count: Some(1), uncorrelated: None }
    }

    /// Of what stands in `s`, at `path`.
    pub fn below(&self, s: &Value, path: &Path) -> Self {
        let limit = |field: &str| s.int(field).map(|n| u64::try_from(n).unwrap_or(0));
        let times = match s.text("type") {
            "object" if s.has("additionalProperties") => limit("maxProperties"),
            "array" => limit("maxItems"),
            _ => Some(1),
        };
        let count = self.count.zip(times).map(|(count, times)| count.saturating_mul(times));
        let loses = s.has("items") && s.text("x-kubernetes-list-type") != "map";
        let uncorrelated = if loses { Some(path.clone()) } else { self.uncorrelated.clone() };
        Level { count, uncorrelated }
    }

    /// What is wrong with how a rule, at `path`, speaks of the old value.
    fn old_self(&self, rule: &Value, uses_old: bool, path: &Path) -> Option<FieldError> {
        if let Some(within) = self.uncorrelated.as_ref().filter(|_| uses_old) {
            let m = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {within}");
            return Some(FieldError::invalid(&path.child("rule"), rule.text("rule"), m));
        }
        let stated = Some(rule.at("optionalOldSelf")).filter(|o| !uses_old && !o.is_null())?;
        let m = "may not be set if oldSelf is not used in rule";
        Some(FieldError::invalid(&path.child("optionalOldSelf"), stated.clone(), m))
    }
}

/// What rules can speak of.
pub(crate) fn surroundings(declared: &Declared, optional: bool, library: Library) -> Environment {
    let (this, objects) = declared.object_types("selfType");
    let old = if optional { Type::optional(this.clone()) } else { this.clone() };
    Environment::new(library).objects(Arc::new(objects)).variable("self", this).variable("oldSelf", old)
}

fn exceeds(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        f if f > 100.0 => "more than 100x".to_owned(),
        f if f < 1.5 => format!("{f:.6}x"),
        f => format!("{f:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}

/// Shows the rule as Go marshals its internal struct.
fn in_go_names(rule: &Value, mut e: FieldError) -> FieldError {
    let fields = [
        ("Rule", Value::from(rule.text("rule"))),
        ("Message", Value::from(rule.text("message"))),
        ("MessageExpression", Value::from(rule.text("messageExpression"))),
        ("Reason", rule.at("reason").clone()),
        ("FieldPath", Value::from(rule.text("fieldPath"))),
        ("OptionalOldSelf", rule.at("optionalOldSelf").clone()),
    ];
    let shown = fields.map(|(name, value)| format!("{name:?}:{value}")).join(",");
    e.shown = Some(isopod_schema::json::html_escaped(&format!("{{{shown}}}")));
    e
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(schema: &Value, accepted: &Accepted) -> Vec<String> {
        let mut costs = Costs::new(accepted, schema);
        let mut errs = costs.rules(schema, false, &Level::root(), &Path::new("s"));
        errs.extend(costs.faults(&Path::new("s")));
        errs.iter().map(ToString::to_string).collect()
    }

    fn schema(rule: &str) -> Value {
        json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": [{"rule": rule}]})
    }

    #[test]
    fn rules_must_compile_and_hold_or_not() {
        let none = Accepted::default();
        assert_eq!(told(&schema("self.size() > 1"), &none), [""; 0]);
        let wrong = told(&schema("self.size()"), &none);
        assert!(wrong[0].ends_with("cel expression must evaluate to a bool"), "{wrong:?}");
        let wrong = told(&schema("self.x"), &none);
        assert!(wrong[0].contains("type 'list(string)' does not support field selection"), "{wrong:?}");
    }

    #[test]
    fn rules_that_cost_too_much_are_refused_unless_they_were_there() {
        let squared = schema("self.all(x, self.all(y, x == y))");
        let wrong = told(&squared, &Accepted::default());
        assert_eq!(wrong.len(), 3, "{wrong:#?}");
        assert!(wrong[0].contains("estimated rule cost exceeds budget by factor of more than 100x"), "{wrong:?}");
        assert!(wrong[1].contains("contributed to estimated rule cost total"), "{wrong:?}");
        assert_eq!(told(&squared, &Accepted::of(&[&squared])).len(), 2);
    }

    #[test]
    fn old_values_are_spoken_of_where_there_are_some() {
        let told = |rule: Value, list_type: &str| {
            let list = json!({"type": "array", "maxItems": 2, "items": {}, "x-kubernetes-list-type": list_type});
            let level = Level::root().below(&list, &Path::new("l"));
            let schema = json!({"type": "integer", "x-kubernetes-validations": [rule]});
            let none = Accepted::default();
            let errs = Costs::new(&none, &schema).rules(&schema, false, &level, &Path::new("s"));
            errs.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let grows = json!({"rule": "self > oldSelf"});
        assert_eq!(told(grows.clone(), "map"), [""; 0]);
        let wanted = "s.x-kubernetes-validations[0].rule: Invalid value: \"self > oldSelf\": oldSelf cannot be used on the \
                      uncorrelatable portion of the schema within l";
        assert_eq!(told(grows.clone(), "set"), [wanted]);
        assert_eq!(told(grows, "atomic"), [wanted]);
        let wanted = "s.x-kubernetes-validations[0].optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used \
                      in rule";
        assert_eq!(told(json!({"rule": "self > 1", "optionalOldSelf": true}), "map"), [wanted]);
    }

    #[test]
    fn functions_of_this_version_are_for_what_was_stored() {
        let mut newer = schema("self.includes('a')");
        newer["maxItems"] = json!(3);
        assert_eq!(told(&newer, &Accepted::default()).len(), 1);
        assert_eq!(told(&newer, &Accepted::of(&[&newer])), [""; 0]);
    }
}
