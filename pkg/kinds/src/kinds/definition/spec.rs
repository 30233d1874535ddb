//! What a definition says outside of its schemas: group, names, versions, subresources, columns, selectable fields.

use super::field_path::follow;
use super::{Rules, alike, conversion, schema};
use crate::access::Access;
use crate::metadata::immutable;
use crate::validation::check;
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::Value;
use std::collections::BTreeSet;

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
const MAX_SELECTABLE: usize = 8;
const SIMPLE_PATH: &str = "must be a simple json path starting with .";

/// The whole of a lifted spec.
pub(super) fn spec(spec: &Value, rules: &mut Rules, path: &Path) -> FieldErrors {
    let mut errs = group(spec.text("group"), &path.child("group"));
    errs.extend(one_of(spec, "scope", &["Cluster", "Namespaced"], path));
    let roots = schema::roots(spec);
    let defaults = roots.iter().any(|s| schema::any(s, &|s| s.has("default")));
    let extended = roots.iter().any(|s| schema::any(s, &schema::is_extended));
    rules.structural |= !spec.flag("preserveUnknownFields") || defaults || extended;
    errs.extend(schemas_are_there(spec, rules, path));
    if defaults && spec.flag("preserveUnknownFields") {
        let m = "must be false in order to use defaults in the schema";
        errs.push(FieldError::invalid(&path.child("preserveUnknownFields"), true, m));
    }
    errs.extend(versions(spec, rules, path));
    for f in ["plural", "singular", "kind", "listKind"] {
        errs.extend(check::required(spec.at("names"), f, &path.child("names")));
    }
    errs.extend(names(spec.at("names"), &path.child("names")));
    let status = |v: &Value| v.has("subresources.status");
    let any_status = status(spec) || spec.list("versions").iter().any(status);
    errs.extend(schema::validation(spec.at("validation"), any_status, rules, &path.child("validation")));
    errs.extend(subresources(spec.at("subresources"), &path.child("subresources")));
    errs.extend(columns(spec, path));
    if !spec.is_empty_at("selectableFields") {
        let p = path.child("selectableFields");
        if spec.has("validation") {
            errs.extend(selectable(spec, spec.at("validation.openAPIV3Schema"), "", rules, &p));
        } else {
            errs.push(FieldError::invalid(&p, "", "may only be set when validations.schema is included"));
        }
    }
    let p = path.child("conversion");
    if spec.has("conversion") && spec.text("conversion.strategy") != "None" && spec.flag("preserveUnknownFields") {
        let m = "must be None if spec.preserveUnknownFields is true";
        errs.push(FieldError::invalid(&p.child("strategy"), spec.text("conversion.strategy"), m));
    }
    errs.extend(conversion::conversion(spec.at("conversion"), rules, &p));
    errs
}

pub(super) fn update(new: &Value, old: &Value, rules: &mut Rules, path: &Path) -> FieldErrors {
    let mut errs = spec(new, rules, path);
    let stored: &[&str] = if rules.fixed_names { &["scope", "names.kind"] } else { &[] };
    errs.extend(stored.iter().chain(&["group", "names.plural"]).flat_map(|f| immutable(new, old, f, path)));
    errs
}

/// The versions that have more selectable fields than allowed, and had the same before.
pub(super) fn with_many_selectable(new: &Value, old: &Value) -> BTreeSet<String> {
    let of = |spec: &Value, version: &str| match version {
        "" => spec.at("selectableFields").clone(),
        v => {
            let all = spec.list("versions").iter();
            all.rev().find(|o| o.text("name") == v).map_or(Value::Null, |o| o.at("selectableFields").clone())
        }
    };
    let all = [""].into_iter().chain(new.list("versions").iter().map(|v| v.text("name")));
    let kept = |v: &&str| {
        let before = of(old, v);
        before.as_array().is_some_and(|b| b.len() > MAX_SELECTABLE) && alike(&of(new, v), &before)
    };
    all.filter(kept).map(str::to_owned).collect()
}

/// Required, and one of `allowed`, which stands in upstream's order.
pub(super) fn one_of(parent: &Value, field: &str, allowed: &[&str], path: &Path) -> FieldErrors {
    check::one_of(parent, field, allowed, path)
}

/// One error for all messages.
fn joined(path: &Path, value: &str, msgs: Vec<String>) -> Option<FieldError> {
    (!msgs.is_empty()).then(|| FieldError::invalid(path, value, msgs.join(",")))
}

fn group(group: &str, path: &Path) -> FieldErrors {
    if group.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let wrong = joined(path, group, names::dns1123_subdomain(group));
    let flat = || FieldError::invalid(path, group, "should be a domain with at least one dot");
    wrong.or_else(|| (!group.contains('.')).then(flat)).into_iter().collect()
}

fn schemas_are_there(spec: &Value, rules: &Rules, path: &Path) -> FieldErrors {
    if spec.has("validation.openAPIV3Schema") || !rules.schemas && spec.flag("preserveUnknownFields") {
        return Vec::new();
    }
    let why = if rules.schemas { "" } else { "because otherwise all fields are pruned" };
    let lacking = |v: &Value| !v.has("schema.openAPIV3Schema") && (rules.schemas || v.flag("served"));
    let all = spec.list("versions").iter().enumerate().filter(|(_, v)| lacking(v));
    let at = |i| path.child("versions").index(i).child("schema").child("openAPIV3Schema");
    all.map(|(i, _)| FieldError::required(&at(i), why)).collect()
}

fn versions(spec: &Value, rules: &Rules, path: &Path) -> FieldErrors {
    let (all, p) = (spec.list("versions"), path.child("versions"));
    let mut errs = Vec::new();
    for (i, v) in all.iter().enumerate() {
        errs.extend(joined(&p.index(i).child("name"), v.text("name"), names::dns1035_label(v.text("name"))));
        // Subresources of all versions stand beside them; else the first version of the name tells.
        let own = all.iter().any(|v| v.has("subresources"));
        let first = all.iter().find(|o| o.text("name") == v.text("name")).unwrap_or(v);
        let status = if own { first } else { spec }.has("subresources.status");
        errs.extend(version(v, status, rules, &p.index(i)));
    }
    let unique: BTreeSet<&str> = all.iter().map(|v| v.text("name")).collect();
    let wrong = [
        (unique.len() < all.len(), "must contain unique version names"),
        (
            all.iter().filter(|v| v.flag("storage")).count() != 1,
            "must have exactly one version marked as storage version",
        ),
    ];
    let wrong = wrong.iter().filter(|(is, _)| *is);
    errs.extend(wrong.map(|(_, m)| FieldError::invalid(&p, spec.at("versions").clone(), *m)));
    let first = spec.text("version");
    if !first.is_empty() {
        errs.extend(joined(&path.child("version"), first, names::dns1035_label(first)));
    }
    errs
}

fn version(v: &Value, status: bool, rules: &Rules, path: &Path) -> FieldErrors {
    let mut errs = deprecation(v, &path.child("deprecationWarning"));
    errs.extend(schema::validation(v.at("schema"), status, rules, &path.child("schema")));
    errs.extend(subresources(v.at("subresources"), &path.child("subresources")));
    errs.extend(columns(v, path));
    if !v.is_empty_at("selectableFields") {
        let p = path.child("selectableFields");
        if v.has("schema.openAPIV3Schema") {
            errs.extend(selectable(v, v.at("schema.openAPIV3Schema"), v.text("name"), rules, &p));
        } else {
            let m = "may only be set when `version.schema.openAPIV3Schema` is not included";
            errs.push(FieldError::invalid(&p, "", m));
        }
    }
    errs
}

fn deprecation(v: &Value, path: &Path) -> FieldErrors {
    let Some(text) = v.at("deprecationWarning").as_str() else { return Vec::new() };
    let say = |m: String| FieldError::invalid(path, text, m);
    if !v.flag("deprecated") {
        return vec![say("can only be set for deprecated versions".to_owned())];
    }
    let mut errs = Vec::new();
    if text.len() > 256 {
        errs.push(say("must be <= 256 characters long".to_owned()));
    }
    if text.is_empty() {
        errs.push(say("must not be an empty string".to_owned()));
    }
    // Of Go's white space only the blank is printable.
    let hidden = |c: char| c.is_control() || c.is_whitespace() && c != ' ';
    errs.extend(text.char_indices().find(|(_, c)| hidden(*c)).map(|(i, _)| {
        say(format!("must only contain printable UTF-8 characters; non-printable character found at index {i}"))
    }));
    errs
}

pub(super) fn names(n: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let label = |field: &str| {
        let v = n.text(field);
        let msgs = if v.is_empty() { Vec::new() } else { names::dns1035_label(&v.to_lowercase()) };
        (v, msgs)
    };
    for f in ["plural", "singular"] {
        let v = n.text(f);
        let msgs = if v.is_empty() { Vec::new() } else { names::dns1035_label(v) };
        errs.extend(joined(&path.child(f), v, msgs));
    }
    for f in ["kind", "listKind"] {
        let (v, msgs) = label(f);
        if !msgs.is_empty() {
            let m = format!("may have mixed case, but should otherwise match: {}", msgs.join(","));
            errs.push(FieldError::invalid(&path.child(f), v, m));
        }
    }
    let each = |field: &str| -> FieldErrors {
        let all = n.texts(field).into_iter().enumerate();
        all.filter_map(|(i, v)| joined(&path.child(field).index(i), v, names::dns1035_label(v))).collect()
    };
    errs.extend(each("shortNames"));
    if !n.text("kind").is_empty() && n.text("kind") == n.text("listKind") {
        let m = "kind and listKind may not be the same";
        errs.push(FieldError::invalid(&path.child("listKind"), n.text("listKind"), m));
    }
    errs.extend(each("categories"));
    errs
}

fn columns(parent: &Value, path: &Path) -> FieldErrors {
    let (all, path) = (parent.list("additionalPrinterColumns"), path.child("additionalPrinterColumns"));
    all.iter().enumerate().flat_map(|(i, c)| column(c, &path.index(i))).collect()
}

fn column(c: &Value, path: &Path) -> FieldErrors {
    let mut errs = check::required(c, "name", path);
    let types = format!("must be one of {}", COLUMN_TYPES.join(","));
    match c.text("type") {
        "" => errs.push(FieldError::required(&path.child("type"), types)),
        t if COLUMN_TYPES.contains(&t) => {}
        t => errs.push(FieldError::invalid(&path.child("type"), t, types)),
    }
    let format = c.text("format");
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        let m = format!("must be one of {}", COLUMN_FORMATS.join(","));
        errs.push(FieldError::invalid(&path.child("format"), format, m));
    }
    let p = path.child("JSONPath");
    match c.text("jsonPath") {
        "" => errs.push(FieldError::required(&p, "")),
        j if !j.starts_with('.') => errs.push(FieldError::invalid(&p, j, SIMPLE_PATH)),
        _ => {}
    }
    errs
}

fn subresources(s: &Value, path: &Path) -> FieldErrors {
    let scale = s.at("scale");
    if scale.is_null() {
        return Vec::new();
    }
    let path = path.child("scale");
    let below = |field: &str, roots: &[&str], told: &str| {
        let (v, p) = (scale.text(field), path.child(field));
        if !v.starts_with('.') {
            return Some(FieldError::invalid(&p, v, SIMPLE_PATH));
        }
        let m = format!("should be a json path under {told}");
        (!roots.iter().any(|r| v.starts_with(r))).then(|| FieldError::invalid(&p, v, m))
    };
    let mut errs = Vec::new();
    for (f, root, told) in [("specReplicasPath", ".spec.", ".spec"), ("statusReplicasPath", ".status.", ".status")] {
        match scale.text(f) {
            "" => errs.push(FieldError::required(&path.child(f), "")),
            _ => errs.extend(below(f, &[root], told)),
        }
    }
    if !scale.is_empty_at("labelSelectorPath") {
        errs.extend(below("labelSelectorPath", &[".spec.", ".status."], "either .spec or .status"));
    }
    errs
}

fn selectable(parent: &Value, schema: &Value, version: &str, rules: &Rules, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, f) in parent.list("selectableFields").iter().enumerate() {
        let (json_path, p) = (f.text("jsonPath"), path.index(i).child("jsonPath"));
        if json_path.is_empty() {
            errs.push(FieldError::required(&p, ""));
            continue;
        }
        let found = match follow(json_path, schema, false) {
            Ok(found) => found,
            Err(why) => {
                errs.push(FieldError::invalid(&p, json_path, format!("is an invalid path: {why}")));
                continue;
            }
        };
        if found.path.split(['.', '[']).next() == Some("metadata") {
            errs.push(FieldError::invalid(&p, json_path, "must not point to fields in metadata"));
        }
        if !["string", "boolean", "integer"].contains(&found.schema.text("type")) {
            let m = "must point to a field of type string, boolean or integer. Enum string fields and strings with \
                     formats are allowed.";
            errs.push(FieldError::invalid(&p, json_path, m));
        }
        if !seen.insert(found.path) {
            errs.push(FieldError::duplicate(&p, json_path));
        }
    }
    if seen.len() > MAX_SELECTABLE && !rules.many_selectable.contains(version) {
        errs.push(FieldError::too_many(path, seen.len(), MAX_SELECTABLE));
    }
    errs
}
