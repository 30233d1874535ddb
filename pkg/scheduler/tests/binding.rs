//! The whole scheduler on an in-process API server whose bindings fail when the test says so.

#![allow(clippy::unwrap_used)]

use isopod_base::clock::Clock;
use isopod_client::in_process;
use isopod_client::transport::component;
use isopod_testkit::TestServer;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

/// Far more than anything here needs; reached only by a bug.
const PATIENCE: Duration = Duration::from_secs(30);
const PODS: &str = "/api/v1/namespaces/default/pods";

struct Cluster {
    server: TestServer,
    clock: Clock,
    /// Bindings that are still to fail.
    failures: Arc<AtomicU32>,
    /// Bindings that were asked for.
    bindings: Arc<AtomicU32>,
    _stop: DropGuard,
}

impl Cluster {
    /// One node with one core. The first bindings fail.
    async fn start(failures: u32) -> Self {
        let server = TestServer::start().await;
        let account = json!({"metadata": {"name": "default"}});
        assert_eq!(server.post("/api/v1/namespaces/default/serviceaccounts", account).await.code, 201);
        let size = json!({"cpu": "1", "memory": "1Gi", "pods": "10"});
        let node = json!({"metadata": {"name": "n"}, "status": {"capacity": size, "allocatable": size}});
        assert_eq!(server.post("/api/v1/nodes", node).await.code, 201);
        // Admission taints it until the node lifecycle controller has seen it ready.
        let ready = json!({"spec": {"taints": null}});
        assert_eq!(server.patch("/api/v1/nodes/n", "application/merge-patch+json", ready).await.code, 200);
        let (failures, bindings) = (Arc::new(AtomicU32::new(failures)), Arc::new(AtomicU32::new(0)));
        let service = server.server.service();
        let (left, asked) = (failures.clone(), bindings.clone());
        let faulty = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let binding = request.uri().path().ends_with("/binding");
            asked.fetch_add(binding.into(), Ordering::SeqCst);
            let fails = binding && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
            let service = service.clone();
            async move {
                if !fails {
                    return service.oneshot(request).await;
                }
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500,
                    "reason": "InternalError", "message": "no binding today"});
                let answer = http::Response::builder().status(500).header("content-type", "application/json");
                Ok(answer.body(status.to_string().into()).unwrap())
            }
        });
        let (clock, stop) = (Clock::fake(Clock::system().now()), CancellationToken::new());
        let client = in_process(faulty, component(isopod_scheduler::USER));
        tokio::spawn(isopod_scheduler::run(client, clock.clone(), stop.clone()));
        Cluster { server, clock, failures, bindings, _stop: stop.drop_guard() }
    }

    async fn pod(&self, name: &str, cpu: &str) {
        let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}});
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [container]}});
        let made = self.server.post(PODS, pod).await;
        assert_eq!(made.code, 201, "{}", made.text);
    }

    /// Asks until what the API shows is so.
    async fn until(&self, what: &str, uri: &str, so: impl Fn(&Value) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let got = self.server.get(uri).await.json;
            if so(&got) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {got}");
            tokio::task::yield_now().await;
        }
    }

    fn said(events: &Value, reason: &str, words: &str) -> bool {
        let mut all = events["items"].as_array().into_iter().flatten();
        all.any(|e| e["reason"] == reason && e.to_string().contains(words))
    }
}

#[tokio::test]
async fn a_binding_that_fails_is_tried_again_after_a_while() {
    let c = Cluster::start(1).await;
    c.pod("p", "600m").await;
    let events = "/api/v1/namespaces/default/events";
    c.until("the failure is told", events, |e| {
        Cluster::said(e, "FailedScheduling", "binding rejected")
            && Cluster::said(e, "FailedScheduling", "no binding today")
    })
    .await;
    assert_eq!((c.failures.load(Ordering::SeqCst), c.bindings.load(Ordering::SeqCst)), (0, 1));
    assert!(c.server.get(&format!("{PODS}/p")).await.json["spec"]["nodeName"].is_null());
    // The room that was kept for it is free again: of two pods, each of which fits alone, it is no other's.
    c.clock.advance(Duration::from_secs(10));
    c.until("bound", &format!("{PODS}/p"), |p| p["spec"]["nodeName"] == "n").await;
    assert_eq!(c.bindings.load(Ordering::SeqCst), 2);
    c.until("its event", events, |e| Cluster::said(e, "Scheduled", "Successfully assigned default/p to n")).await;
}

#[tokio::test]
async fn a_failed_binding_gives_its_room_back() {
    let c = Cluster::start(1).await;
    c.pod("first", "600m").await;
    let events = "/api/v1/namespaces/default/events";
    c.until("the failure is told", events, |e| Cluster::said(e, "FailedScheduling", "binding rejected")).await;
    // `first` waits for its next try; meanwhile the node takes another, and is full then.
    c.pod("second", "600m").await;
    c.until("bound", &format!("{PODS}/second"), |p| p["spec"]["nodeName"] == "n").await;
    c.clock.advance(Duration::from_secs(10));
    let full =
        |p: &Value| p["status"]["conditions"].to_string().contains("0/1 nodes are available: 1 Insufficient cpu.");
    c.until("told that the node is full", &format!("{PODS}/first"), full).await;
    // Room again: it is tried once its time has come.
    assert_eq!(c.server.delete(&format!("{PODS}/second?gracePeriodSeconds=0")).await.code, 200);
    c.until("gone", &format!("{PODS}/second"), |p| p["code"] == 404).await;
    let end = Instant::now() + PATIENCE;
    while c.server.get(&format!("{PODS}/first")).await.json["spec"]["nodeName"].is_null() {
        assert!(Instant::now() < end, "not bound");
        c.clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_pod_that_is_gone_is_not_tried_again() {
    let c = Cluster::start(1).await;
    c.pod("p", "600m").await;
    let events = "/api/v1/namespaces/default/events";
    c.until("the failure is told", events, |e| Cluster::said(e, "FailedScheduling", "binding rejected")).await;
    assert_eq!(c.server.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await.code, 200);
    // What comes later shows that the scheduler has been through all before it: the deletion, then its time to try again.
    for later in ["second", "third"] {
        c.pod(later, "100m").await;
        c.until("bound", &format!("{PODS}/{later}"), |p| p["spec"]["nodeName"] == "n").await;
        c.clock.advance(Duration::from_secs(100));
    }
    assert_eq!(c.bindings.load(Ordering::SeqCst), 3, "one for each pod");
}
