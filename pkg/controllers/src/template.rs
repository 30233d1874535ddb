//! Pod templates: when two are the same, and the hash that names a replica set.

use serde_json::{Map, Value};

pub const HASH_LABEL: &str = "pod-template-hash";

/// Whether two templates make the same pods, the hash label aside.
pub fn are_equal(a: &Value, b: &Value) -> bool {
    normal(a) == normal(b)
}

/// Without the hash label, and without what means nothing: nulls, empty lists and empty maps of metadata.
fn normal(template: &Value) -> Value {
    let mut t = template.clone();
    if let Some(labels) = t.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH_LABEL);
    }
    strip(&mut t);
    if let Some(metadata) = t.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|_, v| v.as_object().is_none_or(|m| !m.is_empty()));
        if metadata.is_empty()
            && let Some(t) = t.as_object_mut()
        {
            t.remove("metadata");
        }
    }
    t
}

fn strip(v: &mut Value) {
    let nothing = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
    match v {
        Value::Object(map) => {
            map.values_mut().for_each(strip);
            map.retain(|_, v| !nothing(v));
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

/// The hash of a template: FNV-1a over its canonical JSON, in the letters that upstream uses. It need not be upstream's
/// number: a deployment finds its replica sets by template, not by name.
pub fn hash(template: &Value, collision_count: Option<i32>) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut text = String::new();
    canonical(&normal(template), &mut text);
    let mut state: u32 = 0x811c_9dc5;
    let collision = collision_count.map(i32::to_le_bytes).unwrap_or_default();
    let salt = if collision_count.is_some() { &collision[..] } else { &[] };
    for byte in text.bytes().chain(salt.iter().copied()) {
        state = (state ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    state.to_string().bytes().map(|b| char::from(LETTERS[usize::from(b) % LETTERS.len()])).collect()
}

/// JSON with sorted keys.
fn canonical(v: &Value, out: &mut String) {
    match v {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for k in keys {
                out.push_str(&Value::from(k.as_str()).to_string());
                out.push(':');
                canonical(&map[k], out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for i in items {
                canonical(i, out);
                out.push(',');
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// The template with the hash among its labels.
pub fn with_hash(template: &Value, hash: &str) -> Value {
    let mut t = template.clone();
    set_label(&mut t["metadata"], "labels", hash);
    t
}

/// The selector with the hash among its labels.
pub fn selector_with_hash(selector: &Value, hash: &str) -> Value {
    let mut s = selector.clone();
    set_label(&mut s, "matchLabels", hash);
    s
}

fn set_label(holder: &mut Value, field: &str, hash: &str) {
    if !holder.is_object() {
        *holder = Value::Object(Map::new());
    }
    if !holder[field].is_object() {
        holder[field] = Value::Object(Map::new());
    }
    holder[field][HASH_LABEL] = Value::from(hash);
}

/// The name of the replica set: the deployment's, cut to leave room, and the hash.
pub fn set_name(deployment: &str, hash: &str) -> String {
    const LONGEST: usize = 253;
    let room = LONGEST - 1 - hash.len();
    format!("{}-{hash}", &deployment[..deployment.len().min(room)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_are_compared_by_what_they_mean() {
        let a = json!({"metadata": {"labels": {"app": "a"}, "creationTimestamp": null}, "spec": {"x": [], "r": {}}});
        let b = json!({"metadata": {"labels": {"app": "a", HASH_LABEL: "zz"}, "annotations": {}}, "spec": {"r": {}}});
        assert!(are_equal(&a, &b));
        assert!(!are_equal(&a, &json!({"metadata": {"labels": {"app": "b"}}, "spec": {"r": {}}})));
        assert_eq!(hash(&a, None), hash(&b, None));
        assert_ne!(hash(&a, None), hash(&a, Some(1)));
        assert_ne!(hash(&a, Some(1)), hash(&a, Some(2)));
        assert!(hash(&a, None).len() <= 10);
    }

    #[test]
    fn names_leave_room_for_the_hash() {
        assert_eq!(set_name("web", "abc"), "web-abc");
        assert_eq!(set_name(&"x".repeat(253), "abc").len(), 253);
    }
}
