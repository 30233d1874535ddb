//! Values as Go prints them, where upstream's messages show them.

use isopod_api::float;
use serde_json::Value;
use std::fmt::Write;

/// Go's `%v`.
pub fn go_text(value: &Value) -> String {
    let mut out = String::new();
    put(&mut out, value);
    out
}

fn put(out: &mut String, value: &Value) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                put(out, item);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push_str("map[");
            for (i, (key, value)) in map.iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                out.push_str(key);
                out.push(':');
                put(out, value);
            }
            out.push(']');
        }
        Value::String(s) => out.push_str(s),
        Value::Null => out.push_str("<nil>"),
        Value::Number(n) if n.is_f64() => out.push_str(&float::go_text(n.as_f64().unwrap_or_default())),
        // Writing into a string does not fail.
        scalar => drop(write!(out, "{scalar}")),
    }
}
