//! Forms of objects: what goes out as which bytes. JSON of the stored version is copied; everything else is made on demand.

pub mod body;
pub mod decode;
pub mod negotiate;
pub mod protobuf;
pub mod splice;
pub mod table;
pub mod text_list;
pub mod yaml;

use bytes::Bytes;
use isopod_kinds::Kind;
use isopod_schema::{facts, json, proto};
use jiff::Timestamp;
use negotiate::{Form, Include, Media, Shape};
use serde_json::Value;

/// Whether bodies of entries are in another version than the one that `kind` serves. Those of custom resources have been
/// converted before they come here (`conversion`).
fn differs(kind: &Kind) -> bool {
    kind.gvk != kind.storage.gvk && kind.hooks.versions().is_none()
}

/// The object of an entry in the version that `kind` serves.
pub fn served(kind: &Kind, body: &[u8]) -> Value {
    let mut value = json::read(body).unwrap_or_default();
    if differs(kind) {
        kind.hooks.from_storage(&mut value);
        value["apiVersion"] = kind.gvk.api_version().into();
        value["kind"] = kind.gvk.kind.clone().into();
    }
    value
}

/// The bytes of an entry's object in JSON of the served version.
pub fn json_bytes(kind: &Kind, body: &Bytes) -> Bytes {
    if differs(kind) { to_json(&served(kind, body)) } else { body.clone() }
}

pub fn to_json(value: &Value) -> Bytes {
    json::encode(value).into()
}

/// An entry's body in a form.
pub fn entry(kind: &Kind, body: &Bytes, form: &Form, now: Timestamp) -> Bytes {
    match (form.media, form.shape) {
        (Media::Json, Shape::Object) if !form.pretty => json_bytes(kind, body),
        (Media::Protobuf, Shape::Object | Shape::Metadata) => protobuf::object(kind, body, form),
        (_, Shape::Object) => text(&served(kind, body), form),
        (_, Shape::Table(_)) => {
            let value = served(kind, body);
            let revision = value["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            text(&table::table(kind, &[value], &revision, form, now), form)
        }
        (_, Shape::Metadata) => text(&partial(kind, &served(kind, body), form), form),
    }
}

/// Any value of a known schema (a `Scale`, a `Status`) in a form; shapes do not apply.
pub fn value(value: &Value, form: &Form) -> Bytes {
    if form.media != Media::Protobuf {
        return text(value, form);
    }
    let (api_version, kind) = type_of(value);
    let object = isopod_api::GroupVersion::parse(&api_version)
        .and_then(|gv| facts::builtin().object_of(&isopod_api::Gvk::new(gv.group, gv.version, kind.clone())))
        .or_else(|| meta_object(&kind));
    let raw = object.map(|o| proto::encode(value, &o)).unwrap_or_default();
    proto::envelope::wrap(&api_version, &kind, &raw).into()
}

pub fn text(value: &Value, form: &Form) -> Bytes {
    match form.media {
        // What is deep is not indented: that would take the square of its depth, and what is not indented is YAML as well.
        _ if is_indented(form) && json::depth::exceeds(value, json::depth::ORDINARY) => {
            let mut out = json::encode(value);
            out.push(b'\n');
            out.into()
        }
        Media::Yaml => yaml::to_yaml(value).into(),
        _ if form.pretty => {
            let mut out = json::indented(value);
            out.push(b'\n');
            out.into()
        }
        _ => to_json(value),
    }
}

fn is_indented(form: &Form) -> bool {
    form.pretty || form.media == Media::Yaml
}

/// `PartialObjectMetadata` of an object.
pub fn partial(kind: &Kind, object: &Value, form: &Form) -> Value {
    let mut metadata = object.get("metadata").cloned().unwrap_or_else(|| serde_json::json!({}));
    let annotations = kind.hooks.internal_annotations();
    if let Some(all) =
        metadata.get_mut("annotations").and_then(Value::as_object_mut).filter(|_| !annotations.is_empty())
    {
        all.retain(|key, _| !annotations.contains(&key.as_str()));
        if all.is_empty() {
            metadata.as_object_mut().map(|m| m.remove("annotations"));
        }
    }
    serde_json::json!({"kind": "PartialObjectMetadata", "apiVersion": form.meta_version(), "metadata": metadata})
}

/// A row's `object`.
pub fn included(kind: &Kind, object: &Value, form: &Form, include: Include) -> Option<Value> {
    match include {
        Include::None => None,
        Include::Metadata => Some(partial(kind, object, form)),
        Include::Object => Some(object.clone()),
    }
}

/// A definition of `meta/v1`.
pub fn meta_object(kind: &str) -> Option<std::sync::Arc<isopod_schema::types::Object>> {
    facts::builtin().object(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))
}

pub fn type_of(value: &Value) -> (String, String) {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("apiVersion"), text("kind"))
}
