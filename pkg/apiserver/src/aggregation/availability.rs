//! Whether the servers behind APIServices answer: the condition `Available`, in kube-aggregator's words. One task for each such
//! APIService looks when its service or its endpoints change, and now and then, since an endpoint may fall silent unseen.

use super::documents::asker;
use super::remote::{Failure, Remote, identify};
use crate::ApiServer;
use crate::cache::entry::Filter;
use crate::cache::watcher::Delivery;
use crate::candidate::update::Edit;
use crate::pipeline;
use crate::services;
use axum::body::Body;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{Request, header};
use isopod_api::selector::{FieldSelector, LabelSelector};
use isopod_api::{Status, time};
use isopod_kinds::access::{Access, set};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// When to look again at one that answers.
const PERIOD: Duration = Duration::from_secs(30);
/// When to look again at one that does not: this, then twice as long each time, up to the period.
const SOON: Duration = Duration::from_millis(100);
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is asked at once: one endpoint that answers is enough.
const ATTEMPTS: usize = 5;

/// Status, reason and message of the condition.
type Verdict = (&'static str, &'static str, String);

/// Follows one APIService until it is stopped.
pub async fn watch(weak: Weak<ApiServer>, name: String, remote: Arc<Remote>, stop: CancellationToken) {
    let mut pause = SOON;
    loop {
        let Some(server) = weak.upgrade() else { return };
        // Whatever changes from now on is looked at.
        let changes = changes(&server, &remote).await;
        let again = tokio::select! {
            fine = look(&server, &name, &remote) => if fine { PERIOD } else { pause },
            () = stop.cancelled() => return,
        };
        pause = if again == PERIOD { SOON } else { (pause * 2).min(PERIOD) };
        let ended = server.stop.clone();
        drop(server);
        tokio::select! {
            () = any(changes) => pause = SOON,
            () = tokio::time::sleep(again) => {}
            () = stop.cancelled() => return,
            () = ended.cancelled() => return,
        }
    }
}

/// Changes of the service and of its endpoint slices.
async fn changes(server: &ApiServer, remote: &Remote) -> Vec<mpsc::Receiver<Delivery>> {
    let fields = FieldSelector::parse(&format!("metadata.name={}", remote.name)).unwrap_or_default();
    let labels = LabelSelector::parse(&format!("kubernetes.io/service-name={}", remote.name)).unwrap_or_default();
    let namespace = || remote.namespace.clone();
    let service = Filter { namespace: namespace(), fields, ..Default::default() };
    let slices = Filter { namespace: namespace(), labels, ..Default::default() };
    let mut all = Vec::new();
    for (group, resource, filter) in [("", "services", service), ("discovery.k8s.io", "endpointslices", slices)] {
        let Some(kind) = server.registry.load().resource(group, resource).cloned() else { continue };
        if let Ok(cache) = server.hub.cache(&server.registry.load().stored(&kind)).await {
            all.push(cache.subscribe_with_snapshot(filter).0);
        }
    }
    all
}

/// Returns at the first change; a cache that starts anew is one.
async fn any(mut changes: Vec<mpsc::Receiver<Delivery>>) {
    if changes.is_empty() {
        return std::future::pending().await;
    }
    let mut waits: FuturesUnordered<_> = changes.iter_mut().map(mpsc::Receiver::recv).collect();
    waits.next().await;
}

/// Checks, asks for the documents, and says in the status what was found. False: look again soon.
async fn look(server: &Arc<ApiServer>, name: &str, remote: &Remote) -> bool {
    let verdict = check(server, remote).await;
    let available = verdict.0 == "True";
    let mut fine = available || verdict.1 != "FailedDiscoveryCheck";
    if available {
        // Before the condition says so: clients that wait for it find the resources.
        if let Err(e) = remote.documents.refresh_discovery(server, remote).await {
            tracing::debug!(name, error = %e, "cannot read the discovery documents of an APIService");
            remote.documents.doubt();
            fine = false;
        }
    } else {
        remote.documents.doubt();
    }
    if let Err(e) = write(server, name, &remote.spec, &verdict).await {
        tracing::warn!(name, error = %e, "cannot write the status of an APIService");
        fine = false;
    }
    if available && let Err(e) = remote.documents.refresh_openapi(server, remote).await {
        tracing::debug!(name, error = %e, "cannot read the OpenAPI documents of an APIService");
        fine = false;
    }
    fine
}

async fn check(server: &ApiServer, remote: &Remote) -> Verdict {
    let (name, namespace) = (&remote.name, &remote.namespace);
    let unknown = |reason, e: Status| {
        ("Unknown", reason, format!("service/{name} in {namespace:?} cannot be checked due to: {}", e.message))
    };
    let service = match server.read("", "services", namespace, name).await {
        Ok(Some(service)) => service,
        Ok(None) => return ("False", "ServiceNotFound", format!("service/{name} in {namespace:?} is not present")),
        Err(e) => return unknown("ServiceAccessError", e),
    };
    if service.text("spec.type") == "ClusterIP" {
        let Some(port) = services::port_name(&service, remote.port) else {
            let m = format!("service/{name} in {namespace:?} is not listening on port {}", remote.port);
            return ("False", "ServicePortError", m);
        };
        let slices = match services::slices(server, namespace, name).await {
            Ok(slices) => slices,
            Err(e) => return unknown("EndpointsAccessError", e),
        };
        if slices.is_empty() {
            let m = format!("cannot find endpointslices for service/{name} in {namespace:?}");
            return ("False", "EndpointsNotFound", m);
        }
        if !slices.iter().any(|s| has_endpoint(&s.value(), &port)) {
            let m =
                format!("endpointslices for service/{name} in {namespace:?} have no addresses with port name {port:?}");
            return ("False", "MissingEndpoints", m);
        }
    }
    let address = if service.text("spec.type") == "ExternalName" { "spec.externalName" } else { "spec.clusterIP" };
    let host = format!("{}:{}", service.text(address), remote.port);
    match answers(server, remote, &host).await {
        Ok(()) => ("True", "Passed", "all checks passed".into()),
        Err(why) => ("False", "FailedDiscoveryCheck", why),
    }
}

/// Whether a slice has a ready endpoint and a port of this name.
fn has_endpoint(slice: &Value, port: &str) -> bool {
    let ready = |e: &Value| e.at("conditions.ready").as_bool().unwrap_or(true);
    let named = |p: &Value| p.text("name") == port && p.has("port");
    slice.list("endpoints").iter().any(ready) && slice.list("ports").iter().any(named)
}

/// Whether the server tells the resources of its version. The service may lead to many: one that does is enough.
async fn answers(server: &ApiServer, remote: &Remote, host: &str) -> Result<(), String> {
    let first = attempt(server, remote, host).await;
    if first.is_ok() {
        return first;
    }
    let mut others: FuturesUnordered<_> = (1..ATTEMPTS).map(|_| attempt(server, remote, host)).collect();
    let mut last = first;
    while let Some(outcome) = others.next().await {
        last = outcome;
        if last.is_ok() {
            break;
        }
    }
    last
}

async fn attempt(server: &ApiServer, remote: &Remote, host: &str) -> Result<(), String> {
    let path = remote.path();
    let url = format!("https://{host}{path}");
    let request = Request::get(&path).header(header::HOST, host).body(Body::empty());
    let mut request = request.map_err(|e| e.to_string())?;
    identify(request.headers_mut(), &asker());
    let failing = |why: String| Err(format!("failing or missing response from {url}: {why}"));
    match tokio::time::timeout(PATIENCE, remote.send(server, request, false)).await {
        Ok(Ok(answer)) => match answer.status().as_u16() {
            200..=299 => Ok(()),
            code => failing(format!("bad status from {url}: {code}")),
        },
        Ok(Err(Failure::Unresolved(why))) => Err(why),
        Ok(Err(Failure::Unreachable(why))) => failing(format!("Get {url:?}: {why}")),
        Err(_) => {
            failing(format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"))
        }
    }
}

/// Writes the condition, if it says something new and the APIService still leads there.
pub async fn write(server: &ApiServer, name: &str, spec: &Value, verdict: &Verdict) -> Result<(), Status> {
    let Some(kind) = super::kind(server) else { return Ok(()) };
    let mut intent = server.intent(&kind, "", name);
    intent.subresource = "status".to_owned();
    let now = time::format(server.config.clock.now());
    let lost = AtomicBool::new(false);
    let edit = Edit(|object: &mut Value| {
        if object.at("spec") == spec {
            let was = is_available(object);
            set_available(object, verdict, &now);
            lost.store(was && !is_available(object), Ordering::Relaxed);
        }
        Ok(())
    });
    match pipeline::update(server, &intent, &edit).await {
        Err(e) if e.code != 404 => return Err(e),
        Ok(_) if lost.into_inner() => server.metrics.unavailable(name, verdict.1),
        _ => {}
    }
    Ok(())
}

fn is_available(object: &Value) -> bool {
    let condition = object.list("status.conditions").iter().find(|c| c.text("type") == "Available");
    condition.is_some_and(|c| c.text("status") == "True")
}

fn set_available(object: &mut Value, (status, reason, message): &Verdict, now: &str) {
    let mut all = object.list("status.conditions").to_vec();
    match all.iter_mut().find(|c| c.text("type") == "Available") {
        Some(condition) => {
            if condition.text("status") != *status {
                condition["lastTransitionTime"] = now.into();
            }
            condition["status"] = (*status).into();
            condition["reason"] = (*reason).into();
            condition["message"] = message.as_str().into();
        }
        None => all.push(json!({"type": "Available", "status": status, "lastTransitionTime": now, "reason": reason,
            "message": message})),
    }
    set(object, "status.conditions", all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let mut object = json!({"spec": {}, "status": {}});
        set_available(&mut object, &("False", "A", "a".into()), "t1");
        set_available(&mut object, &("False", "B", "b".into()), "t2");
        let want = json!([{"type": "Available", "status": "False", "lastTransitionTime": "t1", "reason": "B", "message": "b"}]);
        assert_eq!(object["status"]["conditions"], want);
        set_available(&mut object, &("True", "Passed", "c".into()), "t3");
        assert_eq!(object["status"]["conditions"][0]["lastTransitionTime"], "t3");
    }

    #[test]
    fn slices_with_ready_endpoints_and_the_port() {
        let slice = |ready: Value, name: &str| json!({"endpoints": [{"conditions": {"ready": ready}}], "ports": [{"name": name, "port": 443}]});
        assert!(has_endpoint(&slice(Value::Null, ""), ""));
        assert!(has_endpoint(&slice(true.into(), "a"), "a"));
        assert!(!has_endpoint(&slice(false.into(), "a"), "a"));
        assert!(!has_endpoint(&slice(true.into(), "a"), "b"));
    }
}
