//! A backend that fails and crashes when it is told to, and the ways in which a store could be broken.

use crate::hub::Hub;
use crate::machine::Backend;
use crate::*;
use parking_lot::Mutex;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no room for the next entry.
    AppendFails,
    CommitFails,
    /// The process dies, and nothing of the batch has reached the disk.
    CrashBeforeCommit,
    /// The process dies, all of the batch is on the disk, and nobody has been told.
    CrashAfterCommit,
}

/// A bug that the simulation must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mischief {
    PublishesBeforeCommit,
    AnnouncesProgressEarly,
    AnswersBeforeTheDiskHasIt,
    KeepsWhatWasRolledBack,
    CommitsHalf,
    RecoversWithoutTheLastRevision,
    RecoversLeasesWithoutKeys,
    CompactsTooMuch,
    ReadsStale,
    SkipsHistory,
    ReadsUncommitted,
}

impl Mischief {
    pub const ALL: [Mischief; 11] = [
        Mischief::PublishesBeforeCommit,
        Mischief::AnnouncesProgressEarly,
        Mischief::AnswersBeforeTheDiskHasIt,
        Mischief::KeepsWhatWasRolledBack,
        Mischief::CommitsHalf,
        Mischief::RecoversWithoutTheLastRevision,
        Mischief::RecoversLeasesWithoutKeys,
        Mischief::CompactsTooMuch,
        Mischief::ReadsStale,
        Mischief::SkipsHistory,
        Mischief::ReadsUncommitted,
    ];
}

/// What the world tells its backend, and hears from it.
#[derive(Default)]
pub struct Faults {
    pub next: Option<Fault>,
    pub crashed: bool,
    /// Run inside of each commit, before anything of it may be seen.
    pub probe: Option<Arc<dyn Fn() + Send + Sync>>,
}

pub(crate) struct Faulty<B> {
    pub inner: B,
    pub faults: Arc<Mutex<Faults>>,
    pub mischief: Option<Mischief>,
    pub hub: Option<Arc<Hub>>,
    /// After a crash nothing more is done.
    pub dead: bool,
}

fn no_space() -> StoreError {
    StoreError::NoSpace
}

impl<B: Backend> Faulty<B> {
    fn crash(&mut self) -> Result<()> {
        self.dead = true;
        self.faults.lock().crashed = true;
        Err(StoreError::Closed)
    }

    fn check_alive(&self) -> Result<()> {
        if self.dead { Err(StoreError::Closed) } else { Ok(()) }
    }

    fn take(&self, fault: Fault) -> bool {
        let mut faults = self.faults.lock();
        let due = faults.next == Some(fault);
        if due {
            faults.next = None;
        }
        due
    }

    fn tell_early(&self, rev: Revision, events: &[Event]) {
        let told = match self.mischief {
            Some(Mischief::PublishesBeforeCommit) => events,
            Some(Mischief::AnnouncesProgressEarly) => &[],
            _ => return,
        };
        if let Some(hub) = &self.hub {
            hub.publish(&[(rev, told.into())]);
        }
    }
}

impl<B: Backend> Backend for Faulty<B> {
    fn get(&self, key: &[u8], newest: Revision) -> Result<Option<KeyValue>> {
        self.inner.get(key, newest)
    }
    fn range(&self, req: &RangeRequest, newest: Revision) -> Result<RangeResponse> {
        self.inner.range(req, newest)
    }
    fn append(&mut self, rev: Revision, events: &[Event], durability: Durability) -> Result<()> {
        self.check_alive()?;
        if self.take(Fault::AppendFails) {
            // Some of it may have been appended by then.
            self.inner.append(rev, &events[..events.len() / 2], durability)?;
            return Err(no_space());
        }
        self.inner.append(rev, events, durability)?;
        self.tell_early(rev, events);
        Ok(())
    }
    fn grant(&mut self, id: LeaseId, ttl: i64, durability: Durability) -> Result<()> {
        self.inner.grant(id, ttl, durability)
    }
    fn revoke(&mut self, id: LeaseId) -> Result<()> {
        self.inner.revoke(id)
    }
    fn compact(&mut self, rev: Revision) -> Result<()> {
        self.inner.compact(rev)
    }
    fn set_alarm(&mut self, alarm: Alarm, raised: bool) -> Result<()> {
        self.inner.set_alarm(alarm, raised)
    }
    fn set_setting(&mut self, name: &str, value: Option<&[u8]>) -> Result<()> {
        self.inner.set_setting(name, value)
    }
    fn commit(&mut self, newest: Revision) -> Result<()> {
        self.check_alive()?;
        let probe = self.faults.lock().probe.clone();
        if let Some(probe) = probe {
            probe();
        }
        if self.take(Fault::CommitFails) {
            return Err(no_space());
        }
        if self.take(Fault::CrashBeforeCommit) {
            return self.crash();
        }
        self.inner.commit(newest)?;
        if self.take(Fault::CrashAfterCommit) {
            return self.crash();
        }
        Ok(())
    }
    fn rollback(&mut self, newest: Revision) {
        // The dead take nothing back.
        if !self.dead {
            self.inner.rollback(newest);
        }
    }
}
