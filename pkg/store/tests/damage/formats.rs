//! Databases of older formats are brought up to date, whatever interrupts it; those of others are left alone.

use crate::ground::{copy, get, open};
use isopod_store::sqlite::{self, SqliteStore, check};
use isopod_store::*;
use rusqlite::{Connection, OpenFlags, params};
use std::path::Path;

/// As the first format had them.
const FORMAT_1: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID, STRICT;
CREATE TABLE log (
  id INTEGER PRIMARY KEY, prev INTEGER NOT NULL, kind INTEGER NOT NULL, created INTEGER NOT NULL,
  version INTEGER NOT NULL, lease INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL
) STRICT;
CREATE TABLE newest (
  key BLOB PRIMARY KEY, id INTEGER NOT NULL, live INTEGER NOT NULL, lease INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
CREATE INDEX newest_lease ON newest (lease) WHERE lease <> 0;
CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL, ephemeral INTEGER NOT NULL) STRICT;
CREATE TABLE ephemeral (
  key BLOB PRIMARY KEY, modified INTEGER NOT NULL, created INTEGER NOT NULL, version INTEGER NOT NULL,
  lease INTEGER NOT NULL, value BLOB NOT NULL
) WITHOUT ROWID, STRICT;
CREATE TABLE class (prefix BLOB PRIMARY KEY) WITHOUT ROWID, STRICT;
";
/// What the second had beyond.
const FORMAT_2: &str = "CREATE TABLE setting (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID, STRICT;";

fn id(rev: i64) -> i64 {
    rev << 20
}

/// A key written at 2 and 4, one that was deleted at 5, one with a lease; an ephemeral one; compacted at 3. With WAL, and open.
fn old(dir: &Path, version: u32) -> Connection {
    let conn = Connection::open(dir.join("state.db")).unwrap();
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    conn.execute_batch(FORMAT_1).unwrap();
    conn.execute_batch(&format!("PRAGMA application_id = {}; PRAGMA user_version = {version}", 0x4953_4f50)).unwrap();
    if version >= 2 {
        conn.execute_batch(FORMAT_2).unwrap();
        conn.execute("INSERT INTO setting VALUES ('users', x'0102')", []).unwrap();
    }
    let big = vec![b'x'; 20_000];
    let rows: [(i64, i64, i64, i64, i64, i64, &str, &[u8]); 5] = [
        (id(2), 0, 0, 2, 1, 0, "a", b"first"),
        (id(3), 0, 0, 3, 1, 0, "gone", b"x"),
        (id(4), id(2), 0, 2, 2, 0, "a", &big),
        (id(5), id(3), 1, 0, 0, 0, "gone", b""),
        (id(6), 0, 0, 6, 1, 77, "leased", b"l"),
    ];
    for (id, prev, kind, created, version, lease, key, value) in rows {
        let values = params![id, prev, kind, created, version, lease, key.as_bytes(), value];
        conn.execute("INSERT INTO log VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)", values).unwrap();
    }
    for (key, id, live, lease) in [("a", id(4), 1, 0), ("gone", id(5), 0, 0), ("leased", id(6), 1, 77)] {
        conn.execute("INSERT INTO newest VALUES (?1, ?2, ?3, ?4)", params![key.as_bytes(), id, live, lease]).unwrap();
    }
    conn.execute_batch(
        "INSERT INTO lease VALUES (77, 1000, 0); INSERT INTO class VALUES (x'652f');
         INSERT INTO ephemeral VALUES (x'652f31', 7, 7, 1, 0, x'65');
         INSERT INTO meta VALUES ('compacted', 3), ('compacted_through', 3145728), ('clean', 8), ('reserved', 70000)",
    )
    .unwrap();
    conn
}

async fn verify(dir: &Path, with_settings: bool) {
    let store = open(dir).unwrap();
    assert_eq!(store.revisions().await.unwrap(), (8, 3));
    let a = get(&store, "a").await.unwrap().unwrap();
    assert_eq!((a.value.len(), a.create_revision, a.mod_revision, a.version), (20_000, 2, 4, 2));
    assert_eq!(get(&store, "gone").await.unwrap(), None);
    assert_eq!(get(&store, "e/1").await.unwrap().unwrap().mod_revision, 7);
    assert_eq!(store.lease_status(77).await.unwrap().keys, ["leased"]);
    let at = RangeRequest { revision: 3, ..RangeRequest::new(KeyRange::prefix("")) };
    let at = store.range(RangeRequest { range: KeyRange { start: "a".into(), end: "z".into() }, ..at }).await;
    assert!(at.is_err(), "ephemeral keys have no history from before");
    let at = RangeRequest { revision: 3, ..RangeRequest::new(KeyRange { start: "f".into(), end: "z".into() }) };
    assert_eq!(store.range(at).await.unwrap().kvs[0].value, "x");
    let setting = with_settings.then(|| bytes::Bytes::from_static(&[1, 2]));
    assert_eq!(store.setting("users").await.unwrap(), setting);
    let success = vec![Op::put("a", "new")];
    assert_eq!(store.txn(Txn { success, ..Default::default() }).await.unwrap().revision, 9);
    store.close().await.unwrap();
    assert_eq!(check(dir).unwrap(), Vec::<String>::new());
    assert!(!dir.join("state.db.draft").exists() && !dir.join("state.db.ready").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_of_older_formats_are_brought_up_to_date() {
    for version in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let conn = old(dir.path(), version);
        // Killed: all of it still stands in the write-ahead log.
        let killed = copy(dir.path());
        drop(conn);
        verify(killed.path(), version == 2).await;
        verify(dir.path(), version == 2).await;
    }
}

/// The third has the same tables, and an index that is never behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_the_last_format_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    drop(old(dir.path(), 2));
    open(dir.path()).unwrap().close().await.unwrap();
    let vfs = isopod_sys::sqlite::checked_vfs(None).unwrap();
    let conn = || Connection::open_with_flags_and_vfs(dir.path().join("state.db"), OpenFlags::default(), vfs).unwrap();
    conn().execute_batch("PRAGMA user_version = 3; DELETE FROM meta WHERE name = 'indexed'").unwrap();
    assert_eq!(check(dir.path()).unwrap(), Vec::<String>::new());
    assert_eq!(sqlite::content(dir.path()).unwrap().keys, 3);
    verify(dir.path(), true).await;
    let version = conn().query_row("PRAGMA user_version", [], |r| r.get::<_, i64>(0));
    assert_eq!(version.unwrap(), 4, "the versions before would not see what the index does not say yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_migration_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    drop(old(dir.path(), 2));
    let before = copy(dir.path());
    open(dir.path()).unwrap().close().await.unwrap();

    // While the new one was being made.
    let drafting = copy(before.path());
    std::fs::write(drafting.path().join("state.db.draft"), b"a piece").unwrap();
    verify(drafting.path(), true).await;

    // When the new one was whole; what is left of the old one's log is not the new one's.
    let ready = copy(before.path());
    let other = tempfile::tempdir().unwrap();
    let running = old(other.path(), 1);
    std::fs::copy(other.path().join("state.db-wal"), ready.path().join("state.db-wal")).unwrap();
    std::fs::copy(dir.path().join("state.db"), ready.path().join("state.db.ready")).unwrap();
    drop(running);
    verify(ready.path(), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_databases_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    Connection::open(dir.path().join("state.db")).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    let before = std::fs::read(dir.path().join("state.db")).unwrap();
    let error = SqliteStore::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(&error, StoreError::Format { found, .. } if found == "of another program"), "{error}");
    assert_eq!(std::fs::read(dir.path().join("state.db")).unwrap(), before);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state.db"), b"").unwrap();
    let error = SqliteStore::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(error, StoreError::Corrupt(_)), "a database that lost everything is no new one: {error}");
}
