//! Lists and sets: Kubernetes' list functions, cel-go's `ext/lists.go` and `ext/sets.go`.

use super::Found;
use crate::cel::ast::Operator;
use crate::cel::eval::Result;
use crate::cel::value::Val;
use std::cmp::Ordering;
use std::sync::Arc;

/// cel-go's limit.
const MAX_RANGE: i64 = 1_000_000;

pub fn call(name: &str, arguments: &[Val]) -> Found {
    match (name, arguments) {
        ("lists.range", [Val::Int(n)]) if *n < 0 => {
            Some(Err(format!("lists.range: size must be non-negative, got {n}")))
        }
        ("lists.range", [Val::Int(n)]) if *n > MAX_RANGE => {
            Some(Err(format!("lists.range: size {n} exceeds maximum allowed ({MAX_RANGE})")))
        }
        ("lists.range", [Val::Int(n)]) => Some(Ok(Val::list((0..*n).map(Val::Int).collect()))),
        ("optional.unwrap", [Val::List(items)]) => Some(unwrap(items)),
        ("sets.contains", [Val::List(a), Val::List(b)]) => Some(Ok(Val::Bool(contains(a, b)))),
        ("sets.equivalent", [Val::List(a), Val::List(b)]) => Some(Ok(Val::Bool(contains(a, b) && contains(b, a)))),
        ("sets.intersects", [Val::List(a), Val::List(b)]) => {
            Some(Ok(Val::Bool(b.iter().any(|x| a.iter().any(|y| y.equals(x))))))
        }
        _ => None,
    }
}

/// Whether `a` holds all of `b`.
fn contains(a: &[Val], b: &[Val]) -> bool {
    b.iter().all(|x| a.iter().any(|y| y.equals(x)))
}

pub fn method(name: &str, items: &Arc<[Val]>, arguments: &[Val]) -> Found {
    Some(match (name, arguments) {
        ("isSorted", []) => {
            let orders: Option<Vec<Ordering>> = items.windows(2).map(|w| w[0].order(&w[1])).collect();
            orders.map(|o| Val::Bool(o.iter().all(|o| o.is_le()))).ok_or_else(|| "no such overload".into())
        }
        ("sum", []) => sum(items),
        ("min", []) => extreme("min", items, Ordering::Less),
        ("max", []) => extreme("max", items, Ordering::Greater),
        ("indexOf", [x]) => Ok(place(items.iter().position(|i| i.equals(x)))),
        ("lastIndexOf", [x]) => Ok(place(items.iter().rposition(|i| i.equals(x)))),
        ("includes", [x]) => Ok(Val::Bool(items.iter().any(|i| i.equals(x)))),
        ("unwrapOpt", []) => unwrap(items),
        ("join", []) => join(items, ""),
        ("join", [Val::Text(by)]) => join(items, by),
        ("reverse", []) => Ok(Val::list(items.iter().rev().cloned().collect())),
        ("distinct", []) => {
            let mut out: Vec<Val> = Vec::new();
            for item in items.iter() {
                if !out.iter().any(|o| o.equals(item)) {
                    out.push(item.clone());
                }
            }
            Ok(Val::list(out))
        }
        ("sort", []) => sort(items),
        ("slice", [Val::Int(from), Val::Int(to)]) => slice(items, *from, *to),
        ("flatten", []) => Ok(Val::list(flatten(items, 1))),
        ("flatten", [Val::Int(depth)]) if *depth < 0 => Err("level must be non-negative".into()),
        ("flatten", [Val::Int(depth)]) => Ok(Val::list(flatten(items, *depth))),
        ("first", []) => Ok(Val::Optional(items.first().cloned().map(Arc::new))),
        ("last", []) => Ok(Val::Optional(items.last().cloned().map(Arc::new))),
        _ => return None,
    })
}

/// What is inside of the optionals that have something.
fn unwrap(items: &[Val]) -> Result {
    let mut out = Vec::new();
    for item in items {
        match item {
            Val::Optional(Some(value)) => out.push((**value).clone()),
            Val::Optional(None) => {}
            _ => return Err("no such overload".into()),
        }
    }
    Ok(Val::list(out))
}

fn place(found: Option<usize>) -> Val {
    Val::Int(found.map_or(-1, |i| i as i64))
}

fn sum(items: &[Val]) -> Result {
    let mut all = items.iter();
    let Some(first) = all.next() else { return Ok(Val::Int(0)) };
    let mut total = first.clone();
    for item in all {
        total = super::operate(Operator::Add, &[total, item.clone()])?;
    }
    Ok(total)
}

fn extreme(name: &str, items: &[Val], wanted: Ordering) -> Result {
    let mut all = items.iter();
    let mut best = all.next().ok_or_else(|| format!("{name} called on empty list"))?;
    for item in all {
        match item.order(best) {
            Some(order) if order == wanted => best = item,
            Some(_) => {}
            None => return Err("no such overload".into()),
        }
    }
    Ok(best.clone())
}

fn join(items: &[Val], by: &str) -> Result {
    let texts: Option<Vec<&str>> = items
        .iter()
        .map(|i| match i {
            Val::Text(t) => Some(&**t),
            _ => None,
        })
        .collect();
    let texts = texts.ok_or("no such overload")?;
    let size = texts.iter().map(|t| t.len()).sum::<usize>().saturating_add(texts.len().saturating_mul(by.len()));
    super::text::within_limit(size)?;
    Ok(Val::text(texts.join(by)))
}

fn sort(items: &[Val]) -> Result {
    orderly(items.iter())?;
    let mut sorted = items.to_vec();
    sorted.sort_by(|a, b| a.order(b).unwrap_or(Ordering::Equal));
    Ok(Val::list(sorted))
}

/// Whether values have an order among them.
pub(in crate::cel) fn orderly<'v>(values: impl Iterator<Item = &'v Val> + Clone) -> Result<()> {
    let first = values.clone().next();
    if values.clone().any(|v| first.is_some_and(|f| f.type_name() != v.type_name())) {
        return Err("list elements must have the same type".into());
    }
    // What is no number has no place.
    let comparable = values.clone().all(|v| v.order(v).is_some());
    if comparable { Ok(()) } else { Err("list elements must be comparable".into()) }
}

fn slice(items: &[Val], from: i64, to: i64) -> Result {
    let end = items.len() as i64;
    if from < 0 || to < 0 {
        return Err(format!("cannot slice({from}, {to}), negative indexes not supported"));
    }
    if from > to {
        return Err(format!("cannot slice({from}, {to}), start index must be less than or equal to end index"));
    }
    if to > end {
        return Err(format!("cannot slice({from}, {to}), list is length {end}"));
    }
    Ok(Val::list(items[from as usize..to as usize].to_vec()))
}

fn flatten(items: &[Val], depth: i64) -> Vec<Val> {
    let mut out = Vec::new();
    for item in items {
        match item {
            Val::List(inner) if depth > 0 => out.extend(flatten(inner, depth - 1)),
            other => out.push(other.clone()),
        }
    }
    out
}
