//! A built-in kind and a custom resource with its schema go through every verb: but for their group, all answers are the same.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use isopod_testkit::TestServer;
use serde_json::{Value, json};
use std::collections::HashMap;

const BUILT_IN: &str = "networking.k8s.io";
const TWIN: &str = "twin.example.com";

fn definition() -> Value {
    let selector = json!({"type": "object", "x-kubernetes-map-type": "atomic", "properties": {
        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}}});
    let atomic = |items: Value| json!({"type": "array", "x-kubernetes-list-type": "atomic", "items": items});
    let peer = json!({"type": "object", "properties": {"podSelector": selector}});
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "podSelector": selector,
        "policyTypes": atomic(json!({"type": "string"})),
        "ingress": atomic(json!({"type": "object", "properties": {"from": atomic(peer)}})),
    }}}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("networkpolicies.{TWIN}")},
        "spec": {"group": TWIN, "scope": "Namespaced",
            "names": {"plural": "networkpolicies", "singular": "networkpolicy", "kind": "NetworkPolicy",
                "listKind": "NetworkPolicyList", "shortNames": ["netpol"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

/// What the server chooses itself is named in the order of its appearance; the twin's group becomes the built-in one's.
struct Neutral {
    names: HashMap<String, String>,
}

impl Neutral {
    fn text(&mut self, text: &str) -> String {
        let text = text.replace(TWIN, BUILT_IN);
        match serde_json::from_str::<Value>(&text) {
            Ok(mut value) => {
                self.value(&mut value, "");
                value.to_string()
            }
            Err(_) => text,
        }
    }

    fn value(&mut self, value: &mut Value, key: &str) {
        match value {
            Value::Object(map) => {
                // A typed list says the type of its items once.
                if key == "items" {
                    map.remove("apiVersion");
                    map.remove("kind");
                }
                // An untyped one says that there is no more.
                if map.get("continue").is_some_and(|token| token == "") {
                    map.remove("continue");
                }
                // Go's struct is there before it is written, so nobody owns it as such.
                if key == "f:spec" {
                    map.remove(".");
                }
                map.iter_mut().for_each(|(k, v)| self.value(v, k));
            }
            Value::Array(items) => items.iter_mut().for_each(|v| self.value(v, key)),
            Value::String(s) if ["uid", "resourceVersion", "continue"].contains(&key) => {
                let next = format!("{key} {}", self.names.len());
                *s = self.names.entry(s.clone()).or_insert(next).clone();
            }
            Value::String(s) if ["creationTimestamp", "time", "deletionTimestamp"].contains(&key) => s.clear(),
            // Errors quote what the client sent.
            Value::String(s) if key == "message" => {
                let known: Vec<(String, String)> = self.names.clone().into_iter().collect();
                known.iter().for_each(|(from, to)| *s = s.replace(from.as_str(), to));
            }
            _ => {}
        }
    }
}

struct Side<'a> {
    server: &'a TestServer,
    group: &'static str,
    neutral: Neutral,
}

impl Side<'_> {
    fn url(&self, rest: &str) -> String {
        format!("/apis/{}/v1/namespaces/default/networkpolicies{rest}", self.group)
    }

    fn object(&self, name: &str, spec: Value) -> Value {
        json!({"apiVersion": format!("{}/v1", self.group), "kind": "NetworkPolicy",
            "metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
    }

    async fn send(
        &mut self,
        method: &str,
        rest: &str,
        content_type: &str,
        accept: &str,
        body: &Value,
    ) -> (u16, Value, String) {
        let bytes = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(self.url(rest)).header("user-agent", "twins/1");
        let request = request.header("content-type", content_type).header("accept", accept).body(bytes).unwrap();
        let answer = self.server.send(request).await;
        let shown = format!("{} {}", answer.code, self.neutral.text(&answer.text));
        (answer.code, answer.json, shown)
    }
}

fn spec() -> Value {
    json!({"podSelector": {"matchLabels": {"a": "b"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"c": "d"}}}]}]})
}

/// All answers of a life, in order.
async fn life(server: &TestServer, group: &'static str) -> Vec<String> {
    let mut side = Side { server, group, neutral: Neutral { names: HashMap::new() } };
    let mut shown = Vec::new();
    let (json_type, merge) = ("application/json", "application/merge-patch+json");
    let mut first = Value::Null;
    for name in ["a", "b", "c", "a"] {
        let object = side.object(name, spec());
        let (_, made, text) = side.send("POST", "", json_type, json_type, &object).await;
        first = if first.is_null() { made } else { first };
        shown.push(text);
    }
    let generated = json!({"apiVersion": format!("{group}/v1"), "kind": "NetworkPolicy", "metadata": {"name": "dry"}, "spec": spec()});
    shown.push(side.send("POST", "?dryRun=All", json_type, json_type, &generated).await.2);
    let typo = side.object("t", json!({"podSelector": {}, "policyTypes": ["Ingress"], "typo": 1}));
    shown.push(side.send("POST", "?fieldValidation=Strict", json_type, json_type, &typo).await.2);
    let mut changed = first.clone();
    changed["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
    let patch_list = json!([{"op": "test", "path": "/metadata/name", "value": "a"},
        {"op": "add", "path": "/metadata/labels/x", "value": "y"}]);
    let applied = side.object("a", json!({"podSelector": {"matchLabels": {"z": "z"}}}));
    let meta = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
    let metas = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let (json_patch, apply) = ("application/json-patch+json", "application/apply-patch+yaml");
    let none = Value::Null;
    for (method, rest, content, accept, body) in [
        ("GET", "/a", json_type, json_type, &none),
        ("GET", "/missing", json_type, json_type, &none),
        ("GET", "/a", json_type, meta, &none),
        ("GET", "", json_type, json_type, &none),
        ("GET", "", json_type, metas, &none),
        ("GET", "?labelSelector=app%3Db", json_type, json_type, &none),
        ("GET", "?fieldSelector=metadata.name%3Dc", json_type, json_type, &none),
        ("GET", "?fieldSelector=spec.x%3Dc", json_type, json_type, &none),
        ("PUT", "/a", json_type, json_type, &changed),
        ("PUT", "/a", json_type, json_type, &changed),
        ("PATCH", "/a", merge, json_type, &json!({"metadata": {"annotations": {"k": "v"}}})),
        ("PATCH", "/a", merge, json_type, &json!({"spec": {"ingress": null}})),
        ("PATCH", "/missing", merge, json_type, &json!({"spec": {}})),
        ("PATCH", "/a", json_patch, json_type, &patch_list),
        ("PATCH", "/a?fieldManager=m", apply, json_type, &applied),
        ("PATCH", "/a?fieldManager=m&force=true", apply, json_type, &applied),
        ("PATCH", "/a?fieldManager=m&force=true", apply, json_type, &applied),
        (
            "PATCH",
            "/new?fieldManager=m",
            apply,
            json_type,
            &side.object("new", json!({"podSelector": {}, "policyTypes": ["Egress"]})),
        ),
        ("PATCH", "/b", merge, json_type, &json!({"metadata": {"finalizers": ["example.com/f"]}})),
        ("DELETE", "/b", json_type, json_type, &none),
        ("PATCH", "/b", merge, json_type, &json!({"metadata": {"finalizers": null}})),
        ("DELETE", "/a?dryRun=All", json_type, json_type, &none),
        ("DELETE", "/a", json_type, json_type, &none),
        ("DELETE", "/a", json_type, json_type, &none),
        ("DELETE", "?labelSelector=app%3Dc", json_type, json_type, &none),
        ("GET", "", json_type, json_type, &none),
    ] {
        shown.push(format!("{method} {rest} {}", side.send(method, rest, content, accept, body).await.2));
    }
    shown.extend(events(&mut side, &first).await);
    shown
}

/// The events of that life, from its first object on.
async fn events(side: &mut Side<'_>, first: &Value) -> Vec<String> {
    let after = first["metadata"]["resourceVersion"].as_str().unwrap();
    let uri = side.url(&format!("?watch=1&timeoutSeconds=1&resourceVersion={after}"));
    let response = side.server.open(Request::get(uri).body(Body::empty()).unwrap()).await;
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    text.lines().map(|line| side.neutral.text(line)).collect()
}

/// Waits until the server has written the definition's status, so that its revisions lie before those of both lives.
async fn established(server: &TestServer) {
    let uri = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?watch=1";
    let mut body = server.open(Request::get(uri).body(Body::empty()).unwrap()).await.into_body();
    let mut seen = String::new();
    while !seen.contains("InitialNamesAccepted") {
        let frame = body.frame().await.expect("the watch goes on").unwrap();
        seen.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap()));
    }
}

#[tokio::test]
async fn a_custom_resource_is_served_as_a_built_in_one() {
    let server = TestServer::start().await;
    let made = server.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition()).await;
    assert_eq!(made.code, 201, "{}", made.text);
    established(&server).await;
    let (built_in, twin) = (life(&server, BUILT_IN).await, life(&server, TWIN).await);
    for (a, b) in built_in.iter().zip(&twin) {
        assert_eq!(a, b);
    }
    assert_eq!(built_in.len(), twin.len());
    assert!(built_in.len() > 40, "{}", built_in.len());
}
