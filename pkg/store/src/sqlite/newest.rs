//! Statements on the table `newest` and what is read through it: keys, ranges, counts, at the newest revision and at an old one.
//!
//! Where `index.rs` knows a newer row than the table, that one is given along and counts.

use super::index::{Point, Recent};
use super::queries::{
    Stored, blob, damaged, failed, last_id, meta, meta_sum, missing, prove, row_revision, select, stored,
};
use crate::{KeyRange, KeyValue, RangeRequest, RangeResponse, Result, Revision};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, Statement, ToSql, params};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// How far a snapshot reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The last row; 0: there is none.
    pub last: i64,
    /// `newest` is complete through this row.
    pub indexed: i64,
}

/// Under which that stands in `meta`. Where it is missing, the table is complete.
pub(crate) const INDEXED: &str = "indexed";

pub(crate) fn seen(conn: &Connection) -> Result<Seen> {
    const SQL: &str = "SELECT (SELECT coalesce(max(id), 0) FROM log), (SELECT value FROM meta WHERE name = 'indexed'), \
                       (SELECT sum FROM meta WHERE name = 'indexed')";
    let run = || {
        conn.prepare_cached(SQL)?.query_row([], |r| {
            let Some(indexed) = r.get(1)? else { return Ok(Seen { last: r.get(0)?, indexed: i64::MAX }) };
            prove(r.get(2)?, meta_sum(INDEXED, indexed), "how far the index of the newest rows is")?;
            Ok(Seen { last: r.get(0)?, indexed })
        })
    };
    run().map_err(failed("read the newest revision"))
}

/// The last row; 0: there is none.
pub(crate) fn last_row(conn: &Connection) -> Result<i64> {
    let run = || conn.prepare_cached("SELECT coalesce(max(id), 0) FROM log")?.query_row([], |r| r.get(0));
    run().map_err(failed("read the newest revision"))
}

/// What the table has of a key.
pub(crate) fn point(conn: &Connection, key: &[u8]) -> Result<Option<Point>> {
    let point = |r: &Row<'_>| Ok(Point { id: r.get(0)?, live: r.get(1)?, lease: r.get(2)? });
    let run =
        || conn.prepare_cached("SELECT id, live, lease FROM newest WHERE key = ?1")?.query_row([key], point).optional();
    run().map_err(failed("read a key"))
}

pub(crate) fn set_point(conn: &Connection, key: &[u8], point: Point) -> Result<()> {
    let sql = "INSERT INTO newest (key, id, live, lease) VALUES (?1, ?2, ?3, ?4) \
               ON CONFLICT (key) DO UPDATE SET id = ?2, live = ?3, lease = ?4";
    let run = || conn.prepare_cached(sql)?.execute(params![key, point.id, point.live, point.lease]);
    run().map_err(failed("write the index of the newest rows")).map(|_| ())
}

/// The newest rows of keys that the table does not have.
pub(crate) fn unindexed(conn: &Connection) -> Result<Recent> {
    let Seen { last, indexed } = seen(conn)?;
    if last <= indexed {
        return Ok(Vec::new());
    }
    let run = || -> rusqlite::Result<Recent> {
        let mut scan = conn.prepare(&select("l.key", "FROM log l WHERE l.id > ?1 ORDER BY l.id"))?;
        let rows = scan.query_map([indexed], |r| stored(r, false))?;
        let newest = rows.map(|row| {
            let Stored { id, put, kv, .. } = row?;
            Ok((kv.key, Point { id, live: put, lease: kv.lease }))
        });
        Ok(newest.collect::<rusqlite::Result<BTreeMap<_, _>>>()?.into_iter().collect())
    };
    run().map_err(failed("read what the index of the newest rows does not have"))
}

/// The row with this id, which is the newest one of `key`.
pub(crate) fn newest_row(conn: &Connection, key: &[u8], id: i64, with_value: bool) -> Result<Option<KeyValue>> {
    static SQL: LazyLock<String> = LazyLock::new(|| select("l.key", "FROM log l WHERE l.id = ?1"));
    let run = || -> rusqlite::Result<Option<KeyValue>> {
        match conn.prepare_cached(&SQL)?.query_row([id], |row| stored(row, with_value)).optional()? {
            Some(row) if row.kv.key == key => Ok(row.put.then_some(row.kv)),
            Some(_) => Err(damaged(format!("the index leads key {} to another one's row", key.escape_ascii()))),
            None => Err(damaged(format!("the newest row of key {} is not there", key.escape_ascii()))),
        }
    };
    run().map_err(failed("read a key"))
}

/// `AND key < ?2` where the range has an end.
fn bounded(sql: &str, column: &str, range: &KeyRange) -> String {
    let upper = if range.end_bound().is_some() { format!("AND {column} < ?2") } else { String::new() };
    sql.replace("{range}", &format!("{column} >= ?1 {upper}"))
}

pub(super) fn bounds(range: &KeyRange) -> (Vec<u8>, Option<Vec<u8>>) {
    (range.start.to_vec(), range.end_bound().map(|e| e.to_vec()))
}

/// Where a key's newest row is, and who says so.
#[derive(Clone, Copy)]
pub(crate) enum Found {
    InTable(Point),
    Recent(Point),
}

impl Found {
    pub fn point(self) -> Point {
        match self {
            Found::InTable(point) | Found::Recent(point) => point,
        }
    }

    /// The row to read. `None`: the key was deleted. The table is not believed: the row itself tells whether the key lives, and
    /// a check compares what the table says of it.
    pub fn row(self) -> Option<i64> {
        match self {
            Found::Recent(Point { live: false, .. }) => None,
            found => Some(found.point().id),
        }
    }
}

/// Gives `each` the keys of a range in their order, deleted ones too, until it says that it is enough. `recent`: what is to be
/// taken instead of what the table has; what it says of a deletion is true without a look at the row, which may be gone.
pub(crate) fn scan(
    conn: &Connection,
    range: &KeyRange,
    recent: &Recent,
    each: &mut dyn FnMut(&[u8], Found) -> Result<bool>,
) -> Result<()> {
    let unread = || failed("read a range");
    let (start, end) = bounds(range);
    let mut args: Vec<&dyn ToSql> = vec![&start];
    if let Some(end) = &end {
        args.push(end);
    }
    let sql = bounded("SELECT key, id, live, lease FROM newest WHERE {range} ORDER BY key", "key", range);
    let mut statement = conn.prepare_cached(&sql).map_err(unread())?;
    let mut rows = statement.query(&args[..]).map_err(unread())?;
    let mut recent = recent.iter().peekable();
    while let Some(row) = rows.next().map_err(unread())? {
        let read = || -> rusqlite::Result<(&[u8], Point)> {
            let key = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
            Ok((key, Point { id: row.get(1)?, live: row.get(2)?, lease: row.get(3)? }))
        };
        let (key, point) = read().map_err(unread())?;
        while let Some((earlier, point)) = recent.next_if(|(k, _)| &k[..] < key) {
            if !each(earlier, Found::Recent(*point))? {
                return Ok(());
            }
        }
        let newer = recent.next_if(|(k, _)| &k[..] == key);
        if !each(key, newer.map_or(Found::InTable(point), |(_, newer)| Found::Recent(*newer)))? {
            return Ok(());
        }
    }
    for (key, point) in recent {
        if !each(key, Found::Recent(*point))? {
            break;
        }
    }
    Ok(())
}

/// How many keys of a range live, `recent` being as in [`scan`].
pub(crate) fn count(conn: &Connection, range: &KeyRange, recent: &Recent) -> Result<u64> {
    let (start, end) = bounds(range);
    let mut args: Vec<&dyn ToSql> = vec![&start];
    if let Some(end) = &end {
        args.push(end);
    }
    let sql = bounded("SELECT count(*) FROM newest WHERE live AND {range}", "key", range);
    let run = || conn.prepare_cached(&sql)?.query_row(&args[..], |r| r.get::<_, i64>(0));
    let mut count = run().map_err(failed("count a range"))?;
    for (key, newer) in recent {
        let was_live = point(conn, key)?.is_some_and(|p| p.live);
        count += i64::from(newer.live) - i64::from(was_live);
    }
    Ok(count.max(0) as u64)
}

/// The answer from the newest rows; its revision is left 0.
pub(crate) fn range_newest(conn: &Connection, req: &RangeRequest, recent: &Recent) -> Result<RangeResponse> {
    let mut out = RangeResponse::default();
    if !req.count_only {
        // Without a count, one more than asked tells whether there is more.
        let limit = match req.limit {
            0 => usize::MAX,
            n => n.saturating_add(usize::from(req.uncounted)),
        };
        scan(conn, &req.range, recent, &mut |key, found| {
            if let Some(id) = found.row() {
                out.kvs.extend(newest_row(conn, key, id, !req.keys_only)?);
            }
            Ok(out.kvs.len() < limit)
        })?;
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
        out.count = count(conn, &req.range, recent)?;
    }
    out.more = !req.count_only && out.count > out.kvs.len() as u64;
    Ok(out)
}

/// The answer at an old revision: walks each key's chain back to it.
pub(crate) fn range_at(conn: &Connection, req: &RangeRequest, at: Revision, recent: &Recent) -> Result<RangeResponse> {
    let compacted = meta(conn, "compacted")?.unwrap_or(0);
    let unread = || failed("read a range at an old revision");
    let mut out = RangeResponse::default();
    let mut by_id = conn.prepare_cached(&select("l.key", "FROM log l WHERE l.id = ?1")).map_err(unread())?;
    scan(conn, &req.range, recent, &mut |key, found| {
        let Point { id, live, .. } = found.point();
        if id <= last_id(at) && !live {
            return Ok(true);
        }
        let is_full = req.limit != 0 && out.kvs.len() == req.limit;
        let with_value = !req.keys_only && !req.count_only && !is_full;
        let found = visible_at(&mut by_id, key, id, at, compacted, with_value).map_err(unread())?;
        let Some(kv) = found else { return Ok(true) };
        out.count += 1;
        if req.count_only {
            return Ok(true);
        }
        if is_full {
            out.more = true;
            return Ok(!req.uncounted);
        }
        out.kvs.push(kv);
        Ok(true)
    })?;
    Ok(out)
}

/// What a key was at revision `at`, its newest row being `id`.
fn visible_at(
    by_id: &mut Statement<'_>,
    key: &[u8],
    mut id: i64,
    at: Revision,
    compacted: Revision,
    with_value: bool,
) -> rusqlite::Result<Option<KeyValue>> {
    let mut is_newest = true;
    loop {
        let row = by_id.query_row([id], |r| stored(r, with_value && id <= last_id(at))).optional()?;
        match row {
            Some(row) if row.kv.key != key => {
                return Err(damaged(format!("the history of key {} leads to another one", key.escape_ascii())));
            }
            Some(row) if row.id <= last_id(at) => return Ok(row.put.then_some(row.kv)),
            Some(Stored { prev: 0, .. }) => return Ok(None),
            Some(row) => id = row.prev,
            // Only a deletion before the last compaction is not kept while what comes after it is.
            None if !is_newest && row_revision(id) < compacted => return Ok(None),
            None => return Err(missing(id, key)),
        }
        is_newest = false;
    }
}

/// Durable keys and the leases that they end with, where the index is complete.
pub(crate) fn leased_keys(conn: &Connection) -> Result<Vec<(i64, Bytes)>> {
    let run = || -> rusqlite::Result<Vec<(Bytes, i64)>> {
        let mut statement = conn.prepare("SELECT key, id FROM newest WHERE lease <> 0")?;
        statement.query_map([], |r| Ok((blob(r, 0)?, r.get(1)?)))?.collect()
    };
    let points = run().map_err(failed("read the leases' keys"))?;
    let rows = points.iter().map(|(key, id)| newest_row(conn, key, *id, false));
    rows.filter_map(|row| row.map(|kv| kv.map(|kv| (kv.lease, kv.key))).transpose()).collect()
}
