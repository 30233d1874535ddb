//! PATCH of an object, also through a subresource that has the object's own type.

use super::Call;
use crate::ApiServer;
use crate::candidate::apply::{Apply, Configuration};
use crate::candidate::patch::{Patch, PatchType};
use crate::encode::decode;
use crate::options::WriteOptions;
use crate::ownership::Served;
use crate::pipeline;
use axum::body::Body;
use axum::response::Response;
use isopod_api::Status;

pub async fn patch(server: &ApiServer, call: &Call, body: Body) -> Result<Response, Status> {
    let ty = PatchType::of(&call.parts.headers, &call.kind)?;
    let form = call.form()?;
    let bytes = decode::read(body).await?;
    server.metrics.requests.body(&call.kind, "patch", bytes.len());
    let options = WriteOptions::parse_patch(&call.query, ty == PatchType::Apply)?;
    call.trail.request_patch(&bytes);
    let (kind, intent) = (&call.kind, call.intent(&options));
    let done = if ty == PatchType::Apply {
        let configuration = Configuration::parse(&bytes, options.force, options.validation)?;
        let versions = Served::new(server, kind);
        pipeline::update(server, &intent, &Apply { server, intent: &intent, configuration, versions }).await?
    } else {
        let candidate = Patch::parse(ty, &bytes, kind.gvk.clone(), kind.schema.clone(), options.validation)?;
        pipeline::update(server, &intent, &candidate).await?
    };
    Ok(call.show(if done.created { 201 } else { 200 }, &done.entry, &form))
}
