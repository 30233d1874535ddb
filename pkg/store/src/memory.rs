//! The store without a disk: for tests and throw-away servers. Everything in it ends with the process.

use crate::hash::HistoryHasher;
use crate::hub::{Committed, History};
use crate::leases::Leases;
use crate::log::{MemLog, transactions};
use crate::machine::{Backend, Machine, Shared};
use crate::select::select;
use crate::*;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::{Arc, Once};

struct MemoryBackend {
    log: Arc<RwLock<MemLog>>,
}

impl Backend for MemoryBackend {
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
        Ok(())
    }
    fn grant(&mut self, _: LeaseId, _: i64, _: Durability) -> Result<()> {
        Ok(())
    }
    fn revoke(&mut self, _: LeaseId) -> Result<()> {
        Ok(())
    }
    fn compact(&mut self, rev: Revision) -> Result<()> {
        self.log.write().compact(rev);
        Ok(())
    }
    fn set_alarm(&mut self, _: Alarm, _: bool) -> Result<()> {
        Ok(())
    }
    fn set_setting(&mut self, _: &str, _: Option<&[u8]>) -> Result<()> {
        Ok(())
    }
    fn commit(&mut self, _: Revision) -> Result<()> {
        Ok(())
    }
    fn rollback(&mut self, newest: Revision) {
        self.log.write().truncate_after(newest);
    }
}

struct MemoryHistory(Arc<RwLock<MemLog>>);

#[async_trait]
impl History for MemoryHistory {
    async fn page(
        &self,
        range: &KeyRange,
        from: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<(Vec<Committed>, Revision)> {
        let events = self.0.read().history(range, from, to, limit)?;
        let through = if events.len() < limit { to } else { events.last().map_or(to, |l| l.rev) };
        Ok((transactions(events), through))
    }
}

/// See the module. Cheap to make; every clone is the same store.
#[derive(Clone)]
pub struct MemoryStore {
    machine: Arc<Mutex<Machine<MemoryBackend>>>,
    log: Arc<RwLock<MemLog>>,
    shared: Arc<Shared>,
    expiry: Arc<Once>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore::new(Options::default())
    }
}

impl MemoryStore {
    pub fn new(options: Options) -> Self {
        let log = Arc::new(RwLock::new(MemLog::default()));
        let shared = Shared::new(options, 1, 0, Leases::default());
        let backend = MemoryBackend { log: Arc::clone(&log) };
        let machine = Machine { backend, revision: 1, shared: Arc::clone(&shared) };
        MemoryStore { machine: Arc::new(Mutex::new(machine)), log, shared, expiry: Arc::new(Once::new()) }
    }

    /// Started with the first lease, so that a store can be made outside of a runtime.
    fn start_expiry(&self) {
        self.expiry.call_once(|| {
            let shared = Arc::downgrade(&self.shared);
            let machine = Arc::downgrade(&self.machine);
            tokio::spawn(async move {
                while let Some(expired) = Shared::next_expired(&shared).await {
                    let Some(machine) = machine.upgrade() else { return };
                    machine.lock().expire(&expired);
                }
            });
        });
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn range(&self, req: RangeRequest) -> Result<RangeResponse> {
        self.shared.check_revision(req.revision)?;
        let log = self.log.read();
        // Taken under the log's lock: a compaction cannot pass in between.
        let newest = self.shared.hub.published();
        let at = if req.revision > 0 { req.revision } else { newest };
        let mut answer = select(&req, |plain| log.range(plain, at))?;
        answer.revision = newest;
        Ok(answer)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        self.shared.hub.check_open()?;
        let answer = self.machine.lock().run(std::slice::from_ref(&txn)).pop();
        answer.unwrap_or(Err(StoreError::Closed))
    }

    async fn watch(&self, req: WatchRequest) -> Result<Watch> {
        self.shared.check_watch(req.start)?;
        self.shared.hub.watch(Arc::new(MemoryHistory(Arc::clone(&self.log))), req).await
    }

    async fn compact(&self, rev: Revision) -> Result<()> {
        self.shared.hub.check_open()?;
        self.machine.lock().compact(rev)
    }

    async fn compact_physically(&self, rev: Revision) -> Result<()> {
        self.compact(rev).await
    }

    async fn hash(&self, rev: Revision) -> Result<HistoryHash> {
        self.shared.check_revision(rev)?;
        let log = self.log.read();
        let revision = self.shared.hub.published();
        let hash_revision = if rev > 0 { rev } else { revision };
        log.check_read(hash_revision)?;
        let mut hasher = HistoryHasher::new();
        log.hash(&mut hasher, hash_revision);
        let compact_revision = log.compacted();
        Ok(HistoryHash { hash: hasher.finish(), hash_revision, compact_revision, revision })
    }

    async fn export(&self) -> Result<Export> {
        self.shared.hub.check_open()?;
        let log = self.log.read();
        let revision = self.shared.hub.published();
        let (sender, entries) = tokio::sync::mpsc::channel(1);
        // There is room for the one part that comes.
        let _ = sender.try_send(Ok(log.export(revision)));
        Ok(Export { revision, compacted: log.compacted(), entries })
    }

    async fn revisions(&self) -> Result<(Revision, Revision)> {
        self.shared.revisions()
    }

    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus> {
        self.shared.hub.check_open()?;
        self.start_expiry();
        self.machine.lock().grant(id, ttl_seconds, Durability::Durable)
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.shared.hub.check_open()?;
        self.machine.lock().revoke(id)
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
        let bytes = self.log.read().bytes();
        Ok(Usage { size: bytes, in_use: bytes })
    }

    async fn defragment(&self) -> Result<()> {
        self.shared.hub.check_open()
    }

    async fn alarms(&self) -> Result<Vec<Alarm>> {
        self.shared.alarms()
    }

    async fn set_alarm(&self, alarm: Alarm, raised: bool) -> Result<bool> {
        self.shared.hub.check_open()?;
        self.machine.lock().set_alarm(alarm, raised)
    }

    async fn setting(&self, name: &str) -> Result<Option<Bytes>> {
        self.shared.setting(name)
    }

    async fn settings(&self) -> Result<BTreeMap<String, Bytes>> {
        self.shared.settings()
    }

    async fn set_setting(&self, name: &str, value: Option<Bytes>) -> Result<()> {
        self.shared.hub.check_open()?;
        self.machine.lock().set_setting(name, value)
    }

    async fn swap_setting(&self, name: &str, expected: Option<Bytes>, value: Option<Bytes>) -> Result<bool> {
        self.shared.hub.check_open()?;
        self.machine.lock().swap_setting(name, expected.as_ref(), value)
    }

    async fn close(&self) -> Result<()> {
        self.shared.hub.close();
        self.shared.leases_changed.notify_one();
        Ok(())
    }
}
