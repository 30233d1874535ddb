//! GET of one object.

use super::Call;
use crate::ApiServer;
use crate::objects;
use crate::options::{invalid_version, resource_version};
use axum::response::Response;
use isopod_api::Status;

pub async fn get(server: &ApiServer, call: &Call) -> Result<Response, Status> {
    let form = call.object_form()?;
    objects::check_key(&call.kind, &call.info.namespace, &call.info.name)?;
    // Every other read is fresh, so a lower bound for the revision is met by itself unless it lies in the future.
    let version = resource_version(call.query.get("resourceVersion")).map_err(|why| invalid_version(&why))?;
    if let Some(version) = version.filter(|v| *v > 0) {
        server.hub.wait_for_client(version).await?;
    }
    let entry = match version {
        Some(0) => server.get_cached(&call.kind, &call.info.namespace, &call.info.name).await?,
        _ => server.get_entry(&call.kind, &call.info.namespace, &call.info.name).await?,
    };
    let entry = entry.ok_or_else(|| Status::not_found(&call.kind.gvr(), &call.info.name))?;
    Ok(call.show(200, &entry, &form))
}
