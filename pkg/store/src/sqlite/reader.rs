//! Reads beside the writer: a few connections, used on blocking threads, each read in one snapshot of the database.

use super::damage::Damage;
use super::index::Points;
use super::newest;
use super::queries::{self, failed, row_revision};
use super::rows::Rows;
use super::schema::{self, CacheOf};
use crate::hash::HistoryHasher;
use crate::hub::{Committed, Hub};
use crate::log::{Logged, MemLog, transactions};
use crate::select::select;
use crate::*;
use parking_lot::{Mutex, RwLock};
use rusqlite::Connection;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

const CONNECTIONS: usize = 4;
/// Entries that an export holds at a time.
const EXPORT_PART: usize = 256;

pub(crate) struct Readers {
    path: PathBuf,
    options: Options,
    damage: Arc<Damage>,
    /// With the size of its page cache.
    idle: Mutex<Vec<(Connection, u32)>>,
    /// Pages of the database, about.
    size: Arc<AtomicUsize>,
    free: Arc<Semaphore>,
    /// For syncs beside SQLite's.
    file: Mutex<Option<File>>,
}

/// No reads run, and new ones wait until this is dropped.
pub(crate) struct Paused {
    readers: Arc<Readers>,
    _all: OwnedSemaphorePermit,
}

impl Paused {
    /// Runs `f` nevertheless.
    pub async fn run<R: Send + 'static>(&self, f: impl FnOnce(&Connection) -> Result<R> + Send + 'static) -> Result<R> {
        let readers = Arc::clone(&self.readers);
        tokio::task::spawn_blocking(move || readers.with(f)).await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Readers {
    /// Of a database that is there.
    pub fn new(path: PathBuf, options: Options, damage: Arc<Damage>, size: Arc<AtomicUsize>) -> Arc<Self> {
        // Another layer than the file system's syncs its files itself.
        let file = if options.vfs.is_none() { File::open(&path).ok() } else { None };
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        Arc::new(Readers { path, options, damage, idle: Mutex::new(Vec::new()), size, free, file: Mutex::new(file) })
    }

    /// Waits for the reads that run, at most `wait`.
    pub async fn pause(self: &Arc<Self>, wait: Duration) -> Option<Paused> {
        let all = Arc::clone(&self.free).acquire_many_owned(CONNECTIONS as u32);
        let all = tokio::time::timeout(wait, all).await.ok()?.ok()?;
        Some(Paused { readers: Arc::clone(self), _all: all })
    }

    /// Sees to it that what was written to the database's file is on the disk.
    pub fn sync_file(&self) -> Result<()> {
        let synced = self.file.lock().as_ref().map_or(Ok(()), |file| file.sync_data());
        synced.map_err(|e| StoreError::Backend { context: "cannot sync the database".into(), source: Arc::new(e) })
    }

    /// Runs `f` with a connection on this thread. Only for those that hold a permit: [`Readers::close`] waits for them, so that
    /// the writer's connection is the last one.
    fn with<R>(&self, f: impl FnOnce(&Connection) -> Result<R>) -> Result<R> {
        let idle = self.idle.lock().pop();
        let wanted = schema::cache_kib(CacheOf::Reader, self.size.load(Ordering::Relaxed));
        let conn = match idle {
            Some((conn, kib)) => {
                if kib != wanted {
                    schema::set_cache(&conn, wanted)?;
                }
                conn
            }
            None => schema::connect(&self.path, &self.options, wanted, false)?,
        };
        let result = f(&conn).inspect_err(|e| self.damage.note(e));
        if !self.free.is_closed() {
            self.idle.lock().push((conn, wanted));
        }
        result
    }

    /// Runs `f` with a connection on a blocking thread.
    pub async fn run<R: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&Connection) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let permit = Arc::clone(&self.free).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            readers.with(f)
        });
        work.await.unwrap_or(Err(StoreError::Closed))
    }

    /// An error of a read that was made among others.
    pub fn note(&self, error: &StoreError) {
        self.damage.note(error);
    }

    /// Only once every connection is closed: when a process closes a file, its locks on it end, SQLite's too.
    pub fn close_file(&self) {
        self.file.lock().take();
    }

    /// No new reads; waits for those that run and closes the connections.
    pub async fn close(&self) {
        if let Ok(all) = self.free.acquire_many(CONNECTIONS as u32).await {
            self.free.close();
            drop(all);
        }
        self.idle.lock().clear();
    }
}

/// Which keys of a range are in memory.
pub(crate) struct Split {
    pub durable: bool,
    pub ephemeral: bool,
}

impl Split {
    pub fn of(range: &KeyRange, options: &Options) -> Self {
        if range.is_single() {
            let ephemeral = options.is_ephemeral(&range.start);
            return Split { durable: !ephemeral, ephemeral };
        }
        let classes: Vec<KeyRange> = options.ephemeral.iter().map(|p| KeyRange::prefix(p.clone())).collect();
        let within = |class: &KeyRange| {
            let fits = match (range.end_bound(), class.end_bound()) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(end), Some(class_end)) => end <= class_end,
            };
            range.start >= class.start && fits
        };
        Split { durable: !classes.iter().any(within), ephemeral: classes.iter().any(|c| c.overlaps(range)) }
    }
}

/// Joins the durable and the ephemeral part of an answer.
pub(crate) fn merge(a: RangeResponse, b: RangeResponse, limit: usize) -> RangeResponse {
    let count = a.count + b.count;
    let mut kvs = a.kvs;
    kvs.extend(b.kvs);
    kvs.sort_by(|x, y| x.key.cmp(&y.key));
    let cut = limit != 0 && kvs.len() > limit;
    if cut {
        kvs.truncate(limit);
    }
    RangeResponse { revision: 0, kvs, count, more: a.more || b.more || cut }
}

/// Sends every entry of the database's snapshot, and in their places those that were kept elsewhere, on a thread that may
/// wait for who takes them.
pub(crate) fn send_entries(
    conn: &Connection,
    kept: Vec<HistoryEntry>,
    out: &mpsc::Sender<Result<Vec<HistoryEntry>>>,
) -> Result<()> {
    let mut kept = kept.into_iter().peekable();
    let mut part = Vec::new();
    let mut wanted = true;
    queries::all_entries(conn, &mut |entry| {
        let place = (entry.revision, entry.sub);
        while let Some(earlier) = kept.next_if(|k| (k.revision, k.sub) < place) {
            part.push(earlier);
        }
        part.push(entry);
        wanted = part.len() < EXPORT_PART || out.blocking_send(Ok(std::mem::take(&mut part))).is_ok();
        wanted
    })?;
    part.extend(kept);
    if wanted && !part.is_empty() {
        let _ = out.blocking_send(Ok(part));
    }
    Ok(())
}

/// What a read needs besides the connection.
pub(crate) struct Snapshot {
    pub hub: Arc<Hub>,
    pub memory: Arc<RwLock<MemLog>>,
    pub rows: Arc<Rows>,
    pub recent: Arc<Points>,
    pub options: Options,
}

impl Snapshot {
    /// A read at the newest revision, or at `req.revision`.
    pub fn range(&self, conn: &Connection, req: &RangeRequest) -> Result<RangeResponse> {
        loop {
            match select(req, |plain| self.try_range(conn, plain)) {
                // A compaction passed between choosing the newest revision and reading memory at it: choose again.
                Err(StoreError::Compacted { .. }) if req.revision == 0 => {}
                other => return other,
            }
        }
    }

    /// A read of a single durable key at the newest revision, if its row is in memory.
    pub fn range_kept(&self, req: &RangeRequest) -> Option<RangeResponse> {
        // Before the row: what is found then was the newest at this revision, or is newer and for nobody yet.
        let newest = self.hub.published();
        let (revision, answer) = self.rows.answer(req)?;
        (revision <= newest).then_some(RangeResponse { revision: newest, ..answer })
    }

    /// A read of ephemeral keys alone.
    pub fn range_memory(&self, req: &RangeRequest) -> Result<RangeResponse> {
        let memory = self.memory.read();
        let newest = self.hub.published();
        let at = if req.revision > 0 { req.revision } else { newest };
        Ok(RangeResponse { revision: newest, ..select(req, |plain| memory.range(plain, at))? })
    }

    /// The durable history in its order, then the ephemeral one.
    pub fn hash(&self, conn: &Connection, rev: Revision) -> Result<HistoryHash> {
        let published = self.hub.published();
        let transaction = conn.unchecked_transaction().map_err(failed("begin to read"))?;
        let revision = published.max(queries::last_revision(conn)?);
        let compact_revision = queries::meta(conn, "compacted")?.unwrap_or(0);
        let hash_revision = if rev > 0 { rev } else { revision };
        if hash_revision < compact_revision {
            return Err(StoreError::Compacted { requested: rev, compacted: compact_revision });
        }
        let mut hasher = HistoryHasher::new();
        queries::hash(conn, &mut hasher, compact_revision, hash_revision)?;
        drop(transaction);
        self.hub.wait_for(revision)?;
        self.memory.read().hash(&mut hasher, hash_revision);
        Ok(HistoryHash { hash: hasher.finish(), hash_revision, compact_revision, revision })
    }

    fn try_range(&self, conn: &Connection, req: &RangeRequest) -> Result<RangeResponse> {
        let split = Split::of(&req.range, &self.options);
        // Before the snapshot: all that is published by now is in it.
        let published = self.hub.published();
        let (transaction, last, mut recent) = self.recent.begin(conn, &[&req.range])?;
        let recent = recent.pop().unwrap_or_default();
        let newest = published.max(row_revision(last));
        let compacted = queries::meta(conn, "compacted")?.unwrap_or(0);
        if req.revision > 0 && req.revision < compacted {
            return Err(StoreError::Compacted { requested: req.revision, compacted });
        }
        let mut answer = if req.revision > 0 && req.revision < row_revision(last) {
            newest::range_at(conn, req, req.revision, &recent)?
        } else {
            self.rows.range(conn, req, last, &recent)?
        };
        drop(transaction);
        // The snapshot may hold a commit that is not published yet: nobody may hear of it before the watchers can.
        self.hub.wait_for(newest)?;
        if split.ephemeral {
            let at = if req.revision > 0 { req.revision } else { newest };
            answer = merge(answer, self.memory.read().range(req, at)?, req.limit);
        }
        answer.revision = newest;
        Ok(answer)
    }

    /// Tells the revision and the compacted one, then sends the entries, on a thread that may wait for who takes them.
    pub fn export(
        &self,
        conn: &Connection,
        began: oneshot::Sender<(Revision, Revision)>,
        out: &mpsc::Sender<Result<Vec<HistoryEntry>>>,
    ) -> Result<()> {
        let published = self.hub.published();
        let transaction = conn.unchecked_transaction().map_err(failed("begin to read"))?;
        let revision = published.max(queries::last_revision(conn)?);
        let compacted = queries::meta(conn, "compacted")?.unwrap_or(0);
        self.hub.wait_for(revision)?;
        let kept = self.memory.read().export(revision);
        let _ = began.send((revision, compacted));
        send_entries(&transaction, kept, out)
    }

    pub fn history(
        &self,
        conn: &Connection,
        range: &KeyRange,
        from: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<(Vec<Committed>, Revision)> {
        let split = Split::of(range, &self.options);
        let mut events: Vec<Logged> = Vec::new();
        let mut through = to;
        if split.durable {
            let transaction = conn.unchecked_transaction().map_err(failed("begin to read"))?;
            let compacted = queries::meta(conn, "compacted")?.unwrap_or(0);
            if from < compacted {
                return Err(StoreError::Compacted { requested: from, compacted });
            }
            (events, through) = queries::history(conn, range, from, to, limit)?;
            drop(transaction);
        }
        if split.ephemeral {
            let kept = self.memory.read().history(range, from, through, limit)?;
            if kept.len() >= limit
                && let Some(last) = kept.last()
            {
                through = last.rev;
                events.retain(|l| l.rev <= through);
            }
            events.extend(kept);
            events.sort_by_key(|l| (l.rev, l.sub));
        }
        Ok((transactions(events), through))
    }
}
