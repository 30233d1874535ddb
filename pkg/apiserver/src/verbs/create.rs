//! POST to a collection.

use super::Call;
use crate::ApiServer;
use crate::encode::decode;
use crate::options::WriteOptions;
use crate::pipeline;
use axum::body::Body;
use axum::response::Response;
use isopod_api::Status;

pub async fn create(server: &ApiServer, call: &Call, body: Body) -> Result<Response, Status> {
    let form = call.form()?;
    let options = WriteOptions::parse("CreateOptions", &call.query)?;
    let bytes = decode::read(body).await?;
    server.metrics.requests.body(&call.kind, "create", bytes.len());
    let decoded = decode::object(&call.parts.headers, &bytes, &call.kind.gvk, &call.kind.schema, options.validation)?;
    call.trail.request_object(&call.kind, &decoded.value);
    let intent = call.intent(&options);
    intent.warn(decoded.warnings);
    let done = pipeline::create(server, &intent, &decoded.value).await?;
    Ok(call.show(201, &done.entry, &form))
}
