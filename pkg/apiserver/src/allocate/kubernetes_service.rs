//! The `default/kubernetes` service and its endpoints: how pods reach the API servers.

use super::peers;
use crate::ApiServer;
use crate::candidate::update::Edit;
use crate::pipeline;
use isopod_api::Status;
use serde_json::{Value, json};

/// Creates or corrects the service, its Endpoints and its EndpointSlice.
pub async fn reconcile(server: &ApiServer) -> Result<(), Status> {
    let config = &server.config;
    let first = server.service_cidr.nth(0).ok_or_else(|| Status::internal("the service CIDR is too small"))?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata(json!({"component": "apiserver", "provider": "kubernetes"})),
        "spec": {"clusterIP": first.to_string(), "type": "ClusterIP", "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.port}]},
    });
    ensure(server, service, &["spec"]).await?;
    let address = config.advertise_address;
    if address.is_loopback() {
        tracing::warn!(%address, "pods cannot reach the API server: it is advertised at a loopback address");
    }
    publish(server).await
}

fn metadata(labels: Value) -> Value {
    json!({"name": "kubernetes", "namespace": "default", "labels": labels})
}

/// Creates or corrects the Endpoints and the EndpointSlice: every API server that lives. No endpoint is a loopback address.
pub async fn publish(server: &ApiServer) -> Result<(), Status> {
    let config = &server.config;
    let address = config.advertise_address;
    if address.is_loopback() {
        return Ok(());
    }
    let all = peers::addresses(server).await?;
    let addresses: Vec<Value> = all.iter().map(|ip| json!({"ip": ip})).collect();
    let ready: Vec<Value> = all.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": metadata(json!({"endpointslice.kubernetes.io/skip-mirror": "true"})),
        "subsets": [{"addresses": addresses,
            "ports": [{"name": "https", "port": config.port, "protocol": "TCP"}]}],
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": metadata(json!({"kubernetes.io/service-name": "kubernetes"})),
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": ready,
        "ports": [{"name": "https", "port": config.port, "protocol": "TCP"}],
    });
    for (object, fields) in [(endpoints, &["subsets"][..]), (slice, &["endpoints", "ports"])] {
        ensure(server, object, fields).await?;
    }
    Ok(())
}

/// Creates the object, or sets `fields` of the one that is there.
async fn ensure(server: &ApiServer, object: Value, fields: &[&str]) -> Result<(), Status> {
    let Some(intent) = server.own_intent(&object) else { return Ok(()) };
    // Looked for first: to a create its own cluster IP is taken.
    if server.current(&intent.kind, &intent.namespace, &intent.name).await?.is_none() {
        match pipeline::create(server, &intent, &object).await {
            Err(e) if e.reason == "AlreadyExists" => {}
            other => return other.map(drop),
        }
    }
    let edit = Edit(|current: &mut Value| {
        for field in fields.iter() {
            match (&mut current[*field], &object[*field]) {
                // What a person set beside our fields stays.
                (Value::Object(now), Value::Object(want)) => now.extend(want.clone()),
                (now, want) => *now = want.clone(),
            }
        }
        Ok(())
    });
    pipeline::update(server, &intent, &edit).await.map(drop)
}
