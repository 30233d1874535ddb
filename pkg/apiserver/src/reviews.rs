//! Kinds that are questions: their create answers and stores nothing. TokenReview, the access reviews,
//! SelfSubjectRulesReview, SelfSubjectReview. Admission has its say about them as about what is stored.

use crate::admission::{self, Operation};
use crate::authorization::Verdict;
use crate::encode::{self, body, decode, negotiate};
use crate::options::WriteOptions;
use crate::tokens::Remarks;
use crate::verbs::Call;
use crate::{ApiServer, chain};
use axum::body::Body;
use axum::response::Response;
use isopod_api::{Gvk, Status, UserInfo, time};
use isopod_auth::review::{self, AccessReview};
use isopod_kinds::Kind;
use isopod_schema::json as schema_json;
use serde_json::{Value, json};

/// Is a create of this kind a question?
pub fn is_review(kind: &Kind) -> bool {
    matches!(kind.gvk.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
        && kind.gvk.kind.ends_with("Review")
}

pub async fn create(server: &ApiServer, call: &Call, body: Body) -> Result<Response, Status> {
    // An answer is no object that could be a row of a table.
    let form = negotiate::form(&call.parts.headers, &call.query, false)?;
    let bytes = decode::read(body).await?;
    let options = WriteOptions::parse("CreateOptions", &call.query)?;
    let kind = &call.kind;
    let decoded = decode::object(&call.parts.headers, &bytes, &kind.gvk, &kind.schema, options.validation)?;
    let intent = call.intent(&options);
    intent.warn(decoded.warnings);
    let mut review = decoded.value;
    call.trail.request_object(kind, &review);
    review["apiVersion"] = kind.gvk.api_version().into();
    review["kind"] = kind.gvk.kind.as_str().into();
    if kind.namespaced {
        place(&mut review, &call.info.namespace)?;
    }
    admission::mutate(server, &intent, Operation::Create, &mut review, None).await?;
    check(kind, &review)?;
    admission::validate(server, &intent, Operation::Create, Some(&review), None).await?;
    review["status"] = answer(server, call, &mut review).await?;
    schema_json::canonicalize(&mut review, &kind.schema);
    Ok(body::response(201, &form, encode::value(&review, &form)))
}

/// The review is about the namespace of the request.
fn place(review: &mut Value, namespace: &str) -> Result<(), Status> {
    if !review["metadata"].is_object() {
        review["metadata"] = json!({});
    }
    let given = review["metadata"]["namespace"].as_str().unwrap_or_default();
    if !given.is_empty() && given != namespace {
        let m = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(m));
    }
    review["metadata"]["namespace"] = namespace.into();
    Ok(())
}

/// Of which kind of access review it is.
fn access_review(kind: &Kind) -> Option<AccessReview> {
    Some(match kind.gvk.kind.as_str() {
        "SubjectAccessReview" => AccessReview::Subject,
        "LocalSubjectAccessReview" => AccessReview::LocalSubject,
        "SelfSubjectAccessReview" => AccessReview::SelfSubject,
        _ => return None,
    })
}

/// Whether it can be answered.
fn check(kind: &Kind, review: &Value) -> Result<(), Status> {
    let lacks = |field: &str| review["spec"][field].as_str().unwrap_or_default().is_empty();
    match kind.gvk.kind.as_str() {
        "TokenReview" if lacks("token") => {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        "SelfSubjectRulesReview" if lacks("namespace") => return Err(Status::bad_request("no namespace on request")),
        _ => {}
    }
    let errors = access_review(kind).map_or_else(Vec::new, |kind| review::validate(review, kind));
    if errors.is_empty() {
        return Ok(());
    }
    // Upstream leaves the kind out.
    Err(Status::invalid(&Gvk::new(&kind.gvk.group, &kind.gvk.version, ""), "", &errors))
}

async fn answer(server: &ApiServer, call: &Call, review: &mut Value) -> Result<Value, Status> {
    if let Some(kind) = access_review(&call.kind) {
        return Ok(access(server, call, &review["spec"], kind).await);
    }
    match call.kind.gvk.kind.as_str() {
        "TokenReview" => Ok(token(server, call, &review["spec"]).await),
        "SelfSubjectRulesReview" => {
            let status = rules(server, &call.user, &review["spec"]);
            // Upstream answers with the status alone.
            (review["metadata"], review["spec"]) = (json!({}), json!({}));
            Ok(status)
        }
        "SelfSubjectReview" => {
            review["metadata"]["creationTimestamp"] = time::format(call.now).into();
            Ok(json!({ "userInfo": review::user_json(&call.user) }))
        }
        other => Err(Status::internal(format!("no answer to a {other}"))),
    }
}

async fn token(server: &ApiServer, call: &Call, spec: &Value) -> Value {
    let token = spec["token"].as_str().unwrap_or_default();
    let audiences: Vec<String> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let remarks = Remarks { warnings: &call.warnings, trail: &call.trail };
    match server.verify_token(token, &audiences, &remarks).await {
        Ok((user, audiences)) => review::token_status(Ok((&user, &audiences))),
        Err(why) => review::token_status(Err(why)),
    }
}

async fn access(server: &ApiServer, call: &Call, spec: &Value, kind: AccessReview) -> Value {
    let user = if kind == AccessReview::SelfSubject { call.user.clone() } else { review::subject(spec) };
    let Verdict { decision, error } = chain::decide(server, &review::attributes(spec, user)).await;
    let errors = [error, review::unused_selectors(spec)];
    let errors: Vec<&str> = errors.iter().map(String::as_str).filter(|e| !e.is_empty()).collect();
    review::access_status(&decision, &errors.join("; "))
}

fn rules(server: &ApiServer, user: &UserInfo, spec: &Value) -> Value {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    review::rules_status(&server.config.authorizer.rules_for(user, namespace))
}
