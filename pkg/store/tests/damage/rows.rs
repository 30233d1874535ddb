//! Rows that something else than the store has changed, with pages whose checksums are right: found when they are read, and by
//! the check.

use crate::ground::{get, killed, open};
use isopod_store::sqlite::check;
use isopod_store::*;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// Two keys with two values each, one of them with a lease, one deleted key, a setting, an ephemeral key.
async fn store() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.lease_grant(9, 5000).await.unwrap();
    store.set_setting("users", Some("root".into())).await.unwrap();
    for value in ["1", "2"] {
        let leased = Op::Put {
            key: "b".into(),
            value: value.into(),
            lease: 9,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        for op in [Op::put("a", value), leased, Op::put("c", value), Op::put("e/1", value)] {
            store.txn(Txn { success: vec![op], ..Default::default() }).await.unwrap();
        }
    }
    store.txn(Txn { success: vec![Op::delete("c")], ..Default::default() }).await.unwrap();
    store.close().await.unwrap();
    dir
}

/// Another program that keeps the pages' checksums.
fn change(dir: &Path, sql: &str) {
    let vfs = isopod_sys::sqlite::checked_vfs(None).unwrap();
    let conn = Connection::open_with_flags_and_vfs(dir.join("state.db"), OpenFlags::default(), vfs).unwrap();
    conn.execute_batch(sql).unwrap();
}

/// How the newest row of key `a` is named.
const A: &str = "id = (SELECT id FROM newest WHERE key = x'61')";

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_row_is_found_when_it_is_read() {
    for (change_it, keys_only_sees_it) in [
        (format!("UPDATE log SET value = x'00' WHERE {A}"), false),
        (format!("UPDATE log SET version = 7 WHERE {A}"), true),
        (format!("UPDATE log SET lease = 9 WHERE {A}"), true),
        (format!("UPDATE log SET created = 1 WHERE {A}"), true),
        (format!("UPDATE log SET kind = 1 WHERE {A}"), true),
        (format!("DELETE FROM log WHERE {A}"), true),
        ("UPDATE newest SET id = (SELECT id FROM newest WHERE key = x'62') WHERE key = x'61'".to_owned(), true),
    ] {
        let dir = store().await;
        change(dir.path(), &change_it);
        assert_eq!(check(dir.path()).unwrap().len(), 1, "{change_it}");
        let store = open(dir.path()).unwrap();
        assert!(get(&store, "b").await.unwrap().is_some(), "another row is served");
        let keys = RangeRequest { keys_only: true, ..RangeRequest::new(KeyRange::prefix("a")) };
        assert_eq!(store.range(keys).await.is_err(), keys_only_sees_it, "{change_it}");
        let error = get(&store, "a").await.err().unwrap();
        assert!(matches!(&error, StoreError::Corrupt(text) if text.contains("key a")), "{change_it}: {error}");
        let inside = store.txn(Txn { success: vec![Op::get("a")], ..Default::default() }).await;
        assert!(matches!(inside, Err(StoreError::Corrupt(_))), "{change_it}");
        assert_eq!(store.alarms().await.unwrap(), [Alarm::Corrupt]);
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_history_is_found_when_it_is_read() {
    for change_it in [
        "UPDATE log SET value = x'00' WHERE key = x'61' AND prev = 0",
        "UPDATE log SET prev = 0 WHERE key = x'61'",
        "DELETE FROM log WHERE key = x'61' AND prev = 0",
    ] {
        let dir = store().await;
        change(dir.path(), change_it);
        assert_eq!(check(dir.path()).unwrap().len(), 1, "{change_it}");
        let store = open(dir.path()).unwrap();
        let at = RangeRequest { revision: 2, ..RangeRequest::new(KeyRange::key("a")) };
        assert!(matches!(store.range(at).await, Err(StoreError::Corrupt(_))), "{change_it}");
        let watched = match store.watch(WatchRequest { range: KeyRange::key("a"), start: 2 }).await {
            Ok(mut watch) => loop {
                if let Err(e) = watch.receiver.recv().await.expect("it says why it ends") {
                    break e;
                }
            },
            Err(e) => e,
        };
        assert!(matches!(watched, StoreError::Corrupt(_)), "{change_it}: {watched}");
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_at_the_start_is_proved_then() {
    for change_it in [
        "UPDATE meta SET value = 12 WHERE name = 'clean'",
        "UPDATE setting SET value = x'00'",
        "UPDATE lease SET ttl = 1",
        "UPDATE ephemeral SET value = x'00'",
        "UPDATE class SET prefix = x'64'",
    ] {
        let dir = store().await;
        change(dir.path(), change_it);
        assert_eq!(check(dir.path()).unwrap().len(), 1, "{change_it}");
        let error = open(dir.path()).err().unwrap();
        assert!(matches!(&error, StoreError::Corrupt(_)), "{change_it}: {error}");
        assert!(error.to_string().contains("isopod datastore repair"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_and_index_are_compared() {
    for change_it in [
        "DELETE FROM newest WHERE key = x'61'",
        "UPDATE newest SET live = 0 WHERE key = x'61'",
        "UPDATE newest SET lease = 0 WHERE key = x'62'",
    ] {
        let dir = store().await;
        change(dir.path(), change_it);
        assert_eq!(check(dir.path()).unwrap().len(), 1, "{change_it}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_everything_is_looked_at_beside_the_work() {
    let dir = store().await;
    change(dir.path(), &format!("UPDATE log SET value = x'00' WHERE {A}"));
    let store = open(dir.path()).unwrap();
    assert_eq!(store.alarms().await.unwrap(), [], "a clean end is trusted");
    let killed = killed(dir.path()).await;
    store.close().await.unwrap();
    let store = open(killed.path()).unwrap();
    let alarmed = async {
        while store.alarms().await.unwrap() != [Alarm::Corrupt] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), alarmed).await.expect("the check has not found it");
    assert!(get(&store, "b").await.unwrap().is_some(), "reads go on");
    let put = store.txn(Txn { success: vec![Op::put("b", "3")], ..Default::default() }).await;
    assert!(matches!(put, Err(StoreError::Corrupt(_))));
    store.close().await.unwrap();
}
