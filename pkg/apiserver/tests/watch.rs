//! Watches: what a client sees from which revision, with selectors, bookmarks and initial events.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use isopod_schema::{facts, proto};
use isopod_store::{KeyRange, RangeRequest};
use isopod_testkit::TestServer;
use serde_json::{Value, json};
use std::time::Duration;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// An open watch, read event by event.
struct Watch {
    body: Body,
    buffer: Vec<u8>,
}

impl Watch {
    async fn open(s: &TestServer, query: &str) -> Self {
        Self::open_as(s, query, "application/json", "application/json").await
    }

    /// Asks for a form, and expects its content type.
    async fn open_as(s: &TestServer, query: &str, accept: &str, content_type: &str) -> Self {
        let request = Request::get(format!("{MAPS}?watch=true&{query}")).header("accept", accept);
        let request = request.body(Body::empty()).unwrap();
        // Headers come before any event.
        let response = tokio::time::timeout(Duration::from_secs(5), s.open(request)).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], content_type);
        Watch { body: response.into_body(), buffer: Vec::new() }
    }

    /// Reads until so many bytes are there, and takes them.
    async fn bytes(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n {
            let frame =
                tokio::time::timeout(Duration::from_secs(5), self.body.frame()).await.expect("an event in time");
            self.buffer.extend_from_slice(&frame.expect("the watch goes on").unwrap().into_data().unwrap());
        }
        self.buffer.drain(..n).collect()
    }

    /// The next event of a protobuf watch: its length, then a `WatchEvent`. Answers the type and the wrapped object.
    async fn next_protobuf(&mut self) -> (String, Vec<u8>) {
        let length = self.bytes(4).await;
        let event = self.bytes(u32::from_be_bytes(length.try_into().unwrap()) as usize).await;
        let fields = fields(&event);
        assert_eq!(fields.iter().map(|f| f.0).collect::<Vec<_>>(), [1, 2]);
        let raw = self::fields(fields[1].1);
        assert_eq!(raw.iter().map(|f| f.0).collect::<Vec<_>>(), [1]);
        (String::from_utf8(fields[0].1.to_vec()).unwrap(), raw[0].1.to_vec())
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame =
                tokio::time::timeout(Duration::from_secs(5), self.body.frame()).await.expect("an event in time")?;
            self.buffer.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// Type, name and the value of `data.k`.
    async fn seen(&mut self) -> (String, String, Value) {
        let event = self.next().await.expect("an event");
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]), event["object"]["data"]["k"].clone())
    }
}

/// The fields of a protobuf message, all of which have a length.
fn fields(mut message: &[u8]) -> Vec<(u8, &[u8])> {
    let mut all = Vec::new();
    while let Some((tag, rest)) = message.split_first() {
        assert_eq!(tag & 7, 2, "a field with a length");
        let (mut length, mut read) = (0, 0);
        loop {
            let byte = rest[read];
            length |= usize::from(byte & 0x7f) << (7 * read);
            read += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        all.push((tag >> 3, &rest[read..read + length]));
        message = &rest[read + length..];
    }
    all
}

async fn put(s: &TestServer, name: &str, app: &str, k: &str) -> String {
    let object = json!({"metadata": {"name": name, "labels": {"app": app}}, "data": {"k": k}});
    let made = match s.post(MAPS, object.clone()).await {
        made if made.code == 201 => made,
        _ => s.put(&format!("{MAPS}/{name}"), object).await,
    };
    made.json["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

fn event(ty: &str, name: &str, k: &str) -> (String, String, Value) {
    (ty.into(), name.into(), json!(k))
}

#[tokio::test]
async fn a_watch_starts_with_what_is_there_and_goes_on() {
    let s = TestServer::start().await;
    put(&s, "a", "x", "1").await;
    let mut w = Watch::open(&s, "").await;
    assert_eq!(w.seen().await, event("ADDED", "a", "1"));
    put(&s, "a", "x", "2").await;
    assert_eq!(w.seen().await, event("MODIFIED", "a", "2"));
    s.delete(&format!("{MAPS}/a")).await;
    assert_eq!(w.seen().await, event("DELETED", "a", "2"));
}

#[tokio::test]
async fn an_object_that_leaves_the_selector_is_deleted_with_its_old_body() {
    let s = TestServer::start().await;
    let from = put(&s, "a", "x", "1").await;
    let mut w = Watch::open(&s, &format!("labelSelector=app%3Dx&resourceVersion={from}")).await;
    let moved = put(&s, "a", "y", "2").await;
    let gone = w.next().await.unwrap();
    assert_eq!((&gone["type"], &gone["object"]["data"]["k"]), (&json!("DELETED"), &json!("1")));
    assert_eq!(gone["object"]["metadata"]["resourceVersion"], json!(moved));
    assert_eq!(gone["object"]["metadata"]["labels"]["app"], "x");
    put(&s, "b", "y", "0").await;
    put(&s, "a", "x", "3").await;
    assert_eq!(w.seen().await, event("ADDED", "a", "3"));
}

#[tokio::test]
async fn history_from_before_the_cache_is_replayed() {
    let s = TestServer::start().await;
    let from = put(&s, "a", "x", "1").await;
    put(&s, "a", "x", "2").await;
    s.delete(&format!("{MAPS}/a")).await;
    put(&s, "b", "x", "1").await;
    // Nobody has listed config maps yet: the cache begins here.
    let mut w = Watch::open(&s, &format!("resourceVersion={from}")).await;
    assert_eq!(w.seen().await, event("MODIFIED", "a", "2"));
    assert_eq!(w.seen().await, event("DELETED", "a", "2"));
    assert_eq!(w.seen().await, event("ADDED", "b", "1"));
    put(&s, "b", "x", "2").await;
    assert_eq!(w.seen().await, event("MODIFIED", "b", "2"));
}

#[tokio::test]
async fn a_watcher_that_missed_very_much_reads_the_list_again() {
    let s = TestServer::start().await;
    let from = put(&s, "a", "x", "1").await;
    for letter in ["b", "c", "d", "e", "f", "g", "h", "i", "j", "k"] {
        put(&s, "a", "x", &letter.repeat(1_000_000)).await;
    }
    put(&s, "b", "y", "1").await;
    // Nobody has listed config maps yet: this is in the store's history, old and new objects.
    let mut w = Watch::open(&s, &format!("resourceVersion={from}")).await;
    let error = w.next().await.unwrap();
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)), "{error}");
    assert!(error["object"]["message"].as_str().unwrap().starts_with(&format!("too old resource version: {from} (")));
    let mut of_others = Watch::open(&s, &format!("resourceVersion={from}&labelSelector=app%3Dy")).await;
    assert_eq!(of_others.seen().await, event("ADDED", "b", "1"));
}

#[tokio::test]
async fn compacted_history_is_410() {
    let s = TestServer::start().await;
    let from = put(&s, "a", "x", "1").await;
    put(&s, "a", "x", "2").await;
    put(&s, "a", "x", "3").await;
    let newest = s.store.revisions().await.unwrap().0;
    s.store.compact(newest).await.unwrap();
    let mut w = Watch::open(&s, &format!("resourceVersion={from}")).await;
    let error = w.next().await.unwrap();
    assert_eq!(
        (&error["type"], &error["object"]["code"], &error["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert!(w.next().await.is_none());
    let list = s.get(&format!("{MAPS}?resourceVersionMatch=Exact&resourceVersion={from}")).await;
    assert_eq!((list.code, &list.json["reason"]), (410, &json!("Expired")), "{}", list.text);
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let s = TestServer::start().await;
    put(&s, "a", "x", "1").await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut w = Watch::open(&s, query).await;
    assert_eq!(w.seen().await, event("ADDED", "a", "1"));
    // The service account's root certificate may be there as well: go on to the bookmark.
    let bookmark = w.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!((&bookmark["object"]["kind"], &bookmark["object"]["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    let refused = s.get(&format!("{MAPS}?watch=true&sendInitialEvents=true")).await;
    assert_eq!(refused.code, 422);
}

#[tokio::test]
async fn protobuf_events_are_framed() {
    let s = TestServer::start().await;
    let long = "x".repeat(300);
    put(&s, "a", "x", &long).await;
    let accept = "application/vnd.kubernetes.protobuf";
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut w = Watch::open_as(&s, query, accept, "application/vnd.kubernetes.protobuf;stream=watch").await;
    let schema = facts::builtin().object("io.k8s.api.core.v1.ConfigMap").unwrap();
    let object = |bytes: &[u8]| {
        let unknown = proto::envelope::unwrap(bytes).unwrap();
        assert_eq!((unknown.api_version.as_str(), unknown.kind.as_str()), ("v1", "ConfigMap"));
        proto::decode(unknown.raw, &schema).unwrap()
    };
    let (ty, bytes) = w.next_protobuf().await;
    let first = object(&bytes);
    assert_eq!((ty.as_str(), &first["metadata"]["name"], &first["data"]["k"]), ("ADDED", &json!("a"), &json!(long)));
    let (ty, bytes) = w.next_protobuf().await;
    let bookmark = object(&bytes);
    assert_eq!(ty, "BOOKMARK");
    assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let changed = put(&s, "a", "x", "2").await;
    let (ty, bytes) = w.next_protobuf().await;
    let seen = object(&bytes);
    assert_eq!(
        (ty.as_str(), &seen["data"]["k"], &seen["metadata"]["resourceVersion"]),
        ("MODIFIED", &json!("2"), &json!(changed))
    );
    s.delete(&format!("{MAPS}/a")).await;
    let (ty, bytes) = w.next_protobuf().await;
    assert_eq!((ty.as_str(), &object(&bytes)["metadata"]["name"]), ("DELETED", &json!("a")));

    // An error is a `Status` in the same frame.
    put(&s, "b", "x", "1").await;
    s.store.compact(s.store.revisions().await.unwrap().0).await.unwrap();
    let mut w =
        Watch::open_as(&s, "resourceVersion=1", accept, "application/vnd.kubernetes.protobuf;stream=watch").await;
    let (ty, bytes) = w.next_protobuf().await;
    let unknown = proto::envelope::unwrap(&bytes).unwrap();
    let status =
        proto::decode(unknown.raw, &facts::builtin().object("io.k8s.apimachinery.pkg.apis.meta.v1.Status").unwrap());
    assert_eq!((ty.as_str(), unknown.kind.as_str(), &status.unwrap()["code"]), ("ERROR", "Status", &json!(410)));
}

/// What `kubectl get -w` asks for.
#[tokio::test]
async fn tables_name_their_columns_once() {
    let s = TestServer::start().await;
    put(&s, "a", "x", "1").await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let mut w = Watch::open_as(&s, "resourceVersion=0", accept, "application/json").await;
    let added = w.next().await.unwrap();
    let table = &added["object"];
    assert_eq!(
        (&added["type"], &table["kind"], &table["apiVersion"]),
        (&json!("ADDED"), &json!("Table"), &json!("meta.k8s.io/v1"))
    );
    let columns: Vec<&Value> = table["columnDefinitions"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(columns, ["Name", "Data", "Age"]);
    let changed = put(&s, "a", "x", "2").await;
    s.delete(&format!("{MAPS}/a")).await;
    for ty in ["MODIFIED", "DELETED"] {
        let event = w.next().await.unwrap();
        let table = &event["object"];
        assert_eq!((&event["type"], &table["columnDefinitions"]), (&json!(ty), &Value::Null), "{event}");
        let row = &table["rows"][0];
        assert_eq!(
            (&row["cells"][0], &row["cells"][1], table["rows"].as_array().unwrap().len()),
            (&json!("a"), &json!(1), 1)
        );
        assert_eq!(
            (&row["object"]["kind"], &row["object"]["metadata"]["name"]),
            (&json!("PartialObjectMetadata"), &json!("a"))
        );
        let version = &row["object"]["metadata"]["resourceVersion"];
        assert_eq!(version == &json!(changed), ty == "MODIFIED", "{event}");
    }
    // The whole objects, where the client asks for them.
    put(&s, "b", "x", "3").await;
    let mut w = Watch::open_as(&s, "resourceVersion=0&includeObject=Object", accept, "application/json").await;
    let added = w.next().await.unwrap();
    let object = &added["object"]["rows"][0]["object"];
    assert_eq!((&object["kind"], &object["data"]["k"]), (&json!("ConfigMap"), &json!("3")), "{added}");
}

#[tokio::test]
async fn a_watch_ends_in_time_and_with_the_server() {
    let s = TestServer::start().await;
    let mut short = Watch::open(&s, "timeoutSeconds=1").await;
    assert!(short.next().await.is_none());
    let mut long = Watch::open(&s, "").await;
    s.server.stop();
    assert!(long.next().await.is_none());
}

#[tokio::test]
async fn nothing_is_stored_with_its_revision() {
    let s = TestServer::start().await;
    put(&s, "a", "x", "1").await;
    let key = "/registry/configmaps/default/a";
    let read = s.store.range(RangeRequest::new(KeyRange::key(key))).await.unwrap();
    let stored: Value = serde_json::from_slice(&read.kvs[0].value).unwrap();
    assert_eq!(stored["metadata"]["resourceVersion"], Value::Null);
    let got = s.get(&format!("{MAPS}/a")).await;
    assert_eq!(got.json["metadata"]["resourceVersion"], json!(read.kvs[0].mod_revision.to_string()));
}

/// One unfragmented message of a WebSocket's server (RFC 6455, section 5.2).
async fn message(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> (u8, Vec<u8>) {
    use tokio::io::AsyncReadExt;
    let kind = io.read_u8().await.unwrap();
    let length = match io.read_u8().await.unwrap() {
        126 => usize::from(io.read_u16().await.unwrap()),
        short => usize::from(short),
    };
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await.unwrap();
    (kind, payload)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_carries_an_event_a_message() {
    let s = TestServer::start().await;
    for name in ["a", "b"] {
        s.post(MAPS, json!({"metadata": {"name": name}})).await;
    }
    let at = s.listen().await;
    let client = isopod_client::tls(&at.kubeconfig, "test").await.unwrap();
    let request = Request::get(format!("{MAPS}?watch=true"))
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let response = client.send(request.body(kube::client::Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 101);
    let mut io = hyper_util::rt::TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    s.post(MAPS, json!({"metadata": {"name": "c"}})).await;
    let mut names = Vec::new();
    while names.len() < 3 {
        let (kind, payload) = tokio::time::timeout(Duration::from_secs(5), message(&mut io)).await.unwrap();
        let event: Value = serde_json::from_slice(&payload).unwrap();
        // A final frame of text.
        assert_eq!((kind, &event["type"]), (0x81, &json!("ADDED")));
        names.push(event["object"]["metadata"]["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(names, ["a", "b", "c"]);
}
