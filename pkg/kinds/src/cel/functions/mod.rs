//! What expressions can call: CEL's standard functions, its extensions for strings, lists, sets, numbers, encodings and
//! optionals, and Kubernetes' own library (`apiserver/pkg/cel/library`).

mod kubernetes;
mod lists;
mod numbers;
mod operators;
mod patterns;
mod text;
mod time;
mod well_known;

use super::eval::Result;
use super::value::Val;
use base64::Engine;
pub(super) use lists::orderly;
pub(super) use operators::operate;
pub(super) use patterns::is_regex;
pub(super) use well_known::well_known;

/// A function's result. `None`: it is not one of these, or not for such arguments.
pub(super) type Found = Option<Result>;

/// A function that is called on nothing.
pub(super) fn call(name: &str, arguments: &[Val]) -> Found {
    optional(name, arguments)
        .or_else(|| numbers::call(name, arguments))
        .or_else(|| text::call(name, arguments))
        .or_else(|| time::call(name, arguments))
        .or_else(|| lists::call(name, arguments))
        .or_else(|| kubernetes::call(name, arguments))
}

/// A function that is called on a value.
pub(super) fn method(name: &str, target: &Val, arguments: &[Val]) -> Found {
    if name == "size" && arguments.is_empty() {
        return call("size", std::slice::from_ref(target));
    }
    match target {
        Val::Text(t) => text::method(name, t, arguments),
        Val::Timestamp(_) | Val::Duration(_) => time::method(name, target, arguments),
        Val::List(items) => lists::method(name, items, arguments),
        Val::Optional(inner) => optional_method(name, inner.as_deref(), arguments),
        _ => kubernetes::method(name, target, arguments),
    }
}

fn optional(name: &str, arguments: &[Val]) -> Found {
    match (name, arguments) {
        ("optional.of", [value]) => Some(Ok(Val::some(value.clone()))),
        ("optional.none", []) => Some(Ok(Val::Optional(None))),
        ("optional.ofNonZeroValue", [value]) => {
            let zero = match value {
                Val::Null | Val::Bool(false) | Val::Int(0) | Val::Uint(0) => true,
                Val::Double(d) => *d == 0.0,
                Val::Text(t) => t.is_empty(),
                Val::Bytes(b) => b.is_empty(),
                Val::List(l) => l.is_empty(),
                Val::Map(m) => m.is_empty(),
                _ => false,
            };
            Some(Ok(if zero { Val::Optional(None) } else { Val::some(value.clone()) }))
        }
        ("dyn", [value]) => Some(Ok(value.clone())),
        ("type", [value]) => Some(Ok(Val::Type(value.type_name().into()))),
        ("base64.encode", [Val::Bytes(b)]) => Some(Ok(Val::text(base64(b)))),
        ("base64.decode", [Val::Text(t)]) => {
            // With and without padding.
            let decoded = base64::engine::general_purpose::STANDARD_NO_PAD.decode(t.trim_end_matches('='));
            Some(decoded.map(|b| Val::Bytes(b.into())).map_err(|_| "illegal base64 data".into()))
        }
        _ => None,
    }
}

fn optional_method(name: &str, inner: Option<&Val>, arguments: &[Val]) -> Found {
    match (name, arguments) {
        ("hasValue", []) => Some(Ok(Val::Bool(inner.is_some()))),
        ("value", []) => Some(inner.cloned().ok_or_else(|| "optional.none() dereference".into())),
        ("orValue", [other]) => Some(Ok(inner.unwrap_or(other).clone())),
        ("or", [other]) => Some(Ok(inner.map_or_else(|| other.clone(), |v| Val::some(v.clone())))),
        _ => None,
    }
}

pub fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// As `string()` and errors show it.
pub fn display(value: &Val) -> String {
    match value {
        Val::Null => "null".into(),
        Val::Bool(b) => b.to_string(),
        Val::Int(i) => i.to_string(),
        Val::Uint(u) => u.to_string(),
        Val::Double(d) => numbers::display(*d),
        Val::Text(t) => t.to_string(),
        Val::Bytes(b) => String::from_utf8_lossy(b).into_owned(),
        Val::Timestamp(t) => t.to_string(),
        Val::Duration(d) => time::display(d),
        Val::Type(t) => t.to_string(),
        other => other.to_json().map_or_else(|_| other.type_name().to_owned(), |j| j.to_string()),
    }
}

/// How much of a value a function has to look at.
fn length(value: &Val) -> u64 {
    match value {
        Val::Text(t) => t.len() as u64,
        Val::Bytes(b) => b.len() as u64,
        Val::List(l) => l.len() as u64,
        Val::Unordered(l) => l.items.len() as u64,
        Val::Map(m) => m.len() as u64,
        Val::Message(_, fields) => fields.len() as u64,
        _ => 1,
    }
}

/// A tenth of what is looked at, as cel-go counts texts.
pub(super) fn walked(value: &Val) -> u64 {
    let looked_at = match value {
        Val::List(_) | Val::Unordered(_) | Val::Map(_) | Val::Message(..) | Val::Optional(Some(_)) => weight(value),
        scalar => length(scalar),
    };
    looked_at.div_ceil(10)
}

/// All values inside of a value. Those that it holds twice count twice: a few small lists of lists of the same list can be
/// more than anybody could look at, and so much is as good as any more.
fn weight(value: &Val) -> u64 {
    const MOST: u64 = 100_000_000;
    fn add(value: &Val, sum: &mut u64) {
        *sum += 1;
        let mut all = |items: &mut dyn Iterator<Item = &Val>| {
            for item in items {
                if *sum >= MOST {
                    return;
                }
                add(item, sum);
            }
        };
        match value {
            Val::List(items) => all(&mut items.iter()),
            Val::Unordered(list) => all(&mut list.items.iter()),
            Val::Map(map) => all(&mut map.values()),
            Val::Message(_, fields) => all(&mut fields.values()),
            Val::Optional(Some(inner)) => all(&mut std::iter::once(&**inner)),
            scalar => *sum += length(scalar) / 100,
        }
    }
    let mut sum = 0;
    add(value, &mut sum);
    sum
}

/// What a call costs, beyond its arguments.
pub(super) fn cost(name: &str, target: Option<&Val>, arguments: &[Val]) -> u64 {
    let all = target.into_iter().chain(arguments);
    match name {
        "matches" | "find" | "findAll" => {
            let pattern = arguments.last().map_or(1, length);
            target.or(arguments.first()).map_or(1, |t| walked(t) + 1) * pattern.div_ceil(4).max(1)
        }
        "contains" if arguments.len() == 1 && target.is_some() => {
            target.map_or(1, walked) * arguments.first().map_or(1, walked).max(1)
        }
        "sets.contains" | "sets.intersects" | "sets.equivalent" => arguments.iter().map(length).product::<u64>().max(1),
        "distinct" => target.map_or(1, |t| length(t).saturating_mul(length(t))).max(1),
        "sum" | "min" | "max" | "isSorted" | "indexOf" | "lastIndexOf" | "sort" | "reverse" | "flatten" => {
            1 + target.map_or(0, length)
        }
        "lists.range" => match arguments {
            [Val::Int(n)] => u64::try_from(*n).unwrap_or(0).max(1),
            _ => 1,
        },
        "size" | "type" | "dyn" => 1,
        _ => 1 + all.map(walked).sum::<u64>(),
    }
}

/// What an operator costs.
pub(super) fn operator_cost(operator: super::ast::Operator, operands: &[Val]) -> u64 {
    use super::ast::Operator;
    match (operator, operands) {
        (Operator::In, [_, Val::List(items)]) => 1 + items.len() as u64,
        (Operator::Equal | Operator::NotEqual | Operator::Less | Operator::Greater, [a, b]) => {
            walked(a).min(walked(b)).max(1)
        }
        (Operator::Add, [a @ (Val::Text(_) | Val::Bytes(_)), b]) => walked(a) + walked(b),
        // Upstream joins lists when their elements are asked for; here they are copied.
        (Operator::Add, [a @ (Val::List(_) | Val::Unordered(_)), b]) => (length(a) + length(b)).div_ceil(10).max(1),
        _ => 1,
    }
}
