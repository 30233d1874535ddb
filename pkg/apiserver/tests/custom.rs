//! Custom resources: what a definition brings, changes and takes away.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use isopod_testkit::{Answer, TestServer};
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const FOOS: &str = "/apis/example.com/v1/namespaces/default/foos";
const MERGE: &str = "application/merge-patch+json";

fn version(name: &str, storage: bool, spec: Value) -> Value {
    json!({"name": name, "served": true, "storage": storage,
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
        "additionalPrinterColumns": [{"name": "Color", "type": "string", "jsonPath": ".spec.color"},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
        "selectableFields": [{"jsonPath": ".spec.color"}],
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": spec},
            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}}}}}})
}

fn fields() -> Value {
    json!({"color": {"type": "string", "enum": ["red", "blue"]}, "replicas": {"type": "integer", "default": 1}})
}

fn definition(versions: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "foos.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "versions": versions,
            "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList", "shortNames": ["fo"],
                "categories": ["all"]}}})
}

fn foo(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": name}, "spec": spec})
}

async fn server() -> TestServer {
    let s = TestServer::start().await;
    define(&s).await;
    s
}

async fn define(s: &TestServer) {
    let made = s.post(CRDS, definition(json!([version("v1", true, fields())]))).await;
    assert_eq!(made.code, 201, "{}", made.text);
}

async fn created(s: &TestServer, object: Value) -> Value {
    let made = s.post(FOOS, object).await;
    assert_eq!(made.code, 201, "{}", made.text);
    made.json
}

async fn accept(s: &TestServer, uri: &str, accept: &str) -> Answer {
    s.send(Request::get(uri).header("accept", accept).body(Body::empty()).unwrap()).await
}

/// Reads a watch until an event holds.
async fn until(s: &TestServer, uri: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut body = s.open(Request::get(uri).body(Body::empty()).unwrap()).await.into_body();
    let mut buffer = Vec::new();
    loop {
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line).unwrap();
            if holds(&event) {
                return event;
            }
        }
        let frame = body.frame().await.expect("the watch goes on").unwrap();
        buffer.extend_from_slice(&frame.into_data().unwrap());
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let all = object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().find(|c| c["type"] == kind).map_or(&Value::Null, |c| &c["status"])
}

#[tokio::test]
async fn a_definition_is_served_at_once_and_says_so() {
    let s = server().await;
    let made = created(&s, foo("a", json!({"color": "red", "more": 1}))).await;
    assert_eq!((&made["spec"], &made["metadata"]["generation"]), (&json!({"color": "red", "replicas": 1}), &json!(1)));
    let list = s.get(FOOS).await.json;
    assert_eq!((&list["kind"], &list["items"][0]["kind"]), (&json!("FooList"), &json!("Foo")));

    let established = |e: &Value| condition(&e["object"], "Established") == "True";
    let event = until(&s, &format!("{CRDS}?watch=1"), established).await;
    let status = &event["object"]["status"];
    assert_eq!(
        (condition(&event["object"], "NamesAccepted"), &status["storedVersions"]),
        (&json!("True"), &json!(["v1"]))
    );
    assert_eq!(status["acceptedNames"]["shortNames"], json!(["fo"]));

    let found = s.get("/apis/example.com/v1").await.json;
    let names: Vec<&Value> = found["resources"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
    assert_eq!(names, ["foos", "foos/scale", "foos/status"]);
    let groups = accept(&s, "/apis", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList").await.json;
    assert!(groups["items"].as_array().unwrap().iter().any(|g| g["metadata"]["name"] == "example.com"));
    let v3 = s.get("/openapi/v3/apis/example.com/v1").await.json;
    let shown = &v3["components"]["schemas"]["com.example.v1.Foo"]["properties"]["spec"]["properties"];
    assert_eq!(shown["color"], json!({"type": "string", "enum": ["red", "blue"]}));
}

#[tokio::test]
async fn values_are_checked() {
    let s = server().await;
    for (body, code, message) in [
        (
            foo("a", json!({"color": "green"})),
            422,
            r#"Foo.example.com "a" is invalid: spec.color: Unsupported value: "green": supported values: "red", "blue""#,
        ),
        (
            foo("a", json!({"replicas": "x"})),
            422,
            r#"Foo.example.com "a" is invalid: [spec.replicas: Invalid value: "string": spec.replicas in body must be of type integer: "string", .spec.replicas: Invalid value: 0: .spec.replicas accessor error: x is of the type string, expected int64]"#,
        ),
        (
            json!({"apiVersion": "example.com/v2", "kind": "Foo", "metadata": {"name": "a"}}),
            400,
            "the API version in the data (example.com/v2) does not match the expected API version (example.com/v1)",
        ),
        (
            json!({"apiVersion": "example.com/v1", "kind": "Bar", "metadata": {"name": "a"}}),
            422,
            r#"Foo.example.com "a" is invalid: kind: Invalid value: "Bar": must be Foo"#,
        ),
    ] {
        let refused = s.post(FOOS, body).await;
        assert_eq!((refused.code, refused.json["message"].as_str().unwrap()), (code, message));
    }
    let strict = s.post(&format!("{FOOS}?fieldValidation=Strict"), foo("a", json!({"x": 1, "b": 2}))).await;
    let message = r#"Foo in version "v1" cannot be handled as a Foo: strict decoding error: unknown field "spec.b", unknown field "spec.x""#;
    assert_eq!((strict.code, strict.json["message"].as_str().unwrap()), (400, message));
    let warned = s.post(FOOS, foo("a", json!({"x": 1}))).await;
    assert_eq!(
        (warned.code, warned.headers["warning"].to_str().unwrap()),
        (201, r#"299 - "unknown field \"spec.x\"""#)
    );
}

#[tokio::test]
async fn subresources() {
    let s = server().await;
    created(&s, foo("a", json!({"color": "red"}))).await;
    let status = s
        .patch(&format!("{FOOS}/a/status"), MERGE, json!({"spec": {"color": "blue"}, "status": {"replicas": 4}}))
        .await;
    assert_eq!(
        (status.code, &status.json["spec"]["color"], &status.json["status"]),
        (200, &json!("red"), &json!({"replicas": 4}))
    );
    assert_eq!(status.json["metadata"]["generation"], 1);
    let object =
        s.patch(&format!("{FOOS}/a"), MERGE, json!({"spec": {"color": "blue"}, "status": {"replicas": 9}})).await.json;
    assert_eq!((&object["status"]["replicas"], &object["metadata"]["generation"]), (&json!(4), &json!(2)));
    let scale = s.get(&format!("{FOOS}/a/scale")).await.json;
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["replicas"]),
        (&json!("Scale"), &json!(1), &json!(4))
    );
    let scaled = s.patch(&format!("{FOOS}/a/scale"), MERGE, json!({"spec": {"replicas": 7}})).await;
    assert_eq!((scaled.code, &scaled.json["spec"]["replicas"]), (200, &json!(7)));
    assert_eq!(s.get(&format!("{FOOS}/a")).await.json["spec"]["replicas"], 7);
    let none = s.get(&format!("{FOOS}/a/log")).await;
    assert_eq!((none.code, none.json["message"].as_str().unwrap()), (404, "foos.example.com \"a\" not found"));
}

#[tokio::test]
async fn forms_and_selectors() {
    let s = server().await;
    created(&s, foo("a", json!({"color": "red"}))).await;
    created(&s, foo("b", json!({"color": "blue"}))).await;
    let table = accept(&s, FOOS, "application/json;as=Table;v=v1;g=meta.k8s.io").await.json;
    let columns: Vec<&Value> = table["columnDefinitions"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(columns, ["Name", "Color", "Age"]);
    assert_eq!(table["rows"][0]["cells"], json!(["a", "red", "0s"]));
    let blue = s.get(&format!("{FOOS}?fieldSelector=spec.color%3Dblue")).await.json;
    assert_eq!((blue["items"].as_array().unwrap().len(), &blue["items"][0]["metadata"]["name"]), (1, &json!("b")));
    assert_eq!(s.get(&format!("{FOOS}?fieldSelector=spec.replicas%3D1")).await.code, 400);

    let protobuf = "application/vnd.kubernetes.protobuf";
    assert_eq!(accept(&s, FOOS, protobuf).await.code, 406);
    let either = accept(&s, FOOS, &format!("{protobuf},application/json")).await;
    assert_eq!((either.code, either.headers["content-type"].to_str().unwrap()), (200, "application/json"));
    let post =
        Request::post(FOOS).header("content-type", protobuf).body(Body::from(foo("c", json!({})).to_string())).unwrap();
    assert_eq!(s.send(post).await.code, 415);
    let strategic = s.patch(&format!("{FOOS}/a"), "application/strategic-merge-patch+json", json!({})).await;
    assert_eq!(strategic.code, 415);
}

#[tokio::test]
async fn what_is_stored_follows_the_schema() {
    let s = server().await;
    created(&s, foo("a", json!({"color": "red"}))).await;
    let mut changed = s.get(&format!("{CRDS}/foos.example.com")).await.json;
    let more = json!({"color": {"type": "string"}, "size": {"type": "string", "default": "big"}, "replicas": {"type": "integer"}});
    let mut second = version("v2", true, more);
    // Equal ones of several versions would count as those of all versions, which need a schema of all versions.
    second.as_object_mut().unwrap().remove("selectableFields");
    changed["spec"]["versions"] = json!([version("v1", false, fields()), second]);
    // The server writes the status at about the same time.
    changed["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let patched = s.patch(&format!("{CRDS}/foos.example.com"), MERGE, json!({"spec": changed["spec"]})).await;
    assert_eq!(
        (patched.code, &patched.json["status"]["storedVersions"]),
        (200, &json!(["v1", "v2"])),
        "{}",
        patched.text
    );
    let two = s.get(&FOOS.replace("v1", "v2")).await.json;
    assert_eq!(
        (&two["apiVersion"], &two["items"][0]["apiVersion"]),
        (&json!("example.com/v2"), &json!("example.com/v2"))
    );
    let second = s.post(&FOOS.replace("v1", "v2"), json!({"apiVersion": "example.com/v2", "kind": "Foo", "metadata": {"name": "b"}, "spec": {"size": "small"}})).await;
    assert_eq!(second.code, 201, "{}", second.text);
    let spec = s.get(&format!("{FOOS}/b")).await.json["spec"].clone();
    assert_eq!(spec, json!({}), "the older version does not know it");
    assert_eq!(s.get(&format!("{}/b", FOOS.replace("v1", "v2"))).await.json["spec"], json!({"size": "small"}));
}

#[tokio::test]
async fn defaults_appear_in_what_is_stored_already() {
    let s = server().await;
    created(&s, foo("a", json!({}))).await;
    let mut more = fields();
    more["size"] = json!({"type": "string", "default": "big"});
    let path = format!("{CRDS}/foos.example.com");
    assert_eq!(s.patch(&path, MERGE, json!({"spec": {"versions": [version("v1", true, more)]}})).await.code, 200);
    assert_eq!(s.get(&format!("{FOOS}/a")).await.json["spec"]["size"], "big");
    assert_eq!(s.get(FOOS).await.json["items"][0]["spec"]["size"], "big");
}

#[tokio::test]
async fn a_definition_goes_after_its_objects() {
    let s = server().await;
    created(&s, foo("plain", json!({}))).await;
    let mut held = foo("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    created(&s, held).await;
    let deleted = s.delete(&format!("{CRDS}/foos.example.com")).await;
    assert_eq!((deleted.code, condition(&deleted.json, "Terminating")), (200, &json!("True")), "{}", deleted.text);
    let late = s.post(FOOS, foo("late", json!({}))).await;
    assert_eq!((late.code, late.json["reason"].as_str().unwrap()), (403, "Forbidden"));
    let gone = |e: &Value| e["type"] == "DELETED" && e["object"]["metadata"]["name"] == "plain";
    until(&s, &format!("{FOOS}?watch=1&resourceVersion=1"), gone).await;
    assert_eq!(s.patch(&format!("{FOOS}/held"), MERGE, json!({"metadata": {"finalizers": null}})).await.code, 200);
    let gone = |e: &Value| e["type"] == "DELETED";
    until(&s, &format!("{CRDS}?watch=1&resourceVersion=1"), gone).await;
    assert_eq!(s.get(FOOS).await.code, 404);
    assert!(!s.get("/apis").await.text.contains("example.com"));
    // The same names again are a new resource.
    define(&s).await;
    assert_eq!(s.get(FOOS).await.json["items"], json!([]));
}

#[tokio::test]
async fn names_are_granted_once_and_survive_a_restart() {
    let s = server().await;
    let mut rival = definition(json!([version("v1", true, fields())]));
    rival["metadata"]["name"] = json!("bars.example.com");
    rival["spec"]["names"] = json!({"plural": "bars", "singular": "bar", "kind": "Foo", "listKind": "BarList"});
    assert_eq!(s.post(CRDS, rival).await.code, 201);
    let settled = |e: &Value| {
        e["object"]["metadata"]["name"] == "bars.example.com" && condition(&e["object"], "NamesAccepted") == "False"
    };
    let event = until(&s, &format!("{CRDS}?watch=1"), settled).await;
    assert_eq!(condition(&event["object"], "Established"), "False");
    assert_eq!(s.get("/apis/example.com/v1/namespaces/default/bars").await.code, 404);
    created(&s, foo("a", json!({}))).await;
    let again = TestServer::start_on(s.store.clone(), |_| {}).await;
    assert_eq!(again.get(&format!("{FOOS}/a")).await.code, 200);
    assert_eq!(again.get("/apis/example.com/v1/namespaces/default/bars").await.code, 404);
}
