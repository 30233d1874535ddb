//! Who makes the request. In-process callers say so in the request's extensions; a request from the network is asked for
//! its certificate and token, and never carries that extension (see `server.rs`).

use crate::ApiServer;
use crate::aggregation::front_proxy::ProxyCertificates;
use crate::metrics::Shown;
use crate::request::percent_decode;
use crate::tokens::Remarks;
use http::request::Parts;
use isopod_api::{Status, UserInfo};
use isopod_base::errors::Chain;
use rustls::pki_types::CertificateDer;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// The verified client certificate of a TLS connection; none by default. Whom it names is read once, not for each request.
#[derive(Clone, Debug, Default)]
pub struct PeerCertificates(Arc<Peer>);

#[derive(Debug, Default)]
struct Peer {
    leaf: Option<CertificateDer<'static>>,
    named: OnceLock<Result<UserInfo, Refused>>,
}

impl PeerCertificates {
    /// `chain`: leaf first.
    pub fn new(chain: Vec<CertificateDer<'static>>) -> Self {
        PeerCertificates(Arc::new(Peer { leaf: chain.into_iter().next(), named: OnceLock::new() }))
    }

    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.0.leaf.as_ref()
    }

    /// Whom the certificate names, if there is one.
    fn user(&self) -> Option<Result<UserInfo, Refused>> {
        let leaf = self.leaf()?;
        let read = || match isopod_auth::certificate::identity(leaf) {
            Ok(Some(user)) => Ok(authenticated(user)),
            Ok(None) => Err(Refused("the client certificate has no common name".into())),
            Err(e) => Err(Refused(Chain(&e).to_string())),
        };
        Some(self.0.named.get_or_init(read).clone())
    }
}

/// Tells a user from credentials. `None`: these are not my credentials. It decides from memory and must not wait.
pub trait Authenticator: Send + Sync {
    fn authenticate(&self, request: &Parts, peer: &PeerCertificates) -> Option<Result<UserInfo, Refused>>;
}

/// Credentials were there and are no good. The client sees only `Unauthorized`; the reason goes to the log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Users of client certificates: the common name is the user, the organizations are the groups. The TLS layer has verified
/// the certificate against the cluster's CA already.
pub struct ClientCertificate;

/// Until when the certificate of who is connected is good, in seconds since 1970. Read once for a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotAfter(pub i64);

impl Authenticator for ClientCertificate {
    fn authenticate(&self, _request: &Parts, peer: &PeerCertificates) -> Option<Result<UserInfo, Refused>> {
        peer.user()
    }
}

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
    pub(crate) async fn authenticate(&self, request: &mut Parts, remarks: &Remarks<'_>) -> Result<UserInfo, Status> {
        let began = Instant::now();
        let outcome = self.recognize(request, remarks).await;
        let shown = match &outcome {
            Ok(user) => Shown::Good { user: &user.name },
            Err(Unknown::Refused) => Shown::Bad,
            Err(Unknown::Nobody) => Shown::None,
        };
        self.metrics.attempts.authenticated(&shown, began.elapsed());
        if let (Ok(user), Some(NotAfter(end))) = (&outcome, request.extensions.get())
            && isopod_auth::certificate::names(user)
        {
            let now = self.config.clock.now().as_second();
            self.metrics.attempts.certificate(end.saturating_sub(now) as f64);
        }
        outcome.map_err(|_| Status::unauthorized())
    }

    async fn recognize(&self, request: &Parts, remarks: &Remarks<'_>) -> Result<UserInfo, Unknown> {
        if let Some(user) = request.extensions.get::<UserInfo>() {
            return Ok(user.clone());
        }
        let mut peer = request.extensions.get::<PeerCertificates>().cloned().unwrap_or_default();
        let mut refused = self.has_expired(request);
        if refused {
            tracing::debug!(path = request.uri.path(), "the client certificate has expired since its connection began");
            peer = PeerCertificates::default();
        }
        for authenticator in &self.config.authenticators {
            match authenticator.authenticate(request, &peer) {
                None => {}
                Some(Ok(user)) => return Ok(authenticated(user)),
                Some(Err(why)) => {
                    tracing::debug!(path = request.uri.path(), reason = %why, "unable to authenticate the request");
                    refused = true;
                }
            }
        }
        if let Some(token) = bearer_token(request) {
            return self.bearer(&token, remarks).await;
        }
        // Bad credentials do not make anybody anonymous.
        if refused {
            return Err(Unknown::Refused);
        }
        let paths = &self.config.anonymous_paths;
        let path = paths.is_empty() || paths.contains(&percent_decode(request.uri.path()));
        // A front proxy that speaks for nobody is nobody itself.
        let strange = request.extensions.get::<ProxyCertificates>().is_some() && peer.leaf().is_none();
        if self.config.anonymous_auth && path && !strange { Ok(UserInfo::anonymous()) } else { Err(Unknown::Nobody) }
    }

    /// Whether the certificate was good when the connection began, and is not any more.
    fn has_expired(&self, request: &Parts) -> bool {
        let end = request.extensions.get::<NotAfter>();
        end.is_some_and(|NotAfter(end)| self.config.clock.now().as_second() > *end)
    }

    async fn bearer(&self, token: &str, remarks: &Remarks<'_>) -> Result<UserInfo, Unknown> {
        match self.verify_token(token, &[], remarks).await {
            Ok((user, _)) => Ok(user),
            Err(why) => {
                tracing::debug!(reason = why, "token refused");
                Err(Unknown::Refused)
            }
        }
    }
}

/// Why a request has no user.
enum Unknown {
    /// Its credentials are no good.
    Refused,
    /// It has none, and nobody may come without.
    Nobody,
}

/// Whether nobody knows who it is.
pub(crate) fn is_nobody(user: &UserInfo) -> bool {
    user.name == isopod_api::user::ANONYMOUS || user.in_group(isopod_api::user::UNAUTHENTICATED)
}

/// Every user who showed good credentials is in `system:authenticated`.
pub(crate) fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group(isopod_api::user::AUTHENTICATED) && !user.in_group(isopod_api::user::UNAUTHENTICATED) {
        user.groups.push(isopod_api::user::AUTHENTICATED.to_owned());
    }
    user
}
