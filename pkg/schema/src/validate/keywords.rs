//! The keywords of a raw OpenAPI schema, with the texts of `kube-openapi/pkg/validation`.

use super::correlate::Correlated;
use super::{formats, type_name, wrong_type};
use isopod_api::{FieldError, FieldErrors, Path, float};
use regex::Regex;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::{LazyLock, RwLock};

/// What a schema says about a value.
#[derive(Default)]
pub(super) struct Outcome {
    pub errors: FieldErrors,
    /// How many checks there were: of alternatives that all fail, the errors of the one with most are shown.
    checks: usize,
}

impl Outcome {
    fn merge(&mut self, other: Outcome) {
        self.checks += other.checks;
        for e in other.errors {
            // The same place is reached by several ways: its errors are said once.
            if !self.errors.contains(&e) {
                self.errors.push(e);
            }
        }
    }

    /// Runs one group of checks.
    fn run(&mut self, group: impl FnOnce(&mut FieldErrors)) {
        let mut errors = Vec::new();
        group(&mut errors);
        self.merge(Outcome { errors, checks: 1 });
    }
}

/// [`check`] of a value that replaces another: what is as it was may keep its faults.
pub(super) fn check_change(value: &Value, raw: &Value, path: &Path, change: Option<&Correlated>) -> Outcome {
    let mut out = check_within(value, raw, path, change);
    if !out.errors.is_empty() && change.is_some_and(Correlated::is_equal) {
        out.errors.clear();
    }
    out
}

/// Checks `value` against every keyword of `raw`, in the order of `kube-openapi`'s validators.
pub(super) fn check(value: &Value, raw: &Value, path: &Path) -> Outcome {
    check_within(value, raw, path, None)
}

fn check_within(value: &Value, raw: &Value, path: &Path, change: Option<&Correlated>) -> Outcome {
    let mut out = Outcome::default();
    let Value::Object(raw) = raw else { return out };
    out.run(|e| typed(value, raw, path, e));
    if value.is_null() {
        out.run(|e| enumerated(value, raw, path, e));
        return out;
    }
    out.merge(junctors(value, raw, path));
    match value {
        Value::String(s) => out.run(|e| string(s, raw, path, e)),
        Value::Number(_) => out.run(|e| number(value, raw, path, e)),
        Value::Array(items) => out.merge(array(items, raw, path, change)),
        _ => {}
    }
    out.run(|e| enumerated(value, raw, path, e));
    if let Value::Object(map) = value {
        out.merge(object(map, raw, path, change));
    }
    out
}

/// `<path> in body`, which most texts begin with.
fn name(path: &Path) -> String {
    format!("{} in body", path.as_str())
}

fn invalid(path: &Path, value: &Value, what: &str, errors: &mut FieldErrors) {
    errors.push(FieldError::invalid(path, value.clone(), format!("{} {what}", name(path))));
}

/// `type`; a text of a format that is no number's needs no other.
fn typed(value: &Value, raw: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) {
    let either = raw.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    let wanted: &[&str] = match raw.get("type").and_then(Value::as_str).filter(|t| !t.is_empty()) {
        _ if either => &["integer", "string"],
        Some(one) => &[one],
        None => return,
    };
    let got = type_name(value);
    let has = |t: &str| wanted.contains(&t);
    let whole = got == "number" && value.as_f64().is_some_and(is_whole);
    let nullable = value.is_null() && raw.get("nullable") == Some(&Value::Bool(true));
    let fits = has(got) || nullable || (has("number") && got == "integer") || (has("integer") && whole);
    let format = raw.get("format").and_then(Value::as_str).unwrap_or_default();
    let of_text = matches!(value, Value::String(_) | Value::Array(_));
    match format {
        _ if fits => {}
        "" => errors.push(wrong_type(path, &wanted.join(","), value)),
        _ if of_text && (has("number") || has("integer")) => errors.push(wrong_type(path, &wanted.join(","), value)),
        _ if of_text => {}
        // Of a place with a format, upstream tells the formats.
        format => {
            let got = match got {
                "number" => "float64",
                "integer" => "int64",
                _ => "",
            };
            let detail = format!("{} must be of type {format}: {got:?}", name(path));
            errors.push(FieldError::type_invalid(path, got, detail));
        }
    }
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

/// Lengths and pattern, of which the first fault is said, and the format.
fn string(s: &str, raw: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) {
    let value = Value::String(s.to_owned());
    let length = s.chars().count() as u64;
    let limit = |key: &str| raw.get(key).and_then(Value::as_u64);
    let pattern = raw.get("pattern").and_then(Value::as_str).filter(|p| !p.is_empty());
    if let Some(max) = limit("maxLength").filter(|max| length > *max) {
        errors.push(FieldError::too_long(path, max as usize));
    } else if let Some(min) = limit("minLength").filter(|min| length < *min) {
        invalid(path, &value, &format!("should be at least {min} chars long"), errors);
    } else if let Some(pattern) = pattern.filter(|p| !matches(p, s)) {
        invalid(path, &value, &format!("should match '{pattern}'"), errors);
    }
    if let Some(format) = raw.get("format").and_then(Value::as_str)
        && !formats::accepts(format, s)
    {
        let detail = format!("{} must be of type {format}: {s:?}", name(path));
        errors.push(FieldError::type_invalid(path, value, detail));
    }
}

/// Compiled patterns: those of the definitions that are in use.
static PATTERNS: LazyLock<RwLock<HashMap<String, Option<Regex>>>> = LazyLock::new(RwLock::default);
/// More patterns than a cluster has; those of definitions that are gone go with the rest.
const MAX_PATTERNS: usize = 4096;

/// What is no pattern matches nothing: validation of the definition refuses it.
fn matches(pattern: &str, text: &str) -> bool {
    let matched = |r: &Option<Regex>| r.as_ref().is_some_and(|r| r.is_match(text));
    if let Ok(known) = PATTERNS.read()
        && let Some(regex) = known.get(pattern)
    {
        return matched(regex);
    }
    let regex = Regex::new(pattern).ok();
    let found = matched(&regex);
    if let Ok(mut known) = PATTERNS.write() {
        if known.len() >= MAX_PATTERNS {
            known.clear();
        }
        known.insert(pattern.to_owned(), regex);
    }
    found
}

fn number(value: &Value, raw: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) {
    let Some(x) = value.as_f64() else { return };
    let flag = |key: &str| raw.get(key) == Some(&Value::Bool(true));
    range(value, raw, path, errors);
    if let Some(factor) = raw.get("multipleOf").and_then(Value::as_f64) {
        multiple_of(value, factor, path, errors);
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
    if let Some(max) = raw.get("maximum")
        && let Some(m) = max.as_f64()
    {
        if flag("exclusiveMaximum") && x >= m {
            invalid(path, value, &format!("should be less than {max}"), errors);
        } else if x > m {
            invalid(path, value, &format!("should be less than or equal to {max}"), errors);
        }
    }
}

/// Whether a number is an integer to JSON, which is told with some tolerance, and of which there are 53 bits
/// (`swag.IsFloat64AJSONInteger`).
fn is_whole(x: f64) -> bool {
    const LARGEST: f64 = 9_007_199_254_740_991.0;
    const TOLERANCE: f64 = 1e-9;
    if !x.is_finite() || x.abs() > LARGEST {
        return false;
    }
    let near = x.trunc();
    x == near || (x > 0.0 && near != 0.0 && (x - near) / (x + near) < TOLERANCE)
}

/// `multipleOf`. An integer is divided by the integer in the factor, as upstream does it.
fn multiple_of(value: &Value, factor: f64, path: &Path, errors: &mut FieldErrors) {
    let factor = if value.is_f64() { factor } else { factor.trunc() };
    if factor <= 0.0 {
        let detail =
            format!("factor MultipleOf declared for {} must be positive: {}", path.as_str(), float::go_text(factor));
        return errors.push(FieldError::invalid(path, factor, detail));
    }
    let is_multiple = match (value.as_i64(), value.as_f64()) {
        (Some(n), _) => n % factor as i64 == 0,
        (None, x) => {
            let x = x.unwrap_or_default();
            is_whole(if factor < 1.0 { 1.0 / factor * x } else { x / factor })
        }
    };
    if !is_multiple {
        invalid(path, value, &format!("should be a multiple of {}", float::go_text(factor)), errors);
    }
}

/// Whether a number fits into its type, and into the format that the schema gives it.
fn range(value: &Value, raw: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) {
    const TWO_63: f64 = 9_223_372_036_854_775_808.0;
    let text = |key: &str| raw.get(key).and_then(Value::as_str).unwrap_or_default();
    let x = value.as_f64().unwrap_or_default();
    let (ty, format) = (text("type"), text("format"));
    let whole = value.as_i64().or_else(|| (x.fract() == 0.0 && x.abs() < TWO_63).then_some(x as i64));
    let (fits, shown) = match (ty, format) {
        ("integer", "int32") => (whole.is_some_and(|n| i32::try_from(n).is_ok()), "integer with format int32"),
        ("integer", "int64") => (whole.is_some(), "integer with format int64"),
        ("integer", _) => (whole.is_some(), "integer (default format)"),
        ("number", "float") => (x.abs() <= f64::from(f32::MAX), "number with format float"),
        _ => return,
    };
    if !fits {
        let detail = format!("Checked value must be of type {shown} in {}", path.as_str());
        errors.push(FieldError::invalid(&Path::root(), "", detail));
    }
}

fn array(items: &[Value], raw: &Map<String, Value>, path: &Path, change: Option<&Correlated>) -> Outcome {
    let mut out = Outcome { checks: 1, ..Outcome::default() };
    let length = items.len() as u64;
    if let Some(schema) = raw.get("items") {
        for (i, item) in items.iter().enumerate() {
            out.merge(check_change(item, schema, &path.index(i), change.and_then(|c| c.index(i)).as_ref()));
        }
    }
    let limit = |key: &str| raw.get(key).and_then(Value::as_u64);
    out.run(|errors| {
        if let Some(min) = limit("minItems").filter(|min| length < *min) {
            invalid(path, &Value::from(length), &format!("should have at least {min} items"), errors);
        }
        if let Some(max) = limit("maxItems").filter(|max| length > *max) {
            errors.push(FieldError::too_many(path, items.len(), max as usize));
        }
        let unique = raw.get("uniqueItems") == Some(&Value::Bool(true));
        if unique && (1..items.len()).any(|i| items[..i].contains(&items[i])) {
            invalid(path, &Value::String(String::new()), "shouldn't contain duplicates", errors);
        }
    });
    out
}

fn object(map: &Map<String, Value>, raw: &Map<String, Value>, path: &Path, change: Option<&Correlated>) -> Outcome {
    let mut out = Outcome { checks: 1, ..Outcome::default() };
    let length = map.len() as u64;
    let limit = |key: &str| raw.get(key).and_then(Value::as_u64);
    out.run(|errors| {
        if let Some(min) = limit("minProperties").filter(|min| length < *min) {
            invalid(path, &Value::from(length), &format!("should have at least {min} properties"), errors);
        }
        if let Some(max) = limit("maxProperties").filter(|max| length > *max) {
            errors.push(FieldError::too_many(path, map.len(), max as usize));
        }
    });
    let properties = raw.get("properties").and_then(Value::as_object);
    let check_field = |key: &str, v: &Value, schema: &Value| {
        // The old object was converted to the version of the new one: its type says nothing.
        let of_type = path.as_str().is_empty() && matches!(key, "apiVersion" | "kind");
        let change = change.filter(|_| !of_type).and_then(|c| c.key(key));
        check_change(v, schema, &path.child(key), change.as_ref())
    };
    if let Some(schema @ Value::Object(_)) = raw.get("additionalProperties") {
        for (key, v) in map.iter().filter(|(k, _)| properties.is_none_or(|p| !p.contains_key(*k))) {
            out.merge(check_field(key, v, schema));
        }
    }
    for (key, schema) in properties.into_iter().flatten() {
        if let Some(v) = map.get(key) {
            out.merge(check_field(key, v, schema));
        }
    }
    out.run(|errors| {
        for key in raw.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if !map.contains_key(key) {
                errors.push(FieldError::required(&path.child(key), ""));
            }
        }
    });
    out
}

/// `anyOf`, `oneOf`, `allOf` and `not`.
fn junctors(value: &Value, raw: &Map<String, Value>, path: &Path) -> Outcome {
    let mut out = Outcome { checks: 2, ..Outcome::default() };
    let say = |out: &mut Outcome, what: String| {
        out.errors.push(FieldError::invalid(&Path::root(), "", format!("{:?} must {what}", path.as_str())));
    };
    let outcomes = |key: &str| -> Vec<Outcome> {
        let list = raw.get(key).and_then(Value::as_array).into_iter().flatten();
        list.map(|schema| check(value, schema, path)).collect()
    };
    let any = outcomes("anyOf");
    if !any.is_empty() {
        if any.iter().all(|o| !o.errors.is_empty()) {
            say(&mut out, "validate at least one schema (anyOf)".to_owned());
        }
        let chosen = any.iter().position(|o| o.errors.is_empty()).unwrap_or_else(|| best(&any));
        any.into_iter().nth(chosen).into_iter().for_each(|o| out.merge(o));
    }
    let one = outcomes("oneOf");
    if !one.is_empty() {
        match one.iter().filter(|o| o.errors.is_empty()).count() {
            1 => {}
            0 => {
                say(&mut out, "validate one and only one schema (oneOf). Found none valid".to_owned());
                let chosen = best(&one);
                one.into_iter().nth(chosen).into_iter().for_each(|o| out.merge(o));
            }
            n => say(&mut out, format!("validate one and only one schema (oneOf). Found {n} valid alternatives")),
        }
    }
    let all = outcomes("allOf");
    let (count, failed) = (all.len(), all.iter().filter(|o| !o.errors.is_empty()).count());
    all.into_iter().for_each(|o| out.merge(o));
    if failed > 0 {
        let none = if failed == count { ". None validated" } else { "" };
        say(&mut out, format!("validate all the schemas (allOf){none}"));
    }
    if let Some(not) = raw.get("not")
        && check(value, not, path).errors.is_empty()
    {
        say(&mut out, "not validate the schema (not)".to_owned());
    }
    out
}

/// The first of those with most checks.
fn best(all: &[Outcome]) -> usize {
    let most = all.iter().map(|o| o.checks).max().unwrap_or_default();
    all.iter().position(|o| o.checks == most).unwrap_or_default()
}
