//! PUT of an object.

use super::Call;
use crate::ApiServer;
use crate::candidate::update::Update;
use crate::encode::decode;
use crate::metadata;
use crate::options::WriteOptions;
use crate::pipeline;
use axum::body::Body;
use axum::response::Response;
use isopod_api::Status;

pub async fn update(server: &ApiServer, call: &Call, body: Body) -> Result<Response, Status> {
    let form = call.form()?;
    let bytes = decode::read(body).await?;
    server.metrics.requests.body(&call.kind, "update", bytes.len());
    let options = WriteOptions::parse("UpdateOptions", &call.query)?;
    let decoded = decode::object(&call.parts.headers, &bytes, &call.kind.gvk, &call.kind.schema, options.validation)?;
    call.trail.request_object(&call.kind, &decoded.value);
    metadata::check_name(&decoded.value, &call.info.name)?;
    let intent = call.intent(&options);
    let candidate = Update { object: decoded.value, warnings: decoded.warnings };
    let done = pipeline::update(server, &intent, &candidate).await?;
    Ok(call.show(if done.created { 201 } else { 200 }, &done.entry, &form))
}
