//! JSON merge patch (RFC 7386) as `evanphx/json-patch` v4 applies it: nulls are also dropped from objects inside of new
//! arrays.

use serde_json::Value;

/// Merges `patch` into a copy of `original`. A patch that is no object replaces it.
pub fn merge_patch(original: &Value, patch: &Value) -> Value {
    let mut out = original.clone();
    merge(&mut out, patch);
    out
}

fn merge(current: &mut Value, patch: &Value) {
    match (current, patch) {
        (Value::Object(doc), Value::Object(patch)) => {
            for (key, value) in patch {
                match doc.get_mut(key) {
                    _ if value.is_null() => drop(doc.remove(key)),
                    Some(current) if !current.is_null() => merge(current, value),
                    _ => drop(doc.insert(key.clone(), without_nulls(value))),
                }
            }
        }
        (current @ Value::Object(_), patch) => *current = patch.clone(),
        (current, patch) => *current = without_nulls(patch),
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The table of RFC 7386, appendix A, as far as the original is an object.
    #[test]
    fn rfc_7386() {
        for (original, patch, want) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
            (json!({"a":"foo"}), json!(["c"]), json!(["c"])),
            (json!({}), json!({"a":[null, {"b": null}]}), json!({"a":[null, {}]})),
        ] {
            assert_eq!(merge_patch(&original, &patch), want, "{original} + {patch}");
        }
    }
}
