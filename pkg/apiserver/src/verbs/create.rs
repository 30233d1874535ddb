//! POST to a collection.

use super::Call;
use crate::ApiServer;
use crate::encode::{decode, negotiate};
use crate::options::WriteOptions;
use crate::pipeline;
use crate::reviews;
use axum::body::Body;
use axum::response::Response;
use isopod_api::Status;
use isopod_api::field::{FieldError, Path};
use isopod_kinds::Kind;
use parking_lot::Mutex;
use serde_json::Value;

pub async fn create(server: &ApiServer, call: &Call, body: Body) -> Result<Response, Status> {
    let form = call.form()?;
    negotiate::body_media(&call.parts.headers, call.kind.schema.custom)?;
    let bytes = decode::read(body).await?;
    server.metrics.requests.body(&call.kind, "create", bytes.len());
    let options = WriteOptions::parse("CreateOptions", &call.query)?;
    let read = || decode::object(&call.parts.headers, &bytes, &call.kind.gvk, &call.kind.schema, options.validation);
    let decoded = read()?;
    call.trail.request_object(&call.kind, &decoded.value);
    let intent = call.intent(&options);
    if intent.kind.namespaced && intent.namespace.is_empty() && !reviews::is_review(&call.kind) {
        return Err(nowhere(&call.kind, &decoded.value));
    }
    intent.warn(decoded.warnings);
    // Few creates need it a second time: those read it again, the others save a copy.
    let first = Mutex::new(Some(decoded.value));
    let sent = || first.lock().take().unwrap_or_else(|| read().map(|again| again.value).unwrap_or_default());
    let done = pipeline::create_as(server, &intent, &sent, false).await?;
    Ok(call.show(201, &done.entry, &form))
}

/// The path names an empty namespace.
fn nowhere(kind: &Kind, object: &Value) -> Status {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let missing = FieldError::required(&Path::new("metadata").child("namespace"), "");
    Status::invalid(&kind.gvk, name, &[missing])
}
