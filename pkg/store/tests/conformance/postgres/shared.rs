//! Several servers on one database: one history, one set of leases.

use super::load::Load;
use super::server::{Cluster, SETTABLE_CLOCK, set_clock};
use super::{connect, open, open_with};
use crate::suite::{count_up, next, show};
use bytes::Bytes;
use isopod_store::postgres::PostgresStore;
use isopod_store::*;
use sqlx::{AssertSqlSafe, Executor};
use std::sync::Arc;
use std::time::{Duration, Instant};

async fn put(store: &dyn Store, key: &str, lease: LeaseId) -> Revision {
    let (key, value) = (Bytes::from(key.to_owned()), "v".into());
    let put = Op::Put { key, value, lease, prev_kv: false, ignore_value: false, ignore_lease: false };
    store.txn(Txn { success: vec![put], ..Default::default() }).await.unwrap().revision
}

async fn watch(store: &dyn Store, prefix: &'static str, start: Revision) -> Watch {
    store.watch(WatchRequest { range: KeyRange::prefix(prefix), start }).await.unwrap()
}

async fn increment(store: Arc<dyn Store>) {
    for _ in 0..25 {
        loop {
            let kv = store.range(RangeRequest::new(KeyRange::key("inc"))).await.unwrap().kvs.remove(0);
            let n: u32 = String::from_utf8_lossy(&kv.value).parse().unwrap();
            let txn = Txn {
                compare: vec![Compare::mod_revision("inc", kv.mod_revision)],
                success: vec![Op::put("inc", (n + 1).to_string())],
                ..Default::default()
            };
            if store.txn(txn).await.unwrap().succeeded {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_share_one_history() {
    let cluster = Cluster::start("");
    // Both find no tables.
    let (a, b) = tokio::join!(open_with(&cluster, "two", 1 << 20), open_with(&cluster, "two", 1 << 20));
    let stores: [Arc<dyn Store>; 2] = [a.clone(), b.clone()];
    let load = Load::start(&stores, 4).await;
    a.txn(Txn { success: vec![Op::put("inc", "0")], ..Default::default() }).await.unwrap();
    let increments: Vec<_> = (0..6).map(|i| tokio::spawn(increment(Arc::clone(&stores[i % 2])))).collect();
    for task in increments {
        task.await.unwrap();
    }
    for store in &stores {
        let kv = store.range(RangeRequest::new(KeyRange::key("inc"))).await.unwrap().kvs.remove(0);
        assert_eq!((&kv.value[..], kv.version), (&b"150"[..], 151));
    }
    assert!(load.end().await > 50);

    // What one has answered, the other one reads; at old revisions too, and not what is compacted.
    let old = put(&*a, "x", 0).await;
    assert_eq!(b.revisions().await.unwrap().0, old);
    let now = put(&*b, "x", 0).await;
    let at = |revision| RangeRequest { revision, ..RangeRequest::new(KeyRange::key("x")) };
    assert_eq!(a.range(at(now)).await.unwrap().kvs[0].version, 2);
    assert_eq!(a.range(at(old)).await.unwrap().kvs[0].version, 1);
    b.compact_physically(now).await.unwrap();
    assert!(matches!(a.range(at(old)).await, Err(StoreError::Compacted { .. })));
    assert!(matches!(a.compact(now).await, Err(StoreError::Compacted { .. })));
    assert_eq!(a.hash(0).await.unwrap(), b.hash(0).await.unwrap());

    assert!(a.set_alarm(Alarm::NoSpace, true).await.unwrap());
    assert!(!b.set_alarm(Alarm::NoSpace, true).await.unwrap(), "it is raised already");
    assert_eq!(b.alarms().await.unwrap(), [Alarm::NoSpace]);
    b.set_setting("s", Some("1".into())).await.unwrap();
    assert_eq!(a.setting("s").await.unwrap().as_deref(), Some(&b"1"[..]));
    let counts: Vec<_> = stores.iter().map(|s| tokio::spawn(count_up(Arc::clone(s), "s", 20))).collect();
    for task in counts {
        task.await.unwrap();
    }
    assert_eq!(b.setting("s").await.unwrap().as_deref(), Some(&b"41"[..]), "what one wrote the other one did not undo");
    a.close().await.unwrap();
    b.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_belong_to_all_servers() {
    let cluster = Cluster::start("");
    let (a, b) = (open(&cluster, "leases").await, open(&cluster, "leases").await);
    let id = a.lease_grant(0, 2).await.unwrap().id;
    assert!(matches!(b.lease_grant(id, 2).await, Err(StoreError::LeaseExists(_))));
    let base = put(&*b, "l/kept", id).await;
    assert_eq!(a.lease_status(id).await.unwrap().keys, [Bytes::from("l/kept")]);
    let mut watches = [watch(&*a, "l/", base + 1).await, watch(&*b, "l/", base + 1).await];
    // Kept alive on the one server only, it does not end on the other one.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(b.lease_keep_alive(id).await.unwrap().ttl, 2);
    }
    assert_eq!(b.lease_status(id).await.unwrap().keys, [Bytes::from("l/kept")]);
    assert_eq!(a.revisions().await.unwrap().0, base);
    for w in &mut watches {
        assert_eq!(show(base, next(w).await.unwrap()), "1: -l/kept(0)");
    }
    assert!(matches!(a.lease_keep_alive(id).await, Err(StoreError::LeaseNotFound(_))));
    let grants = async |store: &PostgresStore| {
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(store.lease_grant(0, 3).await.unwrap().id);
        }
        ids
    };
    let ids = grants(&a).await;
    let base = put(&*a, "l/left", ids[1]).await;
    b.lease_revoke(ids[0]).await.unwrap();
    assert!(matches!(a.lease_revoke(ids[0]).await, Err(StoreError::LeaseNotFound(_))));
    // A server that is gone leaves its leases to the others.
    let [_, mut w] = watches;
    drop(a);
    assert_eq!(show(base, next(&mut w).await.unwrap()), "0: +l/left=v(new)");
    assert_eq!(show(base, next(&mut w).await.unwrap()), "1: -l/left(0)");
    while !b.leases().await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    b.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_live_their_time_whatever_the_clock_of_postgres_is_set_to() {
    const HOUR: i64 = 3600;
    let cluster = Cluster::start("");
    let mut clock = connect(&cluster).await;
    clock.execute(SETTABLE_CLOCK).await.unwrap();
    let (a, b) = (open(&cluster, "clock").await, open(&cluster, "clock").await);
    let kept = a.lease_grant(0, 2).await.unwrap().id;
    let base = put(&*a, "l/kept", kept).await;
    // The first server counts the lease's time alone, and the second one keeps it alive.
    for ahead in [HOUR, -HOUR, 24 * 365 * HOUR, -60 * 24 * 365 * HOUR] {
        clock.execute(AssertSqlSafe(set_clock(ahead))).await.unwrap();
        for _ in 0..6 {
            let status = a.lease_status(kept).await.unwrap();
            assert!((0..=2).contains(&status.ttl), "{status:?}, with the clock {ahead} s ahead");
            assert_eq!(b.lease_keep_alive(kept).await.unwrap().ttl, 2, "with the clock {ahead} s ahead");
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }
    // A server that starts after the lease's time by that clock.
    clock.execute(AssertSqlSafe(set_clock(HOUR))).await.unwrap();
    let late = open(&cluster, "clock").await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(b.lease_keep_alive(kept).await.unwrap().ttl, 2);
    assert_eq!(late.revisions().await.unwrap().0, base);
    // Nobody renews it any more, and it ends, although by the database's clock it has decades left.
    clock.execute(AssertSqlSafe(set_clock(-60 * 24 * 365 * HOUR))).await.unwrap();
    let mut ended = watch(&*a, "l/", base + 1).await;
    let began = Instant::now();
    assert_eq!(show(base, next(&mut ended).await.unwrap()), "1: -l/kept(0)");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    for store in [a, b, late] {
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_of_ended_leases_go_and_no_server_is_confused_by_that() {
    let cluster = Cluster::start("");
    let (a, b) = (open(&cluster, "trim").await, open(&cluster, "trim").await);
    let kept = a.lease_grant(0, 600).await.unwrap().id;
    let each = (0..1600).map(|_| {
        let b = b.clone();
        async move {
            let id = b.lease_grant(0, 600).await.unwrap().id;
            b.lease_revoke(id).await.unwrap();
        }
    });
    futures::StreamExt::collect::<Vec<()>>(futures::StreamExt::buffer_unordered(futures::stream::iter(each), 32)).await;
    let mut conn = connect(&cluster).await;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM trim.lease").fetch_one(&mut conn).await.unwrap();
    // About every other one of the last 1024 changes is an end.
    assert!((256..1024).contains(&rows), "{rows}");
    assert_eq!(a.leases().await.unwrap(), [kept]);
    put(&*a, "l/a", kept).await;
    assert_eq!(b.lease_status(kept).await.unwrap().keys, [Bytes::from("l/a")]);
    b.lease_revoke(kept).await.unwrap();
    assert_eq!(a.range(RangeRequest::new(KeyRange::key("l/a"))).await.unwrap().count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_another_format_are_left_alone() {
    let cluster = Cluster::start("");
    open(&cluster, "format").await.close().await.unwrap();
    let mut conn = connect(&cluster).await;
    sqlx::query("UPDATE format.meta SET format = 99").execute(&mut conn).await.unwrap();
    let error = PostgresStore::open(cluster.options("format"), Options::default()).await.err().unwrap();
    let text = isopod_base::errors::Chain(&error).to_string();
    assert!(text.contains("format 99") && text.contains("choose another database"), "{text}");
}
