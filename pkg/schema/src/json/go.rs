//! Values as Go prints them, where upstream's messages show them.

use serde_json::Value;

/// Go's `%v`.
pub fn go_text(value: &Value) -> String {
    let join = |parts: Vec<String>| parts.join(" ");
    match value {
        Value::Array(items) => format!("[{}]", join(items.iter().map(go_text).collect())),
        Value::Object(map) => {
            format!("map[{}]", join(map.iter().map(|(k, v)| format!("{k}:{}", go_text(v))).collect()))
        }
        Value::String(s) => s.clone(),
        Value::Null => "<nil>".into(),
        Value::Number(n) if n.is_f64() => go_float(n.as_f64().unwrap_or_default()),
        scalar => scalar.to_string(),
    }
}

/// Go's `%v` of a float: shortest digits, with an exponent from 21 places on or below four zeros.
pub fn go_float(x: f64) -> String {
    if x != 0.0 && !(1e-4..1e21).contains(&x.abs()) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, places) = exponent.strip_prefix('-').map_or(("+", exponent), |p| ("-", p));
        return format!("{digits}e{sign}{places:0>2}");
    }
    format!("{x}")
}
