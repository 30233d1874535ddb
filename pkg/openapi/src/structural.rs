//! Schemas of custom resources as documents show them: what extensions stand for is spelled out, and v2 is spared what it cannot
//! say (`ToStructuralOpenAPIV2` upstream).

use serde_json::{Map, Value, json};

/// The schemas of the parts of a value.
pub fn inner(schema: &mut Map<String, Value>) -> Vec<&mut Map<String, Value>> {
    let mut all = Vec::new();
    for (key, value) in schema {
        match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                all.extend(properties.values_mut().filter_map(Value::as_object_mut))
            }
            ("items" | "additionalProperties", Value::Object(one)) => all.push(one),
            _ => {}
        }
    }
    all
}

/// A number or a text: said by alternatives too, for those who do not know the extension.
pub fn unfold(schema: &mut Map<String, Value>) {
    if schema.get("x-kubernetes-int-or-string") != Some(&json!(true)) {
        return;
    }
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    if schema.get("anyOf") == Some(&either) || schema.get("allOf").is_some_and(|all| all[0]["anyOf"] == either) {
        return;
    }
    if !schema.contains_key("anyOf") {
        schema.insert("anyOf".to_owned(), either);
    } else if let Some(all) = schema.entry("allOf").or_insert_with(|| json!([])).as_array_mut() {
        all.insert(0, json!({"anyOf": either}));
    }
}

/// Adds fields to those that are required.
pub fn require(schema: &mut Map<String, Value>, names: &[&str]) {
    let Some(required) = schema.entry("required").or_insert_with(|| json!([])).as_array_mut() else { return };
    for name in names {
        if !required.iter().any(|r| r == name) {
            required.push((*name).into());
        }
    }
}

/// Takes out what v2 cannot say, or what kubectl would misread: alternatives, and all structure of what may be null or may have
/// more fields than are named.
pub fn swagger(schema: &mut Map<String, Value>) {
    let is = |s: &Map<String, Value>, key: &str| s.get(key) == Some(&json!(true));
    ["allOf", "anyOf", "oneOf", "not"].iter().for_each(|k| drop(schema.remove(*k)));
    let nullable: Vec<String> = match schema.get("properties").and_then(Value::as_object) {
        Some(all) => all.iter().filter(|(_, p)| p["nullable"] == true).map(|(name, _)| name.clone()).collect(),
        None => Vec::new(),
    };
    if schema.get("additionalProperties").is_some_and(|p| p["nullable"] == true) {
        schema.remove("required");
    } else if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|r| !nullable.iter().any(|n| r == n));
    }
    if schema.get("required").is_some_and(|r| r.as_array().is_some_and(Vec::is_empty)) {
        schema.remove("required");
    }
    let open = is(schema, "x-kubernetes-preserve-unknown-fields");
    if is(schema, "nullable") {
        ["type", "nullable", "items", "properties"].iter().for_each(|k| drop(schema.remove(*k)));
    }
    if open {
        ["items", "properties"].iter().for_each(|k| drop(schema.remove(*k)));
    }
    let untyped = match schema.get("type").and_then(Value::as_str) {
        Some("array") => !schema.contains_key("items"),
        Some("object") => open,
        _ => false,
    };
    if untyped {
        schema.remove("type");
    }
}
