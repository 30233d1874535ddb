//! A network that loses what the store says or is told, exactly there where it hurts.

use super::proxy::{Loss, Proxy};
use super::server::Cluster;
use super::{away::put, connect, open};
use crate::suite::{next, show};
use isopod_store::postgres::PostgresStore;
use isopod_store::*;
use sqlx::Executor;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_an_answer_is_looked_up() {
    let cluster = Cluster::start("");
    let proxy = Proxy::start(&cluster);
    let store = PostgresStore::open(proxy.options("lost"), Options::default()).await.unwrap();
    let other = open(&cluster, "lost").await;
    for (i, loss) in [Loss::Commit, Loss::CommitAnswer, Loss::LateCommit].into_iter().enumerate() {
        let base = put(&store, "k/before").await.unwrap();
        let range = KeyRange::prefix("k/");
        let mut watches = Vec::new();
        for store in [&store, &*other] {
            watches.push(store.watch(WatchRequest { range: range.clone(), start: base + 1 }).await.unwrap());
        }
        proxy.lose(loss);
        assert_eq!(put(&store, &format!("k/{i}")).await.unwrap(), base + 1, "{loss:?}");
        assert!(proxy.has_lost(), "{loss:?}");
        let kv = other.range(RangeRequest::new(KeyRange::key(format!("k/{i}")))).await.unwrap().kvs.remove(0);
        assert_eq!((kv.mod_revision, kv.version), (base + 1, 1), "{loss:?}: once");
        assert_eq!(put(&store, "k/after").await.unwrap(), base + 2);
        for w in &mut watches {
            assert_eq!(show(base, next(w).await.unwrap()), format!("1: +k/{i}=v(new)"));
            assert!(show(base, next(w).await.unwrap()).starts_with("2: +k/after=v("));
        }
    }
    // What has no revision is looked up as well.
    for loss in [Loss::Commit, Loss::CommitAnswer, Loss::LateCommit] {
        proxy.lose(loss);
        let id = store.lease_grant(0, 600).await.unwrap().id;
        assert!(proxy.has_lost());
        assert_eq!(other.leases().await.unwrap(), [id]);
        proxy.lose(loss);
        store.lease_revoke(id).await.unwrap();
        assert!(proxy.has_lost());
        assert!(other.leases().await.unwrap().is_empty());
    }
    store.close().await.unwrap();
    other.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_mark_is_gone_is_not_made_again() {
    let cluster = Cluster::start("");
    let proxy = Proxy::start(&cluster);
    let store = PostgresStore::open(proxy.options("mark"), Options::default()).await.unwrap();
    let base = put(&store, "k/a").await.unwrap();
    // Another server finds the marks to be of long ago.
    let forget = "CREATE FUNCTION mark.forget() RETURNS trigger LANGUAGE plpgsql AS \
                    'BEGIN DELETE FROM mark.server; RETURN NULL; END'; \
                  CREATE TRIGGER forget AFTER UPDATE ON mark.server FOR EACH STATEMENT EXECUTE FUNCTION mark.forget()";
    connect(&cluster).await.execute(forget).await.unwrap();
    proxy.lose(Loss::CommitAnswer);
    let told = put(&store, "k/b").await;
    assert!(matches!(told, Err(StoreError::Unavailable { .. })), "nobody knows: {told:?}");
    let kv = store.range(RangeRequest::new(KeyRange::key("k/b"))).await.unwrap().kvs.remove(0);
    assert_eq!((kv.mod_revision, kv.version), (base + 1, 1), "once");
    assert_eq!(put(&store, "k/b").await.unwrap(), base + 2);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_is_not_waited_for_and_holds_nobody_up() {
    let cluster = Cluster::start("");
    let proxy = Proxy::start(&cluster);
    let store = PostgresStore::open(proxy.options("silent"), Options::default()).await.unwrap();
    let other = open(&cluster, "silent").await;
    let base = put(&store, "k/a").await.unwrap();
    let mut live = store.watch(WatchRequest { range: KeyRange::prefix("k/"), start: 0 }).await.unwrap();
    proxy.lose(Loss::Everything);
    let began = Instant::now();
    let silent = async {
        let write = put(&store, "k/silent").await;
        let read = store.revisions().await;
        assert!(matches!(write, Err(StoreError::Unavailable { .. } | StoreError::NotDone { .. })), "{write:?}");
        assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
    };
    let writes = async {
        let mut last = 0;
        for _ in 0..20 {
            last = put(&*other, "k/other").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        last
    };
    let (last, ()) = tokio::join!(writes, silent);
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    proxy.lose(Loss::Nothing);
    // Nobody writes: it finds out by itself what it has missed.
    for rev in base + 1..=last {
        let WatchMessage::Events(got, _) = next(&mut live).await.unwrap() else { panic!() };
        assert_eq!(got, rev);
    }
    assert_eq!(store.revisions().await.unwrap().0, last);
    store.close().await.unwrap();
    other.close().await.unwrap();
}
