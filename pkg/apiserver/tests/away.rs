//! An API server whose datastore is away for a while: what it answers meanwhile, and that nothing is missed afterwards.

#![allow(clippy::unwrap_used)]

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use isopod_store::memory::MemoryStore;
use isopod_store::*;
use isopod_testkit::TestServer;
use parking_lot::RwLock;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A store on the other side of a network that can be cut: watches end, and no request is answered.
struct Far {
    /// Replaced when the datastore comes back with another history.
    inner: RwLock<Arc<MemoryStore>>,
    away: watch::Sender<bool>,
}

fn unreachable() -> StoreError {
    StoreError::Unavailable { context: "cut off".into(), source: Arc::new(std::io::Error::other("no route")) }
}

impl Far {
    fn new() -> Arc<Self> {
        let inner = RwLock::new(Arc::new(MemoryStore::new(Options::default())));
        Arc::new(Far { inner, away: watch::Sender::new(false) })
    }

    /// What others reach all the time.
    fn behind(&self) -> Arc<MemoryStore> {
        self.inner.read().clone()
    }

    fn reach(&self) -> Result<Arc<MemoryStore>> {
        if *self.away.borrow() { Err(unreachable()) } else { Ok(self.behind()) }
    }
}

#[async_trait]
impl Store for Far {
    async fn watch(&self, req: WatchRequest) -> Result<Watch> {
        let Watch { mut receiver, request_progress } = self.reach()?.watch(req).await?;
        let (sender, delivered) = mpsc::channel(64);
        let mut away = self.away.subscribe();
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    biased;
                    _ = away.wait_for(|away| *away) => Some(Err(unreachable())),
                    message = receiver.recv() => message,
                };
                let Some(message) = message else { return };
                let ended = message.is_err();
                if sender.send(message).await.is_err() || ended {
                    return;
                }
            }
        });
        Ok(Watch { receiver: delivered, request_progress })
    }
    async fn range(&self, req: RangeRequest) -> Result<RangeResponse> {
        self.reach()?.range(req).await
    }
    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        self.reach()?.txn(txn).await
    }
    async fn compact(&self, rev: Revision) -> Result<()> {
        self.reach()?.compact(rev).await
    }
    async fn compact_physically(&self, rev: Revision) -> Result<()> {
        self.reach()?.compact_physically(rev).await
    }
    async fn hash(&self, rev: Revision) -> Result<HistoryHash> {
        self.reach()?.hash(rev).await
    }
    async fn export(&self) -> Result<Export> {
        self.reach()?.export().await
    }
    async fn revisions(&self) -> Result<(Revision, Revision)> {
        self.reach()?.revisions().await
    }
    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus> {
        self.reach()?.lease_grant(id, ttl_seconds).await
    }
    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.reach()?.lease_revoke(id).await
    }
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        self.reach()?.lease_keep_alive(id).await
    }
    async fn lease_status(&self, id: LeaseId) -> Result<LeaseStatus> {
        self.reach()?.lease_status(id).await
    }
    async fn leases(&self) -> Result<Vec<LeaseId>> {
        self.reach()?.leases().await
    }
    async fn usage(&self) -> Result<Usage> {
        self.reach()?.usage().await
    }
    async fn defragment(&self) -> Result<()> {
        self.reach()?.defragment().await
    }
    async fn alarms(&self) -> Result<Vec<Alarm>> {
        self.reach()?.alarms().await
    }
    async fn set_alarm(&self, alarm: Alarm, raised: bool) -> Result<bool> {
        self.reach()?.set_alarm(alarm, raised).await
    }
    async fn setting(&self, name: &str) -> Result<Option<Bytes>> {
        self.reach()?.setting(name).await
    }
    async fn set_setting(&self, name: &str, value: Option<Bytes>) -> Result<()> {
        self.reach()?.set_setting(name, value).await
    }
    async fn swap_setting(&self, name: &str, expected: Option<Bytes>, value: Option<Bytes>) -> Result<bool> {
        self.reach()?.swap_setting(name, expected, value).await
    }
    async fn close(&self) -> Result<()> {
        self.reach()?.close().await
    }
}

fn map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": value}})
}

/// The lines of a watch.
struct Events(Body, Vec<u8>);

impl Events {
    async fn open(s: &TestServer, query: &str) -> Self {
        let request = Request::get(format!("{MAPS}?watch=1{query}")).body(Body::empty()).unwrap();
        let response = s.open(request).await;
        assert_eq!(response.status(), 200);
        Events(response.into_body(), Vec::new())
    }

    /// Type and name of the next event; `None`: the watch has ended.
    async fn next(&mut self) -> Option<(String, String)> {
        loop {
            if let Some(end) = self.1.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.1.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).unwrap();
                let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                return Some((text(&event["type"]), text(&event["object"]["metadata"]["name"])));
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.0.frame()).await.expect("nothing comes")?;
            self.1.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
        }
    }
}

async fn until_served(s: &TestServer) {
    let started = Instant::now();
    while s.get("/readyz").await.code != 200 {
        assert!(started.elapsed() < Duration::from_secs(20), "it does not recover");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_server_without_its_datastore_says_so_and_recovers() {
    let store = Far::new();
    let s = TestServer::start_on(store.clone(), |_| {}).await;
    s.post(MAPS, map("before", "1")).await;
    let mut events = Events::open(&s, "").await;
    assert_eq!(events.next().await.unwrap(), ("ADDED".into(), "before".into()));

    store.away.send_replace(true);
    for answer in [s.get(MAPS).await, s.get(&format!("{MAPS}/before")).await, s.post(MAPS, map("lost", "1")).await] {
        assert_eq!((answer.code, &answer.json["reason"]), (503, &json!("ServiceUnavailable")), "{}", answer.text);
        assert_eq!(answer.headers["retry-after"], "1");
        assert_eq!(answer.json["details"]["retryAfterSeconds"], 1);
    }
    let refused = s.get(&format!("{MAPS}?watch=1")).await;
    assert_eq!(refused.code, 503, "{}", refused.text);
    let at_hand = s.get(&format!("{MAPS}?resourceVersion=0")).await;
    assert_eq!((at_hand.code, &at_hand.json["items"][0]["metadata"]["name"]), (200, &json!("before")));
    assert_eq!(s.get(&format!("{MAPS}/before?resourceVersion=0")).await.code, 200);
    let ready = s.get("/readyz").await;
    assert!(ready.code == 500 && ready.text.contains("[-]etcd failed"), "{}", ready.text);
    assert!(ready.text.contains("[-]etcd-readiness failed") && ready.text.contains("[+]ping ok"), "{}", ready.text);
    let live = s.get("/livez").await;
    assert!(live.code == 500 && live.text.contains("[-]etcd failed"), "as upstream's: {}", live.text);

    // Another server writes meanwhile.
    let other = TestServer::start_on(store.behind(), |_| {}).await;
    assert_eq!(other.post(MAPS, map("meanwhile", "1")).await.code, 201);
    store.away.send_replace(false);
    until_served(&s).await;
    assert_eq!(events.next().await.unwrap(), ("ADDED".into(), "meanwhile".into()), "the watch was not ended");
    assert_eq!(s.post(MAPS, map("after", "1")).await.code, 201);
    assert_eq!(events.next().await.unwrap(), ("ADDED".into(), "after".into()));
}

#[tokio::test]
async fn caches_begin_anew_when_what_they_missed_is_gone() {
    let store = Far::new();
    let s = TestServer::start_on(store.clone(), |_| {}).await;
    s.post(MAPS, map("before", "1")).await;
    let mut events = Events::open(&s, "&allowWatchBookmarks=true").await;
    assert_eq!(events.next().await.unwrap().0, "ADDED");
    store.away.send_replace(true);
    let known = s.get(&format!("{MAPS}?resourceVersion=0")).await.json["metadata"]["resourceVersion"].clone();

    let other = TestServer::start_on(store.behind(), |_| {}).await;
    assert_eq!(other.delete(&format!("{MAPS}/before")).await.code, 200);
    assert_eq!(other.post(MAPS, map("meanwhile", "1")).await.code, 201);
    let inner = store.behind();
    let newest = inner.revisions().await.unwrap().0;
    inner.compact(newest).await.unwrap();
    store.away.send_replace(false);
    until_served(&s).await;

    assert_eq!(events.next().await, None, "a watch that cannot be told what it missed ends, without a bookmark");
    let list = s.get(MAPS).await;
    let names: Vec<_> = list.json["items"].as_array().unwrap().iter().map(|o| &o["metadata"]["name"]).collect();
    assert!(names.contains(&&json!("meanwhile")) && !names.contains(&&json!("before")), "{names:?}");
    assert_eq!(s.get(&format!("{MAPS}/before")).await.code, 404);
    let mut late = Events::open(&s, &format!("&resourceVersion={}", known.as_str().unwrap())).await;
    assert_eq!(late.next().await.unwrap().0, "ERROR", "410");
    // Definitions and authorizers follow the new caches too.
    assert_eq!(s.get("/apis/nothing.example.com/v1/things").await.code, 404);
}

#[tokio::test]
async fn a_restored_datastore_is_read_from_its_beginning() {
    for watches_end in [true, false] {
        restored(watches_end).await;
    }
}

/// `watches_end`: those of the datastore that there was. Else nothing but the revision tells.
async fn restored(watches_end: bool) {
    let store = Far::new();
    let s = TestServer::start_on(store.clone(), |_| {}).await;
    s.post(MAPS, map("newer-than-the-backup", "1")).await;
    assert_eq!(s.get(MAPS).await.json["items"].as_array().unwrap().len(), 1);
    store.away.send_replace(watches_end);
    let backup = Arc::new(MemoryStore::new(Options::default()));
    let txn = Txn {
        success: vec![Op::put("/registry/configmaps/default/old", map("old", "1").to_string())],
        ..Txn::default()
    };
    backup.txn(txn).await.unwrap();
    *store.inner.write() = backup;
    store.away.send_replace(false);
    until_served(&s).await;
    let list = s.get(MAPS).await;
    assert_eq!(list.json["items"][0]["metadata"]["name"], "old", "{}", list.text);
    assert_eq!(list.json["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn two_servers_on_one_datastore_see_each_other_at_once_and_give_nothing_out_twice() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Options::default()));
    let (a, b) = (TestServer::start_on(store.clone(), |_| {}).await, TestServer::start_on(store, |_| {}).await);
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
        "spec": {"hard": {"count/configmaps": "40", "services.nodeports": "30"}}});
    assert_eq!(a.post("/api/v1/namespaces/default/resourcequotas", quota).await.code, 201);
    let status = json!({"status": {"hard": {"count/configmaps": "40", "services.nodeports": "30"},
        "used": {"count/configmaps": "0", "services.nodeports": "0"}}});
    let merge = "application/merge-patch+json";
    assert_eq!(b.patch("/api/v1/namespaces/default/resourcequotas/q/status", merge, status).await.code, 200);
    let servers = [&a, &b];
    // In turn: what one has written the other one reads.
    for i in 0..20 {
        let (writer, reader) = (servers[i % 2], servers[(i + 1) % 2]);
        let name = format!("m{i}");
        assert_eq!(writer.post(MAPS, map(&name, "1")).await.code, 201);
        assert_eq!(reader.get(&format!("{MAPS}/{name}")).await.code, 200);
        assert_eq!(reader.get(MAPS).await.json["items"].as_array().unwrap().len(), i + 1);
    }
    // At the same time: the quota has room for 20 more, and services get addresses and ports of their own.
    let maps = futures::future::join_all((0..60).map(|i| {
        let server = servers[i % 2];
        async move { server.post(MAPS, map(&format!("n{i}"), "1")).await.code }
    }));
    let services = futures::future::join_all((0..40).map(|i| {
        let server = servers[i % 2];
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{i}")},
            "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        async move { server.post("/api/v1/namespaces/default/services", service).await }
    }));
    let (maps, services) = tokio::join!(maps, services);
    assert_eq!(maps.iter().filter(|code| **code == 201).count(), 20, "{maps:?}");
    let made: Vec<&Value> = services.iter().filter(|s| s.code == 201).map(|s| &s.json["spec"]).collect();
    assert_eq!(made.len(), 30, "{:?}", services.iter().map(|s| s.code).collect::<Vec<_>>());
    let distinct = |values: Vec<String>| values.iter().collect::<std::collections::HashSet<_>>().len();
    assert_eq!(distinct(made.iter().map(|s| s["clusterIP"].to_string()).collect()), made.len());
    assert_eq!(distinct(made.iter().map(|s| s["ports"][0]["nodePort"].to_string()).collect()), made.len());
}
