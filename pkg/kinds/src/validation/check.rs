//! The small rules that validators are made of.
//!
//! Invariant: an empty list means valid; the order of errors is upstream's.

use crate::access::Access;
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;

pub const NOT_POSITIVE: &str = "must be greater than zero";

/// One error for each message.
pub fn invalid_each(path: &Path, value: &str, msgs: Vec<String>) -> FieldErrors {
    msgs.into_iter().map(|m| FieldError::invalid(path, value, m)).collect()
}

pub fn dns_label(value: &str, path: &Path) -> FieldErrors {
    invalid_each(path, value, names::dns1123_label(value))
}

pub fn dns_subdomain(value: &str, path: &Path) -> FieldErrors {
    invalid_each(path, value, names::dns1123_subdomain(value))
}

pub fn qualified_name(value: &str, path: &Path) -> FieldErrors {
    invalid_each(path, value, names::qualified_name(value))
}

/// `parent.field` must not be empty.
pub fn required(parent: &Value, field: &str, path: &Path) -> FieldErrors {
    if parent.is_empty_at(field) { vec![FieldError::required(&child(path, field), "")] } else { Vec::new() }
}

/// All of these fields must not be empty.
pub fn all_required(parent: &Value, fields: &[&str], path: &Path) -> FieldErrors {
    fields.iter().flat_map(|f| required(parent, f, path)).collect()
}

/// The path of a dotted field below `path`.
pub fn child(path: &Path, field: &str) -> Path {
    field.split('.').fold(path.clone(), |p, f| p.child(f))
}

/// Required, and one of `allowed`, which stands in upstream's order.
pub fn one_of(parent: &Value, field: &str, allowed: &[&str], path: &Path) -> FieldErrors {
    match parent.text(field) {
        "" => vec![FieldError::required(&child(path, field), "")],
        v => supported(v, allowed, &child(path, field)),
    }
}

/// One of `allowed` where it is set at all (a pointer: an empty string is set).
pub fn one_of_if_set(parent: &Value, field: &str, allowed: &[&str], path: &Path) -> FieldErrors {
    match parent.at(field).as_str() {
        Some(v) => supported(v, allowed, &child(path, field)),
        None => Vec::new(),
    }
}

pub fn supported(value: &str, allowed: &[&str], path: &Path) -> FieldErrors {
    if allowed.contains(&value) { Vec::new() } else { vec![FieldError::not_supported(path, value, allowed)] }
}

pub fn positive(parent: &Value, field: &str, path: &Path) -> FieldErrors {
    match parent.int_or(field, 0) {
        n if n <= 0 => vec![FieldError::invalid(&child(path, field), n, NOT_POSITIVE)],
        _ => Vec::new(),
    }
}

pub fn non_negative(parent: &Value, fields: &[&str], path: &Path) -> FieldErrors {
    let check = |f: &&str| match parent.int(f) {
        Some(n) if n < 0 => vec![FieldError::invalid(&child(path, f), n, crate::metadata::NOT_NEGATIVE)],
        _ => Vec::new(),
    };
    fields.iter().flat_map(check).collect()
}

/// Inside `lo..=hi` where it is set.
pub fn in_range(parent: &Value, field: &str, lo: i64, hi: i64, path: &Path) -> FieldErrors {
    match parent.int(field) {
        Some(n) => {
            names::in_range(n, lo, hi).into_iter().map(|m| FieldError::invalid(&child(path, field), n, m)).collect()
        }
        None => Vec::new(),
    }
}

/// User and group ids.
pub fn ids(parent: &Value, fields: &[&str], path: &Path) -> FieldErrors {
    fields.iter().flat_map(|f| in_range(parent, f, 0, i64::from(i32::MAX), path)).collect()
}

/// A port by number or by name.
pub fn port_or_name(port: &Value, path: &Path) -> FieldErrors {
    match port {
        Value::String(s) => invalid_each(path, s, names::port_name(s)),
        other => {
            let n = other.as_i64().unwrap_or(0);
            names::port_num(n).into_iter().map(|m| FieldError::invalid(path, n, m)).collect()
        }
    }
}

pub fn port_number(parent: &Value, field: &str, path: &Path) -> FieldErrors {
    let n = parent.int_or(field, 0);
    names::port_num(n).into_iter().map(|m| FieldError::invalid(&child(path, field), n, m)).collect()
}

/// Fields of `parent` that are set although they must not be.
pub fn forbid_each(parent: &Value, fields: &[&str], why: &str, path: &Path) -> FieldErrors {
    let set = |f: &&&str| !matches!(parent.at(f), Value::Null | Value::Bool(false));
    fields.iter().filter(set).map(|f| FieldError::forbidden(&child(path, f), why)).collect()
}

/// A path without `..` elements.
pub fn no_backsteps(value: &str, path: &Path) -> FieldErrors {
    if value.split('/').any(|p| p == "..") {
        return vec![FieldError::invalid(path, value, "must not contain '..'")];
    }
    Vec::new()
}

/// A relative path that stays below where it starts.
pub fn descending_path(value: &str, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if value.starts_with('/') {
        errs.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    errs.extend(no_backsteps(value, path));
    errs
}

/// A descending path that does not take the names that atomic writers use.
pub fn non_reserved_path(value: &str, path: &Path) -> FieldErrors {
    let mut errs = descending_path(value, path);
    if value.starts_with("..") && !value.starts_with("../") {
        errs.push(FieldError::invalid(path, value, "must not start with '..'"));
    }
    errs
}

/// An int or a percentage, neither negative.
pub fn int_or_percent(v: &Value, path: &Path) -> FieldErrors {
    match v {
        Value::String(s) => {
            let msgs = names::percent(s);
            msgs.into_iter().map(|m| FieldError::invalid(path, s.as_str(), m)).collect()
        }
        Value::Number(n) => match n.as_i64() {
            Some(n) if n < 0 => vec![FieldError::invalid(path, n, crate::metadata::NOT_NEGATIVE)],
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// The number in `25%`.
pub fn percent_value(v: &Value) -> Option<i64> {
    v.as_str()?.strip_suffix('%')?.parse().ok()
}

pub fn at_most_100_percent(v: &Value, path: &Path) -> FieldErrors {
    match percent_value(v) {
        Some(n) if n > 100 => vec![FieldError::invalid(path, v.clone(), "must not be greater than 100%")],
        _ => Vec::new(),
    }
}

/// The addresses of a dual-stack pair: at most two, of different families.
pub fn at_most_one_of_each_family(ips: &[&str]) -> bool {
    match ips {
        [] | [_] => true,
        [a, b] => a.contains(':') != b.contains(':'),
        _ => false,
    }
}
