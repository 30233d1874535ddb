//! Bearer tokens end to end: an issuer and a webhook of the test's own, bootstrap secrets, a file of tokens, and reviews that
//! ask all of them.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use isopod_apiserver::tokens::{BootstrapTokens, Jwt, ServiceAccounts, StaticTokens, TokenSource, TokenWebhook};
use isopod_apiserver::{Config, PeerCertificates};
use isopod_auth::token::{Settings, Tokens};
use isopod_testkit::TestServer;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

type Answer = Arc<dyn Fn(&str, Value) -> Value + Send + Sync>;

/// An HTTPS server with JSON answers: its port and its certificate.
async fn https(answer: impl FnOnce(u16) -> Answer) -> (u16, String) {
    isopod_pki::tls::install_provider();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (acceptor, answer) = (TlsAcceptor::from(Arc::new(config)), answer(port));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let serve = service_fn(move |request: Request<Incoming>| {
                    let answer = answer.clone();
                    async move {
                        let path = request.uri().path().to_owned();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let said = answer(&path, serde_json::from_slice(&body).unwrap_or_default());
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(said.to_string()))))
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve).await;
            });
        }
    });
    (port, made.cert.pem())
}

/// A server whose own tokens have the audience `api`.
async fn start(sources: Vec<Arc<dyn TokenSource>>) -> TestServer {
    let change = |config: &mut Config| {
        let key = rcgen::KeyPair::generate().unwrap();
        let tokens = Tokens::new(Settings {
            issuers: vec!["https://kubernetes.default.svc".into()],
            api_audiences: vec!["api".into()],
            private_pem: key.serialize_pem().into_bytes(),
            public_pems: vec![key.public_key_pem().into_bytes()],
        });
        config.tokens = Some(Arc::new(tokens.unwrap()));
        config.token_sources = sources;
    };
    TestServer::start_with(change).await
}

/// Who a token is: what a SelfSubjectReview that it authenticates says, or the code of the refusal.
async fn who(s: &TestServer, token: &str) -> Result<Value, u16> {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string();
    let request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {token}"))
        .extension(PeerCertificates::default())
        .body(Body::from(body))
        .unwrap();
    let response = s.server.service().oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    if code == 201 { Ok(answer["status"]["userInfo"].clone()) } else { Err(code) }
}

async fn review(s: &TestServer, token: &str, audiences: &[&str]) -> Value {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": audiences},
    });
    s.post("/apis/authentication.k8s.io/v1/tokenreviews", review).await.json["status"].clone()
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[tokio::test]
async fn tokens_of_an_issuer_become_users() {
    let key = rcgen::KeyPair::generate().unwrap();
    let point = key.public_key_raw().to_vec();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let (port, ca) = https(|port| {
        Arc::new(move |path: &str, _| match path {
            "/.well-known/openid-configuration" => json!({
                "issuer": format!("https://localhost:{port}"), "jwks_uri": format!("https://localhost:{port}/keys"),
            }),
            _ => {
                counted.fetch_add(1, Ordering::SeqCst);
                json!({"keys": [
                    {"kty": "unheard of"},
                    {"kty": "EC", "crv": "P-256", "kid": "1", "use": "sig", "alg": "ES256",
                     "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])},
                ]})
            }
        })
    })
    .await;
    let issuer = format!("https://localhost:{port}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("authentication.yaml");
    let config = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{
            "issuer": {"url": issuer, "audiences": ["me"], "certificateAuthority": ca},
            "claimMappings": {"username": {"expression": "'oidc:' + claims.sub"}, "groups": {"claim": "groups", "prefix": ""}},
            "userValidationRules": [{"expression": "user.groups.all(g, !g.startsWith('system:'))", "message": "no"}],
        }],
        "anonymous": {"enabled": true, "conditions": [{"path": "/livez"}]},
    });
    std::fs::write(&file, config.to_string()).unwrap();
    let jwt = Jwt::read(&file, &["https://kubernetes.default.svc".into()], "apiserver-a").unwrap();
    assert_eq!(jwt.anonymous, Some((true, vec!["/livez".to_owned()])));
    let s = start(vec![Arc::new(ServiceAccounts), Arc::new(jwt)]).await;
    let signer = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap();
    let token = |signer: &EncodingKey, change: Value| {
        let mut claims = json!({"iss": issuer, "aud": "me", "sub": "jane", "groups": ["dev"], "exp": now() + 600});
        claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let header = Header { kid: Some("1".into()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims, signer).unwrap()
    };
    let good = token(&signer, json!({}));
    let user = who(&s, &good).await.unwrap();
    assert_eq!(user, json!({"username": "oidc:jane", "groups": ["dev", "system:authenticated"]}));
    assert_eq!(review(&s, &good, &[]).await["audiences"], json!(["api"]));
    assert_eq!(review(&s, &good, &["other"]).await["authenticated"], Value::Null);
    let other = rcgen::KeyPair::generate().unwrap();
    let stranger = EncodingKey::from_ec_pem(other.serialize_pem().as_bytes()).unwrap();
    for (bad, why) in [
        (token(&signer, json!({"exp": now() - 1})), "oidc: verify token: oidc: token is expired"),
        (token(&signer, json!({"aud": ["x"]})), "oidc: verify token: oidc: expected audience in [\"me\"] got [\"x\"]"),
        (token(&signer, json!({"groups": ["system:masters"]})), "failed: no"),
        (token(&stranger, json!({})), "oidc: verify token: failed to verify signature"),
    ] {
        assert_eq!(who(&s, &bad).await, Err(401));
        let error = review(&s, &bad, &[]).await["error"].as_str().unwrap().to_owned();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "strangers' tokens do not make the keys be read at once again");
}

#[tokio::test]
async fn issuers_follow_their_file() {
    let key = rcgen::KeyPair::generate().unwrap();
    let point = key.public_key_raw().to_vec();
    let (port, ca) = https(|port| {
        Arc::new(move |path: &str, _| match path {
            "/.well-known/openid-configuration" => json!({
                "issuer": format!("https://localhost:{port}"), "jwks_uri": format!("https://localhost:{port}/keys"),
            }),
            _ => json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "1", "use": "sig",
                "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])}]}),
        })
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("authentication.yaml");
    let config = |url: &str, anonymous: bool| {
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
            "jwt": [{
                "issuer": {"url": url, "audiences": ["me"], "certificateAuthority": ca},
                "claimMappings": {"username": {"claim": "sub", "prefix": ""}},
            }],
            "anonymous": {"enabled": anonymous},
        })
        .to_string()
    };
    let empty = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "anonymous": {"enabled": true}});
    std::fs::write(&file, empty.to_string()).unwrap();
    let jwt = Arc::new(Jwt::read(&file, &[], "apiserver-a").unwrap());
    let s = start(vec![jwt.clone()]).await;
    let url = format!("https://localhost:{port}");
    let claims = json!({"iss": url, "aud": "me", "sub": "jane", "exp": now() + 600});
    let signer = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap();
    let header = Header { kid: Some("1".into()), ..Header::new(Algorithm::ES256) };
    let token = jsonwebtoken::encode(&header, &claims, &signer).unwrap();
    assert_eq!(who(&s, &token).await, Err(401));
    assert!(!jwt.look().await.unwrap(), "nothing has changed");

    std::fs::write(&file, config(&url, true)).unwrap();
    assert!(jwt.look().await.unwrap());
    assert_eq!(who(&s, &token).await.unwrap()["username"], "jane");
    let unknown = config(&url, true).replace("audiences", "audience");
    for (bad, why) in [
        (config(&url, false), "anonymous: Forbidden: changed from initial configuration file"),
        (config("http://localhost", true), "URL scheme must be https"),
        (unknown, "strict decoding error: unknown field \"jwt[0].issuer.audience\""),
    ] {
        std::fs::write(&file, bad).unwrap();
        let error = jwt.look().await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(!jwt.look().await.unwrap(), "it is told once");
        assert_eq!(who(&s, &token).await.unwrap()["username"], "jane", "what was in force stays");
    }
    // Whoever cannot be reached now may be reached later: it is tried again.
    std::fs::write(&file, config("https://localhost:1", true)).unwrap();
    for _ in 0..2 {
        let error = jwt.look().await.unwrap_err().to_string();
        assert!(error.starts_with("the keys of the token issuer \"https://localhost:1\" cannot be read"), "{error}");
    }
    let page = s.get("/metrics").await.text;
    for (status, count) in [("success", 1), ("failure", 5)] {
        let line = format!("apiserver_authentication_config_controller_automatic_reloads_total{{status=\"{status}\"");
        let found = page.lines().find(|l| l.starts_with(&line)).unwrap_or_default();
        assert!(found.ends_with(&format!(" {count}")), "{page}");
    }
}

#[tokio::test]
async fn a_webhook_is_asked_once_for_a_token() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let (port, ca) = https(|_| {
        Arc::new(move |path: &str, review: Value| {
            assert_eq!((path, &review["apiVersion"]), ("/check", &json!("authentication.k8s.io/v1")));
            counted.fetch_add(1, Ordering::SeqCst);
            let good = review["spec"]["token"] == "good";
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": match good {
                true => json!({"authenticated": true, "user": {"username": "jane", "groups": ["dev"], "extra": {"a": ["b"]}}}),
                false => json!({"authenticated": false, "error": "unheard of"}),
            }})
        })
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("webhook.yaml");
    let config = json!({
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "a"}}],
        "clusters": [{"name": "a", "cluster": {
            "server": format!("https://127.0.0.1:{port}/check"), "tls-server-name": "localhost",
            "certificate-authority-data": STANDARD.encode(ca),
        }}],
    });
    std::fs::write(&file, config.to_string()).unwrap();
    let hook = TokenWebhook::new(&file, "v1", Duration::from_secs(60)).unwrap();
    let s = start(vec![Arc::new(ServiceAccounts), Arc::new(hook)]).await;
    let user = who(&s, "good").await.unwrap();
    assert_eq!(user, json!({"username": "jane", "groups": ["dev", "system:authenticated"], "extra": {"a": ["b"]}}));
    who(&s, "good").await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(review(&s, "bad", &[]).await["error"], "[invalid bearer token, unheard of]");
    assert!(TokenWebhook::new(&file, "v2", Duration::ZERO).is_err());
}

#[tokio::test]
async fn files_and_secrets_hold_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens.csv");
    std::fs::write(&file, "secret,joe,7,\"a,b\"\n").unwrap();
    let tokens = StaticTokens::read(&file).unwrap();
    let s = start(vec![Arc::new(tokens), Arc::new(ServiceAccounts), Arc::new(BootstrapTokens)]).await;
    let joe = who(&s, "secret").await.unwrap();
    assert_eq!(joe, json!({"username": "joe", "uid": "7", "groups": ["a", "b", "system:authenticated"]}));
    let token = "abcdef.0123456789abcdef";
    assert_eq!(who(&s, token).await, Err(401));
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bootstrap-token-abcdef"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"},
    });
    let made = s.post("/api/v1/namespaces/kube-system/secrets", secret).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let node = who(&s, token).await.unwrap();
    assert_eq!(
        node,
        json!({"username": "system:bootstrap:abcdef", "groups": ["system:bootstrappers", "system:authenticated"]})
    );
    assert_eq!(review(&s, token, &["api"]).await["audiences"], json!(["api"]));
    assert_eq!(review(&s, "nonsense", &[]).await["error"], "invalid bearer token");
}
