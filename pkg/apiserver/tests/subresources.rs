//! Subresources, allocation and graceful deletion, as clients see them.

#![allow(clippy::unwrap_used)]

use isopod_testkit::TestServer;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const MERGE: &str = "application/merge-patch+json";

async fn server() -> TestServer {
    let s = TestServer::start().await;
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(s.post("/api/v1/namespaces/default/serviceaccounts", account).await.code, 201);
    s
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

#[tokio::test]
async fn a_pod_gets_what_admission_gives_and_dies_gracefully() {
    let s = server().await;
    let made = s.post(PODS, pod("a")).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let spec = &made.json["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["priority"]), (&json!("default"), &json!(0)));
    assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
    assert!(spec["volumes"][0]["name"].as_str().unwrap().starts_with("kube-api-access-"));
    assert_eq!(made.json["status"]["phase"], "Pending");

    let bind = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(s.post(&format!("{PODS}/a/binding"), bind.clone()).await.code, 201);
    let again = s.post(&format!("{PODS}/a/binding"), bind).await;
    assert_eq!((again.code, &again.json["reason"]), (409, &json!("Conflict")));
    let bound = s.get(&format!("{PODS}?fieldSelector=spec.nodeName%3Dn1")).await;
    assert_eq!(bound.json["items"][0]["metadata"]["name"], "a");
    assert_eq!(bound.json["items"][0]["status"]["conditions"][0]["type"], "PodScheduled");

    let status = json!({"status": {"phase": "Running", "podIP": "10.0.0.1"}, "spec": {"nodeName": "other"}});
    let running = s.patch(&format!("{PODS}/a/status"), MERGE, status).await;
    assert_eq!(running.json["status"]["phase"], "Running", "{}", running.text);
    assert_eq!(running.json["spec"]["nodeName"], "n1", "the status subresource changes no spec");

    let marked = s.delete(&format!("{PODS}/a")).await;
    assert_eq!(marked.code, 200, "{}", marked.text);
    assert_eq!(marked.json["metadata"]["deletionGracePeriodSeconds"], 30);
    let still = s.get(&format!("{PODS}/a")).await;
    assert!(still.json["metadata"]["deletionTimestamp"].is_string());
    // The kubelet ends it.
    assert_eq!(s.delete(&format!("{PODS}/a?gracePeriodSeconds=0")).await.code, 200);
    assert_eq!(s.get(&format!("{PODS}/a")).await.code, 404);
}

#[tokio::test]
async fn services_hold_addresses_and_ports() {
    let s = TestServer::start().await;
    let kubernetes = s.get(&format!("{SERVICES}/kubernetes")).await;
    assert_eq!(kubernetes.json["spec"]["clusterIP"], "10.43.0.1", "{}", kubernetes.text);
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let ports = json!([{"port": 80, "protocol": "TCP"}]);
    let made =
        s.post(SERVICES, service("a", json!({"type": "NodePort", "ports": ports, "selector": {"a": "b"}}))).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let (ip, port) = (made.json["spec"]["clusterIP"].clone(), made.json["spec"]["ports"][0]["nodePort"].clone());
    assert_eq!(made.json["spec"]["clusterIPs"], json!([ip]));
    assert!(port.as_u64().is_some_and(|p| (30000..=32767).contains(&p)));
    let ip = ip.as_str().unwrap().to_owned();
    let address = s.get(&format!("/apis/networking.k8s.io/v1/ipaddresses/{ip}")).await;
    assert_eq!(address.json["spec"]["parentRef"]["name"], "a", "{}", address.text);

    let taken = s.post(SERVICES, service("b", json!({"clusterIP": ip, "ports": ports}))).await;
    assert_eq!(taken.code, 422);
    let message = taken.json["message"].as_str().unwrap();
    assert!(message.contains("provided IP is already allocated"), "{message}");
    let far = s.post(SERVICES, service("b", json!({"clusterIP": "10.99.0.1", "ports": ports}))).await;
    assert!(far.json["message"].as_str().unwrap().contains("The range of valid IPs is 10.43.0.0/16"), "{}", far.text);
    let port_taken = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let refused = s.post(SERVICES, service("b", port_taken.clone())).await;
    assert!(
        refused.json["message"].as_str().unwrap().contains("provided port is already allocated"),
        "{}",
        refused.text
    );

    // Back to ClusterIP: the port is free again.
    let to_cluster_ip =
        json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP", "nodePort": null}]}});
    let changed = s.patch(&format!("{SERVICES}/a"), MERGE, to_cluster_ip).await;
    assert_eq!((changed.code, &changed.json["spec"]["ports"][0]["nodePort"]), (200, &Value::Null), "{}", changed.text);
    let now_free = s.post(SERVICES, service("b", port_taken)).await;
    assert_eq!(now_free.code, 201, "{}", now_free.text);
    assert_eq!(s.delete(&format!("{SERVICES}/a")).await.code, 200);
    assert_eq!(s.get(&format!("/apis/networking.k8s.io/v1/ipaddresses/{ip}")).await.code, 404);
    let headless =
        s.post(SERVICES, service("h", json!({"clusterIP": "None", "ports": ports, "selector": {"a": "b"}}))).await;
    assert_eq!(
        (&headless.json["spec"]["clusterIP"], &headless.json["spec"]["ipFamilies"]),
        (&json!("None"), &json!(["IPv4"]))
    );
}

fn deployment(name: &str) -> Value {
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    json!({"metadata": {"name": name}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}})
}

#[tokio::test]
async fn scale_and_generation() {
    let s = TestServer::start().await;
    let made = s.post(DEPLOYMENTS, deployment("d")).await;
    assert_eq!((made.code, &made.json["metadata"]["generation"]), (201, &json!(1)), "{}", made.text);
    let uri = format!("{DEPLOYMENTS}/d/scale");
    let scale = s.get(&uri).await;
    assert_eq!(
        (&scale.json["kind"], &scale.json["spec"]["replicas"], &scale.json["status"]["selector"]),
        (&json!("Scale"), &json!(1), &json!("a=b"))
    );
    let patched = s.patch(&uri, MERGE, json!({"spec": {"replicas": 4}})).await;
    assert_eq!((patched.code, &patched.json["spec"]["replicas"]), (200, &json!(4)), "{}", patched.text);
    let now = s.get(&format!("{DEPLOYMENTS}/d")).await;
    assert_eq!((&now.json["spec"]["replicas"], &now.json["metadata"]["generation"]), (&json!(4), &json!(2)));
    let status = s.patch(&format!("{DEPLOYMENTS}/d/status"), MERGE, json!({"status": {"replicas": 4}})).await;
    assert_eq!((&status.json["status"]["replicas"], &status.json["metadata"]["generation"]), (&json!(4), &json!(2)));
    let same = s.patch(&format!("{DEPLOYMENTS}/d"), MERGE, json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(same.json["metadata"]["generation"], 2, "labels are no change of the spec");
}

#[tokio::test]
async fn budgets_hold_evictions_back() {
    let s = server().await;
    s.post(PODS, pod("a")).await;
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(s.patch(&format!("{PODS}/a/status"), MERGE, ready).await.code, 200);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget =
        json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}});
    let made = s.post(budgets, budget).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let allow = |n: i64| json!({"status": {"observedGeneration": 1, "disruptionsAllowed": n, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
    assert_eq!(s.patch(&format!("{budgets}/b/status"), MERGE, allow(0)).await.code, 200);
    let evict = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}});
    let refused = s.post(&format!("{PODS}/a/eviction"), evict.clone()).await;
    assert_eq!(refused.code, 429, "{}", refused.text);
    assert_eq!(refused.json["message"], "Cannot evict pod as it would violate the pod's disruption budget.");
    assert_eq!(refused.json["details"]["causes"][0]["reason"], "DisruptionBudget");
    assert_eq!(s.patch(&format!("{budgets}/b/status"), MERGE, allow(1)).await.code, 200);
    let evicted = s.post(&format!("{PODS}/a/eviction"), evict).await;
    assert_eq!(evicted.code, 201, "{}", evicted.text);
    let charged = s.get(&format!("{budgets}/b")).await;
    assert_eq!(charged.json["status"]["disruptionsAllowed"], 0, "{}", charged.text);
    assert_eq!(s.get(&format!("{PODS}/a")).await.code, 404, "a pod without a node goes at once");
}

#[tokio::test]
async fn a_namespace_ends_when_it_is_finalized() {
    let s = TestServer::start().await;
    let made = s.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    assert_eq!((made.code, &made.json["spec"]["finalizers"]), (201, &json!(["kubernetes"])), "{}", made.text);
    let marked = s.delete("/api/v1/namespaces/n").await;
    assert_eq!((marked.code, &marked.json["status"]["phase"]), (200, &json!("Terminating")), "{}", marked.text);
    let refused = s.post("/api/v1/namespaces/n/configmaps", json!({"metadata": {"name": "x"}})).await;
    assert_eq!(refused.code, 403);
    assert_eq!(refused.json["details"]["causes"][0]["reason"], "NamespaceTerminating", "{}", refused.text);
    let mut done = marked.json.clone();
    done["spec"]["finalizers"] = json!([]);
    let finalized = s.put("/api/v1/namespaces/n/finalize", done).await;
    assert_eq!(finalized.code, 200, "{}", finalized.text);
    assert_eq!(s.get("/api/v1/namespaces/n").await.code, 404);
}
