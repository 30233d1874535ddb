//! The strategy of custom resources (`apiextensions-apiserver/pkg/registry/customresource`).

use super::jsonpath;
use super::rules::Rules;
use super::versions::Versions;
use crate::access::{Access, set};
use crate::kind::{Ctx, Hooks};
use isopod_api::{FieldError, FieldErrors, Path, names};
use isopod_schema::managed::{Filter, Set};
use isopod_schema::types::Object;
use serde_json::{Value, json};
use std::sync::{Arc, OnceLock};

/// Where a scale lies in an object: dotted paths with their first dot.
pub struct ScaleFields {
    spec_replicas: String,
    status_replicas: String,
    label_selector: String,
}

impl ScaleFields {
    pub fn new(stated: &Value) -> Option<Self> {
        let text = |key: &str| stated.text(key).to_owned();
        stated.is_object().then(|| ScaleFields {
            spec_replicas: text("specReplicasPath"),
            status_replicas: text("statusReplicasPath"),
            label_selector: text("labelSelectorPath"),
        })
    }
}

fn plain(path: &str) -> &str {
    path.strip_prefix('.').unwrap_or(path)
}

pub struct Custom {
    pub version: String,
    pub kind: String,
    pub has_status: bool,
    pub scale: Option<ScaleFields>,
    pub deprecation: String,
    pub terminating: bool,
    pub versions: Arc<Versions>,
    pub rules: OnceLock<Option<Rules>>,
}

impl Custom {
    /// The schema of this version.
    pub(super) fn schema(&self) -> Option<&Object> {
        self.versions.schema(&self.version).map(Arc::as_ref)
    }

    /// The rules of this version's schema, compiled when they are first asked for.
    pub(super) fn rules(&self) -> Option<&Rules> {
        let made = || self.schema().and_then(|s| s.openapi.as_deref()).and_then(Rules::new);
        self.rules.get_or_init(made).as_ref()
    }

    pub(super) fn type_errors(&self, obj: &Value) -> FieldErrors {
        let api_version = format!("{}/{}", self.versions.group, self.version);
        let wanted = [("kind", self.kind.as_str()), ("apiVersion", api_version.as_str())];
        let differs = wanted.into_iter().filter(|(key, want)| obj.text(key) != *want);
        differs
            .map(|(key, want)| FieldError::invalid(&Path::new(key), obj.text(key), format!("must be {want}")))
            .collect()
    }

    pub(super) fn scale_errors(&self, obj: &Value, status_only: bool) -> FieldErrors {
        let Some(scale) = &self.scale else { return Vec::new() };
        let mut errors = Vec::new();
        if !status_only {
            errors.extend(replicas(obj, &scale.spec_replicas));
        }
        errors.extend(replicas(obj, &scale.status_replicas));
        if !scale.label_selector.is_empty() {
            let found = nested(obj, &scale.label_selector);
            let wrong = found.and_then(|f| match f.filter(|f| !f.is_string()) {
                Some(other) => Err(accessor_error(&scale.label_selector, other, "string")),
                None => Ok(()),
            });
            errors.extend(wrong.err().map(|m| FieldError::invalid(&Path::new(&scale.label_selector), "", m)));
        }
        errors
    }
}

pub(super) fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// How upstream tells that something else is where a value of a type should be (`unstructured.NestedInt64`).
fn accessor_error(path: &str, found: &Value, wanted: &str) -> String {
    let (shown, ty) = (jsonpath::printed(found), go_type(found));
    format!("{path} accessor error: {shown} is of the type {ty}, expected {wanted}")
}

/// What is at a path. Nothing is below what is not there or null; something else than an object is an error.
fn nested<'a>(obj: &'a Value, path: &str) -> Result<Option<&'a Value>, String> {
    let (mut found, mut at) = (obj, String::new());
    for key in plain(path).split('.') {
        at = format!("{at}.{key}");
        found = match found {
            Value::Null => return Ok(None),
            Value::Object(map) => match map.get(key) {
                Some(value) => value,
                None => return Ok(None),
            },
            other => return Err(accessor_error(&at, other, "map[string]interface{}")),
        };
    }
    Ok(Some(found))
}

/// The replicas at `path` are a count, where they are at all.
fn replicas(obj: &Value, path: &str) -> Option<FieldError> {
    let at = Path::new(path);
    let count = match nested(obj, path) {
        Ok(None) => return None,
        Ok(Some(found)) => found.as_i64().ok_or_else(|| accessor_error(path, found, "int64")),
        Err(m) => Err(m),
    };
    let n = match count {
        Ok(n) => n,
        Err(m) => return Some(FieldError::invalid(&at, 0, m)),
    };
    if n < 0 {
        return Some(FieldError::invalid(&at, n, "should be a non-negative integer"));
    }
    let most = i32::MAX;
    (n > i64::from(most)).then(|| FieldError::invalid(&at, n, format!("should be less than or equal to {most}")))
}

impl Hooks for Custom {
    fn validate_create(&self, _ctx: &Ctx, new: &Value) -> FieldErrors {
        self.judge(new, None, "").errors
    }
    fn judge_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> (FieldErrors, Vec<String>) {
        let judgement = self.judge(new, Some(old), ctx.subresource);
        (judgement.errors, judgement.warnings)
    }
    /// New finalizers whose names may collide with those of others.
    fn warnings(&self, ctx: &Ctx, new: &Value, old: Option<&Value>) -> Vec<String> {
        if ctx.subresource == "status" {
            return Vec::new();
        }
        let had = old.map(|o| o.texts("metadata.finalizers")).unwrap_or_default();
        let mut added = new.texts("metadata.finalizers");
        added.retain(|f| !had.contains(f));
        added.sort_unstable();
        added.dedup();
        added.into_iter().flat_map(finalizer_warnings).collect()
    }
    fn status_isolated(&self) -> bool {
        self.has_status
    }
    fn resets_status(&self) -> bool {
        self.has_status
    }
    fn counts_status(&self) -> bool {
        !self.has_status
    }
    fn deprecation(&self) -> &str {
        &self.deprecation
    }
    fn unconditional_update(&self) -> bool {
        false
    }
    fn is_terminating(&self) -> bool {
        self.terminating
    }
    fn owned(&self, subresource: &str) -> Filter {
        match subresource {
            "" if self.has_status => Filter::Without(Set::of(&[&["status"]])),
            "status" => Filter::Without(Set::of(&[&["metadata"], &["spec"]])),
            _ => Filter::All,
        }
    }
    fn selectable(&self, obj: &Value) -> Vec<String> {
        self.versions.selectable(obj)
    }
    fn replicas_path(&self) -> Vec<String> {
        let path = self.scale.as_ref().map_or("spec.replicas", |s| plain(&s.spec_replicas));
        path.split('.').map(str::to_owned).collect()
    }
    fn to_scale(&self, obj: &Value) -> Option<Value> {
        let fields = self.scale.as_ref()?;
        let status = obj.int_or(plain(&fields.status_replicas), 0);
        let mut scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {}, "spec": {},
            "status": {"replicas": status}});
        for f in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            if obj["metadata"].has(f) {
                scale["metadata"][f] = obj["metadata"][f].clone();
            }
        }
        // Go leaves a zero out.
        if let Some(n) = obj.int(plain(&fields.spec_replicas)).filter(|n| *n != 0) {
            scale["spec"]["replicas"] = n.into();
        }
        let selector = if fields.label_selector.is_empty() { "" } else { obj.text(plain(&fields.label_selector)) };
        if !selector.is_empty() {
            scale["status"]["selector"] = selector.into();
        }
        Some(scale)
    }
    fn apply_scale(&self, obj: &mut Value, scale: &Value) -> FieldErrors {
        if let Some(fields) = &self.scale {
            set(obj, plain(&fields.spec_replicas), scale.int_or("spec.replicas", 0));
        }
        Vec::new()
    }
    fn on_read(&self, stored: &[u8]) -> Option<Value> {
        self.versions.read(stored)
    }
    fn versions(&self) -> Option<&Arc<Versions>> {
        Some(&self.versions)
    }
}

fn finalizer_warnings(name: &str) -> Vec<String> {
    let at = format!("metadata.finalizers: {name:?}: ");
    let mut all: Vec<String> = names::qualified_name(name).iter().map(|m| format!("{at}{m}")).collect();
    if !name.contains('/') && !["orphan", "foregroundDeletion", "kubernetes"].contains(&name) {
        let path = if name.contains('.') { " including a path (/)" } else { "" };
        let why = "to avoid accidental conflicts with other finalizer writers";
        all.push(format!("{at}prefer a domain-qualified finalizer name{path} {why}"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_replicas() {
        for (spec, want) in [
            (json!({"n": 3}), None),
            (json!({}), None),
            (json!({"n": -1}), Some(".spec.n: Invalid value: -1: should be a non-negative integer")),
            (
                json!({"n": 2_147_483_648_u64}),
                Some(".spec.n: Invalid value: 2147483648: should be less than or equal to 2147483647"),
            ),
            (
                json!({"n": "x"}),
                Some(".spec.n: Invalid value: 0: .spec.n accessor error: x is of the type string, expected int64"),
            ),
            (
                json!({"n": null}),
                Some(".spec.n: Invalid value: 0: .spec.n accessor error: <nil> is of the type <nil>, expected int64"),
            ),
            (json!(null), None),
            (
                json!("x"),
                Some(
                    ".spec.n: Invalid value: 0: .spec.n accessor error: x is of the type string, expected \
                     map[string]interface{}",
                ),
            ),
        ] {
            let got = replicas(&json!({"spec": spec}), ".spec.n").map(|e| e.to_string());
            assert_eq!(got.as_deref(), want);
        }
    }

    #[test]
    fn finalizers_of_their_own_domain() {
        for (name, want) in [("example.com/x", 0), ("orphan", 0), ("mine", 1), ("example.com", 1), ("a b", 2)] {
            assert_eq!(finalizer_warnings(name).len(), want, "{name}");
        }
    }
}
