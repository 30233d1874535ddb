//! The database goes away, comes back, and is another one: nothing acknowledged is lost, nothing is applied twice, watches go
//! on, and where commits were lost everyone is told.

use super::load::Load;
use super::server::Cluster;
use super::{connect, open, open_with};
use crate::suite::{next, show};
use isopod_store::*;
use sqlx::Executor;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub async fn put(store: &dyn Store, key: &str) -> Result<Revision> {
    let success = vec![Op::put(key.to_owned(), "v")];
    store.txn(Txn { success, ..Default::default() }).await.map(|answer| answer.revision)
}

async fn watch(store: &dyn Store, start: Revision) -> Result<Watch> {
    store.watch(WatchRequest { range: KeyRange::prefix("k/"), start }).await
}

async fn count(store: &dyn Store, key: &str) -> Result<u64> {
    store.range(RangeRequest::new(KeyRange::key(key.to_owned()))).await.map(|r| r.count)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_cut_under_load() {
    let cluster = Cluster::start("");
    let a = open_with(&cluster, "cut", 1 << 20).await;
    let b = open_with(&cluster, "cut", 1 << 20).await;
    let load = Load::start(&[a.clone(), b.clone()], 4).await;
    let mut conn = connect(&cluster).await;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Those of the stores, whatever they do.
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        conn.execute(cut).await.unwrap();
    }
    assert!(load.end().await > 50);
    a.close().await.unwrap();
    b.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_is_restarted_under_load() {
    let cluster = Arc::new(Cluster::start(""));
    let a = open_with(&cluster, "restart", 1 << 20).await;
    let b = open_with(&cluster, "restart", 1 << 20).await;
    let lease = a.lease_grant(0, 3).await.unwrap().id;
    let load = Load::start(&[a.clone(), b.clone()], 4).await;
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let server = Arc::clone(&cluster);
        tokio::task::spawn_blocking(move || server.restart()).await.unwrap();
        assert_eq!(b.lease_keep_alive(lease).await.unwrap().ttl, 3, "round {round}");
    }
    assert!(load.end().await > 50);
    a.close().await.unwrap();
    b.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_its_database_says_so_and_recovers() {
    let cluster = Cluster::start("");
    let store = open(&cluster, "away").await;
    let base = put(&*store, "k/a").await.unwrap();
    let lease = store.lease_grant(0, 2).await.unwrap().id;
    let mut live = watch(&*store, base + 1).await.unwrap();
    cluster.down();
    let began = Instant::now();
    let answers = tokio::join!(
        async { put(&*store, "k/lost").await.map(|_| ()) },
        async { count(&*store, "k/a").await.map(|_| ()) },
        async { store.revisions().await.map(|_| ()) },
        async { store.lease_keep_alive(lease).await.map(|_| ()) },
        async { store.lease_grant(0, 5).await.map(|_| ()) },
        async { store.leases().await.map(|_| ()) },
        async { store.compact(base).await },
        async { store.hash(0).await.map(|_| ()) },
        async { store.setting("a").await.map(|_| ()) },
        async { store.usage().await.map(|_| ()) },
        async { watch(&*store, base).await.map(|_| ()) },
    );
    let (a, b, c, d, e, f, g, h, i, j, k) = answers;
    for write in [&a, &e, &g] {
        assert!(matches!(write, Err(StoreError::NotDone { .. })), "it was never asked for: {write:?}");
    }
    for answer in [b, c, d, f, h, i, j, k] {
        assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(live.receiver.try_recv().is_err(), "the watch waits");
    let error = isopod_store::postgres::PostgresStore::open(cluster.options("away"), Options::default()).await.err();
    assert!(matches!(error, Some(StoreError::Unavailable { .. })), "{error:?}");
    cluster.up();
    // It was not there to keep the lease alive in.
    assert_eq!(store.lease_keep_alive(lease).await.unwrap().ttl, 2);
    assert_eq!(count(&*store, "k/lost").await.unwrap(), 0, "what was refused while nobody answered was not done");
    assert_eq!(put(&*store, "k/b").await.unwrap(), base + 1);
    assert_eq!(show(base, next(&mut live).await.unwrap()), "1: +k/b=v(new)");
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_lost_commits_opens_an_epoch() {
    let primary = Cluster::start("wal_level = replica\nmax_wal_senders = 4");
    let (a, b) = (open(&primary, "over").await, open(&primary, "over").await);
    let base = put(&*a, "k/kept").await.unwrap();
    let replica = primary.replica();
    let mut lost = base;
    for i in 0..5 {
        lost = put(&*b, &format!("k/lost{i}")).await.unwrap();
    }
    let lease = a.lease_grant(0, 600).await.unwrap().id;
    let mut watches = [watch(&*a, base).await.unwrap(), watch(&*b, 0).await.unwrap()];
    for _ in 0..6 {
        next(&mut watches[0]).await.unwrap();
    }
    primary.down();
    replica.up();
    // Not yet a primary: nothing is read from it.
    assert!(matches!(count(&*a, "k/lost0").await, Err(StoreError::Unavailable { .. })));
    replica.promote();

    let epoch = put(&*a, "k/new").await.unwrap();
    assert!(epoch > lost + (1 << 30), "no revision is given out twice: {epoch} after {lost}");
    for w in &mut watches {
        let end = next(w).await.unwrap_err();
        assert!(matches!(end, StoreError::Compacted { .. }), "{end:?}");
    }
    let late = open(&primary, "over").await;
    for store in [&a, &b, &late] {
        let all = store.range(RangeRequest::new(KeyRange::prefix("k/"))).await.unwrap();
        let keys: Vec<_> = all.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
        assert_eq!((all.revision, keys), (epoch, vec!["k/kept".to_owned(), "k/new".into()]));
        // Who may have seen what is lost has to list again; who has not misses nothing.
        for start in [base + 2, lost + 1, epoch - 1] {
            let refused = watch(&**store, start).await.err();
            assert!(matches!(refused, Some(StoreError::Compacted { .. })), "from {start}: {refused:?}");
        }
        let at = RangeRequest { revision: lost, ..RangeRequest::new(KeyRange::prefix("k/")) };
        assert!(matches!(store.range(at).await, Err(StoreError::Compacted { .. })));
        let mut w = watch(&**store, base + 1).await.unwrap();
        assert_eq!(show(epoch, next(&mut w).await.unwrap()), "0: +k/new=v(new)");
        assert!(matches!(store.lease_keep_alive(lease).await, Err(StoreError::LeaseNotFound(_))));
    }

    // A failover that lost nothing ends no watch.
    let mut live = [watch(&*a, 0).await.unwrap(), watch(&*b, 0).await.unwrap()];
    let second = replica.replica();
    replica.down();
    second.up();
    second.promote();
    let after = put(&*b, "k/after").await.unwrap();
    assert!(after > epoch + (1 << 30));
    for w in &mut live {
        assert_eq!(show(after, next(w).await.unwrap()), "0: +k/after=v(new)");
    }
    for store in [a, b, late] {
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_of_the_same_server_is_noticed() {
    let cluster = Cluster::start("");
    let store = open(&cluster, "older").await;
    let base = put(&*store, "k/a").await.unwrap();
    let lost = put(&*store, "k/b").await.unwrap();
    let mut live = watch(&*store, 0).await.unwrap();
    // As if the machine had been set back to a snapshot of its disk.
    let mut conn = connect(&cluster).await;
    let back = format!(
        "BEGIN; UPDATE older.meta SET revision = {base}; DELETE FROM older.log WHERE key = 'k/b'; \
         DELETE FROM older.newest WHERE key = 'k/b'; COMMIT"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(back)).execute(&mut conn).await.unwrap();
    let (newest, _) = store.revisions().await.unwrap();
    assert!(newest > lost + (1 << 30));
    assert!(matches!(next(&mut live).await, Err(StoreError::Compacted { .. })));
    assert_eq!(put(&*store, "k/b").await.unwrap(), newest + 1);
    store.close().await.unwrap();
}
