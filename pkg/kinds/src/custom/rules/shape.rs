//! What rules see of a custom resource: values as their structural schema types them
//! (`apiserver/pkg/cel/common/valuesunstructured.go`).
//!
//! Invariant: making a value never fails; what is not of its schema's type becomes a fault that whoever reads it meets.

use crate::access::Access;
use crate::cel::{Unordered, Val};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the type of an object calls itself.
const OBJECT: &str = "map";

/// A schema, as far as values are made by it.
#[derive(Debug)]
pub struct Shape {
    nullable: bool,
    /// `type` as the schema has it.
    pub stated: Box<str>,
    pub form: Form,
}

#[derive(Debug)]
pub enum Form {
    IntOrString,
    Object(BTreeMap<String, Arc<Shape>>),
    Map(Arc<Shape>),
    List(Arc<Shape>, Order),
    Text(Format),
    Number,
    Integer,
    Boolean,
    /// Kept without a schema: no rule can speak of it.
    Unknown,
}

#[derive(Debug)]
pub enum Order {
    /// As it stands in the list.
    Atomic,
    /// None, but for the fields by which elements are told apart; no field: by the whole of them.
    Keyed(Arc<[String]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Plain,
    Duration,
    Date,
    DateTime,
    Bytes,
}

impl Shape {
    /// `resource`: the schema is that of a whole object, whose type and name can always be spoken of.
    pub fn new(schema: &Value, resource: bool) -> Self {
        let stated = schema.text("type");
        let form = match stated {
            _ if schema.flag("x-kubernetes-int-or-string") => Form::IntOrString,
            "object" => object(schema, resource || schema.flag("x-kubernetes-embedded-resource")),
            "array" if schema.at("items").is_object() => {
                let keys = schema.texts("x-kubernetes-list-map-keys").into_iter().map(str::to_owned);
                let order = match schema.text("x-kubernetes-list-type") {
                    "set" => Order::Keyed(Arc::new([])),
                    "map" => Order::Keyed(keys.collect()),
                    _ => Order::Atomic,
                };
                Form::List(Arc::new(Shape::new(schema.at("items"), false)), order)
            }
            "string" => Form::Text(match schema.text("format") {
                "duration" => Format::Duration,
                "date" => Format::Date,
                "date-time" => Format::DateTime,
                "byte" => Format::Bytes,
                _ => Format::Plain,
            }),
            "number" => Form::Number,
            "integer" => Form::Integer,
            "boolean" => Form::Boolean,
            _ => Form::Unknown,
        };
        Shape { nullable: schema.flag("nullable"), stated: stated.into(), form }
    }

    fn of(form: Form, stated: &str) -> Arc<Self> {
        Arc::new(Shape { nullable: false, stated: stated.into(), form })
    }

    /// Whether rules can speak of such values: lists and maps of what they cannot speak of are none either.
    pub fn is_declared(&self) -> bool {
        match &self.form {
            Form::Unknown => false,
            Form::List(inner, _) | Form::Map(inner) => inner.is_declared(),
            _ => true,
        }
    }

    /// The value that expressions see.
    pub fn value(&self, value: &Value) -> Val {
        match (&self.form, value) {
            (Form::Unknown, _) => Val::from_json(value),
            (_, Value::Null) if self.nullable => Val::Null,
            (_, Value::Null) => fault("got null for schema with nullable=false"),
            (Form::IntOrString, Value::String(s)) => Val::text(s.as_str()),
            (Form::IntOrString, Value::Number(n)) if n.is_i64() => Val::Int(n.as_i64().unwrap_or_default()),
            (Form::IntOrString, _) => fault("expected XIntOrString value to be either a string or integer"),
            (Form::Object(properties), Value::Object(map)) => {
                let known = |name: &String, v: &Value| match properties.get(name) {
                    Some(shape) => shape.value(v),
                    None => Val::from_json(v),
                };
                // A field that is null counts as absent.
                let fields = map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), known(k, v)));
                Val::Message(OBJECT.into(), Arc::new(fields.collect()))
            }
            (Form::Map(shape), Value::Object(map)) => Val::map(map.iter().map(|(k, v)| (k.as_str(), shape.value(v)))),
            (Form::Object(_) | Form::Map(_), _) => fault("expected a map for the provided schema with type=object"),
            (Form::List(shape, order), Value::Array(items)) => {
                let items: Arc<[Val]> = items.iter().map(|v| shape.value(v)).collect();
                match order {
                    Order::Atomic => Val::List(items),
                    Order::Keyed(keys) => Val::Unordered(Arc::new(Unordered { items, keys: keys.clone() })),
                }
            }
            (Form::List(..), _) => fault("expected an array for the provided schema with type=array"),
            (Form::Text(format), Value::String(s)) => format.value(s),
            (Form::Text(_), other) => fault(&format!("expected string, got {}", go_type(other))),
            (Form::Number, Value::Number(n)) => Val::Double(n.as_f64().unwrap_or_default()),
            (Form::Number, other) => fault(&format!("expected float, got {}", go_type(other))),
            (Form::Integer, Value::Number(n)) if n.is_i64() => Val::Int(n.as_i64().unwrap_or_default()),
            (Form::Integer, other) => fault(&format!("expected int, got {}", go_type(other))),
            (Form::Boolean, Value::Bool(b)) => Val::Bool(*b),
            (Form::Boolean, other) => fault(&format!("expected bool, got {}", go_type(other))),
        }
    }
}

fn object(schema: &Value, resource: bool) -> Form {
    let values = schema.at("additionalProperties");
    if values.is_object() && !resource && schema.is_empty_at("properties") {
        return Form::Map(Arc::new(Shape::new(values, false)));
    }
    let properties = schema.entries("properties").into_iter();
    let mut properties: BTreeMap<String, Arc<Shape>> =
        properties.map(|(name, s)| (name.to_owned(), Arc::new(Shape::new(s, false)))).collect();
    if resource {
        let text = || Shape::of(Form::Text(Format::Plain), "string");
        let names = ["name", "generateName"].map(|f| (f.to_owned(), text()));
        properties.insert("metadata".to_owned(), Shape::of(Form::Object(names.into()), "object"));
        properties.extend(["apiVersion", "kind"].map(|f| (f.to_owned(), text())));
    }
    Form::Object(properties)
}

impl Format {
    fn value(self, text: &str) -> Val {
        let known = |value: Option<Val>, called: &str| {
            value.unwrap_or_else(|| Val::Fault(format!("Invalid {called} {text}").into()))
        };
        match self {
            Format::Plain => Val::text(text),
            Format::Duration => {
                let nanos = isopod_schema::validate::duration_nanos(text);
                known(nanos.map(|n| Val::Duration(jiff::SignedDuration::from_nanos(n))), "duration")
            }
            Format::Date => {
                let at = (text.len() == 10).then(|| isopod_api::time::parse(&format!("{text}T00:00:00Z"))).flatten();
                known(at.map(Val::Timestamp), "date formatted string")
            }
            Format::DateTime => known(isopod_api::time::parse(text).map(Val::Timestamp), "date-time formatted string"),
            Format::Bytes => {
                use base64::Engine;
                let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok();
                known(bytes.map(|b| Val::Bytes(b.into())), "byte formatted string")
            }
        }
    }
}

fn fault(why: &str) -> Val {
    Val::Fault(format!("invalid data, {why}").into())
}

/// The type of a value as Go prints it.
fn go_type(value: &Value) -> &'static str {
    crate::custom::hooks::go_type(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(schema: &Value, value: &Value) -> String {
        format!("{:?}", Shape::new(schema, false).value(value))
    }

    #[test]
    fn values_have_the_types_of_their_schema() {
        for (schema, value, wanted) in [
            (json!({"type": "integer"}), json!(1), "Int(1)"),
            (json!({"type": "number"}), json!(1), "Double(1.0)"),
            (json!({"type": "boolean"}), json!(true), "Bool(true)"),
            (json!({"x-kubernetes-int-or-string": true}), json!("1"), "Text(\"1\")"),
            (json!({"x-kubernetes-int-or-string": true}), json!(1), "Int(1)"),
            (json!({"type": "string", "format": "byte"}), json!("aGk="), "Bytes([104, 105])"),
            (json!({"type": "string", "format": "duration"}), json!("1m"), "Duration(1m)"),
            (json!({"type": "string", "format": "date"}), json!("2024-02-29"), "Timestamp(2024-02-29T00:00:00Z)"),
            (json!({"type": "string", "nullable": true}), Value::Null, "Null"),
            (
                json!({"type": "string"}),
                Value::Null,
                "Fault(\"invalid data, got null for schema with nullable=false\")",
            ),
            (json!({"type": "integer"}), json!("x"), "Fault(\"invalid data, expected int, got string\")"),
        ] {
            assert_eq!(shown(&schema, &value), wanted);
        }
    }

    #[test]
    fn resources_have_a_type_and_a_name() {
        let schema =
            json!({"type": "object", "properties": {"metadata": {"type": "object"}, "n": {"type": "integer"}}});
        let object = |resource| {
            let value = json!({"kind": "A", "metadata": {"name": "x", "uid": "u"}, "n": null, "more": 1});
            Shape::new(&schema, resource).value(&value).to_json()
        };
        assert_eq!(object(true), Ok(json!({"kind": "A", "metadata": {"name": "x", "uid": "u"}, "more": 1})));
        let Form::Object(fields) = Shape::new(&schema, true).form else { panic!("an object") };
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["apiVersion", "kind", "metadata", "n"]);
    }

    #[test]
    fn lists_of_the_undeclared_are_undeclared() {
        let open = json!({"x-kubernetes-preserve-unknown-fields": true});
        let declared = |schema: Value| Shape::new(&schema, false).is_declared();
        assert!(!declared(json!({"type": "array", "items": open.clone()})));
        assert!(!declared(json!({"type": "object", "additionalProperties": open.clone()})));
        assert!(declared(json!({"type": "object", "properties": {"a": open}})));
    }
}
