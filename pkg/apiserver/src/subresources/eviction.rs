//! `pods/eviction`: a delete that disruption budgets may refuse (`registry/core/pod/rest/eviction.go`).

use crate::ApiServer;
use crate::admission::{self, Operation};
use crate::audit::Shown;
use crate::candidate::update::{Edit, Raw};
use crate::deletion;
use crate::encode::{self, body, decode};
use crate::options::{DeleteOptions, WriteOptions};
use crate::ownership;
use crate::pipeline::{self, Intent};
use crate::verbs::Call;
use axum::body::Body;
use axum::response::Response;
use isopod_api::selector::LabelSelector;
use isopod_api::{Cause, Gvk, Status, time};
use isopod_schema::facts;
use serde_json::{Value, json};
use std::sync::Arc;

/// So many evictions may be noted in a budget before its controller has seen them.
const MAX_DISRUPTED: usize = 2000;

pub async fn create(server: &ApiServer, call: &Call, request: Body) -> Result<Response, Status> {
    let form = call.form()?;
    let gvk = Gvk::new("policy", "v1", "Eviction");
    let schema = facts::builtin().object_of(&gvk).ok_or_else(|| Status::internal("no schema of Eviction"))?;
    let bytes = decode::read(request).await?;
    let options = WriteOptions::parse("CreateOptions", &call.query)?;
    let read = |gvk: &Gvk| decode::object(&call.parts.headers, &bytes, gvk, &schema, options.validation);
    // Clients of the beta version are still understood, which had the same fields.
    let mut eviction = read(&gvk).or_else(|e| read(&Gvk::new("policy", "v1beta1", "Eviction")).map_err(|_| e))?.value;
    call.trail.request_value(&eviction);
    let name = eviction["metadata"]["name"].as_str().unwrap_or_default();
    if !name.is_empty() && name != call.info.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    admission::about(server, &call.intent(&options), Operation::Create, &gvk, &mut eviction, None).await?;
    let wanted = &eviction["deleteOptions"];
    let mut delete = DeleteOptions {
        grace_period_seconds: wanted["gracePeriodSeconds"].as_i64(),
        uid: wanted["preconditions"]["uid"].as_str().map(str::to_owned),
        resource_version: wanted["preconditions"]["resourceVersion"].as_str().map(str::to_owned),
        dry_run: options.dry_run || wanted["dryRun"].as_array().is_some_and(|d| !d.is_empty()),
        ..Default::default()
    };
    let mut intent = call.intent(&WriteOptions { dry_run: delete.dry_run, ..options });
    intent.subresource = String::new();
    intent.webhooks_asked = true;
    let current = pipeline::load(server, &intent).await?;
    let pod = current.value(&intent.kind);
    if !is_free(&pod)
        && let Some(budget) = budget(server, &intent, &pod).await?
        && counts(&pod, &budget)
    {
        claim(server, &intent, &budget).await?;
        // The budget was charged for this pod as it is: another one of its name is not meant.
        delete.uid = delete.uid.or(pod["metadata"]["uid"].as_str().map(str::to_owned));
    }
    if !delete.dry_run {
        mark(server, &intent, &mut delete).await?;
    }
    deletion::delete(server, &intent, &delete).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    let mut response = body::response(201, &form, encode::value(&status, &form));
    response.extensions_mut().insert(Shown(status));
    Ok(response)
}

/// Pods that do no work are evicted without asking.
fn is_free(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
        || pod["metadata"]["deletionTimestamp"].is_string()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Whether evicting this pod counts against the budget (KEP-3017).
fn counts(pod: &Value, budget: &Value) -> bool {
    if is_ready(pod) {
        return true;
    }
    let healthy = budget["status"]["currentHealthy"].as_i64().unwrap_or(0);
    let desired = budget["status"]["desiredHealthy"].as_i64().unwrap_or(0);
    let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
    !(always || (healthy >= desired && desired > 0))
}

/// The budget that covers the pod; two are an error.
async fn budget(server: &ApiServer, intent: &Intent, pod: &Value) -> Result<Option<Arc<Value>>, Status> {
    let all = server.read_all("policy", "poddisruptionbudgets", &intent.namespace).await?;
    let covers = |b: &Arc<Value>| LabelSelector::from_object(b["spec"].get("selector")).is_ok_and(|s| s.matches(pod));
    let mut covering: Vec<Arc<Value>> = all.into_iter().filter(covers).collect();
    if covering.len() > 1 {
        let m = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(Status::new(500, "InternalError", m));
    }
    Ok(covering.pop())
}

/// Takes one disruption from the budget, or 429.
async fn claim(server: &ApiServer, intent: &Intent, budget: &Value) -> Result<(), Status> {
    let kind = server.registry.load().resource("policy", "poddisruptionbudgets").cloned();
    let kind = kind.ok_or_else(Status::no_such_path)?;
    let name = budget["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let claim = Intent {
        kind,
        name: name.clone(),
        subresource: "status".into(),
        manager: ownership::SERVER.to_owned(),
        ..intent.clone()
    };
    let (pod, now) = (intent.name.clone(), intent.now);
    let edit = Edit(|budget: &mut Value| {
        let status = &mut budget["status"];
        if status["observedGeneration"].as_i64().unwrap_or(0) < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
            let m = "Cannot evict pod as it would violate the pod's disruption budget.";
            let why = format!("The disruption budget {name} is still being processed by the server.");
            return Err(refusal(m, why, 10));
        }
        let status = &mut budget["status"];
        let allowed = status["disruptionsAllowed"].as_i64().unwrap_or(0);
        let disrupted = status["disruptedPods"].as_object().map_or(0, serde_json::Map::len);
        if disrupted > MAX_DISRUPTED {
            let m = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
            return Err(Status::new(403, "Forbidden", m));
        }
        if allowed <= 0 {
            let (desired, healthy) =
                (status["desiredHealthy"].as_i64().unwrap_or(0), status["currentHealthy"].as_i64().unwrap_or(0));
            let why = format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently");
            return Err(refusal("Cannot evict pod as it would violate the pod's disruption budget.", why, 0));
        }
        status["disruptionsAllowed"] = (allowed - 1).into();
        if !status["disruptedPods"].is_object() {
            status["disruptedPods"] = json!({});
        }
        status["disruptedPods"][pod.as_str()] = time::format(now).into();
        Ok(())
    });
    pipeline::update(server, &claim, &edit).await.map(drop)
}

/// Says on the pod why it goes (KEP-3329): jobs may forgive that failure.
async fn mark(server: &ApiServer, intent: &Intent, delete: &mut DeleteOptions) -> Result<(), Status> {
    let now = time::format(intent.now);
    let edit = Raw(|pod: &mut Value| {
        deletion::check(intent, pod, delete)?;
        disrupt(pod, &now);
        Ok(())
    });
    let status = Intent { subresource: "status".into(), ..intent.clone() };
    let marked = pipeline::update(server, &status, &edit).await?.entry.value();
    if delete.resource_version.is_some() {
        delete.resource_version = marked["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    }
    Ok(())
}

fn disrupt(pod: &mut Value, now: &str) {
    const KIND: &str = "DisruptionTarget";
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let is_marked = |c: &&Value| c["type"] == KIND && c["status"] == "True";
    let since = conditions.iter().find(is_marked).map_or(json!(now), |c| c["lastTransitionTime"].clone());
    let new = json!({
        "type": KIND, "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        "lastProbeTime": null, "lastTransitionTime": since,
    });
    match conditions.iter_mut().find(|c| c["type"] == KIND) {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
    pod["status"]["conditions"] = Value::Array(conditions);
}

fn refusal(message: &str, why: String, retry: i32) -> Status {
    let mut status = Status::too_many_requests(message, retry);
    status.details.get_or_insert_default().causes =
        vec![Cause { reason: "DisruptionBudget".into(), message: why, field: String::new() }];
    status
}
