//! Opens the database file: its settings, its tables, its format version.

use super::queries::failed;
use crate::{Options, Result, StoreError};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// "ISOP": tells our files from other SQLite files.
const APPLICATION_ID: i32 = 0x4953_4f50;
/// How long a statement waits for the lock of another connection.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Raised when the tables change shape.
pub(crate) const FORMAT: u32 = 2;

const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID, STRICT;
-- Values stand last: a look at the small columns does not read overflow pages.
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

/// What each format has beyond the one before, from the second on: how an older database becomes a new one.
const STEPS: [&str; FORMAT as usize - 1] =
    ["CREATE TABLE setting (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID, STRICT;"];

/// The writer's connection, which makes the file, or one of the readers'. `cache_kib` bounds its page cache; the kernel's does
/// the rest.
pub(crate) fn connect(path: &Path, options: &Options, cache_kib: u32, writer: bool) -> Result<Connection> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if writer {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let open = || -> rusqlite::Result<Connection> {
        let conn = match &options.vfs {
            Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs.as_str())?,
            None => Connection::open_with_flags(path, flags)?,
        };
        conn.busy_timeout(BUSY_TIMEOUT)?;
        // The writer alone decides whether the log may be emptied into the file when the store closes.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !writer)?;
        // Pages can be given back to the file system one by one only in a file that was made so, or vacuumed since. In an older
        // one this would be a write.
        if writer && conn.query_row("PRAGMA page_count", [], |r| r.get::<_, i64>(0))? == 0 {
            conn.execute_batch("PRAGMA auto_vacuum = INCREMENTAL")?;
        }
        // FULL: the log is synced at every commit; with NORMAL a power cut loses acknowledged writes.
        // Checkpoints are started by the writer alone, beside the commits and not inside them.
        conn.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;
             PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -{cache_kib}; PRAGMA temp_store = MEMORY;"
        ))?;
        conn.set_prepared_statement_cache_capacity(32);
        Ok(conn)
    };
    open().map_err(failed("open the database"))
}

/// Makes the tables in a new file; refuses a file of another program or version.
pub(crate) fn prepare(conn: &Connection, dir: &Path) -> Result<()> {
    let number =
        |pragma: &str| conn.query_row(pragma, [], |r| r.get::<_, i64>(0)).map_err(failed("read the database's format"));
    let application = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    if tables == 0 && application == 0 && version == 0 {
        let steps = STEPS.concat();
        let create = format!(
            "BEGIN IMMEDIATE; {TABLES} {steps} PRAGMA application_id = {APPLICATION_ID}; \
             PRAGMA user_version = {FORMAT}; COMMIT;"
        );
        return conn.execute_batch(&create).map_err(failed("create the tables"));
    }
    let found = if application == i64::from(APPLICATION_ID) {
        if (1..=i64::from(FORMAT)).contains(&version) {
            return migrate(conn, version as usize);
        }
        version.to_string()
    } else {
        "of another program".to_owned()
    };
    Err(StoreError::Format { dir: dir.display().to_string(), found, supported: FORMAT })
}

/// Takes a database of an older format to this one, all or nothing.
fn migrate(conn: &Connection, from: usize) -> Result<()> {
    let steps = &STEPS[from - 1..];
    if steps.is_empty() {
        return Ok(());
    }
    tracing::info!(from, to = FORMAT, "the database's format is brought up to date");
    let all = format!("BEGIN IMMEDIATE; {} PRAGMA user_version = {FORMAT}; COMMIT;", steps.concat());
    conn.execute_batch(&all).map_err(failed("bring the database's format up to date"))
}
