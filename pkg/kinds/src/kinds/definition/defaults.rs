//! Defaults in the schemas of a definition: each must be a value that its own schema accepts and keeps whole.

use super::{Rules, schema};
use crate::access::Access;
use isopod_api::{FieldError, FieldErrors, Path};
use isopod_schema::validate;
use serde_json::Value;

/// Whether pruning leaves all defaults as they are.
pub(super) fn are_pruned(root: &Value) -> bool {
    !schema::any(root, &|s| s.has("default") && pruned(s.at("default"), s) != *s.at("default"))
}

/// What is wrong with the defaults of a structural schema. None stands in `additionalProperties`.
pub(super) fn validate(s: &Value, rules: &Rules, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if !s.is_object() {
        return errs;
    }
    if s.has("default") {
        let (value, p) = (s.at("default"), path.child("default"));
        if rules.pruned_defaults && pruned(value, s) != *value {
            errs.push(FieldError::invalid(&p, value.clone(), "must not have unknown fields"));
        }
        errs.extend(validate::raw(value, s, &p));
    }
    errs.extend(validate(s.at("items"), rules, &path.child("items")));
    for (name, property) in s.entries("properties") {
        errs.extend(validate(property, rules, &path.child("properties").key(name)));
    }
    errs
}

/// The value without the fields that a structural schema does not know.
fn pruned(value: &Value, s: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let (more, keeps) = (s.at("additionalProperties"), s.flag("x-kubernetes-preserve-unknown-fields"));
            let resource = s.flag("x-kubernetes-embedded-resource");
            let keep = |(k, v): (&String, &Value)| match s.entry("properties", k) {
                known @ Value::Object(_) => Some((k.clone(), pruned(v, known))),
                _ if more.is_object() => Some((k.clone(), pruned(v, more))),
                _ => {
                    let always = resource && matches!(k.as_str(), "apiVersion" | "kind" | "metadata");
                    (keeps || always || *more == Value::Bool(true)).then(|| (k.clone(), v.clone()))
                }
            };
            Value::Object(map.iter().filter_map(keep).collect())
        }
        Value::Array(items) if s.at("items").is_object() => {
            Value::Array(items.iter().map(|v| pruned(v, s.at("items"))).collect())
        }
        other => other.clone(),
    }
}
