//! Built-in admission plugins, as clients see them.

#![allow(clippy::unwrap_used)]

use isopod_testkit::TestServer;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn server() -> TestServer {
    let s = TestServer::start().await;
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(s.post("/api/v1/namespaces/default/serviceaccounts", account).await.code, 201);
    s
}

fn pod(name: &str, more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "i:1"}], "runtimeClassName": "kata"});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_runtime_class_must_exist_and_shapes_its_pods() {
    let s = server().await;
    let refused = s.post(PODS, pod("a", json!({}))).await;
    let why = "pods \"a\" is forbidden: pod rejected: RuntimeClass \"kata\" not found";
    assert_eq!((refused.code, refused.json["message"].as_str()), (403, Some(why)));

    let class = json!({
        "metadata": {"name": "kata"}, "handler": "kata", "overhead": {"podFixed": {"memory": "64Mi", "cpu": "0.25"}},
        "scheduling": {"nodeSelector": {"kata": "yes"}, "tolerations": [{"key": "kata", "operator": "Exists"}]},
    });
    assert_eq!(s.post("/apis/node.k8s.io/v1/runtimeclasses", class).await.code, 201);
    let made = s.post(PODS, pod("a", json!({"nodeSelector": {"disk": "ssd"}}))).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let spec = &made.json["spec"];
    assert_eq!(spec["overhead"], json!({"cpu": "250m", "memory": "64Mi"}));
    assert_eq!(spec["nodeSelector"], json!({"disk": "ssd", "kata": "yes"}));
    assert!(spec["tolerations"].as_array().unwrap().iter().any(|t| t["key"] == "kata"));

    for (more, words) in [
        (json!({"overhead": {"cpu": "1"}}), "doesn't match RuntimeClass's defined Overhead"),
        (json!({"nodeSelector": {"kata": "no"}}), "conflict: runtimeClass.scheduling.nodeSelector[kata] = yes"),
        (
            json!({"runtimeClassName": null, "overhead": {"cpu": "1"}}),
            "Overhead set without corresponding RuntimeClass",
        ),
    ] {
        let refused = s.post(PODS, pod("b", more)).await;
        assert!(refused.code == 403 && refused.text.contains(words), "{words}: {}", refused.text);
    }
}

#[tokio::test]
async fn a_new_node_is_tainted_until_it_is_ready() {
    let s = server().await;
    let own = json!([{"key": "mine", "effect": "NoExecute"}]);
    let made = s.post("/api/v1/nodes", json!({"metadata": {"name": "n"}, "spec": {"taints": own}})).await;
    let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    assert_eq!(made.json["spec"]["taints"], json!([{"key": "mine", "effect": "NoExecute"}, taint]), "{}", made.text);
}

/// A quota of `default` that its controller has counted already.
async fn quota(s: &TestServer, hard: Value, used: Value) {
    let path = "/api/v1/namespaces/default/resourcequotas";
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}});
    let mut made = s.post(path, quota).await;
    assert_eq!(made.code, 201, "{}", made.text);
    made.json["status"] = json!({"hard": hard, "used": used});
    let counted = s.put(&format!("{path}/q/status"), made.json).await;
    assert_eq!(counted.code, 200, "{}", counted.text);
}

async fn used(s: &TestServer) -> Value {
    s.get("/api/v1/namespaces/default/resourcequotas/q").await.json["status"]["used"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_at_once_share_a_quota_and_never_exceed_it() {
    let s = server().await;
    quota(&s, json!({"configmaps": "5", "secrets": "1"}), json!({"configmaps": "0", "secrets": "1"})).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let creates = (0..40).map(|n| s.post(maps, json!({"metadata": {"name": format!("m{n}")}})));
    let made = futures::future::join_all(creates).await;
    assert_eq!(made.iter().filter(|m| m.code == 201).count(), 5);
    let why = "is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=5, limited: configmaps=5";
    let refused: Vec<_> = made.iter().filter(|m| m.code != 201).collect();
    assert!(refused.iter().all(|m| m.code == 403 && m.text.contains(why)), "{}", refused[0].text);
    assert_eq!(used(&s).await, json!({"configmaps": "5", "secrets": "1"}));
    // Another namespace has no quota.
    assert_eq!(s.post("/api/v1/namespaces", json!({"metadata": {"name": "other"}})).await.code, 201);
    assert_eq!(s.post("/api/v1/namespaces/other/configmaps", json!({"metadata": {"name": "m"}})).await.code, 201);
}

#[tokio::test]
async fn quotas_are_charged_for_what_is_written() {
    let s = server().await;
    let none = json!({"services": "0", "services.nodeports": "0"});
    quota(&s, json!({"services": "2", "services.nodeports": "2"}), none.clone()).await;
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str| json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 1}]}});
    assert_eq!(s.post(&format!("{services}?dryRun=All"), service("a")).await.code, 201);
    assert_eq!(used(&s).await, none);
    let mut made = s.post(services, service("a")).await;
    assert_eq!(s.post(services, service("a")).await.code, 409);
    assert_eq!(used(&s).await, json!({"services": "1", "services.nodeports": "0"}));
    made.json["spec"]["type"] = "NodePort".into();
    let changed = s.put(&format!("{services}/a"), made.json).await;
    assert_eq!(changed.code, 200, "{}", changed.text);
    assert_eq!(used(&s).await, json!({"services": "1", "services.nodeports": "1"}));
}

#[tokio::test]
async fn pods_keep_the_standard_of_their_namespace() {
    let s = server().await;
    let labels = json!({"pod-security.kubernetes.io/enforce": "baseline"});
    let mut namespace = s.get("/api/v1/namespaces/default").await.json;
    namespace["metadata"]["labels"] = labels;
    assert_eq!(s.put("/api/v1/namespaces/default", namespace).await.code, 200);
    let refused = s.post(PODS, pod("a", json!({"runtimeClassName": null, "hostNetwork": true}))).await;
    let why = "pods \"a\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)";
    assert_eq!((refused.code, refused.json["message"].as_str()), (403, Some(why)));
    assert_eq!(s.post(PODS, pod("a", json!({"runtimeClassName": null}))).await.code, 201);
    let page = s.get("/metrics").await.text;
    for decision in ["deny", "allow"] {
        let counted = format!(
            "pod_security_evaluations_total{{decision=\"{decision}\",policy_level=\"baseline\",policy_version=\"latest\",\
             mode=\"enforce\",request_operation=\"create\",resource=\"pod\",subresource=\"\"}} 1\n"
        );
        assert!(page.contains(&counted), "{counted} in {page}");
    }
}
