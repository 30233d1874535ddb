//! `openapi.v3.Document`.

use super::{Field, How, field, message, named, write};
use isopod_schema::proto::wire::{FIXED64, put_bytes, put_int, put_message, put_tag};
use serde_json::Value;

/// Encodes a document.
pub fn document(document: &Value) -> Vec<u8> {
    const DOCUMENT: &[Field] = &[
        field("openapi", 1, How::Text),
        field("info", 2, How::Message(info)),
        field("paths", 4, How::Message(paths)),
        field("components", 5, How::Message(components)),
    ];
    let mut out = Vec::with_capacity(1 << 16);
    message(&mut out, document, DOCUMENT, 9);
    out
}

fn info(out: &mut Vec<u8>, v: &Value) {
    const INFO: &[Field] = &[field("title", 1, How::Text), field("version", 6, How::Text)];
    message(out, v, INFO, 7);
}

fn paths(out: &mut Vec<u8>, v: &Value) {
    if let Value::Object(map) = v {
        named(out, 1, map, path_item);
    }
}

fn components(out: &mut Vec<u8>, v: &Value) {
    const COMPONENTS: &[Field] =
        &[field("schemas", 1, How::Map(schema_or_reference)), field("securitySchemes", 7, How::Map(security_scheme))];
    message(out, v, COMPONENTS, 10);
}

fn path_item(out: &mut Vec<u8>, v: &Value) {
    const ITEM: &[Field] = &[
        field("get", 4, How::Message(operation)),
        field("put", 5, How::Message(operation)),
        field("post", 6, How::Message(operation)),
        field("delete", 7, How::Message(operation)),
        field("options", 8, How::Message(operation)),
        field("head", 9, How::Message(operation)),
        field("patch", 10, How::Message(operation)),
        field("parameters", 13, How::Each(parameter)),
    ];
    message(out, v, ITEM, 14);
}

fn operation(out: &mut Vec<u8>, v: &Value) {
    const OPERATION: &[Field] = &[
        field("tags", 1, How::Texts),
        field("description", 3, How::Text),
        field("operationId", 5, How::Text),
        field("parameters", 6, How::Each(parameter)),
        field("requestBody", 7, How::Message(request_body)),
        field("responses", 8, How::Message(responses)),
    ];
    message(out, v, OPERATION, 13);
}

/// `ParameterOrReference{parameter}`.
fn parameter(out: &mut Vec<u8>, v: &Value) {
    const PARAMETER: &[Field] = &[
        field("name", 1, How::Text),
        field("in", 2, How::Text),
        field("description", 3, How::Text),
        field("required", 4, How::Flag),
        field("schema", 10, How::Message(schema_or_reference)),
    ];
    put_message(out, 1, |out| message(out, v, PARAMETER, 14));
}

/// `RequestBodyOrReference{request_body}`.
fn request_body(out: &mut Vec<u8>, v: &Value) {
    const BODY: &[Field] = &[
        field("description", 1, How::Text),
        field("content", 2, How::Map(media_type)),
        field("required", 3, How::Flag),
    ];
    put_message(out, 1, |out| message(out, v, BODY, 4));
}

fn media_type(out: &mut Vec<u8>, v: &Value) {
    message(out, v, &[field("schema", 1, How::Message(schema_or_reference))], 5);
}

fn responses(out: &mut Vec<u8>, v: &Value) {
    if let Value::Object(map) = v {
        named(out, 2, map, response);
    }
}

/// `ResponseOrReference{response}`.
fn response(out: &mut Vec<u8>, v: &Value) {
    const RESPONSE: &[Field] = &[field("description", 1, How::Text), field("content", 3, How::Map(media_type))];
    put_message(out, 1, |out| message(out, v, RESPONSE, 5));
}

/// `SecuritySchemeOrReference{security_scheme}`.
fn security_scheme(out: &mut Vec<u8>, v: &Value) {
    const SCHEME: &[Field] = &[
        field("type", 1, How::Text),
        field("description", 2, How::Text),
        field("name", 3, How::Text),
        field("in", 4, How::Text),
    ];
    put_message(out, 1, |out| message(out, v, SCHEME, 9));
}

fn schema_or_reference(out: &mut Vec<u8>, v: &Value) {
    match v.get("$ref").and_then(Value::as_str) {
        Some(target) => put_message(out, 2, |out| put_bytes(out, 1, target.as_bytes())),
        None => put_message(out, 1, |out| schema(out, v)),
    }
}

fn schema(out: &mut Vec<u8>, v: &Value) {
    const SCHEMA: &[Field] = &[
        field("nullable", 1, How::Flag),
        field("readOnly", 3, How::Flag),
        field("example", 7, How::Any),
        field("title", 9, How::Text),
        field("multipleOf", 10, How::Number),
        field("maximum", 11, How::Number),
        field("exclusiveMaximum", 12, How::Flag),
        field("minimum", 13, How::Number),
        field("exclusiveMinimum", 14, How::Flag),
        field("maxLength", 15, How::Integer),
        field("minLength", 16, How::Integer),
        field("pattern", 17, How::Text),
        field("maxItems", 18, How::Integer),
        field("minItems", 19, How::Integer),
        field("uniqueItems", 20, How::Flag),
        field("maxProperties", 21, How::Integer),
        field("minProperties", 22, How::Integer),
        field("required", 23, How::Texts),
        field("enum", 24, How::Anys),
        field("type", 25, How::Text),
        field("allOf", 26, How::Each(schema_or_reference)),
        field("oneOf", 27, How::Each(schema_or_reference)),
        field("anyOf", 28, How::Each(schema_or_reference)),
        field("not", 29, How::Message(schema)),
        field("items", 30, How::Message(items)),
        field("properties", 31, How::Map(schema_or_reference)),
        field("additionalProperties", 32, How::Message(additional_properties)),
        field("default", 33, How::Message(default)),
        field("description", 34, How::Text),
        field("format", 35, How::Text),
    ];
    message(out, v, SCHEMA, 36);
}

fn items(out: &mut Vec<u8>, v: &Value) {
    put_message(out, 1, |out| schema_or_reference(out, v));
}

fn additional_properties(out: &mut Vec<u8>, v: &Value) {
    match v {
        Value::Bool(b) => put_int(out, 2, i64::from(*b)),
        schema => write(out, 1, schema, How::Message(schema_or_reference)),
    }
}

/// `DefaultType` knows scalars only.
fn default(out: &mut Vec<u8>, v: &Value) {
    match v {
        Value::Number(n) => {
            put_tag(out, 1, FIXED64);
            out.extend_from_slice(&n.as_f64().unwrap_or(0.0).to_bits().to_le_bytes());
        }
        Value::Bool(b) => put_int(out, 2, i64::from(*b)),
        Value::String(s) => put_bytes(out, 3, s.as_bytes()),
        _ => {}
    }
}
