//! Custom resources in several versions, converted by a webhook.

#![allow(clippy::unwrap_used)]

mod webhook_server;

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use isopod_testkit::TestServer;
use serde_json::{Value, json};
use webhook_server::WebhookServer;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const MERGE: &str = "application/merge-patch+json";

fn foos(version: &str) -> String {
    format!("/apis/example.com/{version}/namespaces/default/foos")
}

/// `v1` has `spec.host` and `spec.port`, `v2` has `spec.address`.
fn convert(path: &str, review: &Value) -> Value {
    let request = &review["request"];
    let desired = request["desiredAPIVersion"].as_str().unwrap();
    let one = |object: &Value| {
        let mut made = object.clone();
        let spec = &object["spec"];
        made["spec"] = match desired {
            "example.com/v1" => {
                let (host, port) = spec["address"].as_str().and_then(|a| a.split_once(':')).unwrap_or_default();
                json!({"host": host, "port": port})
            }
            _ => json!({"address": format!("{}:{}", spec["host"].as_str().unwrap(), spec["port"].as_str().unwrap()),
                "unknown": 1}),
        };
        made["apiVersion"] = desired.into();
        made["metadata"]["labels"]["seen-as"] = desired.rsplit('/').next().unwrap().into();
        made["metadata"]["generation"] = 99.into();
        if path == "/renames" {
            made["metadata"]["name"] = "other".into();
        }
        made
    };
    let result = match path {
        "/refuses" => json!({"status": "Failure", "message": "not today"}),
        _ => json!({"status": "Success"}),
    };
    let converted: Vec<Value> = request["objects"].as_array().unwrap().iter().map(one).collect();
    json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview",
        "response": {"uid": request["uid"], "result": result, "convertedObjects": converted}})
}

fn version(name: &str, storage: bool, fields: &[&str]) -> Value {
    let mut properties: serde_json::Map<String, Value> =
        fields.iter().map(|f| ((*f).to_owned(), json!({"type": "string"}))).collect();
    properties.insert("replicas".into(), json!({"type": "integer"}));
    json!({"name": name, "served": true, "storage": storage,
        "subresources": {"status": {}},
        "selectableFields": [{"jsonPath": format!(".spec.{}", fields[0])}],
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": properties},
            "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}}}})
}

fn definition(webhook: &WebhookServer, path: &str, storage: &str) -> Value {
    let versions = [("v1", &["host", "port"][..]), ("v2", &["address"][..])];
    let versions: Vec<Value> = versions.iter().map(|(name, f)| version(name, *name == storage, f)).collect();
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "foos.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "versions": versions,
            "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"},
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("{}{path}", webhook.url), "caBundle": webhook.ca}}}}})
}

async fn server(webhook: &WebhookServer, path: &str) -> TestServer {
    let s = TestServer::start().await;
    let made = s.post(CRDS, definition(webhook, path, "v1")).await;
    assert_eq!(made.code, 201, "{}", made.text);
    s
}

fn v1(name: &str, host: &str) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": name}, "spec": {"host": host, "port": "80"}})
}

fn v2(name: &str, address: &str) -> Value {
    json!({"apiVersion": "example.com/v2", "kind": "Foo", "metadata": {"name": name}, "spec": {"address": address}})
}

async fn stays(s: &TestServer, path: &str) {
    let made = s.post(&foos("v1"), v1("a", "h")).await;
    assert_eq!(made.code, 201, "{path}: the stored version needs no conversion: {}", made.text);
}

#[tokio::test]
async fn each_version_is_written_and_read() {
    let webhook = WebhookServer::start(convert).await;
    let s = server(&webhook, "/").await;
    stays(&s, "/").await;
    assert_eq!(webhook.taken().len(), 0);
    let seen = s.get(&format!("{}/a", foos("v2"))).await.json;
    assert_eq!(seen["spec"], json!({"address": "h:80"}), "pruned by the schema of the version");
    assert_eq!((&seen["metadata"]["generation"], &seen["metadata"]["labels"]), (&json!(1), &json!({"seen-as": "v2"})));
    let (_, question) = webhook.taken().remove(0);
    assert_eq!(question["request"]["desiredAPIVersion"], "example.com/v2");
    assert_eq!(question["request"]["objects"][0]["metadata"].get("resourceVersion"), None);

    let made = s.post(&foos("v2"), v2("b", "x:1")).await;
    assert_eq!((made.code, &made.json["apiVersion"]), (201, &json!("example.com/v2")), "{}", made.text);
    let stored = s.get(&format!("{}/b", foos("v1"))).await.json;
    assert_eq!(stored["spec"], json!({"host": "x", "port": "1"}));
    assert_eq!(stored["metadata"]["managedFields"][0]["apiVersion"], "example.com/v2");

    let patched = s.patch(&format!("{}/b", foos("v2")), MERGE, json!({"spec": {"address": "y:2"}})).await;
    assert_eq!((patched.code, &patched.json["spec"]), (200, &json!({"address": "y:2"})), "{}", patched.text);
    let status = json!({"status": {"ready": true}});
    let patched = s.patch(&format!("{}/b/status", foos("v2")), MERGE, status).await;
    assert_eq!(patched.code, 200, "{}", patched.text);
    let stored = s.get(&format!("{}/b", foos("v1"))).await.json;
    assert_eq!((&stored["spec"], &stored["metadata"]["generation"]), (&json!({"host": "y", "port": "2"}), &json!(2)));

    let config = json!({"apiVersion": "example.com/v2", "kind": "Foo", "spec": {"address": "z:3"}});
    let uri = format!("{}/b?fieldManager=m&force=true", foos("v2"));
    let applied = s.patch(&uri, "application/apply-patch+yaml", config).await;
    assert_eq!((applied.code, &applied.json["spec"]), (200, &json!({"address": "z:3"})), "{}", applied.text);
    assert_eq!(s.delete(&format!("{}/b", foos("v2"))).await.code, 200);
    assert_eq!(webhook.connections(), 1, "kept between calls");
}

#[tokio::test]
async fn a_list_asks_once_for_all_that_is_new() {
    let webhook = WebhookServer::start(convert).await;
    let s = server(&webhook, "/").await;
    for n in 0..20 {
        assert_eq!(s.post(&foos("v1"), v1(&format!("f{n:02}"), if n < 5 { "x" } else { "y" })).await.code, 201);
    }
    let list = s.get(&foos("v2")).await.json;
    let all = list["items"].as_array().unwrap();
    assert!(all.len() == 20 && all.iter().all(|o| o["apiVersion"] == "example.com/v2"), "{list}");
    assert_eq!(webhook.taken().len(), 1, "one call for all of them");
    s.get(&foos("v2")).await;
    assert_eq!(webhook.taken().len(), 0, "nothing has changed");
    assert_eq!(s.post(&foos("v1"), v1("new", "x")).await.code, 201);
    assert_eq!(s.get(&foos("v2")).await.json["items"].as_array().unwrap().len(), 21);
    assert_eq!(webhook.taken()[0].1["request"]["objects"].as_array().unwrap().len(), 1);

    // Selectors look at what the version shows.
    for (version, query, want) in [
        ("v2", "fieldSelector=spec.address%3Dx:80", 6),
        ("v1", "fieldSelector=spec.host%3Dy", 15),
        ("v2", "labelSelector=seen-as%3Dv2", 21),
        ("v1", "labelSelector=seen-as%3Dv2", 0),
        ("v2", "fieldSelector=metadata.name%3Df03", 1),
    ] {
        let list = s.get(&format!("{}?{query}", foos(version))).await.json;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(want), "{version} {query}: {list}");
    }
    let wrong = s.get(&format!("{}?fieldSelector=spec.host%3Dx", foos("v2"))).await;
    assert_eq!(wrong.code, 400, "a field of another version: {}", wrong.text);
    let page = s.get(&format!("{}?limit=4&fieldSelector=spec.address%3Dx:80", foos("v2"))).await.json;
    assert_eq!(page["items"].as_array().unwrap().len(), 4);
    let next = page["metadata"]["continue"].as_str().unwrap();
    let rest = s.get(&format!("{}?limit=4&fieldSelector=spec.address%3Dx:80&continue={next}", foos("v2"))).await.json;
    assert_eq!(rest["items"].as_array().unwrap().len(), 2, "{rest}");
    let gone = s.delete(&format!("{}?fieldSelector=spec.address%3Dx:80", foos("v2"))).await;
    assert_eq!(gone.json["items"].as_array().map(Vec::len), Some(6), "{}", gone.text);
    assert_eq!(s.get(&foos("v1")).await.json["items"].as_array().unwrap().len(), 15);
}

#[tokio::test]
async fn a_change_is_converted_once_for_all_watchers() {
    let webhook = WebhookServer::start(convert).await;
    let s = server(&webhook, "/").await;
    stays(&s, "/").await;
    let revision = s.get(&foos("v2")).await.json["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    webhook.taken();
    let uri = format!("{}?watch=1&fieldSelector=spec.address%3Dh:80&resourceVersion={revision}", foos("v2"));
    let mut watches = Vec::new();
    for _ in 0..10 {
        watches.push(s.open(Request::get(&uri).body(Body::empty()).unwrap()).await.into_body());
    }
    assert_eq!(s.post(&foos("v1"), v1("b", "h")).await.code, 201);
    assert_eq!(s.post(&foos("v1"), v1("c", "other")).await.code, 201);
    let moved = s.patch(&format!("{}/a", foos("v1")), MERGE, json!({"spec": {"host": "moved"}})).await;
    assert_eq!(moved.code, 200, "{}", moved.text);
    for watch in &mut watches {
        let mut text = String::new();
        while text.lines().count() < 2 || !text.ends_with('\n') {
            let frame = watch.frame().await.expect("the watch goes on").unwrap().into_data().unwrap();
            text.push_str(std::str::from_utf8(&frame).unwrap());
        }
        let events: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let seen: Vec<_> = events.iter().map(|e| (&e["type"], &e["object"]["metadata"]["name"])).collect();
        assert_eq!(seen, [(&json!("ADDED"), &json!("b")), (&json!("DELETED"), &json!("a"))]);
        assert_eq!(events[1]["object"]["spec"], json!({"address": "h:80"}), "as it was last");
    }
    let asked: usize = webhook.taken().iter().map(|(_, q)| q["request"]["objects"].as_array().unwrap().len()).sum();
    assert_eq!(asked, 3, "each new object once");
}

#[tokio::test]
async fn a_failure_is_told_and_harms_no_other_version() {
    let webhook = WebhookServer::start(convert).await;
    for (path, why) in [
        ("/refuses", "conversion webhook for example.com/v1, Kind=Foo failed: not today"),
        (
            "/renames",
            "conversion webhook for example.com/v1, Kind=Foo returned invalid object: must have the same name: a != other",
        ),
    ] {
        let s = server(&webhook, path).await;
        stays(&s, path).await;
        let got = s.get(&format!("{}/a", foos("v2"))).await;
        let told = got.json["message"].as_str().unwrap();
        assert!(
            got.code == 500 && told.ends_with(why) && told.contains("/example.com/foos/default/a,"),
            "{}",
            got.text
        );
        let list = s.get(&foos("v2")).await;
        assert_eq!((list.code, &list.json["reason"]), (500, &json!("StorageReadError")), "{}", list.text);
        assert_eq!(s.get(&foos("v1")).await.code, 200);
        // A webhook that is mended is used at once.
        let mut mended = s.get(&format!("{CRDS}/foos.example.com")).await.json;
        mended["spec"]["conversion"]["webhook"]["clientConfig"]["url"] = webhook.url.clone().into();
        assert_eq!(s.put(&format!("{CRDS}/foos.example.com"), mended).await.code, 200);
        assert_eq!(s.get(&format!("{}/a", foos("v2"))).await.code, 200);
    }
    let s = server(&webhook, "/refuses").await;
    let made = s.post(&foos("v2"), v2("b", "x:1")).await;
    let why = "conversion webhook for example.com/v2, Kind=Foo failed: not today";
    assert_eq!((made.code, &made.json["message"]), (500, &json!(why)), "{}", made.text);
}

#[tokio::test]
async fn the_stored_version_changes_with_the_next_write() {
    let webhook = WebhookServer::start(convert).await;
    let s = server(&webhook, "/").await;
    stays(&s, "/").await;
    let mut changed = s.get(&format!("{CRDS}/foos.example.com")).await.json;
    changed["spec"] = definition(&webhook, "/", "v2")["spec"].clone();
    let changed = s.put(&format!("{CRDS}/foos.example.com"), changed).await;
    assert_eq!(changed.json["status"]["storedVersions"], json!(["v1", "v2"]), "{}", changed.text);
    webhook.taken();
    // What was written as v1 is read as v1 as it is.
    let read = s.get(&format!("{}/a", foos("v1"))).await.json;
    assert_eq!((&read["spec"]["host"], webhook.taken().len()), (&json!("h"), 0));
    // A write that changes nothing else writes it in the new version.
    let before = read["metadata"]["resourceVersion"].clone();
    let written = s.put(&format!("{}/a", foos("v1")), read).await.json;
    assert_ne!(written["metadata"]["resourceVersion"], before);
    webhook.taken();
    s.get(&format!("{}/a", foos("v2"))).await;
    assert_eq!(webhook.taken().len(), 0, "it is stored as v2 now");
}

#[tokio::test]
async fn a_dry_run_shows_what_would_be_stored() {
    let webhook = WebhookServer::start(convert).await;
    let s = server(&webhook, "/").await;
    stays(&s, "/").await;
    for version in ["v1", "v2"] {
        // The cache runs from here on, and what it has is not what a dry run makes.
        s.get(&foos(version)).await;
        let path = format!("{}/a?dryRun=All", foos(version));
        let spec = if version == "v1" { json!({"host": "new"}) } else { json!({"address": "new:1"}) };
        let tried = s.patch(&path, MERGE, json!({"spec": spec})).await;
        assert_eq!((tried.code, tried.text.contains("\"new")), (200, true), "{version}: {}", tried.text);
        let gone = s.delete(&path).await;
        assert_eq!(gone.code, 200, "{version}: {}", gone.text);
        let kept = s.get(&format!("{}/a", foos("v1"))).await.json;
        assert_eq!(kept["spec"]["host"], "h");
    }
}
