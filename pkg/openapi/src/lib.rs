//! OpenAPI documents of the served API, made from its kinds and their schemas: v2 (`/openapi/v2`) and v3 (`/openapi/v3`, one
//! document for each group version), as JSON and as the protobuf that clients ask for.
//!
//! Invariants: pure functions, nothing is cached or kept here; upstream's descriptions lie compressed in the program and are
//! unpacked only while a document is made. A kind made from a CRD goes through the same code as a built-in one.

mod answer;
mod converted;
mod definitions;
mod descriptions;
mod gnostic;
mod index;
mod merge;
mod operations;
mod paths;
mod structural;
mod swagger;
mod words;

pub use answer::{Answer, answer};
pub use converted::v3_of;
pub use index::{group_versions, hash, v3_index};
pub use merge::{Converted, Elsewhere, Part};

use definitions::{Definitions, Flavor};
use descriptions::Descriptions;
use isopod_kinds::Kind;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The version that documents carry in `info`: that of the API that is served, without its patch level.
pub const API_VERSION: &str = "1.37";

/// Media types of the protobuf forms, as answers carry them. Clients also ask for older names of theirs.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
pub const V3_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";

fn info() -> Value {
    json!({"title": "Kubernetes", "version": API_VERSION})
}

fn bearer_token() -> Value {
    json!({"BearerToken": {
        "type": "apiKey", "in": "header", "name": "authorization", "description": "Bearer Token authentication"
    }})
}

/// The document of everything, OpenAPI v2.
pub fn v2(kinds: &[Arc<Kind>]) -> Value {
    let descriptions = Descriptions::unpack();
    let mut paths = Map::new();
    let mut shared = swagger::Shared::default();
    for gv in group_versions(kinds) {
        for (path, item) in paths::of(kinds, &gv, &descriptions) {
            paths.insert(path, shared.take(swagger::path_item(item)));
        }
    }
    let mut roots = json!({"paths": paths, "parameters": shared.parameters});
    let definitions = Definitions::new(kinds, Flavor::V2, descriptions).reachable(&roots);
    let (paths, parameters) = (roots["paths"].take(), roots["parameters"].take());
    json!({
        "swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions, "parameters": parameters,
        "securityDefinitions": bearer_token(), "security": [{"BearerToken": []}],
    })
}

/// The OpenAPI v3 document at a path of the index (`apis/apps/v1`, `api/v1`, `apis/apps`, `version` …); `None` where there is none.
pub fn v3(kinds: &[Arc<Kind>], path: &str) -> Option<Value> {
    let gv = group_versions(kinds).into_iter().find(|gv| gv == path)?;
    let descriptions = Descriptions::unpack();
    let paths = Value::Object(paths::of(kinds, &gv, &descriptions));
    let kinds: Vec<Arc<Kind>> = kinds.iter().filter(|k| index::belongs(k, &gv)).cloned().collect();
    let schemas = Definitions::new(&kinds, Flavor::V3, descriptions).reachable(&paths);
    let mut components = json!({"securitySchemes": bearer_token()});
    if schemas.as_object().is_some_and(|s| !s.is_empty()) {
        components["schemas"] = schemas;
    }
    Some(json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": components}))
}

/// The protobuf form of a v2 document (gnostic's `openapi.v2.Document`).
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    gnostic::v2::document(document)
}

/// The protobuf form of a v3 document (gnostic's `openapi.v3.Document`).
pub fn v3_protobuf(document: &Value) -> Vec<u8> {
    gnostic::v3::document(document)
}
