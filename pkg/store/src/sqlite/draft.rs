//! A database that is being made beside the one in use. Nothing of it counts until it takes that one's place, so it is written
//! without a journal and synced once.

use super::files::Files;
use super::queries::failed;
use super::schema::{APPLICATION_ID, FORMAT, TABLES};
use crate::Result;
use rusqlite::{Connection, OpenFlags};

pub(crate) struct Draft<'a> {
    files: &'a Files,
    /// Inside a transaction.
    pub conn: Connection,
}

impl<'a> Draft<'a> {
    /// `vfs`: as [`crate::Options::vfs`].
    pub fn begin(files: &'a Files, vfs: Option<&str>) -> Result<Self> {
        files.settle()?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || -> rusqlite::Result<Connection> {
            let vfs = isopod_sys::sqlite::checked_vfs(vfs)?;
            let conn = Connection::open_with_flags_and_vfs(&files.draft, flags, vfs)?;
            let page = isopod_sys::sqlite::PAGE;
            conn.execute_batch(&format!("PRAGMA page_size = {page};"))?;
            isopod_sys::sqlite::reserve_checksums(&conn)?;
            // Incremental: freed pages can be given back in small steps. It also tells of each page what it is for, which a
            // repair goes by.
            conn.execute_batch(&format!(
                "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
                 PRAGMA cache_size = -8192; PRAGMA temp_store = MEMORY;
                 BEGIN; {TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
            ))?;
            Ok(conn)
        };
        Ok(Draft { files, conn: open().map_err(failed("make a new database"))? })
    }

    /// It takes its place.
    pub fn finish(self) -> Result<()> {
        self.conn.execute_batch("COMMIT").map_err(failed("write the new database"))?;
        self.conn.close().map_err(|(_, e)| failed("close the new database")(e))?;
        self.files.replace_with_draft()
    }
}
