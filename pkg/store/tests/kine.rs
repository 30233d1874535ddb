//! Databases of kine, made here as kine makes them: its table, its compaction, its fillers. `e2e/tests/test_import.py` reads
//! those of a real kine.

#![allow(clippy::unwrap_used)]

use isopod_store::archive::{Content, Depth};
use isopod_store::kine;
use isopod_store::sqlite::{self, SqliteStore};
use isopod_store::*;
use rusqlite::{Connection, params};
use std::path::{Path, PathBuf};

const SCHEMA: &str = "CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, deleted INTEGER, \
    create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB); \
    CREATE INDEX kine_name_id_index ON kine (name, id)";

struct Kine {
    conn: Connection,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Kine {
    fn new(journal: &str) -> Kine {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let conn = Connection::open(&path).unwrap();
        conn.execute_batch(&format!("PRAGMA journal_mode = {journal}; PRAGMA wal_autocheckpoint = 0; {SCHEMA}"))
            .unwrap();
        let kine = Kine { conn, path, _dir: dir };
        assert_eq!(kine.row("compact_rev_key", true, false, None, 0, 0, Some("")), 1);
        kine
    }

    fn row(
        &self,
        name: &str,
        created: bool,
        deleted: bool,
        create: Option<i64>,
        prev: i64,
        lease: i64,
        value: Option<&str>,
    ) -> i64 {
        let sql = "INSERT INTO kine (name, created, deleted, create_revision, prev_revision, lease, value) VALUES (?, ?, ?, ?, ?, ?, ?)";
        let value = value.map(str::as_bytes);
        self.conn.execute(sql, params![name, created, deleted, create, prev, lease, value]).unwrap();
        self.conn.last_insert_rowid()
    }

    fn newest(&self, name: &str) -> (i64, i64, bool) {
        let sql = "SELECT id, coalesce(nullif(create_revision, 0), id), deleted FROM kine WHERE name = ? ORDER BY id DESC LIMIT 1";
        self.conn.query_row(sql, [name], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap_or((0, 0, true))
    }

    fn put(&self, name: &str, value: &str) -> i64 {
        let (id, create, deleted) = self.newest(name);
        self.row(name, deleted, false, (!deleted).then_some(create), id, 0, Some(value))
    }

    fn delete(&self, name: &str) -> i64 {
        let (id, create, _) = self.newest(name);
        self.row(name, false, true, Some(create), id, 0, Some("what was there"))
    }

    fn compact(&self, rev: i64) {
        let sql = "DELETE FROM kine WHERE id IN (SELECT prev_revision FROM kine WHERE name != 'compact_rev_key' AND prev_revision != 0 \
            AND id <= ?1 UNION SELECT id FROM kine WHERE deleted != 0 AND id <= ?1)";
        self.conn.execute(sql, [rev]).unwrap();
        self.conn.execute("UPDATE kine SET prev_revision = ? WHERE name = 'compact_rev_key'", [rev]).unwrap();
    }

    fn content(&self, depth: Depth) -> (Content, Option<String>) {
        kine::content(&self.path, depth).unwrap()
    }
}

async fn store(content: Content, dir: &Path) -> SqliteStore {
    let place = dir.to_owned();
    tokio::task::spawn_blocking(move || sqlite::seed(&place, content)).await.unwrap().unwrap();
    SqliteStore::open(dir, Options::default()).unwrap()
}

async fn all(store: &dyn Store, revision: Revision) -> Vec<(String, String, Revision, Revision, i64)> {
    let all = store.range(RangeRequest { revision, ..RangeRequest::new(KeyRange::prefix("/")) }).await.unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let line = |kv: &KeyValue| (text(&kv.key), text(&kv.value), kv.create_revision, kv.mod_revision, kv.version);
    all.kvs.iter().map(line).collect()
}

fn line(key: &str, value: &str, created: i64, modified: i64, version: i64) -> (String, String, i64, i64, i64) {
    (key.into(), value.into(), created, modified, version)
}

/// Two keys and their history, revisions 2 to 9, with a filler at 6.
fn filled(journal: &str) -> Kine {
    let k = Kine::new(journal);
    assert_eq!([k.put("/a", "a2"), k.put("/b", "b3"), k.put("/a", "a4"), k.delete("/b")], [2, 3, 4, 5]);
    k.row("gap-6", false, true, None, 0, 0, None);
    assert_eq!(
        [k.put("/b", "b7"), k.put("/a", "a8"), k.row("/event", true, false, None, 0, 3600, Some("e9"))],
        [7, 8, 9]
    );
    k
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_comes_along() {
    for journal in ["WAL", "DELETE"] {
        let (kine, dir) = (filled(journal), tempfile::tempdir().unwrap());
        // Open for writing meanwhile, as k3s has it: one moment is read.
        let (content, left) = kine.content(Depth::History);
        kine.put("/later", "x");
        assert_eq!((left, content.keys), (None, 3));
        let store = store(content, dir.path()).await;
        assert_eq!(store.revisions().await.unwrap(), (9, 1));
        let now = [line("/a", "a8", 2, 8, 3), line("/b", "b7", 7, 7, 1), line("/event", "e9", 9, 9, 1)];
        assert_eq!(all(&store, 0).await, now);
        assert_eq!(all(&store, 4).await, [line("/a", "a4", 2, 4, 2), line("/b", "b3", 3, 3, 1)]);
        assert_eq!(all(&store, 6).await, [line("/a", "a4", 2, 4, 2)]);
        let mut watch = store.watch(WatchRequest { range: KeyRange::prefix("/"), start: 2 }).await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < 7 {
            let WatchMessage::Events(revision, events) = watch.receiver.recv().await.unwrap().unwrap() else {
                continue;
            };
            seen.extend(events.iter().map(|e| (revision, e.kind, e.prev.as_ref().map_or(0, |p| p.mod_revision))));
        }
        let (put, delete) = (EventKind::Put, EventKind::Delete);
        let want = [(2, put, 0), (3, put, 0), (4, put, 2), (5, delete, 3), (7, put, 0), (8, put, 4), (9, put, 0)];
        assert_eq!(seen, want, "a watch from the start sees kine's history");
        let lease = store.lease_status(3600).await.unwrap();
        assert_eq!((lease.granted_ttl, lease.keys), (3600, vec!["/event".into()]));
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_history_begins_there() {
    let (kine, dir) = (filled("WAL"), tempfile::tempdir().unwrap());
    kine.compact(7);
    let (content, left) = kine.content(Depth::History);
    assert_eq!((left, content.keys), (None, 3));
    let store = store(content, dir.path()).await;
    assert_eq!(store.revisions().await.unwrap(), (9, 7));
    // Versions are counted from where the history begins.
    assert_eq!(all(&store, 7).await, [line("/a", "a4", 2, 4, 2), line("/b", "b7", 7, 7, 1)]);
    assert_eq!(all(&store, 0).await[0], line("/a", "a8", 2, 8, 3));
    let watch = store.watch(WatchRequest { range: KeyRange::prefix("/"), start: 6 }).await;
    assert!(matches!(watch, Err(StoreError::Compacted { .. })));
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_does_not_fit_together_is_left_behind() {
    let breaks: [(&str, &str); 3] = [
        ("DELETE FROM kine WHERE id = 4", "row 8 of /a follows row 4"),
        ("DELETE FROM kine WHERE id = 5", "row 7 creates /b"),
        ("DELETE FROM kine WHERE id = 3", "row 5 changes /b, which is not there"),
    ];
    for (damage, why) in breaks {
        let (kine, dir) = (filled("WAL"), tempfile::tempdir().unwrap());
        kine.conn.execute_batch(damage).unwrap();
        let (content, left) = kine.content(Depth::History);
        assert!(left.as_ref().is_some_and(|l| l.contains(why)), "{left:?}");
        assert_eq!(content.keys, 3);
        let store = store(content, dir.path()).await;
        assert_eq!(store.revisions().await.unwrap(), (9, 9));
        let now = [line("/a", "a8", 2, 8, 2), line("/b", "b7", 7, 7, 1), line("/event", "e9", 9, 9, 1)];
        assert_eq!(all(&store, 0).await, now);
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_are_not_handed_out_again() {
    let (kine, dir) = (filled("WAL"), tempfile::tempdir().unwrap());
    kine.delete("/event");
    kine.compact(10);
    let (content, _) = kine.content(Depth::Newest);
    assert_eq!((content.export.revision, content.export.compacted, content.keys), (10, 10, 2));
    let store = store(content, dir.path()).await;
    let txn = Txn { success: vec![Op::put("/new", "x")], ..Default::default() };
    assert_eq!(store.txn(txn).await.unwrap().revision, 11);
    store.close().await.unwrap();
}

#[test]
fn what_is_no_database_of_kine_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.db");
    let failure = || isopod_base::errors::Chain(&kine::content(&path, Depth::History).err().unwrap()).to_string();
    assert!(failure().contains("cannot read") && failure().contains("other.db"), "{}", failure());
    assert!(!path.exists(), "looking makes nothing");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (id INTEGER)").unwrap();
    assert!(failure().contains("other.db is no database of kine's: it has no table `kine`"), "{}", failure());
    std::fs::write(&path, "not a database at all, however one looks at it").unwrap();
    assert!(failure().contains("other.db"), "{}", failure());
}
