//! `/readyz` when the caches do not get to where the store is; what component statuses say.

#![allow(clippy::unwrap_used)]

use async_trait::async_trait;
use bytes::Bytes;
use isopod_apiserver::component_status::{Components, Running};
use isopod_store::memory::MemoryStore;
use isopod_store::{
    Alarm, Export, HistoryHash, LeaseId, LeaseStatus, Op, Options, RangeRequest, RangeResponse, Result, Revision,
    Store, Txn, TxnResponse, Usage, Watch, WatchRequest,
};
use isopod_testkit::TestServer;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{mpsc, watch};

/// A store whose watches deliver nothing while it is stuck.
struct Stuck {
    inner: MemoryStore,
    stuck: watch::Sender<bool>,
}

#[async_trait]
impl Store for Stuck {
    async fn watch(&self, req: WatchRequest) -> Result<Watch> {
        let Watch { mut receiver, request_progress } = self.inner.watch(req).await?;
        let (sender, delivered) = mpsc::channel(1024);
        let mut stuck = self.stuck.subscribe();
        tokio::spawn(async move {
            while let Some(message) = receiver.recv().await {
                if stuck.wait_for(|stuck| !stuck).await.is_err() || sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        Ok(Watch { receiver: delivered, request_progress })
    }

    async fn range(&self, req: RangeRequest) -> Result<RangeResponse> {
        self.inner.range(req).await
    }
    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        self.inner.txn(txn).await
    }
    async fn compact(&self, rev: Revision) -> Result<()> {
        self.inner.compact(rev).await
    }
    async fn revisions(&self) -> Result<(Revision, Revision)> {
        self.inner.revisions().await
    }
    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus> {
        self.inner.lease_grant(id, ttl_seconds).await
    }
    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.inner.lease_revoke(id).await
    }
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        self.inner.lease_keep_alive(id).await
    }
    async fn lease_status(&self, id: LeaseId) -> Result<LeaseStatus> {
        self.inner.lease_status(id).await
    }
    async fn leases(&self) -> Result<Vec<LeaseId>> {
        self.inner.leases().await
    }
    async fn compact_physically(&self, revision: Revision) -> Result<()> {
        self.inner.compact_physically(revision).await
    }

    async fn hash(&self, revision: Revision) -> Result<HistoryHash> {
        self.inner.hash(revision).await
    }

    async fn export(&self) -> Result<Export> {
        self.inner.export().await
    }

    async fn usage(&self) -> Result<Usage> {
        self.inner.usage().await
    }

    async fn defragment(&self) -> Result<()> {
        self.inner.defragment().await
    }

    async fn alarms(&self) -> Result<Vec<Alarm>> {
        self.inner.alarms().await
    }

    async fn set_alarm(&self, alarm: Alarm, on: bool) -> Result<bool> {
        self.inner.set_alarm(alarm, on).await
    }
    async fn setting(&self, name: &str) -> Result<Option<Bytes>> {
        self.inner.setting(name).await
    }
    async fn set_setting(&self, name: &str, value: Option<Bytes>) -> Result<()> {
        self.inner.set_setting(name, value).await
    }
    async fn swap_setting(&self, name: &str, expected: Option<Bytes>, value: Option<Bytes>) -> Result<bool> {
        self.inner.swap_setting(name, expected, value).await
    }
    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[tokio::test]
async fn a_server_whose_caches_are_behind_is_not_ready() {
    let store = Arc::new(Stuck { inner: MemoryStore::new(Options::default()), stuck: watch::Sender::new(false) });
    let s = TestServer::start_on(store.clone(), |_| {}).await;
    assert_eq!(s.get("/readyz").await.code, 200);
    store.stuck.send_replace(true);
    let put = Op::put("/registry/configmaps/default/new", "{\"metadata\":{}}");
    store.txn(Txn { success: vec![put], ..Txn::default() }).await.unwrap();
    let sync = s.get("/readyz/informer-sync").await;
    assert_eq!(sync.code, 500, "{}", sync.text);
    assert_eq!(s.get("/readyz/etcd").await.code, 200, "the store itself answers");
    let all = s.get("/readyz").await;
    assert!(all.code == 500 && all.text.contains("[-]informer-sync failed"), "{}", all.text);
    store.stuck.send_replace(false);
    let caught_up = s.get("/readyz").await;
    assert_eq!((caught_up.code, caught_up.text.as_str()), (200, "ok"));
}

#[tokio::test]
async fn pages_for_people_and_objects_for_programs() {
    let flags = [("bind-address".to_owned(), "::".to_owned())].into();
    let s = TestServer::start_with(|config| config.flags = Some(flags)).await;
    let get = async |path: &str, accept: &str| {
        s.send(http::Request::get(path).header("accept", accept).body(axum::body::Body::empty()).unwrap()).await
    };
    let header = |answer: &isopod_testkit::Answer, name: &str| {
        answer.headers.get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    for (path, begin, line) in [
        ("/statusz", "\napiserver statusz\nWarning: ", "/flagz /healthz /livez /metrics /readyz /statusz /version\n"),
        ("/flagz", "\napiserver flagz\nWarning: ", "::\n"),
    ] {
        let page = get(path, "*/*").await;
        assert_eq!((page.code, header(&page, "content-type").as_str()), (200, "text/plain; charset=utf-8"));
        assert!(page.text.starts_with(begin) && page.text.ends_with(line), "{}", page.text);
        let refused = get(path, "application/yaml").await;
        assert_eq!((refused.code, header(&refused, "content-type").as_str()), (406, "application/yaml"));
    }
    let status = get("/statusz", "application/json;as=Statusz;v=v1beta1;g=config.k8s.io").await;
    assert_eq!(header(&status, "content-type"), "application/json;g=config.k8s.io;v=v1beta1;as=Statusz");
    let (json, paths) = (
        &status.json,
        serde_json::json!(["/flagz", "/healthz", "/livez", "/metrics", "/readyz", "/statusz", "/version"]),
    );
    assert_eq!((&json["kind"], &json["apiVersion"]), (&"Statusz".into(), &"config.k8s.io/v1beta1".into()));
    assert_eq!((&json["emulationVersion"], &json["paths"]), (&"1.37".into(), &paths));
    let flags = get("/flagz", "application/json;as=Flagz;v=v1alpha1;g=config.k8s.io").await;
    assert_eq!(flags.json["flags"], serde_json::json!({"bind-address": "::"}));
    let warning = "299 - \"This version of the flagz endpoint is deprecated. Please use a newer version.\"";
    assert_eq!(header(&flags, "warning"), warning);
}

#[tokio::test]
async fn components_say_how_they_are() {
    let running = Running::default();
    let run = running.begin();
    // Who listens there on this machine is no business of this test: both run here.
    let s = TestServer::start_with(|config| {
        config.components =
            Components { controller_manager: Some(running.clone()), scheduler: Some(Running::default()) };
    })
    .await;
    let uri = "/api/v1/componentstatuses";
    let list = s.get(uri).await;
    let condition = |status: &str, message: &str| json!([{"type": "Healthy", "status": status, "message": message}]);
    let away = "it has ended and is being started again";
    let want = json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": [
        {"metadata": {"name": "controller-manager"}, "conditions": condition("True", "ok")},
        {"metadata": {"name": "etcd-0"}, "conditions": condition("True", "ok")},
        {"metadata": {"name": "scheduler"}, "conditions": condition("False", away)},
    ]});
    assert_eq!(list.json, want);
    drop(run);
    let one = s.get(&format!("{uri}/controller-manager")).await;
    assert_eq!(one.json["conditions"], condition("False", away), "{}", one.text);
    let selected = s.get(&format!("{uri}?fieldSelector=metadata.name%3Detcd-0")).await;
    assert_eq!(selected.json["items"].as_array().map(Vec::len), Some(1), "{}", selected.text);
    let none = s.get(&format!("{uri}/x")).await;
    assert_eq!((none.code, none.json["message"].as_str()), (404, Some("componentstatus \"x\" not found")));
}

#[tokio::test]
async fn a_certificate_that_is_over_is_no_life() {
    let over = Arc::new(AtomicBool::new(false));
    let told = over.clone();
    let s = TestServer::start_with(|config| {
        let now = config.clock.now().as_second();
        config.certificate_expires =
            Some(Arc::new(move || if told.load(Ordering::SeqCst) { now - 1 } else { now + 1000 }));
    })
    .await;
    assert_eq!(s.get("/livez").await.code, 200);
    over.store(true, Ordering::SeqCst);
    let livez = s.get("/livez?verbose").await;
    assert_eq!(livez.code, 500);
    assert!(livez.text.contains("[-]loopback-serving-certificate failed: reason withheld\n"), "{}", livez.text);
    let readyz = s.get("/readyz?verbose").await;
    assert!(readyz.code == 200 && !readyz.text.contains("loopback"), "{}", readyz.text);
}
