//! What a server looks after by itself: its lease, the record of tokens in secrets, and what services hold.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use isopod_apiserver::PeerCertificates;
use isopod_auth::token::{Settings, Subject, Tokens};
use isopod_base::clock::Clock;
use isopod_store::memory::MemoryStore;
use isopod_store::{KeyRange, Op, Options, RangeRequest, Store, Txn};
use isopod_testkit::TestServer;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
/// Of a host called `localhost`.
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/apiserver-l2yubf4cvcl5c7a3wrubrwqdve";
const TRACKING: &str = "/api/v1/namespaces/kube-system/configmaps/kube-apiserver-legacy-service-account-token-tracking";

struct Ground {
    store: Arc<dyn Store>,
    clock: Clock,
}

impl Ground {
    fn new() -> Self {
        let clock = Clock::fake("2026-01-01T00:00:00Z".parse().unwrap());
        let options = Options { clock: clock.clone(), ..Options::default() };
        Ground { store: Arc::new(MemoryStore::new(options)), clock }
    }

    async fn server(&self) -> TestServer {
        let clock = self.clock.clone();
        TestServer::start_on(self.store.clone(), |config| config.clock = clock).await
    }

    /// Lets time go by, so many seconds at a time, until it is so.
    async fn until(&self, what: &str, step: u64, holds: impl AsyncFn() -> bool) {
        for _ in 0..1000 {
            if holds().await {
                return;
            }
            self.clock.advance(Duration::from_secs(step));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("never: {what}");
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[tokio::test]
async fn a_server_holds_a_lease_while_it_lives() {
    let ground = Ground::new();
    let s = ground.server().await;
    let lease = s.get(LEASE).await.json;
    let meta = &lease["metadata"];
    let labels = json!({"apiserver.kubernetes.io/identity": "kube-apiserver", "kubernetes.io/hostname": "localhost"});
    assert_eq!(meta["labels"], labels);
    assert_eq!(meta["annotations"], json!({"kubernetes.io/peer-advertise-address": "192.0.2.1:6443"}));
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 3600);
    assert!(text(&lease, "/spec/holderIdentity").starts_with("apiserver-l2yubf4cvcl5c7a3wrubrwqdve_"), "{lease}");
    let renewed = async || s.get(LEASE).await.json["spec"]["renewTime"] != lease["spec"]["renewTime"];
    ground.until("it is renewed", 5, renewed).await;
    assert_eq!(s.get(LEASE).await.json["metadata"]["uid"], meta["uid"]);
    // The next start is another holder of another lease of this name; a stop gives it up.
    let again = ground.server().await;
    let next = again.get(LEASE).await.json;
    assert_ne!(
        (&next["metadata"]["uid"], &next["spec"]["holderIdentity"]),
        (&meta["uid"], &lease["spec"]["holderIdentity"])
    );
    s.server.stop();
    again.server.stop();
    s.server.farewell().await;
    again.server.farewell().await;
    assert_eq!(again.get(LEASE).await.code, 404);
}

#[tokio::test]
async fn leases_of_servers_that_are_gone_are_collected() {
    let ground = Ground::new();
    let s = ground.server().await;
    let lease = |name: &str, component: &str| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "labels": {"apiserver.kubernetes.io/identity": component}},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 60, "renewTime": "2026-01-01T00:00:00.000000Z"}})
    };
    for (name, component) in [("apiserver-gone", "kube-apiserver"), ("other", "sample-apiserver")] {
        assert_eq!(s.post(LEASES, lease(name, component)).await.code, 201);
    }
    let gone = async || s.get(&format!("{LEASES}/apiserver-gone")).await.code == 404;
    for _ in 0..70 {
        assert!(!gone().await, "it is looked at once an hour");
        ground.clock.advance(Duration::from_secs(1));
    }
    for _ in 0..8 {
        ground.clock.advance(Duration::from_secs(600));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ground.until("it is collected", 5, gone).await;
    assert_eq!(s.get(&format!("{LEASES}/other")).await.code, 200);
    assert_eq!(s.get(LEASE).await.code, 200, "it is renewed");
}

#[tokio::test]
async fn since_when_tokens_are_tracked_is_kept() {
    let ground = Ground::new();
    let s = ground.server().await;
    assert_eq!(s.get(TRACKING).await.json["data"], json!({"since": "2026-01-01"}));
    let bad = json!({"data": {"since": "yesterday", "other": "x"}});
    assert_eq!(s.patch(TRACKING, "application/merge-patch+json", bad).await.code, 200);
    let mended = async || s.get(TRACKING).await.json["data"] == json!({"since": "2026-01-01", "other": "x"});
    ground.until("it is corrected", 5, mended).await;
    // One that was just created is not created again at once.
    let before = ground.clock.now();
    s.delete(TRACKING).await;
    ground.until("it is created again", 60, async || s.get(TRACKING).await.code == 200).await;
    assert!(ground.clock.now().duration_since(before).as_mins() >= 25, "too soon");
}

/// The answer to a request with a token: its code, its warning and who it is from.
async fn who(s: &TestServer, token: &str) -> (u16, String, Value) {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string();
    let mut request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {token}"))
        .body(Body::from(body))
        .unwrap();
    request.extensions_mut().insert(PeerCertificates::default());
    let response = s.server.service().oneshot(request).await.unwrap();
    let warning = response.headers().get("warning").map_or("", |w| w.to_str().unwrap()).to_owned();
    let code = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let json: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    (code, warning, json["status"]["userInfo"]["username"].clone())
}

#[tokio::test]
async fn the_last_use_of_a_token_in_a_secret_is_recorded() {
    let ground = Ground::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let tokens = Arc::new(
        Tokens::new(Settings {
            issuers: vec!["https://kubernetes.default.svc".into()],
            api_audiences: vec![],
            private_pem: key.serialize_pem().into_bytes(),
            public_pems: vec![key.public_key_pem().into_bytes()],
        })
        .unwrap(),
    );
    let (clock, own) = (ground.clock.clone(), tokens.clone());
    let s =
        TestServer::start_on(ground.store.clone(), |config| (config.clock, config.tokens) = (clock, Some(own))).await;
    let base = "/api/v1/namespaces/default";
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa"}, "secrets": [{"name": "auto"}]});
    let account = s.post(&format!("{base}/serviceaccounts"), account).await.json;
    let subject =
        Subject { namespace: "default".into(), name: "sa".into(), uid: text(&account, "/metadata/uid").into() };
    let mut shown = Vec::new();
    for name in ["auto", "manual"] {
        let token = tokens.issue_legacy(&subject, name).unwrap();
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": "sa"}},
            "data": {"token": STANDARD.encode(&token)}});
        assert_eq!(s.post(&format!("{base}/secrets"), secret).await.code, 201);
        shown.push(token);
    }
    let label = async |name: &str| {
        let secret = s.get(&format!("{base}/secrets/{name}")).await.json;
        text(&secret, "/metadata/labels/kubernetes.io~1legacy-token-last-used").to_owned()
    };
    let user = json!("system:serviceaccount:default:sa");
    assert_eq!(who(&s, &shown[1]).await, (201, String::new(), user.clone()));
    assert_eq!((label("manual").await.as_str(), label("auto").await.as_str()), ("2026-01-01", ""));
    let (code, warning, name) = who(&s, &shown[0]).await;
    assert_eq!((code, name), (201, user));
    assert!(warning.contains("instead of auto-generated secret-based tokens."), "{warning}");
    ground.clock.advance(Duration::from_secs(2 * 24 * 3600));
    who(&s, &shown[0]).await;
    assert_eq!((label("manual").await.as_str(), label("auto").await.as_str()), ("2026-01-01", "2026-01-03"));
    let mark = json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": "2026-01-03"}}});
    s.patch(&format!("{base}/secrets/auto"), "application/merge-patch+json", mark).await;
    assert_eq!(who(&s, &shown[0]).await.0, 401);
    let metrics = s.get("/metrics").await.text;
    for line in
        ["legacy_manual_token_uses_total 1", "legacy_auto_token_uses_total 2", "invalid_legacy_auto_token_uses_total 1"]
    {
        assert!(metrics.lines().any(|l| l == format!("serviceaccount_{line}")), "{line}");
    }
}

#[tokio::test]
async fn what_services_hold_is_repaired() {
    let ground = Ground::new();
    let s = ground.server().await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "clusterIP": "10.43.0.7", "ports": [{"port": 80, "nodePort": 30007}]}});
    assert_eq!(s.post("/api/v1/namespaces/default/services", service).await.code, 201);
    let addresses = "/apis/networking.k8s.io/v1/ipaddresses";
    let (address, leaked) = (format!("{addresses}/10.43.0.7"), format!("{addresses}/10.43.0.99"));
    let first = s.get(&address).await.json;
    assert_eq!(s.delete(&address).await.code, 200);
    let mut orphan = first.clone();
    orphan["metadata"] = json!({"name": "10.43.0.99", "labels": first["metadata"]["labels"]});
    orphan["spec"]["parentRef"]["name"] = "gone".into();
    assert_eq!(s.post(addresses, orphan).await.code, 201);
    let port = "/registry/ranges/servicenodeports/30007";
    let ops = vec![Op::delete(port), Op::put("/registry/ranges/servicenodeports/30008", "default/gone")];
    ground.store.txn(Txn { success: ops, ..Txn::default() }).await.unwrap();

    ground.until("the address is allocated", 5, async || s.get(&address).await.code == 200).await;
    ground.until("the other one is freed", 5, async || s.get(&leaked).await.code == 404).await;
    let again = s.get(&address).await.json;
    assert_eq!((&again["spec"], &again["metadata"]["labels"]), (&first["spec"], &first["metadata"]["labels"]));
    let ports = async || {
        let read = ground.store.range(RangeRequest::new(KeyRange::prefix("/registry/ranges/servicenodeports/"))).await;
        read.unwrap().kvs.into_iter().map(|kv| (kv.key, kv.value)).collect::<Vec<_>>()
    };
    ground.until("the ports are right", 5, async || ports().await == [(port.into(), "default/web".into())]).await;
    let reasons = async || {
        let events = s.get("/apis/events.k8s.io/v1/namespaces/default/events").await.json;
        let mut all: Vec<String> =
            events["items"].as_array().unwrap().iter().map(|e| text(e, "/reason").to_owned()).collect();
        all.sort();
        all
    };
    let told = ["ClusterIPNotAllocated", "IPAddressNotAllocated", "PortNotAllocated"];
    ground.until("it is told", 1, async || reasons().await == told).await;
}
