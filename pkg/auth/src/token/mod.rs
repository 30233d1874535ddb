//! Service-account tokens: what they say, how they are signed and checked, and what must still live for one to count
//! (`pkg/serviceaccount`).

mod claims;
mod keys;
mod legacy;
mod request;

pub use claims::{Claims, Kubernetes, Reference, Subject, unverified_issuer};
pub use keys::{KeyError, PublicKey};
pub use legacy::{INVALID_SINCE, LAST_USED, LegacyError, LegacyUse};
pub use request::{Request, RequestError, bound_reference, request};

use isopod_api::UserInfo;
use jiff::Timestamp;
use jsonwebtoken::{EncodingKey, Header, Validation};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The key of a user's extra that tells which credential was shown.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// How far clocks may differ.
const LEEWAY_SECONDS: i64 = 60;

#[derive(Clone, Debug, thiserror::Error)]
pub enum TokenError {
    #[error("invalid signature, no keys found")]
    UnknownKey,
    #[error("the token's signature does not verify")]
    Signature,
    #[error("the token's claims cannot be read: {0}")]
    Claims(String),
    #[error("token audiences {token} is invalid for the target audiences {target}")]
    Audience { token: String, target: String },
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    NotYetValid,
    #[error("service account token is issued in the future")]
    FromTheFuture,
    #[error("{claim} claim is missing")]
    Missing { claim: &'static str },
    #[error("sub claim is invalid")]
    Subject,
    #[error("{what} {name:?} not found")]
    Gone { what: &'static str, name: String },
    #[error("{what} UID ({there}) does not match claim ({claimed})")]
    OtherUid { what: &'static str, there: String, claimed: String },
    #[error("{what} {name} has been deleted")]
    Deleted { what: &'static str, name: String },
    #[error("service account token has been invalidated")]
    Invalidated,
    #[error(transparent)]
    Legacy(#[from] LegacyError),
    #[error("cannot sign a token")]
    Sign(#[source] std::sync::Arc<jsonwebtoken::errors::Error>),
}

/// What an API server signs and accepts.
pub struct Settings {
    /// `--service-account-issuer`: the first signs, all are accepted.
    pub issuers: Vec<String>,
    /// `--api-audiences`; empty: the first issuer.
    pub api_audiences: Vec<String>,
    /// The key that signs, PKCS#8 PEM.
    pub private_pem: Vec<u8>,
    /// Keys that verify; the signing key's public half must be among them. Older ones stay here until their tokens ended.
    pub public_pems: Vec<Vec<u8>>,
}

/// Issues and verifies tokens. It answers from memory.
pub struct Tokens {
    issuers: Vec<String>,
    api_audiences: Vec<String>,
    signer: EncodingKey,
    header: Header,
    keys: Vec<PublicKey>,
}

/// A token whose signature, issuer, audience and times are good. Whether its objects live is for [`Verified::references`].
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    pub claims: Claims,
    /// Those of the token that were asked for.
    pub audiences: Vec<String>,
    /// It stands in a secret and has no end.
    pub legacy: bool,
}

impl Tokens {
    pub fn new(settings: Settings) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        for pem in &settings.public_pems {
            keys.extend(PublicKey::from_pem(pem)?);
        }
        let (signer, key) = keys::signer(&settings.private_pem, &keys)?;
        let mut header = Header::new(key.algorithm);
        header.typ = None;
        header.kid = Some(key.id.clone());
        let api_audiences = match settings.api_audiences {
            given if given.is_empty() => settings.issuers.first().cloned().into_iter().collect(),
            given => given,
        };
        Ok(Tokens { issuers: settings.issuers, api_audiences, signer, header, keys })
    }

    pub fn issuer(&self) -> &str {
        self.issuers.first().map_or("", String::as_str)
    }

    pub fn api_audiences(&self) -> &[String] {
        &self.api_audiences
    }

    /// Signs. The issuer is set here.
    pub fn issue(&self, claims: &Claims) -> Result<String, TokenError> {
        let claims = Claims { issuer: self.issuer().to_owned(), ..claims.clone() };
        jsonwebtoken::encode(&self.header, &claims, &self.signer).map_err(|e| TokenError::Sign(e.into()))
    }

    /// The token of a `kubernetes.io/service-account-token` secret.
    pub fn issue_legacy(&self, account: &Subject, secret_name: &str) -> Result<String, TokenError> {
        let claims = legacy::claims(account, secret_name);
        jsonwebtoken::encode(&self.header, &claims, &self.signer).map_err(|e| TokenError::Sign(e.into()))
    }

    /// `None`: it is no token of ours. `audiences` empty: the API server's.
    pub fn verify(&self, token: &str, audiences: &[String], now: Timestamp) -> Option<Result<Verified, TokenError>> {
        let issuer = claims::unverified_issuer(token)?;
        if !self.issuers.contains(&issuer) && issuer != legacy::ISSUER {
            return None;
        }
        let header = jsonwebtoken::decode_header(token).ok()?;
        Some(self.check(token, &header, &issuer, audiences, now))
    }

    fn check(
        &self,
        token: &str,
        header: &Header,
        issuer: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<Verified, TokenError> {
        let payload = self.verified_payload(token, header)?;
        let legacy = issuer == legacy::ISSUER;
        let claims = if legacy { legacy::read(&payload)? } else { Claims::read(&payload)? };
        let wanted = if audiences.is_empty() { &self.api_audiences } else { audiences };
        // Only the API server is the audience of a token that names none.
        let own = if claims.audiences.is_empty() { &self.api_audiences } else { &claims.audiences };
        let good: Vec<String> = own.iter().filter(|a| wanted.contains(a)).cloned().collect();
        if good.is_empty() {
            let (token, target) = (crate::rule::quoted(own), crate::rule::quoted(wanted));
            return Err(TokenError::Audience { token, target });
        }
        if !legacy {
            claims.check_times(now.as_second())?;
        }
        Ok(Verified { claims, audiences: good, legacy })
    }

    fn verified_payload(&self, token: &str, header: &Header) -> Result<Value, TokenError> {
        let candidates: Vec<&PublicKey> = match header.kid.as_deref().filter(|k| !k.is_empty()) {
            Some(id) => self.keys.iter().filter(|k| k.id == id).collect(),
            None => self.keys.iter().collect(),
        };
        if candidates.is_empty() {
            return Err(TokenError::UnknownKey);
        }
        for key in candidates.into_iter().filter(|k| k.algorithm == header.alg) {
            let mut validation = Validation::new(key.algorithm);
            // Times are checked against the given clock, audiences against what was asked for.
            validation.required_spec_claims.clear();
            (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
            if let Ok(data) = jsonwebtoken::decode::<Value>(token, &key.key, &validation) {
                return Ok(data.claims);
            }
        }
        Err(TokenError::Signature)
    }

    /// `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        json!({ "keys": self.keys.iter().map(|k| k.jwk.clone()).collect::<Vec<_>>() })
    }

    /// `/.well-known/openid-configuration`. `jwks_uri` is where [`Tokens::jwks`] is served from.
    pub fn discovery(&self, jwks_uri: &str) -> Value {
        let mut algorithms: Vec<&str> = self.keys.iter().map(PublicKey::algorithm_name).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        json!({
            "issuer": self.issuer(),
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }
}

/// Compares secrets in a time that does not tell where they differ.
pub fn is_equal(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

impl Verified {
    /// What must be there, with these uids, for the token to count.
    pub fn references(&self) -> Vec<Reference> {
        self.claims.references()
    }

    /// Checks one of [`Verified::references`] against what is there. Those of a legacy token are checked together:
    /// [`Verified::check_legacy`].
    pub fn check_reference(
        &self,
        reference: &Reference,
        there: Option<&Value>,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        reference.check(there, now)
    }

    /// Checks a legacy token against its secret and its account, as far as they are there.
    pub fn check_legacy(
        &self,
        secret: Option<&Value>,
        account: Option<&Value>,
        token: &str,
    ) -> Result<LegacyUse, LegacyError> {
        legacy::check(&self.claims, secret, account, token)
    }

    /// The user that the token's account is.
    pub fn user(&self) -> UserInfo {
        let k = &self.claims.kubernetes;
        let (namespace, account) = (&k.namespace, &k.service_account);
        let mut extra = BTreeMap::new();
        let mut add = |key: &str, value: &str| {
            if !value.is_empty() {
                extra.insert(key.to_owned(), vec![value.to_owned()]);
            }
        };
        if !self.claims.id.is_empty() {
            add(CREDENTIAL_ID, &format!("JTI={}", self.claims.id));
        }
        if let Some(pod) = &k.pod {
            add("authentication.kubernetes.io/pod-name", &pod.name);
            add("authentication.kubernetes.io/pod-uid", &pod.uid);
        }
        if let Some(node) = &k.node {
            add("authentication.kubernetes.io/node-name", &node.name);
            add("authentication.kubernetes.io/node-uid", &node.uid);
        }
        UserInfo {
            name: format!("system:serviceaccount:{namespace}:{}", account.name),
            uid: account.uid.clone(),
            groups: vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")],
            extra,
        }
    }
}
