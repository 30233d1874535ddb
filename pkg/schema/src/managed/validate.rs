//! Whether an applied value fits its schema: unknown fields, types of scalars, list items without or with the same key.

use super::path::PathElement;
use super::set::Set;
use super::typed::{Scalar, Shape, Type};
use crate::json::go_text;
use serde_json::Value;

/// What is wrong, with upstream's words. `duplicates`: items of sets and map lists may stand more than once.
pub fn validate(value: &Value, ty: Type, duplicates: bool) -> Result<(), String> {
    let mut errors = Errors { path: String::new(), found: Vec::new(), duplicates };
    errors.walk(value, ty);
    match errors.found.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("errors:\n  {}", many.join("\n  "))),
    }
}

struct Errors {
    path: String,
    found: Vec<String>,
    duplicates: bool,
}

impl Errors {
    fn add(&mut self, message: impl std::fmt::Display) {
        let text = if self.path.is_empty() { message.to_string() } else { format!("{}: {message}", self.path) };
        self.found.push(text);
    }

    fn below(&mut self, element: &PathElement, visit: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(&element.to_string());
        visit(self);
        self.path.truncate(length);
    }

    fn walk(&mut self, value: &Value, ty: Type) {
        match (ty.shape(value), value) {
            (None, _) | (_, Value::Null) => {}
            (Some(Shape::Scalar(s)), _) => {
                if let Some(message) = misfit(s, value, "") {
                    self.add(message);
                }
            }
            (Some(Shape::Map(m)), Value::Object(map)) => {
                for (key, child) in map {
                    self.below(&PathElement::field(key), |e| match m.child(key).0 {
                        Some(ty) => e.walk(child, ty),
                        None => e.add("field not declared in schema"),
                    });
                }
            }
            (Some(Shape::Map(_)), _) => self.add(format!("expected map, got {}", go_value(value))),
            (Some(Shape::List(l)), Value::Array(items)) => {
                let mut seen = Set::default();
                for (i, item) in items.iter().enumerate() {
                    let element = match l.is_atomic() {
                        true => Ok(PathElement::Index(i as i64)),
                        false => l.element(item),
                    };
                    let element = match element {
                        Ok(element) => element,
                        Err(why) => return self.add(format!("element {i}: {why}")),
                    };
                    if !l.is_atomic() {
                        if !self.duplicates && seen.node(&element).is_some() {
                            self.add(format!("duplicate entries for key {element}"));
                        }
                        seen.insert([element.clone()]);
                    }
                    self.below(&element, |e| e.walk(item, l.item));
                }
            }
            (Some(Shape::List(_)), _) => self.add(format!("expected list, got {}", go_value(value))),
        }
    }
}

/// Why a value is no such scalar.
pub(super) fn misfit(scalar: Scalar, value: &Value, prefix: &str) -> Option<String> {
    let fits = match scalar {
        Scalar::Number => value.is_number(),
        Scalar::String => value.is_string(),
        Scalar::Bool => value.is_boolean(),
        Scalar::Any => !value.is_array() && !value.is_object(),
    };
    if fits || value.is_null() {
        return None;
    }
    Some(match scalar {
        Scalar::Number => format!("{prefix}expected numeric (int or float), got {}", go_type(value)),
        Scalar::String => {
            format!("{prefix}expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(value))
        }
        Scalar::Bool => format!("{prefix}expected boolean, got {}", go_value(value)),
        Scalar::Any => format!("{prefix}expected any scalar, got {}", go_value(value)),
    })
}

/// Go's `%T`.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::Null => "<nil>",
    }
}

/// Go's `%#v`.
fn go_syntax(value: &Value) -> String {
    let mut out = String::new();
    put_syntax(&mut out, value);
    out
}

fn put_syntax(out: &mut String, value: &Value) {
    match value {
        Value::Array(items) => {
            out.push_str("[]interface {}{");
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                put_syntax(out, item);
            }
            out.push('}');
        }
        Value::Object(map) => {
            out.push_str("map[string]interface {}{");
            for (i, (key, value)) in map.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                out.push_str(&format!("{key:?}:"));
                put_syntax(out, value);
            }
            out.push('}');
        }
        Value::Null => out.push_str("interface {}(nil)"),
        Value::Number(_) => out.push_str(&go_text(value)),
        Value::Bool(_) | Value::String(_) => out.push_str(&value.to_string()),
    }
}

/// Go's `%v` of the value that structured-merge-diff wraps around it.
fn go_value(value: &Value) -> String {
    format!("&{{{}}}", go_text(value))
}
