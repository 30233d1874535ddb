//! `openapi.v2.Document`.

use super::{Field, How, field, message, named, write};
use isopod_schema::proto::wire::{put_bytes, put_int, put_message};
use serde_json::Value;

/// Encodes a document.
pub fn document(document: &Value) -> Vec<u8> {
    const DOCUMENT: &[Field] = &[
        field("swagger", 1, How::Text),
        field("info", 2, How::Message(info)),
        field("paths", 8, How::Message(paths)),
        field("definitions", 9, How::Map(schema)),
        field("parameters", 10, How::Map(parameter)),
        field("security", 12, How::Each(security_requirement)),
        field("securityDefinitions", 13, How::Map(api_key)),
    ];
    let mut out = Vec::with_capacity(1 << 20);
    message(&mut out, document, DOCUMENT, 16);
    out
}

fn info(out: &mut Vec<u8>, v: &Value) {
    const INFO: &[Field] = &[field("title", 1, How::Text), field("version", 2, How::Text)];
    message(out, v, INFO, 7);
}

fn paths(out: &mut Vec<u8>, v: &Value) {
    if let Value::Object(map) = v {
        named(out, 2, map, path_item);
    }
}

fn security_requirement(out: &mut Vec<u8>, v: &Value) {
    fn scopes(out: &mut Vec<u8>, v: &Value) {
        write(out, 1, v, How::Texts);
    }
    if let Value::Object(map) = v {
        named(out, 1, map, scopes);
    }
}

/// `SecurityDefinitionsItem{api_key_security}`.
fn api_key(out: &mut Vec<u8>, v: &Value) {
    const API_KEY: &[Field] = &[
        field("type", 1, How::Text),
        field("name", 2, How::Text),
        field("in", 3, How::Text),
        field("description", 4, How::Text),
    ];
    put_message(out, 2, |out| message(out, v, API_KEY, 5));
}

fn path_item(out: &mut Vec<u8>, v: &Value) {
    const ITEM: &[Field] = &[
        field("get", 2, How::Message(operation)),
        field("put", 3, How::Message(operation)),
        field("post", 4, How::Message(operation)),
        field("delete", 5, How::Message(operation)),
        field("options", 6, How::Message(operation)),
        field("head", 7, How::Message(operation)),
        field("patch", 8, How::Message(operation)),
        field("parameters", 9, How::Each(parameters_item)),
    ];
    message(out, v, ITEM, 10);
}

fn operation(out: &mut Vec<u8>, v: &Value) {
    const OPERATION: &[Field] = &[
        field("tags", 1, How::Texts),
        field("description", 3, How::Text),
        field("operationId", 5, How::Text),
        field("produces", 6, How::Texts),
        field("consumes", 7, How::Texts),
        field("parameters", 8, How::Each(parameters_item)),
        field("responses", 9, How::Message(responses)),
        field("schemes", 10, How::Texts),
    ];
    message(out, v, OPERATION, 13);
}

/// `ParametersItem{parameter | json_reference}`.
fn parameters_item(out: &mut Vec<u8>, v: &Value) {
    const REFERENCE: &[Field] = &[field("$ref", 1, How::Text)];
    match v.get("$ref") {
        Some(_) => put_message(out, 2, |out| message(out, v, REFERENCE, 3)),
        None => put_message(out, 1, |out| parameter(out, v)),
    }
}

/// `Parameter{body_parameter | non_body_parameter{query | path}}`.
fn parameter(out: &mut Vec<u8>, v: &Value) {
    const BODY: &[Field] = &[
        field("description", 1, How::Text),
        field("name", 2, How::Text),
        field("in", 3, How::Text),
        field("required", 4, How::Flag),
        field("schema", 5, How::Message(schema)),
    ];
    const QUERY: &[Field] = &[
        field("required", 1, How::Flag),
        field("in", 2, How::Text),
        field("description", 3, How::Text),
        field("name", 4, How::Text),
        field("type", 6, How::Text),
        field("uniqueItems", 20, How::Flag),
    ];
    const PATH: &[Field] = &[
        field("required", 1, How::Flag),
        field("in", 2, How::Text),
        field("description", 3, How::Text),
        field("name", 4, How::Text),
        field("type", 5, How::Text),
        field("uniqueItems", 19, How::Flag),
    ];
    match v.get("in").and_then(Value::as_str) {
        Some("body") => put_message(out, 1, |out| message(out, v, BODY, 6)),
        Some("path") => put_message(out, 2, |out| put_message(out, 4, |out| message(out, v, PATH, 22))),
        _ => put_message(out, 2, |out| put_message(out, 3, |out| message(out, v, QUERY, 23))),
    }
}

fn responses(out: &mut Vec<u8>, v: &Value) {
    if let Value::Object(map) = v {
        named(out, 1, map, response);
    }
}

/// `ResponseValue{response}`.
fn response(out: &mut Vec<u8>, v: &Value) {
    const RESPONSE: &[Field] = &[field("description", 1, How::Text), field("schema", 2, How::Message(schema_item))];
    put_message(out, 1, |out| message(out, v, RESPONSE, 5));
}

fn schema_item(out: &mut Vec<u8>, v: &Value) {
    put_message(out, 1, |out| schema(out, v));
}

fn schema(out: &mut Vec<u8>, v: &Value) {
    const SCHEMA: &[Field] = &[
        field("$ref", 1, How::Text),
        field("format", 2, How::Text),
        field("title", 3, How::Text),
        field("description", 4, How::Text),
        field("default", 5, How::Any),
        field("multipleOf", 6, How::Number),
        field("maximum", 7, How::Number),
        field("exclusiveMaximum", 8, How::Flag),
        field("minimum", 9, How::Number),
        field("exclusiveMinimum", 10, How::Flag),
        field("maxLength", 11, How::Integer),
        field("minLength", 12, How::Integer),
        field("pattern", 13, How::Text),
        field("maxItems", 14, How::Integer),
        field("minItems", 15, How::Integer),
        field("uniqueItems", 16, How::Flag),
        field("maxProperties", 17, How::Integer),
        field("minProperties", 18, How::Integer),
        field("required", 19, How::Texts),
        field("enum", 20, How::Anys),
        field("additionalProperties", 21, How::Message(additional_properties)),
        field("type", 22, How::Message(types)),
        field("items", 23, How::Message(schema_item)),
        field("allOf", 24, How::Each(schema)),
        field("properties", 25, How::Map(schema)),
    ];
    message(out, v, SCHEMA, 31);
}

fn types(out: &mut Vec<u8>, v: &Value) {
    if let Some(name) = v.as_str() {
        put_bytes(out, 1, name.as_bytes());
    }
}

fn additional_properties(out: &mut Vec<u8>, v: &Value) {
    match v {
        Value::Bool(b) => put_int(out, 2, i64::from(*b)),
        value => put_message(out, 1, |out| schema(out, value)),
    }
}
