//! What a token says, in upstream's words, and the checks on it that need no key.

use super::{LEEWAY_SECONDS, TokenError};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// An object's name and uid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subject {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The claim `kubernetes.io`. The objects in it carry no namespace of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kubernetes {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Subject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Subject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Subject>,
    #[serde(rename = "serviceaccount")]
    pub service_account: Subject,
    #[serde(rename = "warnafter", skip_serializing_if = "Option::is_none")]
    pub warn_after: Option<i64>,
}

/// The claims of a token. Times are seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claims {
    #[serde(rename = "aud", deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    #[serde(rename = "exp", skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
    #[serde(rename = "iat", skip_serializing_if = "Option::is_none")]
    pub issued: Option<i64>,
    #[serde(rename = "iss", skip_serializing_if = "String::is_empty")]
    pub issuer: String,
    #[serde(rename = "jti", skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Kubernetes,
    #[serde(rename = "nbf", skip_serializing_if = "Option::is_none")]
    pub not_before: Option<i64>,
    #[serde(rename = "sub", skip_serializing_if = "String::is_empty")]
    pub subject: String,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(d)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

/// An object that must be there for a token to count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `serviceaccounts`, `pods`, `secrets` or `nodes`, all of the core group.
    pub resource: &'static str,
    pub namespace: String,
    pub name: String,
    /// Empty: any.
    pub uid: String,
}

impl Claims {
    pub(super) fn read(payload: &Value) -> Result<Self, TokenError> {
        Claims::deserialize(payload).map_err(|e| TokenError::Claims(e.to_string()))
    }

    /// go-jose's checks, with its leeway.
    pub(super) fn check_times(&self, now: i64) -> Result<(), TokenError> {
        if self.not_before.is_some_and(|t| now + LEEWAY_SECONDS < t) {
            return Err(TokenError::NotYetValid);
        }
        if self.expires.is_some_and(|t| now - LEEWAY_SECONDS > t) {
            return Err(TokenError::Expired);
        }
        if self.issued.is_some_and(|t| now + LEEWAY_SECONDS < t) {
            return Err(TokenError::FromTheFuture);
        }
        Ok(())
    }

    pub(super) fn references(&self) -> Vec<Reference> {
        let k = &self.kubernetes;
        let reference = |resource, namespace: &str, s: &Subject| Reference {
            resource,
            namespace: namespace.to_owned(),
            name: s.name.clone(),
            uid: s.uid.clone(),
        };
        let mut all = vec![reference("serviceaccounts", &k.namespace, &k.service_account)];
        if let Some(secret) = &k.secret {
            all.push(reference("secrets", &k.namespace, secret));
        }
        match (&k.pod, &k.node) {
            // The node of a bound pod is told, not checked: it may go before the pod does.
            (Some(pod), _) => all.push(reference("pods", &k.namespace, pod)),
            (None, Some(node)) => all.push(reference("nodes", "", node)),
            (None, None) => {}
        }
        all
    }
}

impl Reference {
    fn what(&self) -> &'static str {
        match self.resource {
            "serviceaccounts" => "service account",
            "pods" => "pod",
            "nodes" => "node",
            _ => "secret",
        }
    }

    /// `strict`: deletion counts at once (tokens in secrets); else a minute later, as clocks may differ.
    pub(super) fn check(&self, there: Option<&Value>, now: Timestamp, strict: bool) -> Result<(), TokenError> {
        let account = self.resource == "serviceaccounts";
        let Some(there) = there else {
            return Err(if account {
                TokenError::Gone { what: "serviceaccounts", name: self.name.clone() }
            } else {
                TokenError::Invalidated
            });
        };
        let uid = there["metadata"]["uid"].as_str().unwrap_or_default();
        if !self.uid.is_empty() && uid != self.uid {
            let (there, claimed) = (uid.to_owned(), self.uid.clone());
            return Err(TokenError::OtherUid { what: self.what(), there, claimed });
        }
        let deleted = there["metadata"]["deletionTimestamp"].as_str().and_then(isopod_api::time::parse);
        let grace = SignedDuration::from_secs(if strict { 0 } else { LEEWAY_SECONDS });
        if deleted.is_some_and(|t| strict || t + grace < now) {
            return Err(if account {
                TokenError::Deleted { what: self.what(), name: format!("{}/{}", self.namespace, self.name) }
            } else {
                TokenError::Invalidated
            });
        }
        Ok(())
    }
}

/// The issuer that a token claims, before anything is verified. `None`: it is no JWT.
pub fn unverified_issuer(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else { return None };
    let payload: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    payload["iss"].as_str().map(str::to_owned)
}

const LEGACY: &str = "kubernetes.io/serviceaccount";

pub(super) fn legacy(issuer: &str, account: &Subject, secret_name: &str) -> Value {
    json!({
        "iss": issuer,
        "sub": format!("system:serviceaccount:{}:{}", account.namespace, account.name),
        format!("{LEGACY}/namespace"): account.namespace,
        format!("{LEGACY}/secret.name"): secret_name,
        format!("{LEGACY}/service-account.name"): account.name,
        format!("{LEGACY}/service-account.uid"): account.uid,
    })
}

/// Reads the claims of a token in a secret as those of a token bound to it.
pub(super) fn from_legacy(payload: &Value) -> Result<Claims, TokenError> {
    let need = |key: &str, claim: &'static str| {
        let value = payload.get(key).and_then(Value::as_str).filter(|s| !s.is_empty());
        value.map(str::to_owned).ok_or(TokenError::Missing { claim })
    };
    let subject = need("sub", "sub")?;
    let namespace = need(&format!("{LEGACY}/namespace"), "namespace")?;
    let secret = need(&format!("{LEGACY}/secret.name"), "secretName")?;
    let name = need(&format!("{LEGACY}/service-account.name"), "serviceAccountName")?;
    let uid = need(&format!("{LEGACY}/service-account.uid"), "serviceAccountUID")?;
    if subject != format!("system:serviceaccount:{namespace}:{name}") {
        return Err(TokenError::Subject);
    }
    let kubernetes = Kubernetes {
        namespace,
        service_account: Subject { name, uid, ..Default::default() },
        secret: Some(Subject { name: secret, ..Default::default() }),
        ..Default::default()
    };
    Ok(Claims { subject, kubernetes, ..Default::default() })
}

/// The secret must still hold this very token and must not be marked invalid.
pub(super) fn check_legacy_secret(secret: &Value, token: &str) -> Result<(), TokenError> {
    let stored = secret["data"]["token"].as_str().and_then(|t| STANDARD.decode(t).ok()).unwrap_or_default();
    if aws_lc_rs::constant_time::verify_slices_are_equal(&stored, token.as_bytes()).is_err() {
        return Err(TokenError::OtherCopy);
    }
    let text = |pointer: &str| secret.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if !text("/metadata/labels/kubernetes.io~1legacy-token-invalid-since").is_empty() {
        let name = format!("{}/{}", text("/metadata/namespace"), text("/metadata/name"));
        return Err(TokenError::MarkedInvalid(name));
    }
    Ok(())
}
