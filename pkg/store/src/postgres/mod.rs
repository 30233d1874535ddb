//! The store on Postgres 13 or newer: several servers on one database see one history.
//!
//! - **Order.** The row of `meta` is locked from a batch's first look until its commit: revisions of all servers are one
//!   sequence, and a revision that is seen has all those before it. Each batch is one SQL transaction of four exchanges
//!   (lock, read, write, commit), decided here by the machine that every backend shares, not by SQL.
//! - **Reads** are one statement each and answer from one snapshot of the database, so they are linearizable over all servers;
//!   what they see is published here before they answer. Nothing is served from a copy while the database is away:
//!   reads and writes then answer [`StoreError::Unavailable`] after a few seconds, and watches wait.
//! - **Watches** are fed by the writer alone. `NOTIFY`, part of each commit, wakes the other servers; what they publish is
//!   read from the log, in order, so that a notification that is lost costs time and nothing else.
//! - **Leases** end under the lock, when a server has counted their whole time, by a clock that nobody sets, and finds that
//!   nobody has renewed them in the database meanwhile. Keep-alives share one statement that is not synced.
//! - **Ephemeral keys** are as durable as all others: the writes of a Postgres server wear out nobody's SD card.
//! - **Lost commits** open an epoch, see [`epoch`].
//!
//! The tables stand in a schema of their own, so a kine database beside them is not touched. Sessions have settings and hear
//! notifications: pgbouncer may stand between in its session mode only.

mod backend;
mod connect;
mod epoch;
mod error;
mod gather;
mod listen;
mod pool;
mod queries;
mod schema;
mod seed;
mod session;
mod sync;
mod writer;

pub use connect::PostgresOptions;
pub use seed::{Draft, Existing, Filled};

use crate::hub::{Committed, History};
use crate::machine::Shared;
use crate::select::{pick, plain};
use crate::*;
use async_trait::async_trait;
use bytes::Bytes;
use connect::{PATIENCE, Server};
use epoch::Epochs;
use error::{Fault, fault};
use gather::Gatherer;
use isopod_base::clock::Clock;
use listen::Waker;
use parking_lot::RwLock;
use pool::Pool;
use queries::Moment;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};
use writer::{Asked, Progress, Reply, Request, Writer};

/// See the module. Share it in an `Arc`; when the last one is dropped it closes by itself, without telling when.
pub struct PostgresStore {
    requests: Arc<UnboundedSender<Asked>>,
    reader: Arc<Reader>,
    revisions: Gatherer<(), (Revision, Revision)>,
    keep_alives: Gatherer<LeaseId, LeaseStatus>,
}

/// Rows that a compaction looks at in one step.
const COMPACTION_STEP: i64 = 1000;
/// Entries that an export holds at a time.
const EXPORT_PART: usize = 256;

impl PostgresStore {
    /// Connects, and makes the tables where there are none. Fails with [`StoreError::Unavailable`] when the database does
    /// not answer for some seconds. Of `options`, the clock and what concerns ephemeral keys have no effect here.
    pub async fn open(place: PostgresOptions, options: Options) -> Result<Self> {
        let server = Arc::new(Server::new(&place)?);
        // The machine's clock may be set while leases run.
        let options = Options { clock: Clock::system().steady(), ..options };
        let (sender, requests) = tokio::sync::mpsc::unbounded_channel();
        let sender = Arc::new(sender);
        let progress = Arc::new(Progress { published: watch::Sender::new(0), follows: Default::default() });
        let (opened, opening) = oneshot::channel();
        let (there, here) = (Arc::clone(&server), Arc::clone(&progress));
        let run = move || match Writer::open(there, options, requests, here) {
            Ok(writer) => {
                let parts = (Arc::clone(&writer.machine.shared), Arc::clone(&writer.epochs));
                if opened.send(Ok(parts)).is_ok() {
                    writer.run();
                }
            }
            Err(e) => drop(opened.send(Err(e))),
        };
        std::thread::Builder::new().name("store-writer".into()).spawn(run).map_err(|e| StoreError::Backend {
            context: "cannot start the store's writer thread".into(),
            source: Arc::new(e),
        })?;
        let (shared, epochs) = opening.await.unwrap_or(Err(StoreError::Closed))?;
        let waker = Waker { requests: Arc::downgrade(&sender), progress };
        let pool = Pool::new(Arc::clone(&server), place.read_connections);
        let reader = Arc::new(Reader { pool, shared, epochs, waker: waker.clone() });
        tokio::spawn(listen::run(server, waker));
        let store = PostgresStore {
            requests: sender,
            revisions: Gatherer::start({
                let reader = Arc::clone(&reader);
                move |asked: Vec<()>| {
                    let reader = Arc::clone(&reader);
                    async move {
                        let answer = reader.revisions().await;
                        asked.iter().map(|()| answer.clone()).collect()
                    }
                }
            }),
            keep_alives: Gatherer::start({
                let reader = Arc::clone(&reader);
                move |ids: Vec<LeaseId>| {
                    let reader = Arc::clone(&reader);
                    async move { reader.keep_alive(ids).await }
                }
            }),
            reader,
        };
        store.start_expiry();
        store.resume_compaction();
        Ok(store)
    }

    fn start_expiry(&self) {
        let shared = Arc::downgrade(&self.reader.shared);
        let requests = Arc::downgrade(&self.requests);
        tokio::spawn(async move {
            while let Some(expired) = Shared::next_expired(&shared).await {
                let Some(requests) = requests.upgrade() else { return };
                // Answered only when it is done, or the same leases would be found again at once.
                let (done, wait) = oneshot::channel();
                let sent = requests.send((Instant::now(), Request::Expire(expired, done)));
                drop(requests);
                if sent.is_err() || wait.await.is_err() {
                    return;
                }
            }
        });
    }

    /// A server may have ended in the middle of one.
    fn resume_compaction(&self) {
        let compacted = *self.reader.shared.compacted.lock();
        if compacted > 0 {
            self.reader.start_compaction(compacted);
        }
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send((Instant::now(), request(reply))).map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// What reads need.
struct Reader {
    pool: Pool,
    shared: Arc<Shared>,
    epochs: Arc<RwLock<Epochs>>,
    waker: Waker,
}

impl Reader {
    fn away(&self, what: &str, why: Fault) -> StoreError {
        self.pool.server.failed(what, fault(why))
    }

    /// Returns when everything up to `rev` is published: nobody may hear of it before the watchers can.
    async fn published(&self, rev: Revision) -> Result<()> {
        let mut published = self.waker.progress.published.subscribe();
        if *published.borrow_and_update() >= rev {
            return Ok(());
        }
        self.waker.wake();
        match tokio::time::timeout(PATIENCE, published.wait_for(|p| *p >= rev)).await {
            Ok(Ok(_)) => self.shared.hub.check_open(),
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => Err(self.away("read what other servers wrote", Fault::NoAnswer(PATIENCE))),
        }
    }

    /// Is what was read at `moment` the newest history that this server knows of, or a newer one that it then learns of?
    /// False: read again. `shown` is what this server had shown before it read.
    async fn settles(&self, moment: Moment, shown: Revision) -> Result<bool> {
        let known = self.epochs.read().0.len();
        if moment.revision < shown || moment.epoch as usize != known {
            // Another database than before answers: the writer has to find out what that means.
            let mut published = self.waker.progress.published.subscribe();
            self.waker.wake();
            let found = |now: &Revision| *now > shown || self.epochs.read().0.len() != known;
            let _ = tokio::time::timeout(PATIENCE, published.wait_for(found)).await;
            return Ok(false);
        }
        self.published(moment.revision).await?;
        Ok(true)
    }

    /// Runs `read` until what it answers is of a history that this server knows.
    async fn read<T>(
        &self,
        what: &str,
        mut read: impl for<'c> FnMut(
            &'c mut sqlx::PgConnection,
        ) -> futures::future::BoxFuture<'c, sqlx::Result<(Moment, T)>>,
    ) -> Result<(Moment, T)> {
        self.shared.hub.check_open()?;
        let began = Instant::now();
        while began.elapsed() <= PATIENCE {
            let shown = self.shared.hub.published();
            let (moment, value) = self.pool.run(what, &mut read).await?;
            if self.settles(moment, shown).await? {
                return Ok((moment, value));
            }
        }
        Err(self.away(what, Fault::Behind))
    }

    /// Can `rev` be read of a history as it was at `moment`? 0 is the newest.
    fn check(&self, rev: Revision, moment: Moment) -> Result<()> {
        if rev > moment.revision {
            return Err(StoreError::FutureRevision { requested: rev, newest: moment.revision });
        }
        if rev > 0 && rev < moment.compacted {
            return Err(StoreError::Compacted { requested: rev, compacted: moment.compacted });
        }
        if rev > 0 { self.epochs.read().check_read(rev) } else { Ok(()) }
    }

    async fn range(&self, req: &RangeRequest) -> Result<RangeResponse> {
        let wanted = plain(req).unwrap_or_else(|| req.clone());
        let (moment, answer) = self
            .read("read a range", move |conn| {
                let wanted = wanted.clone();
                Box::pin(async move { queries::range(conn, &wanted).await })
            })
            .await?;
        self.check(req.revision, moment)?;
        Ok(if plain(req).is_some() { pick(req, answer) } else { answer })
    }

    async fn revisions(&self) -> Result<(Revision, Revision)> {
        let read = self.read("read the revision", |conn| {
            Box::pin(async move { queries::moment(conn).await.map(|moment| (moment, ())) })
        });
        let (moment, ()) = read.await?;
        Ok((moment.revision, moment.compacted.max(1)))
    }

    async fn keep_alive(&self, ids: Vec<LeaseId>) -> Vec<Result<LeaseStatus>> {
        let asked = ids.clone();
        let kept = self.pool.run("keep leases alive", move |conn| {
            let asked = asked.clone();
            Box::pin(async move { queries::keep_alive(conn, &asked).await })
        });
        let kept = match kept.await {
            Ok(kept) => kept,
            Err(e) => return ids.iter().map(|_| Err(e.clone())).collect(),
        };
        let now = self.shared.options.clock.now();
        let mut leases = self.shared.leases.lock();
        let each = ids.into_iter().map(|id| match kept.get(&id) {
            Some(row) => {
                // Granted on another server a moment ago: then it is not here yet.
                leases.renewed(id, row.ttl, row.stamp, now);
                Ok(LeaseStatus { id, granted_ttl: row.ttl, ttl: row.ttl, keys: Vec::new() })
            }
            None => Err(StoreError::LeaseNotFound(id)),
        });
        each.collect()
    }

    /// Drops what is compacted, in steps, beside everything else.
    async fn compact(&self, to: Revision) -> Result<()> {
        let hub = Arc::clone(&self.shared.hub);
        let work = self.pool.run_long("compact the history", move |conn| {
            Box::pin(async move {
                queries::forget_servers(conn).await?;
                while queries::compact_step(conn, schema::ADVISORY, to, COMPACTION_STEP).await? {
                    if hub.check_open().is_err() {
                        break;
                    }
                }
                Ok(())
            })
        });
        work.await
    }

    fn start_compaction(self: &Arc<Self>, to: Revision) {
        let reader = Arc::clone(self);
        tokio::spawn(async move {
            match reader.compact(to).await {
                Ok(()) | Err(StoreError::Closed) => {}
                Err(e) => {
                    tracing::warn!(error = %isopod_base::errors::Chain(&e), "the compaction stops until the next one");
                }
            }
        });
    }
}

struct PostgresHistory(Arc<Reader>);

#[async_trait]
impl History for PostgresHistory {
    fn check_start(&self, start: Revision) -> Result<()> {
        self.0.epochs.read().check_watch(start)
    }

    async fn page(
        &self,
        range: &KeyRange,
        from: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<(Vec<Committed>, Revision)> {
        let range = range.clone();
        let mut attempts = connect::Attempts::since(Instant::now());
        loop {
            self.0.epochs.read().check_watch(from)?;
            let range = range.clone();
            let read = self.0.read("read the history", move |conn| {
                let range = range.clone();
                Box::pin(async move {
                    let (moment, committed, through) = queries::history(conn, &range, from, to, limit).await?;
                    Ok((moment, (committed, through)))
                })
            });
            match read.await {
                Ok((moment, (mut committed, through))) => {
                    if from < moment.compacted {
                        return Err(StoreError::Compacted { requested: from, compacted: moment.compacted });
                    }
                    // It may have become known meanwhile.
                    let epochs = self.0.epochs.read();
                    epochs.check_watch(from)?;
                    // The end of it may be lost.
                    let whole = epochs.whole(through);
                    committed.retain(|(rev, _)| *rev <= whole);
                    return Ok((committed, whole));
                }
                // A watch goes on when the database is there again.
                Err(StoreError::Unavailable { .. }) => tokio::time::sleep(attempts.endless_pause()).await,
                Err(e) => return Err(e),
            }
        }
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn range(&self, req: RangeRequest) -> Result<RangeResponse> {
        self.reader.range(&req).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        self.ask(|reply| Request::Txn(txn, reply)).await
    }

    async fn watch(&self, req: WatchRequest) -> Result<Watch> {
        self.reader.shared.check_watch(req.start)?;
        let history = Arc::new(PostgresHistory(Arc::clone(&self.reader)));
        // A running watch waits for the database as long as it takes; who asks for one does not.
        match tokio::time::timeout(PATIENCE * 2, self.reader.shared.hub.watch(history, req)).await {
            Ok(watch) => watch,
            Err(_) => Err(self.reader.away("read the history", Fault::NoAnswer(PATIENCE * 2))),
        }
    }

    async fn compact(&self, rev: Revision) -> Result<()> {
        self.ask(|reply| Request::Compact(rev, reply)).await?;
        self.reader.start_compaction(rev);
        Ok(())
    }

    async fn compact_physically(&self, rev: Revision) -> Result<()> {
        self.ask(|reply| Request::Compact(rev, reply)).await?;
        self.reader.compact(rev).await
    }

    async fn hash(&self, rev: Revision) -> Result<HistoryHash> {
        let (now, _) = self.revisions().await?;
        if rev > now {
            return Err(StoreError::FutureRevision { requested: rev, newest: now });
        }
        let read = self.reader.pool.run_long("hash the history", move |conn| {
            Box::pin(async move {
                let meta = queries::begin_snapshot(conn).await?;
                let at = if rev > 0 { rev } else { meta.revision };
                let hash = queries::hash(conn, &meta, at).await?;
                queries::end_snapshot(conn).await?;
                Ok((meta.moment(), hash))
            })
        });
        let (moment, hash) = read.await?;
        self.reader.published(moment.revision).await?;
        self.reader.check(rev, moment)?;
        Ok(hash)
    }

    async fn export(&self) -> Result<Export> {
        self.reader.shared.hub.check_open()?;
        let (began, header) = oneshot::channel();
        let (sender, entries) = tokio::sync::mpsc::channel(2);
        let reader = Arc::clone(&self.reader);
        tokio::spawn(async move {
            let failed = sender.clone();
            let read = reader.pool.run_long("read the whole history", move |conn| {
                Box::pin(async move {
                    let meta = queries::begin_snapshot(conn).await?;
                    let _ = began.send((meta.revision, meta.compacted));
                    queries::entries(conn, EXPORT_PART, &sender).await?;
                    queries::end_snapshot(conn).await
                })
            });
            if let Err(e) = read.await {
                let _ = failed.send(Err(e)).await;
            }
        });
        match header.await {
            Ok((revision, compacted)) => {
                self.reader.published(revision).await?;
                Ok(Export { revision, compacted, entries })
            }
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
        self.reader.shared.hub.check_open()?;
        self.revisions.ask(()).await
    }

    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus> {
        self.ask(|reply| Request::Grant(id, ttl_seconds, reply)).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.ask(|reply| Request::Revoke(id, reply)).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        self.reader.shared.hub.check_open()?;
        self.keep_alives.ask(id).await
    }

    async fn lease_status(&self, id: LeaseId) -> Result<LeaseStatus> {
        let read = self
            .reader
            .pool
            .run("read a lease", move |conn| Box::pin(async move { queries::lease_status(conn, id).await }));
        read.await?.ok_or(StoreError::LeaseNotFound(id))
    }

    async fn leases(&self) -> Result<Vec<LeaseId>> {
        self.reader.pool.run("read the leases", |conn| Box::pin(queries::lease_ids(conn))).await
    }

    async fn usage(&self) -> Result<Usage> {
        let read = self.reader.pool.run("read the tables' size", |conn| Box::pin(queries::usage(conn)));
        let (size, live) = read.await?;
        Ok(Usage { size: size as u64, in_use: (size as f64 * live.clamp(0.0, 1.0)) as u64 })
    }

    /// Makes space that holds no data free for new rows, beside everything else: `VACUUM`, not `VACUUM FULL`, which would
    /// keep all servers waiting for as long as it takes to copy the tables.
    async fn defragment(&self) -> Result<()> {
        let work = self.reader.pool.run_long("vacuum the tables", |conn| Box::pin(queries::vacuum(conn)));
        work.await
    }

    async fn alarms(&self) -> Result<Vec<Alarm>> {
        let bits = self.reader.pool.run("read the alarms", |conn| Box::pin(queries::alarm_bits(conn))).await?;
        Ok([Alarm::NoSpace, Alarm::Corrupt].into_iter().filter(|a| bits & backend::alarm_bit(*a) != 0).collect())
    }

    async fn set_alarm(&self, alarm: Alarm, raised: bool) -> Result<bool> {
        self.ask(|reply| Request::SetAlarm(alarm, raised, reply)).await
    }

    async fn setting(&self, name: &str) -> Result<Option<Bytes>> {
        let name = name.to_owned();
        let read = self.reader.pool.run("read a setting", move |conn| {
            let name = name.clone();
            Box::pin(async move { queries::setting(conn, &name).await })
        });
        read.await
    }

    async fn settings(&self) -> Result<BTreeMap<String, Bytes>> {
        self.reader.pool.run("read the settings", |conn| Box::pin(queries::settings(conn))).await
    }

    async fn set_setting(&self, name: &str, value: Option<Bytes>) -> Result<()> {
        self.ask(|reply| Request::SetSetting(name.to_owned(), value, reply)).await
    }

    async fn swap_setting(&self, name: &str, expected: Option<Bytes>, value: Option<Bytes>) -> Result<bool> {
        self.ask(|reply| Request::SwapSetting(name.to_owned(), expected, value, reply)).await
    }

    async fn close(&self) -> Result<()> {
        self.reader.shared.hub.check_open()?;
        self.reader.pool.close();
        self.ask(Request::Close).await
    }
}
