//! DELETE of an object and of a collection.

use super::Call;
use super::list::Seen;
use crate::ApiServer;
use crate::audit::Shown;
use crate::deletion;
use crate::encode::decode;
use crate::encode::negotiate::{Form, Media};
use crate::encode::{body, value};
use crate::options::{DeleteOptions, WriteOptions};
use axum::body::Body;
use axum::response::Response;
use isopod_api::Status;
use serde_json::{Value, json};

pub async fn delete(server: &ApiServer, call: &Call, body: Body) -> Result<Response, Status> {
    let form = call.form()?;
    let options = parse(server, call, body).await?;
    let intent = call.intent(&WriteOptions { dry_run: options.dry_run, shown: options.shown(), ..Default::default() });
    intent.warn(call.kind.hooks.delete_warnings(options.propagation.is_some() || options.orphan_dependents.is_some()));
    let done = deletion::delete(server, &intent, &options).await?;
    let code = if !done.removed && options.orphan_dependents == Some(false) { 202 } else { 200 };
    if !done.removed || call.kind.hooks.returns_deleted() {
        return Ok(call.show(code, &done.entry, &form));
    }
    let uid = done.entry.value()["metadata"]["uid"].clone();
    Ok(success(code, call, uid, &form))
}

async fn parse(server: &ApiServer, call: &Call, body: Body) -> Result<DeleteOptions, Status> {
    let bytes = decode::read(body).await?;
    let verb = if call.info.verb == "deletecollection" { "delete_collection" } else { "delete" };
    server.metrics.requests.body(&call.kind, verb, bytes.len());
    let options = DeleteOptions::parse(&call.parts.headers, &call.query, &bytes)?;
    if !bytes.is_empty() {
        let mut shown = options.shown();
        // Upstream has its internal version written there.
        shown["apiVersion"] = "meta.k8s.io/__internal".into();
        call.trail.request_value(&shown);
    }
    Ok(options)
}

fn success(code: u16, call: &Call, uid: Value, form: &Form) -> Response {
    let mut details = json!({"name": call.info.name, "kind": call.kind.resource, "uid": uid});
    if !call.kind.gvk.group.is_empty() {
        details["group"] = call.kind.gvk.group.clone().into();
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    let mut response = body::response(code, form, value(&status, form));
    response.extensions_mut().insert(Shown(status));
    response
}

pub async fn delete_collection(server: &ApiServer, call: &Call, body: Body) -> Result<Response, Status> {
    let form = call.form()?;
    let options = parse(server, call, body).await?;
    let filter = call.filter()?;
    let warnings =
        call.kind.hooks.delete_warnings(options.propagation.is_some() || options.orphan_dependents.is_some());
    call.intent(&WriteOptions::default()).warn(warnings);
    let stored_kind = call.stored_kind(server);
    let (cache, revision) = server.hub.fresh_cache(&stored_kind).await?;
    let snapshot = cache.snapshot();
    let entries = Seen::new(&stored_kind, &call.kind).select(server, &filter, snapshot.entries.values()).await?;
    for entry in &entries {
        let mut intent =
            call.intent(&WriteOptions { dry_run: options.dry_run, shown: options.shown(), ..Default::default() });
        intent.namespace = entry.namespace().to_owned();
        intent.name = entry.name().to_owned();
        match deletion::delete(server, &intent, &options).await {
            Err(e) if e.code != 404 => return Err(e),
            _ => {}
        }
    }
    if form.media == Media::Protobuf {
        server.hub.keep_messages();
    }
    let list = body::List { revision: revision.max(snapshot.revision), entries, ..Default::default() };
    Ok(body::list(&call.kind, list, &form, call.now).await)
}
