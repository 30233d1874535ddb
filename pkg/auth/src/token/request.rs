//! The TokenRequest of a service account, from the client's object to claims and to the answer
//! (`pkg/registry/core/serviceaccount/storage/token.go`).

use super::{Claims, Kubernetes, Reference, Subject, Tokens};
use isopod_api::{FieldError, Gvk, Gvr, Path, Status};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// A token bound to a pod for this long is one of a projected volume: it gets a year, and `warnafter` says when it would
/// have ended (`--service-account-extend-token-expiration`).
const WARN_ONLY_SECONDS: i64 = 60 * 60 + 7;
const EXTENDED_SECONDS: i64 = 365 * 24 * 60 * 60;

#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Refused(#[from] Status),
    #[error(transparent)]
    Token(#[from] super::TokenError),
}

/// What a request is answered from. The caller has looked the objects up.
pub struct Request<'a> {
    /// The client's TokenRequest.
    pub request: &'a Value,
    pub service_account: &'a Value,
    /// The object that [`bound_reference`] asked for.
    pub bound: Option<&'a Value>,
    /// The node of a bound pod, if it is there.
    pub node: Option<&'a Value>,
    /// A new uuid.
    pub id: String,
    pub now: Timestamp,
}

fn text<'a>(v: &'a Value, pointer: &str) -> &'a str {
    v.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn gvk() -> Gvk {
    Gvk::new("authentication.k8s.io", "v1", "TokenRequest")
}

/// Which object the requested token is to be bound to; 400 for a kind that it cannot be bound to.
pub fn bound_reference(request: &Value, namespace: &str) -> Result<Option<Reference>, Status> {
    let Some(reference) = request.pointer("/spec/boundObjectRef").filter(|r| !r.is_null()) else { return Ok(None) };
    let (version, kind) = (text(reference, "/apiVersion"), text(reference, "/kind"));
    let (resource, namespace) = match (version.contains('/'), kind) {
        (false, "Pod") => ("pods", namespace),
        (false, "Secret") => ("secrets", namespace),
        (false, "Node") => ("nodes", ""),
        _ => {
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            let shown = format!("{group}/{version}, Kind={kind}");
            return Err(Status::bad_request(format!("cannot bind token to object of type {shown}")));
        }
    };
    Ok(Some(Reference {
        resource,
        namespace: namespace.to_owned(),
        name: text(reference, "/name").to_owned(),
        uid: text(reference, "/uid").to_owned(),
    }))
}

/// Answers a request: the TokenRequest with its status.
pub fn request(tokens: &Tokens, r: &Request<'_>) -> Result<Value, RequestError> {
    let account = r.service_account;
    let (namespace, name, uid) =
        (text(account, "/metadata/namespace"), text(account, "/metadata/name"), text(account, "/metadata/uid"));
    let mut out = r.request.clone();
    check_metadata(&mut out, namespace, name, uid)?;
    let now = isopod_api::time::format(r.now);
    out["metadata"]["creationTimestamp"] = now.into();

    let mut audiences: Vec<String> = out["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if audiences.is_empty() {
        audiences = tokens.api_audiences().to_vec();
        out["spec"]["audiences"] = json!(audiences);
    }
    let seconds = out["spec"]["expirationSeconds"].as_i64().unwrap_or(60 * 60);
    out["spec"]["expirationSeconds"] = seconds.into();
    validate(&out, seconds)?;

    let mut kubernetes = Kubernetes {
        namespace: namespace.to_owned(),
        service_account: Subject { name: name.to_owned(), uid: uid.to_owned(), ..Default::default() },
        ..Default::default()
    };
    bind(&mut kubernetes, r, namespace, name)?;
    let to_api_server = audiences.iter().all(|a| tokens.api_audiences().contains(a));
    let mut lifetime = seconds;
    if kubernetes.pod.is_some() && seconds == WARN_ONLY_SECONDS && to_api_server {
        kubernetes.warn_after = Some(r.now.as_second() + seconds);
        lifetime = EXTENDED_SECONDS;
    }
    let issued = r.now.as_second();
    let claims = Claims {
        audiences,
        expires: Some(issued + lifetime),
        issued: Some(issued),
        not_before: Some(issued),
        issuer: String::new(),
        id: r.id.clone(),
        subject: format!("system:serviceaccount:{namespace}:{name}"),
        kubernetes,
    };
    let expires = isopod_api::time::format(r.now + SignedDuration::from_secs(seconds));
    out["status"] = json!({ "token": tokens.issue(&claims)?, "expirationTimestamp": expires });
    Ok(out)
}

/// The body may repeat what the path says; what it leaves out is filled in.
fn check_metadata(out: &mut Value, namespace: &str, name: &str, uid: &str) -> Result<(), Status> {
    if !out["metadata"].is_object() {
        out["metadata"] = json!({});
    }
    for (field, want) in [("name", name), ("namespace", namespace)] {
        let given = text(&out["metadata"], &format!("/{field}")).to_owned();
        if !given.is_empty() && given != want {
            let path = Path::new("metadata").child(field);
            let why = format!("must match the service account {field} if specified");
            return Err(Status::invalid(&gvk(), name, &[FieldError::invalid(&path, given, why)]));
        }
        out["metadata"][field] = want.into();
    }
    let given = text(&out["metadata"], "/uid").to_owned();
    if !given.is_empty() && given != uid {
        let why =
            format!("the UID in the token request ({given}) does not match the UID of the service account ({uid})");
        return Err(conflict(name, why));
    }
    out["metadata"]["uid"] = uid.into();
    Ok(())
}

fn conflict(name: &str, why: String) -> Status {
    Status::conflict(&Gvr::new("authentication.k8s.io", "v1", "TokenRequest"), name, why)
}

fn validate(request: &Value, seconds: i64) -> Result<(), Status> {
    let spec = Path::new("spec");
    let mut errors = Vec::new();
    let path = spec.child("expirationSeconds");
    if seconds < 10 * 60 {
        errors.push(FieldError::invalid(&path, seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > 1 << 32 {
        errors.push(FieldError::invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds"));
    }
    let attestations = &request["spec"]["attestations"];
    if attestations.as_object().is_some_and(|a| !a.is_empty()) {
        let why = "attestations may only be specified with a webhook bound object reference";
        errors = vec![FieldError::invalid(&spec.child("attestations"), attestations.clone(), why)];
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&gvk(), "", &errors)) }
}

fn bind(kubernetes: &mut Kubernetes, r: &Request<'_>, namespace: &str, account: &str) -> Result<(), Status> {
    let Some(reference) = bound_reference(r.request, namespace)? else { return Ok(()) };
    let gvr = Gvr::new("", "v1", reference.resource);
    let bound = r.bound.ok_or_else(|| Status::not_found(&gvr, &reference.name))?;
    let subject = |o: &Value| Subject {
        name: text(o, "/metadata/name").into(),
        uid: text(o, "/metadata/uid").into(),
        ..Default::default()
    };
    match reference.resource {
        "pods" => {
            if text(bound, "/spec/serviceAccountName") != account {
                let why = format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                );
                return Err(Status::bad_request(why));
            }
            kubernetes.pod = Some(subject(bound));
            let node = text(bound, "/spec/nodeName");
            if !node.is_empty() {
                // A node that is gone is still named.
                let gone = Subject { name: node.to_owned(), ..Default::default() };
                kubernetes.node = Some(r.node.map(subject).unwrap_or(gone));
            }
        }
        "nodes" => kubernetes.node = Some(subject(bound)),
        _ => kubernetes.secret = Some(subject(bound)),
    }
    let uid = text(bound, "/metadata/uid");
    if !reference.uid.is_empty() && reference.uid != uid {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been \
             deleted and then recreated",
            reference.uid
        );
        return Err(conflict(&reference.name, why));
    }
    Ok(())
}
