//! What a token says, in upstream's words, and the checks on it that need no key.

use super::{LEEWAY_SECONDS, TokenError};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

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

    /// Deletion counts a minute later, as clocks may differ.
    pub(super) fn check(&self, there: Option<&Value>, now: Timestamp) -> Result<(), TokenError> {
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
        let grace = SignedDuration::from_secs(LEEWAY_SECONDS);
        if deleted.is_some_and(|t| t + grace < now) {
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
