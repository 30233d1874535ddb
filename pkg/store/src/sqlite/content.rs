//! A whole database read, beside the process that has it open or after it; and a new one made of a store's content.
//!
//! Invariants: reading takes no lock on the directory, writes nothing but what SQLite itself shares between its readers, and
//! shows one moment. Ephemeral keys are in it as they were flushed last. A new database is made where there is none, and
//! is only whole when [`seed`] has returned.

use super::backend::alarm_name;
use super::draft::Draft;
use super::files::Files;
use super::newest;
use super::queries::{self, failed};
use super::reader::send_entries;
use super::schema;
use crate::archive::{Content, Places, State, start_thread};
use crate::*;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Entries in a SQL transaction of [`seed`].
const BATCH: usize = 4096;
/// For the inner pages of the index, which keys reach in no order.
const SEED_CACHE_KIB: u32 = 32 << 10;

/// Is there a database in this directory?
pub fn exists(dir: &Path) -> bool {
    Files::of(dir).database.exists()
}

/// What the database in `dir` holds now. Its thread ends with the last entry, or when nobody takes them any more.
pub fn content(dir: &Path) -> Result<Content> {
    let conn = connect(dir)?;
    conn.execute_batch("BEGIN").map_err(failed("begin to read"))?;
    let mut kept = queries::all_ephemeral(&conn)?;
    kept.sort_by(|a, b| (a.mod_revision, &a.key).cmp(&(b.mod_revision, &b.key)));
    let keys = newest::count(&conn, &KeyRange::prefix(""), &newest::unindexed(&conn)?)? + kept.len() as u64;
    let compacted = queries::meta(&conn, "compacted")?.unwrap_or(0);
    let clean = queries::meta(&conn, "clean")?;
    let reserved = if clean.is_some() { None } else { queries::meta(&conn, "reserved")? };
    let seen = [Some(queries::last_revision(&conn)?), kept.last().map(|kv| kv.mod_revision), clean, Some(compacted)];
    let revision = seen.into_iter().flatten().max().unwrap_or(0).max(queries::meta(&conn, "base")?.unwrap_or(1));
    let state = state(&conn)?;
    let (sender, entries) = mpsc::channel(2);
    let kept = kept.into_iter().map(|kv| HistoryEntry {
        revision: kv.mod_revision,
        sub: 0,
        key: kv.key.clone(),
        kv: Some(kv),
    });
    let kept: Vec<HistoryEntry> = kept.collect();
    start_thread("store-content", move || {
        if let Err(e) = send_entries(&conn, kept, &sender) {
            let _ = sender.blocking_send(Err(e));
        }
    })?;
    let reserved = reserved.unwrap_or(0);
    Ok(Content { state, reserved, keys, export: Export { revision, compacted, entries } })
}

fn state(conn: &Connection) -> Result<State> {
    let mut state = State { settings: queries::settings(conn)?, ..State::default() };
    state.leases = queries::leases(conn)?.into_iter().map(|(id, ttl, _)| (id, ttl)).collect();
    for alarm in [Alarm::NoSpace, Alarm::Corrupt] {
        if queries::meta(conn, alarm_name(alarm))?.is_some() {
            state.alarms.insert(alarm);
        }
    }
    Ok(state)
}

/// For reading alone. The write-ahead log stays as it is when this connection closes, whoever else has it open.
fn connect(dir: &Path) -> Result<Connection> {
    let path = Files::of(dir).database;
    let open = |checked: bool| -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = match checked {
            true => Connection::open_with_flags_and_vfs(&path, flags, isopod_sys::sqlite::checked_vfs(None)?)?,
            false => Connection::open_with_flags(&path, flags)?,
        };
        conn.busy_timeout(Duration::from_secs(5))?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(conn)
    };
    let conn = open(true).map_err(failed("open the database"))?;
    match schema::check_format(&conn, dir) {
        Ok(()) => Ok(conn),
        // What has no checksums is not damaged for that.
        Err(damage @ StoreError::Corrupt(_)) => {
            let plain = open(false).map_err(failed("open the database"))?;
            Err(schema::check_format(&plain, dir).err().unwrap_or(damage))
        }
        Err(e) => Err(e),
    }
}

/// Makes the database of `dir`, which must have none, from a store's content. Runs on a thread that may wait. Nobody else
/// may know the directory yet.
pub fn seed(dir: &Path, mut content: Content) -> Result<()> {
    let cannot = |e| StoreError::Backend { context: format!("cannot create {}", dir.display()), source: Arc::new(e) };
    std::fs::create_dir_all(dir).map_err(cannot)?;
    if exists(dir) {
        return Err(cannot(std::io::Error::from(std::io::ErrorKind::AlreadyExists)));
    }
    let files = Files::of(dir);
    let draft = Draft::begin(&files, None)?;
    let conn = &draft.conn;
    conn.execute_batch(&format!("PRAGMA cache_size = -{SEED_CACHE_KIB}")).map_err(failed("make a new database"))?;
    let mut places = Places::default();
    let mut written = 0;
    while let Some(part) = content.export.entries.blocking_recv() {
        for entry in part? {
            let sub = places.next(&entry);
            queries::append(conn, entry.revision, sub, &entry.into_event())?;
            written += 1;
            if written % BATCH == 0 {
                conn.execute_batch("COMMIT; BEGIN").map_err(failed("commit"))?;
            }
        }
    }
    seed_state(conn, &content)?;
    draft.finish()
}

fn seed_state(conn: &Connection, content: &Content) -> Result<()> {
    queries::set_meta(conn, "base", content.export.revision)?;
    if content.export.compacted > 0 {
        queries::set_meta(conn, "compacted", content.export.compacted)?;
    }
    if content.reserved > 0 {
        queries::set_meta(conn, "reserved", content.reserved)?;
    }
    for (id, ttl) in &content.state.leases {
        queries::put_lease(conn, *id, *ttl, false)?;
    }
    for (name, value) in &content.state.settings {
        queries::set_setting(conn, name, Some(value))?;
    }
    for alarm in &content.state.alarms {
        queries::set_meta(conn, alarm_name(*alarm), 1)?;
    }
    Ok(())
}
