//! The informer against a scripted API server: list, watch, resume, bookmarks, 410, indexes, sharing.

#![allow(clippy::unwrap_used)]

use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use isopod_api::UserInfo;
use isopod_client::views::{MetaOnly, Pod};
use isopod_client::{Change, Informers, ListScope, Resource, in_process};
use kube::client::Body;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

type Frames = mpsc::UnboundedReceiver<String>;

enum Answer {
    Json(u16, String),
    Watch(Frames),
}

/// Answers requests in the order of its script and notes their URIs and users.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
    users: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn json(&self, code: u16, body: &str) -> &Self {
        self.answers.lock().unwrap().push_back(Answer::Json(code, body.to_owned()));
        self
    }
    fn watch(&self) -> mpsc::UnboundedSender<String> {
        let (tx, rx) = mpsc::unbounded_channel();
        self.answers.lock().unwrap().push_back(Answer::Watch(rx));
        tx
    }
    fn client(&self) -> kube::Client {
        let script = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let script = script.clone();
            async move { Ok::<_, Infallible>(script.answer(request).await) }
        });
        in_process(service, UserInfo::new("system:test", &[]))
    }
    async fn answer(&self, request: Request<Body>) -> Response<BoxBody<bytes::Bytes, Infallible>> {
        self.asked.lock().unwrap().push(request.uri().to_string());
        self.users.lock().unwrap().push(request.extensions().get::<UserInfo>().unwrap().name.clone());
        let answer = self.answers.lock().unwrap().pop_front();
        match answer {
            // Out of script: never answer.
            None => std::future::pending().await,
            Some(Answer::Json(code, body)) => {
                let body = http_body_util::Full::from(body).boxed();
                Response::builder().status(code).body(body).unwrap()
            }
            Some(Answer::Watch(rx)) => {
                let frames = futures::stream::unfold(rx, |mut rx| async {
                    rx.recv().await.map(|s| (Ok(Frame::data(bytes::Bytes::from(s))), rx))
                });
                Response::new(BodyExt::boxed(StreamBody::new(frames)))
            }
        }
    }
}

fn pod(name: &str, rv: u32, node: &str) -> String {
    format!(
        r#"{{"metadata":{{"namespace":"ns","name":"{name}","uid":"u-{name}","resourceVersion":"{rv}"}},"spec":{{"nodeName":"{node}"}}}}"#
    )
}

fn list(rv: u32, items: &[String]) -> String {
    format!(r#"{{"kind":"PodList","metadata":{{"resourceVersion":"{rv}"}},"items":[{}]}}"#, items.join(","))
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn show(change: &Change<Pod>) -> String {
    match change {
        Change::Applied { old, new } => {
            let was = old.as_ref().map(|o| format!("{}→", o.metadata.resource_version)).unwrap_or_default();
            format!("{} {was}{}", new.metadata.name, new.metadata.resource_version)
        }
        Change::Deleted(old) => format!("-{}", old.metadata.name),
        Change::Resync => "resync".into(),
    }
}

async fn take(rx: &mut isopod_client::informer::Receiver<Pod>, n: usize) -> Vec<String> {
    let mut seen = Vec::new();
    for _ in 0..n {
        seen.push(show(&rx.recv().await.unwrap()));
    }
    seen
}

#[tokio::test]
async fn lists_then_follows_the_watch_and_tells_subscribers_in_order() {
    let script = Script::default();
    script.json(200, &list(10, &[pod("a", 3, "n1"), pod("b", 4, "n2")]));
    let watch = script.watch();
    let informers = Informers::new(script.client());
    let pods = informers.get::<Pod>(Pod::resource(), ListScope::all());
    pods.add_index("node", |p| vec![p.spec.node_name.clone()]);
    let mut changes = pods.subscribe();
    assert_eq!(take(&mut changes, 3).await, ["a 3", "b 4", "resync"]);

    // An event may come in pieces.
    let line = event("MODIFIED", &pod("a", 11, "n2"));
    watch.send(line[..20].to_owned()).unwrap();
    watch.send(line[20..].to_owned() + &event("DELETED", &pod("b", 12, "n2"))).unwrap();
    assert_eq!(take(&mut changes, 2).await, ["a 3→11", "-b"]);
    let on = |node: &str| pods.by_index("node", node).iter().map(|p| p.metadata.name.clone()).collect::<Vec<_>>();
    assert_eq!((on("n1"), on("n2")), (vec![], vec!["a".to_owned()]));
    assert!(pods.get("ns", "b").is_none());
    assert_eq!(pods.list_namespace("ns").len(), 1);

    let asked = script.asked.lock().unwrap().clone();
    assert_eq!(asked[0], "/api/v1/pods?limit=500");
    assert!(asked[1].starts_with("/api/v1/pods?watch=true&allowWatchBookmarks=true&resourceVersion=10&"), "{asked:?}");
    assert!(script.users.lock().unwrap().iter().all(|u| u == "system:test"));
}

#[tokio::test]
async fn a_closed_watch_resumes_from_the_last_bookmark() {
    let script = Script::default();
    script.json(200, &list(10, &[]));
    let first = script.watch();
    let second = script.watch();
    let informers = Informers::new(script.client());
    let pods = informers.get::<Pod>(Pod::resource(), ListScope::all());
    pods.synced().await;
    let mut changes = pods.subscribe();
    assert_eq!(take(&mut changes, 1).await, ["resync"]);
    first.send(event("BOOKMARK", r#"{"kind":"Pod","metadata":{"resourceVersion":"42"}}"#)).unwrap();
    drop(first);
    second.send(event("ADDED", &pod("a", 43, ""))).unwrap();
    assert_eq!(take(&mut changes, 1).await, ["a 43"]);
    assert!(script.asked.lock().unwrap()[2].contains("resourceVersion=42&"));
}

#[tokio::test]
async fn after_410_it_lists_again_and_tells_the_difference() {
    let script = Script::default();
    script.json(200, &list(10, &[pod("a", 3, ""), pod("b", 4, ""), pod("c", 5, "")]));
    let first = script.watch();
    script.json(200, &list(99, &[pod("a", 3, ""), pod("c", 50, ""), pod("d", 60, "")]));
    let informers = Informers::new(script.client());
    let pods = informers.get::<Pod>(Pod::resource(), ListScope::all());
    let mut changes = pods.subscribe();
    assert_eq!(take(&mut changes, 4).await, ["a 3", "b 4", "c 5", "resync"]);
    let gone = r#"{"kind":"Status","status":"Failure","code":410,"reason":"Expired","message":"too old"}"#;
    first.send(event("ERROR", gone)).unwrap();
    assert_eq!(take(&mut changes, 4).await, ["c 5→50", "d 60", "-b", "resync"]);
}

#[tokio::test]
async fn pages_are_read_to_the_end_and_an_expired_token_starts_again() {
    let script = Script::default();
    script.json(200, r#"{"metadata":{"resourceVersion":"9","continue":"t1"},"items":[{"metadata":{"name":"a"}}]}"#);
    script.json(410, r#"{"kind":"Status","code":410,"reason":"Expired","message":"x"}"#);
    script.json(
        200,
        r#"{"metadata":{"resourceVersion":"9"},"items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}]}"#,
    );
    let informers = Informers::new(script.client());
    let nodes = informers.get::<MetaOnly>(Resource::cluster("", "v1", "nodes"), ListScope::all());
    nodes.synced().await;
    assert_eq!(nodes.len(), 2);
    assert_eq!(
        script.asked.lock().unwrap()[..3],
        ["/api/v1/nodes?limit=500", "/api/v1/nodes?limit=500&continue=t1", "/api/v1/nodes"]
    );
}

#[tokio::test]
async fn one_informer_for_one_type_resource_and_scope() {
    let script = Script::default();
    script.json(200, &list(1, &[]));
    let informers = Informers::new(script.client());
    let a = informers.get::<Pod>(Pod::resource(), ListScope::all());
    let b = informers.get::<Pod>(Pod::resource(), ListScope::all());
    a.synced().await;
    assert!(b.has_synced());
    assert_eq!(script.asked.lock().unwrap().iter().filter(|u| !u.contains("watch")).count(), 1);
}
