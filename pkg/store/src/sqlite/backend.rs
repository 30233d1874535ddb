//! The writer's side of the database: appends, the ephemeral class, compaction, one SQL transaction for each batch.
//!
//! Invariants: a revision given to an ephemeral key is covered by a reservation on disk before anyone hears of it; what a
//! rolled back batch put into memory is taken out again; a flush writes leases before the keys that end with them.

use super::damage::Damage;
use super::queries::{self, failed};
use super::reader::{Split, merge};
use crate::log::MemLog;
use crate::machine::Backend;
use crate::*;
use bytes::Bytes;
use parking_lot::RwLock;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// How many revisions are reserved at a time: with one heartbeat in ten seconds, a write in a week.
pub(crate) const BLOCK: i64 = 1 << 16;
/// Rows that a compaction looks at in one step.
const STEP: usize = 256;

/// Under which an alarm stands in `meta`.
pub(crate) fn alarm_name(alarm: Alarm) -> &'static str {
    match alarm {
        Alarm::NoSpace => "alarm-no-space",
        Alarm::Corrupt => "alarm-corrupt",
    }
}

pub(crate) struct EphemeralLease {
    pub ttl: i64,
    pub on_disk: bool,
}

pub(crate) struct SqliteBackend {
    pub conn: Connection,
    pub memory: Arc<RwLock<MemLog>>,
    pub options: Options,
    /// Revisions up to here may be given to ephemeral keys.
    pub reserved: Revision,
    /// Ephemeral keys that differ from their rows on disk.
    pub dirty: BTreeSet<Bytes>,
    pub ephemeral_leases: HashMap<LeaseId, EphemeralLease>,
    /// Ended leases that still have a row.
    pub ended_leases: Vec<LeaseId>,
    /// Ephemeral leases that this batch made durable, with what they were.
    pub promoted: Vec<(LeaseId, EphemeralLease)>,
    /// Where the running compaction goes on, and its revision.
    pub compaction: Option<(i64, Revision)>,
    /// What `compaction` and `compacted_on_disk` were before this batch.
    pub compaction_before: Option<(Option<(i64, Revision)>, Revision)>,
    /// Does the log have rows after the last compaction? If not, the next one writes nothing.
    pub last_durable: Revision,
    pub compacted_on_disk: Revision,
    /// Once something is known here, nothing is written any more.
    pub damage: Arc<Damage>,
    /// Pages written since the last checkpoint began, roughly.
    pub pages: usize,
    /// True: a commit has reached the disk since the last look.
    pub committed: bool,
    /// Something was written since the last commit.
    pub writing: Cell<bool>,
}

impl SqliteBackend {
    fn begin(&self) -> Result<()> {
        if self.conn.is_autocommit() {
            if self.writing.get() {
                return Err(self.lost());
            }
            self.conn.execute_batch("BEGIN IMMEDIATE").map_err(failed("begin to write"))?;
        }
        Ok(())
    }

    fn begin_write(&self) -> Result<()> {
        self.damage.check()?;
        self.begin()?;
        self.writing.set(true);
        Ok(())
    }

    /// SQLite rolls a whole transaction back where it could not read or write; what was written in it is not there.
    fn lost(&self) -> StoreError {
        let source = std::io::Error::other("the database took the transaction back");
        let lost = || StoreError::Backend { context: "cannot write".into(), source: Arc::new(source) };
        self.damage.found().unwrap_or_else(lost)
    }

    /// Remembers damage that was met.
    fn noted<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|e| self.damage.note(e))
    }

    fn end(&mut self) -> Result<()> {
        if !self.conn.is_autocommit() {
            self.noted(self.conn.execute_batch("COMMIT").map_err(failed("commit")))?;
            self.committed = true;
        } else if self.writing.get() {
            return Err(self.lost());
        }
        self.writing.set(false);
        Ok(())
    }

    fn append_durable(&mut self, rev: Revision, sub: u32, event: &Event) -> Result<()> {
        self.begin_write()?;
        self.promote_lease(event.kv.lease)?;
        queries::append(&self.conn, rev, sub, event)?;
        self.pages += 4 + event.kv.value.len() / 4096;
        self.last_durable = rev;
        Ok(())
    }

    fn append_ephemeral(&mut self, rev: Revision, sub: u32, event: &Event, durability: Durability) -> Result<()> {
        self.memory.write().append(rev, sub, event);
        if durability == Durability::Ephemeral {
            self.dirty.insert(event.kv.key.clone());
            return Ok(());
        }
        self.begin_write()?;
        self.promote_lease(event.kv.lease)?;
        match event.kind {
            EventKind::Put => queries::put_ephemeral(&self.conn, &event.kv),
            EventKind::Delete => queries::delete_ephemeral(&self.conn, &event.kv.key),
        }
    }

    /// A durable key must not end with a lease that a crash forgets.
    fn promote_lease(&mut self, id: LeaseId) -> Result<()> {
        if id != 0
            && let Some(lease) = self.ephemeral_leases.remove(&id)
        {
            queries::put_lease(&self.conn, id, lease.ttl, false)?;
            self.promoted.push((id, lease));
        }
        Ok(())
    }

    /// Reserves revisions where the class exists and fewer than half a block are left.
    fn reserve(&self, newest: Revision) -> Result<Option<Revision>> {
        if self.options.ephemeral.is_empty() || self.reserved - newest >= BLOCK / 2 {
            return Ok(None);
        }
        let reserved = newest + BLOCK;
        queries::set_meta(&self.conn, "reserved", reserved)?;
        Ok(Some(reserved))
    }

    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.ended_leases.is_empty()
    }

    /// Writes up to `limit` dirty keys to the disk as they are at `newest`, in one commit.
    pub fn flush(&mut self, newest: Revision, limit: usize) -> Result<()> {
        self.try_flush(newest, limit).inspect_err(|_| self.undo())
    }

    fn try_flush(&mut self, newest: Revision, limit: usize) -> Result<()> {
        self.begin_write()?;
        for id in &self.ended_leases {
            queries::delete_lease(&self.conn, *id)?;
        }
        for (id, lease) in self.ephemeral_leases.iter().filter(|(_, l)| !l.on_disk) {
            queries::put_lease(&self.conn, *id, lease.ttl, true)?;
        }
        let keys: Vec<Bytes> = self.dirty.iter().take(limit).cloned().collect();
        for key in &keys {
            let kv = self.memory.read().get(key, newest).cloned();
            match kv {
                Some(kv) => queries::put_ephemeral(&self.conn, &kv)?,
                None => queries::delete_ephemeral(&self.conn, key)?,
            }
        }
        self.pages += 2 * keys.len();
        self.end()?;
        self.ended_leases.clear();
        self.ephemeral_leases.values_mut().for_each(|l| l.on_disk = true);
        for key in &keys {
            self.dirty.remove(key);
        }
        Ok(())
    }

    /// Flushes all and says on disk that nothing is missing. Of a damaged database everything stays as it is, for a repair.
    pub fn shut(&mut self, newest: Revision) -> Result<()> {
        if self.damage.found().is_some() {
            let keep = self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
            return keep.map(drop).map_err(failed("keep the write-ahead log"));
        }
        while self.has_dirty() {
            self.flush(newest, 1024)?;
        }
        if queries::meta(&self.conn, "clean")? != Some(newest) {
            self.begin_write()?;
            queries::set_meta(&self.conn, "clean", newest)?;
            self.end()?;
        }
        Ok(())
    }

    /// One step of the running compaction, inside the open SQL transaction.
    fn compact_step(&mut self) -> Result<()> {
        let Some((from, to)) = self.compaction else { return Ok(()) };
        let next = self.noted(queries::compact_step(&self.conn, from, to, STEP))?;
        // The next compaction begins at the rows of this one's revision: their tombstones go then.
        queries::set_meta(&self.conn, "compacted_through", next.unwrap_or(queries::row_id(to, 0)))?;
        self.compaction = next.map(|id| (id, to));
        self.pages += STEP / 4;
        Ok(())
    }

    /// A step of the compaction as a commit of its own, while nothing else waits.
    pub fn compact_idle(&mut self) -> Result<()> {
        let before = self.compaction;
        let step = self.begin_write().and_then(|()| self.compact_step()).and_then(|()| self.end());
        if step.is_err() {
            self.compaction = before;
            self.undo();
        }
        step
    }

    /// Rewrites the file without its free pages.
    pub fn defragment(&mut self) -> Result<()> {
        self.damage.check()?;
        self.conn.execute_batch("VACUUM").map_err(failed("defragment the database"))?;
        // The new pages went through the write-ahead log, as long as the file itself.
        let checkpoint = || self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        checkpoint().map_err(failed("shorten the write-ahead log"))?;
        self.pages = 0;
        Ok(())
    }

    fn undo(&self) {
        self.writing.set(false);
        if !self.conn.is_autocommit()
            && let Err(e) = self.conn.execute_batch("ROLLBACK")
        {
            tracing::error!(error = %e, "cannot roll back");
        }
    }
}

impl Backend for SqliteBackend {
    fn get(&self, key: &[u8], newest: Revision) -> Result<Option<KeyValue>> {
        if self.options.is_ephemeral(key) {
            return Ok(self.memory.read().get(key, newest).cloned());
        }
        // Inside the batch's SQL transaction from the first read on: no lock taken and dropped for each statement.
        self.begin()?;
        self.noted(queries::get(&self.conn, key))
    }

    fn range(&self, req: &RangeRequest, newest: Revision) -> Result<RangeResponse> {
        let split = Split::of(&req.range, &self.options);
        let at = if req.revision > 0 { req.revision } else { newest };
        let mut answer = RangeResponse::default();
        if split.durable {
            self.begin()?;
            answer = self.noted(if at < newest {
                queries::range_at(&self.conn, req, at)
            } else {
                queries::range_newest(&self.conn, req)
            })?;
        }
        if split.ephemeral {
            answer = merge(answer, self.memory.read().range(req, at)?, req.limit);
        }
        answer.revision = newest;
        Ok(answer)
    }

    fn append(&mut self, rev: Revision, events: &[Event], durability: Durability) -> Result<()> {
        self.damage.check()?;
        for (sub, event) in (0..).zip(events) {
            let appended = if self.options.is_ephemeral(&event.kv.key) {
                self.append_ephemeral(rev, sub, event, durability)
            } else {
                self.append_durable(rev, sub, event)
            };
            self.noted(appended)?;
        }
        Ok(())
    }

    fn grant(&mut self, id: LeaseId, ttl: i64, durability: Durability) -> Result<()> {
        if durability == Durability::Ephemeral {
            self.ephemeral_leases.insert(id, EphemeralLease { ttl, on_disk: false });
            return Ok(());
        }
        self.begin_write()?;
        queries::put_lease(&self.conn, id, ttl, false)
    }

    fn revoke(&mut self, id: LeaseId) -> Result<()> {
        if let Some(lease) = self.ephemeral_leases.remove(&id) {
            if lease.on_disk {
                self.ended_leases.push(id);
            }
            return Ok(());
        }
        self.begin_write()?;
        queries::delete_lease(&self.conn, id)
    }

    fn compact(&mut self, rev: Revision) -> Result<()> {
        // Without a durable row since the last compaction there is nothing on disk to drop: an idle store writes nothing.
        if self.last_durable > self.compacted_on_disk {
            self.begin_write()?;
            queries::set_meta(&self.conn, "compacted", rev)?;
            self.compaction_before = Some((self.compaction, self.compacted_on_disk));
            let from = match self.compaction {
                // Tombstones of the older target stay until a later one: look at them again.
                Some((from, to)) => from.min(queries::row_id(to, 0)),
                None => queries::meta(&self.conn, "compacted_through")?.unwrap_or(0),
            };
            self.compaction = Some((from, rev));
            self.compacted_on_disk = rev;
        }
        self.memory.write().compact(rev);
        Ok(())
    }

    fn set_alarm(&mut self, alarm: Alarm, raised: bool) -> Result<()> {
        self.begin_write()?;
        match raised {
            true => queries::set_meta(&self.conn, alarm_name(alarm), 1),
            false => queries::clear_meta(&self.conn, alarm_name(alarm)),
        }
    }

    fn set_setting(&mut self, name: &str, value: Option<&[u8]>) -> Result<()> {
        self.begin_write()?;
        queries::set_setting(&self.conn, name, value)
    }

    fn commit(&mut self, newest: Revision) -> Result<()> {
        if self.conn.is_autocommit()
            && !self.writing.get()
            && (self.options.ephemeral.is_empty() || newest <= self.reserved)
        {
            return Ok(());
        }
        self.begin_write()?;
        // A read-only batch stays one: neither a reservation nor a compaction step rides on it.
        let reserved = if self.writes_pending(newest) { self.reserve(newest)? } else { None };
        let before = self.compaction;
        if self.compaction.is_some() {
            self.compact_step()?;
        }
        if let Err(e) = self.end() {
            self.compaction = before;
            return Err(e);
        }
        self.reserved = reserved.unwrap_or(self.reserved);
        self.promoted.clear();
        self.compaction_before = None;
        Ok(())
    }

    fn rollback(&mut self, newest: Revision) {
        self.undo();
        self.memory.write().truncate_after(newest);
        self.ephemeral_leases.extend(self.promoted.drain(..));
        if let Some((compaction, on_disk)) = self.compaction_before.take() {
            (self.compaction, self.compacted_on_disk) = (compaction, on_disk);
        }
    }
}

impl SqliteBackend {
    /// Has this SQL transaction changed anything, or must it, to cover `newest`?
    fn writes_pending(&self, newest: Revision) -> bool {
        newest > self.reserved || self.last_durable == newest
    }
}
