//! Structural schemas (KEP-1693-style rules of `apiextensions-apiserver/pkg/apiserver/schema`): types stand outside of
//! `allOf`, `anyOf`, `oneOf` and `not`, and what stands inside says nothing about a field that stands nowhere else.

use crate::access::{Access, is_empty};
use isopod_api::{FieldError, FieldErrors, Path};
use regex::Regex;
use serde_json::{Value, json};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What no structural schema can hold, where a schema or one in it has it.
pub(super) fn unsupported(s: &Value) -> Option<String> {
    if !s.is_object() {
        return None;
    }
    let never = ["id", "$schema", "$ref", "patternProperties", "dependencies", "additionalItems", "definitions"];
    if let Some(f) = never.iter().find(|f| !s.is_empty_at(f)) {
        return Some(format!("OpenAPIV3Schema '{}' is not supported", f.strip_prefix("$s").map_or(*f, |_| "schema")));
    }
    let junctors = ["allOf", "anyOf", "oneOf"].iter().flat_map(|f| s.list(f));
    if let Some(why) = std::iter::once(s.at("not")).chain(junctors).find_map(unsupported) {
        return Some(why);
    }
    if *s.at("x-kubernetes-preserve-unknown-fields") == Value::Bool(false) {
        let m = "internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined";
        return Some(m.to_owned());
    }
    if !s.list("items").is_empty() {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".to_owned());
    }
    let below = s.entries("properties").into_iter().map(|(_, v)| v);
    [s.at("items")].into_iter().chain(below).chain([s.at("additionalProperties")]).find_map(unsupported)
}

pub(super) fn is_structural(s: &Value) -> bool {
    unsupported(s).is_none() && validate(s, &Path::root()).is_empty()
}

/// Why a root schema is not structural, sorted by text.
pub(super) fn validate(s: &Value, path: &Path) -> FieldErrors {
    let mut errs = invariants(s, Level::Root, path);
    errs.extend(completeness(s, s, path, path));
    errs.sort_by_key(ToString::to_string);
    errs
}

fn invariants(s: &Value, level: Level, path: &Path) -> FieldErrors {
    if s.is_null() {
        return Vec::new();
    }
    let (kind, embedded) = (s.text("type"), s.flag("x-kubernetes-embedded-resource"));
    let mut errs = Vec::new();
    if kind == "array" && !s.has("items") {
        errs.push(FieldError::required(&path.child("items"), "must be specified"));
    }
    errs.extend(invariants(s.at("items"), Level::Item, &path.child("items")));
    for (name, property) in s.entries("properties") {
        errs.extend(invariants(property, Level::Field, &path.child("properties").key(name)));
    }
    let p = path.child("additionalProperties");
    if s.has("additionalProperties") {
        if level == Level::Root {
            errs.push(FieldError::forbidden(&p, "must not be used at the root"));
        }
        if s.at("additionalProperties").is_object() {
            errs.extend(invariants(s.at("additionalProperties"), Level::Field, &p));
        }
    }
    errs.extend(extensions(s, path));
    let (any, first) = (is_int_or_string(s), s.list("allOf").first().is_some_and(is_int_or_string));
    errs.extend(values(s, any, first, path));
    errs.extend(types(s, level, path));
    if embedded && s.has("additionalProperties") {
        errs.push(FieldError::forbidden(&p, "must not be used if x-kubernetes-embedded-resource is set"));
    }
    errs.extend(metadata(s, level, path));
    if embedded && !s.flag("x-kubernetes-preserve-unknown-fields") && s.is_empty_at("properties") {
        let m =
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errs.push(FieldError::required(&path.child("properties"), m));
    }
    errs
}

fn types(s: &Value, level: Level, path: &Path) -> FieldErrors {
    let (kind, p) = (s.text("type"), path.child("type"));
    let mut errs = Vec::new();
    let free = s.flag("x-kubernetes-int-or-string") || s.flag("x-kubernetes-preserve-unknown-fields");
    if s.flag("x-kubernetes-embedded-resource") && kind != "object" {
        let m = "must be object if x-kubernetes-embedded-resource is true";
        errs.push(match kind {
            "" => FieldError::required(&p, m),
            other => FieldError::invalid(&p, other, m),
        });
    } else if kind.is_empty() && !free {
        let m = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errs.push(FieldError::required(&p, m));
    }
    if level == Level::Root && !matches!(kind, "" | "object") {
        errs.push(FieldError::invalid(&p, kind, "must be object at the root"));
    }
    errs
}

/// `apiVersion`, `kind` and `metadata` of a resource.
fn metadata(s: &Value, level: Level, path: &Path) -> FieldErrors {
    let resource = level == Level::Root || s.flag("x-kubernetes-embedded-resource");
    let mut errs = Vec::new();
    for name in ["kind", "apiVersion"] {
        let property = s.entry("properties", name);
        if resource && !property.is_null() && property.text("type") != "string" {
            let p = path.child("properties").key(name).child("type");
            errs.push(FieldError::invalid(&p, property.text("type"), "must be string"));
        }
    }
    let (meta, p) = (s.entry("properties", "metadata"), path.child("properties").key("metadata"));
    if meta.is_null() {
        return errs;
    }
    if resource && meta.text("type") != "object" {
        errs.push(FieldError::invalid(&p.child("type"), meta.text("type"), "must be object"));
    }
    let named = meta.entries("properties").iter().all(|(k, _)| matches!(*k, "name" | "generateName"));
    let allowed = |k: &str| matches!(k, "type" | "default") || k == "properties" && named;
    let more = |(k, v): &(&str, &Value)| !allowed(k) && !is_empty(v) && **v != Value::Bool(false);
    if level == Level::Root && meta.entries("").iter().any(more) {
        let m = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errs.push(FieldError::forbidden(&p, m));
    }
    errs
}

/// Integers and strings in the one way in which a type may stand in `anyOf`.
fn is_int_or_string(s: &Value) -> bool {
    *s.at("anyOf") == json!([{"type": "integer"}, {"type": "string"}])
}

fn extensions(s: &Value, path: &Path) -> FieldErrors {
    let others = ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"];
    let wrong = others.iter().filter(|f| s.flag("x-kubernetes-int-or-string") && s.flag(f));
    let m = "must be false if x-kubernetes-int-or-string is true";
    wrong.map(|f| FieldError::invalid(&path.child(f), true, m)).collect()
}

fn values(s: &Value, skip_any: bool, skip_first_all: bool, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (i, inner) in s.list("anyOf").iter().enumerate().filter(|_| !skip_any) {
        errs.extend(nested(inner, false, &path.child("anyOf").index(i)));
    }
    for (i, inner) in s.list("allOf").iter().enumerate() {
        errs.extend(nested(inner, skip_first_all && i == 0, &path.child("allOf").index(i)));
    }
    for (i, inner) in s.list("oneOf").iter().enumerate() {
        errs.extend(nested(inner, false, &path.child("oneOf").index(i)));
    }
    errs.extend(nested(s.at("not"), false, &path.child("not")));
    let pattern = s.text("pattern");
    if !pattern.is_empty() && Regex::new(pattern).is_err() {
        let m = format!("must be a valid regular expression, but isn't: error parsing regexp: `{pattern}`");
        errs.push(FieldError::invalid(&path.child("pattern"), pattern, m));
    }
    errs
}

/// What a schema in `allOf` and the like may not say.
fn nested(s: &Value, skip_any: bool, path: &Path) -> FieldErrors {
    if s.is_null() {
        return Vec::new();
    }
    let mut errs = values(s, skip_any, false, path);
    errs.extend(nested(s.at("items"), false, &path.child("items")));
    for (name, property) in s.entries("properties") {
        errs.extend(nested(property, false, &path.child("properties").key(name)));
    }
    let forbidden = [
        ("type", "empty"),
        ("additionalProperties", "undefined"),
        ("default", "undefined"),
        ("title", "empty"),
        ("description", "empty"),
        ("nullable", "false"),
        ("x-kubernetes-preserve-unknown-fields", "false"),
        ("x-kubernetes-embedded-resource", "false"),
        ("x-kubernetes-int-or-string", "false"),
        ("x-kubernetes-list-map-keys", "empty"),
        ("x-kubernetes-list-type", "undefined"),
        ("x-kubernetes-map-type", "undefined"),
        ("x-kubernetes-validations", "empty"),
    ];
    for (f, wanted) in forbidden {
        let said = match (s.at(f), wanted) {
            (Value::Null | Value::Bool(false), _) => false,
            (v, "empty") => !is_empty(v),
            _ => true,
        };
        if said {
            errs.push(FieldError::forbidden(&path.child(f), format!("must be {wanted} to be structural")));
        }
    }
    if !s.entry("properties", "metadata").is_null() {
        let p = path.child("properties").key("metadata");
        errs.push(FieldError::forbidden(&p, "must not be specified in a nested context"));
    }
    errs
}

/// Whether all that `v`'s junctors speak of also stands in the structure `s`, at `at`.
fn completeness(v: &Value, s: &Value, at: &Path, path: &Path) -> FieldErrors {
    let mut errs = nested_completeness(v.at("not"), s, at, &path.child("not"));
    for f in ["allOf", "anyOf", "oneOf"] {
        let all = v.list(f).iter().enumerate();
        errs.extend(all.flat_map(|(i, inner)| nested_completeness(inner, s, at, &path.child(f).index(i))));
    }
    errs
}

fn nested_completeness(v: &Value, s: &Value, at: &Path, path: &Path) -> FieldErrors {
    if v.is_null() {
        return Vec::new();
    }
    if s.is_null() {
        return vec![FieldError::required(at, format!("because it is defined in {path}"))];
    }
    let mut errs = completeness(v, s, at, path);
    errs.extend(nested_completeness(v.at("items"), s.at("items"), &at.child("items"), &path.child("items")));
    for (name, property) in v.entries("properties") {
        let (at, path) = (at.child("properties").key(name), path.child("properties").key(name));
        errs.extend(nested_completeness(property, s.entry("properties", name), &at, &path));
    }
    errs
}
