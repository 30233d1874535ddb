//! `serviceaccounts/token`: issues a token, bound to a pod, secret or node if the request says so (KEP-1205, KEP-4193).

use crate::ApiServer;
use crate::config::{BoundObject, TokenSpec};
use crate::encode::{self, body, decode};
use crate::options::WriteOptions;
use crate::verbs::Call;
use axum::body::Body;
use axum::response::Response;
use isopod_api::{FieldError, Gvk, Gvr, Path, Status, time};
use isopod_schema::facts;
use serde_json::{Value, json};

const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;

pub async fn create(server: &ApiServer, call: &Call, request: Body) -> Result<Response, Status> {
    let form = call.form()?;
    let options = WriteOptions::parse("CreateOptions", &call.query)?;
    let tokens = server.config.tokens.as_ref();
    let tokens = tokens.ok_or_else(|| Status::new(501, "NotImplemented", "this server signs no tokens"))?;
    let gvk = Gvk::new("authentication.k8s.io", "v1", "TokenRequest");
    let schema = facts::builtin().object_of(&gvk).ok_or_else(|| Status::internal("no schema of TokenRequest"))?;
    let bytes = decode::read(request).await?;
    let mut wanted = decode::object(&call.parts.headers, &bytes, &gvk, &schema, options.validation)?.value;
    let (namespace, name) = (&call.info.namespace, &call.info.name);
    let account = server.read("", "serviceaccounts", namespace, name).await?;
    let account = account.ok_or_else(|| Status::not_found(&call.kind.gvr(), name))?;
    let seconds = wanted["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
    check_seconds(&gvk, name, seconds)?;
    let mut spec = TokenSpec {
        namespace: namespace.clone(),
        service_account: name.clone(),
        service_account_uid: account["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
        audiences: wanted["spec"]["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        expiration_seconds: seconds,
        bound: None,
        node: None,
    };
    bind(server, &wanted["spec"]["boundObjectRef"], &mut spec).await?;
    if spec.audiences.is_empty() {
        spec.audiences = tokens.api_audiences();
    }
    wanted["spec"]["audiences"] = json!(spec.audiences);
    wanted["spec"]["expirationSeconds"] = seconds.into();
    wanted["metadata"] = json!({"name": name, "namespace": namespace, "creationTimestamp": time::format(call.now)});
    if !options.dry_run {
        let issued = tokens.issue(&spec, call.now)?;
        wanted["status"] = json!({"token": issued.token, "expirationTimestamp": time::format(issued.expires)});
    }
    Ok(body::response(201, &form, encode::value(&wanted, &form)))
}

fn check_seconds(gvk: &Gvk, name: &str, seconds: i64) -> Result<(), Status> {
    let path = Path::new("spec").child("expirationSeconds");
    let why = match seconds {
        s if s < MIN_SECONDS => "may not specify a duration less than 10 minutes",
        s if s > MAX_SECONDS => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(()),
    };
    Err(Status::invalid(gvk, name, &[FieldError::invalid(&path, seconds, why)]))
}

/// The object that bounds the token must be there, with the uid that the client knows.
async fn bind(server: &ApiServer, reference: &Value, spec: &mut TokenSpec) -> Result<(), Status> {
    let Some(kind) = reference["kind"].as_str() else { return Ok(()) };
    let text = |key: &str| reference[key].as_str().unwrap_or_default().to_owned();
    let (name, uid) = (text("name"), text("uid"));
    let (resource, namespace) = match kind {
        "Pod" => ("pods", spec.namespace.as_str()),
        "Secret" => ("secrets", spec.namespace.as_str()),
        "Node" => ("nodes", ""),
        other => return Err(Status::bad_request(format!("cannot bind token to object of type {other}"))),
    };
    let gvr = Gvr::new("", "v1", resource);
    let found = server.read("", resource, namespace, &name).await?;
    let found = found.ok_or_else(|| Status::not_found(&gvr, &name))?;
    let have = found["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    if !uid.is_empty() && uid != have {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(&gvr, &name, why));
    }
    if kind == "Pod" {
        if found["spec"]["serviceAccountName"] != spec.service_account.as_str() {
            let m = format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                spec.service_account
            );
            return Err(Status::bad_request(m));
        }
        let node = found["spec"]["nodeName"].as_str().filter(|n| !n.is_empty());
        if let Some(node_name) = node {
            let node = server.read("", "nodes", "", node_name).await?;
            let uid = node.and_then(|n| n["metadata"]["uid"].as_str().map(str::to_owned)).unwrap_or_default();
            spec.node = Some(BoundObject { kind: "Node".into(), name: node_name.to_owned(), uid });
        }
    }
    spec.bound = Some(BoundObject { kind: kind.to_owned(), name, uid: have });
    Ok(())
}
