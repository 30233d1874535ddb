//! The `Status` object: the one error type that leaves the API server, with upstream's reasons, codes and wording
//! (`apimachinery/pkg/api/errors`).

use crate::{FieldError, Gvk, Gvr};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One cause in `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Cause {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// `details` of a [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: i32,
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// A `metav1.Status` that says failure. `code` is the HTTP status code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: u16,
    pub reason: String,
    pub message: String,
    pub details: Option<Details>,
    /// `metadata.continue`: where a list can be gone on with; empty with all other failures.
    pub continue_token: String,
}

impl Status {
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Status {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            details: None,
            continue_token: String::new(),
        }
    }

    fn about(mut self, gvr: &Gvr, name: &str) -> Self {
        self.details = Some(Details {
            name: name.to_owned(),
            group: gvr.group.clone(),
            kind: gvr.resource.clone(),
            ..Default::default()
        });
        self
    }

    /// `details: {}`, as upstream has it where a library of its answers for it.
    pub fn with_empty_details(mut self) -> Self {
        self.details = Some(Details::default());
        self
    }

    pub fn not_found(gvr: &Gvr, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", gvr.qualified())).about(gvr, name)
    }
    /// An unknown path: no such resource or subresource is served.
    pub fn no_such_path() -> Self {
        let mut s = Self::new(404, "NotFound", "the server could not find the requested resource");
        s.details = Some(Details::default());
        s
    }
    pub fn already_exists(gvr: &Gvr, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", gvr.qualified())).about(gvr, name)
    }
    pub fn conflict(gvr: &Gvr, name: &str, why: impl fmt::Display) -> Self {
        let m = format!("Operation cannot be fulfilled on {} {name:?}: {why}", gvr.qualified());
        Self::new(409, "Conflict", m).about(gvr, name)
    }
    /// The conflict of an outdated `resourceVersion`.
    pub fn outdated(gvr: &Gvr, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(gvr, name, why)
    }
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }
    /// `why` is the authorizer's sentence: `User "x" cannot list resource "pods" in API group "" in the namespace "y"`.
    pub fn forbidden(gvr: &Gvr, name: &str, why: impl fmt::Display) -> Self {
        let m = if gvr.resource.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{} is forbidden: {why}", gvr.qualified())
        } else {
            format!("{} {name:?} is forbidden: {why}", gvr.qualified())
        };
        Self::new(403, "Forbidden", m).about(gvr, name)
    }
    pub fn invalid(gvk: &Gvk, name: &str, errors: &[FieldError]) -> Self {
        let qualified = if gvk.group.is_empty() { gvk.kind.clone() } else { format!("{}.{}", gvk.kind, gvk.group) };
        let text = crate::field::aggregate(errors);
        let mut s = Self::new(422, "Invalid", format!("{qualified} {name:?} is invalid: {text}"));
        s.details = Some(Details {
            name: name.to_owned(),
            group: gvk.group.clone(),
            kind: gvk.kind.clone(),
            causes: errors.iter().map(FieldError::cause).collect(),
            ..Default::default()
        });
        s
    }
    pub fn method_not_supported(gvr: &Gvr, action: &str) -> Self {
        let m = format!("{action} is not supported on resources of kind {:?}", gvr.qualified());
        let mut s = Self::new(405, "MethodNotAllowed", m).about(gvr, "");
        s.details.get_or_insert_default().kind = gvr.resource.clone();
        s
    }
    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(406, "NotAcceptable", message)
    }
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }
    pub fn request_entity_too_large(message: impl fmt::Display) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"))
    }
    /// 410: the resource version or continue token is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Gone", message)
    }
    pub fn timeout(message: impl fmt::Display, retry_after: i32) -> Self {
        let mut s = Self::new(504, "Timeout", format!("Timeout: {message}"));
        s.details = Some(Details { retry_after_seconds: retry_after, ..Default::default() });
        s
    }
    pub fn too_many_requests(message: impl Into<String>, retry_after: i32) -> Self {
        let mut s = Self::new(429, "TooManyRequests", message);
        s.details = Some(Details { retry_after_seconds: retry_after, ..Default::default() });
        s
    }
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }
    pub fn internal(err: impl fmt::Display) -> Self {
        let mut s = Self::new(500, "InternalError", format!("Internal error occurred: {err}"));
        s.details = Some(Details {
            causes: vec![Cause { reason: String::new(), message: err.to_string(), field: String::new() }],
            ..Default::default()
        });
        s
    }

    /// The object as JSON: `{"kind":"Status","apiVersion":"v1",...}`.
    pub fn to_json(&self) -> serde_json::Value {
        let mut v = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.continue_token.is_empty() {
            v["metadata"]["continue"] = self.continue_token.clone().into();
        }
        if !self.reason.is_empty() {
            v["reason"] = self.reason.clone().into();
        }
        if let Some(d) = &self.details {
            v["details"] = serde_json::to_value(d).unwrap_or_default();
        }
        v
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}
