//! What of an expression is known before it is evaluated, as cel-go's optimizer works it out: lists and maps of constants, their
//! conversions, and whether something is in an empty list. It costs nothing to evaluate, here as there.

use super::ast::{Entry, Expression, Operator};
use super::functions;
use super::value::{Key, Val};
use std::collections::BTreeMap;
use std::sync::Arc;

const CONVERSIONS: [&str; 10] =
    ["int", "uint", "double", "string", "bytes", "bool", "timestamp", "duration", "dyn", "type"];

/// The same expression, with values where it is constant.
pub fn folded(e: Expression) -> Expression {
    let e = below(e);
    match (value(&e), &e) {
        (
            Some(value),
            Expression::List { at, .. }
            | Expression::Map { at, .. }
            | Expression::Call { at, .. }
            | Expression::Operator { at, .. }
            | Expression::Literal { at, .. },
        ) => Expression::Literal { value, at: *at },
        _ => e,
    }
}

/// With constant parts.
fn below(e: Expression) -> Expression {
    let all = |parts: Vec<Expression>| parts.into_iter().map(folded).collect();
    let boxed = |part: Box<Expression>| Box::new(folded(*part));
    match e {
        Expression::Group(inner) => match folded(*inner) {
            literal @ Expression::Literal { .. } => literal,
            inner => Expression::Group(Box::new(inner)),
        },
        Expression::Field { of, name, optional, quoted, at, name_at } => {
            Expression::Field { of: boxed(of), name, optional, quoted, at, name_at }
        }
        Expression::Index { of, index, optional, at } => {
            Expression::Index { of: boxed(of), index: boxed(index), optional, at }
        }
        Expression::Call { on, name, arguments, at } => {
            Expression::Call { on: on.map(boxed), name, arguments: all(arguments), at }
        }
        Expression::Operator { operator, operands, at } => {
            Expression::Operator { operator, operands: all(operands), at }
        }
        Expression::Conditional { parts, at } => Expression::Conditional { parts: Box::new(parts.map(folded)), at },
        Expression::List { items, at } => {
            Expression::List { items: items.into_iter().map(|(optional, e)| (optional, folded(e))).collect(), at }
        }
        Expression::Map { entries, at } => {
            let entry = |e: Entry<Expression>| Entry { key: folded(e.key), value: folded(e.value), ..e };
            Expression::Map { entries: entries.into_iter().map(entry).collect(), at }
        }
        Expression::Message { of, fields, at } => {
            let field = |f: Entry<String>| Entry { value: folded(f.value), ..f };
            Expression::Message { of, fields: fields.into_iter().map(field).collect(), at }
        }
        simple @ (Expression::Literal { .. } | Expression::Name { .. }) => simple,
    }
}

fn literal(e: &Expression) -> Option<&Val> {
    match e {
        Expression::Literal { value, .. } => Some(value),
        _ => None,
    }
}

/// What it comes to, if that needs nothing but literals. What fails does so when it is evaluated.
fn value(e: &Expression) -> Option<Val> {
    match e {
        Expression::List { items, .. } => {
            let items = items.iter().map(|(optional, e)| literal(e).filter(|_| !optional).cloned());
            Some(Val::list(items.collect::<Option<_>>()?))
        }
        Expression::Map { entries, .. } => {
            let mut map = BTreeMap::new();
            for e in entries {
                let value = literal(&e.value).filter(|_| !e.optional)?.clone();
                if map.insert(Key::of(literal(&e.key)?)?, value).is_some() {
                    return None;
                }
            }
            Some(Val::Map(Arc::new(map)))
        }
        Expression::Call { on: None, name, arguments, .. } => {
            let name = name.trim_start_matches('.');
            let [of] = &arguments[..] else { return None };
            let of = literal(of).filter(|_| CONVERSIONS.contains(&name))?;
            functions::call(name, std::slice::from_ref(of))?.ok()
        }
        Expression::Operator { operator: Operator::In, operands, .. } => match operands.last().and_then(literal)? {
            Val::List(list) if list.is_empty() => Some(Val::Bool(false)),
            _ => None,
        },
        _ => None,
    }
}
