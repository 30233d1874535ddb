//! Every statement on the log and its index, used by the writer and by the readers alike.
//!
//! A row's id is `revision << 20 | sub`. `log` holds each value once; `prev` chains a key's rows backwards. `newest` points
//! from each key to its newest row; a deleted key stays there as not live until compaction, so that reads at old
//! revisions find the chain.

use crate::hash::{HistoryHasher, is_hashed};
use crate::log::Logged;
use crate::{
    Event, EventKind, HistoryEntry, KeyRange, KeyValue, RangeRequest, RangeResponse, Result, Revision, StoreError,
};
use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, ToSql, params};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

pub(crate) const SUB_BITS: u32 = 20;

pub(crate) fn row_id(rev: Revision, sub: u32) -> i64 {
    (rev << SUB_BITS) | i64::from(sub)
}

pub(crate) fn row_revision(id: i64) -> Revision {
    id >> SUB_BITS
}

/// The last id of revision `rev`.
pub(crate) fn last_id(rev: Revision) -> i64 {
    row_id(rev + 1, 0) - 1
}

/// `what`, as in "cannot …".
pub(crate) fn failed(what: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |e| match e.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::NoSpace,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(e.to_string()),
        _ => StoreError::Backend { context: format!("cannot {what}"), source: Arc::new(e) },
    }
}

fn key_value(row: &Row<'_>, key: usize, with_value: bool) -> rusqlite::Result<KeyValue> {
    let value = if with_value { blob(row, key + 5)? } else { Bytes::new() };
    let id: i64 = row.get(key + 1)?;
    Ok(KeyValue {
        key: blob(row, key)?,
        value,
        create_revision: row.get(key + 2)?,
        mod_revision: row_revision(id),
        version: row.get(key + 3)?,
        lease: row.get(key + 4)?,
    })
}

fn blob(row: &Row<'_>, i: usize) -> rusqlite::Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.get_ref(i)?.as_blob().map_err(rusqlite::Error::from)?))
}

pub(crate) fn get(conn: &Connection, key: &[u8]) -> Result<Option<KeyValue>> {
    let sql = "SELECT n.key, l.id, l.created, l.version, l.lease, l.value FROM newest n CROSS JOIN log l ON l.id = n.id \
               WHERE n.key = ?1 AND n.live";
    let run = || conn.prepare_cached(sql)?.query_row([key], |row| key_value(row, 0, true)).optional();
    run().map_err(failed("read a key"))
}

/// `AND key < ?2` where the range has an end.
fn bounded(sql: &str, column: &str, range: &KeyRange) -> String {
    let upper = if range.end_bound().is_some() { format!("AND {column} < ?2") } else { String::new() };
    sql.replace("{range}", &format!("{column} >= ?1 {upper}"))
}

fn bounds(range: &KeyRange) -> (Vec<u8>, Option<Vec<u8>>) {
    (range.start.to_vec(), range.end_bound().map(|e| e.to_vec()))
}

/// The answer from the newest rows; its revision is left 0.
pub(crate) fn range_newest(conn: &Connection, req: &RangeRequest) -> Result<RangeResponse> {
    let mut out = RangeResponse::default();
    let (start, end) = bounds(&req.range);
    let mut args: Vec<&dyn ToSql> = vec![&start];
    if let Some(end) = &end {
        args.push(end);
    }
    let run = || -> rusqlite::Result<RangeResponse> {
        if !req.count_only {
            let value = if req.keys_only { "" } else { ", l.value" };
            // Without a count, one more than asked tells whether there is more.
            let limit = match req.limit {
                0 => String::new(),
                n => format!("LIMIT {}", n.saturating_add(usize::from(req.uncounted)).min(i64::MAX as usize)),
            };
            let sql = format!(
                "SELECT n.key, l.id, l.created, l.version, l.lease{value} FROM newest n CROSS JOIN log l ON l.id = n.id \
                 WHERE n.live AND {{range}} ORDER BY n.key {limit}"
            );
            let mut statement = conn.prepare_cached(&bounded(&sql, "n.key", &req.range))?;
            let mut rows = statement.query(&args[..])?;
            while let Some(row) = rows.next()? {
                out.kvs.push(key_value(row, 0, !req.keys_only)?);
            }
        }
        out.count = out.kvs.len() as u64;
        if req.uncounted && !req.count_only {
            out.more = req.limit != 0 && out.kvs.len() > req.limit;
            if out.more {
                out.kvs.truncate(req.limit);
            }
            return Ok(out);
        }
        if req.count_only || (req.limit != 0 && out.kvs.len() == req.limit) {
            let sql = bounded("SELECT count(*) FROM newest WHERE live AND {range}", "key", &req.range);
            out.count = conn.prepare_cached(&sql)?.query_row(&args[..], |r| r.get::<_, i64>(0))? as u64;
        }
        out.more = !req.count_only && out.count > out.kvs.len() as u64;
        Ok(out)
    };
    run().map_err(failed("read a range"))
}

/// The answer at an old revision: walks each key's chain back to it.
pub(crate) fn range_at(conn: &Connection, req: &RangeRequest, at: Revision) -> Result<RangeResponse> {
    let (start, end) = bounds(&req.range);
    let mut args: Vec<&dyn ToSql> = vec![&start];
    if let Some(end) = &end {
        args.push(end);
    }
    let bound = last_id(at);
    let run = || -> rusqlite::Result<RangeResponse> {
        let mut out = RangeResponse::default();
        let sql = bounded("SELECT id, live FROM newest WHERE {range} ORDER BY key", "key", &req.range);
        let mut keys = conn.prepare_cached(&sql)?;
        let mut before = conn.prepare_cached("SELECT prev, kind FROM log WHERE id = ?1")?;
        let mut fetch = conn.prepare_cached("SELECT key, id, created, version, lease, value FROM log WHERE id = ?1")?;
        let mut rows = keys.query(&args[..])?;
        while let Some(row) = rows.next()? {
            let (mut id, live): (i64, bool) = (row.get(0)?, row.get(1)?);
            if id <= bound && !live {
                continue;
            }
            let walked = id > bound;
            while id > bound {
                id = before.query_row([id], |r| r.get(0)).optional()?.unwrap_or(0);
            }
            let deleted = |kind: Option<i64>| kind != Some(PUT);
            if id == 0 || (walked && deleted(before.query_row([id], |r| r.get(1)).optional()?)) {
                continue;
            }
            out.count += 1;
            if req.count_only {
                continue;
            }
            if req.limit != 0 && out.kvs.len() == req.limit {
                out.more = true;
                if req.uncounted {
                    break;
                }
                continue;
            }
            out.kvs.push(fetch.query_row([id], |r| key_value(r, 0, !req.keys_only))?);
        }
        Ok(out)
    };
    run().map_err(failed("read a range at an old revision"))
}

const PUT: i64 = 0;
const DELETE: i64 = 1;

pub(crate) fn append(conn: &Connection, rev: Revision, sub: u32, event: &Event) -> Result<()> {
    let id = row_id(rev, sub);
    let kv = &event.kv;
    let put = event.kind == EventKind::Put;
    let run = || -> rusqlite::Result<()> {
        let insert = "INSERT INTO log (id, prev, kind, created, version, lease, key, value) \
                      VALUES (?1, coalesce((SELECT id FROM newest WHERE key = ?6), 0), ?2, ?3, ?4, ?5, ?6, ?7)";
        conn.prepare_cached(insert)?.execute(params![
            id,
            if put { PUT } else { DELETE },
            kv.create_revision,
            kv.version,
            kv.lease,
            &kv.key[..],
            &kv.value[..]
        ])?;
        let point = "INSERT INTO newest (key, id, live, lease) VALUES (?1, ?2, ?3, ?4) \
                     ON CONFLICT (key) DO UPDATE SET id = ?2, live = ?3, lease = ?4";
        conn.prepare_cached(point)?.execute(params![&kv.key[..], id, put, kv.lease])?;
        Ok(())
    };
    run().map_err(failed("write a key"))
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
    let run = || -> rusqlite::Result<(Vec<Logged>, Revision)> {
        let mut events = conn.prepare_cached(
            "SELECT key, id, created, version, lease, value, kind, prev FROM log \
             WHERE id >= ?1 AND id <= ?2 AND key >= ?3 AND (?4 IS NULL OR key < ?4) ORDER BY id",
        )?;
        let mut fetch =
            conn.prepare_cached("SELECT key, id, created, version, lease, value FROM log WHERE id = ?1 AND kind = 0")?;
        let (start, end) = bounds(range);
        let mut rows = events.query(params![row_id(from, 0), last_id(to), start, end])?;
        let mut out: Vec<Logged> = Vec::new();
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(1)?;
            let rev = row_revision(id);
            if let Some(last) = out.last()
                && out.len() >= soft_limit
                && last.rev != rev
            {
                let through = last.rev;
                return Ok((out, through));
            }
            let prev = fetch.query_row([row.get::<_, i64>(7)?], |r| key_value(r, 0, true)).optional()?;
            let kind = if row.get::<_, i64>(6)? == PUT { EventKind::Put } else { EventKind::Delete };
            let sub = (id & ((1 << SUB_BITS) - 1)) as u32;
            out.push(Logged { rev, sub, event: Event { kind, kv: key_value(row, 0, true)?, prev } });
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
        let mut all =
            conn.prepare("SELECT key, id, created, version, lease, value, kind FROM log WHERE id <= ?1 ORDER BY id")?;
        let mut rows = all.query([last_id(at)])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(1)?;
            let deleted = row.get::<_, i64>(6)? != PUT;
            if is_hashed(row_revision(id), compacted, deleted, superseded.contains(&id)) {
                let kv = key_value(row, 0, true)?;
                let sub = (id & ((1 << SUB_BITS) - 1)) as u32;
                hasher.add(row_revision(id), sub, &kv.key, (!deleted).then_some(&kv));
            }
        }
        Ok(())
    };
    run().map_err(failed("read the whole history"))
}

/// Gives every row to `each`, in order, until it says that it is enough.
pub(crate) fn all_entries(conn: &Connection, each: &mut dyn FnMut(HistoryEntry) -> bool) -> Result<()> {
    let mut run = || -> rusqlite::Result<()> {
        let mut all = conn.prepare("SELECT key, id, created, version, lease, value, kind FROM log ORDER BY id")?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(1)?;
            let kv = key_value(row, 0, true)?;
            let entry = HistoryEntry {
                revision: row_revision(id),
                sub: (id & ((1 << SUB_BITS) - 1)) as u32,
                key: kv.key.clone(),
                kv: (row.get::<_, i64>(6)? == PUT).then_some(kv),
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
    let run = || conn.prepare_cached("SELECT coalesce(max(id), 0) FROM log")?.query_row([], |r| r.get::<_, i64>(0));
    Ok(row_revision(run().map_err(failed("read the newest revision"))?))
}

pub(crate) fn meta(conn: &Connection, name: &str) -> Result<Option<i64>> {
    let run = || {
        conn.prepare_cached("SELECT value FROM meta WHERE name = ?1")?
            .query_row([name], |r| r.get::<_, i64>(0))
            .optional()
    };
    run().map_err(failed("read the store's state"))
}

pub(crate) fn set_meta(conn: &Connection, name: &str, value: i64) -> Result<()> {
    let sql = "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2";
    let run = || conn.prepare_cached(sql)?.execute(params![name, value]);
    run().map_err(failed("write the store's state")).map(|_| ())
}

pub(crate) fn settings(conn: &Connection) -> Result<BTreeMap<String, Bytes>> {
    let run = || -> rusqlite::Result<BTreeMap<String, Bytes>> {
        conn.prepare("SELECT name, value FROM setting")?.query_map([], |r| Ok((r.get(0)?, blob(r, 1)?)))?.collect()
    };
    run().map_err(failed("read the settings"))
}

pub(crate) fn set_setting(conn: &Connection, name: &str, value: Option<&[u8]>) -> Result<()> {
    let run = || match value {
        Some(value) => {
            conn.execute("INSERT OR REPLACE INTO setting (name, value) VALUES (?1, ?2)", params![name, value])
        }
        None => conn.execute("DELETE FROM setting WHERE name = ?1", [name]),
    };
    run().map(drop).map_err(failed("write a setting"))
}

pub(crate) fn clear_meta(conn: &Connection, name: &str) -> Result<()> {
    let run = || conn.prepare_cached("DELETE FROM meta WHERE name = ?1")?.execute([name]);
    run().map_err(failed("write the store's state")).map(|_| ())
}

pub(crate) fn put_ephemeral(conn: &Connection, kv: &KeyValue) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO ephemeral (key, modified, created, version, lease, value) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let run = || {
        conn.prepare_cached(sql)?.execute(params![
            &kv.key[..],
            kv.mod_revision,
            kv.create_revision,
            kv.version,
            kv.lease,
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
    let run = || -> rusqlite::Result<Vec<KeyValue>> {
        let mut statement =
            conn.prepare("SELECT key, modified, created, version, lease, value FROM ephemeral ORDER BY key")?;
        let rows =
            statement.query_map([], |row| Ok(KeyValue { mod_revision: row.get(1)?, ..key_value(row, 0, true)? }))?;
        rows.collect()
    };
    run().map_err(failed("read the ephemeral keys"))
}

/// `(id, ttl, ephemeral)` of every lease.
pub(crate) fn leases(conn: &Connection) -> Result<Vec<(i64, i64, bool)>> {
    let run = || -> rusqlite::Result<Vec<(i64, i64, bool)>> {
        let mut statement = conn.prepare("SELECT id, ttl, ephemeral FROM lease")?;
        let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
        rows.collect()
    };
    run().map_err(failed("read the leases"))
}

pub(crate) fn put_lease(conn: &Connection, id: i64, ttl: i64, ephemeral: bool) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO lease (id, ttl, ephemeral) VALUES (?1, ?2, ?3)";
    let run = || conn.prepare_cached(sql)?.execute(params![id, ttl, ephemeral]);
    run().map_err(failed("write a lease")).map(|_| ())
}

pub(crate) fn delete_lease(conn: &Connection, id: i64) -> Result<()> {
    let run = || conn.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([id]);
    run().map_err(failed("write a lease")).map(|_| ())
}

/// Durable keys and the leases that they end with.
pub(crate) fn leased_keys(conn: &Connection) -> Result<Vec<(i64, Bytes)>> {
    let run = || -> rusqlite::Result<Vec<(i64, Bytes)>> {
        let mut statement = conn.prepare("SELECT lease, key FROM newest WHERE lease <> 0")?;
        let rows = statement.query_map([], |r| Ok((r.get(0)?, blob(r, 1)?)))?;
        rows.collect()
    };
    run().map_err(failed("read the leases' keys"))
}

/// One step of a compaction to `to`: looks at rows from `from` on, drops what they supersede and the tombstones before
/// `to`. Returns where the next step begins; `None`: done. Rows of revision `to` itself stay, a watch may start there.
pub(crate) fn compact_step(conn: &Connection, from: i64, to: Revision, rows: usize) -> Result<Option<i64>> {
    let run = || -> rusqlite::Result<Option<i64>> {
        let mut scan =
            conn.prepare_cached("SELECT id, prev, kind FROM log WHERE id >= ?1 AND id <= ?2 ORDER BY id LIMIT ?3")?;
        let found: Vec<(i64, i64, i64)> = scan
            .query_map(params![from, last_id(to), rows as i64], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let mut drop_row = conn.prepare_cached("DELETE FROM log WHERE id = ?1")?;
        let mut drop_key = conn.prepare_cached(
            "DELETE FROM newest WHERE key = (SELECT key FROM log WHERE id = ?1) AND id = ?1 AND NOT live",
        )?;
        for (id, prev, kind) in &found {
            if *prev != 0 && row_revision(*prev) < to {
                drop_row.execute([prev])?;
            }
            if *kind == DELETE && row_revision(*id) < to {
                drop_key.execute([id])?;
                drop_row.execute([id])?;
            }
        }
        Ok(found.last().filter(|_| found.len() == rows).map(|(id, _, _)| id + 1))
    };
    run().map_err(failed("compact the history"))
}
