//! POST to a collection.

use super::Call;
use crate::ApiServer;
use crate::encode::{decode, negotiate};
use crate::options::WriteOptions;
use crate::pipeline;
use axum::body::Body;
use axum::response::Response;
use isopod_api::Status;
use parking_lot::Mutex;

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
    intent.warn(decoded.warnings);
    // Few creates need it a second time: those read it again, the others save a copy.
    let first = Mutex::new(Some(decoded.value));
    let sent = || first.lock().take().unwrap_or_else(|| read().map(|again| again.value).unwrap_or_default());
    let done = pipeline::create_as(server, &intent, &sent, false).await?;
    Ok(call.show(201, &done.entry, &form))
}
