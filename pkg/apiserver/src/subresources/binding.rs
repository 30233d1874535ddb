//! `pods/binding`: the scheduler assigns a pod to a node.

use crate::ApiServer;
use crate::candidate::update::Raw;
use crate::encode::{self, body, decode};
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
    let options = WriteOptions::parse("CreateOptions", &call.query)?;
    let gvk = Gvk::new("", "v1", "Binding");
    let schema = facts::builtin().object_of(&gvk).ok_or_else(|| Status::internal("no schema of Binding"))?;
    let bytes = decode::read(request).await?;
    let binding = decode::object(&call.parts.headers, &bytes, &gvk, &schema, options.validation)?.value;
    // `POST namespaces/<ns>/bindings` names the pod in the body.
    let name = match call.info.name.as_str() {
        "" => binding["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        name => name.to_owned(),
    };
    let pods = server.registry.load().get("", "v1", "pods").cloned().ok_or_else(Status::no_such_path)?;
    let mut intent = call.intent(&options);
    intent.kind = pods;
    intent.name = name.clone();
    intent.subresource = "binding".into();
    let gvr = intent.kind.gvr();
    let now = intent.now;
    let candidate = Raw(|pod: &mut Value| {
        let conflict = |why: String| Err(Status::conflict(&gvr, &name, why));
        let uid = binding["metadata"]["uid"].as_str().unwrap_or_default();
        if !uid.is_empty() && pod["metadata"]["uid"] != uid {
            let have = pod["metadata"]["uid"].as_str().unwrap_or_default();
            return conflict(format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {have}"));
        }
        let node = binding["target"]["name"].as_str().unwrap_or_default();
        let kind = binding["target"]["kind"].as_str().unwrap_or_default();
        if node.is_empty() || !(kind.is_empty() || kind == "Node") {
            return Err(Status::bad_request("a binding's target must name a node"));
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
        pod["spec"]["nodeName"] = node.into();
        merge(&mut pod["metadata"]["annotations"], &binding["metadata"]["annotations"]);
        merge(&mut pod["metadata"]["labels"], &binding["metadata"]["labels"]);
        scheduled(pod, now);
        Ok(())
    });
    pipeline::update(server, &intent, &candidate).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(body::response(201, &form, encode::value(&status, &form)))
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
