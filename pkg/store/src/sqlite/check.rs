//! Looks for damage in a database: every row, with the pages that it lies on, and whether log and index say the same.
//!
//! In small steps, each a read of its own: a long one would keep the write-ahead log from being emptied.

use super::files::{Files, Found};
use super::lock::DirectoryLock;
use super::newest;
use super::pages::Pages;
use super::queries::{self, Stored, damaged, failed, row_revision, select, stored};
use super::reader::Readers;
use super::{schema, wal};
use crate::{Options, Result, StoreError};
use rusqlite::{Connection, OptionalExtension, params};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows in a step.
const STEP: usize = 256;
const CACHE_KIB: u32 = 2048;
/// Of this many parts of the time, one is spent on it.
const SHARE: u32 = 5;

/// Where a check goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// At the tables that are read whole at every start.
    #[default]
    Small,
    /// At the first row of the log with a greater id.
    Log(i64),
    /// At the first key from this on.
    Newest(Vec<u8>),
    Leases,
}

/// Starts it beside the work, after an end that was not a clean one. What it finds is known to the store from then on.
pub(crate) fn start(runtime: &tokio::runtime::Handle, readers: &Arc<Readers>) {
    let readers = Arc::downgrade(readers);
    runtime.spawn(async move {
        let mut place = Some(Place::default());
        while let Some(from) = place {
            // It does not keep a dropped store open.
            let Some(readers) = readers.upgrade() else { return };
            let began = Instant::now();
            let step = readers.run(move |conn| step(conn, from)).await;
            drop(readers);
            place = match step {
                Ok(next) => next,
                Err(StoreError::Closed | StoreError::Corrupt(_)) => return,
                Err(e) => {
                    tracing::warn!(error = %isopod_base::errors::Chain(&e), "the database was not checked");
                    return;
                }
            };
            tokio::time::sleep((began.elapsed() * SHARE).min(Duration::from_secs(1))).await;
        }
        tracing::info!("the last end was not a clean one; the database was checked and is whole");
    });
}

fn step(conn: &Connection, from: Place) -> Result<Option<Place>> {
    let transaction = conn.unchecked_transaction().map_err(failed("begin to read"))?;
    let next = match from {
        Place::Small => small_tables(conn).map(|()| Some(Place::Log(i64::MIN))),
        Place::Log(after) => log_rows(conn, after).map(|last| Some(last.map_or(Place::Newest(Vec::new()), Place::Log))),
        Place::Newest(from) => newest_rows(conn, &from).map(|next| Some(next.map_or(Place::Leases, Place::Newest))),
        Place::Leases => lease_index(conn).map(|()| None),
    };
    drop(transaction);
    next
}

fn small_tables(conn: &Connection) -> Result<()> {
    queries::all_meta(conn)?;
    queries::settings(conn)?;
    queries::classes(conn)?;
    queries::leases(conn)?;
    queries::all_ephemeral(conn).map(drop)
}

/// Returns the last id that it looked at; `None`: there was none left.
fn log_rows(conn: &Connection, after: i64) -> Result<Option<i64>> {
    let compacted = queries::meta(conn, "compacted")?.unwrap_or(0);
    let indexed = newest::seen(conn)?.indexed;
    let run = || -> rusqlite::Result<Option<i64>> {
        let sql = select("l.key", &format!("FROM log l WHERE l.id > ?1 ORDER BY l.id LIMIT {STEP}"));
        let mut statement = conn.prepare_cached(&sql)?;
        let mut newest = conn.prepare_cached("SELECT id FROM newest WHERE key = ?1")?;
        let mut is_there = conn.prepare_cached("SELECT 1 FROM log WHERE id = ?1")?;
        let mut rows = statement.query([after])?;
        let mut last = None;
        while let Some(row) = rows.next()? {
            let row = stored(row, true)?;
            let key = || row.kv.key.escape_ascii();
            let newest: Option<i64> = newest.query_row([&row.kv.key[..]], |r| r.get(0)).optional()?;
            if row.id <= indexed && newest.is_none_or(|newest| newest < row.id) {
                return Err(damaged(format!("the index of the newest rows does not have that of key {}", key())));
            }
            if row.prev != 0 && row_revision(row.prev) >= compacted && !is_there.exists([row.prev])? {
                return Err(damaged(format!(
                    "the row of key {} before revision {} is not there",
                    key(),
                    row_revision(row.id)
                )));
            }
            last = Some(row.id);
        }
        Ok(last)
    };
    run().map_err(failed("check the history"))
}

/// Returns the first key that it has not looked at.
fn newest_rows(conn: &Connection, from: &[u8]) -> Result<Option<Vec<u8>>> {
    let run = || -> rusqlite::Result<Option<Vec<u8>>> {
        let rest =
            ", n.live, n.lease FROM newest n LEFT JOIN log l ON l.id = n.id WHERE n.key >= ?1 ORDER BY n.key LIMIT ?2";
        let sql = select("n.key", rest);
        let mut statement = conn.prepare_cached(&sql)?;
        let mut rows = statement.query(params![from, STEP as i64 + 1])?;
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            seen += 1;
            if seen > STEP {
                return Ok(Some(row.get(7)?));
            }
            let Stored { put, kv, .. } = stored(row, false)?;
            if put != row.get::<_, bool>(9)? || kv.lease != row.get::<_, i64>(10)? {
                return Err(damaged(format!(
                    "the index of the newest rows is wrong about key {}",
                    kv.key.escape_ascii()
                )));
            }
        }
        Ok(None)
    };
    run().map_err(failed("check the newest rows"))
}

/// Is every key that ends with a lease found by it?
fn lease_index(conn: &Connection) -> Result<()> {
    let run = || -> rusqlite::Result<()> {
        let count = |sql: &str| conn.query_row(sql, [], |r| r.get::<_, i64>(0));
        let leased = count("SELECT count(*) FROM newest NOT INDEXED WHERE lease <> 0")?;
        if leased != count("SELECT count(*) FROM newest INDEXED BY newest_lease WHERE lease <> 0")? {
            return Err(damaged("the index of keys by lease is wrong".to_owned()));
        }
        Ok(())
    };
    run().map_err(failed("check the leases' keys"))
}

/// Looks at a database that no process has open, and says all damage to its pages, else the first that its rows show. Nothing:
/// it is whole. Fails with [`StoreError::InUse`] while a process has it open.
pub fn check(dir: impl AsRef<Path>) -> Result<Vec<String>> {
    let files = Files::of(dir.as_ref());
    let lock = DirectoryLock::take(dir.as_ref())?;
    files.settle()?;
    damage_in(&files, lock.same_boot)
}

pub(crate) fn damage_in(files: &Files, same_boot: bool) -> Result<Vec<String>> {
    let mut damage = Vec::new();
    let found = noted(files.found(), &mut damage)?;
    let log = wal::examine(files, same_boot)?;
    if log.is_damaged() {
        damage.push(log.describe());
    }
    if found == Some(Found::Unchecked) {
        // Only what SQLite finds by itself.
        noted(structure(&schema::connect_unchecked(&files.database)?), &mut damage)?;
        return Ok(damage);
    }
    let pages = Pages::open(files, &log)?.damaged()?;
    damage.extend(pages.into_iter().map(|page| format!("page {page} does not match its checksum")));
    if damage.is_empty() && found == Some(Found::Checked) {
        noted(rows_of(files), &mut damage)?;
    }
    Ok(damage)
}

/// Takes an error that tells of damage for a finding.
fn noted<T>(result: Result<T>, damage: &mut Vec<String>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(StoreError::Corrupt(text)) => {
            damage.push(text);
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// What SQLite and the rows themselves say.
fn rows_of(files: &Files) -> Result<()> {
    // As a reader: a check changes nothing.
    let conn = schema::connect(&files.database, &Options::default(), CACHE_KIB, false)?;
    schema::check_format(&conn, &files.dir)?;
    structure(&conn)?;
    let mut place = Some(Place::default());
    while let Some(from) = place {
        place = step(&conn, from)?;
    }
    Ok(())
}

fn structure(conn: &Connection) -> Result<()> {
    let run = || conn.query_row("PRAGMA quick_check(1)", [], |r| r.get::<_, String>(0));
    match run().map_err(failed("check the database"))? {
        ok if ok == "ok" => Ok(()),
        text => Err(StoreError::Corrupt(text)),
    }
}
