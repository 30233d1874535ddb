//! From OpenAPI v3 to v2: parameters lose their schema object, bodies become parameters, media types move to the operation.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::{Map, Value, json};

/// How references to shared parameters begin.
pub const SHARED_PARAMETER: &str = "#/parameters/";

/// Rewrites every reference of a value.
fn relocate(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get_mut("$ref") {
                *target = target.replacen("#/components/schemas/", "#/definitions/", 1);
            }
            map.values_mut().for_each(relocate);
        }
        Value::Array(items) => items.iter_mut().for_each(relocate),
        _ => {}
    }
}

/// A path item.
pub fn path_item(item: Value) -> Value {
    let Value::Object(item) = item else { return item };
    let mut out = Map::new();
    for (key, mut value) in item {
        relocate(&mut value);
        let converted = match (key.as_str(), value) {
            ("parameters", Value::Array(list)) => Value::Array(list.into_iter().map(parameter).collect()),
            (_, Value::Object(operation)) => self::operation(operation),
            (_, other) => other,
        };
        out.insert(key, converted);
    }
    Value::Object(out)
}

fn parameter(mut parameter: Value) -> Value {
    if let Value::Object(map) = &mut parameter
        && let Some(Value::Object(schema)) = map.remove("schema")
    {
        map.extend(schema);
    }
    parameter
}

/// The schema that all media types of a content share, and the media types.
fn unpack(content: Option<Value>) -> (Option<Value>, Vec<String>) {
    let Some(Value::Object(content)) = content else { return (None, Vec::new()) };
    let schema = content.values().next().and_then(|c| c.get("schema")).cloned();
    let mut types: Vec<String> = content.into_iter().map(|(media_type, _)| media_type).collect();
    types.sort_by_key(|t| MEDIA_TYPES.iter().position(|m| m == t));
    (schema, types)
}

/// Lists of media types stand in the order in which the server prefers them.
const MEDIA_TYPES: [&str; 10] = [
    "text/plain",
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

fn operation(mut operation: Map<String, Value>) -> Value {
    let mut parameters: Vec<Value> = match operation.remove("parameters") {
        Some(Value::Array(list)) => list.into_iter().map(parameter).collect(),
        _ => Vec::new(),
    };
    let mut consumes = vec!["*/*".to_owned()];
    if let Some(Value::Object(mut body)) = operation.remove("requestBody") {
        let (schema, media_types) = unpack(body.remove("content"));
        consumes = media_types;
        let mut parameter = json!({"in": "body", "name": "body", "schema": schema});
        if body.contains_key("required") {
            parameter["required"] = json!(true);
        }
        parameters.insert(0, parameter);
    }
    let mut produces = Vec::new();
    let mut plain = false;
    if let Some(Value::Object(responses)) = operation.get_mut("responses") {
        for response in responses.values_mut().filter_map(Value::as_object_mut) {
            let (schema, media_types) = unpack(response.remove("content"));
            if let Some(schema) = schema {
                plain = schema["type"] == "string";
                response.insert("schema".to_owned(), schema);
                produces = media_types;
            }
        }
    }
    if !operation.contains_key("x-kubernetes-action") {
        // Discovery takes what it gives; a plain document takes nothing.
        consumes = if plain { Vec::new() } else { produces.clone() };
    }
    if !parameters.is_empty() {
        operation.insert("parameters".to_owned(), Value::Array(parameters));
    }
    if !consumes.is_empty() {
        operation.insert("consumes".to_owned(), json!(consumes));
    }
    operation.insert("produces".to_owned(), json!(produces));
    operation.insert("schemes".to_owned(), json!(["https"]));
    Value::Object(operation)
}

/// Parameters that many operations have: they stand once in the document (kube-openapi, `builder/parameters.go`).
#[derive(Default)]
pub struct Shared {
    pub parameters: Map<String, Value>,
}

impl Shared {
    /// Takes the parameters of a path item that can be shared, and leaves references.
    pub fn take(&mut self, mut item: Value) -> Value {
        for (key, value) in item.as_object_mut().into_iter().flatten() {
            let list = if key == "parameters" { Some(value) } else { value.get_mut("parameters") };
            list.and_then(Value::as_array_mut).into_iter().flatten().for_each(|p| self.refer(p));
        }
        item
    }

    fn refer(&mut self, parameter: &mut Value) {
        if !can_be_shared(parameter) {
            return;
        }
        let name = format!("{}-{}", parameter["name"].as_str().unwrap_or("param"), mark(parameter));
        let reference = json!({"$ref": format!("{SHARED_PARAMETER}{name}")});
        let shared = std::mem::replace(parameter, reference);
        self.parameters.entry(name).or_insert(shared);
    }
}

/// Not those that are about one kind, and those by which kubectl 1.27 and older tell what a server can do.
fn can_be_shared(parameter: &Value) -> bool {
    match (parameter["in"].as_str(), parameter["name"].as_str()) {
        (Some("query" | "path"), Some("name")) | (Some("query"), Some("fieldValidation" | "dryRun")) => false,
        (Some("body"), _) => {
            let of = parameter["schema"]["$ref"].as_str();
            of.is_none_or(|of| of.starts_with("#/definitions/io.k8s.apimachinery"))
        }
        _ => true,
    }
}

/// Eight characters of a hash of the parameter, as Go writes it.
fn mark(parameter: &Value) -> String {
    let fields = ["uniqueItems", "type", "description", "name", "in", "required", "schema"];
    let written = fields.iter().filter_map(|f| Some(format!("{}:{}", json!(f), parameter.get(*f)?)));
    let text = format!("{{{}}}", written.collect::<Vec<_>>().join(","));
    let text = text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    // FNV-1, 64 bits.
    let step = |hash: u64, byte: u8| hash.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    URL_SAFE.encode(&hash.to_be_bytes()[..6])
}
