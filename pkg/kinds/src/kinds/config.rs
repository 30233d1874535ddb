//! ConfigMaps and Secrets: keys, sizes, what a Secret's type asks for, and `immutable`.

use crate::access::{Access, same};
use crate::metadata::immutable as field_immutable;
use crate::strategy::{STATELESS, Strategy};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;

/// The data of one object.
pub const MAX_BYTES: usize = 1024 * 1024;
const IMMUTABLE: &str = "field is immutable when `immutable` is set";

pub const CONFIG_MAP: Strategy = Strategy { create: config_map, update: config_map_update, ..STATELESS };

pub const SECRET: Strategy =
    Strategy { fields: &["type"], create: secret, update: secret_update, default: merge_string_data, ..STATELESS };

fn decoded(v: &Value) -> Vec<u8> {
    STANDARD.decode(v.as_str().unwrap_or("")).unwrap_or_default()
}

/// `stringData` is write-only: it overrides `data` and is not kept.
fn merge_string_data(obj: &mut Value) {
    let Some(Value::Object(strings)) = obj.as_object_mut().and_then(|m| m.remove("stringData")) else { return };
    let data = crate::access::map_mut(obj, "data");
    for (k, v) in strings {
        data.insert(k, STANDARD.encode(v.as_str().unwrap_or("")).into());
    }
}

fn keys(map: &Value, path: &Path) -> FieldErrors {
    let check = |(k, _): (&str, &Value)| -> FieldErrors {
        names::config_map_key(k).into_iter().map(|m| FieldError::invalid(&path.key(k), k, m)).collect()
    };
    map.entries("").into_iter().flat_map(check).collect()
}

fn config_map(c: &Value) -> FieldErrors {
    let (data, binary) = (c.at("data"), c.at("binaryData"));
    let mut errs = Vec::new();
    let p = Path::new("data");
    for (k, _) in data.entries("") {
        errs.extend(names::config_map_key(k).into_iter().map(|m| FieldError::invalid(&p.key(k), k, m)));
        if binary.get(k).is_some() {
            errs.push(FieldError::invalid(&p.key(k), k, "duplicate of key present in binaryData"));
        }
    }
    errs.extend(keys(binary, &Path::new("binaryData")));
    let text: usize = data.entries("").iter().map(|(_, v)| v.as_str().map_or(0, str::len)).sum();
    let bytes: usize = binary.entries("").iter().map(|(_, v)| decoded(v).len()).sum();
    if text + bytes > MAX_BYTES {
        errs.push(FieldError::too_long(&Path::new(""), MAX_BYTES));
    }
    errs
}

fn unchanged(new: &Value, old: &Value, fields: &[&str]) -> FieldErrors {
    if !old.flag("immutable") {
        return Vec::new();
    }
    let mut errs = Vec::new();
    if !new.flag("immutable") {
        errs.push(FieldError::forbidden(&Path::new("immutable"), IMMUTABLE));
    }
    let changed = fields.iter().filter(|f| !same(new.at(f), old.at(f)));
    errs.extend(changed.map(|f| FieldError::forbidden(&Path::new(f), IMMUTABLE)));
    errs
}

fn config_map_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = unchanged(new, old, &["data", "binaryData"]);
    errs.extend(config_map(new));
    errs
}

fn secret(s: &Value) -> FieldErrors {
    let (data, p) = (s.at("data"), Path::new("data"));
    let mut errs = keys(data, &p);
    let size: usize = data.entries("").iter().map(|(_, v)| decoded(v).len()).sum();
    if size > MAX_BYTES {
        errs.push(FieldError::too_long(&p, MAX_BYTES));
    }
    let has = |k: &str| data.get(k).is_some();
    let missing = |k: &str| FieldError::required(&p.key(k), "");
    match s.text("type") {
        "kubernetes.io/service-account-token" => {
            const NAME: &str = "kubernetes.io/service-account.name";
            if s.entry_text("metadata.annotations", NAME).is_empty() {
                let p = Path::new("metadata").child("annotations").key(NAME);
                errs.push(FieldError::required(&p, ""));
            }
        }
        "kubernetes.io/dockercfg" => errs.extend(docker_config(data, ".dockercfg", &p)),
        "kubernetes.io/dockerconfigjson" => errs.extend(docker_config(data, ".dockerconfigjson", &p)),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            errs.extend([missing("username"), missing("password")]);
        }
        "kubernetes.io/ssh-auth" if decoded(data.get("ssh-privatekey").unwrap_or(&Value::Null)).is_empty() => {
            errs.push(missing("ssh-privatekey"));
        }
        "kubernetes.io/tls" => {
            errs.extend(["tls.crt", "tls.key"].into_iter().filter(|k| !has(k)).map(missing));
        }
        _ => {}
    }
    errs
}

fn docker_config(data: &Value, key: &str, path: &Path) -> FieldErrors {
    let Some(v) = data.get(key) else { return vec![FieldError::required(&path.key(key), "")] };
    let bytes = decoded(v);
    let why = match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(_) | Value::Null) => return Vec::new(),
        Ok(other) => {
            format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", kind_of(&other))
        }
        Err(_) if bytes.is_empty() => "unexpected end of JSON input".to_owned(),
        Err(e) => e.to_string(),
    };
    vec![FieldError::invalid(&path.key(key), "<secret contents redacted>", why)]
}

fn kind_of(v: &Value) -> &'static str {
    match v {
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        _ => "number",
    }
}

fn secret_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = field_immutable(new, old, "type", &Path::root());
    errs.extend(unchanged(new, old, &["data"]));
    errs.extend(secret(new));
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn say(errs: FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn config_maps() {
        assert_eq!(say(config_map(&json!({"data": {"a.b": "c"}}))), [""; 0]);
        assert_eq!(
            say(config_map(&json!({"data": {"a": ""}, "binaryData": {"a": ""}}))),
            ["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"]
        );
        assert_eq!(say(config_map(&json!({"data": {"a": "x".repeat(MAX_BYTES + 1)}}))).len(), 1);
        let old = json!({"immutable": true, "data": {"a": "b"}});
        assert_eq!(
            say(config_map_update(&json!({"data": {"a": "c"}}), &old)),
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set"
            ]
        );
    }

    #[test]
    fn secrets_by_type() {
        let table = [
            (json!({"type": "Opaque", "data": {"a": "Yg=="}}), vec![]),
            (json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), vec!["data[tls.key]: Required value"]),
            (
                json!({"type": "kubernetes.io/basic-auth"}),
                vec!["data[username]: Required value", "data[password]: Required value"],
            ),
            (json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}), vec![]),
            (
                json!({"type": "kubernetes.io/service-account-token"}),
                vec!["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
            ),
        ];
        for (s, want) in table {
            assert_eq!(say(secret(&s)), want, "{s}");
        }
        let mut s = json!({"data": {"a": "eA=="}, "stringData": {"a": "b"}});
        merge_string_data(&mut s);
        assert_eq!(s, json!({"data": {"a": "Yg=="}}));
        assert_eq!(
            say(secret_update(&json!({"type": "a"}), &json!({"type": "b"}))),
            ["type: Invalid value: \"a\": field is immutable"]
        );
    }
}
