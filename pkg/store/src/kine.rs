//! Databases of kine on SQLite, where k3s keeps its state, read as what they mean in etcd's model.
//!
//! A row's id is a revision. Rows up to the compacted revision are what was left then; those after it are the history. kine
//! counts no versions and has no leases: it writes down how long a key lives, so all keys with one lifetime share a lease here.
//!
//! Invariants: the database is only read, at one moment; a history that does not follow from itself is not passed on.

use crate::archive::{Content, Depth, State, start_thread};
use crate::*;
use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Entries handed on at a time.
const PART: usize = 256;

/// Rows that are kine's own business: where its compaction stands, and fillers of revisions that were never written.
const KEYS: &str = "name NOT IN ('compact_rev_key', 'compact_rev_key_apiserver') AND substr(name, 1, 4) <> 'gap-'";

/// What the database at `path` holds. A history that does not fit together is left out, and why is said.
pub fn content(path: &Path, depth: Depth) -> Result<(Content, Option<String>)> {
    let conn = connect(path)?;
    let header = header(&conn).map_err(|e| cannot(path, e))?;
    let Some(header) = header else {
        let why = std::io::Error::new(std::io::ErrorKind::InvalidData, "it has no table `kine`");
        let context = format!("{} is no database of kine's", path.display());
        return Err(StoreError::Backend { context, source: Arc::new(why) });
    };
    let mut broken = None;
    let keys = match depth {
        Depth::Newest => header.keys,
        Depth::History => {
            let (keys, found) = follow(&conn, header.compacted).map_err(|e| cannot(path, e))?;
            broken = found;
            if broken.is_some() { header.keys } else { keys }
        }
    };
    let depth = if broken.is_some() { Depth::Newest } else { depth };
    let compacted = if depth == Depth::Newest { header.revision } else { header.compacted };
    let (sender, entries) = mpsc::channel(2);
    let place = path.to_owned();
    let revision = header.revision;
    start_thread("kine-content", move || {
        if let Err(e) = send(&conn, revision, depth, &sender) {
            let _ = sender.blocking_send(Err(cannot(&place, e)));
        }
    })?;
    let state = State { leases: header.lifetimes, ..State::default() };
    let export = Export { revision, compacted, entries };
    Ok((Content { state, reserved: 0, keys, export }, broken))
}

fn cannot(path: &Path, source: rusqlite::Error) -> StoreError {
    StoreError::Backend { context: format!("cannot read {}", path.display()), source: Arc::new(source) }
}

/// Begins to read: from here on the connection shows one moment. Safe beside a running k3s, whose file this changes nothing
/// of.
fn connect(path: &Path) -> Result<Connection> {
    let open = || -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(Duration::from_secs(10))?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        conn.execute_batch("BEGIN")?;
        Ok(conn)
    };
    open().map_err(|e| cannot(path, e))
}

struct Head {
    revision: Revision,
    compacted: Revision,
    keys: u64,
    /// Each is a lease's id and its TTL at once, as kine itself answers.
    lifetimes: std::collections::BTreeMap<LeaseId, i64>,
}

/// `None`: it has no such table.
fn header(conn: &Connection) -> rusqlite::Result<Option<Head>> {
    let number = |sql: &str| conn.query_row(sql, [], |r| r.get::<_, Option<i64>>(0)).map(Option::unwrap_or_default);
    if number("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'kine'")? == 0 {
        return Ok(None);
    }
    let given = conn.query_row("SELECT seq FROM sqlite_sequence WHERE name = 'kine'", [], |r| r.get::<_, i64>(0));
    let newest = "id IN (SELECT max(id) FROM kine GROUP BY name)";
    let mut lifetimes = conn.prepare("SELECT DISTINCT lease FROM kine WHERE lease > 0")?;
    Ok(Some(Head {
        // A row that was deleted as the newest has had its revision all the same.
        revision: number("SELECT max(id) FROM kine")?.max(given.optional()?.unwrap_or(0)).max(1),
        compacted: number("SELECT max(prev_revision) FROM kine WHERE name = 'compact_rev_key'")?,
        keys: number(&format!("SELECT count(*) FROM kine WHERE {KEYS} AND deleted = 0 AND {newest}"))? as u64,
        lifetimes: lifetimes.query_map([], |r| Ok((r.get(0)?, r.get(0)?)))?.collect::<rusqlite::Result<_>>()?,
    }))
}

/// A row without its value.
struct Change {
    id: Revision,
    key: String,
    created: bool,
    deleted: bool,
    create_revision: Revision,
    previous: Revision,
    lease: LeaseId,
}

const CHANGE: &str = "id, name, created <> 0, deleted <> 0, coalesce(create_revision, 0), coalesce(prev_revision, 0), \
                      coalesce(lease, 0)";

impl Change {
    fn of(row: &Row<'_>) -> rusqlite::Result<Change> {
        Ok(Change {
            id: row.get(0)?,
            key: row.get(1)?,
            created: row.get(2)?,
            deleted: row.get(3)?,
            create_revision: row.get(4)?,
            previous: row.get(5)?,
            lease: row.get(6)?,
        })
    }
}

/// A key that is there.
struct Live {
    modified: Revision,
    created: Revision,
    version: i64,
}

/// The keys after each row.
#[derive(Default)]
struct Replay {
    live: HashMap<String, Live>,
}

impl Replay {
    /// What is wrong with this row after those before it.
    fn objection(&self, row: &Change, compacted: Revision) -> Option<String> {
        if row.id <= compacted {
            return None;
        }
        let Change { id, key, .. } = row;
        match (self.live.get(key), row.created) {
            (Some(_), true) => Some(format!("row {id} creates {key}, which is there already")),
            (None, false) => Some(format!("row {id} changes {key}, which is not there")),
            (Some(now), false) if now.modified != row.previous => Some(format!(
                "row {id} of {key} follows row {}, and the one before it is {}",
                row.previous, now.modified
            )),
            _ => None,
        }
    }

    /// Takes a row in. `None`: it deletes its key.
    fn apply(&mut self, row: &Change) -> Option<&Live> {
        if row.deleted {
            self.live.remove(&row.key);
            return None;
        }
        let before = self.live.get(&row.key).filter(|_| !row.created);
        // Where the creation is not known any more, neither is how many changes there were: at least one.
        let version = if row.created { 1 } else { before.map_or(1, |b| b.version) + 1 };
        let stated = if row.created || row.create_revision <= 0 { row.id } else { row.create_revision };
        let created = before.map_or(stated, |b| b.created);
        let live = Live { modified: row.id, created, version };
        Some(self.live.entry(row.key.clone()).insert_entry(live).into_mut())
    }
}

/// Looks whether the history follows from itself: how many keys there are at its end, and the first thing that is wrong.
fn follow(conn: &Connection, compacted: Revision) -> rusqlite::Result<(u64, Option<String>)> {
    let mut replay = Replay::default();
    let mut statement = conn.prepare(&format!("SELECT {CHANGE} FROM kine WHERE {KEYS} ORDER BY id"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let change = Change::of(row)?;
        if let Some(why) = replay.objection(&change, compacted) {
            return Ok((0, Some(why)));
        }
        replay.apply(&change);
    }
    Ok((replay.live.len() as u64, None))
}

/// Sends the entries, on a thread that may wait for who takes them.
fn send(
    conn: &Connection,
    through: Revision,
    depth: Depth,
    out: &mpsc::Sender<Result<Vec<HistoryEntry>>>,
) -> rusqlite::Result<()> {
    let which = match depth {
        Depth::History => "",
        Depth::Newest => "AND deleted = 0 AND id IN (SELECT max(id) FROM kine GROUP BY name)",
    };
    let sql = format!("SELECT {CHANGE}, value FROM kine WHERE {KEYS} AND id <= ?1 {which} ORDER BY id");
    let mut statement = conn.prepare(&sql)?;
    let mut rows = statement.query([through])?;
    let mut replay = Replay::default();
    let mut part = Vec::new();
    while let Some(row) = rows.next()? {
        let change = Change::of(row)?;
        let live = replay.apply(&change).map(|live| (live.created, live.version));
        if depth == Depth::Newest {
            // Each key comes once.
            replay.live.clear();
        }
        let key = Bytes::from(change.key.into_bytes());
        let value = match row.get_ref(7)?.as_bytes_or_null()? {
            Some(value) => Bytes::copy_from_slice(value),
            None => Bytes::new(),
        };
        let kv = live.map(|(create_revision, version)| KeyValue {
            key: key.clone(),
            value,
            create_revision,
            mod_revision: change.id,
            version,
            lease: change.lease.max(0),
        });
        part.push(HistoryEntry { revision: change.id, sub: 0, key, kv });
        if part.len() == PART && out.blocking_send(Ok(std::mem::take(&mut part))).is_err() {
            return Ok(());
        }
    }
    let _ = out.blocking_send(Ok(part));
    Ok(())
}
