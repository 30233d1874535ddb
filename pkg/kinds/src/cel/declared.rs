//! What a schema declares for expressions: types, names of fields as CEL can write them, and how large values can be
//! (`apiserver/pkg/cel/common/schemas.go`, `types.go`).

use super::check::cost::Sizes;
use super::check::{Objects, RESERVED, Type};
use crate::access::Access;
use serde_json::Value;
use std::collections::BTreeMap;

/// The largest request that an API server takes.
pub const MAX_REQUEST: u64 = 3 << 20;

const MAX_TIME: u64 = 32;
const DATE: u64 = 12;

/// A type with sizes.
#[derive(Clone, Debug)]
pub enum Declared {
    /// Anything, of any size.
    Any,
    Scalar {
        of: Type,
        /// Characters.
        most: u64,
        /// Bytes in JSON.
        least: u64,
    },
    List {
        item: Box<Declared>,
        most: u64,
    },
    /// Keys are strings.
    Map {
        value: Box<Declared>,
        most: u64,
    },
    Object {
        fields: BTreeMap<String, Declared>,
        least: u64,
    },
}

impl Declared {
    /// Of a custom resource's schema. `None`: it says nothing.
    pub fn of_resource(schema: &Value) -> Option<Self> {
        Self::of(schema, true)
    }

    /// `resource`: it is the root of an object with metadata. `None`: expressions do not see it.
    pub fn of(schema: &Value, resource: bool) -> Option<Self> {
        let length = || schema.int("maxLength").map(|n| u64::try_from(n).unwrap_or(0));
        if schema.flag("x-kubernetes-int-or-string") {
            let most = length().map_or(MAX_REQUEST - 2, |n| n * 4);
            return Some(Declared::Scalar { of: Type::Dyn, most, least: 1 });
        }
        let scalar = |of: Type, most: u64, least: u64| Some(Declared::Scalar { of, most, least });
        match schema.text("type") {
            "array" => {
                let item = Box::new(Self::below(schema.at("items"))?);
                let most = limit(schema, "maxItems").unwrap_or((MAX_REQUEST - 2) / (item.least() + 1));
                Some(Declared::List { item, most })
            }
            "object" if schema.at("additionalProperties").is_object() && !resource => {
                let value = Box::new(Self::below(schema.at("additionalProperties"))?);
                let most = limit(schema, "maxProperties").unwrap_or((MAX_REQUEST - 2) / (value.least() + 6));
                Some(Declared::Map { value, most })
            }
            "object" => Some(Self::object(schema, resource)),
            "string" => match schema.text("format") {
                "byte" => scalar(Type::Bytes, length().unwrap_or(MAX_REQUEST - 2), 2),
                "duration" => scalar(Type::Duration, MAX_TIME, 3),
                "date" => scalar(Type::Timestamp, DATE, DATE),
                "date-time" => scalar(Type::Timestamp, MAX_TIME, 21),
                _ => {
                    let longest = schema.list("enum").iter().filter_map(Value::as_str).map(|v| v.len() as u64).max();
                    let longest = if schema.list("enum").is_empty() { None } else { Some(longest.unwrap_or(0)) };
                    scalar(Type::Text, length().map(|n| n * 4).or(longest).unwrap_or(MAX_REQUEST - 2), 2)
                }
            },
            "boolean" => scalar(Type::Bool, 0, 4),
            "number" => scalar(Type::Double, 0, 1),
            "integer" => scalar(Type::Int, 0, 1),
            _ => None,
        }
    }

    fn below(schema: &Value) -> Option<Self> {
        Self::of(schema, schema.flag("x-kubernetes-embedded-resource"))
    }

    fn object(schema: &Value, resource: bool) -> Self {
        let mut fields = BTreeMap::new();
        let mut least = 2;
        let required = schema.texts("required");
        for (name, property) in schema.entries("properties") {
            if resource && matches!(name, "metadata" | "kind" | "apiVersion") && !has_metadata(schema) {
                continue;
            }
            let Some(declared) = Self::below(property) else { continue };
            if required.contains(&name) && !property.has("default") {
                least += name.len() as u64 + declared.least() + 4;
            }
            if let Some(name) = escape(name) {
                fields.insert(name, declared);
            }
        }
        if resource && !has_metadata(schema) {
            let text = Declared::Scalar { of: Type::Text, most: MAX_REQUEST - 2, least: 2 };
            let names = ["name", "generateName"].map(|n| (n.to_owned(), text.clone()));
            let metadata = Declared::Object { fields: names.into(), least: 2 };
            for (name, declared) in [("metadata", metadata), ("kind", text.clone()), ("apiVersion", text)] {
                if required.contains(&name) {
                    least += name.len() as u64 + declared.least() + 4;
                }
                fields.insert(name.to_owned(), declared);
            }
        }
        Declared::Object { fields, least }
    }

    /// The fewest bytes that a value takes in JSON.
    pub fn least(&self) -> u64 {
        match self {
            Declared::Any => 1,
            Declared::Scalar { least, .. } | Declared::Object { least, .. } => *least,
            Declared::List { .. } | Declared::Map { .. } => 2,
        }
    }

    fn most(&self) -> u64 {
        match self {
            Declared::Scalar { most, .. } | Declared::List { most, .. } | Declared::Map { most, .. } => *most,
            Declared::Any | Declared::Object { .. } => 0,
        }
    }

    /// How often a value of it can stand in one request.
    pub fn cardinality(&self) -> u64 {
        MAX_REQUEST / (self.least() + 1)
    }

    /// Its type, with those of the objects in it, which are named after their places below `name`.
    pub fn object_types(&self, name: &str) -> (Type, Objects) {
        let mut objects = Objects::new();
        let t = self.named(name, &mut objects);
        (t, objects)
    }

    fn named(&self, name: &str, objects: &mut Objects) -> Type {
        match self {
            Declared::Any => Type::Dyn,
            Declared::Scalar { of, .. } => of.clone(),
            Declared::List { item, .. } => Type::list(item.named(&format!("{name}.@idx"), objects)),
            Declared::Map { value, .. } => Type::map(Type::Text, value.named(&format!("{name}.@elem"), objects)),
            Declared::Object { fields, .. } => {
                let typed = fields.iter().map(|(f, t)| (f.clone(), t.named(&format!("{name}.{f}"), objects)));
                let typed = typed.collect();
                objects.insert(name.to_owned(), typed);
                Type::object(name)
            }
        }
    }
}

/// The first step of a path is the variable.
impl Sizes for Declared {
    fn most(&self, path: &[String]) -> Option<u64> {
        let mut at = self;
        for step in &path[1..] {
            at = match (step.as_str(), at) {
                (_, Declared::Any) => return None,
                ("@items" | "@values", Declared::List { item, .. }) => item,
                ("@items" | "@values", Declared::Map { value, .. }) => value,
                // Of keys upstream expects nothing.
                ("@keys", Declared::Map { .. }) => return Some(0),
                (name, Declared::Object { fields, .. }) => fields.get(name)?,
                _ => return None,
            };
        }
        (!matches!(at, Declared::Any)).then(|| at.most())
    }
}

fn limit(schema: &Value, field: &str) -> Option<u64> {
    schema.int(field).map(|n| u64::try_from(n).unwrap_or(0))
}

/// Whether the schema itself says all that expressions see of metadata.
fn has_metadata(schema: &Value) -> bool {
    let properties = schema.at("properties");
    let metadata = properties.at("metadata");
    let text = |s: &Value| s.text("type") == "string";
    text(properties.at("kind"))
        && text(properties.at("apiVersion"))
        && metadata.text("type") == "object"
        && ["name", "generateName"].iter().all(|n| text(metadata.at("properties").at(n)))
}

/// A field's name as expressions write it (`apiserver/pkg/cel/escaping.go`). `None`: they cannot.
pub fn escape(name: &str) -> Option<String> {
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/".contains(c)) {
        return None;
    }
    let escaped = name.replace("__", "__underscores__");
    Some(escaped.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fields() {
        for (name, wanted) in [
            ("a", Some("a")),
            ("namespace", Some("__namespace__")),
            ("a.b-c/d", Some("a__dot__b__dash__c__slash__d")),
            ("a__b", Some("a__underscores__b")),
            ("1a", None),
            ("a b", None),
            ("", None),
        ] {
            assert_eq!(escape(name).as_deref(), wanted, "{name}");
        }
    }
}
