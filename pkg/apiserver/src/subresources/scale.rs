//! `scale`: an object's replicas as an `autoscaling/v1 Scale`.

use crate::ApiServer;
use crate::candidate::patch::{Patch, PatchType};
use crate::candidate::update::Edit;
use crate::encode::{self, body, decode};
use crate::options::WriteOptions;
use crate::pipeline;
use crate::verbs::Call;
use axum::body::Body;
use axum::response::Response;
use isopod_api::{Gvk, Status};
use isopod_kinds::Kind;
use isopod_schema::facts;
use isopod_schema::types::Object;
use serde_json::Value;
use std::sync::Arc;

fn gvk() -> Gvk {
    Gvk::new("autoscaling", "v1", "Scale")
}

fn schema() -> Result<Arc<Object>, Status> {
    facts::builtin().object_of(&gvk()).ok_or_else(|| Status::internal("no schema of Scale"))
}

fn of(kind: &Kind, object: &Value) -> Result<Value, Status> {
    kind.hooks.to_scale(object).ok_or_else(Status::no_such_path)
}

pub async fn serve(server: &ApiServer, call: &Call, request: Body) -> Result<Response, Status> {
    let form = call.form()?;
    let show = |object: &Value| -> Result<Response, Status> {
        Ok(body::response(200, &form, encode::value(&of(&call.kind, object)?, &form)))
    };
    if call.info.verb == "get" {
        let entry = server.get_entry(&call.kind, &call.info.namespace, &call.info.name).await?;
        let entry = entry.ok_or_else(|| Status::not_found(&call.kind.gvr(), &call.info.name))?;
        return show(&encode::served(&call.kind, &entry.body));
    }
    let change = change(call, request).await?;
    let kind = &call.kind;
    let candidate = Edit(|object: &mut Value| {
        let scale = change.scale(&of(kind, object)?)?;
        let version = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !version.is_empty() && object["metadata"]["resourceVersion"] != version {
            return Err(Status::outdated(&kind.gvr(), &call.info.name));
        }
        let mut errors = Vec::new();
        if scale["spec"]["replicas"].as_i64().unwrap_or(0) < 0 {
            let path = isopod_api::Path::new("spec").child("replicas");
            let shown = scale["spec"]["replicas"].clone();
            errors.push(isopod_api::FieldError::invalid(&path, shown, "must be greater than or equal to 0"));
        }
        errors.extend(kind.hooks.apply_scale(object, &scale));
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&gvk(), &call.info.name, &errors)) }
    });
    let mut intent = call.intent(&change.options);
    // To the object it is an ordinary update of its spec.
    intent.subresource = "scale".into();
    let done = pipeline::update(server, &intent, &candidate).await?;
    show(&encode::served(&call.kind, &done.entry.body))
}

enum Wanted {
    Put(Value),
    Patch(Patch),
}

struct Change {
    wanted: Wanted,
    options: WriteOptions,
}

impl Change {
    fn scale(&self, current: &Value) -> Result<Value, Status> {
        match &self.wanted {
            Wanted::Put(scale) => Ok(scale.clone()),
            Wanted::Patch(patch) => {
                let mut made = patch.apply(current)?.object;
                if made["metadata"]["resourceVersion"] == current["metadata"]["resourceVersion"] {
                    made["metadata"]["resourceVersion"] = Value::Null;
                }
                Ok(made)
            }
        }
    }
}

async fn change(call: &Call, request: Body) -> Result<Change, Status> {
    let patches = call.info.verb == "patch";
    let options = WriteOptions::parse(if patches { "PatchOptions" } else { "UpdateOptions" }, &call.query)?;
    let ty = if patches { Some(PatchType::parse(&call.parts.headers, true)?) } else { None };
    let bytes = decode::read(request).await?;
    let wanted = match ty {
        Some(ty) => Wanted::Patch(Patch::parse(ty, &bytes, gvk(), schema()?, options.validation)?),
        None => {
            let decoded = decode::object(&call.parts.headers, &bytes, &gvk(), &*schema()?, options.validation)?;
            Wanted::Put(decoded.value)
        }
    };
    Ok(Change { wanted, options })
}
