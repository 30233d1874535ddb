//! Opens the database file: its settings, its tables, its format version.

use super::queries::failed;
use crate::{Result, StoreError};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// "ISOP": tells our files from other SQLite files.
const APPLICATION_ID: i32 = 0x4953_4f50;
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

/// `cache_kib` bounds the page cache of this connection; the kernel's page cache does the rest.
pub(crate) fn connect(path: &Path, cache_kib: u32, create: bool) -> Result<Connection> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let open = || -> rusqlite::Result<Connection> {
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(Duration::from_secs(5))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::StatementStatus;

    #[test]
    fn statements_are_prepared_once() {
        let dir = tempfile::tempdir().unwrap();
        let conn = connect(&dir.path().join("state.db"), 64, true).unwrap();
        prepare(&conn, dir.path()).unwrap();
        let get = "SELECT l.id, l.value FROM newest n CROSS JOIN log l ON l.id = n.id WHERE n.key = ?1 AND n.live";
        let mut statement = conn.prepare(get).unwrap();
        for key in ["a", "b", "c"] {
            assert!(!statement.exists([key.as_bytes()]).unwrap());
        }
        assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
    }
}
