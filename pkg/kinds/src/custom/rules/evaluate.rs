//! Evaluates the rules of one object, in the order of its fields, until a budget is spent
//! (`apiextensions-apiserver/pkg/apiserver/schema/cel/validation.go`).
//!
//! Invariant: a value is bound once, at the outermost place that has a rule; inner places see parts of it.

use super::{Judgement, Node, Rule, child};
use crate::cel::timing::EVALUATION;
use crate::cel::{Key, TOO_EXPENSIVE, Val, Variables};
use isopod_api::{FieldError, Path};
use isopod_schema::validate::{Correlated, MapList};
use serde_json::Value;
use std::cell::OnceCell;

/// What one expression may cost, and all of an object's together (`apiserver/pkg/apis/cel/config.go`).
const CALL_BUDGET: u64 = 1_000_000;
const BUDGET: u64 = 10_000_000;
/// Bytes of a message that an expression makes.
const LONGEST_MESSAGE: usize = 5 * 1024;

pub(super) struct Run {
    pub judgement: Judgement,
    left: u64,
    /// Nothing more is evaluated.
    over: bool,
}

impl Default for Run {
    fn default() -> Self {
        Run { judgement: Judgement::default(), left: BUDGET, over: false }
    }
}

/// A value and the old one that it stands for.
#[derive(Clone, Copy)]
struct Pair<'a> {
    new: &'a Value,
    old: Option<&'a Value>,
}

/// The same as expressions see them, where an outer place has bound them already.
#[derive(Clone, Default)]
struct Bound {
    new: Option<Val>,
    old: Option<Val>,
}

/// How far the value and its old one are correlated, for faults that an update may keep.
#[derive(Clone, Copy, Default)]
struct Ratchet<'a, 'v> {
    here: Option<&'a Correlated<'v>>,
    /// The innermost place around, where there is none here.
    around: Option<&'a Correlated<'v>>,
}

impl<'a, 'v> Ratchet<'a, 'v> {
    fn is_unchanged(&self) -> bool {
        self.here.or(self.around).is_some_and(|c| c.is_equal())
    }

    fn below<'b>(self, inner: Option<&'b Correlated<'v>>) -> Ratchet<'b, 'v>
    where
        'a: 'b,
    {
        match self.here {
            None => self,
            around => Ratchet { here: inner, around },
        }
    }
}

/// What `self` and `oldSelf` stand for.
struct Selves<'a> {
    new: &'a Val,
    old: Option<&'a Val>,
}

impl Variables for Selves<'_> {
    fn get(&self, name: &str) -> Option<Result<Val, String>> {
        match name {
            "self" => Some(Ok(self.new.clone())),
            "oldSelf" => self.old.cloned().map(Ok),
            _ => None,
        }
    }
}

impl Run {
    pub fn object(&mut self, node: &Node, new: &Value, old: Option<&Value>, change: Option<&Correlated>) {
        let ratchet = Ratchet { here: change, around: None };
        self.visit(node, &Path::root(), Pair { new, old }, Bound::default(), ratchet);
    }

    fn visit(&mut self, node: &Node, path: &Path, pair: Pair, bound: Bound, ratchet: Ratchet) {
        let _timed = EVALUATION.start();
        if pair.new.is_null() || self.over {
            return;
        }
        let bound = self.rules(node, path, pair, bound, ratchet);
        match pair.new {
            Value::Array(items) => self.items(node, path, items, pair, &bound, ratchet),
            Value::Object(map) => {
                for (key, new) in map {
                    let (inner, path) = match (&node.values, node.properties.get(key)) {
                        (Some(values), _) => (&**values, path.key(key)),
                        (None, Some(property)) => (property, path.child(key)),
                        (None, None) => continue,
                    };
                    let pair = Pair { new, old: pair.old.and_then(|o| o.get(key)) };
                    let bound = Bound {
                        new: bound.new.as_ref().and_then(|v| field(v, key)),
                        old: bound.old.as_ref().and_then(|v| field(v, key)),
                    };
                    // The type of the whole object says nothing: the old one was converted to it.
                    if ratchet.around.is_none() && matches!(key.as_str(), "apiVersion" | "kind") {
                        self.visit(inner, &path, pair, bound, Ratchet::default());
                    } else {
                        let change = ratchet.here.and_then(|c| c.key(key));
                        self.visit(inner, &path, pair, bound, ratchet.below(change.as_ref()));
                    }
                }
            }
            _ => {}
        }
    }

    fn items(&mut self, node: &Node, path: &Path, items: &[Value], pair: Pair, bound: &Bound, ratchet: Ratchet) {
        let Some(of_items) = &node.items else { return };
        let before = pair.old.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let keys = of_items.keys.iter().flatten().map(String::as_str);
        let places = of_items.keys.as_ref().map(|_| MapList::new(before, keys));
        for (i, new) in items.iter().enumerate() {
            let at = places.as_ref().and_then(|p| p.find(new));
            let pair = Pair { new, old: at.and_then(|at| before.get(at)) };
            let bound = Bound {
                new: bound.new.as_ref().and_then(|v| element(v, i)),
                old: bound.old.as_ref().zip(at).and_then(|(v, at)| element(v, at)),
            };
            let change = ratchet.here.and_then(|c| c.index(i));
            self.visit(&of_items.node, &path.index(i), pair, bound, ratchet.below(change.as_ref()));
            if self.over {
                return;
            }
        }
    }

    /// The rules of one place; what they were told is for those further in.
    fn rules(&mut self, node: &Node, path: &Path, pair: Pair, mut bound: Bound, ratchet: Ratchet) -> Bound {
        if node.rules.is_empty() {
            return bound;
        }
        let stated = &*node.shape.stated;
        if self.left == 0 {
            self.out_of_budget(path, stated);
            return bound;
        }
        let new = bound.new.get_or_insert_with(|| node.shape.value(pair.new)).clone();
        // Null is no old value.
        let old = pair.old.filter(|o| !o.is_null());
        if bound.old.is_none() && node.uses_old {
            bound.old = old.map(|o| node.shape.value(o));
        }
        let optional = OnceCell::new();
        for rule in &node.rules {
            if rule.uses_old && old.is_none() && !rule.optional_old {
                continue;
            }
            let seen = if rule.optional_old {
                Some(optional.get_or_init(|| bound.old.clone().map_or(Val::Optional(None), Val::some)))
            } else {
                bound.old.as_ref()
            };
            self.rule(rule, path, stated, pair.new, &Selves { new: &new, old: seen }, ratchet);
            if self.over {
                break;
            }
        }
        bound
    }

    fn out_of_budget(&mut self, path: &Path, stated: &str) {
        let m = "validation failed due to running out of cost budget, no further validation rules will be run";
        self.judgement.errors.push(FieldError::invalid(path, stated, m));
        self.over = true;
    }

    fn rule(&mut self, rule: &Rule, path: &Path, stated: &str, value: &Value, selves: &Selves, ratchet: Ratchet) {
        let program = match &rule.program {
            Ok(program) => program,
            Err(_) if rule.text.is_empty() => return,
            Err(why) => {
                let m = format!("rule compile error: {why}");
                self.judgement.errors.push(FieldError::invalid(path, stated, m));
                return;
            }
        };
        let mut call = CALL_BUDGET;
        let result = program.run(selves, &mut call);
        match self.left.checked_sub(CALL_BUDGET - call) {
            None => return self.out_of_budget(path, stated),
            Some(left) => self.left = left,
        }
        let name = rule.name();
        let error = match result {
            Ok(Val::Bool(true)) => return,
            Ok(_) => return self.broken(rule, path, stated, value, selves, ratchet),
            Err(e) if e.starts_with("no such overload") => {
                format!(
                    "'{e}': call arguments did not match a supported operator, function or macro signature for rule: {name}"
                )
            }
            Err(e) if e == TOO_EXPENSIVE => {
                self.over = true;
                format!(
                    "'{e}': no further validation rules will be run due to call cost exceeds limit for rule: {name}"
                )
            }
            Err(e) => format!("{e} evaluating rule: {name}"),
        };
        self.judgement.errors.push(FieldError::invalid(path, stated, error));
    }

    /// Tells that the value breaks a rule, in the words of the rule.
    fn broken(&mut self, rule: &Rule, path: &Path, stated: &str, value: &Value, selves: &Selves, ratchet: Ratchet) {
        let at = child(path, &rule.field_path);
        let error = match self.message(rule, selves) {
            Err(why) => {
                self.over = true;
                FieldError::invalid(&at, stated, why)
            }
            Ok(made) => {
                let usual = || match rule.message.as_str() {
                    "" => format!("failed rule: {}", rule.text),
                    message => message.to_owned(),
                };
                let shown = (!matches!(stated, "object" | "array")).then_some(value);
                error_of(rule, &at, shown, made.unwrap_or_else(usual))
            }
        };
        if !rule.uses_old && ratchet.is_unchanged() {
            self.judgement.warnings.push(error.to_string());
        } else {
            self.judgement.errors.push(error);
        }
    }

    /// The message that the rule's expression makes. `None`: it has none, or makes none that can be shown. The error says
    /// that it cost too much.
    fn message(&mut self, rule: &Rule, selves: &Selves) -> Result<Option<String>, String> {
        let Some(program) = &rule.message_program else { return Ok(None) };
        let mut call = CALL_BUDGET;
        let made = program.run(selves, &mut call);
        self.left = self.left.checked_sub(CALL_BUDGET - call).ok_or(
            "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run",
        )?;
        match made {
            Err(e) if e == TOO_EXPENSIVE => Err(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}",
                rule.message_text
            )),
            Ok(Val::Text(text)) => {
                let text = text.trim();
                let fits = !text.is_empty() && text.len() <= LONGEST_MESSAGE && !text.contains('\n');
                Ok(fits.then(|| text.to_owned()))
            }
            _ => Ok(None),
        }
    }
}

/// `value`: what is shown, where it is neither an object nor a list.
fn error_of(rule: &Rule, path: &Path, value: Option<&Value>, detail: String) -> FieldError {
    let (without, value) = (value.is_none(), value.cloned().unwrap_or_default());
    let mut error = match rule.reason.as_str() {
        "FieldValueForbidden" => FieldError::forbidden(path, detail),
        "FieldValueRequired" => FieldError::required(path, detail),
        "FieldValueDuplicate" => FieldError::duplicate(path, value),
        _ => FieldError::invalid(path, value, detail),
    };
    if without {
        error.shown = None;
    }
    error
}

fn field(value: &Val, name: &str) -> Option<Val> {
    match value {
        Val::Message(_, fields) => fields.get(name).cloned(),
        Val::Map(map) => map.get(&Key::Text(name.into())).cloned(),
        _ => None,
    }
}

fn element(value: &Val, i: usize) -> Option<Val> {
    match value {
        Val::List(items) => items.get(i).cloned(),
        Val::Unordered(list) => list.items.get(i).cloned(),
        _ => None,
    }
}
