//! The writer's side of the database: appends, the ephemeral class, compaction, one SQL transaction for each batch.
//!
//! Invariants: a revision given to an ephemeral key is covered by a reservation on disk before anyone hears of it; what a
//! rolled back batch put into memory is taken out again; a flush writes leases before the keys that end with them; a commit
//! of which nobody knows whether it reached the disk is undone there before anything else is acknowledged.

use super::checkpoint::BEGIN_PAGES;
use super::compaction::{Compaction, PACE};
use super::damage::Damage;
use super::index::Index;
use super::newest;
use super::queries::{self, failed};
use super::reader::{Split, merge};
use super::rows::Rows;
use super::schema::{self, CacheOf};
use crate::log::MemLog;
use crate::machine::Backend;
use crate::*;
use bytes::Bytes;
use parking_lot::RwLock;
use rusqlite::Connection;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// How many revisions are reserved at a time: with one heartbeat in ten seconds, a write in a week.
pub(crate) const BLOCK: i64 = 1 << 16;

/// Pages given back in one step.
const GIVEN_BACK: i64 = 64;
/// One page in so many may be free …
const SPARE: i64 = 5;
/// … and so many always: 4 MB.
const MIN_SPARE: i64 = 1024;

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

/// The SQL transaction that is open.
#[derive(Default)]
pub(crate) struct Open {
    begun: Cell<bool>,
    /// It is not one of reads alone.
    wrote: Cell<bool>,
    /// Why SQLite has rolled it back by itself.
    lost: RefCell<Option<StoreError>>,
}

pub(crate) struct SqliteBackend {
    pub conn: Connection,
    pub memory: Arc<RwLock<MemLog>>,
    pub rows: Arc<Rows>,
    pub index: Index,
    /// Pages of the database, as they were last counted.
    pub size: Arc<AtomicUsize>,
    /// Durable events of this batch and the ids of their rows.
    pub written: Vec<(i64, Event)>,
    pub options: Options,
    /// Revisions up to here may be given to ephemeral keys.
    pub reserved: Revision,
    /// Ephemeral keys that differ from their rows on disk.
    pub dirty: BTreeSet<Bytes>,
    pub ephemeral_leases: HashMap<LeaseId, EphemeralLease>,
    /// Ended leases that still have a row.
    pub ended_leases: Vec<LeaseId>,
    /// Ephemeral leases that this batch granted, ended or made durable, with what they were before.
    pub leases_before: Vec<(LeaseId, Option<EphemeralLease>)>,
    /// The running one.
    pub compaction: Option<Compaction>,
    /// How far memory is compacted when this batch is committed.
    pub memory_compaction: Option<Revision>,
    /// What `compaction` began with, and what `compacted_on_disk` was, before this batch.
    pub compaction_before: Option<(Option<(i64, Revision)>, Revision)>,
    /// Does the log have rows after the last compaction? If not, the next one writes nothing.
    pub last_durable: Revision,
    pub compacted_on_disk: Revision,
    /// Once something is known here, nothing is written any more.
    pub damage: Arc<Damage>,
    /// Set when the disk did not keep what a checkpoint wrote: no more writes until the store is opened anew.
    pub stopped: Arc<OnceLock<StoreError>>,
    pub open: Open,
    /// The last commit failed, and what it wrote may be found after a crash unless another one takes its place.
    pub unsettled: bool,
    /// Pages that the last compaction freed are being given back to the file system.
    pub gives_back: bool,
    /// Pages written since the last checkpoint began, roughly.
    pub pages: usize,
    /// True: a commit has reached the disk since the last look.
    pub committed: bool,
}

impl SqliteBackend {
    fn begin(&self) -> Result<()> {
        if let Some(stopped) = self.stopped.get() {
            return Err(stopped.clone());
        }
        self.check_open()?;
        if self.conn.is_autocommit() {
            self.run("BEGIN IMMEDIATE").map_err(failed("begin to write"))?;
            self.open.begun.set(true);
        }
        Ok(())
    }

    /// A statement of every batch: not parsed each time.
    fn run(&self, statement: &str) -> rusqlite::Result<()> {
        self.conn.prepare_cached(statement)?.execute([]).map(drop)
    }

    fn begin_write(&self) -> Result<()> {
        self.damage.check()?;
        self.begin()?;
        self.open.wrote.set(true);
        Ok(())
    }

    /// After some errors SQLite rolls back by itself. What comes next must not begin anew: it would be committed without
    /// what came before.
    fn check_open(&self) -> Result<()> {
        if !self.open.begun.get() || !self.conn.is_autocommit() {
            return Ok(());
        }
        let lost = || StoreError::Backend {
            context: "cannot write".into(),
            source: Arc::new(std::io::Error::other("SQLite has rolled the transaction back")),
        };
        Err(self.open.lost.borrow().clone().unwrap_or_else(lost))
    }

    /// Remembers damage that was met, and why the transaction is lost.
    fn note<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(e) = &result {
            self.damage.note(e);
            if self.conn.is_autocommit() {
                self.open.lost.borrow_mut().get_or_insert_with(|| e.clone());
            }
        }
        result
    }

    fn end(&mut self) -> Result<()> {
        self.check_open()?;
        if !self.conn.is_autocommit() {
            if self.unsettled {
                // A write, so that the log has another commit where the failed one may stand.
                queries::set_meta(&self.conn, "settled", self.last_durable)?;
            }
            let done = self.run("COMMIT").map_err(|e| self.commit_failed(e));
            self.note(done)?;
            self.index.committed();
            (self.committed, self.unsettled) = (true, false);
            self.open.begun.set(false);
            self.open.wrote.set(false);
        }
        Ok(())
    }

    /// Where the disk is full, the end of the commit is missing; after any other error it may be there or not.
    fn commit_failed(&mut self, e: rusqlite::Error) -> StoreError {
        match failed("commit")(e) {
            StoreError::Backend { context, source } => {
                self.unsettled = true;
                StoreError::Unavailable { context, source }
            }
            definite => definite,
        }
    }

    /// The last row of a durable key, the open batch's among them.
    fn newest_id(&self, key: &[u8]) -> Result<Option<i64>> {
        match self.index.recent(key).map(|p| p.id).or_else(|| self.rows.newest_id(key)) {
            Some(id) => Ok(Some(id)),
            None => Ok(newest::point(&self.conn, key)?.map(|p| p.id)),
        }
    }

    fn append_durable(&mut self, rev: Revision, sub: u32, event: &Event) -> Result<()> {
        self.begin_write()?;
        self.promote_lease(event.kv.lease)?;
        let (id, key) = (queries::row_id(rev, sub), &event.kv.key);
        let prev = self.newest_id(key)?.unwrap_or(0);
        let point = queries::log_event(&self.conn, id, prev, event)?;
        self.index.add(key, point);
        self.written.push((id, Event { prev: None, ..event.clone() }));
        self.pages += 2 + event.kv.value.len() / 4096;
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
            self.leases_before.push((id, Some(lease)));
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

    /// Flushes all and says on disk that nothing is missing. A damaged database
    /// is not written to.
    pub fn shut(&mut self, newest: Revision) -> Result<()> {
        if self.damage.found().is_some() {
            return Ok(());
        }
        while self.has_dirty() {
            self.flush(newest, 1024)?;
        }
        // Nothing is left for the next start to do.
        while !self.index.is_complete() {
            self.begin_write()?;
            self.enter_all()?;
            self.end()?;
        }
        if queries::meta(&self.conn, "clean")? != Some(newest) {
            self.begin_write()?;
            queries::set_meta(&self.conn, "clean", newest)?;
            self.end()?;
        }
        Ok(())
    }

    /// One step of the running compaction, inside the open SQL transaction. True: all is dropped.
    fn compact_step(&mut self) -> Result<bool> {
        let Some(compaction) = &mut self.compaction else { return Ok(false) };
        // First the index of what is to go, so that it leads to none of it.
        let through = queries::last_id(compaction.span().1);
        let step = match self.index.reach(&self.conn, through) {
            Ok(None) => {
                self.pages += PACE.drop / 4;
                compaction.step(&self.conn, PACE)
            }
            Ok(Some(entered)) => {
                self.pages += entered;
                Ok(false)
            }
            Err(e) => Err(e),
        };
        self.note(step)
    }

    /// Ends the transaction with a step of the running compaction. One that is not committed is made again.
    fn end_with_step(&mut self) -> Result<()> {
        let before = self.compaction.as_ref().map(Compaction::span);
        match self.compact_step().and_then(|done| self.end().map(|()| done)) {
            Ok(false) => Ok(()),
            Ok(true) => {
                (self.compaction, self.gives_back) = (None, true);
                Ok(())
            }
            Err(e) => {
                self.compaction = before.map(|(from, to)| Compaction::new(from, to));
                Err(e)
            }
        }
    }

    /// One step of the compaction as a commit of its own, while nothing else waits.
    pub fn compact_idle(&mut self) -> Result<()> {
        self.begin_write().and_then(|()| self.end_with_step()).inspect_err(|_| self.undo())
    }

    /// Gives some of the file's free pages back to the file system, as a commit of its own. Many stay for what is written
    /// next.
    pub fn give_back(&mut self) -> Result<()> {
        let number = |pragma: &str| self.conn.query_row(pragma, [], |r| r.get::<_, i64>(0));
        let space =
            || -> rusqlite::Result<(i64, i64)> { Ok((number("PRAGMA page_count")?, number("PRAGMA freelist_count")?)) };
        let (all, free) = space().map_err(failed("read the database's size"))?;
        let spare = (all / SPARE).max(MIN_SPARE);
        if free < spare + GIVEN_BACK {
            self.gives_back = false;
            return Ok(());
        }
        let step = self.begin_write().and_then(|()| self.vacuum_step()).and_then(|()| self.end());
        if step.is_err() {
            self.undo();
        }
        // The file itself becomes shorter with a checkpoint.
        let last = free - GIVEN_BACK < spare + GIVEN_BACK;
        self.pages += if last { BEGIN_PAGES } else { 2 * GIVEN_BACK as usize };
        step
    }

    /// To how large the database is.
    fn fit(&mut self) -> Result<()> {
        let pages = schema::page_count(&self.conn)?;
        self.index.fit(pages);
        self.size.store(pages, Ordering::Relaxed);
        schema::set_cache(&self.conn, schema::cache_kib(CacheOf::Writer, pages))
    }

    fn enter_all(&mut self) -> Result<()> {
        let step = self.index.reach(&self.conn, i64::MAX);
        self.note(step).map(drop)
    }

    fn vacuum_step(&self) -> Result<()> {
        let run = || -> rusqlite::Result<()> {
            let mut step = self.conn.prepare_cached(&format!("PRAGMA incremental_vacuum({GIVEN_BACK})"))?;
            let mut rows = step.query([])?;
            while rows.next()?.is_some() {}
            Ok(())
        };
        run().map_err(failed("give free pages back"))
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

    fn undo(&mut self) {
        self.index.rolled_back();
        self.open.begun.set(false);
        self.open.wrote.set(false);
        self.open.lost.take();
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
        let find = || match self.newest_id(key)? {
            Some(id) => self.rows.get(&self.conn, key, id),
            None => Ok(None),
        };
        self.note(find())
    }

    fn range(&self, req: &RangeRequest, newest: Revision) -> Result<RangeResponse> {
        let split = Split::of(&req.range, &self.options);
        let at = if req.revision > 0 { req.revision } else { newest };
        let mut answer = RangeResponse::default();
        if split.durable {
            self.begin()?;
            let recent = self.index.of_range(&req.range);
            answer = self.note(match at < newest {
                true => newest::range_at(&self.conn, req, at, &recent),
                false => newest::range_newest(&self.conn, req, &recent),
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
            self.note(appended)?;
        }
        Ok(())
    }

    fn grant(&mut self, id: LeaseId, ttl: i64, durability: Durability) -> Result<()> {
        if durability == Durability::Ephemeral {
            let before = self.ephemeral_leases.insert(id, EphemeralLease { ttl, on_disk: false });
            self.leases_before.push((id, before));
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
            self.leases_before.push((id, Some(lease)));
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
            self.compaction_before = Some((self.compaction.as_ref().map(Compaction::span), self.compacted_on_disk));
            let from = match &self.compaction {
                // Tombstones of the older target stay until a later one: look at them again.
                Some(running) => running.resume_at(),
                None => queries::meta(&self.conn, "compacted_through")?.unwrap_or(0),
            };
            self.compaction = Some(Compaction::new(from, rev));
            self.compacted_on_disk = rev;
        }
        self.memory_compaction = Some(rev);
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
        let is_covered = self.options.ephemeral.is_empty() || newest <= self.reserved;
        if self.damage.found().is_some() && !self.open.wrote.get() && is_covered {
            // Reads go on.
            self.undo();
            self.settle();
            return Ok(());
        }
        self.check_open()?;
        if self.conn.is_autocommit() && !self.unsettled && is_covered {
            self.settle();
            return Ok(());
        }
        self.begin_write()?;
        // A read-only batch stays one: neither a reservation nor a compaction step rides on it.
        let reserved = if self.writes_pending(newest) { self.reserve(newest)? } else { None };
        if self.index.is_due() {
            self.fit()?;
        }
        let entered = self.index.ride(&self.conn);
        self.pages += self.note(entered)?;
        self.end_with_step()?;
        self.reserved = reserved.unwrap_or(self.reserved);
        self.compaction_before = None;
        self.settle();
        self.keep_written();
        Ok(())
    }

    fn rollback(&mut self, newest: Revision) {
        self.undo();
        self.written.clear();
        self.memory.write().truncate_after(newest);
        self.memory_compaction = None;
        for (id, before) in std::mem::take(&mut self.leases_before).into_iter().rev() {
            self.ended_leases.retain(|ended| *ended != id);
            match before {
                Some(lease) => self.ephemeral_leases.insert(id, lease),
                None => self.ephemeral_leases.remove(&id),
            };
        }
        if let Some((compaction, on_disk)) = self.compaction_before.take() {
            self.compaction = compaction.map(|(from, to)| Compaction::new(from, to));
            self.compacted_on_disk = on_disk;
        }
    }
}

impl SqliteBackend {
    /// The batch cannot be taken back any more.
    fn settle(&mut self) {
        self.leases_before.clear();
        if let Some(rev) = self.memory_compaction.take() {
            self.memory.write().compact(rev);
        }
    }

    fn keep_written(&mut self) {
        for (id, event) in self.written.drain(..) {
            match event.kind {
                EventKind::Put => self.rows.keep_written(id, &event.kv),
                EventKind::Delete => self.rows.forget(&event.kv.key, id),
            }
        }
    }

    /// Has this SQL transaction changed anything, or must it, to cover `newest`?
    fn writes_pending(&self, newest: Revision) -> bool {
        newest > self.reserved || self.last_durable == newest
    }
}
