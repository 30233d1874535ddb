//! Who may do what, end to end: RBAC with the bootstrap policy, the node authorizer, tokens, reviews, escalation.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use futures::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use isopod_api::UserInfo;
use isopod_apiserver::{Access, Config, PeerCertificates};
use isopod_auth::token::{Settings, Tokens};
use isopod_base::clock::Clock;
use isopod_testkit::TestServer;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tower::ServiceExt;

fn guarded(config: &mut Config) {
    let access = Access::new();
    config.authorizer = access.authorizer();
    config.access = Some(access);
    config.bootstrap.extend(isopod_auth::bootstrap::objects());
    let key = rcgen::KeyPair::generate().unwrap();
    let tokens = Tokens::new(Settings {
        issuers: vec!["https://kubernetes.default.svc.cluster.local".into()],
        api_audiences: vec![],
        private_pem: key.serialize_pem().into_bytes(),
        public_pems: vec![key.public_key_pem().into_bytes()],
    });
    config.tokens = Some(Arc::new(tokens.unwrap()));
}

async fn start() -> TestServer {
    TestServer::start_with(guarded).await
}

/// Sends a request; `user` in process, or else a token over the network.
async fn send(s: &TestServer, who: Result<UserInfo, &str>, method: &str, uri: &str, body: Value) -> (u16, Value) {
    let mut request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
    if let Err(token) = who {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let bytes = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let mut request = request.body(bytes).unwrap();
    match who {
        Ok(user) => request.extensions_mut().insert(user).map(|_| ()),
        Err(_) => request.extensions_mut().insert(PeerCertificates::default()).map(|_| ()),
    };
    let response = s.server.service().oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

fn user(name: &str) -> Result<UserInfo, &'static str> {
    Ok(UserInfo::new(name, &[]))
}

fn binding(name: &str, role: &str, subject: &str) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": subject}]})
}

/// What may be viewed, before a controller has collected it in `view`.
const VIEW: &str = "system:aggregate-to-view";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A right that was taken away is gone a moment later: ask until it is so.
async fn eventually(s: &TestServer, name: &str, method: &str, uri: &str, want: u16) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let (code, body) = send(s, user(name), method, uri, Value::Null).await;
        if code == want {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{code} {body}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn rights_come_from_bindings() {
    let s = start().await;
    let (code, refused) = send(&s, user("jane"), "GET", MAPS, Value::Null).await;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(s.post(BINDINGS, binding("v", VIEW, "jane")).await.code, 201);
    let (code, _) = send(&s, user("jane"), "GET", MAPS, Value::Null).await;
    assert_eq!(code, 200, "what was granted before the request counts");
    let (code, _) = send(&s, user("jane"), "POST", MAPS, json!({"metadata": {"name": "x"}})).await;
    assert_eq!(code, 403, "view does not write");
    assert_eq!(s.delete(&format!("{BINDINGS}/v")).await.code, 200);
    eventually(&s, "jane", "GET", MAPS, 403).await;
    for (uri, want) in [("/healthz", 200), ("/version", 200), ("/metrics", 403)] {
        let (code, body) = send(&s, Ok(UserInfo::anonymous()), "GET", uri, Value::Null).await;
        assert_eq!(code, want, "{uri} {body}");
    }
}

#[tokio::test]
async fn nobody_gives_away_more_than_they_hold() {
    let s = start().await;
    assert_eq!(s.post(BINDINGS, binding("a", "system:aggregate-to-admin", "ann")).await.code, 201);
    assert_eq!(s.post(BINDINGS, binding("v", VIEW, "ann")).await.code, 201);
    let (code, _) = send(&s, user("ann"), "POST", BINDINGS, binding("b", VIEW, "bob")).await;
    assert_eq!(code, 201, "she holds it herself");
    let (code, body) = send(&s, user("ann"), "POST", BINDINGS, binding("c", "cluster-admin", "bob")).await;
    assert_eq!(code, 403);
    let message = body["message"].as_str().unwrap();
    let begin = "rolebindings.rbac.authorization.k8s.io \"c\" is forbidden: user \"ann\" \
                 (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n";
    assert!(message.starts_with(begin), "{message}");
    let (code, body) = send(&s, user("ann"), "POST", BINDINGS, binding("d", "gone", "bob")).await;
    assert_eq!((code, &body["reason"]), (404, &json!("NotFound")), "{body}");
}

#[tokio::test]
async fn tokens_live_with_their_pod() {
    let s = start().await;
    let account = json!({"metadata": {"name": "app"}});
    assert_eq!(s.post("/api/v1/namespaces/default/serviceaccounts", account).await.code, 201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "app", "nodeName": "n1",
        "containers": [{"name": "c", "image": "i"}]}});
    let pod = s.post("/api/v1/namespaces/default/pods", pod).await;
    assert_eq!(pod.code, 201, "{}", pod.text);
    let uid = &pod.json["metadata"]["uid"];
    let bound = |more: Value| {
        let mut reference = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid});
        reference.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"spec": {"boundObjectRef": reference}})
    };
    let request = bound(json!({}));
    let uri = "/api/v1/namespaces/default/serviceaccounts/app/token";
    let node = |n: &str| Ok(UserInfo::new(format!("system:node:{n}"), &["system:nodes"]));
    let (code, _) = send(&s, node("n2"), "POST", uri, request.clone()).await;
    assert_eq!(code, 403, "not its pod");
    let mut elsewhere = request.clone();
    elsewhere["spec"]["audiences"] = json!(["vault"]);
    for (request, words) in [
        (bound(json!({"uid": null})), "with a pod binding without a uid"),
        (bound(json!({"uid": "other"})), "does not match the UID in record"),
        (json!({"spec": {}}), "not bound to a pod"),
        (elsewhere, "is not authorized to request tokens for audience \"vault\""),
    ] {
        let (code, refused) = send(&s, node("n1"), "POST", uri, request).await;
        assert!(code == 403 && refused["message"].as_str().unwrap().contains(words), "{refused}");
    }
    let (code, issued) = send(&s, node("n1"), "POST", uri, request).await;
    assert_eq!(code, 201, "{issued}");
    let token = issued["status"]["token"].as_str().unwrap();

    let (code, who) =
        send(&s, Err(token), "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).await;
    assert_eq!(code, 201, "{who}");
    let info = &who["status"]["userInfo"];
    assert_eq!(info["username"], "system:serviceaccount:default:app");
    assert_eq!(info["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    assert!(info["groups"].as_array().unwrap().contains(&json!("system:authenticated")));

    let review = json!({"spec": {"token": token}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let good = s.post(reviews, review.clone()).await;
    assert_eq!((good.code, &good.json["status"]["authenticated"]), (201, &json!(true)), "{}", good.text);
    assert_eq!(s.post(reviews, json!({"spec": {"token": "x"}})).await.json["status"]["error"], "invalid bearer token");

    assert_eq!(s.delete("/api/v1/namespaces/default/pods/p?gracePeriodSeconds=0").await.code, 200);
    let (code, _) = send(&s, Err(token), "GET", "/version", Value::Null).await;
    assert_eq!(code, 401);
    let bad = s.post(reviews, review).await;
    assert_eq!(bad.json["status"]["error"], "[invalid bearer token, service account token has been invalidated]");
    let keys = s.get("/openid/v1/jwks").await;
    assert_eq!(keys.json["keys"][0]["alg"], "ES256");
}

#[tokio::test]
async fn access_reviews() {
    let s = start().await;
    assert_eq!(s.post(BINDINGS, binding("v", VIEW, "jane")).await.code, 201);
    let may = |verb: &str| json!({"verb": verb, "resource": "configmaps", "namespace": "default"});
    let subject = |verb: &str| json!({"spec": {"user": "jane", "resourceAttributes": may(verb)}});
    let uri = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let yes = s.post(uri, subject("get")).await;
    assert_eq!(yes.json["status"]["allowed"], true, "{}", yes.text);
    let reason =
        "RBAC: allowed by RoleBinding \"v/default\" of ClusterRole \"system:aggregate-to-view\" to User \"jane\"";
    assert_eq!(yes.json["status"]["reason"], reason);
    assert_eq!(s.post(uri, subject("delete")).await.json["status"]["allowed"], false);
    let bad = s.post(uri, json!({"spec": {"user": "jane"}})).await;
    assert_eq!(bad.code, 422, "{}", bad.text);

    let own = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (code, answer) =
        send(&s, user("jane"), "POST", own, json!({"spec": {"resourceAttributes": may("list")}})).await;
    assert_eq!((code, &answer["status"]["allowed"]), (201, &json!(true)), "{answer}");
    let local = "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews";
    assert_eq!(s.post(local, subject("get")).await.json["status"]["allowed"], true);

    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let (code, answer) = send(&s, user("jane"), "POST", rules, json!({"spec": {"namespace": "default"}})).await;
    assert_eq!(code, 201, "{answer}");
    let found = answer["status"]["resourceRules"].as_array().unwrap().iter();
    let names: Vec<&Value> = found.flat_map(|r| r["resources"].as_array().unwrap()).collect();
    assert!(names.contains(&&json!("configmaps")));
    assert!(answer["status"]["nonResourceRules"].as_array().unwrap().iter().any(|r| r["nonResourceURLs"][0] == "/api"));
}

#[tokio::test]
async fn rights_are_there_after_a_restart() {
    let first = start().await;
    assert_eq!(first.post(BINDINGS, binding("v", VIEW, "jane")).await.code, 201);
    let second = TestServer::start_on(first.store.clone(), guarded).await;
    let (code, _) = send(&second, user("jane"), "GET", MAPS, Value::Null).await;
    assert_eq!(code, 200, "at once: the authorizer is filled before the first request");
}

#[tokio::test]
async fn an_expired_token_is_401() {
    let clock = Clock::fake(Clock::system().now());
    let s = TestServer::start_with(|config| {
        guarded(config);
        config.clock = clock.clone();
    })
    .await;
    let account = json!({"metadata": {"name": "app"}});
    assert_eq!(s.post("/api/v1/namespaces/default/serviceaccounts", account).await.code, 201);
    let uri = "/api/v1/namespaces/default/serviceaccounts/app/token";
    let issued = s.post(uri, json!({"spec": {"expirationSeconds": 600}})).await;
    assert_eq!(issued.code, 201, "{}", issued.text);
    let token = issued.json["status"]["token"].as_str().unwrap();
    let ask = |uri: &'static str| send(&s, Err(token), "GET", uri, Value::Null);
    clock.advance(Duration::from_secs(599));
    assert_eq!(ask("/version").await.0, 200);
    assert_eq!(ask(MAPS).await.0, 403, "who it is is known");
    // Clocks may differ by a minute.
    clock.advance(Duration::from_secs(62));
    for uri in ["/version", MAPS] {
        let (code, status) = ask(uri).await;
        assert_eq!(
            (code, &status["reason"], &status["message"]),
            (401, &json!("Unauthorized"), &json!("Unauthorized"))
        );
        assert_eq!(
            (&status["kind"], &status["status"], &status["code"]),
            (&json!("Status"), &json!("Failure"), &json!(401))
        );
    }
    let review = s.post("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": token}})).await;
    assert_ne!(review.json["status"]["authenticated"], json!(true), "{}", review.text);
}

/// Some clients lose the answer when their stream is reset while they still send.
#[tokio::test]
async fn a_refusal_waits_for_the_rest_of_a_small_body() {
    let s = start().await;
    for (chunks, all) in [(3, true), (100_000, false)] {
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = sent.clone();
        let parts = futures::stream::iter(0..chunks).map(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok::<_, std::convert::Infallible>(vec![b' '; 100])
        });
        let mut request =
            Request::post(MAPS).header("authorization", "Bearer x").body(Body::from_stream(parts)).unwrap();
        request.extensions_mut().insert(PeerCertificates::default());
        let response = s.server.service().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 401);
        assert_eq!(sent.load(Ordering::SeqCst) == chunks, all, "read {} of {chunks}", sent.load(Ordering::SeqCst));
    }
}
