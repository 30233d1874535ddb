//! From OpenAPI v2 to v3, for servers that tell their API in v2 only: bodies become request bodies, media types move to what
//! they describe, parameters get a schema.
//!
//! Whatever another server sends is taken: what has no place in v3, or is not what it should be, is left out.

use serde_json::{Map, Value, json};

/// Keys of a schema that hold one schema each.
const ONE: [&str; 3] = ["additionalProperties", "additionalItems", "not"];
/// Those that hold several: a list of them.
const LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
/// Those that hold a map of them.
const MAPS: [&str; 3] = ["properties", "patternProperties", "definitions"];
const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// The v3 document that says what a v2 document says.
pub fn v3_of(swagger: &Value) -> Value {
    let (bodies, shared): (Map<String, Value>, Map<String, Value>) =
        each(&swagger["parameters"], Value::clone).into_iter().partition(|(_, parameter)| is_body(parameter));
    let media = Media { consumes: types(&swagger["consumes"]), produces: types(&swagger["produces"]), bodies };
    let mut out = json!({"openapi": "3.0.0", "info": swagger["info"], "paths": paths(&swagger["paths"], &media)});
    if swagger["info"].is_null() {
        out["info"] = json!({"title": "", "version": ""});
    }
    copy(swagger, &mut out, &["externalDocs"]);
    let mut components = Map::new();
    let mut part = |key: &str, made: Map<String, Value>| {
        if !made.is_empty() {
            components.insert(key.to_owned(), made.into());
        }
    };
    part("schemas", each(&swagger["definitions"], schema));
    part("parameters", each(&Value::Object(shared), parameter));
    part("responses", each(&swagger["responses"], |r| response(r, &media.produces)));
    part("securitySchemes", each(&swagger["securityDefinitions"], security));
    out["components"] = components.into();
    out
}

/// What bodies come in, as long as an operation does not say otherwise.
struct Media {
    consumes: Vec<String>,
    produces: Vec<String>,
    /// Those that operations share. v3 has bodies in operations only.
    bodies: Map<String, Value>,
}

impl Media {
    /// The body that a parameter is.
    fn body<'a>(&'a self, parameter: &'a Value) -> Option<&'a Value> {
        let shared =
            parameter["$ref"].as_str().and_then(|target| self.bodies.get(target.strip_prefix("#/parameters/")?));
        shared.or_else(|| is_body(parameter).then_some(parameter))
    }
}

fn types(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|t| Some(t.as_str()?.to_owned())).collect()
}

fn each(map: &Value, convert: impl Fn(&Value) -> Value) -> Map<String, Value> {
    map.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), convert(value))).collect()
}

/// Takes these keys over, and extensions.
fn copy(from: &Value, to: &mut Value, keys: &[&str]) {
    for (key, value) in from.as_object().into_iter().flatten() {
        if keys.contains(&key.as_str()) || key.starts_with("x-") {
            to[key] = value.clone();
        }
    }
}

/// A reference in the place that things of its kind have in v3.
fn reference(value: &Value, kind: &str, place: &str) -> Option<String> {
    let (_, name) = value["$ref"].as_str()?.split_once(&format!("#/{kind}/"))?;
    Some(format!("#/components/{place}/{name}"))
}

fn schema(value: &Value) -> Value {
    let Some(map) = value.as_object() else { return value.clone() };
    let mut out = Map::new();
    for (key, value) in map {
        let converted = match key.as_str() {
            "$ref" => continue,
            "items" if value.is_array() => list(value),
            "items" => schema(value),
            key if ONE.contains(&key) => schema(value),
            key if LISTS.contains(&key) => list(value),
            key if MAPS.contains(&key) => each(value, schema).into(),
            // Of v2 alone.
            "discriminator" if value.is_string() => json!({"propertyName": value}),
            _ => value.clone(),
        };
        out.insert(key.clone(), converted);
    }
    match reference(value, "definitions", "schemas") {
        None => {}
        Some(target) if out.is_empty() => drop(out.insert("$ref".to_owned(), target.into())),
        // In v3 a reference stands alone.
        Some(target) => {
            let all = out.entry("allOf").or_insert_with(|| json!([]));
            all.as_array_mut().into_iter().for_each(|all| all.insert(0, json!({"$ref": target})));
        }
    }
    out.into()
}

fn list(value: &Value) -> Value {
    value.as_array().into_iter().flatten().map(schema).collect()
}

fn paths(paths: &Value, media: &Media) -> Value {
    let item = |(path, item): (&String, &Value)| match path.starts_with("x-") {
        true => (path.clone(), item.clone()),
        false => (path.clone(), path_item(item, media)),
    };
    Value::Object(paths.as_object().into_iter().flatten().map(item).collect())
}

fn path_item(item: &Value, media: &Media) -> Value {
    let mut out = json!({});
    copy(item, &mut out, &["$ref"]);
    for method in METHODS {
        if item[method].is_object() {
            out[method] = operation(&item[method], media);
        }
    }
    let parameters = parameters(&item["parameters"], media);
    if !parameters.is_empty() {
        out["parameters"] = parameters.into();
    }
    out
}

fn is_body(parameter: &Value) -> bool {
    parameter["in"] == "body" || parameter["name"] == "body" && parameter["schema"].is_object()
}

fn parameters(list: &Value, media: &Media) -> Vec<Value> {
    list.as_array().into_iter().flatten().filter(|p| media.body(p).is_none()).map(parameter).collect()
}

fn operation(operation: &Value, media: &Media) -> Value {
    let mut out = json!({});
    copy(
        operation,
        &mut out,
        &["description", "externalDocs", "tags", "summary", "deprecated", "operationId", "security"],
    );
    let or = |key: &str, all: &[String]| match operation[key].is_array() {
        true => types(&operation[key]),
        false => all.to_vec(),
    };
    let (consumes, produces) = (or("consumes", &media.consumes), or("produces", &media.produces));
    let parameters = parameters(&operation["parameters"], media);
    if !parameters.is_empty() {
        out["parameters"] = parameters.into();
    }
    if let Some(body) = operation["parameters"].as_array().into_iter().flatten().find_map(|p| media.body(p)) {
        let mut made = json!({"content": content(&consumes, &body["schema"])});
        copy(body, &mut made, &["description", "required"]);
        out["requestBody"] = made;
    }
    let responses = each(&operation["responses"], |r| response(r, &produces));
    out["responses"] = responses.into();
    out
}

fn content(types: &[String], of: &Value) -> Value {
    let of = schema(of);
    Value::Object(types.iter().map(|t| (t.clone(), json!({"schema": of}))).collect())
}

fn response(response: &Value, produces: &[String]) -> Value {
    if let Some(target) = reference(response, "responses", "responses") {
        return json!({"$ref": target});
    }
    let mut out = json!({"description": response["description"].as_str().unwrap_or_default()});
    copy(response, &mut out, &[]);
    if response["schema"].is_object() {
        out["content"] = content(produces, &response["schema"]);
    }
    out
}

/// Any but a body.
fn parameter(parameter: &Value) -> Value {
    if let Some(target) = reference(parameter, "parameters", "parameters") {
        return json!({"$ref": target});
    }
    let mut out = json!({});
    copy(parameter, &mut out, &["name", "description", "in", "required", "allowEmptyValue"]);
    out["schema"] = match parameter["schema"].is_object() {
        true => schema(&parameter["schema"]),
        false => {
            let mut simple = json!({});
            for key in ["type", "format", "items", "uniqueItems", "enum", "default", "minimum", "maximum"] {
                if let Some(value) = parameter.get(key) {
                    simple[key] = value.clone();
                }
            }
            simple
        }
    };
    out
}

fn security(scheme: &Value) -> Value {
    let mut out = json!({});
    copy(scheme, &mut out, &["type", "description", "name", "in"]);
    if let Some(flow) = scheme["flow"].as_str() {
        let url = |key: &str| scheme[key].as_str().unwrap_or_default();
        let mut made = json!({"scopes": scheme["scopes"]});
        for (to, from) in [("authorizationUrl", "authorizationUrl"), ("tokenUrl", "tokenUrl")] {
            if !url(from).is_empty() {
                made[to] = url(from).into();
            }
        }
        out["flows"] = json!({ flow: made });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_kinds::table;

    #[test]
    fn everything_finds_its_place() {
        let swagger = json!({
            "swagger": "2.0", "info": {"title": "t", "version": "v"}, "produces": ["application/json"],
            "paths": {"/things/{name}": {
                "parameters": [{"name": "name", "in": "path", "required": true, "type": "string", "uniqueItems": true}],
                "put": {
                    "operationId": "replace", "description": "d", "consumes": ["*/*"], "x-kubernetes-action": "put",
                    "schemes": ["https"],
                    "parameters": [
                        {"name": "body", "in": "body", "required": true, "schema": {"$ref": "#/definitions/Thing"}},
                        {"$ref": "#/parameters/dryRun"},
                    ],
                    "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/Thing"}}},
                },
                "delete": {"consumes": ["*/*"], "parameters": [{"$ref": "#/parameters/body-1"}], "responses": {}},
            }},
            "parameters": {
                "dryRun": {"name": "dryRun", "in": "query", "type": "string"},
                "body-1": {"name": "body", "in": "body", "schema": {"$ref": "#/definitions/Thing"}},
            },
            "definitions": {"Thing": {"type": "object", "properties": {
                "$ref": {"type": "string"},
                "plain": {"$ref": "#/definitions/Other"},
                "told": {"description": "of it", "$ref": "#/definitions/Other"},
                "many": {"type": "array", "items": {"$ref": "#/definitions/Other"}},
                "map": {"type": "object", "additionalProperties": {"$ref": "#/definitions/Other"}},
            }}},
            "securityDefinitions": {"O": {"type": "oauth2", "flow": "implicit", "authorizationUrl": "u", "scopes": {"a": "b"}}},
        });
        let refer = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
        let want = json!({
            "openapi": "3.0.0", "info": {"title": "t", "version": "v"},
            "paths": {"/things/{name}": {
                "parameters": [{"name": "name", "in": "path", "required": true,
                    "schema": {"type": "string", "uniqueItems": true}}],
                "put": {
                    "operationId": "replace", "description": "d", "x-kubernetes-action": "put",
                    "parameters": [{"$ref": "#/components/parameters/dryRun"}],
                    "requestBody": {"required": true, "content": {"*/*": {"schema": refer("Thing")}}},
                    "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": refer("Thing")}}}},
                },
                "delete": {"requestBody": {"content": {"*/*": {"schema": refer("Thing")}}}, "responses": {}},
            }},
            "components": {
                "schemas": {"Thing": {"type": "object", "properties": {
                    "$ref": {"type": "string"},
                    "plain": refer("Other"),
                    "told": {"description": "of it", "allOf": [refer("Other")]},
                    "many": {"type": "array", "items": refer("Other")},
                    "map": {"type": "object", "additionalProperties": refer("Other")},
                }}},
                "parameters": {"dryRun": {"name": "dryRun", "in": "query", "schema": {"type": "string"}}},
                "securitySchemes": {"O": {"type": "oauth2",
                    "flows": {"implicit": {"authorizationUrl": "u", "scopes": {"a": "b"}}}}},
            },
        });
        assert_eq!(v3_of(&swagger), want);
    }

    /// There and back: of our own documents the operations and their parameters are the same in either form.
    #[test]
    fn our_own_document_comes_out_as_it_is_in_v3() {
        let kinds = table::builtin();
        let (converted, own) = (v3_of(&crate::v2(&kinds)), crate::v3(&kinds, "apis/apps/v1").expect("served"));
        let paths = own["paths"].as_object().expect("paths");
        assert!(paths.len() > 20);
        for (path, item) in paths {
            assert_eq!(inlined(&converted["paths"][path], &converted), *item, "{path}");
        }
    }

    /// With shared parameters where they are referred to.
    fn inlined(value: &Value, document: &Value) -> Value {
        match value {
            Value::Object(map) => match map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#')) {
                Some(pointer) if pointer.starts_with("/components/parameters/") => {
                    document.pointer(pointer).cloned().unwrap_or_default()
                }
                _ => map.iter().map(|(key, v)| (key.clone(), inlined(v, document))).collect::<Map<_, _>>().into(),
            },
            Value::Array(items) => items.iter().map(|v| inlined(v, document)).collect(),
            other => other.clone(),
        }
    }

    #[test]
    fn nonsense_is_no_trouble() {
        for odd in [
            json!(null),
            json!([]),
            json!({"paths": [1], "definitions": 3}),
            json!({"paths": {"/a": {"get": {"parameters": {}}}}}),
        ] {
            assert_eq!(v3_of(&odd)["openapi"], "3.0.0", "{odd}");
        }
    }
}
