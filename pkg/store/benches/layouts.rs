//! Ways to lay a history of keys out in SQLite, measured: ours (a log that holds each value once, and an index from key to newest
//! row) against kine's single table, a table of current values beside one of history, and one table by key and revision.
//!
//! `cargo bench --profile ci -p isopod-store --bench layouts [keys] [updates]`; 10,000 and 100,000 by default. The same pragmas, the
//! same batches and the same disk for all: it counts bytes and syncs and waits for none, so that times are those of the work.

#![allow(clippy::unwrap_used)]

use isopod_sys::faults::{Counts, Disk};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::path::Path;
use std::time::Instant;

const VALUE: usize = 1024;
/// Puts in a commit: what 64 clients ask for at a time.
const BATCH: usize = 64;
/// Keys in the ranges that are read.
const RANGE: usize = 10_000;

/// A key's newest row.
struct Newest {
    id: i64,
    created: i64,
    version: i64,
}

struct Layout {
    name: &'static str,
    tables: &'static str,
    /// `?1` key → id, created, version, value.
    get: &'static str,
    put: fn(&Connection, i64, &str, &[u8], Option<Newest>) -> rusqlite::Result<()>,
    /// `?1` start, `?2` end → key, id, value in order of the keys.
    list: &'static str,
    /// As `list`, at revision `?3`.
    old: fn(&Connection, &str, &str, i64) -> rusqlite::Result<usize>,
    compact: fn(&Connection, i64) -> rusqlite::Result<()>,
}

const LAYOUTS: [Layout; 4] = [
    Layout {
        name: "log and newest (ours)",
        tables: "CREATE TABLE log (id INTEGER PRIMARY KEY, prev INTEGER NOT NULL, kind INTEGER NOT NULL, created INTEGER NOT NULL,
                   version INTEGER NOT NULL, lease INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL) STRICT;
                 CREATE TABLE newest (key BLOB PRIMARY KEY, id INTEGER NOT NULL, live INTEGER NOT NULL, lease INTEGER NOT NULL)
                   WITHOUT ROWID, STRICT;
                 CREATE INDEX newest_lease ON newest (lease) WHERE lease <> 0;",
        get: "SELECT l.id, l.created, l.version, l.value FROM newest n CROSS JOIN log l ON l.id = n.id WHERE n.key = ?1 AND n.live",
        put: |conn, id, key, value, prev| {
            let (created, version) = prev.as_ref().map_or((id, 1), |p| (p.created, p.version + 1));
            conn.prepare_cached("INSERT INTO log VALUES (?1, ?2, 0, ?3, ?4, 0, ?5, ?6)")?.execute(params![
                id,
                prev.map_or(0, |p| p.id),
                created,
                version,
                key.as_bytes(),
                value
            ])?;
            let point = "INSERT INTO newest VALUES (?1, ?2, 1, 0) ON CONFLICT (key) DO UPDATE SET id = ?2";
            conn.prepare_cached(point)?.execute(params![key.as_bytes(), id]).map(drop)
        },
        list: "SELECT n.key, l.id, l.value FROM newest n CROSS JOIN log l ON l.id = n.id \
               WHERE n.live AND n.key >= ?1 AND n.key < ?2 ORDER BY n.key",
        old: |conn, start, end, at| {
            let mut keys = conn.prepare("SELECT id FROM newest WHERE key >= ?1 AND key < ?2 ORDER BY key")?;
            let mut before = conn.prepare("SELECT prev FROM log WHERE id = ?1")?;
            let mut fetch = conn.prepare("SELECT key, id, value FROM log WHERE id = ?1")?;
            let mut rows = keys.query(params![start.as_bytes(), end.as_bytes()])?;
            let mut read = 0;
            while let Some(row) = rows.next()? {
                let mut id: i64 = row.get(0)?;
                while id > at {
                    id = before.query_row([id], |r| r.get(0)).optional()?.unwrap_or(0);
                }
                if id > 0 {
                    read += fetch.query_row([id], |r| Ok(r.get_ref(2)?.as_blob()?.len()))?;
                }
            }
            Ok(read)
        },
        compact: |conn, to| {
            in_steps(to, |from, through| {
                let drop = "DELETE FROM log WHERE id IN (SELECT prev FROM log WHERE id >= ?1 AND id < ?2 AND prev <> 0)";
                conn.prepare_cached(drop)?.execute([from, through]).map(|_| ())
            })
        },
    },
    Layout {
        name: "kine's table",
        tables: "CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, deleted INTEGER,
                   create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB);
                 CREATE INDEX a ON kine (name);
                 CREATE INDEX b ON kine (name, id);
                 CREATE INDEX c ON kine (id, deleted);
                 CREATE INDEX d ON kine (prev_revision);
                 CREATE UNIQUE INDEX e ON kine (name, prev_revision);
                 CREATE INDEX f ON kine (id, name, prev_revision) WHERE name <> 'compact_rev_key' AND prev_revision <> 0;",
        get: "SELECT id, create_revision, 1, value FROM kine WHERE id = (SELECT max(id) FROM kine WHERE name = ?1) AND deleted = 0",
        put: |conn, id, key, value, prev| {
            let insert = "INSERT INTO kine SELECT ?1, ?2, ?3, 0, ?4, ?5, 0, ?6, (SELECT value FROM kine WHERE id = ?5)";
            let created = prev.as_ref().map_or(0, |p| if p.created == 0 { p.id } else { p.created });
            let before = prev.as_ref().map_or(0, |p| p.id);
            conn.prepare_cached(insert)?.execute(params![id, key, prev.is_none(), created, before, value]).map(drop)
        },
        list: "SELECT k.name, k.id, k.value FROM kine k JOIN (SELECT max(id) AS id FROM kine WHERE name >= ?1 AND name < ?2 \
               GROUP BY name) m ON m.id = k.id WHERE k.deleted = 0 ORDER BY k.name",
        old: |conn, start, end, at| {
            let sql = "SELECT k.name, k.id, k.value FROM kine k JOIN (SELECT max(id) AS id FROM kine WHERE name >= ?1 AND name < ?2 \
                       AND id <= ?3 GROUP BY name) m ON m.id = k.id WHERE k.deleted = 0 ORDER BY k.name";
            read_all(conn, sql, params![start, end, at])
        },
        compact: |conn, to| {
            in_steps(to, |from, through| {
                let drop = "DELETE FROM kine WHERE id IN (SELECT prev_revision FROM kine WHERE name <> 'compact_rev_key' AND \
                            prev_revision <> 0 AND id >= ?1 AND id < ?2)";
                conn.prepare_cached(drop)?.execute([from, through]).map(|_| ())
            })
        },
    },
    Layout {
        name: "current and history",
        tables: "CREATE TABLE current (key BLOB PRIMARY KEY, id INTEGER NOT NULL, created INTEGER NOT NULL, version INTEGER NOT NULL,
                   value BLOB NOT NULL) STRICT;
                 CREATE TABLE history (id INTEGER PRIMARY KEY, prev INTEGER NOT NULL, created INTEGER NOT NULL,
                   version INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL) STRICT;
                 CREATE INDEX history_key ON history (key, id);",
        get: "SELECT id, created, version, value FROM current WHERE key = ?1",
        put: |conn, id, key, value, prev| {
            let (created, version) = prev.as_ref().map_or((id, 1), |p| (p.created, p.version + 1));
            let now = "INSERT INTO current VALUES (?1, ?2, ?3, ?4, ?5) \
                       ON CONFLICT (key) DO UPDATE SET id = ?2, created = ?3, version = ?4, value = ?5";
            conn.prepare_cached(now)?.execute(params![key.as_bytes(), id, created, version, value])?;
            let then = "INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let before = prev.map_or(0, |p| p.id);
            conn.prepare_cached(then)?.execute(params![id, before, created, version, key.as_bytes(), value]).map(drop)
        },
        list: "SELECT key, id, value FROM current WHERE key >= ?1 AND key < ?2 ORDER BY key",
        old: |conn, start, end, at| {
            let sql = "SELECT h.key, h.id, h.value FROM history h JOIN (SELECT max(id) AS id FROM history WHERE key >= ?1 AND \
                       key < ?2 AND id <= ?3 GROUP BY key) m ON m.id = h.id ORDER BY h.key";
            read_all(conn, sql, params![start.as_bytes(), end.as_bytes(), at])
        },
        compact: |conn, to| {
            in_steps(to, |from, through| {
                let drop =
                    "DELETE FROM history WHERE id IN (SELECT prev FROM history WHERE id >= ?1 AND id < ?2 AND prev <> 0)";
                conn.prepare_cached(drop)?.execute([from, through]).map(|_| ())
            })
        },
    },
    Layout {
        name: "by key and revision",
        tables: "CREATE TABLE kv (key BLOB NOT NULL, id INTEGER NOT NULL, created INTEGER NOT NULL, version INTEGER NOT NULL,
                   value BLOB NOT NULL, PRIMARY KEY (key, id)) WITHOUT ROWID, STRICT;
                 CREATE INDEX kv_id ON kv (id);",
        get: "SELECT id, created, version, value FROM kv WHERE key = ?1 ORDER BY id DESC LIMIT 1",
        put: |conn, id, key, value, prev| {
            let (created, version) = prev.map_or((id, 1), |p| (p.created, p.version + 1));
            let insert = "INSERT INTO kv VALUES (?1, ?2, ?3, ?4, ?5)";
            conn.prepare_cached(insert)?.execute(params![key.as_bytes(), id, created, version, value]).map(drop)
        },
        list: "SELECT key, max(id), value FROM kv WHERE key >= ?1 AND key < ?2 GROUP BY key ORDER BY key",
        old: |conn, start, end, at| {
            let sql = "SELECT key, max(id), value FROM kv WHERE key >= ?1 AND key < ?2 AND id <= ?3 GROUP BY key ORDER BY key";
            read_all(conn, sql, params![start.as_bytes(), end.as_bytes(), at])
        },
        compact: |conn, to| {
            in_steps(to, |from, through| {
                // For each row of the step, the one of the same key before it.
                let drop = "DELETE FROM kv WHERE (key, id) IN (SELECT n.key, (SELECT max(o.id) FROM kv o WHERE o.key = n.key AND \
                            o.id < n.id) FROM kv n WHERE n.id >= ?1 AND n.id < ?2)";
                conn.prepare_cached(drop)?.execute([from, through]).map(|_| ())
            })
        },
    },
];

/// Steps of a thousand revisions, as commits of the caller's connection make them.
fn in_steps(to: i64, mut step: impl FnMut(i64, i64) -> rusqlite::Result<()>) -> rusqlite::Result<()> {
    (0..=to).step_by(1000).try_for_each(|from| step(from, (from + 1000).min(to + 1)))
}

fn read_all(conn: &Connection, sql: &str, args: impl rusqlite::Params) -> rusqlite::Result<usize> {
    let mut statement = conn.prepare(sql)?;
    let mut rows = statement.query(args)?;
    let mut read = 0;
    while let Some(row) = rows.next()? {
        read += row.get_ref(2)?.as_blob()?.len();
    }
    Ok(read)
}

fn key(n: usize) -> String {
    format!("/registry/pods/namespace/pod-{n:08}")
}

fn open(dir: &Path, disk: &Disk, layout: &Layout) -> Connection {
    let flags = OpenFlags::default();
    let conn = Connection::open_with_flags_and_vfs(dir.join("layout.db"), flags, disk.name()).unwrap();
    let pragmas = "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -2048;
                   PRAGMA wal_autocheckpoint = 1000; PRAGMA temp_store = MEMORY;";
    conn.execute_batch(pragmas).unwrap();
    conn.execute_batch(layout.tables).unwrap();
    conn.set_prepared_statement_cache_capacity(32);
    conn
}

/// Puts `keys` in batches, each after a look at what stands there; returns the last revision.
fn put_all(conn: &Connection, layout: &Layout, from: i64, keys: impl Iterator<Item = usize>) -> i64 {
    let mut id = from;
    let keys: Vec<usize> = keys.collect();
    for batch in keys.chunks(BATCH) {
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        for n in batch {
            id += 1;
            let key = key(*n);
            let newest = |row: &rusqlite::Row<'_>| {
                row.get_ref(3)?.as_blob()?;
                Ok(Newest { id: row.get(0)?, created: row.get(1)?, version: row.get(2)? })
            };
            let mut get = conn.prepare_cached(layout.get).unwrap();
            // kine's names are text, ours bytes: neither is equal to the other.
            let prev = match layout.tables.contains("TEXT") {
                true => get.query_row([&key], newest),
                false => get.query_row([key.as_bytes()], newest),
            };
            (layout.put)(conn, id, &key, format!("{id:0VALUE$}").as_bytes(), prev.optional().unwrap()).unwrap();
        }
        conn.execute_batch("COMMIT").unwrap();
    }
    id
}

fn time<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64(), result)
}

fn measure(layout: &Layout, keys: usize, updates: usize) {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::register_counter(layout.name, None).unwrap();
    let conn = open(dir.path(), &disk, layout);
    let created = put_all(&conn, layout, 0, 0..keys);
    let before = disk.counts();
    // A step that has no divisor in common with the number of keys visits all of them in turn.
    let scattered = |n: usize| n * 7919 % keys;
    let (puts, newest) = time(|| put_all(&conn, layout, created, (0..updates).map(scattered)));
    let bytes = |a: Counts, b: Counts| (b.bytes - a.bytes) / updates as u64;
    let put_bytes = bytes(before, disk.counts());
    let (start, end) = (key(0), key(RANGE.min(keys)));
    let list = || match layout.tables.contains("TEXT") {
        true => read_all(&conn, layout.list, params![start, end]),
        false => read_all(&conn, layout.list, params![start.as_bytes(), end.as_bytes()]),
    };
    let wanted = RANGE.min(keys) * VALUE;
    assert_eq!(list().unwrap(), wanted);
    let (now, _) = time(|| list().unwrap());
    let (old, read) = time(|| (layout.old)(&conn, &start, &end, created + updates as i64 / 2).unwrap());
    assert_eq!(read, wanted);
    let (compaction, ()) = time(|| (layout.compact)(&conn, newest).unwrap());
    assert_eq!(list().unwrap(), wanted, "{}: what is newest stays", layout.name);
    let in_use = "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_page_size, pragma_freelist_count";
    let size: i64 = conn.query_row(in_use, [], |r| r.get(0)).unwrap();
    println!(
        "| {} | {:.0} | {put_bytes} | {:.1} | {:.1} | {compaction:.1} | {} |",
        layout.name,
        updates as f64 / puts,
        now * 1e3,
        old * 1e3,
        size >> 20,
    );
}

fn main() {
    // cargo adds `--bench`.
    let given: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let (keys, updates) = (given.first().copied().unwrap_or(10_000), given.get(1).copied().unwrap_or(100_000));
    println!("{keys} keys, then {updates} updates of 1 kB, {BATCH} a commit:\n");
    println!(
        "| layout | puts/s | bytes a put | list of 10,000, ms | the same at an old revision, ms | compaction, s | MB after it |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for layout in &LAYOUTS {
        measure(layout, keys, updates);
    }
}
