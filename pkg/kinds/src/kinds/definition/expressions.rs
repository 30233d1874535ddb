//! Rules in CEL (`x-kubernetes-validations`): whether they compile, and whether evaluating them could cost too much
//! (`apiextensions-apiserver/pkg/apis/apiextensions/validation`).

use crate::access::Access;
use crate::cel::Declared;
use crate::cel::check::cost::estimate;
use crate::cel::check::{Checked, Environment, Library, Type, check};
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

    /// What is wrong with the rules of one place, of which there can be `count` in a request. Of the message nothing is told
    /// where the rule is wrong.
    pub fn rules(&mut self, s: &Value, root: bool, count: Option<u64>, path: &Path) -> FieldErrors {
        let resource = root || s.flag("x-kubernetes-embedded-resource");
        let Some(declared) = Declared::of(s, resource) else { return Vec::new() };
        let count = count.unwrap_or_else(|| declared.cardinality());
        let mut errs = Vec::new();
        let all = s.list("x-kubernetes-validations").iter().enumerate();
        for (i, r) in all.filter(|(_, r)| !r.text("rule").trim().is_empty()) {
            let p = path.child("x-kubernetes-validations").index(i);
            let rule = match self.compiled(r, "rule", &declared) {
                Ok(rule) => rule,
                Err(why) => {
                    errs.push(in_go_names(r, FieldError::invalid(&p.child("rule"), "", why)));
                    continue;
                }
            };
            let cost = estimate(&rule, &declared).max.saturating_mul(count);
            errs.extend(self.add("estimated rule cost", cost, &p.child("rule")));
            let p = p.child("messageExpression");
            match self.compiled(r, "messageExpression", &declared) {
                _ if r.text("messageExpression").is_empty() => {}
                Ok(message) => {
                    let cost = estimate(&message, &declared).max;
                    errs.extend(self.add("estimated messageExpression cost", cost, &p));
                }
                Err(why) => errs.push(in_go_names(r, FieldError::invalid(&p, "", why))),
            }
        }
        errs
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

/// How many values the children of a schema's value can be. `None`: nothing bounds that.
pub(super) fn most_children(s: &Value) -> Option<u64> {
    let limit = |field: &str| s.int(field).map(|n| u64::try_from(n).unwrap_or(0));
    match s.text("type") {
        "object" if s.has("additionalProperties") => limit("maxProperties"),
        "array" => limit("maxItems"),
        _ => Some(1),
    }
}

/// What rules can speak of.
fn surroundings(declared: &Declared, optional: bool, library: Library) -> Environment {
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
        let mut errs = costs.rules(schema, false, Some(1), &Path::new("s"));
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
    fn functions_of_this_version_are_for_what_was_stored() {
        let mut newer = schema("self.includes('a')");
        newer["maxItems"] = json!(3);
        assert_eq!(told(&newer, &Accepted::default()).len(), 1);
        assert_eq!(told(&newer, &Accepted::of(&[&newer])), [""; 0]);
    }
}
