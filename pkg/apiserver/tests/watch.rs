//! Watches: what a client sees from which revision, with selectors, bookmarks and initial events.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
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
        let request = Request::get(format!("{MAPS}?watch=true&{query}")).body(Body::empty()).unwrap();
        // Headers come before any event.
        let response = tokio::time::timeout(Duration::from_secs(5), s.open(request)).await.unwrap();
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body(), buffer: Vec::new() }
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
