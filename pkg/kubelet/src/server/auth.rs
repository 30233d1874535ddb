//! Who asks and whether they may: client certificates and tokens (TokenReview), then SubjectAccessReview on the node.

use super::Refused;
use crate::shared::Shared;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use isopod_base::errors::Chain;
use isopod_client::{Calls, Resource};
use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Upstream's `cacheAuthorizedTTL`, `cacheUnauthorizedTTL` and the token cache.
const ALLOWED_FOR: Duration = Duration::from_secs(300);
const DENIED_FOR: Duration = Duration::from_secs(30);
const TOKEN_FOR: Duration = Duration::from_secs(120);
const MAX_CACHED: usize = 4096;

/// The client certificate's identity, if it brought one. The TLS layer has verified it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer(Option<(String, Vec<String>)>);

impl Peer {
    #[cfg(test)]
    pub fn named(name: &str, groups: &[&str]) -> Self {
        Peer(Some((name.to_owned(), groups.iter().map(|g| (*g).to_owned()).collect())))
    }

    pub fn of(certificates: Option<&[CertificateDer<'_>]>) -> Self {
        let Some(first) = certificates.and_then(<[_]>::first) else { return Peer(None) };
        let Ok((_, cert)) = x509_parser::parse_x509_certificate(first) else { return Peer(None) };
        let subject = cert.subject();
        let name = subject.iter_common_name().next().and_then(|n| n.as_str().ok());
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        Peer(name.map(|n| (n.to_owned(), groups)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct User {
    name: String,
    groups: Vec<String>,
}

type Cache<K, V> = Mutex<HashMap<K, (Timestamp, V)>>;

pub struct Gate {
    shared: Arc<Shared>,
    tokens: Cache<String, Option<User>>,
    decisions: Cache<(User, &'static str, &'static str), bool>,
}

/// The verb that a method stands for (upstream's `NewNodeAuthorizerAttributesGetter`).
fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The subresource of `nodes` that guards a path.
fn subresource(path: &str) -> &'static str {
    let under = |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|r| r.starts_with('/'));
    if under("/stats") {
        "stats"
    } else if under("/metrics") {
        "metrics"
    } else if under("/logs") {
        "log"
    } else if under("/pods") {
        "pods"
    } else {
        "proxy"
    }
}

fn lookup<K: std::hash::Hash + Eq, V: Clone>(cache: &Cache<K, V>, key: &K, now: Timestamp) -> Option<V> {
    cache.lock().get(key).filter(|(until, _)| now < *until).map(|(_, v)| v.clone())
}

fn keep<K: std::hash::Hash + Eq, V>(cache: &Cache<K, V>, key: K, value: V, now: Timestamp, wait: Duration) {
    let mut cache = cache.lock();
    if cache.len() >= MAX_CACHED {
        cache.retain(|_, (until, _)| now < *until);
    }
    if cache.len() < MAX_CACHED {
        cache.insert(key, (now + wait, value));
    }
}

impl Gate {
    pub fn new(shared: Arc<Shared>) -> Self {
        Gate { shared, tokens: Mutex::default(), decisions: Mutex::default() }
    }

    pub async fn check(&self, request: &Parts) -> Result<(), Refused> {
        let user = self.authenticate(request).await?;
        let (verb, sub) = (verb(&request.method), subresource(request.uri.path()));
        // Fine-grained permissions first, then the one for everything (KEP-2862).
        if self.allowed(&user, verb, sub).await? || (sub == "pods" && self.allowed(&user, verb, "proxy").await?) {
            return Ok(());
        }
        let message = format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{sub}])", user.name);
        Err(Refused(StatusCode::FORBIDDEN, message))
    }

    async fn authenticate(&self, request: &Parts) -> Result<User, Refused> {
        if let Some(Peer(Some((name, groups)))) = request.extensions.get::<Peer>() {
            let mut groups = groups.clone();
            groups.push(isopod_api::user::AUTHENTICATED.to_owned());
            return Ok(User { name: name.clone(), groups });
        }
        let bearer = request.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        if let Some(token) = bearer.and_then(|v| v.strip_prefix("Bearer ")).map(str::trim).filter(|t| !t.is_empty()) {
            return self.review(token).await?.ok_or_else(unauthorized);
        }
        if self.shared.cfg.anonymous_auth {
            let anonymous = isopod_api::UserInfo::anonymous();
            return Ok(User { name: anonymous.name, groups: anonymous.groups });
        }
        Err(unauthorized())
    }

    async fn review(&self, token: &str) -> Result<Option<User>, Refused> {
        let now = self.shared.clock.now();
        if let Some(known) = lookup(&self.tokens, &token.to_owned(), now) {
            return Ok(known);
        }
        let calls =
            Calls::new(self.shared.client.clone(), Resource::cluster("authentication.k8s.io", "v1", "tokenreviews"));
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let answer: Value = calls.create("", &body).await.map_err(unavailable)?;
        let status = &answer["status"];
        let user = (status["authenticated"] == true).then(|| User {
            name: status["user"]["username"].as_str().unwrap_or_default().to_owned(),
            groups: strings(&status["user"]["groups"]),
        });
        keep(&self.tokens, token.to_owned(), user.clone(), now, TOKEN_FOR);
        Ok(user)
    }

    async fn allowed(&self, user: &User, verb: &'static str, sub: &'static str) -> Result<bool, Refused> {
        if user.groups.iter().any(|g| g == isopod_api::user::SYSTEM_MASTERS) {
            return Ok(true);
        }
        let now = self.shared.clock.now();
        let key = (user.clone(), verb, sub);
        if let Some(known) = lookup(&self.decisions, &key, now) {
            return Ok(known);
        }
        let resource = Resource::cluster("authorization.k8s.io", "v1", "subjectaccessreviews");
        let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": user.name, "groups": user.groups,
            "resourceAttributes": {"verb": verb, "version": "v1", "resource": "nodes", "subresource": sub,
                "name": self.shared.cfg.node_name},
        }});
        let answer: Value =
            Calls::new(self.shared.client.clone(), resource).create("", &body).await.map_err(unavailable)?;
        let allowed = answer["status"]["allowed"] == true;
        keep(&self.decisions, key, allowed, now, if allowed { ALLOWED_FOR } else { DENIED_FOR });
        Ok(allowed)
    }
}

fn unauthorized() -> Refused {
    Refused(StatusCode::UNAUTHORIZED, "Unauthorized".into())
}

fn unavailable(e: isopod_client::Error) -> Refused {
    tracing::warn!(error = %Chain(&e), "cannot ask the API server about a request");
    Refused(StatusCode::INTERNAL_SERVER_ERROR, "Authorization error: cannot ask the API server".into())
}

fn strings(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_methods_have_their_permissions() {
        for (path, want) in [
            ("/stats/summary", "stats"),
            ("/metrics", "metrics"),
            ("/metrics/resource", "metrics"),
            ("/metricsx", "proxy"),
            ("/pods", "pods"),
            ("/exec/a/b/c", "proxy"),
            ("/containerLogs/a/b/c", "proxy"),
        ] {
            assert_eq!(subresource(path), want, "{path}");
        }
        assert_eq!((verb(&Method::GET), verb(&Method::POST)), ("get", "create"));
    }
}
