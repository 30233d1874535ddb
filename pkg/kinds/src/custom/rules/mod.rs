//! Validation rules of custom resources (`x-kubernetes-validations`, KEP-2876): a schema's expressions, compiled once for each
//! version of a definition, and what they say about an object and the one that it replaces.
//!
//! Start at [`Rules::judge`]. Not here: whether a definition may have such rules, which `kinds/definition` tells.

mod evaluate;
pub(crate) mod shape;

use crate::access::Access;
use crate::cel::check::Library;
use crate::cel::timing::COMPILATION;
use crate::cel::{Declared, Program};
use crate::kinds::definition::expressions::surroundings;
use crate::kinds::definition::field_path::follow;
use evaluate::Run;
use isopod_api::{FieldErrors, Path};
use isopod_schema::validate::Correlated;
use serde_json::Value;
use shape::{Form, Shape};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The rules of a schema.
pub struct Rules(Node);

/// What rules say of an object.
#[derive(Debug, Default)]
pub struct Judgement {
    pub errors: FieldErrors,
    /// Errors about what an update leaves as it was.
    pub warnings: Vec<String>,
}

/// The rules at one place of a schema and below.
struct Node {
    shape: Arc<Shape>,
    rules: Vec<Rule>,
    /// A rule of this place speaks of the old value.
    uses_old: bool,
    items: Option<Items>,
    properties: BTreeMap<String, Node>,
    values: Option<Box<Node>>,
}

/// Rules of a list's elements.
struct Items {
    node: Box<Node>,
    /// `x-kubernetes-list-map-keys` of a map, whose elements have old values.
    keys: Option<Vec<String>>,
}

struct Rule {
    /// The error says why there is none.
    program: Result<Program, String>,
    text: String,
    message: String,
    message_program: Option<Program>,
    message_text: String,
    reason: String,
    /// Where its errors stand below the value, as errors write it.
    field_path: String,
    uses_old: bool,
    optional_old: bool,
}

impl Rules {
    /// `None`: the schema has no rules.
    pub fn new(schema: &Value) -> Option<Self> {
        let shape = Arc::new(Shape::new(schema, true));
        Node::new(schema, shape, true).map(Rules)
    }

    /// `old`: the object that this one replaces. `change`: both by their schema.
    pub fn judge(&self, new: &Value, old: Option<&Value>, change: Option<&Correlated>) -> Judgement {
        let mut run = Run::default();
        run.object(&self.0, new, old, change);
        run.judgement
    }
}

impl Node {
    /// `None`: there are no rules here. `resource`: it is the root of an object with metadata.
    fn new(schema: &Value, shape: Arc<Shape>, resource: bool) -> Option<Self> {
        if !shape.is_declared() {
            return None;
        }
        let below = |schema: &Value, shape: &Arc<Shape>| {
            Node::new(schema, shape.clone(), schema.flag("x-kubernetes-embedded-resource"))
        };
        let timed = COMPILATION.start();
        let rules = schema.list("x-kubernetes-validations");
        let declared = (!rules.is_empty()).then(|| Declared::of(schema, resource)).flatten();
        let mut node = Node {
            rules: rules.iter().map(|r| Rule::new(r, schema, declared.as_ref())).collect(),
            uses_old: false,
            items: None,
            properties: BTreeMap::new(),
            values: None,
            shape: shape.clone(),
        };
        drop(timed);
        node.uses_old = node.rules.iter().any(|r| r.uses_old);
        match &shape.form {
            Form::List(items, _) => {
                let keys = || schema.texts("x-kubernetes-list-map-keys").into_iter().map(str::to_owned).collect();
                let keys = (schema.text("x-kubernetes-list-type") == "map").then(keys);
                node.items = below(schema.at("items"), items).map(|n| Items { node: Box::new(n), keys });
            }
            Form::Map(values) => node.values = below(schema.at("additionalProperties"), values).map(Box::new),
            Form::Object(fields) => {
                let all = schema.entries("properties").into_iter();
                let ruled = all.filter_map(|(name, s)| Some((name.to_owned(), below(s, fields.get(name)?)?)));
                node.properties = ruled.collect();
            }
            _ => {}
        }
        let empty =
            node.rules.is_empty() && node.items.is_none() && node.properties.is_empty() && node.values.is_none();
        (!empty).then_some(node)
    }
}

impl Rule {
    fn new(rule: &Value, schema: &Value, declared: Option<&Declared>) -> Self {
        let text = rule.text("rule");
        let around = declared.map(|d| surroundings(d, rule.flag("optionalOldSelf"), Library::Stored));
        let compile = |text: &str| match &around {
            Some(around) => Program::compile_for(text, around),
            None => Program::compile(text),
        };
        let program = compile(text);
        let message_text = rule.text("messageExpression");
        let field_path = follow(rule.text("fieldPath"), schema, true);
        Rule {
            uses_old: program.as_ref().is_ok_and(|p| p.uses("oldSelf")),
            program,
            text: text.trim().to_owned(),
            message: rule.text("message").trim().to_owned(),
            message_program: (!message_text.is_empty()).then(|| compile(message_text).ok()).flatten(),
            message_text: message_text.to_owned(),
            reason: rule.text("reason").to_owned(),
            field_path: field_path.map(|found| found.path).unwrap_or_default(),
            optional_old: rule.flag("optionalOldSelf"),
        }
    }

    /// What an error names it by.
    fn name(&self) -> &str {
        if self.message.is_empty() { &self.text } else { &self.message }
    }
}

/// The value itself or what stands in it under the same step as elsewhere.
fn child(path: &Path, step: &str) -> Path {
    if step.is_empty() { path.clone() } else { path.child(step) }
}

#[cfg(test)]
mod tests;
