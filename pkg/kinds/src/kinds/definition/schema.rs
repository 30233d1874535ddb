//! The OpenAPI schemas of a definition: what they may say at all.

use super::expressions::{Costs, Level};
use super::field_path::follow;
use super::{Rules, defaults, structural};
use crate::access::{Access, is_empty};
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
/// Go's names of what may stand at the root beside a status subresource, and the same as JSON has it.
const AT_ROOT: [(&str, &str); 22] = [
    ("Description", "description"),
    ("Type", "type"),
    ("Format", "format"),
    ("Title", "title"),
    ("Maximum", "maximum"),
    ("ExclusiveMaximum", "exclusiveMaximum"),
    ("Minimum", "minimum"),
    ("ExclusiveMinimum", "exclusiveMinimum"),
    ("MaxLength", "maxLength"),
    ("MinLength", "minLength"),
    ("Pattern", "pattern"),
    ("MaxItems", "maxItems"),
    ("MinItems", "minItems"),
    ("UniqueItems", "uniqueItems"),
    ("MultipleOf", "multipleOf"),
    ("Required", "required"),
    ("Items", "items"),
    ("Properties", "properties"),
    ("ExternalDocs", "externalDocs"),
    ("Example", "example"),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields"),
    ("XValidations", "x-kubernetes-validations"),
];

/// The root schemas of a lifted spec.
pub(super) fn roots(spec: &Value) -> Vec<&Value> {
    let each = spec.list("versions").iter().map(|v| v.at("schema.openAPIV3Schema"));
    std::iter::once(spec.at("validation.openAPIV3Schema")).chain(each).filter(|s| s.is_object()).collect()
}

/// Calls `see` with a schema and all schemas in it.
pub(super) fn visit<'a>(schema: &'a Value, see: &mut dyn FnMut(&'a Value)) {
    if !schema.is_object() {
        return;
    }
    see(schema);
    for f in ["items", "not", "additionalProperties", "additionalItems"] {
        visit(schema.at(f), see);
    }
    for f in ["items", "allOf", "anyOf", "oneOf"] {
        schema.list(f).iter().for_each(|s| visit(s, see));
    }
    for f in ["properties", "patternProperties", "definitions", "dependencies"] {
        schema.entries(f).into_iter().for_each(|(_, s)| visit(s, see));
    }
}

/// Whether something is so of a schema or of one in it.
pub(super) fn any(schema: &Value, is: &dyn Fn(&Value) -> bool) -> bool {
    let mut found = false;
    visit(schema, &mut |s| found |= is(s));
    found
}

pub(super) fn is_of_unknown_type(s: &Value) -> bool {
    !s.text("type").is_empty() && !TYPES.contains(&s.text("type"))
}

/// Whether a schema says what only structural schemas may.
pub(super) fn is_extended(s: &Value) -> bool {
    s.flag("x-kubernetes-embedded-resource")
        || s.has("x-kubernetes-preserve-unknown-fields")
        || s.flag("x-kubernetes-int-or-string")
        || !s.is_empty_at("x-kubernetes-list-map-keys")
        || s.has("x-kubernetes-list-type")
        || !s.is_empty_at("x-kubernetes-validations")
}

/// A set whose items are neither scalars nor atomic.
pub(super) fn is_set_of_parts(s: &Value) -> bool {
    parts_of_set(s, &Path::root()).is_some()
}

pub(super) fn has_loose_keys(s: &Value) -> bool {
    !keys_are_solid(s, &Path::root()).is_empty()
}

/// The format of a schema, where no validator knows it.
pub(super) fn unknown_format(s: &Value) -> Option<&str> {
    let format = Some(s.text("format")).filter(|f| !f.is_empty())?;
    let known = match s.text("type") {
        "" | "string" => isopod_schema::validate::knows_format(format),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    };
    (!known).then_some(format)
}

pub(super) fn set_of_parts_warning(s: &Value) -> Option<String> {
    let of = s.text("items.type");
    let parts = s.text("x-kubernetes-list-type") == "set" && matches!(of, "object" | "array");
    parts.then(|| {
        format!(
            "x-kubernetes-list-type: set for items of type {of:?} is not supported by server-side apply or CEL \
             validation rules"
        )
    })
}

/// The schema of one version, or of all: `{openAPIV3Schema: …}`.
pub(super) fn validation(validation: &Value, status: bool, rules: &Rules, path: &Path) -> FieldErrors {
    let schema = validation.at("openAPIV3Schema");
    if schema.is_null() {
        return Vec::new();
    }
    let path = path.child("openAPIV3Schema");
    let mut errs = Vec::new();
    if status {
        errs.extend(beside_status(schema, &path));
    }
    if schema.flag("nullable") {
        errs.push(FieldError::forbidden(&path.child("nullable"), "nullable cannot be true at the root"));
    }
    let (mut unsupported, mut sound) = (None, false);
    if rules.structural {
        unsupported = structural::unsupported(schema);
        if unsupported.is_none() {
            let wrong = structural::validate(schema, &path);
            let wrong = if wrong.is_empty() { defaults::validate(schema, rules, &path) } else { wrong };
            sound = wrong.is_empty();
            errs.extend(wrong);
        }
    }
    let place = Place { rules, no_defaults: None, inside_meta: false, root: true };
    errs.extend(place.open_api(schema, &path));
    if sound {
        let mut costs = Costs::new(&rules.accepted, schema);
        errs.extend(place.expressions(schema, &Level::root(), &mut costs, &path));
        errs.extend(costs.faults(&path));
    }
    if errs.is_empty() {
        errs.extend(unsupported.map(|why| FieldError::invalid(&path, "", why)));
    }
    errs
}

/// With a status subresource the root says nothing that would be lost for the status.
fn beside_status(schema: &Value, path: &Path) -> Option<FieldError> {
    let said: Vec<&str> = schema.entries("").into_iter().filter(|(_, v)| !is_zero(v)).map(|(k, _)| k).collect();
    let allowed = |k: &&str| AT_ROOT.iter().any(|(_, json)| json == k);
    let before_type = ["id", "$schema", "$ref"].iter().any(|f| said.contains(f));
    if !before_type && !matches!(schema.text("type"), "" | "object") {
        let m = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        return Some(FieldError::invalid(&path.child("type"), schema.text("type"), m));
    }
    if said.iter().all(allowed) {
        return None;
    }
    let names = AT_ROOT.map(|(go, _)| go).join(" ");
    let m = format!("only [{names}] fields are allowed at the root of the schema if the status subresource is enabled");
    Some(FieldError::invalid(path, schema.clone(), m))
}

fn is_zero(v: &Value) -> bool {
    is_empty(v) || *v == Value::Bool(false)
}

/// Where a schema stands.
#[derive(Clone)]
struct Place<'a> {
    rules: &'a Rules,
    /// Why defaults are forbidden here.
    no_defaults: Option<String>,
    /// Inside of `apiVersion`, `kind` or `metadata` of a resource.
    inside_meta: bool,
    root: bool,
}

impl Place<'_> {
    fn open_api(&self, s: &Value, path: &Path) -> FieldErrors {
        if !s.is_object() {
            return Vec::new();
        }
        let mut errs = self.unsupported(s, path);
        if s.flag("uniqueItems") {
            let m = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            errs.push(FieldError::forbidden(&path.child("uniqueItems"), m));
        }
        errs.extend(self.inner(s, path));
        if *s.at("x-kubernetes-preserve-unknown-fields") == Value::Bool(false) {
            let p = path.child("x-kubernetes-preserve-unknown-fields");
            errs.push(FieldError::invalid(&p, false, "must be true or undefined"));
        }
        errs.extend(map_type(s, path));
        errs.extend(self.list_type(s, path));
        errs.extend(map_keys(s, path));
        if self.rules.solid_keys {
            errs.extend(keys_are_solid(s, path));
        }
        for (i, r) in s.list("x-kubernetes-validations").iter().enumerate() {
            errs.extend(rule(s, r, &path.child("x-kubernetes-validations").index(i)));
        }
        errs
    }

    /// Of OpenAPI and JSON schema, what a definition may not use.
    fn unsupported(&self, s: &Value, path: &Path) -> FieldErrors {
        let mut errs = Vec::new();
        if self.rules.known_types && is_of_unknown_type(s) {
            errs.push(FieldError::not_supported(&path.child("type"), s.text("type"), &TYPES));
        }
        if let Some(why) = self.no_defaults.as_ref().filter(|_| s.has("default")) {
            errs.push(FieldError::forbidden(&path.child("default"), format!("must not be set {why}")));
        }
        let unknown = ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"];
        for f in unknown.iter().filter(|f| !s.is_empty_at(f)) {
            errs.push(FieldError::forbidden(&path.child(f), format!("{f} is not supported")));
        }
        if s.text("type") == "null" {
            let m = "type cannot be set to null, use nullable as an alternative";
            errs.push(FieldError::forbidden(&path.child("type"), m));
        }
        if !s.list("items").is_empty() {
            errs.push(FieldError::forbidden(&path.child("items"), "items must be a schema object and not an array"));
        }
        if self.inside_meta && s.flag("x-kubernetes-embedded-resource") {
            let m = "must not be used inside of resource meta";
            errs.push(FieldError::forbidden(&path.child("x-kubernetes-embedded-resource"), m));
        }
        errs
    }

    /// The schemas in a schema.
    fn inner(&self, s: &Value, path: &Path) -> FieldErrors {
        let place = Place { root: false, ..self.clone() };
        let mut errs = Vec::new();
        let more = s.at("additionalProperties");
        let p = path.child("additionalProperties");
        if !s.is_empty_at("properties") && !matches!(more, Value::Null | Value::Bool(true)) {
            errs.push(FieldError::forbidden(&p, "additionalProperties and properties are mutual exclusive"));
        }
        let mut below = place.clone();
        if self.inside_meta {
            below.no_defaults = Some("inside additionalProperties applying to object metadata".to_owned());
        }
        errs.extend(below.open_api(more, &p));
        for (name, property) in s.entries("properties") {
            let mut below = place.clone();
            let meta = matches!(name, "metadata" | "kind" | "apiVersion");
            if meta && (self.root || s.flag("x-kubernetes-embedded-resource")) {
                below.inside_meta = true;
                if self.root {
                    below.no_defaults = Some(format!("in top-level {name}"));
                }
            }
            errs.extend(below.open_api(property, &path.child("properties").key(name)));
        }
        errs.extend(place.open_api(s.at("not"), &path.child("not")));
        for f in ["allOf", "oneOf", "anyOf"] {
            let all = s.list(f).iter().enumerate();
            errs.extend(all.flat_map(|(i, inner)| place.open_api(inner, &path.child(f).index(i))));
        }
        let keyed = |f: &str| -> FieldErrors {
            let all = s.entries(f).into_iter();
            all.flat_map(|(k, inner)| place.open_api(inner, &path.child(f).key(k))).collect()
        };
        errs.extend(keyed("definitions"));
        errs.extend(place.open_api(s.at("items"), &path.child("items")));
        let all = s.list("items").iter().enumerate();
        errs.extend(all.flat_map(|(i, inner)| place.open_api(inner, &path.child("items").index(i))));
        errs.extend(keyed("dependencies"));
        errs
    }

    /// The expressions of rules, in schemas that have no other faults.
    fn expressions(&self, s: &Value, level: &Level, costs: &mut Costs<'_>, path: &Path) -> FieldErrors {
        let mut errs = Vec::new();
        let place = Place { root: false, ..self.clone() };
        let below = level.below(s, path);
        let (more, items) = (s.at("additionalProperties"), s.at("items"));
        if more.is_object() {
            errs.extend(place.expressions(more, &below, costs, &path.child("additionalProperties")));
        }
        for (name, property) in s.entries("properties") {
            errs.extend(place.expressions(property, &below, costs, &path.child("properties").key(name)));
        }
        if items.is_object() {
            errs.extend(place.expressions(items, &below, costs, &path.child("items")));
        }
        let has_rules = !s.list("x-kubernetes-validations").is_empty();
        if has_rules && self.open_api(s, path).is_empty() {
            errs.extend(costs.rules(s, self.root, level, path));
        }
        errs
    }

    fn list_type(&self, s: &Value, path: &Path) -> FieldErrors {
        let Some(list) = s.at("x-kubernetes-list-type").as_str() else { return Vec::new() };
        let mut errs = type_must_be(s, "array", "x-kubernetes-list-type", path);
        if errs.is_empty() && self.rules.atomic_sets {
            errs.extend(parts_of_set(s, path));
        }
        if !["atomic", "set", "map"].contains(&list) {
            let p = path.child("x-kubernetes-list-type");
            errs.push(FieldError::not_supported(&p, list, &["atomic", "set", "map"]));
        }
        errs
    }
}

fn type_must_be(s: &Value, wanted: &str, because: &str, path: &Path) -> FieldErrors {
    let m = format!("must be {wanted} if {because} is specified");
    match s.text("type") {
        "" => vec![FieldError::required(&path.child("type"), m)],
        t if t == wanted => Vec::new(),
        t => vec![FieldError::invalid(&path.child("type"), t, m)],
    }
}

fn map_type(s: &Value, path: &Path) -> FieldErrors {
    let Some(map) = s.at("x-kubernetes-map-type").as_str() else { return Vec::new() };
    let mut errs = type_must_be(s, "object", "x-kubernetes-map-type", path);
    if !["atomic", "granular"].contains(&map) {
        let p = path.child("x-kubernetes-map-type");
        errs.push(FieldError::not_supported(&p, map, &["atomic", "granular"]));
    }
    errs
}

fn parts_of_set(s: &Value, path: &Path) -> Option<FieldError> {
    let items = Some(s.at("items")).filter(|i| i.is_object())?;
    if s.text("x-kubernetes-list-type") != "set" {
        return None;
    }
    let list = items.at("x-kubernetes-list-type");
    let field = match items.text("type") {
        "array" if !matches!(list.as_str(), None | Some("atomic")) => "x-kubernetes-list-type",
        "object" if items.text("x-kubernetes-map-type") != "atomic" => "x-kubernetes-map-type",
        _ => return None,
    };
    let m = "must be atomic as item of a list with x-kubernetes-list-type=set";
    // Of both, upstream shows the type of the list.
    Some(FieldError::invalid(&path.child("items").child(field), list.clone(), m))
}

/// Lists that are maps, and what names their keys.
fn map_keys(s: &Value, path: &Path) -> FieldErrors {
    let (keys, list) = (s.texts("x-kubernetes-list-map-keys"), s.at("x-kubernetes-list-type"));
    let (keys_path, items_path) = (path.child("x-kubernetes-list-map-keys"), path.child("items"));
    let mut errs = Vec::new();
    if !keys.is_empty() && list.as_str() != Some("map") {
        let (p, m) = (path.child("x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty");
        errs.push(match list {
            Value::Null => FieldError::required(&p, m),
            other => FieldError::invalid(&p, other.clone(), m),
        });
    }
    if list.as_str() != Some("map") {
        return errs;
    }
    if keys.is_empty() {
        errs.push(FieldError::required(&keys_path, "must not be empty if x-kubernetes-list-type is map"));
    }
    let items = s.at("items");
    match items {
        Value::Null => {
            errs.push(FieldError::required(&items_path, "must have a schema if x-kubernetes-list-type is map"));
        }
        Value::Object(_) if items.text("type") == "object" => errs.extend(key_properties(items, &keys, path)),
        Value::Object(_) => {
            let m = "must be object if parent array's x-kubernetes-list-type is map";
            errs.push(FieldError::invalid(&items_path.child("type"), items.text("type"), m));
        }
        _ => {
            let m = "must only have a single schema if x-kubernetes-list-type is map";
            errs.push(FieldError::invalid(&items_path, items.clone(), m));
        }
    }
    errs
}

fn key_properties(items: &Value, keys: &[&str], path: &Path) -> FieldErrors {
    let p = path.child("x-kubernetes-list-map-keys");
    let mut errs = Vec::new();
    for (i, k) in keys.iter().enumerate() {
        match items.entry("properties", k) {
            Value::Null => {
                errs.push(FieldError::invalid(&p, keys, "entries must all be names of item properties"));
            }
            property if matches!(property.text("type"), "array" | "object") => {
                let p = path.child("items").child("properties").key(k).child("type");
                let m = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errs.push(FieldError::invalid(&p, items.text("type"), m));
            }
            _ => {}
        }
        if keys[..i].contains(k) {
            errs.push(FieldError::invalid(&p, keys, "must not contain duplicate entries"));
        }
    }
    errs
}

/// Items of sets and maps are never null, and keys are always there.
fn keys_are_solid(s: &Value, path: &Path) -> FieldErrors {
    let (items, list) = (s.at("items"), s.text("x-kubernetes-list-type"));
    if !items.is_object() || !matches!(list, "set" | "map") {
        return Vec::new();
    }
    let p = path.child("items");
    let mut errs = Vec::new();
    if items.flag("nullable") {
        let m = format!("cannot be nullable when x-kubernetes-list-type is {list}");
        errs.push(FieldError::forbidden(&p.child("nullable"), m));
    }
    if list == "set" {
        return errs;
    }
    let required = items.texts("required");
    const KEY: &str = "this property is in x-kubernetes-list-map-keys, so it";
    for k in s.texts("x-kubernetes-list-map-keys") {
        let (property, p) = (items.entry("properties", k), p.child("properties").key(k));
        if property.is_null() {
            continue;
        }
        if !required.contains(&k) && !property.has("default") {
            let m = format!("{KEY} must have a default or be a required property");
            errs.push(FieldError::required(&p.child("default"), m));
        }
        if property.flag("nullable") {
            errs.push(FieldError::forbidden(&p.child("nullable"), format!("{KEY} cannot be nullable")));
        }
    }
    errs
}

/// One of `x-kubernetes-validations`, but for the expressions themselves.
fn rule(schema: &Value, r: &Value, path: &Path) -> FieldErrors {
    let has_breaks = |s: &str| s.contains(['\n', '\r']);
    let (rule, message) = (r.text("rule").trim(), r.text("message"));
    let mut errs = Vec::new();
    let p = path.child("message");
    if rule.is_empty() {
        errs.push(FieldError::required(&path.child("rule"), "rule is not specified"));
    } else if !message.is_empty() && message.trim().is_empty() {
        errs.push(FieldError::invalid(&p, message, "must be non-empty if specified"));
    } else if has_breaks(message.trim()) {
        errs.push(FieldError::invalid(&p, message, "must not contain line breaks"));
    } else if has_breaks(rule) && message.is_empty() {
        errs.push(FieldError::required(&p, "message must be specified if rule contains line breaks"));
    }
    let expression = r.text("messageExpression");
    if !expression.is_empty() && expression.trim().is_empty() {
        let m = "messageExpression must be non-empty if specified";
        errs.push(FieldError::required(&path.child("messageExpression"), m));
    }
    if let Some(reason) = r.at("reason").as_str().filter(|reason| !REASONS.contains(reason)) {
        errs.push(FieldError::not_supported(&path.child("reason"), reason, &REASONS));
    }
    let (field, p) = (r.text("fieldPath"), path.child("fieldPath"));
    if field.is_empty() {
        return errs;
    }
    if field.trim().is_empty() {
        errs.push(FieldError::invalid(&p, field, "must be non-empty if specified"));
    }
    if has_breaks(field) {
        errs.push(FieldError::invalid(&p, field, "must not contain line breaks"));
    }
    if structural::unsupported(schema).is_none() && follow(field, schema, true).is_err() {
        errs.push(FieldError::invalid(&p, field, "must be a valid path"));
    }
    errs
}
