//! `pods/binding`: the scheduler assigns a pod to a node.

use crate::ApiServer;
use crate::admission::{self, Operation};
use crate::audit::Shown;
use crate::candidate::update::Raw;
use crate::encode::{self, body, decode};
use crate::metadata;
use crate::options::WriteOptions;
use crate::pipeline;
use crate::verbs::Call;
use axum::body::Body;
use axum::response::Response;
use isopod_api::{Gvk, Status, time};
use isopod_schema::facts;
use serde_json::{Value, json};

pub async fn create(server: &ApiServer, call: &Call, request: Body) -> Result<Response, Status> {
    let form = call.form()?;
    let gvk = Gvk::new("", "v1", "Binding");
    let schema = facts::builtin().object_of(&gvk).ok_or_else(|| Status::internal("no schema of Binding"))?;
    let bytes = decode::read(request).await?;
    let options = WriteOptions::parse("CreateOptions", &call.query)?;
    let mut binding = decode::object(&call.parts.headers, &bytes, &gvk, &schema, options.validation)?.value;
    call.trail.request_value(&binding);
    // `POST namespaces/<ns>/bindings` names the pod in the body.
    let name = match call.info.name.as_str() {
        "" => binding["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        name => name.to_owned(),
    };
    if binding["metadata"]["name"].as_str() != Some(name.as_str()) {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let errors = isopod_kinds::kinds::pod::validate_binding(&binding);
    if !errors.is_empty() {
        // Upstream's storage returns these as they are, which its handler takes for a failure of the server.
        return Err(Status::new(500, "", isopod_api::aggregate(&errors)));
    }
    let pods = server.registry.load().get("", "v1", "pods").cloned().ok_or_else(Status::no_such_path)?;
    let mut intent = call.intent(&options);
    intent.kind = pods;
    intent.name = name.clone();
    intent.subresource = "binding".into();
    let mut named = intent.kind.gvr();
    named.resource = "pods/binding".into();
    admission::about(server, &intent, Operation::Create, &gvk, &mut binding, None).await?;
    let now = intent.now;
    let candidate = Raw(|pod: &mut Value| {
        let conflict = |why: String| Err(Status::conflict(&named, &name, why));
        for (key, what) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            let text = |object: &Value| object["metadata"][key].as_str().unwrap_or_default().to_owned();
            let (wanted, found) = (text(&binding), text(pod));
            if !wanted.is_empty() && wanted != found {
                return Err(metadata::precondition(&intent, what, &wanted, &found));
            }
        }
        if pod["metadata"]["deletionTimestamp"].is_string() {
            return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
        }
        let assigned = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if !assigned.is_empty() {
            return conflict(format!("pod {name} is already assigned to node {assigned:?}"));
        }
        if pod["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
            return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
        }
        pod["spec"]["nodeName"] = binding["target"]["name"].clone();
        merge(&mut pod["metadata"]["annotations"], &binding["metadata"]["annotations"]);
        merge(&mut pod["metadata"]["labels"], &binding["metadata"]["labels"]);
        scheduled(pod, now);
        Ok(())
    });
    pipeline::update(server, &intent, &candidate).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    let mut response = body::response(201, &form, encode::value(&status, &form));
    response.extensions_mut().insert(Shown(status));
    Ok(response)
}

fn merge(into: &mut Value, from: &Value) {
    let Some(from) = from.as_object().filter(|f| !f.is_empty()) else { return };
    if !into.is_object() {
        *into = json!({});
    }
    if let Some(into) = into.as_object_mut() {
        into.extend(from.clone());
    }
}

/// Sets the condition `PodScheduled`.
fn scheduled(pod: &mut Value, now: jiff::Timestamp) {
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|c| c["type"] != "PodScheduled");
    conditions.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": time::format(now)}));
    pod["status"]["conditions"] = conditions.into();
}
