//! The statements that read the log and its index. Each answers from one snapshot: what is read of `meta` and the rows are
//! of the same moment.

use super::connect::Facts;
use super::epoch::Epochs;
use crate::hash::{HistoryHasher, is_hashed};
use crate::hub::Committed;
use crate::log::{Logged, transactions};
use crate::{
    Event, EventKind, HistoryEntry, HistoryHash, KeyRange, KeyValue, LeaseId, LeaseStatus, RangeRequest, RangeResponse,
    Revision,
};
use bytes::Bytes;
use futures::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use std::collections::{BTreeMap, HashMap, HashSet};

pub(crate) const SUB_BITS: u32 = 20;

pub(crate) fn row_id(rev: Revision, sub: u32) -> i64 {
    (rev << SUB_BITS) | i64::from(sub)
}

pub(crate) fn row_revision(id: i64) -> Revision {
    id >> SUB_BITS
}

/// The last id of revision `rev`.
pub(crate) fn last_id(rev: Revision) -> i64 {
    // A revision that the shift would push out is later than any row.
    if rev >= i64::MAX >> SUB_BITS { i64::MAX } else { row_id(rev + 1, 0) - 1 }
}

/// The row of `meta`.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub revision: Revision,
    pub compacted: Revision,
    pub epoch: i32,
    pub lineage: String,
    pub started: i64,
    pub lease_change: i64,
    pub lease_floor: i64,
    pub alarms: i32,
}

pub(crate) const META: &str =
    "SELECT revision, compacted, epoch, lineage, started, lease_change, lease_floor, alarms FROM meta";

impl Meta {
    pub fn of(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Meta {
            revision: row.try_get("revision")?,
            compacted: row.try_get("compacted")?,
            epoch: row.try_get("epoch")?,
            lineage: row.try_get("lineage")?,
            started: row.try_get("started")?,
            lease_change: row.try_get("lease_change")?,
            lease_floor: row.try_get("lease_floor")?,
            alarms: row.try_get("alarms")?,
        })
    }

    pub fn moment(&self) -> Moment {
        Moment { revision: self.revision, compacted: self.compacted, epoch: self.epoch }
    }

    /// Was this written on the server that `facts` tell of, as it runs now?
    pub fn is_of(&self, facts: &Facts) -> bool {
        self.lineage == facts.lineage && self.started == facts.started
    }
}

/// What a read found beside its rows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moment {
    pub revision: Revision,
    pub compacted: Revision,
    pub epoch: i32,
}

impl Moment {
    fn of(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Moment { revision: row.try_get(0)?, compacted: row.try_get(1)?, epoch: row.try_get(2)? })
    }
}

fn blob(row: &PgRow, i: usize) -> sqlx::Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.try_get::<&[u8], _>(i)?))
}

/// Columns `at…`: key, id, created, version, lease and, if wanted, value.
fn key_value(row: &PgRow, at: usize, with_value: bool) -> sqlx::Result<KeyValue> {
    Ok(KeyValue {
        key: blob(row, at)?,
        mod_revision: row_revision(row.try_get(at + 1)?),
        create_revision: row.try_get(at + 2)?,
        version: row.try_get(at + 3)?,
        lease: row.try_get(at + 4)?,
        value: if with_value { blob(row, at + 5)? } else { Bytes::new() },
    })
}

/// A condition on `column`; the range's bounds are parameters 1 and, where it has an end, 2.
fn within(column: &str, range: &KeyRange) -> String {
    if range.is_single() {
        return format!("{column} = $1 AND $2::bytea IS NULL");
    }
    match range.end_bound() {
        Some(_) => format!("{column} >= $1 AND {column} < $2"),
        None => format!("{column} >= $1 AND $2::bytea IS NULL"),
    }
}

fn end(range: &KeyRange) -> Option<Vec<u8>> {
    if range.is_single() { None } else { range.end_bound().map(|e| e.to_vec()) }
}

/// How many rows to ask for. Without a count, one more than asked tells whether there is more.
fn row_limit(req: &RangeRequest) -> Option<i64> {
    let asked = req.limit.saturating_add(usize::from(req.uncounted));
    (req.limit != 0).then(|| asked.min(i64::MAX as usize) as i64)
}

/// Answers a range ascending by key, at `req.revision` or at the newest. The answer is of no use where the revision that was
/// asked for is not one of [`Moment`]'s history: that is for the caller to see.
pub(crate) async fn range(conn: &mut PgConnection, req: &RangeRequest) -> sqlx::Result<(Moment, RangeResponse)> {
    let counted = !req.range.is_single() && (req.count_only || (!req.uncounted && req.limit != 0));
    let sql = if req.revision > 0 { old_range_sql(req, counted) } else { newest_range_sql(req, counted) };
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(&req.range.start[..]).bind(end(&req.range));
    if !req.count_only || !counted {
        query = query.bind(row_limit(req));
    }
    if req.revision > 0 {
        query = query.bind(last_id(req.revision));
    }
    let rows = query.fetch_all(conn).await?;
    let Some(first) = rows.first() else { return Err(sqlx::Error::RowNotFound) };
    let moment = Moment::of(first)?;
    let total: Option<i64> = first.try_get(3)?;
    let mut kvs = Vec::with_capacity(rows.len());
    if !(req.count_only && counted) {
        for row in &rows {
            if row.try_get::<Option<i64>, _>(5)?.is_some() {
                kvs.push(key_value(row, 4, !req.keys_only)?);
            }
        }
    }
    if !kvs.is_sorted_by(|a, b| a.key <= b.key) {
        kvs.sort_by(|a, b| a.key.cmp(&b.key));
    }
    let mut count = total.map_or(kvs.len() as u64, |n| n as u64);
    let mut more = !req.count_only && count > kvs.len() as u64;
    if req.uncounted && req.limit != 0 && kvs.len() > req.limit {
        kvs.truncate(req.limit);
        (count, more) = (kvs.len() as u64, true);
    }
    if req.count_only {
        kvs.clear();
    }
    Ok((moment, RangeResponse { revision: moment.revision, kvs, count, more }))
}

fn newest_range_sql(req: &RangeRequest, counted: bool) -> String {
    let count = format!("(SELECT count(*) FROM newest n WHERE n.live AND {})", within("n.key", &req.range));
    let total = if counted { &count } else { "NULL::bigint" };
    if counted && req.count_only {
        return format!("SELECT revision, compacted, epoch, {total} FROM meta");
    }
    let value = if req.keys_only { "" } else { ", l.value" };
    format!(
        "SELECT m.revision, m.compacted, m.epoch, {total}, r.* FROM meta m LEFT JOIN LATERAL ( \
           SELECT n.key, l.id, l.created, l.version, l.lease{value} FROM newest n JOIN log l ON l.id = n.id \
           WHERE n.live AND {} ORDER BY n.key LIMIT $3) r ON true",
        within("n.key", &req.range)
    )
}

/// Walks each key's chain back to the revision; what is found there and not deleted counts.
fn old_range_sql(req: &RangeRequest, counted: bool) -> String {
    let only_count = counted && req.count_only;
    let bound = if only_count { "$3" } else { "$4" };
    let found = format!(
        "WITH RECURSIVE walk (key, id) AS ( \
           SELECT n.key, n.id FROM newest n WHERE {} AND (n.live OR n.id > {bound}) \
           UNION ALL SELECT w.key, l.prev FROM walk w JOIN log l ON l.id = w.id WHERE w.id > {bound}), \
         found AS MATERIALIZED ( \
           SELECT w.key, w.id FROM walk w JOIN log l ON l.id = w.id WHERE w.id <= {bound} AND NOT l.deleted)",
        within("n.key", &req.range)
    );
    let total = if counted { "(SELECT count(*) FROM found)" } else { "NULL::bigint" };
    if only_count {
        return format!("{found} SELECT revision, compacted, epoch, {total} FROM meta");
    }
    let value = if req.keys_only { "" } else { ", l.value" };
    format!(
        "{found} SELECT m.revision, m.compacted, m.epoch, {total}, r.* FROM meta m LEFT JOIN LATERAL ( \
           SELECT f.key, l.id, l.created, l.version, l.lease{value} \
           FROM (SELECT key, id FROM found ORDER BY key LIMIT $3) f JOIN log l ON l.id = f.id ORDER BY f.key) r ON true"
    )
}

/// The newest values of `keys`; those that are not there are left out.
pub(crate) async fn newest_of(conn: &mut PgConnection, keys: &[&[u8]]) -> sqlx::Result<Vec<KeyValue>> {
    let sql = "SELECT n.key, l.id, l.created, l.version, l.lease, l.value FROM newest n JOIN log l ON l.id = n.id \
               WHERE n.key = ANY ($1) AND n.live";
    let rows = sqlx::query(sql).bind(keys).fetch_all(conn).await?;
    rows.iter().map(|row| key_value(row, 0, true)).collect()
}

const EVENTS: &str = "SELECT m.revision, m.compacted, m.epoch, e.* FROM meta m LEFT JOIN LATERAL ( \
    SELECT l.key, l.id, l.created, l.version, l.lease, l.value, l.deleted, \
           p.key AS was, p.id AS p_id, p.created AS p_created, p.version AS p_version, p.lease AS p_lease, p.value AS p_value \
    FROM log l LEFT JOIN log p ON p.id = l.prev AND NOT p.deleted \
    WHERE l.id >= $1 AND l.id <= $2 AND l.key >= $3 AND ($4::bytea IS NULL OR l.key < $4) ORDER BY l.id LIMIT $5) e ON true";

fn event(row: &PgRow) -> sqlx::Result<Logged> {
    let id: i64 = row.try_get(4)?;
    let kind = if row.try_get(9)? { EventKind::Delete } else { EventKind::Put };
    let compacted: i64 = row.try_get(1)?;
    // Of what stood there before the compaction nothing is told, whether its row is gone yet or not.
    let prev = match row.try_get::<Option<i64>, _>(11)? {
        Some(_) if row_revision(id) > compacted => Some(key_value(row, 10, true)?),
        _ => None,
    };
    let sub = (id & ((1 << SUB_BITS) - 1)) as u32;
    Ok(Logged { rev: row_revision(id), sub, event: Event { kind, kv: key_value(row, 3, true)?, prev } })
}

async fn events(
    conn: &mut PgConnection,
    range: &KeyRange,
    ids: (i64, i64),
    limit: Option<i64>,
) -> sqlx::Result<(Moment, Vec<Logged>)> {
    let end = range.end_bound().map(|e| e.to_vec());
    let query = sqlx::query(EVENTS).bind(ids.0).bind(ids.1).bind(&range.start[..]).bind(end).bind(limit);
    let rows = query.fetch_all(conn).await?;
    let Some(first) = rows.first() else { return Err(sqlx::Error::RowNotFound) };
    let moment = Moment::of(first)?;
    let mut out = Vec::with_capacity(rows.len());
    for row in &rows {
        if row.try_get::<Option<i64>, _>(4)?.is_some() {
            out.push(event(row)?);
        }
    }
    out.sort_by_key(|l| (l.rev, l.sub));
    Ok((moment, out))
}

/// Transactions of `range` in `[from, to]`, about `limit` events of them, and the revision through which they are complete.
pub(crate) async fn history(
    conn: &mut PgConnection,
    range: &KeyRange,
    from: Revision,
    to: Revision,
    limit: usize,
) -> sqlx::Result<(Moment, Vec<Committed>, Revision)> {
    let (moment, mut found) = events(conn, range, (row_id(from, 0), last_id(to)), Some(limit as i64)).await?;
    let mut through = to;
    if found.len() >= limit
        && let Some(last) = found.last().map(|l| l.rev)
    {
        // The last transaction may go on after the limit.
        found.retain(|l| l.rev < last);
        match found.last() {
            Some(l) => through = l.rev,
            None => {
                found = events(conn, range, (row_id(last, 0), last_id(last)), None).await?.1;
                through = last;
            }
        }
    }
    Ok((moment, transactions(found), through))
}

const ROWS: &str = "SELECT key, id, created, version, lease, value, deleted FROM log WHERE id <= $1 ORDER BY id";

fn entry(row: &PgRow) -> sqlx::Result<HistoryEntry> {
    let id: i64 = row.try_get(1)?;
    let kv = key_value(row, 0, true)?;
    let sub = (id & ((1 << SUB_BITS) - 1)) as u32;
    let deleted: bool = row.try_get(6)?;
    Ok(HistoryEntry { revision: row_revision(id), sub, key: kv.key.clone(), kv: (!deleted).then_some(kv) })
}

/// What [`hash`] and [`entries`] read, however long it takes, is of one moment.
pub(crate) async fn begin_snapshot(conn: &mut PgConnection) -> sqlx::Result<Meta> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0";
    sqlx::raw_sql(begin).execute(&mut *conn).await?;
    Meta::of(&sqlx::query(META).fetch_one(conn).await?)
}

pub(crate) async fn end_snapshot(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql("ROLLBACK").execute(conn).await.map(drop)
}

/// Over everything up to and with `at`; `meta` is what [`begin_snapshot`] returned.
pub(crate) async fn hash(conn: &mut PgConnection, meta: &Meta, at: Revision) -> sqlx::Result<HistoryHash> {
    let mut superseded: HashSet<i64> = HashSet::new();
    let chains = "SELECT prev FROM log WHERE id <= $1 AND prev <> 0 AND prev <= $2";
    let mut rows = sqlx::query(chains).bind(last_id(at)).bind(last_id(meta.compacted)).fetch(&mut *conn);
    while let Some(row) = rows.try_next().await? {
        superseded.insert(row.try_get(0)?);
    }
    drop(rows);
    let mut hasher = HistoryHasher::new();
    let mut rows = sqlx::query(ROWS).bind(last_id(at)).fetch(&mut *conn);
    while let Some(row) = rows.try_next().await? {
        let e = entry(&row)?;
        if is_hashed(e.revision, meta.compacted, e.kv.is_none(), superseded.contains(&row_id(e.revision, e.sub))) {
            hasher.add(e.revision, e.sub, &e.key, e.kv.as_ref());
        }
    }
    drop(rows);
    let (hash, compact_revision, revision) = (hasher.finish(), meta.compacted, meta.revision);
    Ok(HistoryHash { hash, hash_revision: at, compact_revision, revision })
}

/// Sends every entry in parts of `size`, until nobody takes them any more.
pub(crate) async fn entries(
    conn: &mut PgConnection,
    size: usize,
    out: &tokio::sync::mpsc::Sender<crate::Result<Vec<HistoryEntry>>>,
) -> sqlx::Result<()> {
    let mut part = Vec::new();
    let mut rows = sqlx::query(ROWS).bind(i64::MAX).fetch(&mut *conn);
    while let Some(row) = rows.try_next().await? {
        part.push(entry(&row)?);
        if part.len() == size && out.send(Ok(std::mem::take(&mut part))).await.is_err() {
            return Ok(());
        }
    }
    let _ = out.send(Ok(part)).await;
    Ok(())
}

pub(crate) async fn moment(conn: &mut PgConnection) -> sqlx::Result<Moment> {
    Moment::of(&sqlx::query("SELECT revision, compacted, epoch FROM meta").fetch_one(conn).await?)
}

/// Every epoch that was opened.
pub(crate) async fn epochs(conn: &mut PgConnection) -> sqlx::Result<Epochs> {
    let rows = sqlx::query("SELECT base, first FROM epoch ORDER BY epoch").fetch_all(conn).await?;
    let each = rows.iter().map(|r| Ok((r.try_get(0)?, r.try_get(1)?)));
    Ok(Epochs(each.collect::<sqlx::Result<_>>()?))
}

/// A lease's row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseRow {
    pub id: LeaseId,
    pub ttl: i64,
    /// Another one after each renewal. It is made of the deadline by the database's clock, which may have been set since:
    /// it says that somebody has renewed the lease and not when.
    pub stamp: i64,
    pub ended: bool,
}

/// Of `deadline`: microseconds.
pub(crate) const STAMP: &str = "(extract(epoch FROM deadline) * 1000000)::bigint";

fn lease(row: &PgRow) -> sqlx::Result<LeaseRow> {
    Ok(LeaseRow { id: row.try_get(0)?, ttl: row.try_get(1)?, stamp: row.try_get(2)?, ended: row.try_get(3)? })
}

/// Leases that were granted or ended after `change`.
pub(crate) async fn lease_changes(conn: &mut PgConnection, change: i64) -> sqlx::Result<Vec<LeaseRow>> {
    let sql = format!("SELECT id, ttl, {STAMP}, ended FROM lease WHERE change > $1 ORDER BY change");
    sqlx::query(AssertSqlSafe(sql)).bind(change).fetch_all(conn).await?.iter().map(lease).collect()
}

/// The lease if it lives, locked until the transaction ends: it is not kept alive meanwhile.
pub(crate) async fn locked_lease(conn: &mut PgConnection, id: LeaseId) -> sqlx::Result<Option<LeaseRow>> {
    let sql = format!("SELECT id, ttl, {STAMP}, ended FROM lease WHERE id = $1 AND NOT ended FOR UPDATE");
    sqlx::query(AssertSqlSafe(sql)).bind(id).fetch_optional(conn).await?.as_ref().map(lease).transpose()
}

pub(crate) async fn lease_ids(conn: &mut PgConnection) -> sqlx::Result<Vec<LeaseId>> {
    let rows = sqlx::query("SELECT id FROM lease WHERE NOT ended ORDER BY id").fetch_all(conn).await?;
    rows.iter().map(|r| r.try_get(0)).collect()
}

/// A living lease and its keys. What it has left is told by the database's clock, within what it can be.
pub(crate) async fn lease_status(conn: &mut PgConnection, id: LeaseId) -> sqlx::Result<Option<LeaseStatus>> {
    let sql = "SELECT l.ttl, floor(extract(epoch FROM l.deadline - clock_timestamp()))::bigint, n.key FROM lease l \
               LEFT JOIN newest n ON n.lease = $1 AND n.lease <> 0 AND n.live \
               WHERE l.id = $1 AND NOT l.ended ORDER BY n.key";
    let rows = sqlx::query(sql).bind(id).fetch_all(conn).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let mut keys = Vec::new();
    for row in &rows {
        if let Some(key) = row.try_get::<Option<&[u8]>, _>(2)? {
            keys.push(Bytes::copy_from_slice(key));
        }
    }
    let (granted_ttl, left): (i64, i64) = (first.try_get(0)?, first.try_get(1)?);
    Ok(Some(LeaseStatus { id, granted_ttl, ttl: left.clamp(0, granted_ttl), keys }))
}

/// Which keys end with which lease.
pub(crate) async fn leased_keys(conn: &mut PgConnection) -> sqlx::Result<Vec<(LeaseId, Bytes)>> {
    let sql = "SELECT lease, key FROM newest WHERE lease <> 0 AND live";
    let rows = sqlx::query(sql).fetch_all(conn).await?;
    rows.iter().map(|r| Ok((r.try_get(0)?, blob(r, 1)?))).collect()
}

/// Gives leases their whole time again. Not synced to the disk: after a crash of the database every lease gets it anyway.
/// Returns those that live.
pub(crate) async fn keep_alive(conn: &mut PgConnection, ids: &[LeaseId]) -> sqlx::Result<HashMap<LeaseId, LeaseRow>> {
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    // In order of their ids: two servers that keep the same leases alive must not wait for one another.
    let sql = format!(
        "BEGIN; SET LOCAL synchronous_commit = off; \
         UPDATE lease SET deadline = clock_timestamp() + lease.ttl * interval '1 second' \
         FROM (SELECT id FROM lease WHERE id IN ({}) AND NOT ended ORDER BY id FOR UPDATE) alive \
         WHERE lease.id = alive.id RETURNING lease.id, lease.ttl, {STAMP}, lease.ended; COMMIT",
        ids.join(", ")
    );
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(conn).await?;
    rows.iter().map(|row| lease(row).map(|kept| (kept.id, kept))).collect()
}

pub(crate) async fn setting(conn: &mut PgConnection, name: &str) -> sqlx::Result<Option<Bytes>> {
    let row = sqlx::query("SELECT value FROM setting WHERE name = $1").bind(name).fetch_optional(conn).await?;
    row.as_ref().map(|r| blob(r, 0)).transpose()
}

pub(crate) async fn settings(conn: &mut PgConnection) -> sqlx::Result<BTreeMap<String, Bytes>> {
    let rows = sqlx::query("SELECT name, value FROM setting").fetch_all(conn).await?;
    rows.iter().map(|r| Ok((r.try_get(0)?, blob(r, 1)?))).collect()
}

pub(crate) async fn alarm_bits(conn: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::query("SELECT alarms FROM meta").fetch_one(conn).await?.try_get(0)
}

/// Bytes of the tables, their indexes and long values, and about how many of them hold rows that count: what Postgres' own
/// statistics say.
pub(crate) async fn usage(conn: &mut PgConnection) -> sqlx::Result<(i64, f64)> {
    let sql = "SELECT coalesce(sum(pg_relation_size(c.oid) + pg_indexes_size(c.oid) + \
                      coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0)), 0)::bigint, \
                 coalesce(sum(s.n_live_tup)::float8 / nullif(sum(s.n_live_tup + s.n_dead_tup), 0), 1)::float8 \
               FROM pg_class c JOIN pg_namespace ns ON ns.oid = c.relnamespace \
               LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid \
               WHERE ns.nspname = current_schema() AND c.relkind = 'r'";
    let row = sqlx::query(sql).fetch_one(conn).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Takes away the marks of servers that are gone.
pub(crate) async fn forget_servers(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM server WHERE seen < now() - interval '1 day'").execute(conn).await.map(drop)
}

/// One step of a compaction to `to`: looks at `rows` rows of the log, drops what they supersede and the tombstones before
/// `to`. True: there is more to do. Rows of revision `to` itself stay, a watch may start there.
pub(crate) async fn compact_step(conn: &mut PgConnection, lock: i32, to: Revision, rows: i64) -> sqlx::Result<bool> {
    let begin = format!(
        "BEGIN; SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = 0; \
         SELECT pg_advisory_xact_lock({lock}, hashtext(current_schema() || ' compaction'))"
    );
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *conn).await?;
    let from: i64 = sqlx::query("SELECT through FROM compaction").fetch_one(&mut *conn).await?.try_get(0)?;
    let step = "WITH scan AS (SELECT id, prev, deleted FROM log WHERE id >= $1 AND id <= $2 ORDER BY id LIMIT $4), \
         gone AS (SELECT prev AS id FROM scan WHERE prev <> 0 AND prev < $3 \
                  UNION SELECT id FROM scan WHERE deleted AND id < $3), \
         keys AS (DELETE FROM newest n USING scan s, log l \
                  WHERE s.deleted AND s.id < $3 AND l.id = s.id AND n.key = l.key AND n.id = s.id AND NOT n.live), \
         dropped AS (DELETE FROM log WHERE id IN (SELECT id FROM gone)) \
         SELECT count(*), max(id) FROM scan";
    let step = sqlx::query(step).bind(from).bind(last_id(to)).bind(row_id(to, 0)).bind(rows);
    let row = step.fetch_one(&mut *conn).await?;
    let (seen, last): (i64, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
    let more = seen == rows;
    // The next compaction begins at the rows of this one's revision: their tombstones go then.
    let through = if more { last.unwrap_or(from) + 1 } else { row_id(to, 0).max(from) };
    if through != from {
        sqlx::query("UPDATE compaction SET through = $1").bind(through).execute(&mut *conn).await?;
    }
    sqlx::raw_sql("COMMIT").execute(conn).await?;
    Ok(more)
}

/// Marks dead rows' space as free, and gives the end of the files back where nothing is in it.
pub(crate) async fn vacuum(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql("SET statement_timeout = 0").execute(&mut *conn).await?;
    for table in ["meta", "log", "newest", "lease", "server", "compaction"] {
        sqlx::raw_sql(AssertSqlSafe(format!("VACUUM (ANALYZE) {table}"))).execute(&mut *conn).await?;
    }
    sqlx::raw_sql("SET statement_timeout = '60s'").execute(conn).await.map(drop)
}
