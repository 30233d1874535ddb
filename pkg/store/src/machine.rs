//! The state machine behind every backend: assigns revisions, decides transactions, keeps leases, publishes to watchers.
//!
//! Invariants: one thread at a time runs a machine; nothing is published or answered before the backend has committed it;
//! a failed commit takes the whole batch back, as if it had never been asked for.

use crate::eval::{View, evaluate};
use crate::hub::{Committed, Hub};
use crate::leases::Leases;
use crate::*;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where the log is kept. Reads see what was appended since the last commit.
pub(crate) trait Backend: Send {
    fn get(&self, key: &[u8], newest: Revision) -> Result<Option<KeyValue>>;
    /// `req.revision` 0 means `newest`, the revision appended last.
    fn range(&self, req: &RangeRequest, newest: Revision) -> Result<RangeResponse>;
    fn append(&mut self, rev: Revision, events: &[Event], durability: Durability) -> Result<()>;
    fn grant(&mut self, id: LeaseId, ttl: i64, durability: Durability) -> Result<()>;
    fn revoke(&mut self, id: LeaseId) -> Result<()>;
    /// Refuses reads before `rev` from now on; may drop the history later.
    fn compact(&mut self, rev: Revision) -> Result<()>;
    fn set_alarm(&mut self, alarm: Alarm, raised: bool) -> Result<()>;
    fn set_setting(&mut self, name: &str, value: Option<&[u8]>) -> Result<()>;
    /// After it returns, everything appended up to `newest` is as durable as was asked.
    fn commit(&mut self, newest: Revision) -> Result<()>;
    /// Takes back what was appended after `newest`.
    fn rollback(&mut self, newest: Revision);
}

/// What the machine shares with readers and watchers.
pub(crate) struct Shared {
    pub hub: Arc<Hub>,
    pub leases: Mutex<Leases>,
    pub options: Options,
    pub compacted: Mutex<Revision>,
    pub alarms: Mutex<BTreeSet<Alarm>>,
    pub settings: Mutex<BTreeMap<String, Bytes>>,
    /// Told when a lease is granted: the task that waits for the next expiry looks again.
    pub leases_changed: tokio::sync::Notify,
}

impl Shared {
    pub fn new(options: Options, revision: Revision, compacted: Revision, leases: Leases) -> Arc<Self> {
        // A lease must not end early because somebody sets the machine's clock.
        let options = Options { clock: options.clock.steady(), ..options };
        Arc::new(Shared {
            hub: Arc::new(Hub::new(revision, options.watch_buffer)),
            leases: Mutex::new(leases),
            options,
            compacted: Mutex::new(compacted),
            alarms: Mutex::default(),
            settings: Mutex::default(),
            leases_changed: tokio::sync::Notify::new(),
        })
    }

    /// Is `rev` one that can be read? 0 is.
    pub fn check_revision(&self, rev: Revision) -> Result<()> {
        self.hub.check_open()?;
        let newest = self.hub.published();
        if rev > newest {
            return Err(StoreError::FutureRevision { requested: rev, newest });
        }
        let compacted = *self.compacted.lock();
        if rev > 0 && rev < compacted {
            return Err(StoreError::Compacted { requested: rev, compacted });
        }
        Ok(())
    }

    /// May a watch start at `rev`?
    pub fn check_watch(&self, rev: Revision) -> Result<()> {
        self.hub.check_open()?;
        let compacted = *self.compacted.lock();
        if rev > 0 && rev < compacted {
            return Err(StoreError::Compacted { requested: rev, compacted });
        }
        Ok(())
    }

    pub fn revisions(&self) -> Result<(Revision, Revision)> {
        self.hub.check_open()?;
        let oldest = (*self.compacted.lock()).max(1);
        Ok((self.hub.published(), oldest))
    }

    pub fn keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        self.hub.check_open()?;
        self.leases.lock().keep_alive(id, self.options.clock.now())
    }

    pub fn lease_status(&self, id: LeaseId) -> Result<LeaseStatus> {
        self.hub.check_open()?;
        self.leases.lock().status(id, self.options.clock.now())
    }

    pub fn alarms(&self) -> Result<Vec<Alarm>> {
        self.hub.check_open()?;
        Ok(self.alarms.lock().iter().copied().collect())
    }

    pub fn setting(&self, name: &str) -> Result<Option<Bytes>> {
        self.hub.check_open()?;
        Ok(self.settings.lock().get(name).cloned())
    }

    pub fn settings(&self) -> Result<BTreeMap<String, Bytes>> {
        self.hub.check_open()?;
        Ok(self.settings.lock().clone())
    }

    pub fn lease_ids(&self) -> Result<Vec<LeaseId>> {
        self.hub.check_open()?;
        let ids = self.leases.lock().ids();
        Ok(ids)
    }

    /// Returns the leases that have ended, as soon as there are any. `None`: the store was closed or dropped.
    pub async fn next_expired(this: &std::sync::Weak<Self>) -> Option<Vec<LeaseId>> {
        loop {
            let shared = this.upgrade()?;
            shared.hub.check_open().ok()?;
            let clock = shared.options.clock.clone();
            let changed = shared.leases_changed.notified();
            let (expired, next) = {
                let leases = shared.leases.lock();
                (leases.expired(clock.now()), leases.next_expiry())
            };
            if !expired.is_empty() {
                return Some(expired);
            }
            match next {
                None => changed.await,
                Some(t) => tokio::select! {
                    _ = changed => {}
                    _ = clock.sleep_until(t) => {}
                },
            }
        }
    }
}

pub(crate) struct Machine<B> {
    pub backend: B,
    /// The last revision given out, committed or not.
    pub revision: Revision,
    pub shared: Arc<Shared>,
}

impl<B: Backend> View for Machine<B> {
    fn revision(&self) -> Revision {
        self.revision
    }
    fn get(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        self.backend.get(key, self.revision)
    }
    fn range(&self, req: &RangeRequest) -> Result<RangeResponse> {
        let compacted = *self.shared.compacted.lock();
        if req.revision > 0 && req.revision < compacted {
            return Err(StoreError::Compacted { requested: req.revision, compacted });
        }
        self.backend.range(req, self.revision)
    }
    fn lease_exists(&self, id: LeaseId) -> bool {
        self.shared.leases.lock().contains(id)
    }
}

impl<B: Backend> Machine<B> {
    /// Runs transactions one after another and commits them together.
    pub fn run(&mut self, txns: &[Txn]) -> Vec<Result<TxnResponse>> {
        let before = self.revision;
        let mut committed: Vec<Committed> = Vec::new();
        let mut answers = Vec::with_capacity(txns.len());
        let mut broken = None;
        for txn in txns {
            let step = evaluate(self, txn).map(|outcome| (outcome.response, outcome.events));
            answers.push(match step {
                Ok((response, events)) if events.is_empty() => Ok(response),
                Ok((response, events)) => {
                    self.revision += 1;
                    match self.backend.append(self.revision, &events, txn.durability) {
                        Ok(()) => committed.push((self.revision, events.into())),
                        Err(e) => {
                            broken = Some(e);
                            break;
                        }
                    }
                    Ok(response)
                }
                Err(e) => Err(e),
            });
        }
        match self.finish(before, committed, broken) {
            Ok(()) => answers,
            Err(e) => txns.iter().map(|_| Err(e.clone())).collect(),
        }
    }

    fn finish(&mut self, before: Revision, committed: Vec<Committed>, broken: Option<StoreError>) -> Result<()> {
        let result = match broken {
            Some(e) => Err(e),
            None => self.backend.commit(self.revision),
        };
        if let Err(e) = result {
            self.backend.rollback(before);
            self.revision = before;
            return Err(e);
        }
        {
            let mut leases = self.shared.leases.lock();
            for (_, events) in &committed {
                leases.apply(events);
            }
        }
        self.shared.hub.publish(&committed);
        Ok(())
    }

    pub fn grant(&mut self, id: LeaseId, ttl: i64, durability: Durability) -> Result<LeaseStatus> {
        let id = {
            let leases = self.shared.leases.lock();
            if leases.contains(id) {
                return Err(StoreError::LeaseExists(id));
            }
            if id == 0 { leases.unused_id() } else { id }
        };
        let before = self.revision;
        let stored = self.backend.grant(id, ttl, durability).err();
        self.finish(before, Vec::new(), stored)?;
        let status = self.shared.leases.lock().grant(id, ttl, self.shared.options.clock.now());
        self.shared.leases_changed.notify_one();
        Ok(status)
    }

    /// Ends a lease and deletes its keys, all at one revision.
    pub fn revoke(&mut self, id: LeaseId) -> Result<()> {
        let keys = {
            let leases = self.shared.leases.lock();
            if !leases.contains(id) {
                return Err(StoreError::LeaseNotFound(id));
            }
            leases.keys(id)
        };
        let before = self.revision;
        let success = keys.into_iter().map(Op::delete).collect();
        // The class of each key decides what reaches the disk; nothing here asks for more.
        let txn = Txn { success, durability: Durability::Ephemeral, ..Default::default() };
        let events = evaluate(self, &txn)?.events;
        let mut committed = Vec::new();
        let mut broken = self.backend.revoke(id).err();
        if broken.is_none() && !events.is_empty() {
            self.revision += 1;
            broken = self.backend.append(self.revision, &events, Durability::Ephemeral).err();
            committed.push((self.revision, events.into()));
        }
        self.finish(before, committed, broken)?;
        self.shared.leases.lock().remove(id);
        Ok(())
    }

    /// Revokes those that have really ended: one may have been kept alive in the meantime.
    pub fn expire(&mut self, ids: &[LeaseId]) {
        for id in ids {
            let now = self.shared.options.clock.now();
            let ended = self.shared.leases.lock().has_expired(*id, now);
            if ended && let Err(e) = self.revoke(*id) {
                tracing::warn!(lease = id, error = %isopod_base::errors::Chain(&e), "cannot end an expired lease");
                self.shared.leases.lock().postpone(*id, now);
            }
        }
    }

    /// An alarm counts from when it is raised, even where no disk takes it down any more.
    pub fn set_alarm(&mut self, alarm: Alarm, raised: bool) -> Result<bool> {
        let mut alarms = self.shared.alarms.lock();
        if alarms.contains(&alarm) == raised {
            return Ok(false);
        }
        if raised {
            alarms.insert(alarm);
        }
        drop(alarms);
        let broken = self.backend.set_alarm(alarm, raised).err();
        self.finish(self.revision, Vec::new(), broken)?;
        if !raised {
            self.shared.alarms.lock().remove(&alarm);
        }
        Ok(true)
    }

    pub fn set_setting(&mut self, name: &str, value: Option<Bytes>) -> Result<()> {
        let broken = self.backend.set_setting(name, value.as_deref()).err();
        self.finish(self.revision, Vec::new(), broken)?;
        let mut settings = self.shared.settings.lock();
        match value {
            Some(value) => settings.insert(name.to_owned(), value),
            None => settings.remove(name),
        };
        Ok(())
    }

    /// For backends that nobody else writes to.
    pub fn swap_setting(&mut self, name: &str, expected: Option<&Bytes>, value: Option<Bytes>) -> Result<bool> {
        if self.shared.settings.lock().get(name) != expected {
            return Ok(false);
        }
        self.set_setting(name, value).map(|()| true)
    }

    pub fn compact(&mut self, rev: Revision) -> Result<()> {
        let compacted = *self.shared.compacted.lock();
        if rev <= compacted {
            return Err(StoreError::Compacted { requested: rev, compacted });
        }
        if rev > self.revision {
            return Err(StoreError::FutureRevision { requested: rev, newest: self.revision });
        }
        let broken = self.backend.compact(rev).err();
        self.finish(self.revision, Vec::new(), broken)?;
        *self.shared.compacted.lock() = rev;
        Ok(())
    }
}
