//! Conversions between types, and `math` (cel-go `ext/math.go`).

use super::Found;
use crate::cel::eval::Result;
use crate::cel::value::Val;
use std::cmp::Ordering;

pub fn call(name: &str, arguments: &[Val]) -> Found {
    if let Some(name) = name.strip_prefix("math.") {
        return math(name, arguments);
    }
    let [value] = arguments else { return None };
    match name {
        "int" => to_int(value),
        "uint" => to_uint(value),
        "double" => to_double(value),
        "bool" => match value {
            Val::Bool(b) => Some(Ok(Val::Bool(*b))),
            Val::Text(t) => Some(match &**t {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Val::Bool(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Val::Bool(false)),
                _ => Err("type conversion error from 'string' to 'bool'".to_owned()),
            }),
            _ => None,
        },
        _ => None,
    }
}

/// Go's shortest form of a double.
pub fn display(d: f64) -> String {
    if d.is_nan() {
        return "NaN".into();
    }
    if d.is_infinite() {
        return if d > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let magnitude = d.abs();
    if magnitude != 0.0 && !(1e-4..1e21).contains(&magnitude) {
        // Go writes two digits of an exponent at least, and its sign.
        let text = format!("{d:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    format!("{d}")
}

fn to_int(value: &Val) -> Found {
    let range = || "integer overflow".to_owned();
    Some(match value {
        Val::Int(i) => Ok(Val::Int(*i)),
        Val::Uint(u) => i64::try_from(*u).map(Val::Int).map_err(|_| range()),
        Val::Double(d) if d.abs() < 9_223_372_036_854_775_807.0 => Ok(Val::Int(*d as i64)),
        Val::Double(_) => Err(range()),
        Val::Text(t) => t.parse().map(Val::Int).map_err(|_| "type conversion error from 'string' to 'int'".to_owned()),
        Val::Timestamp(t) => Ok(Val::Int(t.as_second())),
        Val::Duration(d) => i64::try_from(d.as_nanos()).map(Val::Int).map_err(|_| range()),
        _ => return None,
    })
}

fn to_uint(value: &Val) -> Found {
    let range = || "unsigned integer overflow".to_owned();
    Some(match value {
        Val::Uint(u) => Ok(Val::Uint(*u)),
        Val::Int(i) => u64::try_from(*i).map(Val::Uint).map_err(|_| range()),
        Val::Double(d) if *d >= 0.0 && *d < 18_446_744_073_709_551_615.0 => Ok(Val::Uint(*d as u64)),
        Val::Double(_) => Err(range()),
        Val::Text(t) => {
            t.parse().map(Val::Uint).map_err(|_| "type conversion error from 'string' to 'uint'".to_owned())
        }
        _ => return None,
    })
}

fn to_double(value: &Val) -> Found {
    Some(match value {
        Val::Int(_) | Val::Uint(_) | Val::Double(_) => Ok(Val::Double(value.number()?)),
        Val::Text(t) => {
            t.parse().map(Val::Double).map_err(|_| "type conversion error from 'string' to 'double'".to_owned())
        }
        _ => return None,
    })
}

fn math(name: &str, arguments: &[Val]) -> Found {
    match (name, arguments) {
        ("greatest" | "least", [Val::List(items)]) => extreme(name, items),
        ("greatest" | "least", [_, ..]) => extreme(name, arguments),
        ("abs", [Val::Int(i)]) => Some(i.checked_abs().map(Val::Int).ok_or_else(|| "integer overflow".into())),
        ("abs", [Val::Uint(u)]) => Some(Ok(Val::Uint(*u))),
        ("sign", [Val::Int(i)]) => Some(Ok(Val::Int(i.signum()))),
        ("sign", [Val::Uint(u)]) => Some(Ok(Val::Uint((*u).min(1)))),
        ("sqrt", [value]) => Some(Ok(Val::Double(value.number()?.sqrt()))),
        (_, [Val::Double(d)]) => float(name, *d),
        ("bitNot", [Val::Int(i)]) => Some(Ok(Val::Int(!i))),
        ("bitNot", [Val::Uint(u)]) => Some(Ok(Val::Uint(!u))),
        (_, [Val::Int(a), Val::Int(b)]) => bits(name, *a as u64, *b, |r| Val::Int(r as i64)),
        (_, [Val::Uint(a), Val::Int(b)]) if name.starts_with("bitShift") => bits(name, *a, *b, Val::Uint),
        (_, [Val::Uint(a), Val::Uint(b)]) => bits(name, *a, *b as i64, Val::Uint),
        _ => None,
    }
}

fn extreme(name: &str, items: &[Val]) -> Found {
    let mut numbers = items.iter();
    let first = numbers.next()?;
    first.number()?;
    let wanted = if name == "greatest" { Ordering::Greater } else { Ordering::Less };
    let mut best = first;
    for item in numbers {
        item.number()?;
        if item.order(best) == Some(wanted) {
            best = item;
        }
    }
    Some(Ok(best.clone()))
}

fn float(name: &str, d: f64) -> Found {
    let number = |d: f64| Some(Ok(Val::Double(d)));
    match name {
        "ceil" => number(d.ceil()),
        "floor" => number(d.floor()),
        "round" => number(d.round()),
        "trunc" => number(d.trunc()),
        "abs" => number(d.abs()),
        "sign" => number(if d == 0.0 || d.is_nan() { d } else { d.signum() }),
        "isInf" => Some(Ok(Val::Bool(d.is_infinite()))),
        "isNaN" => Some(Ok(Val::Bool(d.is_nan()))),
        "isFinite" => Some(Ok(Val::Bool(d.is_finite()))),
        _ => None,
    }
}

fn bits(name: &str, a: u64, b: i64, made: fn(u64) -> Val) -> Found {
    let shift = |by: i64, to: fn(u64, u32) -> Option<u64>| -> Result {
        let by = u32::try_from(by).map_err(|_| format!("{name}() negative offset: {by}"))?;
        Ok(made(to(a, by).unwrap_or(0)))
    };
    Some(match name {
        "bitAnd" => Ok(made(a & b as u64)),
        "bitOr" => Ok(made(a | b as u64)),
        "bitXor" => Ok(made(a ^ b as u64)),
        "bitShiftLeft" => shift(b, u64::checked_shl),
        "bitShiftRight" => shift(b, u64::checked_shr),
        _ => return None,
    })
}
