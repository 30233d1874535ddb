//! Who makes the request. In-process callers say so in the request's extensions; a request from the network is asked for
//! its certificate and token, and never carries that extension (see `server.rs`).

use crate::ApiServer;
use crate::config::TokenSpec;
use http::request::Parts;
use isopod_api::{Status, UserInfo};
use rustls::pki_types::CertificateDer;

/// The verified client certificates of a TLS connection, leaf first.
#[derive(Clone, Debug, Default)]
pub struct PeerCertificates(pub Vec<CertificateDer<'static>>);

/// Tells a user from credentials. `None`: these are not my credentials. It decides from memory and must not wait.
pub trait Authenticator: Send + Sync {
    fn authenticate(&self, request: &Parts, peer: &PeerCertificates) -> Option<Result<UserInfo, Refused>>;
}

/// Credentials were there and are no good. The client sees only `Unauthorized`; the reason goes to the log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// The token of an `Authorization: Bearer` header, or of a WebSocket's subprotocol (browsers cannot set headers).
pub fn bearer_token(request: &Parts) -> Option<String> {
    if let Some(value) = request.headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok()) {
        let (scheme, token) = value.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned()).filter(|t| !t.is_empty());
    }
    let protocols = request.headers.get("sec-websocket-protocol")?.to_str().ok()?;
    let encoded = protocols.split(',').find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    use base64::Engine;
    let raw = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(raw).ok()
}

impl ApiServer {
    /// The user of a request, or 401.
    pub(crate) async fn authenticate(&self, request: &mut Parts) -> Result<UserInfo, Status> {
        if let Some(user) = request.extensions.get::<UserInfo>() {
            return Ok(user.clone());
        }
        let peer = request.extensions.get::<PeerCertificates>().cloned().unwrap_or_default();
        for authenticator in &self.config.authenticators {
            match authenticator.authenticate(request, &peer) {
                None => {}
                Some(Ok(user)) => return Ok(authenticated(user)),
                Some(Err(refused)) => {
                    tracing::debug!(path = request.uri.path(), reason = %refused, "unable to authenticate the request");
                    return Err(Status::unauthorized());
                }
            }
        }
        if let Some(token) = bearer_token(request) {
            return self.service_account(&token).await.map(authenticated);
        }
        if self.config.anonymous_auth { Ok(UserInfo::anonymous()) } else { Err(Status::unauthorized()) }
    }

    async fn service_account(&self, token: &str) -> Result<UserInfo, Status> {
        let tokens = self.config.tokens.as_ref().ok_or_else(Status::unauthorized)?;
        let refuse = |why: &str| {
            tracing::debug!(reason = why, "service-account token refused");
            Status::unauthorized()
        };
        let verified = tokens.verify(token, &tokens.api_audiences(), self.config.clock.now());
        let spec = verified.ok_or_else(|| refuse("unknown issuer"))?.map_err(|e| refuse(&e))?;
        self.token_is_alive(&spec).await.map_err(|e| refuse(&e))?;
        Ok(service_account_user(&spec))
    }

    /// Whether the account, and the object that the token is bound to, still are what they were.
    pub(crate) async fn token_is_alive(&self, spec: &TokenSpec) -> Result<(), String> {
        let now = self.config.clock.now();
        let mut wanted =
            vec![("serviceaccounts", spec.namespace.as_str(), &spec.service_account, &spec.service_account_uid)];
        if let Some(b) = &spec.bound {
            match b.kind.as_str() {
                "Pod" => wanted.push(("pods", &spec.namespace, &b.name, &b.uid)),
                "Secret" => wanted.push(("secrets", &spec.namespace, &b.name, &b.uid)),
                "Node" => wanted.push(("nodes", "", &b.name, &b.uid)),
                _ => {}
            }
        }
        for (resource, namespace, name, uid) in wanted {
            let found = self.read("", resource, namespace, name).await.map_err(|e| e.message)?;
            let found = found.ok_or_else(|| format!("{resource} {name} is gone"))?;
            if !uid.is_empty() && found["metadata"]["uid"].as_str() != Some(uid) {
                return Err(format!("{resource} {name} has another uid"));
            }
            // A pod that is being deleted keeps its token while it may still run, and a minute more.
            let deleted = found["metadata"]["deletionTimestamp"].as_str().and_then(isopod_api::time::parse);
            if deleted.is_some_and(|d| d + jiff::SignedDuration::from_secs(60) < now) {
                return Err(format!("{resource} {name} is deleted"));
            }
        }
        Ok(())
    }
}

/// The user that a service account is.
pub fn service_account_user(spec: &TokenSpec) -> UserInfo {
    let mut user = UserInfo {
        name: format!("system:serviceaccount:{}:{}", spec.namespace, spec.service_account),
        uid: spec.service_account_uid.clone(),
        groups: vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{}", spec.namespace)],
        ..Default::default()
    };
    let mut extra = |key: &str, value: &str| {
        user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    if let Some(pod) = spec.bound.as_ref().filter(|b| b.kind == "Pod") {
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
    }
    let node = spec.node.as_ref().or(spec.bound.as_ref().filter(|b| b.kind == "Node"));
    if let Some(node) = node {
        extra("node-name", &node.name);
        extra("node-uid", &node.uid);
    }
    user
}

/// Every user who showed good credentials is in `system:authenticated`.
fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group(isopod_api::user::AUTHENTICATED) && !user.in_group(isopod_api::user::UNAUTHENTICATED) {
        user.groups.push(isopod_api::user::AUTHENTICATED.to_owned());
    }
    user
}
