//! Kinds that are questions: their create answers and stores nothing. TokenReview, the access reviews,
//! SelfSubjectRulesReview, SelfSubjectReview.

use crate::authorization::Verdict;
use crate::encode::{self, body, decode, negotiate};
use crate::options::WriteOptions;
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
    let options = WriteOptions::parse("CreateOptions", &call.query)?;
    let bytes = decode::read(body).await?;
    let kind = &call.kind;
    let decoded = decode::object(&call.parts.headers, &bytes, &kind.gvk, &kind.schema, options.validation)?;
    call.intent(&options).warn(decoded.warnings);
    let mut review = decoded.value;
    call.trail.request_object(kind, &review);
    review["apiVersion"] = kind.gvk.api_version().into();
    review["kind"] = kind.gvk.kind.as_str().into();
    review["status"] = answer(server, call, &mut review).await?;
    schema_json::canonicalize(&mut review, &kind.schema);
    Ok(body::response(201, &form, encode::value(&review, &form)))
}

async fn answer(server: &ApiServer, call: &Call, review: &mut Value) -> Result<Value, Status> {
    match call.kind.gvk.kind.as_str() {
        "TokenReview" => token(server, &review["spec"]).await,
        "SubjectAccessReview" => access(server, call, review, AccessReview::Subject).await,
        "LocalSubjectAccessReview" => {
            let namespace = &call.info.namespace;
            if !review["metadata"].is_object() {
                review["metadata"] = json!({});
            }
            let given = review["metadata"]["namespace"].as_str().unwrap_or_default();
            if !given.is_empty() && given != namespace {
                let m = "the namespace of the provided object does not match the namespace sent on the request";
                return Err(Status::bad_request(m));
            }
            review["metadata"]["namespace"] = namespace.as_str().into();
            access(server, call, review, AccessReview::LocalSubject).await
        }
        "SelfSubjectAccessReview" => access(server, call, review, AccessReview::SelfSubject).await,
        "SelfSubjectRulesReview" => {
            let status = rules(server, &call.user, &review["spec"])?;
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

async fn token(server: &ApiServer, spec: &Value) -> Result<Value, Status> {
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    Ok(match server.verify_token(token, &audiences).await {
        Ok((user, audiences)) => review::token_status(Ok((&user, &audiences))),
        Err(why) => review::token_status(Err(why)),
    })
}

async fn access(server: &ApiServer, call: &Call, review: &Value, kind: AccessReview) -> Result<Value, Status> {
    let errors = review::validate(review, kind);
    if !errors.is_empty() {
        // Upstream leaves the kind out.
        let gvk = Gvk::new(&call.kind.gvk.group, &call.kind.gvk.version, "");
        return Err(Status::invalid(&gvk, "", &errors));
    }
    let spec = &review["spec"];
    let user = if kind == AccessReview::SelfSubject { call.user.clone() } else { review::subject(spec) };
    let Verdict { decision, error } = chain::decide(server, &review::attributes(spec, user)).await;
    let errors = [error, review::unused_selectors(spec)];
    let errors: Vec<&str> = errors.iter().map(String::as_str).filter(|e| !e.is_empty()).collect();
    Ok(review::access_status(&decision, &errors.join("; ")))
}

fn rules(server: &ApiServer, user: &UserInfo, spec: &Value) -> Result<Value, Status> {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    Ok(review::rules_status(&server.config.authorizer.rules_for(user, namespace)))
}
