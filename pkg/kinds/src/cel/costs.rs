//! What evaluating costs, as cel-go's tracker counts it (`interpreter/runtimecost.go`, `ext/lists.go`, `ext/sets.go`) with what
//! Kubernetes adds for its functions (`apiserver/pkg/cel/library/cost.go`).
//!
//! Invariant: these are upstream's numbers, whatever the work is here: `check/golden.rs` compares them.

use super::ast::{Expression, Operator};
use super::value::Val;
use std::net::IpAddr;

pub const LIST: u64 = 10;
pub const MAP: u64 = 30;
pub const MESSAGE: u64 = 40;
/// Another element at the end of what a macro makes: the list so far, one of the element alone, and both joined.
pub const APPENDED: u64 = 1 + LIST + 1;
/// Two authorization checks are as much as an expression may make.
const CHECK: u64 = 350_000;

/// Looking at what a fold has gathered.
pub const GATHERED: u64 = 1;

/// Whether a fold that decides goes on, before each element; `exists` asks whether it has not found one yet.
pub fn goes_on(exists: bool) -> u64 {
    if exists { 3 } else { 2 }
}

/// A variable, or what is reached from one (or from another value) step by step.
pub fn is_attribute(e: &Expression) -> bool {
    match e {
        Expression::Name { .. } | Expression::Field { .. } | Expression::Index { .. } => true,
        Expression::Conditional { .. } => true,
        Expression::Group(inner) => is_attribute(inner),
        _ => false,
    }
}

/// One side of it is an attribute's end, which costs nothing itself.
pub fn is_conditional(e: &Expression) -> bool {
    match e {
        Expression::Conditional { .. } => true,
        Expression::Group(inner) => is_conditional(inner),
        _ => false,
    }
}

/// Whether looking for something in it is looking into a set that was made before.
pub fn is_set(e: Option<&Expression>) -> bool {
    let is_scalar = |v: &Val| matches!(v, Val::Bool(_) | Val::Int(_) | Val::Uint(_) | Val::Double(_) | Val::Text(_));
    matches!(e, Some(Expression::Literal { value: Val::List(items), .. }) if items.iter().all(is_scalar))
}

/// Elements, characters or bytes; 1 of what has none.
fn size(value: &Val) -> u64 {
    match value {
        Val::Text(t) => t.chars().count() as u64,
        Val::Bytes(b) => b.len() as u64,
        Val::List(l) => l.len() as u64,
        Val::Unordered(l) => l.items.len() as u64,
        Val::Map(m) => m.len() as u64,
        Val::Message(_, fields) => fields.len() as u64,
        Val::Optional(Some(inner)) => size(inner),
        Val::Ip(IpAddr::V4(_)) => 4,
        Val::Ip(IpAddr::V6(_)) => 16,
        Val::Cidr(_, bits) => u64::from(*bits).div_ceil(8),
        _ => 1,
    }
}

/// Floating-point numbers, as upstream's: what comes out a little above a whole number counts as the next one.
fn part(size: u64, factor: f64) -> u64 {
    (size as f64 * factor).ceil() as u64
}

/// Looking at a text or the like once.
fn read(value: &Val) -> u64 {
    part(size(value), 0.1)
}

fn read_twice(value: &Val) -> u64 {
    (size(value) as f64 * 2.0 * 0.1).ceil() as u64
}

fn matched(text: &Val, pattern: &Val) -> u64 {
    let text = ((1.0 + size(text) as f64) * 0.1).ceil() as u64;
    text.saturating_mul(part(size(pattern), 0.25))
}

/// All that is in a value.
fn traversed(value: &Val) -> u64 {
    match value {
        Val::Text(t) => (t.len() as f64 * 0.1) as u64,
        Val::Bytes(b) => (b.len() as f64 * 0.1) as u64,
        Val::List(items) => items.iter().map(traversed).fold(0, u64::saturating_add),
        Val::Unordered(list) => list.items.iter().map(traversed).fold(0, u64::saturating_add),
        Val::Map(map) => {
            let entries = map.iter().map(|(k, v)| traversed(&k.value()).saturating_add(traversed(v)));
            entries.fold(0, u64::saturating_add)
        }
        _ => 1,
    }
}

/// A call that makes a list.
fn allocated(factor: f64, size: u64) -> u64 {
    ((size as f64 * factor) as u64).saturating_add(1 + LIST)
}

/// Each of so many elements compared with each.
pub fn comparing(count: usize, first: Option<&Val>) -> u64 {
    let factor = if matches!(first, Some(Val::Text(_) | Val::Bytes(_))) { 2.1 } else { 2.0 };
    let count = count as u64;
    allocated(factor, count.saturating_mul(count))
}

/// `open`: the types of the operands leave open which operation it is.
pub fn operator(operator: Operator, operands: &[Val], open: bool) -> u64 {
    let shorter = |a: &Val, b: &Val| part(size(a).min(size(b)), 0.1);
    match (operator, operands) {
        _ if open => 1,
        (Operator::In, [_, list @ Val::List(_)]) => size(list),
        (
            Operator::Equal,
            [
                Val::Quantity(_)
                | Val::Ip(_)
                | Val::Cidr(..)
                | Val::Format(_)
                | Val::Url(_)
                | Val::Version(_)
                | Val::Foreign(_),
                _,
            ],
        ) => 1,
        (Operator::Equal | Operator::NotEqual, [a, b]) => shorter(a, b),
        (
            Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual,
            [a @ (Val::Text(_) | Val::Bytes(_)), b],
        ) => shorter(a, b),
        (Operator::Add, [a @ (Val::Text(_) | Val::Bytes(_)), b]) => part(size(a).saturating_add(size(b)), 0.1),
        _ => 1,
    }
}

/// What a call costs, as far as that does not depend on its result. `all`: its target, if it has one, and its arguments. `open`:
/// their types leave open which of the functions of this name it is; Kubernetes' own cost the same whichever they are.
pub fn before(name: &str, all: &[&Val], open: bool) -> u64 {
    match (name, all) {
        ("check", [Val::Foreign(_), ..]) => CHECK,
        ("fieldSelector" | "labelSelector", [Val::Foreign(_), text, ..]) => {
            let requirements = part(size(text), 0.5);
            LIST + read(text) + part(requirements, (LIST + MESSAGE) as f64)
        }
        ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes", [of, ..]) => traversed(of),
        ("url" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "jsonpatch.escapeKey", [of, ..]) => read(of),
        ("replace" | "split" | "ip.isCanonical", [of, ..]) => read_twice(of),
        ("find" | "findAll", [text, pattern, ..]) => matched(text, pattern),
        ("ip", [Val::Cidr(..), ..]) => 1,
        ("ip" | "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver", [of, ..]) => read(of),
        ("containsIP" | "containsCIDR", [of, other]) => within(name, of, other, open),
        ("validate", [Val::Format(format), text]) => {
            let text = ((1.0 + size(text) as f64) * 0.1).ceil() as u64;
            text.saturating_mul(format_pattern(format))
        }
        ("join", [_] | [_, _]) => 0,
        _ if open => 1,
        ("startsWith" | "endsWith", [_, part]) => read(part),
        ("bytes", [Val::Text(_)]) | ("string", [Val::Bytes(_)]) | ("strings.quote", _) | ("format", [_, _]) => {
            all.first().map_or(1, |of| read(of))
        }
        ("matches", [text, pattern]) => matched(text, pattern),
        ("contains", [text @ Val::Text(_), part]) => read(text).saturating_mul(read(part)),
        ("flatten", [list]) => allocated(1.0, size(list)),
        ("flatten", [list, Val::Int(depth)]) => allocated(if *depth < 0 { 1.0 } else { *depth as f64 }, size(list)),
        ("distinct" | "sort", [Val::List(items)]) => comparing(items.len(), items.first()),
        ("sets.contains" | "sets.intersects", [a, b]) => size(a).saturating_mul(size(b)).saturating_add(1),
        ("sets.equivalent", [a, b]) => size(a).saturating_mul(size(b)).saturating_mul(2).saturating_add(1),
        // By their results.
        ("slice" | "lists.range", _) | ("reverse", [Val::List(_)]) => 0,
        _ => 1,
    }
}

/// What is added when the result is known; `None`: it failed.
pub fn after(name: &str, all: &[&Val], result: Option<&Val>, open: bool) -> u64 {
    let made = result.map_or(1, size);
    match (name, all) {
        ("join", [_] | [_, _]) => (made as f64 * 2.0 * 0.1).ceil() as u64,
        _ if open => 0,
        ("slice" | "lists.range", _) | ("reverse", [Val::List(_)]) => allocated(1.0, made),
        _ => 0,
    }
}

/// Whether an address, or a range of them, lies in a range.
fn within(name: &str, range: &Val, other: &Val, open: bool) -> u64 {
    let bits = size(range);
    let compared = part(bits.saturating_mul(2), 0.1);
    let masked = if name == "containsCIDR" { part(bits, 0.1) + 1 } else { 0 };
    let parsed = if matches!(other, Val::Text(_)) && !open { read(other) } else { 0 };
    compared + masked + parsed
}

/// What matching a character costs with the pattern that upstream takes for a format's.
fn format_pattern(format: &str) -> u64 {
    match format {
        "dns1123Label" | "dns1035Label" | "dns1123LabelPrefix" | "dns1035LabelPrefix" => 8,
        "dns1123Subdomain" | "dns1123SubdomainPrefix" | "qualifiedName" => 15,
        "labelValue" => 10,
        "byte" => 21,
        "uri" => 276,
        _ => 18,
    }
}
