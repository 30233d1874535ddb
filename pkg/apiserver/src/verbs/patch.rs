//! PATCH of an object, also through a subresource that has the object's own type.

use super::Call;
use crate::ApiServer;
use crate::candidate::patch::{Patch, PatchType};
use crate::encode::decode;
use crate::options::WriteOptions;
use crate::pipeline;
use axum::body::Body;
use axum::response::Response;
use isopod_api::Status;

pub async fn patch(server: &ApiServer, call: &Call, body: Body) -> Result<Response, Status> {
    let form = call.form()?;
    let ty = PatchType::parse(&call.parts.headers, true)?;
    let options = WriteOptions::parse("PatchOptions", &call.query)?;
    let bytes = decode::read(body).await?;
    let kind = &call.kind;
    let candidate = Patch::parse(ty, &bytes, kind.gvk.clone(), kind.schema.clone(), options.validation)?;
    let done = pipeline::update(server, &call.intent(&options), &candidate).await?;
    Ok(call.show(if done.created { 201 } else { 200 }, &done.entry, &form))
}
