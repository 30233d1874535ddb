//! The ephemeral class: what a clean end keeps, what a crash may lose, and who is told of it. A crash is played by copying
//! the files of a running store: that is what the disk would hold.

use crate::suite::next;
use bytes::Bytes;
use isopod_base::clock::Clock;
use isopod_store::sqlite::SqliteStore;
use isopod_store::*;
use jiff::Timestamp;
use std::path::Path;
use std::time::Duration;

fn options(clock: &Clock) -> Options {
    Options { ephemeral: vec!["events/".into(), "nodes/".into()], clock: clock.clone(), ..Options::default() }
}

fn clock() -> Clock {
    Clock::fake(Timestamp::UNIX_EPOCH)
}

async fn put(store: &SqliteStore, key: &str, value: &str, durability: Durability) -> Revision {
    let success = vec![Op::put(key.to_owned(), value.to_owned())];
    store.txn(Txn { success, durability, ..Default::default() }).await.unwrap().revision
}

async fn get(store: &SqliteStore, key: &str) -> Option<KeyValue> {
    store.range(RangeRequest::new(KeyRange::key(key.to_owned()))).await.unwrap().kvs.pop()
}

fn crash(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        // Memory that the store shares with itself: copied at another moment than the log it would contradict it.
        if entry.file_name() == "state.db-shm" {
            continue;
        }
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn bytes_written(dir: &Path) -> Vec<(u64, Option<std::time::SystemTime>)> {
    ["state.db", "state.db-wal"]
        .map(|f| std::fs::metadata(dir.join(f)).map(|m| (m.len(), m.modified().ok())).unwrap_or((0, None)))
        .to_vec()
}

use Durability::{Durable, Ephemeral};

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_writes_do_not_touch_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = SqliteStore::open(dir.path(), options(&clock)).unwrap();
    let before = bytes_written(dir.path());
    let lease = store.lease_grant_ephemeral(0, 3600).await.unwrap().id;
    for i in 0..500 {
        let put = Op::Put {
            key: format!("events/{i}").into(),
            value: "e".into(),
            lease,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        store.txn(Txn { success: vec![put], durability: Ephemeral, ..Default::default() }).await.unwrap();
    }
    let (newest, _) = store.revisions().await.unwrap();
    store.compact(newest).await.unwrap();
    let last = put(&store, "nodes/n", "beat", Ephemeral).await;
    store.compact(last).await.unwrap();
    // Not the writes, not the lease, not the compactions: there was nothing durable to drop.
    assert_eq!(before, bytes_written(dir.path()));
    assert_eq!(get(&store, "events/7").await.unwrap().lease, lease);
    store.close().await.unwrap();
}

/// The last row of all is then one that is older, and what the deletion superseded is gone as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_was_the_last_durable_write_may_be_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = SqliteStore::open(dir.path(), options(&clock)).unwrap();
    for round in ["1", "2", "3"] {
        put(&store, "pods/b", round, Durable).await;
        put(&store, "pods/a", round, Durable).await;
        let success = vec![Op::Delete { range: KeyRange::key("pods/b"), prev_kv: false }];
        store.txn(Txn { success, ..Default::default() }).await.unwrap();
        let newest = put(&store, "nodes/n", "beat", Ephemeral).await;
        store.compact_physically(newest).await.unwrap();
        assert!(get(&store, "pods/b").await.is_none());
        let pods = RangeRequest::new(KeyRange::prefix("pods/"));
        let left = store.range(pods.clone()).await.unwrap();
        assert_eq!((left.kvs.len(), left.count), (1, 1));
        assert_eq!(store.range(RangeRequest { count_only: true, ..pods }).await.unwrap().count, 1);
        assert!(store.alarms().await.unwrap().is_empty(), "it is not taken for damage");
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_end_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = SqliteStore::open(dir.path(), options(&clock)).unwrap();
    let lease = store.lease_grant_ephemeral(0, 100).await.unwrap().id;
    let leased = Op::Put {
        key: "events/a".into(),
        value: "1".into(),
        lease,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    store.txn(Txn { success: vec![leased], durability: Ephemeral, ..Default::default() }).await.unwrap();
    let durable = put(&store, "pods/a", "1", Durable).await;
    let last = put(&store, "nodes/n", "1", Ephemeral).await;
    assert_eq!(last, durable + 1, "one sequence");
    let before = get(&store, "events/a").await;
    store.close().await.unwrap();

    let store = SqliteStore::open(dir.path(), options(&clock)).unwrap();
    assert_eq!(store.revisions().await.unwrap().0, last);
    assert_eq!(get(&store, "events/a").await, before);
    assert_eq!(store.lease_status(lease).await.unwrap().keys, [Bytes::from("events/a")]);
    let range = KeyRange::prefix("events/");
    let mut watch = store.watch(WatchRequest { range, start: last + 1 }).await.unwrap();
    clock.advance(Duration::from_secs(101));
    let WatchMessage::Events(_, events) = next(&mut watch).await.unwrap() else { panic!() };
    assert_eq!((events[0].kind, &events[0].kv.key[..]), (EventKind::Delete, &b"events/a"[..]));
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_begins_a_new_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = SqliteStore::open(dir.path(), options(&clock)).unwrap();
    put(&store, "events/flushed", "1", Ephemeral).await;
    store.close().await.unwrap();

    let store = SqliteStore::open(dir.path(), options(&clock)).unwrap();
    let durable = put(&store, "pods/a", "1", Durable).await;
    put(&store, "events/lost", "1", Ephemeral).await;
    put(&store, "events/flushed", "2", Ephemeral).await;
    put(&store, "nodes/asked", "1", Durable).await;
    let last = put(&store, "events/lost", "2", Ephemeral).await;
    let crashed = crash(dir.path());

    let after = SqliteStore::open(crashed.path(), options(&clock)).unwrap();
    let (epoch, _) = after.revisions().await.unwrap();
    assert!(epoch > last, "no revision is given out twice: {epoch} after {last}");
    let pod = get(&after, "pods/a").await.unwrap();
    assert_eq!(pod.mod_revision, durable);
    assert_eq!(get(&after, "events/lost").await, None);
    let survivor = get(&after, "events/flushed").await.unwrap();
    assert_eq!((&survivor.value[..], survivor.mod_revision), (&b"1"[..], epoch), "restamped");
    assert!(get(&after, "nodes/asked").await.is_some(), "a write that asked for durability is there");

    let watch = async |prefix: &'static str, start| {
        after.watch(WatchRequest { range: KeyRange::prefix(prefix), start }).await.err()
    };
    assert!(matches!(watch("events/", last).await, Some(StoreError::Compacted { .. })));
    assert!(matches!(watch("events/", epoch).await, Some(StoreError::Compacted { .. })));
    assert!(watch("events/", epoch + 1).await.is_none());
    assert!(watch("pods/", durable).await.is_none(), "durable history goes on");
    let at = RangeRequest { revision: last, ..RangeRequest::new(KeyRange::prefix("events/")) };
    assert!(matches!(after.range(at).await, Err(StoreError::Compacted { .. })));
    assert_eq!(put(&after, "pods/a", "2", Durable).await, epoch + 1);
    after.close().await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dirty_keys_are_flushed_a_while_after_a_durable_write() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = SqliteStore::open(dir.path(), options(&clock)).unwrap();
    put(&store, "events/a", "1", Ephemeral).await;
    put(&store, "pods/a", "1", Durable).await;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        clock.advance(Duration::from_secs(301));
        let crashed = crash(dir.path());
        let after = SqliteStore::open(crashed.path(), options(&clock)).unwrap();
        let found = get(&after, "events/a").await;
        after.close().await.unwrap();
        if found.is_some() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "not flushed");
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_move_when_their_class_changes() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let plain = Options { clock: clock.clone(), ..Options::default() };
    let store = SqliteStore::open(dir.path(), plain.clone()).unwrap();
    put(&store, "events/a", "1", Durable).await;
    put(&store, "pods/a", "1", Durable).await;
    store.close().await.unwrap();
    for (round, options) in [options(&clock), plain.clone(), options(&clock)].into_iter().enumerate() {
        let store = SqliteStore::open(dir.path(), options).unwrap();
        let event = get(&store, "events/a").await.unwrap();
        assert_eq!(event.mod_revision, store.revisions().await.unwrap().0, "round {round}");
        let all = store.range(RangeRequest::new(KeyRange { start: "a".into(), end: "z".into() })).await.unwrap();
        assert_eq!(all.count, 2);
        put(&store, "events/a", "2", Ephemeral).await;
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_at_a_time_and_one_format() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path(), Options::default()).unwrap();
    let error = SqliteStore::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(&error, StoreError::InUse { holder, .. } if *holder == std::process::id().to_string()), "{error}");
    store.close().await.unwrap();
    let file = dir.path().join("state.db");
    let vfs = isopod_sys::sqlite::checked_vfs(None).unwrap();
    let newer = rusqlite::Connection::open_with_flags_and_vfs(&file, rusqlite::OpenFlags::default(), vfs).unwrap();
    newer.execute_batch("PRAGMA user_version = 99").unwrap();
    drop(newer);
    let error = SqliteStore::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(&error, StoreError::Format { found, .. } if found == "99"), "{error}");
    std::fs::write(&file, vec![7u8; 8192]).unwrap();
    let error = SqliteStore::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = SqliteStore::open(dir.path(), Options::default()).unwrap();
        store.set_setting("users", Some("root".into())).await.unwrap();
        store.close().await.unwrap();
    }
    let store = SqliteStore::open(dir.path(), Options::default()).unwrap();
    assert_eq!(store.setting("users").await.unwrap().as_deref(), Some(&b"root"[..]));
    store.close().await.unwrap();
}
