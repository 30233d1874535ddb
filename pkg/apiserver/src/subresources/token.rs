//! `serviceaccounts/token`: issues a token, bound to a pod, secret or node if the request says so (KEP-1205, KEP-4193).

use crate::ApiServer;
use crate::admission::{self, Operation};
use crate::encode::{self, body, decode};
use crate::objects;
use crate::options::WriteOptions;
use crate::verbs::Call;
use axum::body::Body;
use axum::response::Response;
use isopod_api::{Gvk, Status};
use isopod_auth::token::{self, Request, RequestError};
use isopod_base::errors::Chain;
use isopod_schema::{facts, json};

pub async fn create(server: &ApiServer, call: &Call, body: Body) -> Result<Response, Status> {
    let form = call.form()?;
    let options = WriteOptions::parse("CreateOptions", &call.query)?;
    let tokens = server.config.tokens.as_ref();
    let tokens = tokens.ok_or_else(|| Status::new(501, "NotImplemented", "this server signs no tokens"))?;
    let gvk = Gvk::new("authentication.k8s.io", "v1", "TokenRequest");
    let schema = facts::builtin().object_of(&gvk).ok_or_else(|| Status::internal("no schema of TokenRequest"))?;
    let bytes = decode::read(body).await?;
    let mut wanted = decode::object(&call.parts.headers, &bytes, &gvk, &schema, options.validation)?.value;
    call.trail.request_value(&wanted);
    isopod_kinds::defaults::apply(&mut wanted, &schema);
    let intent = call.intent(&options);
    admission::mutate(server, &intent, Operation::Create, &mut wanted, None).await?;
    admission::about(server, &intent, Operation::Create, &gvk, &mut wanted, None).await?;

    let (namespace, name) = (&call.info.namespace, &call.info.name);
    objects::check_key(&call.kind, namespace, name)?;
    let account = server.read("", "serviceaccounts", namespace, name).await?;
    let account = account.ok_or_else(|| Status::not_found(&call.kind.gvr(), name))?;
    let bound = match token::bound_reference(&wanted, namespace)? {
        Some(r) => server.read("", r.resource, &r.namespace, &r.name).await?,
        None => None,
    };
    let node = match bound.as_ref().and_then(|b| b["spec"]["nodeName"].as_str()).filter(|n| !n.is_empty()) {
        Some(node) => server.read("", "nodes", "", node).await?,
        None => None,
    };
    let request = Request {
        request: &wanted,
        service_account: &account,
        bound: bound.as_deref(),
        node: node.as_deref(),
        id: uuid::Uuid::new_v4().to_string(),
        now: call.now,
    };
    let mut answer = token::request(tokens, &request).map_err(|e| match e {
        RequestError::Refused(status) => status,
        RequestError::Token(e) => Status::internal(format!("failed to generate token: {}", Chain(&e))),
    })?;
    if options.dry_run {
        answer["status"]["token"] = "".into();
    }
    answer["apiVersion"] = gvk.api_version().into();
    answer["kind"] = gvk.kind.as_str().into();
    json::canonicalize(&mut answer, &schema);
    Ok(body::response(201, &form, encode::value(&answer, &form)))
}
