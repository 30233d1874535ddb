//! The writer's side of the log: one SQL transaction for each batch, opened by [`super::sync`], which also reads what the
//! batch is going to look at.
//!
//! Invariants: what is written waits in memory until a range has to see it or the batch ends, so that a batch costs four
//! exchanges with the server, however many transactions it has; the revision, the rows and the notification of a batch
//! commit together; a batch in which any statement failed is not committed; a commit whose answer was lost is looked up
//! before anybody is told anything.

use super::connect::{PATIENCE, STATEMENT};
use super::epoch::Epochs;
use super::queries::{self, Meta, row_id};
use super::session::Session;
use crate::machine::Backend;
use crate::*;
use bytes::Bytes;
use parking_lot::RwLock;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A row of the log that is not yet written.
pub(crate) struct Pending {
    pub id: i64,
    /// The row before it; `None`: the one that the database has.
    pub prev: Option<i64>,
    pub deleted: bool,
    pub kv: KeyValue,
}

/// What a batch writes last: its revision, its mark, and the news for the other servers.
pub(crate) struct Seal {
    meta: Meta,
    server: i64,
    batch: i64,
}

/// Bytes that wait at most.
pub(crate) const PENDING: usize = 8 << 20;
/// Each so many ended leases, the older ones' rows go …
const LEASES_TRIMMED: i64 = 256;
/// … but for so many changes, which other servers may not have seen.
const LEASES_KEPT: i64 = 1024;
/// Seconds; see [`crate::leases`].
pub(crate) const MAX_TTL: i64 = 9_000_000_000;

/// In which bit an alarm stands in `meta`.
pub(crate) fn alarm_bit(alarm: Alarm) -> i32 {
    match alarm {
        Alarm::NoSpace => 1,
        Alarm::Corrupt => 2,
    }
}

/// The open batch, or what is between two.
pub(crate) struct Batch {
    pub session: Session,
    /// The epochs that this server knows.
    pub epochs: Arc<RwLock<Epochs>>,
    /// This server's row in the table of that name.
    pub server_id: i64,
    /// As the open batch found it, and as it will leave it.
    pub meta: Meta,
    /// The newest state of keys, read or written by the open batch; `None`: not there.
    pub known: HashMap<Bytes, Option<KeyValue>>,
    pending: Vec<Pending>,
    pending_bytes: usize,
    /// The newest row that this batch made of a key.
    last_rows: HashMap<Bytes, i64>,
    /// Something is to be committed.
    changed: bool,
    /// A statement of this batch failed: the server commits nothing any more, without saying so.
    broken: Option<StoreError>,
    batch: i64,
    /// A batch of this server was committed: there is a mark of it.
    marked: bool,
    /// The stamp of the lease that was granted last.
    pub granted: i64,
    /// True: the last batch failed, has certainly not been committed, and may be tried again.
    pub retry: bool,
}

impl Batch {
    pub fn new(session: Session, meta: Meta, epochs: Arc<RwLock<Epochs>>) -> Self {
        Batch {
            session,
            epochs,
            server_id: (rand::random::<u64>() >> 1) as i64,
            meta,
            known: HashMap::new(),
            pending: Vec::new(),
            pending_bytes: 0,
            last_rows: HashMap::new(),
            changed: false,
            broken: None,
            batch: 0,
            marked: false,
            granted: 0,
            retry: false,
        }
    }

    /// Forgets the batch; what the server has of it is taken back.
    pub fn reset(&mut self) {
        self.session.rollback();
        self.known.clear();
        self.pending.clear();
        self.pending_bytes = 0;
        self.last_rows.clear();
        self.changed = false;
        self.broken = None;
    }

    /// Runs `work` in the batch's SQL transaction.
    fn run<T>(&mut self, what: &str, work: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>) -> Result<T> {
        self.run_within(STATEMENT, what, work)
    }

    fn run_within<T>(
        &mut self,
        limit: Duration,
        what: &str,
        work: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
    ) -> Result<T> {
        if let Some(e) = &self.broken {
            return Err(e.clone());
        }
        let result = self.session.run_within(limit, what, work);
        self.broken = result.as_ref().err().cloned();
        result
    }

    /// Writes the rows that wait; with `seal`, what ends the batch too.
    fn write(&mut self, seal: Option<Seal>) -> Result<()> {
        let rows = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let limit = STATEMENT + Duration::from_micros(100) * u32::try_from(rows.len()).unwrap_or(u32::MAX);
        self.run_within(limit, "write", async |conn| write(conn, &rows, seal).await)
    }

    fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() { Ok(()) } else { self.write(None) }
    }

    /// The next number for a change of leases.
    fn lease_change(&mut self) -> i64 {
        self.changed = true;
        self.meta.lease_change += 1;
        self.meta.lease_change
    }

    fn trim_leases(&mut self) -> Result<()> {
        if self.meta.lease_change % LEASES_TRIMMED != 0 {
            return Ok(());
        }
        let floor = self.meta.lease_change - LEASES_KEPT;
        if floor <= self.meta.lease_floor {
            return Ok(());
        }
        self.meta.lease_floor = floor;
        self.run("drop the rows of old leases", async |conn| {
            sqlx::query("DELETE FROM lease WHERE ended AND change <= $1").bind(floor).execute(conn).await.map(drop)
        })
    }

    fn seal(&mut self, newest: Revision) -> Seal {
        self.batch += 1;
        self.meta.revision = newest;
        Seal { meta: self.meta.clone(), server: self.server_id, batch: self.batch }
    }

    fn try_commit(&mut self, newest: Revision) -> Result<()> {
        self.retry = false;
        if let Some(e) = self.broken.take() {
            self.retry = self.session.passing;
            return Err(e);
        }
        if !self.changed {
            // Nothing was written, so nothing has to reach the disk.
            self.reset();
            return Ok(());
        }
        let seal = self.seal(newest);
        if let Err(e) = self.write(Some(seal)) {
            self.retry = self.session.passing;
            return Err(e);
        }
        if let Err(e) = self.session.commit() {
            self.look_up(e)?;
        }
        self.marked = true;
        self.reset();
        Ok(())
    }

    /// After a commit without an answer: was it done?
    fn look_up(&mut self, error: StoreError) -> Result<()> {
        self.session.disconnect();
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            match self.last_batch() {
                Ok(Some(batch)) if batch == self.batch => return Ok(()),
                // The mark is gone: other servers take those away that are days old, as all are to one that has slept or
                // whose database's clock was set.
                Ok(None) if self.marked => break,
                Ok(_) => {
                    self.retry = true;
                    return Err(error);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        let e = isopod_base::errors::Chain(&error).to_string();
        tracing::warn!(error = e, "whether the last writes were committed is not known until the database answers");
        Err(error)
    }

    /// The number of this server's last batch that is committed. Whoever still commits holds the lock that is taken here.
    fn last_batch(&mut self) -> Result<Option<i64>> {
        self.session.facts()?;
        self.session.begin("look for the last commit", async |conn| {
            sqlx::raw_sql("BEGIN; SELECT revision FROM meta FOR UPDATE").fetch_all(conn).await.map(drop)
        })?;
        let id = self.server_id;
        let found = self.session.run("look for the last commit", async |conn| {
            let row = sqlx::query("SELECT batch FROM server WHERE id = $1").bind(id).fetch_optional(conn).await?;
            row.map(|r| r.try_get(0)).transpose()
        });
        self.session.rollback();
        found
    }
}

/// Every part of the statement sees the index as it was before.
const APPEND: &str = "entry AS MATERIALIZED ( \
       SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::boolean[], \
                            $7::boolean[], $8::bytea[], $9::bytea[]) \
         AS t (id, prev, created, version, lease, deleted, newest, key, value)), \
     history AS ( \
       INSERT INTO log (id, prev, created, version, lease, deleted, key, value) \
       SELECT id, CASE WHEN prev >= 0 THEN prev ELSE coalesce((SELECT n.id FROM newest n WHERE n.key = entry.key), 0) END, \
              created, version, lease, deleted, key, value FROM entry), \
     index AS ( \
       INSERT INTO newest (key, id, lease, live) SELECT key, id, lease, NOT deleted FROM entry WHERE newest ORDER BY key \
       ON CONFLICT (key) DO UPDATE SET id = excluded.id, lease = excluded.lease, live = excluded.live)";
const SEAL: &str = "revision AS ( \
       UPDATE meta SET revision = $10, compacted = $11, lease_change = $12, lease_floor = $13, alarms = $14), \
     mark AS ( \
       INSERT INTO server (id, batch, seen) VALUES ($15, $16, now()) \
       ON CONFLICT (id) DO UPDATE SET batch = $16, seen = now())";

/// Appends to the log and turns the index to what is newest in it.
pub(crate) async fn write(conn: &mut PgConnection, rows: &[Pending], seal: Option<Seal>) -> sqlx::Result<()> {
    let column = |f: fn(&Pending) -> i64| rows.iter().map(f).collect::<Vec<i64>>();
    let deleted: Vec<bool> = rows.iter().map(|r| r.deleted).collect();
    let newest: HashMap<&[u8], i64> = rows.iter().map(|r| (&r.kv.key[..], r.id)).collect();
    let is_newest: Vec<bool> = rows.iter().map(|r| newest.get(&r.kv.key[..]) == Some(&r.id)).collect();
    let keys: Vec<&[u8]> = rows.iter().map(|r| &r.kv.key[..]).collect();
    let values: Vec<&[u8]> = rows.iter().map(|r| &r.kv.value[..]).collect();
    let sql = match &seal {
        Some(_) => format!("WITH {APPEND}, {SEAL} SELECT pg_notify(current_schema(), $17)"),
        None => format!("WITH {APPEND} SELECT 1"),
    };
    let mut query = sqlx::query(AssertSqlSafe(sql))
        .bind(column(|r| r.id))
        .bind(column(|r| r.prev.unwrap_or(-1)))
        .bind(column(|r| r.kv.create_revision))
        .bind(column(|r| r.kv.version))
        .bind(column(|r| r.kv.lease))
        .bind(deleted)
        .bind(is_newest)
        .bind(keys)
        .bind(values);
    if let Some(Seal { meta, server, batch }) = seal {
        query = query.bind(meta.revision).bind(meta.compacted).bind(meta.lease_change).bind(meta.lease_floor);
        query = query.bind(meta.alarms).bind(server).bind(batch).bind(meta.revision.to_string());
    }
    query.execute(conn).await.map(drop)
}

impl Batch {
    fn get(&mut self, key: &[u8]) -> Result<Option<KeyValue>> {
        if let Some(known) = self.known.get(key) {
            return Ok(known.clone());
        }
        let found = self.run("read a key", async |conn| queries::newest_of(conn, &[key]).await)?.pop();
        self.known.insert(Bytes::copy_from_slice(key), found.clone());
        Ok(found)
    }

    fn range(&mut self, req: &RangeRequest, newest: Revision) -> Result<RangeResponse> {
        if req.revision > 0 {
            self.epochs.read().check_read(req.revision)?;
        }
        self.flush()?;
        let mut plain = req.clone();
        if plain.revision >= newest {
            plain.revision = 0;
        }
        let (_, answer) = self.run("read a range", async |conn| queries::range(conn, &plain).await)?;
        Ok(RangeResponse { revision: newest, ..answer })
    }

    fn append(&mut self, rev: Revision, events: &[Event]) -> Result<()> {
        self.changed = true;
        for (sub, event) in (0..).zip(events) {
            let (id, key) = (row_id(rev, sub), event.kv.key.clone());
            let prev = self.last_rows.insert(key.clone(), id);
            let deleted = event.kind == EventKind::Delete;
            self.pending_bytes += key.len() + event.kv.value.len();
            self.known.insert(key, (!deleted).then(|| event.kv.clone()));
            self.pending.push(Pending { id, prev, deleted, kv: event.kv.clone() });
            if self.pending_bytes > PENDING {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn grant(&mut self, id: LeaseId, ttl: i64) -> Result<()> {
        let (ttl, change) = (ttl.clamp(1, MAX_TTL), self.lease_change());
        let sql = format!(
            "INSERT INTO lease (id, ttl, deadline, change, ended) \
             VALUES ($1, $2, clock_timestamp() + $2 * interval '1 second', $3, false) \
             ON CONFLICT (id) DO UPDATE SET ttl = excluded.ttl, deadline = excluded.deadline, \
               change = excluded.change, ended = false RETURNING {}",
            queries::STAMP
        );
        self.granted = self.run("grant a lease", async |conn| {
            let granted = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(ttl).bind(change).fetch_one(conn).await?;
            granted.try_get(0)
        })?;
        self.trim_leases()
    }

    fn revoke(&mut self, id: LeaseId) -> Result<()> {
        let change = self.lease_change();
        self.run("end a lease", async |conn| {
            let sql = "UPDATE lease SET ended = true, change = $2 WHERE id = $1";
            sqlx::query(sql).bind(id).bind(change).execute(conn).await.map(drop)
        })?;
        self.trim_leases()
    }

    pub fn setting(&mut self, name: &str) -> Result<Option<Bytes>> {
        self.run("read a setting", async |conn| queries::setting(conn, name).await)
    }

    fn set_setting(&mut self, name: &str, value: Option<&[u8]>) -> Result<()> {
        self.changed = true;
        self.run("write a setting", async |conn| match value {
            Some(value) => {
                let sql = "INSERT INTO setting (name, value) VALUES ($1, $2) \
                           ON CONFLICT (name) DO UPDATE SET value = excluded.value";
                sqlx::query(sql).bind(name).bind(value).execute(conn).await.map(drop)
            }
            None => sqlx::query("DELETE FROM setting WHERE name = $1").bind(name).execute(conn).await.map(drop),
        })
    }
}

/// The machine reads through a shared reference; a connection does not.
pub(crate) struct PostgresBackend(RefCell<Batch>);

impl PostgresBackend {
    pub fn new(session: Session, meta: Meta, epochs: Arc<RwLock<Epochs>>) -> Self {
        PostgresBackend(RefCell::new(Batch::new(session, meta, epochs)))
    }

    pub fn batch(&mut self) -> &mut Batch {
        self.0.get_mut()
    }
}

impl Backend for PostgresBackend {
    fn get(&self, key: &[u8], _: Revision) -> Result<Option<KeyValue>> {
        self.0.borrow_mut().get(key)
    }
    fn range(&self, req: &RangeRequest, newest: Revision) -> Result<RangeResponse> {
        self.0.borrow_mut().range(req, newest)
    }
    fn append(&mut self, rev: Revision, events: &[Event], _: Durability) -> Result<()> {
        self.batch().append(rev, events)
    }
    fn grant(&mut self, id: LeaseId, ttl: i64, _: Durability) -> Result<()> {
        self.batch().grant(id, ttl)
    }
    fn revoke(&mut self, id: LeaseId) -> Result<()> {
        self.batch().revoke(id)
    }
    fn compact(&mut self, rev: Revision) -> Result<()> {
        let batch = self.batch();
        (batch.changed, batch.meta.compacted) = (true, rev);
        Ok(())
    }
    fn set_alarm(&mut self, alarm: Alarm, raised: bool) -> Result<()> {
        let batch = self.batch();
        batch.changed = true;
        match raised {
            true => batch.meta.alarms |= alarm_bit(alarm),
            false => batch.meta.alarms &= !alarm_bit(alarm),
        }
        Ok(())
    }
    fn set_setting(&mut self, name: &str, value: Option<&[u8]>) -> Result<()> {
        self.batch().set_setting(name, value)
    }
    fn commit(&mut self, newest: Revision) -> Result<()> {
        self.batch().try_commit(newest)
    }
    fn rollback(&mut self, _: Revision) {
        self.batch().reset();
    }
}
