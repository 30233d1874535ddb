//! Brings databases of formats 1 and 2 up to date. They have no checksums, so every row is copied into a new file; the old one
//! stays as it is until that is whole.

use super::draft::Draft;
use super::files::Files;
use super::queries::{self, failed};
use super::schema::{self, FORMAT};
use super::sums::Head;
use crate::{KeyValue, Result};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, params};

/// Refuses what no version before 3 has written.
pub(crate) fn migrate(files: &Files) -> Result<()> {
    let old = schema::connect_unchecked(&files.database)?;
    let from = match schema::format(&old)? {
        Some(version @ 1..=2) => version,
        found => return Err(schema::wrong_format(&files.dir, found)),
    };
    tracing::info!(from, to = FORMAT, "the database's format is brought up to date");
    // What is in its log goes into the file, so that the file alone is the whole of it.
    old.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).map_err(failed("empty the old write-ahead log"))?;
    let draft = Draft::begin(files, None)?;
    copy(&old, &draft.conn, from)?;
    old.close().map_err(|(_, e)| failed("close the old database")(e))?;
    draft.finish()
}

fn copy(old: &Connection, new: &Connection, from: u32) -> Result<()> {
    each(
        old,
        "SELECT name, value FROM meta",
        |r| Ok((r.get::<_, String>(0)?, r.get(1)?)),
        |(name, value)| queries::set_meta(new, &name, value),
    )?;
    copy_log(old, new)?;
    each(
        old,
        "SELECT id, ttl, ephemeral FROM lease",
        |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        |(id, ttl, ephemeral)| queries::put_lease(new, id, ttl, ephemeral),
    )?;
    each(old, "SELECT key, modified, created, version, lease, value FROM ephemeral", ephemeral, |kv| {
        queries::put_ephemeral(new, &kv)
    })?;
    each(old, "SELECT prefix FROM class", |r| r.get::<_, Vec<u8>>(0), |prefix| queries::put_class(new, &prefix))?;
    if from >= 2 {
        let setting = |r: &Row<'_>| Ok((r.get::<_, String>(0)?, r.get::<_, Vec<u8>>(1)?));
        each(old, "SELECT name, value FROM setting", setting, |(name, value)| {
            queries::set_setting(new, &name, Some(&value))
        })?;
    }
    Ok(())
}

fn each<T>(
    old: &Connection,
    sql: &str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let unread = || failed("read the old database");
    let mut statement = old.prepare(sql).map_err(unread())?;
    let mut rows = statement.query([]).map_err(unread())?;
    while let Some(row) = rows.next().map_err(unread())? {
        take(read(row).map_err(unread())?)?;
    }
    Ok(())
}

fn ephemeral(row: &Row<'_>) -> rusqlite::Result<KeyValue> {
    Ok(KeyValue {
        key: row.get::<_, Vec<u8>>(0)?.into(),
        mod_revision: row.get(1)?,
        create_revision: row.get(2)?,
        version: row.get(3)?,
        lease: row.get(4)?,
        value: row.get::<_, Vec<u8>>(5)?.into(),
    })
}

fn copy_log(old: &Connection, new: &Connection) -> Result<()> {
    let run = || -> rusqlite::Result<()> {
        let mut rows =
            old.prepare("SELECT id, prev, kind, created, version, lease, key, value FROM log ORDER BY id")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let head = Head {
                id: row.get(0)?,
                prev: row.get(1)?,
                kind: row.get(2)?,
                created: row.get(3)?,
                version: row.get(4)?,
                lease: row.get(5)?,
            };
            let bytes = |i: usize| row.get_ref(i).and_then(|v: ValueRef<'_>| Ok(v.as_blob()?));
            queries::insert_row(new, &head, bytes(6)?, bytes(7)?)?;
        }
        let mut rows = old.prepare("SELECT key, id, live, lease FROM newest ORDER BY key")?;
        let mut rows = rows.query([])?;
        let mut insert = new.prepare("INSERT INTO newest (key, id, live, lease) VALUES (?1, ?2, ?3, ?4)")?;
        while let Some(row) = rows.next()? {
            let number = |i: usize| row.get::<_, i64>(i);
            let key = row.get_ref(0)?.as_blob()?;
            insert.execute(params![key, number(1)?, number(2)?, number(3)?])?;
        }
        Ok(())
    };
    run().map_err(failed("bring the database's format up to date"))
}
