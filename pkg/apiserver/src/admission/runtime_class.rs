//! `RuntimeClass`: a pod's runtime class must exist, and gives the pod its overhead, node selector and tolerations (KEP-688).

use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use isopod_api::{Status, quantity::Quantity};
use serde_json::{Value, json};
use std::sync::Arc;

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

pub struct RuntimeClass;

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    async fn mutate(&self, request: &Request<'_>, new: &mut Value) -> Result<(), Status> {
        let Some(class) = class_of(request, new).await? else { return Ok(()) };
        let fixed = &class["overhead"]["podFixed"];
        if class["overhead"].is_object() {
            let given = &new["spec"]["overhead"];
            if given.as_object().is_some_and(|o| !o.is_empty()) && !same(given, fixed) {
                return Err(request.forbidden(Some(new), MISMATCH));
            }
            if fixed.is_object() {
                new["spec"]["overhead"] = fixed.clone();
            }
        }
        schedule(request, new, &class["scheduling"])
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        let Some(new) = new else { return Ok(()) };
        let Some(class) = class_of(request, new).await? else { return without_class(request, new) };
        if !class["overhead"].is_object() {
            return without_class(request, new);
        }
        match same(&new["spec"]["overhead"], &class["overhead"]["podFixed"]) {
            true => Ok(()),
            false => Err(request.forbidden(Some(new), MISMATCH)),
        }
    }
}

/// The class that a pod which is created names.
async fn class_of(request: &Request<'_>, pod: &Value) -> Result<Option<Arc<Value>>, Status> {
    if request.operation != Operation::Create || !request.is("pods") {
        return Ok(None);
    }
    let Some(name) = pod["spec"]["runtimeClassName"].as_str() else { return Ok(None) };
    match request.read("node.k8s.io", "runtimeclasses", "", name).await? {
        Some(class) => Ok(Some(class)),
        None => Err(request.forbidden(Some(pod), format!("pod rejected: RuntimeClass {name:?} not found"))),
    }
}

fn without_class(request: &Request<'_>, pod: &Value) -> Result<(), Status> {
    if request.operation != Operation::Create || !request.is("pods") || pod["spec"]["overhead"].is_null() {
        return Ok(());
    }
    let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
    Err(request.forbidden(Some(pod), why))
}

/// Equal amounts, however they are written; an absent list is an empty one.
fn same(a: &Value, b: &Value) -> bool {
    let amounts = |v: &Value| -> Vec<(String, Option<Quantity>)> {
        let mut all: Vec<_> = v.as_object().into_iter().flatten().collect();
        all.sort_by_key(|(name, _)| name.as_str());
        all.into_iter().map(|(k, v)| (k.clone(), v.as_str().and_then(|s| Quantity::parse(s).ok()))).collect()
    };
    let (a, b) = (amounts(a), amounts(b));
    a.len() == b.len()
        && a.iter().zip(&b).all(|((k, x), (l, y))| {
            k == l && x.as_ref().map(Quantity::milli_value) == y.as_ref().map(Quantity::milli_value)
        })
}

/// The class's node selector and tolerations become the pod's, too.
fn schedule(request: &Request<'_>, pod: &mut Value, scheduling: &Value) -> Result<(), Status> {
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let own = &pod["spec"]["nodeSelector"][key];
        if !own.is_null() && own != value {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(own)
            );
            return Err(request.forbidden(Some(pod), why));
        }
        if !pod["spec"]["nodeSelector"].is_object() {
            pod["spec"]["nodeSelector"] = json!({});
        }
        pod["spec"]["nodeSelector"][key] = value.clone();
    }
    for toleration in scheduling["tolerations"].as_array().into_iter().flatten() {
        match pod["spec"]["tolerations"].as_array_mut() {
            Some(own) if own.contains(toleration) => {}
            Some(own) => own.push(toleration.clone()),
            None => pod["spec"]["tolerations"] = json!([toleration]),
        }
    }
    Ok(())
}
