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
