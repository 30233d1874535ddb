//! Bodies as JSON and as protobuf.

use isopod_api::Gvk;
use isopod_schema::types::Object;
use isopod_schema::{facts, json, proto};
use serde_json::Value;
use std::sync::{Arc, LazyLock};

/// Between them they have every kind of field.
static SCHEMAS: LazyLock<Vec<Arc<Object>>> = LazyLock::new(|| {
    let all = [
        ("", "Pod"),
        ("apps", "Deployment"),
        ("", "Service"),
        ("", "Secret"),
        ("", "Node"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
        ("coordination.k8s.io", "Lease"),
        ("authorization.k8s.io", "SubjectAccessReview"),
    ];
    let schema = |(group, kind)| facts::builtin().object_of(&Gvk::new(group, "v1", kind)).expect("it is built in");
    all.into_iter().map(schema).collect()
});

/// Parsed values survive their encoding; decoded objects survive it too, and have one canonical form.
pub fn json(data: &[u8]) {
    if let Ok(value) = json::parse(data) {
        let text = json::encode(&value);
        assert_eq!(written(&text), Some(String::from_utf8_lossy(&text).into_owned()));
    }
    for schema in SCHEMAS.iter() {
        let Ok(decoded) = json::decode(data, schema) else { continue };
        if decoded.value.is_object() {
            survives(decoded.value, schema);
        }
    }
}

/// A text as it is written again. Values are compared by it: doubles that are whole are written as integers.
pub fn written(text: &[u8]) -> Option<String> {
    json::parse(text).ok().map(|value| shown(&value))
}

fn shown(value: &Value) -> String {
    String::from_utf8_lossy(&json::encode(value)).into_owned()
}

/// The canonical form of a decoded object goes through JSON and through protobuf and stays what it is.
pub fn survives(mut value: Value, schema: &Object) {
    json::canonicalize(&mut value, schema);
    let again = json::decode(&json::encode(&value), schema);
    let again = again.unwrap_or_else(|e| panic!("{}: {value} cannot be read again: {e}", schema.name));
    assert!(again.strict.is_empty(), "{}: {value}: {:?}", schema.name, again.strict);
    let mut second = again.value;
    json::canonicalize(&mut second, schema);
    assert_eq!(shown(&second), shown(&value), "{} through JSON", schema.name);
    if schema.custom {
        return;
    }
    let bytes = proto::encode(&value, schema);
    let mut third = proto::decode(&bytes, schema).unwrap_or_else(|e| panic!("{}: {value}: {e}", schema.name));
    [&mut third, &mut value].into_iter().for_each(as_messages_tell);
    assert_eq!(shown(&third), shown(&value), "{} through protobuf", schema.name);
}

/// Messages do not say of which type they are, nor what is inside of them: defaults say that again where it belongs. And an
/// empty list is none to them, which is seen where a list lies in a map.
fn as_messages_tell(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !matches!(key.as_str(), "apiVersion" | "kind"));
            map.values_mut().for_each(as_messages_tell);
        }
        Value::Array(items) if items.is_empty() => *value = Value::Null,
        Value::Array(items) => items.iter_mut().for_each(as_messages_tell),
        _ => {}
    }
}

/// A message in its envelope is decoded to a value that goes through both encodings.
pub fn protobuf(data: &[u8]) {
    let Ok((unknown, value)) = proto::envelope::open_builtin(data) else { return };
    let schema = unknown.gvk().and_then(|gvk| facts::builtin().object_of(&gvk)).expect("it was opened by its schema");
    let sealed = proto::envelope::seal(&value, &schema);
    let (_, mut again) = proto::envelope::open_builtin(&sealed).unwrap_or_else(|e| panic!("{value}: {e}"));
    let mut told = value.clone();
    [&mut again, &mut told].into_iter().for_each(as_messages_tell);
    assert_eq!(again, told);
    survives(value, &schema);
}
