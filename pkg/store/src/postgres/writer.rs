//! The writer's thread. Group commit: whatever waits when a batch begins goes into one SQL transaction, and what comes while
//! it commits makes the next one. While the database is away a request waits a while, is tried again, and is told in the end.

use super::backend::PostgresBackend;
use super::connect::{Attempts, Server};
use super::epoch::Epochs;
use super::queries::{self, META, Meta};
use super::session::Session;
use super::sync::named_keys;
use crate::leases::Leases;
use crate::machine::{Machine, Shared};
use crate::*;
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{oneshot, watch};

pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

pub(crate) enum Request {
    Txn(Txn, Reply<TxnResponse>),
    Grant(LeaseId, i64, Reply<LeaseStatus>),
    Revoke(LeaseId, Reply<()>),
    Expire(Vec<LeaseId>, oneshot::Sender<()>),
    Compact(Revision, Reply<()>),
    SetAlarm(Alarm, bool, Reply<bool>),
    SetSetting(String, Option<Bytes>, Reply<()>),
    /// With what is expected, and what it becomes.
    SwapSetting(String, Option<Bytes>, Option<Bytes>, Reply<bool>),
    /// There may be news of other servers.
    Follow,
    Close(Reply<()>),
}

/// A request, and when it was made.
pub(crate) type Asked = (Instant, Request);

/// Transactions in a batch at most.
const BATCH: usize = 1024;
/// Leases that are ended in a row.
const EXPIRED_AT_A_TIME: usize = 32;

pub(crate) struct Writer {
    pub machine: Machine<PostgresBackend>,
    pub requests: UnboundedReceiver<Asked>,
    /// The epochs that this server knows, and of which lineage the database was when it last looked.
    pub epochs: Arc<RwLock<Epochs>>,
    pub lineage: String,
    /// The last change of leases that it saw.
    pub lease_change: i64,
    pub progress: Arc<Progress>,
}

/// What is known of work that failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Certainty {
    /// The error says what there is to say.
    AsTold,
    /// It has certainly not been committed.
    NotDone,
}

/// What readers wait for.
pub(crate) struct Progress {
    pub published: watch::Sender<Revision>,
    /// A [`Request::Follow`] waits already.
    pub follows: AtomicBool,
}

impl Writer {
    /// Makes or migrates the tables where that is to be done, and learns how things stand.
    pub fn open(
        server: Arc<Server>,
        options: Options,
        requests: UnboundedReceiver<Asked>,
        progress: Arc<Progress>,
    ) -> Result<Self> {
        let mut session = Session::new(server)?;
        session.prepare()?;
        let meta =
            session.run("read the revision", async |conn| Meta::of(&sqlx::query(META).fetch_one(conn).await?))?;
        let epochs = session.run("read the epochs", async |conn| queries::epochs(conn).await)?;
        let shared = Shared::new(options, meta.revision, meta.compacted, Leases::default());
        let (revision, lineage) = (meta.revision, meta.lineage.clone());
        let epochs = Arc::new(RwLock::new(epochs));
        let backend = PostgresBackend::new(session, meta.clone(), Arc::clone(&epochs));
        let machine = Machine { backend, revision, shared };
        let mut writer = Writer { machine, requests, epochs, lineage, lease_change: 0, progress };
        writer.load_leases(&meta)?;
        // What has changed since is taken in now, a lineage that is not known first of all.
        writer.follow()?;
        writer.machine.backend.batch().reset();
        writer.publish_progress();
        Ok(writer)
    }

    fn publish_progress(&self) {
        self.progress.published.send_replace(self.machine.shared.hub.published());
    }

    pub fn session(&mut self) -> &mut Session {
        &mut self.machine.backend.batch().session
    }

    /// Runs until the store is closed or dropped.
    pub fn run(mut self) {
        let mut left_over = None;
        let closed = loop {
            let Some((asked, request)) = left_over.take().or_else(|| self.requests.blocking_recv()) else { break None };
            match request {
                Request::Txn(txn, reply) => left_over = self.batch(asked, txn, reply),
                Request::Close(reply) => break Some(reply),
                Request::Follow => self.follow_others(),
                Request::Expire(ids, done) => {
                    self.expire(&ids);
                    let _ = done.send(());
                }
                Request::Grant(id, ttl, reply) => answer(reply, self.attempt(asked, |m| grant(m, id, ttl))),
                Request::Revoke(id, reply) => answer(reply, self.attempt(asked, |m| m.revoke(id))),
                Request::Compact(rev, reply) => answer(reply, self.attempt(asked, |m| m.compact(rev))),
                Request::SetAlarm(alarm, raised, reply) => {
                    answer(reply, self.attempt(asked, |m| m.set_alarm(alarm, raised)));
                }
                Request::SetSetting(name, value, reply) => {
                    answer(reply, self.attempt(asked, |m| m.set_setting(&name, value.clone())));
                }
                Request::SwapSetting(name, expected, value, reply) => {
                    let swap = |m: &mut Machine<PostgresBackend>| {
                        // Under the lock that every server takes before it writes.
                        if m.backend.batch().setting(&name)? != expected {
                            return Ok(false);
                        }
                        m.set_setting(&name, value.clone()).map(|()| true)
                    };
                    answer(reply, self.attempt(asked, swap));
                }
            }
            self.publish_progress();
        };
        self.shut(closed);
    }

    fn attempt<T>(
        &mut self,
        asked: Instant,
        work: impl FnMut(&mut Machine<PostgresBackend>) -> Result<T>,
    ) -> Result<T> {
        match self.attempt_on(asked, &BTreeSet::new(), work) {
            (Err(e), Certainty::NotDone) => Err(e.not_done()),
            (result, _) => result,
        }
    }

    /// Runs `work` in a batch that looks at `keys`, and again where it has certainly not been committed and may be later. If it
    /// was not in the end, that is said too: `work` may keep its failure to itself.
    fn attempt_on<T>(
        &mut self,
        asked: Instant,
        keys: &BTreeSet<Bytes>,
        mut work: impl FnMut(&mut Machine<PostgresBackend>) -> Result<T>,
    ) -> (Result<T>, Certainty) {
        let mut attempts = Attempts::since(asked);
        loop {
            self.machine.backend.batch().retry = false;
            let began = self.begin(keys);
            let not_begun = began.is_err();
            let result = began.and_then(|()| work(&mut self.machine));
            let batch = self.machine.backend.batch();
            let again = (not_begun && batch.session.passing) || batch.retry;
            // Work that was refused has not ended its batch.
            batch.reset();
            match again.then(|| attempts.pause()).flatten() {
                Some(pause) => std::thread::sleep(pause),
                None if again => return (result, Certainty::NotDone),
                None => return (result, Certainty::AsTold),
            }
        }
    }

    /// Runs the transactions that wait. Returns a request of another sort that came among them.
    fn batch(&mut self, asked: Instant, first: Txn, reply: Reply<TxnResponse>) -> Option<Asked> {
        let mut txns = vec![first];
        let mut replies = vec![reply];
        let mut left_over = None;
        while txns.len() < BATCH {
            match self.requests.try_recv() {
                Ok((_, Request::Txn(txn, reply))) => {
                    txns.push(txn);
                    replies.push(reply);
                }
                // The batch itself learns what is new.
                Ok((_, Request::Follow)) => self.progress.follows.store(false, Ordering::SeqCst),
                Ok(other) => {
                    left_over = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let (ran, certainty) = self.attempt_on(asked, &named_keys(&txns), |machine| Ok(machine.run(&txns)));
        let answers = ran.unwrap_or_else(|e| txns.iter().map(|_| Err(e.clone())).collect());
        for (result, reply) in answers.into_iter().zip(replies) {
            answer(reply, if certainty == Certainty::NotDone { result.map_err(StoreError::not_done) } else { result });
        }
        left_over
    }

    fn follow_others(&mut self) {
        // What comes from here on is for the next time.
        self.progress.follows.store(false, Ordering::SeqCst);
        let mut attempts = Attempts::since(Instant::now());
        while let Err(e) = self.follow() {
            self.machine.backend.batch().reset();
            let Some(pause) = attempts.pause().filter(|_| self.session().passing) else {
                tracing::debug!(error = %isopod_base::errors::Chain(&e), "cannot read what other servers wrote");
                break;
            };
            std::thread::sleep(pause);
        }
        self.machine.backend.batch().reset();
    }

    /// Ends those leases that were not kept alive elsewhere, which the database knows. Not all at once: others wait too, and
    /// what is left is found again.
    fn expire(&mut self, ids: &[LeaseId]) {
        let mut away = false;
        for (i, id) in ids.iter().enumerate() {
            // While the database is away each would be waited for.
            let ended = if away { Ok(()) } else { self.expire_one(*id) };
            if let Err(e) = &ended
                && !matches!(e, StoreError::LeaseNotFound(_))
            {
                tracing::warn!(lease = id, error = %isopod_base::errors::Chain(e), "cannot end an expired lease");
                away = true;
            }
            if away {
                let now = self.machine.shared.options.clock.now();
                self.machine.shared.leases.lock().postpone(*id, now);
            } else if i == EXPIRED_AT_A_TIME {
                break;
            }
        }
    }

    fn expire_one(&mut self, id: LeaseId) -> Result<()> {
        let keys = self.machine.shared.leases.lock().keys(id).into_iter().collect();
        let (ended, _) = self.attempt_on(Instant::now(), &keys, |machine| {
            let read =
                machine.backend.batch().session.run("read a lease", async |conn| queries::locked_lease(conn, id).await);
            let row = read?;
            let now = machine.shared.options.clock.now();
            let mut leases = machine.shared.leases.lock();
            match row {
                // Renewed elsewhere. When, only the database's clock could tell, which somebody may have set.
                Some(row) if row.stamp != leases.stamp(id) => leases.renewed(id, row.ttl, row.stamp, now),
                // Renewed here while this waited for its turn.
                Some(_) if !leases.has_expired(id, now) => {}
                Some(_) => {
                    drop(leases);
                    return machine.revoke(id);
                }
                // It ended elsewhere.
                None => leases.remove(id),
            }
            Ok(())
        });
        ended
    }

    fn shut(mut self, reply: Option<Reply<()>>) {
        let id = self.machine.backend.batch().server_id;
        if self.session().is_connected() {
            // Nobody asks any more whether the last batch was committed. A row that stays harms nobody.
            let forget = self.session().run("take the server's mark away", async |conn| {
                sqlx::query("DELETE FROM server WHERE id = $1").bind(id).execute(conn).await.map(drop)
            });
            if let Err(e) = forget {
                tracing::debug!(error = %isopod_base::errors::Chain(&e), "a row stays in the table server");
            }
        }
        self.machine.shared.hub.close();
        self.machine.shared.leases_changed.notify_one();
        // What still waits is dropped, which its asker sees as closed.
        drop(self);
        if let Some(reply) = reply {
            answer(reply, Ok(()));
        }
    }
}

/// Grants a lease, and counts its time from the deadline that stands in the database.
fn grant(machine: &mut Machine<PostgresBackend>, id: LeaseId, ttl: i64) -> Result<LeaseStatus> {
    let granted = machine.grant(id, ttl, Durability::Durable)?;
    let stamp = machine.backend.batch().granted;
    let mut leases = machine.shared.leases.lock();
    leases.renewed(granted.id, granted.ttl, stamp, machine.shared.options.clock.now());
    Ok(granted)
}

/// An asker that went away does not want its answer.
fn answer<T>(reply: Reply<T>, result: Result<T>) {
    let _ = reply.send(result);
}
