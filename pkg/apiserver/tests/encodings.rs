//! Forms of answers: tables, metadata only, YAML, protobuf, gzip; discovery and health.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use isopod_schema::{facts, proto};
use isopod_testkit::{Answer, TestServer};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

async fn get(s: &TestServer, uri: &str, accept: &str) -> Answer {
    s.send(Request::get(uri).header("accept", accept).body(Body::empty()).unwrap()).await
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

#[tokio::test]
async fn tables_and_metadata() {
    let s = TestServer::start().await;
    s.post(MAPS, map("m")).await;
    let table = get(&s, MAPS, "application/json;as=Table;v=v1;g=meta.k8s.io,application/json").await;
    assert_eq!(
        (&table.json["kind"], &table.json["apiVersion"]),
        (&json!("Table"), &json!("meta.k8s.io/v1")),
        "{}",
        table.text
    );
    let columns: Vec<&str> =
        table.json["columnDefinitions"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(columns, ["Name", "Data", "Age"]);
    let row = &table.json["rows"][0];
    assert_eq!((&row["cells"][0], &row["cells"][1]), (&json!("m"), &json!(1)));
    assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
    let list = get(&s, MAPS, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await;
    assert_eq!(list.json["kind"], "PartialObjectMetadataList");
    assert_eq!(
        (&list.json["items"][0]["metadata"]["name"], &list.json["items"][0]["data"]),
        (&json!("m"), &Value::Null)
    );
    let yaml = get(&s, &format!("{MAPS}/m"), "application/yaml").await;
    assert!(yaml.text.contains("kind: ConfigMap\n"), "{}", yaml.text);
    let none = get(&s, MAPS, "text/html").await;
    assert_eq!((none.code, &none.json["reason"]), (406, &json!("NotAcceptable")));
}

/// Sends a body as YAML.
async fn post_yaml(s: &TestServer, uri: &str, text: &str) -> Answer {
    s.send(Request::post(uri).header("content-type", "application/yaml").body(Body::from(text.to_owned())).unwrap())
        .await
}

#[tokio::test]
async fn yaml_in() {
    let s = TestServer::start().await;
    let good = "# a comment\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: z\n  labels: &l {a: b}\n  annotations: *l\ndata:\n  text: |\n    two\n    lines\n  on: 'on'\n";
    let made = post_yaml(&s, MAPS, good).await;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(made.json["data"], json!({"text": "two\nlines\n", "true": "on"}));
    assert_eq!(made.json["metadata"]["annotations"], json!({"a": "b"}));
    assert_eq!(made.headers["content-type"], "application/json");

    let strict = format!("{MAPS}?fieldValidation=Strict");
    let cannot = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: ";
    let unrecognized = "the object provided is unrecognized (must be of type ConfigMap): ";
    let yaml = format!("{unrecognized}yaml: ");
    let no_type = format!("{unrecognized}couldn't get version/kind; json parse error: ");
    for (uri, text, begin, end) in [
        (MAPS, "a: [", yaml.as_str(), "(613a205b)"),
        (
            MAPS,
            "\tmetadata:\n\t\tname: x, and so on and on",
            &yaml,
            "(096d657461646174613a0a09096e616d653a20782c20616e6420736f206f ...)",
        ),
        (MAPS, "{metadata: {name: x}", &yaml, "({metadata: {name: x})"),
        (MAPS, "- a\n- b\n", &no_type, "(2d20610a2d20620a)"),
        (MAPS, "just words", &no_type, "(6a75737420776f726473)"),
        (
            MAPS,
            "metadata: {name: x}\ndata: {a: [1]}\n",
            cannot,
            "cannot unmarshal array into Go struct field ConfigMap.data of type string",
        ),
        (&strict, "metadata: {name: x}\ndat: {}\n", cannot, "strict decoding error: unknown field \"dat\""),
        (
            &strict,
            "metadata: {name: x}\ndata:\n  a: b\n  a: c\ndat: {}\n",
            cannot,
            "strict decoding error: yaml: unmarshal errors:\n  line 4: key \"a\" already set in map, unknown field \"dat\"",
        ),
        (
            MAPS,
            "metadata: {name: x}\ndata: {a: yes}\n",
            cannot,
            "cannot unmarshal bool into Go struct field ConfigMap.data of type string",
        ),
    ] {
        let bad = post_yaml(&s, uri, text).await;
        let status = (bad.code, &bad.json["kind"], &bad.json["status"], &bad.json["reason"], &bad.json["code"]);
        assert_eq!(
            status,
            (400, &json!("Status"), &json!("Failure"), &json!("BadRequest"), &json!(400)),
            "{text:?}: {}",
            bad.text
        );
        let message = bad.json["message"].as_str().unwrap();
        assert!(message.starts_with(begin) && message.ends_with(end), "{text:?}: {message}");
    }
    let warned = post_yaml(&s, MAPS, "metadata: {name: w}\ndata:\n  a: b\n  a: c\ndat: {}\n").await;
    let warnings: Vec<&str> = warned.headers.get_all("warning").iter().map(|w| w.to_str().unwrap()).collect();
    assert_eq!(warned.code, 201, "{}", warned.text);
    let told = ["299 - \"line 4: key \\\"a\\\" already set in map\"", "299 - \"unknown field \\\"dat\\\"\""];
    assert_eq!(warnings, told);
    let request = Request::post(MAPS).header("content-type", "application/json").body(Body::from("{")).unwrap();
    let message = s.send(request).await.json["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with(&no_type) && message.ends_with("({)"), "{message}");
}

#[tokio::test]
async fn head_gets_no_body() {
    let s = TestServer::start().await;
    for path in [MAPS, "/healthz", "/version", "/nothing"] {
        let answer = s.open(Request::head(path).body(Body::empty()).unwrap()).await;
        assert!(answer.headers().contains_key("content-type"), "{path}");
        assert!(answer.into_body().collect().await.unwrap().to_bytes().is_empty(), "{path}");
    }
}

#[tokio::test]
async fn protobuf_in_and_out() {
    let s = TestServer::start().await;
    let schema = facts::builtin().object("io.k8s.api.core.v1.ConfigMap").unwrap();
    let body = proto::envelope::wrap("v1", "ConfigMap", &proto::encode(&map("p"), &schema));
    let request =
        Request::post(MAPS).header("content-type", PROTOBUF).header("accept", PROTOBUF).body(Body::from(body));
    let response = s.open(request.unwrap()).await;
    assert_eq!((response.status().as_u16(), response.headers()["content-type"].to_str().unwrap()), (201, PROTOBUF));
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let unknown = proto::envelope::unwrap(&bytes).unwrap();
    assert_eq!((unknown.kind.as_str(), unknown.api_version.as_str()), ("ConfigMap", "v1"));
    let made = proto::decode(unknown.raw, &schema).unwrap();
    assert_eq!((&made["metadata"]["name"], &made["data"]), (&json!("p"), &json!({"a": "b"})));

    let list = s.open(Request::get(MAPS).header("accept", PROTOBUF).body(Body::empty()).unwrap()).await;
    let bytes = list.into_body().collect().await.unwrap().to_bytes();
    let unknown = proto::envelope::unwrap(&bytes).unwrap();
    let schema = facts::builtin().object("io.k8s.api.core.v1.ConfigMapList").unwrap();
    let list = proto::decode(unknown.raw, &schema).unwrap();
    assert_eq!(list["items"][0]["metadata"]["name"], "p");
    assert!(list["metadata"]["resourceVersion"].as_str().is_some_and(|v| !v.is_empty()));
}

/// The items of a list in protobuf.
fn items_of(bytes: &[u8], definition: &str) -> Value {
    let unknown = proto::envelope::unwrap(bytes).unwrap();
    let schema = facts::builtin().object(definition).unwrap();
    proto::decode(unknown.raw, &schema).unwrap()["items"].clone()
}

/// What is longer than what is kept of a list is sent while it is made: its length was told before.
#[tokio::test]
async fn long_lists_in_protobuf_are_whole() {
    let s = TestServer::start().await;
    let mut wanted = Vec::new();
    for i in 0..9 {
        let mut large = map(&format!("m{i}"));
        large["data"]["x"] = "x".repeat(300_000 - i * 10_007).into();
        wanted.push(s.post(MAPS, large).await.json);
    }
    let whole = async |uri: &str, accept: &str, encoding: &str| {
        let request = Request::get(uri).header("accept", accept).header("accept-encoding", encoding);
        let response = s.open(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap().to_bytes()
    };
    let first = whole(MAPS, PROTOBUF, "identity").await;
    let mut items = items_of(&first, "io.k8s.api.core.v1.ConfigMapList");
    for (item, wanted) in items.as_array_mut().unwrap().iter_mut().zip(&wanted) {
        item["apiVersion"] = "v1".into();
        item["kind"] = "ConfigMap".into();
        assert_eq!(item, wanted);
    }
    assert_eq!(items.as_array().unwrap().len(), 9);
    assert_eq!(whole(MAPS, PROTOBUF, "identity").await, first, "with the lengths known");
    let mut unzipped = Vec::new();
    let zipped = whole(MAPS, PROTOBUF, "gzip").await;
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&zipped[..]), &mut unzipped).unwrap();
    assert_eq!(unzipped, first);

    let metadata = format!("{PROTOBUF};as=PartialObjectMetadataList;v=v1;g=meta.k8s.io");
    let partial = items_of(
        &whole(MAPS, &metadata, "identity").await,
        "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList",
    );
    let metadata: Vec<_> = partial.as_array().unwrap().iter().map(|item| item["metadata"].clone()).collect();
    assert_eq!(metadata, wanted.iter().map(|w| w["metadata"].clone()).collect::<Vec<_>>());
}

#[tokio::test]
async fn large_lists_are_zipped() {
    let s = TestServer::start().await;
    for i in 0..40 {
        let mut large = map(&format!("m{i}"));
        large["data"]["x"] = "x".repeat(8 << 10).into();
        s.post(MAPS, large).await;
    }
    let request = Request::get(MAPS).header("accept-encoding", "gzip").body(Body::empty()).unwrap();
    let response = s.open(request).await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let zipped = response.into_body().collect().await.unwrap().to_bytes();
    let list: Value = serde_json::from_reader(flate2::read::GzDecoder::new(&zipped[..])).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 40);
}

#[tokio::test]
async fn discovery_and_health() {
    let s = TestServer::start().await;
    let v1 = s.get("/api/v1").await;
    let pods = v1.json["resources"].as_array().unwrap().iter().find(|r| r["name"] == "pods").unwrap().clone();
    assert_eq!((&pods["kind"], &pods["shortNames"]), (&json!("Pod"), &json!(["po"])));
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let all = get(&s, "/apis", accept).await;
    assert_eq!(all.json["kind"], "APIGroupDiscoveryList");
    assert!(all.json["items"].as_array().unwrap().iter().any(|g| g["metadata"]["name"] == "apps"));
    let etag = all.headers["etag"].to_str().unwrap().to_owned();
    let again = Request::get("/apis").header("accept", accept).header("if-none-match", etag).body(Body::empty());
    assert_eq!(s.send(again.unwrap()).await.code, 304);
    for path in ["/healthz", "/livez", "/readyz", "/readyz/etcd"] {
        let answer = s.get(path).await;
        assert_eq!((answer.code, answer.text.as_str()), (200, "ok"), "{path}");
    }
    assert_eq!(s.get("/readyz/nothing").await.code, 404);
    let metrics = s.get("/metrics").await;
    assert!(
        metrics.text.contains("apiserver_request_total{verb=\"LIST\"")
            || metrics.text.contains("apiserver_request_total{"),
        "{}",
        metrics.text
    );
}
