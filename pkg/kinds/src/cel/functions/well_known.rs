//! Messages of protobuf's own that stand for values of CEL: wrappers, times, and what JSON is made of.

use crate::cel::eval::Result;
use crate::cel::value::{Key, Val};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The value that a message stands for. `None`: the type is none of these.
pub fn well_known(name: &str, fields: &BTreeMap<String, Val>) -> Option<Result> {
    let of = |field: &str| fields.get(field).cloned();
    let value = |zero: Val| Some(Ok(of("value").unwrap_or(zero)));
    match name.trim_start_matches('.').strip_prefix("google.protobuf.")? {
        "BoolValue" => value(Val::Bool(false)),
        "StringValue" => value(Val::text("")),
        "BytesValue" => value(Val::Bytes(Arc::from([]))),
        "DoubleValue" => value(Val::Double(0.0)),
        "FloatValue" => Some(Ok(match of("value") {
            Some(Val::Double(d)) => Val::Double(f64::from(d as f32)),
            other => other.unwrap_or(Val::Double(0.0)),
        })),
        "Int64Value" => value(Val::Int(0)),
        "UInt64Value" => value(Val::Uint(0)),
        "Int32Value" => Some(match of("value") {
            Some(Val::Int(i)) if i32::try_from(i).is_err() => Err("integer overflow".into()),
            other => Ok(other.unwrap_or(Val::Int(0))),
        }),
        "UInt32Value" => Some(match of("value") {
            Some(Val::Uint(u)) if u32::try_from(u).is_err() => Err("unsigned integer overflow".into()),
            other => Ok(other.unwrap_or(Val::Uint(0))),
        }),
        "Timestamp" => Some(timestamp(fields)),
        "Duration" => Some(duration(fields)),
        "Struct" => Some(Ok(json(&of("fields").unwrap_or_else(|| Val::Map(Arc::default()))))),
        "ListValue" => Some(Ok(json(&of("values").unwrap_or_else(|| Val::list(Vec::new()))))),
        // One of several fields, and nothing without any.
        "Value" => Some(Ok(fields.values().next().map_or(Val::Null, json))),
        _ => None,
    }
}

fn parts(fields: &BTreeMap<String, Val>) -> (i64, i32) {
    let number = |field: &str| match fields.get(field) {
        Some(Val::Int(i)) => *i,
        _ => 0,
    };
    (number("seconds"), i32::try_from(number("nanos")).unwrap_or(i32::MAX))
}

fn timestamp(fields: &BTreeMap<String, Val>) -> Result {
    let (seconds, nanos) = parts(fields);
    jiff::Timestamp::new(seconds, nanos).map(Val::Timestamp).map_err(|_| "timestamp overflow".into())
}

fn duration(fields: &BTreeMap<String, Val>) -> Result {
    let (seconds, nanos) = parts(fields);
    let whole = jiff::SignedDuration::from_secs(seconds);
    let sum = whole.checked_add(jiff::SignedDuration::from_nanos(i64::from(nanos)));
    sum.map(Val::Duration).ok_or_else(|| "duration overflow".into())
}

/// As JSON has it: every number is a double, every key a text.
fn json(value: &Val) -> Val {
    match value {
        Val::Int(_) | Val::Uint(_) => value.number().map_or(Val::Null, Val::Double),
        Val::List(items) => Val::list(items.iter().map(json).collect()),
        Val::Map(map) => {
            let entry = |(key, value): (&Key, &Val)| (key.clone(), json(value));
            Val::Map(Arc::new(map.iter().map(entry).collect()))
        }
        other => other.clone(),
    }
}
