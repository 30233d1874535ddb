//! Validation of custom resources, in the order of `apiextensions-apiserver/pkg/registry/customresource`: type, schema, scale,
//! embedded resources, sets and maps in lists, and rules, which look at sound objects only.

use super::hooks::Custom;
use super::rules::Judgement;
use crate::access::Access;
use crate::metadata;
use isopod_api::field::FieldErrorType;
use isopod_api::{FieldError, FieldErrors, Path, names};
use isopod_schema::types::Object;
use isopod_schema::validate::{self, Correlated};
use isopod_schema::walk;
use serde_json::{Map, Value};

impl Custom {
    /// `old`: the object that this one replaces; what it leaves as it was may keep its faults.
    pub(super) fn judge(&self, new: &Value, old: Option<&Value>, subresource: &str) -> Judgement {
        let mut errors = self.type_errors(new);
        if !errors.is_empty() {
            return Judgement { errors, warnings: Vec::new() };
        }
        let Some(object) = self.schema() else { return Judgement::default() };
        let raw = object.openapi.as_deref().unwrap_or(&Value::Null);
        let change = old.map(|old| Correlated::new(new, old, raw));
        let of_status = subresource == "status";
        if of_status {
            errors.extend(status_errors(new, raw, change.as_ref()));
        } else {
            errors.extend(validate::against(new, raw, change.as_ref()));
        }
        errors.extend(self.scale_errors(new, of_status));
        if !of_status {
            errors.extend(embedded(new, object));
        }
        if old.is_none_or(|old| validate::lists(old, object).is_empty()) {
            errors.extend(validate::lists(new, object));
        }
        let Some(rules) = self.rules() else { return Judgement { errors, warnings: Vec::new() } };
        if errors.iter().any(hides_rules) {
            let m = "some validation rules were not checked because the object was invalid; correct the existing errors \
                     to complete validation";
            errors.push(FieldError::invalid(&Path::root(), Value::Null, m));
            return Judgement { errors, warnings: Vec::new() };
        }
        let judged = rules.judge(new, old, change.as_ref());
        errors.extend(judged.errors);
        Judgement { errors, warnings: judged.warnings }
    }
}

/// Whether an object with such an error is not what rules expect to see.
fn hides_rules(error: &FieldError) -> bool {
    use FieldErrorType::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
    matches!(error.kind, NotSupported | Required | TooLong | TooMany | TypeInvalid)
}

/// The status by its own schema: its errors speak of paths that begin in it.
fn status_errors(new: &Value, raw: &Value, change: Option<&Correlated>) -> FieldErrors {
    let Some(status) = new.get("status") else { return Vec::new() };
    let change = change.and_then(|c| c.key("status"));
    let mut errors = validate::against(status, raw.at("properties.status"), change.as_ref());
    let root = Path::root().to_string();
    for e in &mut errors {
        e.field = if e.field == root { "status".to_owned() } else { format!("status.{}", e.field) };
    }
    errors
}

/// Types and metadata of the resources inside of this one.
fn embedded(value: &Value, object: &Object) -> FieldErrors {
    let mut errors = Vec::new();
    walk::objects(value, object, &Path::root(), &mut |o, map, at| {
        if o.embedded_resource && !at.as_str().is_empty() {
            embedded_resource(map, at, &mut errors);
        }
    });
    errors
}

fn embedded_resource(map: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) {
    for key in ["apiVersion", "kind"] {
        let at = path.child(key);
        match map.get(key) {
            None => errors.push(FieldError::required(&at, "")),
            Some(Value::String(s)) if s.is_empty() => errors.push(FieldError::invalid(&at, "", "must not be empty")),
            Some(Value::String(s)) => {
                errors.extend(type_fault(key, s).map(|m| FieldError::invalid(&at, s.as_str(), m)))
            }
            Some(other) => errors.push(FieldError::invalid(&at, other.clone(), "must be a string")),
        }
    }
    if let Some(meta @ Value::Object(_)) = map.get("metadata") {
        let mut meta = meta.clone();
        if meta.text("name").is_empty() {
            // A name is not required.
            meta["name"] = "fakename".into();
        }
        let namespaced = !meta.text("namespace").is_empty();
        errors.extend(metadata::create(&meta, namespaced, &names::name_is_path_segment, &path.child("metadata")));
    }
}

fn type_fault(key: &str, text: &str) -> Option<String> {
    if key == "apiVersion" {
        return (text.matches('/').count() > 1).then(|| format!("unexpected GroupVersion string: {text}"));
    }
    let faults = names::dns1035_label(&text.to_lowercase());
    (!faults.is_empty()).then(|| format!("may have mixed case, but should otherwise match: {}", faults.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn embedded_resources_have_types_and_names() {
        let object = isopod_schema::structural::resource(&json!({"type": "object", "properties": {"inner": {
            "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}));
        for (inner, wanted) in [
            (json!({"apiVersion": "v1", "kind": "Pod"}), vec![]),
            (
                json!({"kind": ""}),
                vec!["inner.apiVersion: Required value", "inner.kind: Invalid value: \"\": must not be empty"],
            ),
            (
                json!({"apiVersion": "a/b/c", "kind": "Pod"}),
                vec!["inner.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c"],
            ),
            (
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a/b"}}),
                vec!["inner.metadata.name: Invalid value: \"a/b\": may not contain '/'"],
            ),
        ] {
            let errors: Vec<String> =
                embedded(&json!({"inner": inner}), &object).iter().map(ToString::to_string).collect();
            assert_eq!(errors, wanted, "{inner}");
        }
    }
}
