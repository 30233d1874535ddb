//! What most kinds need of [`Hooks`], as data: a kind's file in `kinds/` is a [`Strategy`] with a few functions.
//!
//! Invariants: all functions are pure; the pipeline has validated metadata and shapes before it calls `validate_*`.

use crate::access::{self, Access};
use crate::kind::{Ctx, Hooks};
use crate::ownership;
use isopod_api::{FieldError, FieldErrors, Path};
use isopod_schema::managed::Filter;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::borrow::Cow;

/// Where the fields of a `Scale` lie in an object.
#[derive(Clone, Copy)]
pub struct ScalePaths {
    /// The text form of the selector of the pods.
    pub selector: fn(&Value) -> String,
}

/// The strategy of a kind. Start from [`PLAIN`].
#[derive(Clone, Copy)]
pub struct Strategy {
    /// Paths that field selectors may name.
    pub fields: &'static [&'static str],
    /// A create loses `status`.
    pub resets_status: bool,
    /// Whether `status` belongs to the subresource; `table` sets it from the facts.
    pub status_isolated: bool,
    pub generation: bool,
    pub create_on_update: bool,
    /// A delete answers with the object, not with a `Status`.
    pub returns_deleted: bool,
    /// What a `Warning` says on every request for the kind.
    pub deprecation: &'static str,
    pub unconditional_update: bool,
    /// Which fields a write can own, of a kind with a status.
    pub owned: fn(&str) -> Filter,
    pub default: fn(&mut Value),
    pub prepare_create: fn(&Ctx, &mut Value),
    pub prepare_update: fn(&Ctx, &mut Value, &Value),
    /// See [`Hooks::random_suffix`].
    pub random_suffix: bool,
    /// The rule of names, where it depends on the object: see [`Hooks::name`].
    pub name: Option<fn(&Value, &str, bool) -> Vec<String>>,
    /// Changes an object that is about to be deleted.
    pub prepare_delete: fn(&Ctx, &mut Value),
    pub create: fn(&Value) -> FieldErrors,
    /// An update of the object itself: new, old.
    pub update: fn(&Value, &Value) -> FieldErrors,
    /// An update through `status`: new, old.
    pub update_status: fn(&Value, &Value) -> FieldErrors,
    /// The same where it depends on the time.
    pub update_status_at: Option<fn(Timestamp, &Value, &Value) -> FieldErrors>,
    /// An update through any other subresource: its name, new, old.
    pub update_other: fn(&str, &Value, &Value) -> FieldErrors,
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    /// Warning about a delete that does not say what becomes of dependents; empty: none.
    pub orphaning: &'static str,
    /// Annotations that upstream's internal type holds as fields, so that metadata alone does not show them.
    pub internal_annotations: &'static [&'static str],
    /// See [`Hooks::indexed_label`].
    pub indexed_label: Option<&'static str>,
    pub grace: fn(&Value, Option<i64>) -> Option<i64>,
    pub scale: Option<ScalePaths>,
    /// Numbers that upstream's internal type holds by value: an empty object shows them.
    pub zeros: &'static [&'static str],
    pub select: fn(&Value, &str) -> String,
    /// The paths that `select` looks at, where they are not those of `fields`.
    pub select_from: &'static [&'static str],
    pub stored_field: for<'a> fn(&'a str) -> Cow<'a, str>,
    pub to_storage: fn(&mut Value),
    pub from_storage: fn(&mut Value),
}

/// A kind with a status, a generation and no rules of its own.
pub const PLAIN: Strategy = Strategy {
    fields: &[],
    resets_status: true,
    status_isolated: true,
    generation: true,
    create_on_update: false,
    returns_deleted: false,
    deprecation: "",
    unconditional_update: true,
    owned: ownership::spec_or_status,
    default: |_| {},
    prepare_create: |_, _| {},
    prepare_update: |_, _, _| {},
    random_suffix: true,
    name: None,
    prepare_delete: |_, _| {},
    create: |_| Vec::new(),
    update: |_, _| Vec::new(),
    update_status: |_, _| Vec::new(),
    update_status_at: None,
    update_other: |_, _, _| Vec::new(),
    warnings: |_, _| Vec::new(),
    orphaning: "",
    internal_annotations: &[],
    indexed_label: None,
    grace: |_, _| None,
    scale: None,
    zeros: &[],
    select: text_at,
    select_from: &[],
    stored_field: |field| field.into(),
    to_storage: |_| {},
    from_storage: |_| {},
};

/// A kind without status and generation: ConfigMap, Role …
pub const STATELESS: Strategy = Strategy { resets_status: false, generation: false, ..PLAIN };

/// A selectable field as text: Go's printing of strings, numbers and booleans.
pub fn text_at(obj: &Value, path: &str) -> String {
    match obj.at(path) {
        Value::String(s) => s.clone(),
        Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
        scalar => scalar.to_string(),
    }
}

impl Hooks for Strategy {
    fn default(&self, obj: &mut Value) {
        (self.default)(obj);
    }
    fn prepare_create(&self, ctx: &Ctx, new: &mut Value) {
        if self.resets_status && self.status_isolated && new.has("status") {
            access::set(new, "status", json!({}));
        }
        (self.prepare_create)(ctx, new);
    }
    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        (self.prepare_update)(ctx, new, old);
    }
    fn random_suffix(&self) -> bool {
        self.random_suffix
    }
    fn name(&self, obj: &Value, name: &str, prefix: bool) -> Option<Vec<String>> {
        self.name.map(|rule| rule(obj, name, prefix))
    }
    fn prepare_delete(&self, ctx: &Ctx, old: &mut Value) {
        (self.prepare_delete)(ctx, old);
    }
    fn validate_create(&self, _ctx: &Ctx, new: &Value) -> FieldErrors {
        (self.create)(new)
    }
    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> FieldErrors {
        match ctx.subresource {
            "" | "scale" => (self.update)(new, old),
            "status" => match self.update_status_at {
                Some(update) => update(ctx.now, new, old),
                None => (self.update_status)(new, old),
            },
            other => (self.update_other)(other, new, old),
        }
    }
    fn warnings(&self, ctx: &Ctx, new: &Value, old: Option<&Value>) -> Vec<String> {
        match ctx.subresource {
            "" | "scale" => (self.warnings)(new, old),
            _ => Vec::new(),
        }
    }
    fn delete_warnings(&self, propagates: bool) -> Vec<String> {
        let warns = !propagates && !self.orphaning.is_empty();
        warns.then(|| self.orphaning.to_owned()).into_iter().collect()
    }
    fn zero(&self, obj: &mut Value) {
        for path in self.zeros {
            access::set(obj, path, 0);
        }
    }
    fn internal_annotations(&self) -> &[&str] {
        self.internal_annotations
    }
    fn indexed_label(&self) -> Option<&str> {
        self.indexed_label
    }
    fn generation(&self) -> bool {
        self.generation
    }
    fn status_isolated(&self) -> bool {
        self.status_isolated
    }
    fn resets_status(&self) -> bool {
        self.resets_status
    }
    fn create_on_update(&self) -> bool {
        self.create_on_update
    }
    fn returns_deleted(&self) -> bool {
        self.returns_deleted
    }
    fn deprecation(&self) -> &str {
        self.deprecation
    }
    fn unconditional_update(&self) -> bool {
        self.unconditional_update
    }
    fn owned(&self, subresource: &str) -> Filter {
        if self.status_isolated { (self.owned)(subresource) } else { Filter::All }
    }
    fn stored_field<'a>(&self, field: &'a str) -> Cow<'a, str> {
        (self.stored_field)(field)
    }
    fn selectable(&self, obj: &Value) -> Vec<String> {
        self.fields.iter().map(|f| (self.select)(obj, f)).collect()
    }
    fn selected_from(&self) -> Option<&'static [&'static str]> {
        Some(if self.select_from.is_empty() { self.fields } else { self.select_from })
    }
    fn graceful_delete(&self, obj: &Value, asked: Option<i64>) -> Option<i64> {
        (self.grace)(obj, asked)
    }
    fn to_scale(&self, obj: &Value) -> Option<Value> {
        let paths = self.scale?;
        let meta = obj.at("metadata");
        let mut scale = json!({
            "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {},
            "spec": {}, "status": {"replicas": obj.int_or("status.replicas", 0)},
        });
        for f in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            if meta.has(f) {
                scale["metadata"][f] = meta[f].clone();
            }
        }
        // Go leaves a zero out.
        if let Some(n) = obj.int("spec.replicas").filter(|n| *n != 0) {
            scale["spec"]["replicas"] = n.into();
        }
        let selector = (paths.selector)(obj);
        if !selector.is_empty() {
            scale["status"]["selector"] = selector.into();
        }
        Some(scale)
    }
    fn apply_scale(&self, obj: &mut Value, scale: &Value) -> FieldErrors {
        let n = scale.int_or("spec.replicas", 0);
        if n < 0 {
            let m = "must be greater than or equal to 0";
            return vec![FieldError::invalid(&Path::new("spec.replicas"), n, m)];
        }
        access::set(obj, "spec.replicas", n);
        Vec::new()
    }
    fn to_storage(&self, obj: &mut Value) {
        (self.to_storage)(obj);
    }
    fn from_storage(&self, obj: &mut Value) {
        (self.from_storage)(obj);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_and_back() {
        let s = Strategy { scale: Some(ScalePaths { selector: |_| "app=a".into() }), ..PLAIN };
        let mut obj = json!({
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "5", "labels": {"x": "y"}},
            "spec": {"replicas": 2}, "status": {"replicas": 1},
        });
        let scale = s.to_scale(&obj).unwrap();
        assert_eq!(
            scale,
            json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "5"},
                "spec": {"replicas": 2}, "status": {"replicas": 1, "selector": "app=a"}})
        );
        assert!(s.apply_scale(&mut obj, &json!({"spec": {"replicas": 7}})).is_empty());
        assert_eq!(obj.int("spec.replicas"), Some(7));
        assert_eq!(s.apply_scale(&mut obj, &json!({"spec": {"replicas": -1}})).len(), 1);
    }
}
