//! POST to a collection.

use super::Call;
use crate::ApiServer;
use crate::encode::{decode, negotiate};
use crate::options::WriteOptions;
use crate::pipeline;
use axum::body::Body;
use axum::response::Response;
use isopod_api::Status;

pub async fn create(server: &ApiServer, call: &Call, body: Body) -> Result<Response, Status> {
    let form = call.form()?;
    negotiate::body_media(&call.parts.headers, call.kind.schema.custom)?;
    let bytes = decode::read(body).await?;
    server.metrics.requests.body(&call.kind, "create", bytes.len());
    let options = WriteOptions::parse("CreateOptions", &call.query)?;
    let decoded = decode::object(&call.parts.headers, &bytes, &call.kind.gvk, &call.kind.schema, options.validation)?;
    call.trail.request_object(&call.kind, &decoded.value);
    let intent = call.intent(&options);
    intent.warn(decoded.warnings);
    let done = pipeline::create(server, &intent, &decoded.value).await?;
    Ok(call.show(201, &done.entry, &form))
}
