//! Objects as deep as they may be, through everything that walks a value.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use http::Request;
use isopod_schema::json::depth::{self, DEEPEST};
use isopod_testkit::{Answer, TestServer};
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const DEEPS: &str = "/apis/example.com/v1/deeps";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
/// The deepest that a field of an object may be: the object itself is a level.
const FIELD: usize = DEEPEST - 1;

fn lists(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

fn maps(depth: usize) -> String {
    format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth))
}

fn deep(name: &str, spec: &str) -> String {
    format!(r#"{{"apiVersion":"example.com/v1","kind":"Deep","metadata":{{"name":"{name}"}},"spec":{spec}}}"#)
}

fn definition() -> Value {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"color": {"type": "string", "default": "red"}}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "deeps.example.com"},
        "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "deeps", "kind": "Deep"}, "versions": [
            {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": anything},
                "selectableFields": [{"jsonPath": ".color"}]}]}})
}

async fn send(s: &TestServer, method: &str, uri: &str, content_type: &str, body: &str) -> Answer {
    let request = Request::builder().method(method).uri(uri).header("content-type", content_type);
    s.send(request.body(Body::from(body.to_owned())).unwrap()).await
}

/// Makes an object with this `spec`, changes, reads and deletes it in every way.
async fn lives(s: &TestServer, name: &str, nested: fn(usize) -> String) {
    let (one, spec) = (format!("{DEEPS}/{name}"), nested(FIELD));
    let made = send(s, "POST", DEEPS, "application/json", &deep(name, &spec)).await;
    assert_eq!(made.code, 201, "{}", shortened(&made));
    let holds = |a: &Answer, field: &str, value: &str| a.text.contains(&format!("\"{field}\":{value}"));
    for (ty, body, field, value) in [
        (MERGE, r#"{"metadata":{"labels":{"a":"b"}}}"#.to_owned(), "spec", spec.clone()),
        (MERGE, format!(r#"{{"merged":{spec}}}"#), "merged", spec.clone()),
        (
            JSON_PATCH,
            format!(r#"[{{"op":"add","path":"/added","value":{}}}]"#, nested(FIELD - 1)),
            "added",
            nested(FIELD - 1),
        ),
        (JSON_PATCH, r#"[{"op":"test","path":"/spec","value":1}]"#.to_owned(), "", String::new()),
        (APPLY, deep(name, &spec), "spec", spec.clone()),
    ] {
        let uri = format!("{one}?fieldManager=tester&force=true");
        let uri = if ty == APPLY { &uri } else { &one };
        let patched = send(s, "PATCH", uri, ty, &body).await;
        let wanted = if field.is_empty() { 422 } else { 200 };
        assert_eq!(patched.code, wanted, "{ty}: {}", shortened(&patched));
        assert!(field.is_empty() || holds(&patched, field, &value), "{ty} {field}");
    }
    let read = s.get(&one).await;
    assert!(
        read.code == 200 && holds(&read, "spec", &spec) && holds(&read, "color", "\"red\""),
        "{}",
        shortened(&read)
    );
    let put = send(s, "PUT", &one, "application/json", &read.text.replacen("\"red\"", "\"blue\"", 1)).await;
    assert!(put.code == 200 && holds(&put, "color", "\"blue\""), "{}", shortened(&put));
    for (uri, accept) in [
        (DEEPS.to_owned() + "?fieldSelector=color=blue", "application/json"),
        (one.clone(), "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
        (one.clone(), "application/json;as=Table;g=meta.k8s.io;v=v1"),
        (one.clone(), "application/yaml"),
    ] {
        let shown = s.send(Request::get(uri).header("accept", accept).body(Body::empty()).unwrap()).await;
        assert!(shown.code == 200 && shown.text.contains(name), "{accept}: {}", shortened(&shown));
    }
    let gone = s.send(Request::delete(one).body(Body::empty()).unwrap()).await;
    assert_eq!(gone.code, 200, "{}", shortened(&gone));
}

fn shortened(answer: &Answer) -> String {
    answer.text.chars().take(600).collect()
}

/// One level more, in each way in which it can be sent.
async fn refused(s: &TestServer) {
    let (name, spec) = ("deeper", lists(FIELD + 1));
    let why = "couldn't get version/kind; json parse error: invalid character '[' exceeded max depth ";
    for (uri, kind, body) in [
        (DEEPS, "Deep", deep(name, &spec)),
        (
            MAPS,
            "ConfigMap",
            format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a"}},"x":{spec}}}"#),
        ),
    ] {
        let made = send(s, "POST", uri, "application/json", &body).await;
        let wanted = format!("the object provided is unrecognized (must be of type {kind}): {why}");
        let told = made.json["message"].as_str().unwrap();
        assert!(made.code == 400 && told.starts_with(&wanted), "{told}");
    }
    let made = send(s, "POST", DEEPS, "application/json", &deep(name, "[]")).await;
    assert_eq!(made.code, 201);
    let one = format!("{DEEPS}/{name}");
    let too_deep =
        format!("error decoding patch: error converting YAML to JSON: yaml: exceeded max depth of {DEEPEST}");
    for (ty, body, code, message) in [
        (MERGE, format!(r#"{{"spec":{spec}}}"#), 400, "invalid JSON patch"),
        (JSON_PATCH, format!(r#"[{{"op":"add","path":"/x","value":{}}}]"#, lists(FIELD)), 400, "invalid JSON patch"),
        (APPLY, deep(name, &spec), 400, &*too_deep),
        (
            JSON_PATCH,
            format!(
                r#"[{{"op":"add","path":"/x","value":{}}},{{"op":"add","path":"/y","value":{{"z":[]}}}},
                {{"op":"move","from":"/x","path":"/y/z/0"}}]"#,
                lists(FIELD - 1)
            ),
            422,
            "the server rejected our request due to an error in our request",
        ),
    ] {
        let uri = format!("{one}?fieldManager=tester");
        let uri = if ty == APPLY { &uri } else { &one };
        let patched = send(s, "PATCH", uri, ty, &body).await;
        assert_eq!((patched.code, patched.json["message"].as_str()), (code, Some(message)), "{ty}");
    }
}

#[test]
fn objects_may_be_as_deep_as_can_be_read() {
    let live = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let s = TestServer::start().await;
            assert_eq!(s.post(CRDS, definition()).await.code, 201);
            lives(&s, "lists", lists).await;
            lives(&s, "maps", maps).await;
            refused(&s).await;
        });
    };
    // As the threads of the program are.
    depth::allow_deepest();
    let thread = std::thread::Builder::new().stack_size(depth::STACK).spawn(live);
    thread.unwrap().join().unwrap();
}
