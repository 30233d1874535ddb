//! Operators: arithmetic that overflows into an error, comparison, membership, concatenation.

use crate::cel::ast::Operator;
use crate::cel::eval::Result;
use crate::cel::value::{Key, Val};
use std::cmp::Ordering;

fn no_overload() -> Result {
    Err("no such overload".into())
}

pub(in crate::cel) fn operate(operator: Operator, operands: &[Val]) -> Result {
    match operands {
        [a] => one(operator, a),
        [a, b] => two(operator, a, b),
        _ => no_overload(),
    }
}

fn one(operator: Operator, a: &Val) -> Result {
    match (operator, a) {
        (Operator::Not, Val::Bool(b)) => Ok(Val::Bool(!b)),
        (Operator::Negate, Val::Int(i)) => i.checked_neg().map(Val::Int).ok_or_else(|| "integer overflow".into()),
        (Operator::Negate, Val::Double(d)) => Ok(Val::Double(-d)),
        (Operator::Negate, Val::Duration(d)) => {
            d.checked_neg().map(Val::Duration).ok_or_else(|| "duration overflow".into())
        }
        _ => no_overload(),
    }
}

fn two(operator: Operator, a: &Val, b: &Val) -> Result {
    if let (Val::Unordered(list), Operator::Equal | Operator::NotEqual | Operator::Add) = (a, operator) {
        list.comparable()?;
    }
    match operator {
        Operator::Equal => Ok(Val::Bool(a.equals(b))),
        Operator::NotEqual => Ok(Val::Bool(!a.equals(b))),
        Operator::Less => compared("_<_", a, b, Ordering::is_lt),
        Operator::LessOrEqual => compared("_<=_", a, b, Ordering::is_le),
        Operator::Greater => compared("_>_", a, b, Ordering::is_gt),
        Operator::GreaterOrEqual => compared("_>=_", a, b, Ordering::is_ge),
        Operator::In => member(a, b),
        Operator::Add => add(a, b),
        _ => arithmetic(operator, a, b),
    }
}

fn compared(operator: &str, a: &Val, b: &Val, is: fn(Ordering) -> bool) -> Result {
    match a.order(b) {
        // What has no order at all is told with the operator.
        None if matches!(a, Val::Null | Val::List(_) | Val::Map(_) | Val::Type(_) | Val::Optional(_)) => {
            Err(format!("no such overload: {operator}"))
        }
        Some(order) => Ok(Val::Bool(is(order))),
        // Nothing is before or after what is not a number.
        None if a.number().is_some() && b.number().is_some() => Ok(Val::Bool(false)),
        None => no_overload(),
    }
}

fn member(a: &Val, b: &Val) -> Result {
    match b {
        Val::List(items) => Ok(Val::Bool(items.iter().any(|i| i.equals(a)))),
        Val::Map(map) => Ok(Val::Bool(Key::of(a).is_some_and(|k| map.contains_key(&k)))),
        _ => no_overload(),
    }
}

fn add(a: &Val, b: &Val) -> Result {
    match (a, b) {
        (Val::Text(a), Val::Text(b)) => Ok(Val::text(format!("{a}{b}"))),
        (Val::Bytes(a), Val::Bytes(b)) => Ok(Val::Bytes([&a[..], &b[..]].concat().into())),
        (Val::Unordered(a), Val::List(b)) => Ok(a.join(b)),
        (Val::Unordered(a), Val::Unordered(b)) => Ok(a.join(&b.items)),
        (a @ Val::List(_), Val::Unordered(b)) => add(a, &Val::List(b.items.clone())),
        (Val::List(a), Val::List(b)) => Ok(Val::List(a.iter().chain(b.iter()).cloned().collect::<Vec<_>>().into())),
        (Val::Timestamp(t), Val::Duration(d)) | (Val::Duration(d), Val::Timestamp(t)) => {
            t.checked_add(*d).map(Val::Timestamp).map_err(|_| "timestamp overflow".into())
        }
        (Val::Duration(a), Val::Duration(b)) => {
            a.checked_add(*b).map(Val::Duration).ok_or_else(|| "duration overflow".into())
        }
        _ => arithmetic(Operator::Add, a, b),
    }
}

fn arithmetic(operator: Operator, a: &Val, b: &Val) -> Result {
    match (a, b) {
        (Val::Int(a), Val::Int(b)) => integers(operator, *a, *b),
        (Val::Uint(a), Val::Uint(b)) => unsigned(operator, *a, *b),
        (Val::Double(a), Val::Double(b)) => match operator {
            Operator::Add => Ok(Val::Double(a + b)),
            Operator::Subtract => Ok(Val::Double(a - b)),
            Operator::Multiply => Ok(Val::Double(a * b)),
            Operator::Divide => Ok(Val::Double(a / b)),
            _ => no_overload(),
        },
        (Val::Timestamp(a), Val::Timestamp(b)) if operator == Operator::Subtract => {
            Ok(Val::Duration(a.duration_since(*b)))
        }
        (Val::Timestamp(t), Val::Duration(d)) if operator == Operator::Subtract => {
            t.checked_sub(*d).map(Val::Timestamp).map_err(|_| "timestamp overflow".into())
        }
        (Val::Duration(a), Val::Duration(b)) if operator == Operator::Subtract => {
            a.checked_sub(*b).map(Val::Duration).ok_or_else(|| "duration overflow".into())
        }
        _ => no_overload(),
    }
}

fn integers(operator: Operator, a: i64, b: i64) -> Result {
    let made = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide if b == 0 => return Err("division by zero".into()),
        Operator::Modulo if b == 0 => return Err("modulus by zero".into()),
        Operator::Divide => a.checked_div(b),
        Operator::Modulo => a.checked_rem(b),
        _ => return no_overload(),
    };
    made.map(Val::Int).ok_or_else(|| "integer overflow".into())
}

fn unsigned(operator: Operator, a: u64, b: u64) -> Result {
    let made = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide if b == 0 => return Err("division by zero".into()),
        Operator::Modulo if b == 0 => return Err("modulus by zero".into()),
        Operator::Divide => a.checked_div(b),
        Operator::Modulo => a.checked_rem(b),
        _ => return no_overload(),
    };
    made.map(Val::Uint).ok_or_else(|| "unsigned integer overflow".into())
}
