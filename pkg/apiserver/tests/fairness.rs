//! Priority and fairness through the whole chain: who goes by which level, who waits, who is refused, and what is told of it.

use axum::body::Body;
use futures::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use isopod_api::UserInfo;
use isopod_testkit::TestServer;
use serde_json::{Value, json};
use std::time::Duration;
use tower::ServiceExt;

const API: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

fn request(method: &str, uri: &str, body: Body) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
    request.extensions_mut().expect("the request is well formed").insert(UserInfo::new("joe", &[]));
    request.body(body).expect("the request is well formed")
}

async fn as_joe(server: &TestServer, uri: &str) -> http::Response<Body> {
    server.server.service().oneshot(request("GET", uri, Body::empty())).await.unwrap()
}

fn marks(response: &http::Response<Body>) -> [String; 2] {
    ["x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"].map(|name| {
        response.headers().get(name).map_or_else(String::new, |v| v.to_str().expect("a uid is ASCII").to_owned())
    })
}

async fn uid(server: &TestServer, resource: &str, name: &str) -> String {
    server.get(&format!("{API}/{resource}/{name}")).await.json["metadata"]["uid"]
        .as_str()
        .expect("it is there")
        .to_owned()
}

#[tokio::test]
async fn responses_tell_by_which_schema_and_level_they_went() {
    let server = TestServer::start().await;
    let want = |schema, level| {
        let server = &server;
        async move { [uid(server, "flowschemas", schema).await, uid(server, "prioritylevelconfigurations", level).await] }
    };
    let usual = want("global-default", "global-default").await;
    assert_eq!(marks(&as_joe(&server, "/api/v1/nodes").await), usual);
    assert_eq!(marks(&as_joe(&server, "/api/v1/nodes/none").await), usual);
    assert_eq!(marks(&as_joe(&server, "/api/v1/nodes?watch=1").await), usual);
    assert_eq!(marks(&as_joe(&server, "/healthz").await), want("probes", "exempt").await);
    assert_eq!(marks(&as_joe(&server, "/api/v1/namespaces/a/pods/b/log").await), [String::new(), String::new()]);
}

/// Of whatever joe asks for.
fn schema() -> Value {
    let all =
        json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}]);
    json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "mine"},
        "spec": {"matchingPrecedence": 50, "priorityLevelConfiguration": {"name": "mine"}, "rules": [
            {"subjects": [{"kind": "User", "user": {"name": "joe"}}], "resourceRules": all}]}})
}

/// One queue; it lends nothing.
fn level() -> Value {
    let queuing = json!({"queues": 1, "handSize": 1, "queueLengthLimit": 5});
    json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
        "metadata": {"name": "mine"}, "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 30,
            "lendablePercent": 0, "borrowingLimitPercent": 0, "limitResponse": {"type": "Queue", "queuing": queuing}}}})
}

/// A server where joe has one seat.
async fn one_seat() -> TestServer {
    let server = TestServer::start_with(|config| {
        (config.max_requests_in_flight, config.max_mutating_requests_in_flight) = (1, 0);
    })
    .await;
    server.post(&format!("{API}/prioritylevelconfigurations"), level()).await;
    server.post(&format!("{API}/flowschemas"), schema()).await;
    dangling(&server, "mine", "False").await;
    server
}

/// The `Dangling` condition, once it is there with this status.
async fn dangling(server: &TestServer, name: &str, status: &str) -> Value {
    for _ in 0..200 {
        let schema = server.get(&format!("{API}/flowschemas/{name}")).await.json;
        let condition = &schema["status"]["conditions"][0];
        if condition["status"] == status {
            return condition.clone();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the status of {name} does not become {status}");
}

#[tokio::test]
async fn a_schema_whose_level_is_missing_is_told_so_and_not_used() {
    let server = TestServer::start().await;
    assert_eq!(dangling(&server, "service-accounts", "False").await["reason"], "Found");
    let made = server.post(&format!("{API}/flowschemas"), schema()).await.json;
    let condition = dangling(&server, "mine", "True").await;
    let want =
        "This FlowSchema references the PriorityLevelConfiguration object named \"mine\" but there is no such object";
    assert_eq!((&condition["reason"], &condition["message"]), (&json!("NotFound"), &json!(want)));
    assert_eq!(marks(&as_joe(&server, "/api/v1/nodes").await)[0], uid(&server, "flowschemas", "global-default").await);
    server.post(&format!("{API}/prioritylevelconfigurations"), level()).await;
    dangling(&server, "mine", "False").await;
    assert_eq!(json!(marks(&as_joe(&server, "/api/v1/nodes").await)[0]), made["metadata"]["uid"]);
}

#[tokio::test]
async fn who_finds_no_seat_waits_and_then_is_refused() {
    let server = one_seat().await;
    // A body that does not come keeps the only seat of the level.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<bytes::Bytes, std::io::Error>>(1);
    let chunks = futures::stream::unfold(receiver, |mut r| async { r.recv().await.map(|b| (b, r)) });
    let body = Body::from_stream(chunks.fuse());
    let write = request("POST", "/api/v1/namespaces/default/configmaps", body);
    let running = tokio::spawn(server.server.service().oneshot(write));
    let dump = "/debug/api_priority_and_fairness/dump_requests?includeRequestDetails=1";
    while !server.get(dump).await.text.lines().any(|l| l.starts_with("mine,")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = as_joe(&server, "/api/v1/nodes?timeout=200ms").await;
    assert_eq!(refused.status().as_u16(), 429);
    assert_eq!(
        (&refused.headers()["retry-after"], &refused.headers()["content-type"]),
        (&"1".parse().unwrap(), &"text/plain; charset=utf-8".parse().unwrap())
    );
    assert_eq!(marks(&refused)[0], uid(&server, "flowschemas", "mine").await);
    let text = refused.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "Too many requests, please try again later.\n");
    let metrics = server.get("/metrics").await.text;
    let want = "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"mine\",priority_level=\"mine\",reason=\"time-out\"} 1";
    assert!(metrics.contains(want), "{metrics}");
    // Who waits gets the seat when it is free.
    let waiting = tokio::spawn(server.server.service().oneshot(request("GET", "/api/v1/nodes", Body::empty())));
    drop(sender);
    assert_eq!(running.await.unwrap().unwrap().status().as_u16(), 400);
    assert_eq!(waiting.await.unwrap().unwrap().status().as_u16(), 200);
}

#[tokio::test]
async fn a_watch_keeps_its_seat_only_until_it_has_begun() {
    let server = one_seat().await;
    let mut watches = Vec::new();
    for _ in 0..3 {
        let mut watch = as_joe(&server, "/api/v1/namespaces?watch=1").await.into_body();
        // What is there comes first; then it waits for events.
        watch.frame().await.unwrap().unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(50), watch.frame()).await;
        watches.push(watch);
    }
    assert_eq!(as_joe(&server, "/api/v1/nodes?timeout=2s").await.status().as_u16(), 200);
}
