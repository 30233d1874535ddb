//! Files of apiserver.config.k8s.io: one object, of which every field must be known. What is wrong is told as upstream's
//! strict decoder tells it.

use isopod_schema::scalar::duration_nanos;
use isopod_schema::yaml;
use serde_json::Value;

/// What a field may hold.
pub enum Shape {
    Text,
    Bool,
    Duration,
    Texts,
    Object(Fields),
    Objects(Fields),
}

pub type Fields = &'static [(&'static str, Shape)];

/// A kind of such files.
pub struct Kind {
    pub name: &'static str,
    pub fields: Fields,
}

const GROUP: &str = "apiserver.config.k8s.io";
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

/// Reads YAML or JSON.
pub fn decode(text: &str, kind: &Kind) -> Result<Value, String> {
    let yaml::Document { value, repeated } = yaml::parse(text.as_bytes()).map_err(|e| e.to_string())?;
    let said = |key: &str| value[key].as_str().unwrap_or_default();
    let (version, name) = (said("apiVersion"), said("kind"));
    for (key, given) in [("Kind", name), ("apiVersion", version)] {
        if given.is_empty() {
            return Err(format!("Object '{key}' is missing in '{}'", text.trim()));
        }
    }
    let known = version.split_once('/').is_some_and(|(g, v)| g == GROUP && VERSIONS.contains(&v));
    if name != kind.name || !known {
        return Err(format!(
            "no kind {name:?} is registered for version {version:?}; write {} of {GROUP}/{}",
            kind.name, VERSIONS[0]
        ));
    }
    let mut unknown: Vec<String> = yaml::strictly(&repeated).into_iter().collect();
    for (key, field) in value.as_object().into_iter().flatten().filter(|(k, _)| *k != "apiVersion" && *k != "kind") {
        check_field(field, key, key, kind.fields, &mut unknown)?;
    }
    match unknown.is_empty() {
        true => Ok(value),
        false => Err(format!("strict decoding error: {}", unknown.join(", "))),
    }
}

/// Collects fields that nobody knows; a field of another type is an error by itself.
fn check_field(value: &Value, key: &str, path: &str, fields: Fields, unknown: &mut Vec<String>) -> Result<(), String> {
    match fields.iter().find(|(name, _)| *name == key) {
        Some((_, shape)) => check(value, path, shape, unknown),
        None => {
            unknown.push(format!("unknown field {path:?}"));
            Ok(())
        }
    }
}

fn check(value: &Value, path: &str, shape: &Shape, unknown: &mut Vec<String>) -> Result<(), String> {
    let wanted = |what: &str| Err(format!("{path}: cannot unmarshal {} into a field of type {what}", type_of(value)));
    match (value, shape) {
        (Value::Null, _) | (Value::String(_), Shape::Text) | (Value::Bool(_), Shape::Bool) => Ok(()),
        (Value::String(text), Shape::Duration) => duration_nanos(text).map(drop),
        (Value::Array(items), Shape::Texts) if items.iter().all(Value::is_string) => Ok(()),
        (Value::Array(items), Shape::Objects(fields)) => items
            .iter()
            .enumerate()
            .try_for_each(|(i, item)| check(item, &format!("{path}[{i}]"), &Shape::Object(fields), unknown)),
        (Value::Object(map), Shape::Object(fields)) => {
            map.iter().try_for_each(|(k, v)| check_field(v, k, &format!("{path}.{k}"), fields, unknown))
        }
        (_, Shape::Text) => wanted("string"),
        (_, Shape::Bool) => wanted("bool"),
        (_, Shape::Duration) => wanted("duration"),
        (_, Shape::Texts) => wanted("list of strings"),
        (_, Shape::Object(_)) => wanted("object"),
        (_, Shape::Objects(_)) => wanted("list of objects"),
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THING: Kind = Kind {
        name: "Thing",
        fields: &[
            ("name", Shape::Text),
            ("open", Shape::Bool),
            ("parts", Shape::Objects(&[("time", Shape::Duration), ("words", Shape::Texts)])),
            ("one", Shape::Object(&[("text", Shape::Text)])),
        ],
    };

    #[test]
    fn every_field_must_be_known() {
        let head = "apiVersion: apiserver.config.k8s.io/v1beta1\nkind: Thing\n";
        let read = |body: &str| decode(&format!("{head}{body}"), &THING).map(drop);
        assert_eq!(read("name: x\nopen: yes\nparts: [{time: 5m, words: [a]}]\none: {text: b}\n"), Ok(()));
        let wrong = [
            (
                "nome: x\nparts: [{}, {tme: 5m}]\n",
                "strict decoding error: unknown field \"nome\", unknown field \"parts[1].tme\"",
            ),
            (
                "name: a\nname: b\nnome: c\n",
                "strict decoding error: yaml: unmarshal errors:\n  line 4: key \"name\" already set in map, unknown field \"nome\"",
            ),
            ("parts: [{time: 5}]\n", "parts[0].time: cannot unmarshal number into a field of type duration"),
            ("parts: [{time: 5x}]\n", "time: unknown unit \"x\" in duration \"5x\""),
            ("one: [a]\n", "one: cannot unmarshal array into a field of type object"),
        ];
        for (body, want) in wrong {
            assert_eq!(read(body), Err(want.to_owned()));
        }
        let other = decode("apiVersion: apiserver.config.k8s.io/v2\nkind: Thing\n", &THING).unwrap_err();
        assert!(other.starts_with("no kind \"Thing\" is registered for version \"apiserver.config.k8s.io/v2\""));
        assert!(decode("kind: Thing\n", &THING).unwrap_err().starts_with("Object 'apiVersion' is missing in "));
        assert!(decode("", &THING).unwrap_err().starts_with("Object 'Kind' is missing in "));
    }
}
