//! The audit log against upstream: `upstream/audit.json` holds requests in order and the events that kube-apiserver v1.37.2
//! recorded of them under `upstream/audit-policy.yaml`. Here the same requests go to a server in this process. Times, uids
//! and revisions are `*`, and of addresses only those that clients state are kept.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use isopod_api::UserInfo;
use isopod_apiserver::audit::{Audit, Batching, Log, Mode, Settings, Truncation, Webhook};
use isopod_apiserver::{Access, Config, PeerCertificates};
use isopod_testkit::TestServer;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tower::ServiceExt;

const RECORDED: &str = include_str!("upstream/audit.json");
const POLICY: &str = include_str!("upstream/audit-policy.yaml");
/// Of a request that takes long.
const LATENCY: &str = "apiserver.latency.k8s.io/";

fn batching() -> Batching {
    Batching {
        buffer_size: 100,
        max_size: 1,
        max_wait: Duration::ZERO,
        throttle: false,
        throttle_qps: 0.0,
        throttle_burst: 0,
        concurrent: false,
    }
}

fn no_truncation() -> Truncation {
    Truncation { enabled: false, max_event_size: 1 << 20, max_batch_size: 1 << 20 }
}

fn log(path: PathBuf, mode: Mode) -> Log {
    Log {
        path,
        format: "json".into(),
        max_age_days: 0,
        max_backups: 0,
        max_size_megabytes: 0,
        compress: false,
        version: "audit.k8s.io/v1".into(),
        mode,
        batching: batching(),
        truncation: no_truncation(),
    }
}

fn guarded(config: &mut Config, settings: &Settings) {
    let access = Access::new();
    config.authorizer = access.authorizer();
    config.access = Some(access);
    config.anonymous_auth = false;
    config.bootstrap.extend(isopod_auth::bootstrap::objects());
    config.audit = Audit::open(settings).unwrap();
}

fn admin() -> UserInfo {
    UserInfo { uid: "1".into(), ..UserInfo::new("admin", &["system:masters"]) }
}

/// Sends a request to the end of its answer.
async fn send(s: &TestServer, id: &str, asked: &Value) -> u16 {
    let body = match &asked["body"] {
        Value::Null => Body::empty(),
        Value::String(text) => Body::from(text.clone()),
        json => Body::from(json.to_string()),
    };
    let mut request = Request::builder().method(asked["method"].as_str().unwrap()).uri(asked["path"].as_str().unwrap());
    request = request.header("audit-id", id);
    let headers = asked["headers"].as_object();
    let has = |name: &str| headers.is_some_and(|h| h.contains_key(name));
    if !has("Content-Type") && !asked["body"].is_null() {
        request = request.header("content-type", "application/json");
    }
    if !has("User-Agent") {
        request = request.header("user-agent", "test");
    }
    let unknown = asked["anonymous"] == true || has("Authorization");
    for (name, value) in headers.into_iter().flatten() {
        request = request.header(name, value.as_str().unwrap());
    }
    let mut request = request.body(body).unwrap();
    match unknown {
        true => drop(request.extensions_mut().insert(PeerCertificates::default())),
        false => drop(request.extensions_mut().insert(admin())),
    }
    let response = s.server.service().oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let _ = response.into_body().collect().await;
    code
}

fn events(path: &Path, id: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let all = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    all.filter(|e| e["auditID"] == id).collect()
}

/// Without what differs from run to run.
fn normal(value: &mut Value, of: &str) {
    match value {
        Value::Object(object) => {
            let is_time =
                |key: &str| matches!(key, "requestReceivedTimestamp" | "stageTimestamp") || key.starts_with(LATENCY);
            object.retain(|key, _| !is_time(key));
            for (key, value) in object.iter_mut() {
                let varies = matches!(key.as_str(), "uid" | "resourceVersion" | "creationTimestamp");
                match varies && matches!(of, "metadata" | "details") {
                    true => *value = "*".into(),
                    false => normal(value, key),
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|v| normal(v, of)),
        Value::String(text) if text.len() == 7 && text.starts_with("d-") => *text = "d-*".into(),
        _ => {}
    }
}

#[tokio::test]
async fn events_are_those_of_upstream() {
    let dir = tempfile::tempdir().unwrap();
    let (policy, path) = (dir.path().join("policy.yaml"), dir.path().join("audit.log"));
    std::fs::write(&policy, POLICY).unwrap();
    let settings =
        Settings { policy_file: Some(policy), log: Some(log(path.clone(), Mode::BlockingStrict)), webhook: None };
    let s = TestServer::start_with(|config| guarded(config, &settings)).await;
    let recorded: Vec<Value> = serde_json::from_str(RECORDED).unwrap();
    let (mut differences, mut slow) = (Vec::new(), Vec::new());
    for (i, step) in recorded.iter().enumerate() {
        let id = format!("request-{i}");
        let code = send(&s, &id, &step["request"]).await;
        assert_eq!(json!(code), step["code"], "{}", step["request"]);
        let want = step["events"].as_array().unwrap();
        // The last event of a watch comes when its stream has ended.
        let all = async {
            while events(&path, &id).len() < want.len() {
                tokio::task::yield_now().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(10), all).await;
        let mut got = events(&path, &id);
        let takes_long = |e: &Value| e["annotations"].get(format!("{LATENCY}total")).is_some();
        slow.extend(got.iter().filter(|e| takes_long(e)).map(|e| e["verb"].as_str().unwrap().to_owned()));
        got.iter_mut().for_each(|e| normal(e, ""));
        if got != *want {
            differences.push(format!("{}\n  upstream: {}\n  here:     {}", step["request"], json!(want), json!(got)));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(slow.iter().any(|verb| verb == "watch"), "it takes a second");
    let metrics = s.get("/metrics").await.text;
    assert!(metrics.contains("apiserver_audit_level_total{level=\"RequestResponse\"}"), "{metrics}");
    assert!(metrics.contains("apiserver_audit_requests_rejected_total 0"), "{metrics}");
}

#[tokio::test]
async fn a_strict_log_that_cannot_be_written_refuses_requests() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]").unwrap();
    for (mode, want) in [(Mode::BlockingStrict, 500), (Mode::Blocking, 200)] {
        let settings =
            Settings { policy_file: Some(policy.clone()), log: Some(log("/dev/full".into(), mode)), webhook: None };
        let s = TestServer::start_with(|config| guarded(config, &settings)).await;
        assert_eq!(send(&s, "x", &json!({"method": "GET", "path": "/api/v1/nodes"})).await, want);
    }
}

/// An HTTP server that fails once and then keeps what it is sent.
async fn collector() -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/events", listener.local_addr().unwrap());
    let kept: Arc<Mutex<Vec<Value>>> = Arc::default();
    let (lists, asked) = (kept.clone(), Arc::new(Mutex::new(0)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (lists, asked) = (lists.clone(), asked.clone());
            let serve = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let (lists, asked) = (lists.clone(), asked.clone());
                async move {
                    let token = request.headers().get("authorization").map(|v| v.to_str().unwrap().to_owned());
                    let bytes = request.into_body().collect().await.unwrap().to_bytes();
                    let mut response = http::Response::new(Full::<Bytes>::default());
                    let mut asked = asked.lock().unwrap();
                    *asked += 1;
                    match *asked {
                        1 => *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR,
                        _ => {
                            assert_eq!(token.as_deref(), Some("Bearer secret"));
                            lists.lock().unwrap().push(serde_json::from_slice(&bytes).unwrap());
                        }
                    }
                    Ok::<_, Infallible>(response)
                }
            });
            let stream = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, serve));
        }
    });
    (url, kept)
}

#[tokio::test]
async fn a_webhook_is_sent_lists_again_until_it_takes_them() {
    let dir = tempfile::tempdir().unwrap();
    let (policy, kubeconfig) = (dir.path().join("policy.yaml"), dir.path().join("webhook.yaml"));
    let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]";
    std::fs::write(&policy, text).unwrap();
    let (url, kept) = collector().await;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "a", "cluster": {"server": url}}],
        "users": [{"name": "b", "user": {"token": "secret"}}],
        "contexts": [{"name": "c", "context": {"cluster": "a", "user": "b"}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let webhook = Webhook {
        config_file: kubeconfig,
        initial_backoff: Duration::from_millis(1),
        version: "audit.k8s.io/v1".into(),
        mode: Mode::Batch,
        batching: Batching { max_size: 10, max_wait: Duration::from_secs(60), ..batching() },
        truncation: no_truncation(),
    };
    let settings = Settings { policy_file: Some(policy), log: None, webhook: Some(webhook) };
    let s = TestServer::start_with(|config| guarded(config, &settings)).await;
    for id in ["one", "two"] {
        send(&s, id, &json!({"method": "GET", "path": "/api/v1/nodes"})).await;
    }
    s.server.config.audit.as_ref().unwrap().close().await;
    let kept = kept.lock().unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0]["kind"], "EventList");
    let ids: Vec<&Value> = kept[0]["items"].as_array().unwrap().iter().map(|e| &e["auditID"]).collect();
    assert_eq!(ids, ["one", "two"]);
}
