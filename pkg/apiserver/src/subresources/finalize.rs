//! `namespaces/finalize`: the namespace controller takes its finalizer away when the namespace is empty.

use crate::ApiServer;
use crate::candidate::update::Edit;
use crate::encode::decode;
use crate::options::WriteOptions;
use crate::pipeline;
use crate::verbs::Call;
use axum::body::Body;
use axum::response::Response;
use isopod_api::Status;
use serde_json::Value;

pub async fn update(server: &ApiServer, call: &Call, request: Body) -> Result<Response, Status> {
    let form = call.form()?;
    let options = WriteOptions::parse("UpdateOptions", &call.query)?;
    let bytes = decode::read(request).await?;
    let decoded = decode::object(&call.parts.headers, &bytes, &call.kind.gvk, &call.kind.schema, options.validation)?;
    let wanted = decoded.value;
    let candidate = Edit(|namespace: &mut Value| {
        let version = wanted["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !version.is_empty() && namespace["metadata"]["resourceVersion"] != version {
            return Err(Status::outdated(&call.kind.gvr(), &call.info.name));
        }
        namespace["spec"]["finalizers"] = wanted["spec"]["finalizers"].clone();
        namespace["metadata"]["finalizers"] = wanted["metadata"]["finalizers"].clone();
        Ok(())
    });
    let done = pipeline::update(server, &call.intent(&options), &candidate).await?;
    Ok(call.show(200, &done.entry, &form))
}
