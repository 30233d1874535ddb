//! The writer's thread. Group commit: whatever waits when a batch begins goes into it, and what comes while it is being
//! synced makes the next one. Compaction goes in small steps between batches, checkpoints run beside them.

use super::backend::SqliteBackend;
use super::lock::DirectoryLock;
use super::reader::Readers;
use crate::machine::Machine;
use crate::*;
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Weak};
use tokio::sync::oneshot;

pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

pub(crate) enum Request {
    Txn(Txn, Reply<TxnResponse>),
    Grant(LeaseId, i64, Durability, Reply<LeaseStatus>),
    Revoke(LeaseId, Reply<()>),
    Expire(Vec<LeaseId>, oneshot::Sender<()>),
    Compact(Revision, Reply<()>),
    /// Answered when the history is dropped.
    CompactPhysically(Revision, Reply<()>),
    Defragment(Reply<()>),
    SetAlarm(Alarm, bool, Reply<bool>),
    SetSetting(String, Option<Bytes>, Reply<()>),
    /// The time for a flush has come.
    Flush,
    Close(Reply<()>),
}

/// Transactions in a batch at most.
const BATCH: usize = 1024;
/// Dirty keys written in one commit.
const FLUSH: usize = 512;
/// A checkpoint begins when about so many pages were written: 4 MB.
const CHECKPOINT_PAGES: usize = 1000;
/// The log may grow to this before commits wait for a checkpoint: 64 MB.
const WAL_LIMIT_FRAMES: i64 = 16 << 10;

pub(crate) struct Writer {
    pub machine: Machine<SqliteBackend>,
    pub requests: Receiver<Request>,
    pub readers: Arc<Readers>,
    pub runtime: tokio::runtime::Handle,
    pub lock: DirectoryLock,
    pub wal: Arc<Wal>,
    /// A flush is on its way.
    pub flush_due: bool,
    /// Who waits for the end of the running compaction.
    pub compacting: Vec<Reply<()>>,
    /// For delayed requests; it does not keep a dropped store alive.
    pub sender: Weak<Sender<Request>>,
}

/// What the checkpoints tell the writer.
#[derive(Default)]
pub(crate) struct Wal {
    running: AtomicBool,
    too_long: AtomicBool,
}

impl Writer {
    /// Runs until the store is closed or dropped.
    pub fn run(mut self) {
        let mut left_over = None;
        loop {
            let next = match left_over.take() {
                Some(request) => request,
                None => match self.next() {
                    Some(request) => request,
                    None => break self.shut(None),
                },
            };
            match next {
                Request::Txn(txn, reply) => left_over = self.batch(txn, reply),
                Request::Close(reply) => break self.shut(Some(reply)),
                Request::Grant(id, ttl, durability, reply) => {
                    let _ = reply.send(self.machine.grant(id, ttl, durability));
                }
                Request::Revoke(id, reply) => {
                    let _ = reply.send(self.machine.revoke(id));
                }
                Request::Compact(rev, reply) => {
                    let _ = reply.send(self.machine.compact(rev));
                }
                Request::CompactPhysically(rev, reply) => match self.machine.compact(rev) {
                    Ok(()) => self.compacting.push(reply),
                    Err(e) => {
                        let _ = reply.send(Err(e));
                    }
                },
                Request::Defragment(reply) => {
                    let _ = reply.send(self.machine.backend.defragment());
                }
                Request::SetAlarm(alarm, raised, reply) => {
                    let _ = reply.send(self.machine.set_alarm(alarm, raised));
                }
                Request::SetSetting(name, value, reply) => {
                    let _ = reply.send(self.machine.set_setting(&name, value));
                }
                Request::Expire(ids, done) => {
                    self.machine.expire(&ids);
                    let _ = done.send(());
                }
                Request::Flush => self.flush(),
            }
            self.after_commit();
        }
    }

    /// The next request; while there is none, the compaction goes on.
    fn next(&mut self) -> Option<Request> {
        while self.machine.backend.compaction.is_some() {
            match self.requests.try_recv() {
                Ok(request) => return Some(request),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {
                    if let Err(e) = self.machine.backend.compact_idle() {
                        tracing::warn!(error = %isopod_base::errors::Chain(&e), "the compaction stops until the next one");
                        self.machine.backend.compaction = None;
                        for reply in self.compacting.drain(..) {
                            let _ = reply.send(Err(e.clone()));
                        }
                    }
                    self.checkpoint();
                }
            }
        }
        for reply in self.compacting.drain(..) {
            let _ = reply.send(Ok(()));
        }
        self.requests.recv().ok()
    }

    /// Runs the transactions that wait. Returns a request of another sort that came among them.
    fn batch(&mut self, first: Txn, reply: Reply<TxnResponse>) -> Option<Request> {
        let mut txns = vec![first];
        let mut replies = vec![reply];
        let mut left_over = None;
        while txns.len() < BATCH {
            match self.requests.try_recv() {
                Ok(Request::Txn(txn, reply)) => {
                    txns.push(txn);
                    replies.push(reply);
                }
                Ok(other) => {
                    left_over = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        for (answer, reply) in self.machine.run(&txns).into_iter().zip(replies) {
            // An asker that went away does not want its answer.
            let _ = reply.send(answer);
        }
        left_over
    }

    fn flush(&mut self) {
        self.flush_due = false;
        let newest = self.machine.revision;
        if self.machine.backend.has_dirty() {
            if let Err(e) = self.machine.backend.flush(newest, FLUSH) {
                tracing::warn!(error = %isopod_base::errors::Chain(&e), "cannot flush ephemeral keys; they stay in memory");
            } else if self.machine.backend.has_dirty()
                && let Some(sender) = self.sender.upgrade()
            {
                // The rest, after what waits now.
                let _ = sender.send(Request::Flush);
                self.flush_due = true;
            }
        }
        // The flush's own commit is no reason for another one.
        self.machine.backend.committed = false;
    }

    fn after_commit(&mut self) {
        if std::mem::take(&mut self.machine.backend.committed) {
            self.schedule_flush();
        }
        self.checkpoint();
    }

    /// A durable commit shows that the store is not idle: flush a while after it.
    fn schedule_flush(&mut self) {
        let options = &self.machine.shared.options;
        if self.flush_due || options.ephemeral.is_empty() {
            return;
        }
        self.flush_due = true;
        let (clock, wait) = (options.clock.clone(), options.flush_interval);
        let sender = self.sender.clone();
        self.runtime.spawn(async move {
            clock.sleep(wait).await;
            if let Some(sender) = sender.upgrade() {
                let _ = sender.send(Request::Flush);
            }
        });
    }

    fn checkpoint(&mut self) {
        if self.machine.backend.damage.found().is_some() {
            return;
        }
        if self.wal.too_long.swap(false, Ordering::SeqCst) {
            let run = self.machine.backend.conn.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
            if let Err(e) = run {
                tracing::warn!(error = %e, "cannot shorten the write-ahead log");
            }
        }
        if self.machine.backend.pages < CHECKPOINT_PAGES || self.wal.running.swap(true, Ordering::SeqCst) {
            return;
        }
        self.machine.backend.pages = 0;
        let (readers, wal) = (Arc::clone(&self.readers), Arc::clone(&self.wal));
        self.runtime.spawn(async move {
            let frames = readers.run(|conn| {
                let passive = || conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |r| r.get::<_, i64>(1));
                passive().map_err(super::queries::failed("checkpoint the write-ahead log"))
            });
            match frames.await {
                Err(crate::StoreError::Closed) => {}
                Ok(frames) => wal.too_long.store(frames > WAL_LIMIT_FRAMES, Ordering::SeqCst),
                Err(e) => tracing::warn!(error = %isopod_base::errors::Chain(&e), "the write-ahead log grows"),
            }
            wal.running.store(false, Ordering::SeqCst);
        });
    }

    fn shut(mut self, reply: Option<Reply<()>>) {
        let newest = self.machine.revision;
        let result = self.machine.backend.shut(newest);
        self.machine.shared.hub.close();
        self.machine.shared.leases_changed.notify_one();
        // Closing the last connection empties the write-ahead log into the database.
        drop(self.machine);
        drop(self.lock);
        // What still waits is dropped, which its asker sees as closed.
        drop(self.requests);
        if let Some(reply) = reply {
            let _ = reply.send(result);
        } else if let Err(e) = result {
            tracing::error!(error = %isopod_base::errors::Chain(&e), "cannot flush the store");
        }
    }
}
