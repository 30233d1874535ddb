//! Every statement on the log and the small tables, used by the writer and by the readers alike.
//!
//! A row's id is `revision << 20 | sub`. `log` holds each value once; `prev` chains a key's rows backwards. `newest` points
//! from each key to its newest row, where `index.rs` has no newer one; a deleted key stays there as not live until compaction,
//! so that reads at old revisions find the chain. A row is proved by its checksum before anything in it is used, see `sums.rs`; only counts trust
//! the checksums of the pages alone.

use super::index::Point;
use super::newest;
use super::sums::{self, Head, Table};
use crate::hash::{HistoryHasher, is_hashed};
use crate::log::Logged;
use crate::{Event, EventKind, HistoryEntry, KeyRange, KeyValue, Result, Revision, StoreError};
use bytes::Bytes;
use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, ffi, params};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, LazyLock};

pub(crate) const SUB_BITS: u32 = 20;

pub(crate) fn row_id(rev: Revision, sub: u32) -> i64 {
    (rev << SUB_BITS) | i64::from(sub)
}

pub(crate) fn row_revision(id: i64) -> Revision {
    id >> SUB_BITS
}

pub(crate) fn row_sub(id: i64) -> u32 {
    (id & ((1 << SUB_BITS) - 1)) as u32
}

/// The last id of revision `rev`.
pub(crate) fn last_id(rev: Revision) -> i64 {
    row_id(rev + 1, 0) - 1
}

/// A row that is not as it was written, in an error of rusqlite's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct DamagedRow(String);

pub(super) fn damaged(text: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Null, Box::new(DamagedRow(text)))
}

/// What is damaged, if that is what the error says.
fn damage(e: &rusqlite::Error) -> Option<String> {
    use rusqlite::Error as E;
    match e {
        E::SqliteFailure(code, _) if code.extended_code == ffi::SQLITE_IOERR_DATA => {
            Some(isopod_sys::sqlite::take_damage().map_or_else(|| e.to_string(), |d| d.to_string()))
        }
        E::SqliteFailure(code, _) if matches!(code.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            Some(e.to_string())
        }
        E::FromSqlConversionFailure(_, _, source) if source.is::<DamagedRow>() => Some(source.to_string()),
        // The tables are strict: nothing of ours has another type than is read.
        E::FromSqlConversionFailure(..)
        | E::InvalidColumnType(..)
        | E::IntegralValueOutOfRange(..)
        | E::Utf8Error(..) => Some(format!("a row has a value of a wrong type: {e}")),
        _ => None,
    }
}

/// `what`, as in "cannot …".
pub(crate) fn failed(what: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |e| match (damage(&e), e.sqlite_error_code()) {
        (Some(text), _) => StoreError::Corrupt(text),
        (None, Some(ErrorCode::DiskFull)) => StoreError::NoSpace,
        _ => StoreError::Backend { context: format!("cannot {what}"), source: Arc::new(e) },
    }
}

/// A row of `log` that is proved.
pub(super) struct Stored {
    pub id: i64,
    pub prev: i64,
    pub put: bool,
    pub kv: KeyValue,
}

/// What [`stored`] reads, from `log l`; the key comes from wherever the row was found by.
const COLUMNS: &str = "l.id, l.prev, l.kind, l.created, l.version, l.lease, l.sum, {key}, l.value";

pub(super) fn select(key: &str, rest: &str) -> String {
    format!("SELECT {} {rest}", COLUMNS.replace("{key}", key))
}

pub(super) fn stored(row: &Row<'_>, with_value: bool) -> rusqlite::Result<Stored> {
    let key = blob(row, 7)?;
    let Some(id) = row.get(0)? else {
        return Err(damaged(format!("the newest row of key {} is not there", key.escape_ascii())));
    };
    let (prev, kind) = (row.get(1)?, row.get(2)?);
    let head = Head { id, prev, kind, created: row.get(3)?, version: row.get(4)?, lease: row.get(5)? };
    let sum = row.get(6)?;
    // Where it is not asked for, the value's pages are not read.
    let value = if with_value { blob(row, 8)? } else { Bytes::new() };
    if !head.is_proved(&key, sum) || (with_value && !sums::is_value_proved(&value, sum)) {
        let (rev, key) = (row_revision(id), key.escape_ascii());
        return Err(damaged(format!("the row of key {key} at revision {rev} does not match its checksum")));
    }
    let Head { created, version, lease, .. } = head;
    let kv = KeyValue { key, value, create_revision: created, mod_revision: row_revision(id), version, lease };
    Ok(Stored { id, prev, put: kind == PUT, kv })
}

/// Proves a row of another table.
pub(super) fn prove(found: i64, want: i64, what: &str) -> rusqlite::Result<()> {
    if found == want { Ok(()) } else { Err(damaged(format!("{what} does not match its checksum"))) }
}

pub(super) fn blob(row: &Row<'_>, i: usize) -> rusqlite::Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.get_ref(i)?.as_blob().map_err(rusqlite::Error::from)?))
}

pub(super) fn missing(id: i64, key: &[u8]) -> rusqlite::Error {
    damaged(format!("the row of key {} at revision {} is not there", key.escape_ascii(), row_revision(id)))
}

pub(crate) const PUT: i64 = 0;
const DELETE: i64 = 1;

/// Writes an event to the log alone, `prev` being its key's last row, 0 where there is none. Returns what the index is to say.
pub(crate) fn log_event(conn: &Connection, id: i64, prev: i64, event: &Event) -> Result<Point> {
    let kv = &event.kv;
    let live = event.kind == EventKind::Put;
    let kind = if live { PUT } else { DELETE };
    let head = Head { id, prev, kind, created: kv.create_revision, version: kv.version, lease: kv.lease };
    insert_row(conn, &head, &kv.key, &kv.value).map_err(failed("write a key"))?;
    Ok(Point { id, live, lease: kv.lease })
}

/// Writes an event to a database whose index is complete and stays so.
pub(crate) fn append(conn: &Connection, rev: Revision, sub: u32, event: &Event) -> Result<()> {
    let key = &event.kv.key;
    let prev = newest::point(conn, key)?.map_or(0, |p| p.id);
    let point = log_event(conn, row_id(rev, sub), prev, event)?;
    newest::set_point(conn, key, point)
}

pub(crate) fn insert_row(conn: &Connection, head: &Head, key: &[u8], value: &[u8]) -> rusqlite::Result<()> {
    let insert = "INSERT INTO log (id, prev, kind, created, version, lease, sum, key, value) \
                  VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let Head { id, prev, kind, created, version, lease } = *head;
    let sum = head.row_sum(key, value);
    conn.prepare_cached(insert)?.execute(params![id, prev, kind, created, version, lease, sum, key, value])?;
    Ok(())
}

/// Events of `range` in `[from, to]` and the revision through which they are complete: it stops between two transactions
/// after `soft_limit` events.
pub(crate) fn history(
    conn: &Connection,
    range: &KeyRange,
    from: Revision,
    to: Revision,
    soft_limit: usize,
) -> Result<(Vec<Logged>, Revision)> {
    let compacted = meta(conn, "compacted")?.unwrap_or(0);
    let run = || -> rusqlite::Result<(Vec<Logged>, Revision)> {
        let mut events = conn.prepare_cached(&select(
            "l.key",
            "FROM log l WHERE l.id >= ?1 AND l.id <= ?2 AND l.key >= ?3 AND (?4 IS NULL OR l.key < ?4) ORDER BY l.id",
        ))?;
        let mut fetch = conn.prepare_cached(&select("l.key", "FROM log l WHERE l.id = ?1"))?;
        let (start, end) = newest::bounds(range);
        let mut rows = events.query(params![row_id(from, 0), last_id(to), start, end])?;
        let mut out: Vec<Logged> = Vec::new();
        while let Some(row) = rows.next()? {
            let row = stored(row, true)?;
            let rev = row_revision(row.id);
            if let Some(last) = out.last()
                && out.len() >= soft_limit
                && last.rev != rev
            {
                let through = last.rev;
                return Ok((out, through));
            }
            let prev =
                if row.prev == 0 { None } else { fetch.query_row([row.prev], |r| stored(r, true)).optional()? };
            // What a compaction drops is of revisions before it.
            if prev.is_none() && row.prev != 0 && row_revision(row.prev) >= compacted {
                return Err(missing(row.prev, &row.kv.key));
            }
            let kind = if row.put { EventKind::Put } else { EventKind::Delete };
            // Of what stood there before the compaction nothing is told, whether its row is gone yet or not.
            let prev = prev.filter(|p| p.put && rev > compacted).map(|p| p.kv);
            out.push(Logged { rev, sub: row_sub(row.id), event: Event { kind, kv: row.kv, prev } });
        }
        Ok((out, to))
    };
    run().map_err(failed("read the history"))
}

/// Adds every entry up to and with `at`.
pub(crate) fn hash(conn: &Connection, hasher: &mut HistoryHasher, compacted: Revision, at: Revision) -> Result<()> {
    let mut run = || -> rusqlite::Result<()> {
        // What compaction has yet to drop, or must keep for a read before `at`: few rows, as a rule.
        let mut superseded: HashSet<i64> = HashSet::new();
        let mut chains = conn.prepare("SELECT prev FROM log WHERE id <= ?1 AND prev <> 0 AND prev <= ?2")?;
        let mut rows = chains.query([last_id(at), last_id(compacted)])?;
        while let Some(row) = rows.next()? {
            superseded.insert(row.get(0)?);
        }
        let mut all = conn.prepare(&select("l.key", "FROM log l WHERE l.id <= ?1 ORDER BY l.id"))?;
        let mut rows = all.query([last_id(at)])?;
        while let Some(row) = rows.next()? {
            let Stored { id, put, kv, .. } = stored(row, true)?;
            if is_hashed(row_revision(id), compacted, !put, superseded.contains(&id)) {
                hasher.add(row_revision(id), row_sub(id), &kv.key, put.then_some(&kv));
            }
        }
        Ok(())
    };
    run().map_err(failed("read the whole history"))
}

/// Gives every row to `each`, in order, until it says that it is enough.
pub(crate) fn all_entries(conn: &Connection, each: &mut dyn FnMut(HistoryEntry) -> bool) -> Result<()> {
    let mut run = || -> rusqlite::Result<()> {
        let mut all = conn.prepare(&select("l.key", "FROM log l ORDER BY l.id"))?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            let Stored { id, put, kv, .. } = stored(row, true)?;
            let entry = HistoryEntry {
                revision: row_revision(id),
                sub: row_sub(id),
                key: kv.key.clone(),
                kv: put.then_some(kv),
            };
            if !each(entry) {
                break;
            }
        }
        Ok(())
    };
    run().map_err(failed("read the whole history"))
}

/// The revision of the last row; 0: there is none.
pub(crate) fn last_revision(conn: &Connection) -> Result<Revision> {
    Ok(row_revision(newest::last_row(conn)?))
}

pub(crate) fn meta(conn: &Connection, name: &str) -> Result<Option<i64>> {
    let run = || {
        conn.prepare_cached("SELECT value, sum FROM meta WHERE name = ?1")?
            .query_row([name], |r| {
                let value = r.get(0)?;
                prove(r.get(1)?, meta_sum(name, value), &format!("the store's state {name:?}"))?;
                Ok(value)
            })
            .optional()
    };
    run().map_err(failed("read the store's state"))
}

/// Proves every row of `meta`.
pub(crate) fn all_meta(conn: &Connection) -> Result<BTreeMap<String, i64>> {
    let run = || -> rusqlite::Result<BTreeMap<String, i64>> {
        let state = |r: &Row<'_>| {
            let (name, value): (String, i64) = (r.get(0)?, r.get(1)?);
            prove(r.get(2)?, meta_sum(&name, value), &format!("the store's state {name:?}"))?;
            Ok((name, value))
        };
        conn.prepare("SELECT name, value, sum FROM meta")?.query_map([], state)?.collect()
    };
    run().map_err(failed("read the store's state"))
}

pub(crate) fn meta_sum(name: &str, value: i64) -> i64 {
    sums::row(Table::Meta, [value], &[name.as_bytes()])
}

pub(crate) fn set_meta(conn: &Connection, name: &str, value: i64) -> Result<()> {
    let sql = "INSERT INTO meta (name, value, sum) VALUES (?1, ?2, ?3) \
               ON CONFLICT (name) DO UPDATE SET value = ?2, sum = ?3";
    let run = || conn.prepare_cached(sql)?.execute(params![name, value, meta_sum(name, value)]);
    run().map_err(failed("write the store's state")).map(|_| ())
}

pub(crate) fn setting_sum(name: &str, value: &[u8]) -> i64 {
    sums::row(Table::Setting, [], &[name.as_bytes(), value])
}

pub(crate) fn settings(conn: &Connection) -> Result<BTreeMap<String, Bytes>> {
    let run = || -> rusqlite::Result<BTreeMap<String, Bytes>> {
        let setting = |r: &Row<'_>| {
            let (name, value): (String, Bytes) = (r.get(0)?, blob(r, 2)?);
            prove(r.get(1)?, setting_sum(&name, &value), &format!("the setting {name:?}"))?;
            Ok((name, value))
        };
        conn.prepare("SELECT name, sum, value FROM setting")?.query_map([], setting)?.collect()
    };
    run().map_err(failed("read the settings"))
}

pub(crate) fn set_setting(conn: &Connection, name: &str, value: Option<&[u8]>) -> Result<()> {
    let run = || match value {
        Some(value) => {
            let sql = "INSERT OR REPLACE INTO setting (name, sum, value) VALUES (?1, ?2, ?3)";
            conn.execute(sql, params![name, setting_sum(name, value), value])
        }
        None => conn.execute("DELETE FROM setting WHERE name = ?1", [name]),
    };
    run().map(drop).map_err(failed("write a setting"))
}

pub(crate) fn class_sum(prefix: &[u8]) -> i64 {
    sums::row(Table::Class, [], &[prefix])
}

/// The prefixes of the ephemeral class that the store was last open with.
pub(crate) fn classes(conn: &Connection) -> Result<BTreeSet<Vec<u8>>> {
    let class = |r: &Row<'_>| {
        let prefix: Vec<u8> = r.get(0)?;
        prove(r.get(1)?, class_sum(&prefix), "an ephemeral prefix")?;
        Ok(prefix)
    };
    let run = || -> rusqlite::Result<BTreeSet<Vec<u8>>> {
        conn.prepare("SELECT prefix, sum FROM class")?.query_map([], class)?.collect()
    };
    run().map_err(failed("read the ephemeral prefixes"))
}

pub(crate) fn put_class(conn: &Connection, prefix: &[u8]) -> Result<()> {
    let sql = "INSERT INTO class (prefix, sum) VALUES (?1, ?2)";
    conn.execute(sql, params![prefix, class_sum(prefix)]).map(drop).map_err(failed("write the ephemeral prefixes"))
}

pub(crate) fn clear_classes(conn: &Connection) -> Result<()> {
    conn.execute("DELETE FROM class", []).map(drop).map_err(failed("write the ephemeral prefixes"))
}

pub(crate) fn clear_meta(conn: &Connection, name: &str) -> Result<()> {
    let run = || conn.prepare_cached("DELETE FROM meta WHERE name = ?1")?.execute([name]);
    run().map_err(failed("write the store's state")).map(|_| ())
}

pub(crate) fn ephemeral_sum(kv: &KeyValue) -> i64 {
    let numbers = [kv.mod_revision, kv.create_revision, kv.version, kv.lease];
    sums::row(Table::Ephemeral, numbers, &[&kv.key, &kv.value])
}

pub(crate) fn put_ephemeral(conn: &Connection, kv: &KeyValue) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO ephemeral (key, modified, created, version, lease, sum, value) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let run = || {
        conn.prepare_cached(sql)?.execute(params![
            &kv.key[..],
            kv.mod_revision,
            kv.create_revision,
            kv.version,
            kv.lease,
            ephemeral_sum(kv),
            &kv.value[..]
        ])
    };
    run().map_err(failed("write an ephemeral key")).map(|_| ())
}

pub(crate) fn delete_ephemeral(conn: &Connection, key: &[u8]) -> Result<()> {
    let run = || conn.prepare_cached("DELETE FROM ephemeral WHERE key = ?1")?.execute([key]);
    run().map_err(failed("write an ephemeral key")).map(|_| ())
}

pub(crate) fn all_ephemeral(conn: &Connection) -> Result<Vec<KeyValue>> {
    let kept = |row: &Row<'_>| {
        let kv = KeyValue {
            key: blob(row, 0)?,
            mod_revision: row.get(1)?,
            create_revision: row.get(2)?,
            version: row.get(3)?,
            lease: row.get(4)?,
            value: blob(row, 6)?,
        };
        prove(row.get(5)?, ephemeral_sum(&kv), &format!("the row of ephemeral key {}", kv.key.escape_ascii()))?;
        Ok(kv)
    };
    let run = || -> rusqlite::Result<Vec<KeyValue>> {
        let mut statement =
            conn.prepare("SELECT key, modified, created, version, lease, sum, value FROM ephemeral ORDER BY key")?;
        statement.query_map([], kept)?.collect()
    };
    run().map_err(failed("read the ephemeral keys"))
}

/// `(id, ttl, ephemeral)` of every lease.
pub(crate) fn leases(conn: &Connection) -> Result<Vec<(i64, i64, bool)>> {
    let run = || -> rusqlite::Result<Vec<(i64, i64, bool)>> {
        let mut statement = conn.prepare("SELECT id, ttl, ephemeral, sum FROM lease")?;
        let rows = statement.query_map([], |r| {
            let (id, ttl, ephemeral) = (r.get(0)?, r.get(1)?, r.get(2)?);
            prove(r.get(3)?, lease_sum(id, ttl, ephemeral), &format!("lease {id}"))?;
            Ok((id, ttl, ephemeral))
        })?;
        rows.collect()
    };
    run().map_err(failed("read the leases"))
}

pub(crate) fn lease_sum(id: i64, ttl: i64, ephemeral: bool) -> i64 {
    sums::row(Table::Lease, [id, ttl, i64::from(ephemeral)], &[])
}

pub(crate) fn put_lease(conn: &Connection, id: i64, ttl: i64, ephemeral: bool) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO lease (id, ttl, ephemeral, sum) VALUES (?1, ?2, ?3, ?4)";
    let run = || conn.prepare_cached(sql)?.execute(params![id, ttl, ephemeral, lease_sum(id, ttl, ephemeral)]);
    run().map_err(failed("write a lease")).map(|_| ())
}

pub(crate) fn delete_lease(conn: &Connection, id: i64) -> Result<()> {
    let run = || conn.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([id]);
    run().map_err(failed("write a lease")).map(|_| ())
}

/// A row of the log without its key and value, and what it supersedes.
pub(crate) struct Link {
    pub id: i64,
    pub prev: i64,
    pub put: bool,
}

/// The rows from `from` on, through revision `to`, `limit` of them at most.
pub(crate) fn links(conn: &Connection, from: i64, to: Revision, limit: usize) -> rusqlite::Result<Vec<Link>> {
    static SQL: LazyLock<String> =
        LazyLock::new(|| select("l.key", "FROM log l WHERE l.id >= ?1 AND l.id <= ?2 ORDER BY l.id LIMIT ?3"));
    let mut scan = conn.prepare_cached(&SQL)?;
    let rows = scan.query_map(params![from, last_id(to), limit as i64], |r| stored(r, false))?;
    rows.map(|row| row.map(|Stored { id, prev, put, .. }| Link { id, prev, put })).collect()
}

/// Drops rows, and with a row that deletes its key what `newest` has of that key, if it is the key's last. Rows that are not
/// there are gone already.
pub(crate) fn drop_rows(conn: &Connection, rows: impl Iterator<Item = (i64, bool)>) -> rusqlite::Result<()> {
    let mut drop_row = conn.prepare_cached("DELETE FROM log WHERE id = ?1")?;
    let mut drop_key = conn.prepare_cached(
        "DELETE FROM newest WHERE key = (SELECT key FROM log WHERE id = ?1) AND id = ?1 AND NOT live",
    )?;
    for (id, deletes) in rows {
        if deletes {
            drop_key.execute([id])?;
        }
        drop_row.execute([id])?;
    }
    Ok(())
}
