//! Subresources: what stands behind `<resource>/<name>/<subresource>`. Those with the object's own type are updates of it with
//! other rules; the others have a file each.

pub mod any_certificate;
pub mod binding;
pub mod eviction;
mod links;
pub mod log;
pub mod node;
mod proxy;
pub mod scale;
pub mod token;

use crate::ApiServer;
use crate::admission::{self, Operation};
use crate::encode::negotiate::{self, OBJECTS};
use crate::options::WriteOptions;
use crate::verbs::{self, Call};
use axum::body::Body;
use axum::response::Response;
use isopod_api::{Gvk, Status};
use serde_json::{Value, json};
use std::sync::Arc;

pub async fn dispatch(server: &Arc<ApiServer>, call: Call, body: Body) -> Result<Response, Status> {
    let served = call.kind.subresources.iter().find(|s| s.name == call.info.subresource);
    let served = served.ok_or_else(|| match call.kind.schema.custom {
        true => Status::not_found(&call.kind.gvr(), &call.info.name),
        false => Status::no_such_path(),
    })?;
    // `connect` stands for every method in upstream's discovery of streams: verbs there are get and create.
    let streams = matches!(served.name.as_str(), "exec" | "attach" | "portforward" | "proxy");
    if served.name != "proxy" && call.info.depth > 3 && !call.kind.schema.custom {
        return Err(Status::no_such_path());
    }
    let head = call.parts.method == http::Method::HEAD;
    // What names no object is authorized as a question about many, and is none that there is.
    let (verb, nameless) = match call.info.verb.as_str() {
        "list" | "watch" => ("get", true),
        "deletecollection" => ("delete", true),
        verb => (verb, call.info.name.is_empty()),
    };
    if !streams && (head || !served.verbs.iter().any(|v| v == verb)) {
        return Err(verbs::not_allowed());
    }
    if nameless {
        return Err(Status::bad_request("name must be provided"));
    }
    if !streams && served.name != "log" && !call.kind.schema.custom {
        negotiate::acceptable(&call.parts.headers, &OBJECTS)?;
    }
    if streams && let Some(gvk) = &served.gvk {
        let mut options = connect_options(&call, gvk);
        let intent = call.intent(&WriteOptions::default());
        admission::about(server, &intent, Operation::Connect, gvk, &mut options, None).await?;
    }
    let own_type = served.gvk.as_ref().is_none_or(|gvk| *gvk == call.kind.gvk);
    match (call.info.subresource.as_str(), call.info.verb.as_str()) {
        ("scale", _) => scale::serve(server, &call, body).await,
        ("binding", "create") => binding::create(server, &call, body).await,
        ("eviction", "create") => eviction::create(server, &call, body).await,
        ("token", "create") => token::create(server, &call, body).await,
        ("log", _) => {
            log::check(&call)?;
            let mut response = node::serve(server, call, body).await?;
            let never = http::HeaderValue::from_static("no-cache, private");
            response.headers_mut().insert(http::header::CACHE_CONTROL, never);
            Ok(response)
        }
        ("exec" | "attach" | "portforward", _) => node::serve(server, call, body).await,
        ("proxy", _) => proxy::serve(server, call, body).await,
        (_, "get") if own_type => verbs::get::get(server, &call).await,
        (_, "update") if own_type => verbs::update::update(server, &call, body).await,
        (_, "patch") if own_type => verbs::patch::patch(server, &call, body).await,
        _ => Err(verbs::not_allowed()),
    }
}

/// What a stream is opened with, as the object that upstream makes of it for admission.
fn connect_options(call: &Call, gvk: &Gvk) -> Value {
    let mut options = json!({"kind": gvk.kind, "apiVersion": gvk.api_version()});
    match call.info.subresource.as_str() {
        "portforward" => {
            let ports: Vec<i64> = call.query.all("ports").filter_map(|p| p.parse().ok()).collect();
            if !ports.is_empty() {
                options["ports"] = json!(ports);
            }
        }
        "proxy" => {
            if !call.info.rest.is_empty() {
                options["path"] = format!("/{}", call.info.rest.trim_start_matches('/')).into();
            }
        }
        _ => {
            for key in ["stdin", "stdout", "stderr", "tty"] {
                if call.query.flag(key) {
                    options[key] = true.into();
                }
            }
            if let Some(container) = call.query.get("container").filter(|c| !c.is_empty()) {
                options["container"] = container.into();
            }
            let command: Vec<&str> = call.query.all("command").collect();
            if !command.is_empty() {
                options["command"] = json!(command);
            }
        }
    }
    options
}
