//! The writer's thread. Group commit: whatever waits when a batch begins goes into it, and what comes while it is being
//! synced makes the next one. Compaction goes in small steps between batches and with them, pages that it freed are given back
//! to the file system while nobody waits, checkpoints run beside all that.

use super::backend::SqliteBackend;
use super::checkpoint::{BEGIN_PAGES, Checkpoints, is_failed_sync};
use super::lock::DirectoryLock;
use crate::machine::Machine;
use crate::*;
use bytes::Bytes;
use rusqlite::config::DbConfig;
use std::sync::Arc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{UnboundedReceiver, WeakUnboundedSender};
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
    /// With what is expected, and what it becomes.
    SwapSetting(String, Option<Bytes>, Option<Bytes>, Reply<bool>),
    /// The time for a flush has come.
    Flush,
    /// The write-ahead log is long and mostly copied.
    RestartLog(oneshot::Sender<()>),
    Close(Reply<()>),
}

/// Transactions in a batch at most.
const BATCH: usize = 1024;
/// Dirty keys written in one commit.
const FLUSH: usize = 512;

pub(crate) struct Writer {
    pub machine: Machine<SqliteBackend>,
    /// Not the standard library's, which looks again and again before it sleeps.
    pub requests: UnboundedReceiver<Request>,
    pub runtime: tokio::runtime::Handle,
    pub lock: DirectoryLock,
    pub checkpoints: Arc<Checkpoints>,
    /// A flush is on its way.
    pub flush_due: bool,
    /// Several ask at a time.
    pub crowded: bool,
    /// Who waits for the end of the running compaction.
    pub compacting: Vec<Reply<()>>,
    /// For delayed requests; it does not keep a dropped store alive.
    pub sender: WeakUnboundedSender<Request>,
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
                    let _ = reply.send(self.compact(rev));
                }
                Request::CompactPhysically(rev, reply) => match self.compact(rev) {
                    Ok(()) => self.compacting.push(reply),
                    Err(e) => {
                        let _ = reply.send(Err(e));
                    }
                },
                Request::Defragment(reply) => {
                    let done = self.machine.backend.defragment();
                    if let Err(e) = &done
                        && is_failed_sync(e)
                    {
                        self.checkpoints.failed(e.clone());
                    }
                    let _ = reply.send(done);
                }
                Request::SetAlarm(alarm, raised, reply) => {
                    let _ = reply.send(self.machine.set_alarm(alarm, raised));
                }
                Request::SetSetting(name, value, reply) => {
                    let _ = reply.send(self.machine.set_setting(&name, value));
                }
                Request::SwapSetting(name, expected, value, reply) => {
                    let _ = reply.send(self.machine.swap_setting(&name, expected.as_ref(), value));
                }
                Request::Expire(ids, done) => {
                    self.machine.expire(&ids);
                    let _ = done.send(());
                }
                Request::Flush => self.flush(),
                Request::RestartLog(done) => {
                    self.checkpoints.restart(&self.machine.backend.conn);
                    let _ = done.send(());
                }
            }
            self.after_commit();
        }
    }

    /// The next request; while there is none, the compaction goes on, and then freed pages are given back.
    fn next(&mut self) -> Option<Request> {
        loop {
            if self.machine.backend.compaction.is_none() {
                for reply in self.compacting.drain(..) {
                    let _ = reply.send(Ok(()));
                }
                if !self.machine.backend.gives_back {
                    return self.requests.blocking_recv();
                }
            }
            match self.requests.try_recv() {
                Ok(request) => return Some(request),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => self.upkeep(),
            }
        }
    }

    /// One small step of what is done while nobody waits.
    fn upkeep(&mut self) {
        let backend = &mut self.machine.backend;
        if backend.compaction.is_none() {
            if let Err(e) = backend.give_back() {
                tracing::warn!(error = %isopod_base::errors::Chain(&e), "free pages stay in the database's file");
                backend.gives_back = false;
            }
        } else if let Err(e) = backend.compact_idle() {
            tracing::warn!(error = %isopod_base::errors::Chain(&e), "the compaction stops until the next one");
            backend.compaction = None;
            for reply in self.compacting.drain(..) {
                let _ = reply.send(Err(e.clone()));
            }
        }
        self.machine.backend.committed = false;
        self.checkpoint();
    }

    /// What a compaction commits, here and in its steps, is no sign of use: an idle store flushes nothing because of it.
    fn compact(&mut self, through: Revision) -> Result<()> {
        let done = self.machine.compact(through);
        self.machine.backend.committed = false;
        done
    }

    /// Runs the transactions that wait. Returns a request of another sort that came among them.
    fn batch(&mut self, first: Txn, reply: Reply<TxnResponse>) -> Option<Request> {
        let mut txns = vec![first];
        let mut replies = vec![reply];
        let mut left_over = None;
        // Where all cores are busy, those that are about to ask come first: their requests go into this batch. One that asks alone need
        // not wait for others.
        if self.crowded {
            std::thread::yield_now();
        }
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
        self.crowded = txns.len() > 1 || !self.requests.is_empty();
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
        if self.machine.backend.pages >= BEGIN_PAGES && self.checkpoints.start() {
            self.machine.backend.pages = 0;
        }
    }

    fn shut(mut self, reply: Option<Reply<()>>) {
        let newest = self.machine.revision;
        let result = self.machine.backend.shut(newest);
        self.machine.shared.hub.close();
        self.machine.shared.leases_changed.notify_one();
        // Of a damaged database everything stays as it is, for a repair.
        let keep_log = self.checkpoints.stopped.get().is_some() || self.machine.backend.damage.found().is_some();
        let kept = self.machine.backend.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep_log);
        debug_assert!(kept.is_ok());
        // Closing the last connection empties the write-ahead log into the database.
        drop(self.machine);
        self.checkpoints.readers.close_file();
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
