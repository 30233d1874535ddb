//! `AdmissionReview`: the question to a webhook, and what its answer says (`admission.k8s.io`, v1 and v1beta1).

use super::configuration::Hook;
use crate::admission::matching::View;
use crate::admission::subject::Subject;
use base64::Engine;
use isopod_api::{Cause, Status};
use isopod_kinds::access::Access;
use serde::Deserialize;
use serde_json::{Value, json};

/// What a webhook has decided.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub allowed: bool,
    pub warnings: Vec<String>,
    /// For the audit log.
    pub annotations: Vec<(String, String)>,
    /// Operations of a JSON patch.
    pub patch: Vec<Value>,
    /// Its `status`: why it refuses.
    pub status: Value,
}

/// The version to ask in: the first of the webhook's that is known here.
pub fn version(hook: &Hook) -> Option<&str> {
    hook.review_versions.iter().map(String::as_str).find(|v| matches!(*v, "v1" | "v1beta1"))
}

/// The question. Objects are given in the version that the webhook wants.
pub fn question(
    version: &str,
    uid: &str,
    subject: &Subject<'_>,
    view: &View,
    new: Option<&Value>,
    old: Option<&Value>,
) -> Value {
    let mut request = subject.describe(view);
    request["uid"] = uid.into();
    request["object"] = json!(new);
    request["oldObject"] = json!(old);
    json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request})
}

/// Reads the answer. The error says what is wrong with it.
pub fn answer(version: &str, uid: &str, review: &Value, mutating: bool) -> Result<Answer, String> {
    let Some(response) = review.get("response").filter(|r| r.is_object()) else {
        return Err("webhook response was absent".into());
    };
    if version == "v1" {
        check(uid, review, response, mutating)?;
    }
    let patch = response["patch"].as_str().filter(|p| mutating && !p.is_empty());
    let patch = match patch {
        None => Vec::new(),
        Some(text) => operations(text).map_err(|e| format!("received undecodable patch in webhook response: {e}"))?,
    };
    Ok(Answer {
        allowed: response["allowed"].as_bool().unwrap_or(false),
        warnings: response.list("warnings").iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        annotations: annotations(&response["auditAnnotations"]),
        patch,
        status: response["status"].clone(),
    })
}

fn annotations(map: &Value) -> Vec<(String, String)> {
    let all = map.as_object().into_iter().flatten();
    all.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn check(uid: &str, review: &Value, response: &Value, mutating: bool) -> Result<(), String> {
    let got = response.text("uid");
    if got != uid {
        return Err(format!("expected response.uid={uid:?}, got {got:?}"));
    }
    let (api_version, kind) = (review.text("apiVersion"), review.text("kind"));
    if (api_version, kind) != ("admission.k8s.io/v1", "AdmissionReview") {
        return Err(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {api_version}, Kind={kind}"
        ));
    }
    let patch = !response.text("patch").is_empty();
    let ty = response.get("patchType").filter(|t| !t.is_null());
    match (mutating, patch, ty) {
        (true, true, None) => Err("webhook returned response.patch but not response.patchType".into()),
        (true, false, Some(_)) => Err("webhook returned response.patchType but not response.patch".into()),
        (true, true, Some(ty)) if ty != "JSONPatch" => {
            Err(format!("webhook returned invalid response.patchType of {:?}", ty.as_str().unwrap_or_default()))
        }
        (false, true, _) => Err("validating webhook may not return response.patch".into()),
        (false, _, Some(_)) => Err("validating webhook may not return response.patchType".into()),
        _ => Ok(()),
    }
}

fn operations(text: &str) -> Result<Vec<Value>, String> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(|e| e.to_string())?;
    let patch = isopod_schema::json::read(&bytes).map_err(|e| e.to_string())?;
    Vec::deserialize(patch).map_err(|e| e.to_string())
}

/// The refusal that a client gets.
pub fn refusal(hook: &str, status: &Value) -> Status {
    let denied = format!("admission webhook {hook:?} denied the request");
    let (message, reason) = (status.text("message"), status.text("reason"));
    let message = match (message, reason) {
        ("", "") => format!("{denied} without explanation"),
        ("", why) | (why, _) => format!("{denied}: {why}"),
    };
    let code = status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| *c >= 400).unwrap_or(400);
    let mut refused = Status::new(code, reason, message);
    let details = &status["details"];
    if details.is_object() {
        let cause = |c: &Value| Cause {
            reason: c.text("reason").to_owned(),
            message: c.text("message").to_owned(),
            field: c.text("field").to_owned(),
        };
        refused.details = Some(isopod_api::Details {
            name: details.text("name").to_owned(),
            group: details.text("group").to_owned(),
            kind: details.text("kind").to_owned(),
            uid: details.text("uid").to_owned(),
            causes: details.list("causes").iter().map(cause).collect(),
            retry_after_seconds: details["retryAfterSeconds"].as_i64().unwrap_or(0) as i32,
        });
    }
    refused
}
