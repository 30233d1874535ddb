//! Opens the database file: its settings, its tables, its format version.

use super::files::{Files, Found};
use super::queries::failed;
use super::{draft, migrate};
use crate::{Options, Result, StoreError};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// "ISOP": tells our files from other SQLite files.
pub(crate) const APPLICATION_ID: i32 = 0x4953_4f50;
/// How long a statement waits for the lock of another connection.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Raised when the tables change shape. 3: checksums on rows and pages. 4: the index may be behind the log.
pub(crate) const FORMAT: u32 = 4;
/// The oldest that is read as it is.
const READ: u32 = 3;

/// `sum` is the row's checksum, see `sums.rs`.
pub(crate) const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID, STRICT;
-- Values stand last: a look at the small columns does not read overflow pages.
CREATE TABLE log (
  id INTEGER PRIMARY KEY, prev INTEGER NOT NULL, kind INTEGER NOT NULL, created INTEGER NOT NULL,
  version INTEGER NOT NULL, lease INTEGER NOT NULL, sum INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL
) STRICT;
CREATE TABLE newest (
  key BLOB PRIMARY KEY, id INTEGER NOT NULL, live INTEGER NOT NULL, lease INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
CREATE INDEX newest_lease ON newest (lease) WHERE lease <> 0;
CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL, ephemeral INTEGER NOT NULL, sum INTEGER NOT NULL) STRICT;
CREATE TABLE ephemeral (
  key BLOB PRIMARY KEY, modified INTEGER NOT NULL, created INTEGER NOT NULL, version INTEGER NOT NULL,
  lease INTEGER NOT NULL, sum INTEGER NOT NULL, value BLOB NOT NULL
) WITHOUT ROWID, STRICT;
CREATE TABLE class (prefix BLOB PRIMARY KEY, sum INTEGER NOT NULL) WITHOUT ROWID, STRICT;
CREATE TABLE setting (name TEXT PRIMARY KEY, sum INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID, STRICT;
";

/// The writer's connection or one of the readers'. `cache_kib` bounds its page cache; the kernel's does the rest.
pub(crate) fn connect(path: &Path, options: &Options, cache_kib: u32, writer: bool) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<Connection> {
        let vfs = isopod_sys::sqlite::checked_vfs(options.vfs.as_deref())?;
        let conn = Connection::open_with_flags_and_vfs(path, flags, vfs)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        // The writer alone decides whether the log may be emptied into the file when the store closes.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !writer)?;
        // FULL: the log is synced at every commit; with NORMAL a power cut loses acknowledged writes.
        // Checkpoints are started by the writer alone, beside the commits and not inside them.
        conn.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;
             PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -{cache_kib}; PRAGMA temp_store = MEMORY;"
        ))?;
        conn.set_prepared_statement_cache_capacity(32);
        // One plan a statement: without this, a statement whose parameters might tell the planner something is prepared anew
        // each time it is bound, and every get and put is.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        Ok(conn)
    };
    open().map_err(failed("open the database"))
}

/// What a connection's page cache holds at least, in KiB.
#[derive(Clone, Copy)]
pub(crate) enum CacheOf {
    Writer,
    Reader,
}

/// Room for the inner pages of both trees, of which there is about one for three hundred pages, and for some others: a look-up
/// then reads one page of each tree. The kernel's cache does the rest.
pub(crate) fn cache_kib(of: CacheOf, pages: usize) -> u32 {
    let kib = match of {
        CacheOf::Writer => (pages / 32).clamp(2048, 16 << 10),
        CacheOf::Reader => (pages / 64).clamp(256, 8 << 10),
    };
    kib as u32
}

pub(crate) fn set_cache(conn: &Connection, kib: u32) -> Result<()> {
    conn.pragma_update(None, "cache_size", -i64::from(kib)).map_err(failed("size the page cache"))
}

pub(crate) fn page_count(conn: &Connection) -> Result<usize> {
    let count = conn.query_row("PRAGMA page_count", [], |r| r.get::<_, i64>(0));
    count.map(|n| n as usize).map_err(failed("read the database's size"))
}

/// Opens a database of a format before 3.
pub(crate) fn connect_unchecked(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags).map_err(failed("open the old database"))
}

/// Sees to it that there is a database of this format: makes a new one, brings an older one up to date, refuses one of another
/// program or a newer version, and one whose write-ahead log is damaged.
pub(crate) fn prepare(files: &Files, same_boot: bool, vfs: Option<&str>) -> Result<()> {
    files.settle()?;
    let found = files.found()?;
    let log = super::wal::examine(files, same_boot)?;
    if log.is_damaged() {
        return Err(StoreError::Corrupt(log.describe()));
    }
    match found {
        Found::Nothing => draft::Draft::begin(files, vfs)?.finish(),
        Found::Unchecked => migrate::migrate(files),
        Found::Checked => Ok(()),
    }
}

/// Refuses a database of another format than this one.
pub(crate) fn check_format(conn: &Connection, dir: &Path) -> Result<()> {
    match format(conn)? {
        Some(READ..=FORMAT) => Ok(()),
        found => Err(wrong_format(dir, found)),
    }
}

/// Says in an open transaction that no older version may use the database.
pub(crate) fn stamp(conn: &Connection) -> Result<()> {
    if format(conn)? == Some(FORMAT) {
        return Ok(());
    }
    conn.pragma_update(None, "user_version", FORMAT).map_err(failed("bring the database's format up to date"))
}

/// The version of the format; `None`: it is of another program.
pub(crate) fn format(conn: &Connection) -> Result<Option<u32>> {
    let number =
        |pragma: &str| conn.query_row(pragma, [], |r| r.get::<_, i64>(0)).map_err(failed("read the database's format"));
    let ours = number("PRAGMA application_id")? == i64::from(APPLICATION_ID);
    let version = number("PRAGMA user_version")?;
    Ok(u32::try_from(version).ok().filter(|_| ours))
}

pub(crate) fn wrong_format(dir: &Path, found: Option<u32>) -> StoreError {
    let found = found.map_or_else(|| "of another program".to_owned(), |v| v.to_string());
    StoreError::Format { dir: dir.display().to_string(), found, supported: FORMAT }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::StatementStatus;

    #[test]
    fn statements_are_prepared_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        prepare(&files, true, None).unwrap();
        let conn = connect(&files.database, &Options::default(), 64, true).unwrap();
        let get = "SELECT l.id, l.value FROM newest n CROSS JOIN log l ON l.id = n.id WHERE n.key = ?1 AND n.live";
        let mut statement = conn.prepare(get).unwrap();
        for key in ["a", "b", "c"] {
            assert!(!statement.exists([key.as_bytes()]).unwrap());
        }
        assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
    }
}
