//! The keywords of a raw OpenAPI schema, with the texts of `kube-openapi/pkg/validation`.

use super::{formats, type_name, wrong_type};
use isopod_api::{FieldError, FieldErrors, Path};
use regex::Regex;
use serde_json::{Map, Value};

/// Checks `value` against every keyword of `raw`.
pub(super) fn check(value: &Value, raw: &Value, path: &Path, errors: &mut FieldErrors) {
    let Value::Object(raw) = raw else { return };
    if value.is_null() && raw.get("nullable") == Some(&Value::Bool(true)) {
        return;
    }
    if !typed(value, raw, path, errors) {
        return;
    }
    enumerated(value, raw, path, errors);
    match value {
        Value::String(s) => string(s, raw, path, errors),
        Value::Number(_) => number(value, raw, path, errors),
        Value::Array(items) => array(items, raw, path, errors),
        Value::Object(map) => object(map, raw, path, errors),
        _ => {}
    }
    junctors(value, raw, path, errors);
}

/// `<path> in body`, which most texts begin with.
fn name(path: &Path) -> String {
    format!("{} in body", path.as_str())
}

fn invalid(path: &Path, value: &Value, what: &str, errors: &mut FieldErrors) {
    errors.push(FieldError::invalid(path, value.clone(), format!("{} {what}", name(path))));
}

/// `type`, which constraints inside of `allOf` and the like may have. False when nothing further can be said.
fn typed(value: &Value, raw: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) -> bool {
    let Some(wanted) = raw.get("type").and_then(Value::as_str).filter(|t| !t.is_empty()) else { return true };
    let got = type_name(value);
    let whole = got == "number" && value.as_f64().is_some_and(|x| x.fract() == 0.0);
    if wanted == got || (wanted == "number" && got == "integer") || (wanted == "integer" && whole) {
        return true;
    }
    errors.push(wrong_type(path, wanted, value));
    false
}

fn enumerated(value: &Value, raw: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) {
    let Some(allowed) = raw.get("enum").and_then(Value::as_array) else { return };
    let same = |a: &Value| a == value || (a.is_number() && a.as_f64() == value.as_f64());
    if !allowed.iter().any(same) {
        let shown: Vec<String> =
            allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(path, value.clone(), &shown));
    }
}

fn string(s: &str, raw: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) {
    let value = Value::String(s.to_owned());
    let length = s.chars().count() as u64;
    let limit = |key: &str| raw.get(key).and_then(Value::as_u64);
    if let Some(max) = limit("maxLength")
        && length > max
    {
        errors.push(FieldError::too_long(path, max as usize));
    }
    if let Some(min) = limit("minLength")
        && length < min
    {
        invalid(path, &value, &format!("should be at least {min} chars long"), errors);
    }
    if let Some(pattern) = raw.get("pattern").and_then(Value::as_str)
        && !Regex::new(pattern).is_ok_and(|r| r.is_match(s))
    {
        invalid(path, &value, &format!("should match '{pattern}'"), errors);
    }
    if let Some(format) = raw.get("format").and_then(Value::as_str)
        && !formats::accepts(format, s)
    {
        let detail = format!("{} must be of type {format}: {s:?}", name(path));
        errors.push(FieldError::type_invalid(path, value, detail));
    }
}

fn number(value: &Value, raw: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) {
    let Some(x) = value.as_f64() else { return };
    let flag = |key: &str| raw.get(key) == Some(&Value::Bool(true));
    if let Some(max) = raw.get("maximum")
        && let Some(m) = max.as_f64()
    {
        if flag("exclusiveMaximum") && x >= m {
            invalid(path, value, &format!("should be less than {max}"), errors);
        } else if x > m {
            invalid(path, value, &format!("should be less than or equal to {max}"), errors);
        }
    }
    if let Some(min) = raw.get("minimum")
        && let Some(m) = min.as_f64()
    {
        if flag("exclusiveMinimum") && x <= m {
            invalid(path, value, &format!("should be greater than {min}"), errors);
        } else if x < m {
            invalid(path, value, &format!("should be greater than or equal to {min}"), errors);
        }
    }
    if let Some(factor) = raw.get("multipleOf")
        && let Some(f) = factor.as_f64()
        && f > 0.0
        && (x / f).fract() != 0.0
    {
        invalid(path, value, &format!("should be a multiple of {factor}"), errors);
    }
}

fn array(items: &[Value], raw: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) {
    let length = items.len() as u64;
    if let Some(schema) = raw.get("items") {
        for (i, item) in items.iter().enumerate() {
            check(item, schema, &path.index(i), errors);
        }
    }
    if let Some(min) = raw.get("minItems").and_then(Value::as_u64)
        && length < min
    {
        invalid(path, &Value::from(length), &format!("should have at least {min} items"), errors);
    }
    if let Some(max) = raw.get("maxItems").and_then(Value::as_u64)
        && length > max
    {
        errors.push(FieldError::too_many(path, items.len(), max as usize));
    }
    if raw.get("uniqueItems") == Some(&Value::Bool(true)) && (1..items.len()).any(|i| items[..i].contains(&items[i])) {
        invalid(path, &Value::String(String::new()), "shouldn't contain duplicates", errors);
    }
}

fn object(map: &Map<String, Value>, raw: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) {
    let length = map.len() as u64;
    if let Some(min) = raw.get("minProperties").and_then(Value::as_u64)
        && length < min
    {
        invalid(path, &Value::from(length), &format!("should have at least {min} properties"), errors);
    }
    if let Some(max) = raw.get("maxProperties").and_then(Value::as_u64)
        && length > max
    {
        errors.push(FieldError::too_many(path, map.len(), max as usize));
    }
    let properties = raw.get("properties").and_then(Value::as_object);
    for (key, schema) in properties.into_iter().flatten() {
        if let Some(v) = map.get(key) {
            check(v, schema, &path.child(key), errors);
        }
    }
    if let Some(schema @ Value::Object(_)) = raw.get("additionalProperties") {
        for (key, v) in map.iter().filter(|(k, _)| properties.is_none_or(|p| !p.contains_key(*k))) {
            check(v, schema, &path.child(key), errors);
        }
    }
    for key in raw.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(key) {
            errors.push(FieldError::required(&path.child(key), ""));
        }
    }
}

fn junctors(value: &Value, raw: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) {
    let failures = |schema: &Value| {
        let mut inner = Vec::new();
        check(value, schema, path, &mut inner);
        inner
    };
    let mut say = |what: String| {
        errors.push(FieldError::invalid(&Path::root(), "", format!("{:?} must {what}", path.as_str())));
    };
    let list = |key: &str| raw.get(key).and_then(Value::as_array).filter(|l| !l.is_empty());
    let mut nested = Vec::new();
    if let Some(any) = list("anyOf")
        && !any.iter().any(|s| failures(s).is_empty())
    {
        say("validate at least one schema (anyOf)".to_owned());
        nested = any.iter().map(failures).min_by_key(Vec::len).unwrap_or_default();
        // The alternatives that only miss fields say nothing that the sentence does not.
        nested.retain(|e| e.shown.is_some());
    }
    if let Some(one) = list("oneOf") {
        match one.iter().filter(|s| failures(s).is_empty()).count() {
            1 => {}
            0 => say("validate one and only one schema (oneOf). Found none valid".to_owned()),
            n => say(format!("validate one and only one schema (oneOf). Found {n} valid alternatives")),
        }
    }
    if let Some(all) = list("allOf") {
        let failed: Vec<FieldErrors> = all.iter().map(failures).filter(|f| !f.is_empty()).collect();
        if !failed.is_empty() {
            let none = if failed.len() == all.len() { ". None validated" } else { "" };
            say(format!("validate all the schemas (allOf){none}"));
            nested.extend(failed.into_iter().flatten());
        }
    }
    if let Some(not) = raw.get("not")
        && failures(not).is_empty()
    {
        say("not validate the schema (not)".to_owned());
    }
    errors.extend(nested);
}
