//! The store on SQLite: one file, one writer thread, a few readers beside it.
//!
//! Durable keys live in the database and only there; ephemeral keys live in memory and reach the database lazily. Reads take
//! one snapshot of the database and, where the range has ephemeral keys, the memory at the same revision.

mod backend;
mod check;
mod checkpoint;
mod compaction;
mod content;
mod damage;
mod draft;
mod files;
mod index;
mod lock;
mod migrate;
mod newest;
mod pages;
mod points;
mod queries;
mod reader;
mod records;
mod recovery;
mod repair;
mod rows;
mod schema;
mod sums;
mod wal;
mod writer;

pub use check::check;
pub use repair::{Repair, repair};

use crate::hub::{Committed, History};
use crate::machine::{Machine, Shared};
use crate::*;
use async_trait::async_trait;
use bytes::Bytes;
use checkpoint::Checkpoints;
use damage::Damage;
use files::Files;
use lock::DirectoryLock;
use points::Points;
use queries::failed;
use reader::{Readers, Snapshot, Split};
use schema::CacheOf;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::oneshot;
use writer::{Reply, Request, Writer};

pub use content::{content, exists, seed};

/// See the module. Share it in an `Arc`; when the last one is dropped it closes by itself, without telling when.
pub struct SqliteStore {
    requests: UnboundedSender<Request>,
    readers: Arc<Readers>,
    snapshot: Arc<Snapshot>,
    points: Arc<Points>,
    shared: Arc<Shared>,
}

impl SqliteStore {
    /// Fails with [`StoreError::InUse`] while a process has the directory open.
    pub fn check_unused(dir: impl AsRef<Path>) -> Result<()> {
        lock::DirectoryLock::take(dir.as_ref()).map(drop)
    }

    /// Opens or creates `dir/state.db`, within a tokio runtime. Fails with [`StoreError::InUse`] while another process has
    /// it open, with [`StoreError::Format`] when a newer version wrote it, and with [`StoreError::Corrupt`] when acknowledged
    /// writes cannot be read back. An older version's is brought up to date.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        let dir = dir.as_ref();
        Self::try_open(dir, options).map_err(|e| match e {
            StoreError::Corrupt(text) => StoreError::Corrupt(format!("{text}; {}", damage::REMEDY)),
            e => e,
        })
    }

    fn try_open(dir: &Path, options: Options) -> Result<Self> {
        // One clock for all, from the first lease that is read: the machine's may be set meanwhile, most of all while it boots.
        let options = Options { clock: options.clock.steady(), ..options };
        let runtime = tokio::runtime::Handle::current();
        make_directory(dir)?;
        let mut lock = DirectoryLock::take(dir)?;
        let files = Files::of(dir);
        let damage = Arc::new(Damage::default());
        schema::prepare(&files, lock.same_boot, options.vfs.as_deref())?;
        let conn = schema::connect(&files.database, &options, schema::cache_kib(CacheOf::Writer, 0), true)?;
        checkpoint::settle(&conn)?;
        schema::check_format(&conn, dir)?;
        let recovered = recovery::recover(conn, options.clone(), Arc::clone(&damage))?;
        lock.opened()?;

        let size = Arc::clone(&recovered.backend.size);
        let readers = Readers::new(files.database, options.clone(), Arc::clone(&damage), size);
        let shared = Shared::new(options.clone(), recovered.revision, recovered.compacted, recovered.leases);
        *shared.alarms.lock() = recovered.alarms;
        *shared.settings.lock() = recovered.settings;
        damage.watch_over(Arc::downgrade(&shared));
        let snapshot = Arc::new(Snapshot {
            hub: Arc::clone(&shared.hub),
            memory: Arc::clone(&recovered.backend.memory),
            rows: Arc::clone(&recovered.backend.rows),
            recent: Arc::clone(&recovered.backend.index.points),
            options,
        });
        let (sender, requests) = mpsc::unbounded_channel();
        let checkpoints = Checkpoints {
            readers: Arc::clone(&readers),
            runtime: runtime.clone(),
            writer: sender.downgrade(),
            running: AtomicBool::new(false),
            again: AtomicBool::new(false),
            limit: AtomicI64::new(checkpoint::LIMIT_FRAMES),
            stopped: Arc::clone(&recovered.backend.stopped),
        };
        let writer = Writer {
            machine: Machine { backend: recovered.backend, revision: recovered.revision, shared: Arc::clone(&shared) },
            requests,
            runtime: runtime.clone(),
            lock,
            checkpoints: Arc::new(checkpoints),
            flush_due: false,
            crowded: false,
            compacting: Vec::new(),
            sender: sender.downgrade(),
        };
        std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run()).map_err(|e| {
            StoreError::Backend { context: "cannot start the store's writer thread".into(), source: Arc::new(e) }
        })?;
        let points = Points::new(Arc::clone(&readers), Arc::clone(&snapshot));
        let store = SqliteStore { requests: sender, readers, snapshot, points, shared };
        store.start_expiry(&runtime);
        if recovered.unclean {
            check::start(&runtime, &store.readers);
        }
        Ok(store)
    }

    fn start_expiry(&self, runtime: &tokio::runtime::Handle) {
        let shared = Arc::downgrade(&self.shared);
        let requests = self.requests.downgrade();
        runtime.spawn(async move {
            while let Some(expired) = Shared::next_expired(&shared).await {
                let Some(requests) = requests.upgrade() else { return };
                // Answered only when it is done, or the same leases would be found again at once.
                let (done, wait) = oneshot::channel();
                if requests.send(Request::Expire(expired, done)).is_err() || wait.await.is_err() {
                    return;
                }
            }
        });
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// A new directory survives a power cut once the one above it has been synced. SQLite syncs `dir` itself with its first file.
fn make_directory(dir: &Path) -> Result<()> {
    let run = || -> std::io::Result<()> {
        let dir = std::path::absolute(dir)?;
        let new: Vec<&Path> = dir.ancestors().take_while(|d| !d.exists()).collect();
        std::fs::create_dir_all(&dir)?;
        new.into_iter().filter_map(Path::parent).try_for_each(|above| std::fs::File::open(above)?.sync_all())
    };
    run().map_err(|e| StoreError::Backend { context: format!("cannot create {}", dir.display()), source: Arc::new(e) })
}

struct SqliteHistory {
    readers: Arc<Readers>,
    snapshot: Arc<Snapshot>,
}

#[async_trait]
impl History for SqliteHistory {
    async fn page(
        &self,
        range: &KeyRange,
        from: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<(Vec<Committed>, Revision)> {
        let (snapshot, range) = (Arc::clone(&self.snapshot), range.clone());
        self.readers.run(move |conn| snapshot.history(conn, &range, from, to, limit)).await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn range(&self, req: RangeRequest) -> Result<RangeResponse> {
        self.shared.check_revision(req.revision)?;
        if !Split::of(&req.range, &self.shared.options).durable {
            return self.snapshot.range_memory(&req);
        }
        if req.range.is_single() && req.revision == 0 {
            if let Some(answer) = self.snapshot.range_kept(&req) {
                return Ok(answer);
            }
            return self.points.range(req).await;
        }
        let snapshot = Arc::clone(&self.snapshot);
        self.readers.run(move |conn| snapshot.range(conn, &req)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        self.ask(|reply| Request::Txn(txn, reply)).await
    }

    async fn watch(&self, req: WatchRequest) -> Result<Watch> {
        self.shared.check_watch(req.start)?;
        let history = SqliteHistory { readers: Arc::clone(&self.readers), snapshot: Arc::clone(&self.snapshot) };
        self.shared.hub.watch(Arc::new(history), req).await
    }

    async fn compact(&self, rev: Revision) -> Result<()> {
        self.ask(|reply| Request::Compact(rev, reply)).await
    }

    async fn compact_physically(&self, rev: Revision) -> Result<()> {
        self.ask(|reply| Request::CompactPhysically(rev, reply)).await
    }

    async fn hash(&self, rev: Revision) -> Result<HistoryHash> {
        self.shared.check_revision(rev)?;
        let snapshot = Arc::clone(&self.snapshot);
        self.readers.run(move |conn| snapshot.hash(conn, rev)).await
    }

    async fn export(&self) -> Result<Export> {
        self.shared.hub.check_open()?;
        let (began, header) = oneshot::channel();
        let (sender, entries) = mpsc::channel(2);
        let (snapshot, readers) = (Arc::clone(&self.snapshot), Arc::clone(&self.readers));
        tokio::spawn(async move {
            let failed = sender.clone();
            let read = readers.run(move |conn| snapshot.export(conn, began, &sender)).await;
            if let Err(e) = read {
                let _ = failed.send(Err(e)).await;
            }
        });
        match header.await {
            Ok((revision, compacted)) => Ok(Export { revision, compacted, entries }),
            // It ended before it began; the error waits where the entries would.
            Err(_) => {
                let mut entries = entries;
                match entries.recv().await {
                    Some(Err(e)) => Err(e),
                    _ => Err(StoreError::Closed),
                }
            }
        }
    }

    async fn revisions(&self) -> Result<(Revision, Revision)> {
        self.shared.revisions()
    }

    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus> {
        self.ask(|reply| Request::Grant(id, ttl_seconds, Durability::Durable, reply)).await
    }

    async fn lease_grant_ephemeral(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus> {
        self.ask(|reply| Request::Grant(id, ttl_seconds, Durability::Ephemeral, reply)).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.ask(|reply| Request::Revoke(id, reply)).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        self.shared.keep_alive(id)
    }

    async fn lease_status(&self, id: LeaseId) -> Result<LeaseStatus> {
        self.shared.lease_status(id)
    }

    async fn leases(&self) -> Result<Vec<LeaseId>> {
        self.shared.lease_ids()
    }

    async fn usage(&self) -> Result<Usage> {
        self.shared.hub.check_open()?;
        let memory = self.snapshot.memory.read().bytes();
        let sql = "SELECT page_count * page_size, (page_count - freelist_count) * page_size \
                   FROM pragma_page_count, pragma_page_size, pragma_freelist_count";
        let read =
            |conn: &rusqlite::Connection| conn.query_row(sql, [], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?)));
        let (size, in_use) =
            self.readers.run(move |conn| read(conn).map_err(failed("read the database's size"))).await?;
        Ok(Usage { size: memory + size as u64, in_use: memory + in_use as u64 })
    }

    async fn defragment(&self) -> Result<()> {
        self.ask(Request::Defragment).await
    }

    async fn alarms(&self) -> Result<Vec<Alarm>> {
        self.shared.alarms()
    }

    async fn set_alarm(&self, alarm: Alarm, raised: bool) -> Result<bool> {
        self.ask(|reply| Request::SetAlarm(alarm, raised, reply)).await
    }

    async fn setting(&self, name: &str) -> Result<Option<Bytes>> {
        self.shared.setting(name)
    }

    async fn settings(&self) -> Result<BTreeMap<String, Bytes>> {
        self.shared.settings()
    }

    async fn set_setting(&self, name: &str, value: Option<Bytes>) -> Result<()> {
        self.ask(|reply| Request::SetSetting(name.to_owned(), value, reply)).await
    }

    async fn swap_setting(&self, name: &str, expected: Option<Bytes>, value: Option<Bytes>) -> Result<bool> {
        self.ask(|reply| Request::SwapSetting(name.to_owned(), expected, value, reply)).await
    }

    async fn close(&self) -> Result<()> {
        self.shared.hub.check_open()?;
        // The writer's connection is closed last: it empties the write-ahead log into the database.
        self.readers.close().await;
        self.ask(Request::Close).await
    }
}

#[cfg(test)]
pub(crate) mod testing;
