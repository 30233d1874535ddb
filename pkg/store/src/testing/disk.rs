//! What a store runs on in the simulation: something that survives crashes, and a simulated one of that sort.

use super::faults::Mischief;
use crate::hub::Committed;
use crate::leases::Leases;
use crate::log::{MemLog, transactions};
use crate::machine::{Backend, Shared};
use crate::select::select;
use crate::*;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Reads beside the writer.
pub(crate) trait Reader: Send + Sync {
    fn range(&self, req: &RangeRequest) -> Result<RangeResponse>;
    fn history(
        &self,
        range: &KeyRange,
        from: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<(Vec<Committed>, Revision)>;
}

/// A store as it is after its start.
pub(crate) struct Started<B> {
    pub backend: B,
    pub revision: Revision,
    pub compacted: Revision,
    pub leases: Leases,
}

pub(crate) trait Disk {
    type Backend: Backend;
    /// Prefixes of keys that may be lost in a crash.
    const EPHEMERAL: &'static [&'static str];
    fn start(&mut self, options: &Options) -> Started<Self::Backend>;
    fn reader(&self, backend: &Self::Backend, shared: &Arc<Shared>) -> Arc<dyn Reader>;
    /// What goes on between batches: steps of a compaction, flushes.
    fn idle(&self, backend: &mut Self::Backend, newest: Revision);
    /// The process ends in order.
    fn end(&self, backend: Self::Backend, newest: Revision);
    /// The process is gone; only what has reached the disk is left.
    fn crash(&mut self, backend: Self::Backend);
}

/// What has reached the disk.
#[derive(Default)]
struct Platter {
    log: Vec<(Revision, Vec<Event>)>,
    leases: BTreeMap<LeaseId, i64>,
    compacted: Revision,
}

enum Change {
    Append(Revision, Vec<Event>),
    Grant(LeaseId, i64),
    Revoke(LeaseId),
    Compact(Revision),
}

pub(crate) struct SimulatedDisk {
    platter: Arc<Mutex<Platter>>,
    mischief: Option<Mischief>,
}

pub(crate) struct SimulatedBackend {
    platter: Arc<Mutex<Platter>>,
    log: Arc<RwLock<MemLog>>,
    /// Of the running batch.
    pending: Vec<Change>,
    /// Only [`Mischief::AnswersBeforeTheDiskHasIt`] has any.
    unsynced: Vec<Change>,
    mischief: Option<Mischief>,
}

impl SimulatedDisk {
    pub fn new(mischief: Option<Mischief>) -> Self {
        SimulatedDisk { platter: Arc::default(), mischief }
    }

    fn is(&self, mischief: Mischief) -> bool {
        self.mischief == Some(mischief)
    }
}

impl Platter {
    fn write(&mut self, change: Change) {
        match change {
            Change::Append(rev, events) => self.log.push((rev, events)),
            Change::Grant(id, ttl) => drop(self.leases.insert(id, ttl)),
            Change::Revoke(id) => drop(self.leases.remove(&id)),
            Change::Compact(rev) => self.compacted = rev,
        }
    }
}

impl Disk for SimulatedDisk {
    type Backend = SimulatedBackend;
    const EPHEMERAL: &'static [&'static str] = &[];

    fn start(&mut self, options: &Options) -> Started<SimulatedBackend> {
        let platter = self.platter.lock();
        let mut log = MemLog::default();
        let mut live: BTreeMap<Bytes, LeaseId> = BTreeMap::new();
        let mut revision = platter.compacted.max(1);
        for (rev, events) in &platter.log {
            revision = revision.max(*rev);
            for (sub, event) in (0..).zip(events) {
                log.append(*rev, sub, event);
                live.insert(event.kv.key.clone(), event.kv.lease);
            }
        }
        if platter.compacted > 0 {
            log.compact(platter.compacted);
        }
        if self.is(Mischief::RecoversWithoutTheLastRevision) && revision > 1 {
            revision -= 1;
        }
        let mut leases = Leases::default();
        for (id, ttl) in &platter.leases {
            leases.grant(*id, *ttl, options.clock.now());
        }
        let held = live.into_iter().filter(|(_, lease)| *lease != 0);
        for (key, lease) in held.filter(|_| !self.is(Mischief::RecoversLeasesWithoutKeys)) {
            leases.attach(lease, key);
        }
        let backend = SimulatedBackend {
            platter: Arc::clone(&self.platter),
            log: Arc::new(RwLock::new(log)),
            pending: Vec::new(),
            unsynced: Vec::new(),
            mischief: self.mischief,
        };
        Started { backend, revision, compacted: platter.compacted, leases }
    }

    fn reader(&self, backend: &SimulatedBackend, shared: &Arc<Shared>) -> Arc<dyn Reader> {
        let (log, shared) = (Arc::clone(&backend.log), Arc::clone(shared));
        Arc::new(LogReader { log, shared, mischief: self.mischief })
    }

    fn idle(&self, _: &mut SimulatedBackend, _: Revision) {}

    fn end(&self, mut backend: SimulatedBackend, _: Revision) {
        backend.sync();
    }

    fn crash(&mut self, backend: SimulatedBackend) {
        drop(backend);
    }
}

impl SimulatedBackend {
    fn sync(&mut self) {
        let mut platter = self.platter.lock();
        for change in self.unsynced.drain(..) {
            platter.write(change);
        }
    }
}

impl Backend for SimulatedBackend {
    fn get(&self, key: &[u8], newest: Revision) -> Result<Option<KeyValue>> {
        Ok(self.log.read().get(key, newest).cloned())
    }
    fn range(&self, req: &RangeRequest, newest: Revision) -> Result<RangeResponse> {
        let at = if req.revision > 0 { req.revision } else { newest };
        let mut answer = self.log.read().range(req, at)?;
        answer.revision = newest;
        Ok(answer)
    }
    fn append(&mut self, rev: Revision, events: &[Event], _: Durability) -> Result<()> {
        let mut log = self.log.write();
        for (sub, event) in (0..).zip(events) {
            log.append(rev, sub, event);
        }
        self.pending.push(Change::Append(rev, events.to_vec()));
        Ok(())
    }
    fn grant(&mut self, id: LeaseId, ttl: i64, _: Durability) -> Result<()> {
        self.pending.push(Change::Grant(id, ttl));
        Ok(())
    }
    fn revoke(&mut self, id: LeaseId) -> Result<()> {
        self.pending.push(Change::Revoke(id));
        Ok(())
    }
    fn compact(&mut self, rev: Revision) -> Result<()> {
        self.pending.push(Change::Compact(rev));
        Ok(())
    }
    fn set_alarm(&mut self, _: Alarm, _: bool) -> Result<()> {
        Ok(())
    }
    fn set_setting(&mut self, _: &str, _: Option<&[u8]>) -> Result<()> {
        Ok(())
    }
    fn commit(&mut self, _: Revision) -> Result<()> {
        let lazy = self.mischief == Some(Mischief::AnswersBeforeTheDiskHasIt);
        if lazy {
            self.sync();
        }
        for mut change in std::mem::take(&mut self.pending) {
            if let Change::Compact(rev) = &change {
                let too_much = i64::from(self.mischief == Some(Mischief::CompactsTooMuch));
                self.log.write().compact(rev + too_much);
            }
            if let Change::Append(_, events) = &mut change
                && self.mischief == Some(Mischief::CommitsHalf)
            {
                events.truncate(1);
            }
            match lazy {
                true => self.unsynced.push(change),
                false => self.platter.lock().write(change),
            }
        }
        Ok(())
    }
    fn rollback(&mut self, newest: Revision) {
        if self.mischief == Some(Mischief::KeepsWhatWasRolledBack) {
            return;
        }
        self.pending.clear();
        self.log.write().truncate_after(newest);
    }
}

struct LogReader {
    log: Arc<RwLock<MemLog>>,
    shared: Arc<Shared>,
    mischief: Option<Mischief>,
}

impl Reader for LogReader {
    fn range(&self, req: &RangeRequest) -> Result<RangeResponse> {
        self.shared.check_revision(req.revision)?;
        let log = self.log.read();
        let newest = match self.mischief {
            Some(Mischief::ReadsStale) => (self.shared.hub.published() - 1).max(log.compacted()).max(1),
            Some(Mischief::ReadsUncommitted) => self.shared.hub.published() + 1,
            _ => self.shared.hub.published(),
        };
        let at = if req.revision > 0 { req.revision } else { newest };
        let mut answer = select(req, |plain| log.range(plain, at))?;
        answer.revision = match self.mischief {
            Some(Mischief::ReadsUncommitted) => newest - 1,
            _ => newest,
        };
        Ok(answer)
    }

    fn history(
        &self,
        range: &KeyRange,
        from: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<(Vec<Committed>, Revision)> {
        let events = self.log.read().history(range, from, to, limit)?;
        let through = if events.len() < limit { to } else { events.last().map_or(to, |l| l.rev) };
        let mut page = transactions(events);
        if self.mischief == Some(Mischief::SkipsHistory) && page.len() > 1 {
            page.remove(0);
        }
        Ok((page, through))
    }
}
