//! The store that seals: what is written goes in sealed, what is read and watched comes out open. Everything else passes through.

use crate::provider::{SEALED, SealError};
use crate::reload::Encryption;
use async_trait::async_trait;
use bytes::Bytes;
use isopod_store::{
    Alarm, CompareTarget, Event, Export, HistoryHash, KeyRange, KeyValue, LeaseId, LeaseStatus, Op, OpResponse,
    RangeRequest, RangeResponse, Result, Revision, Store, StoreError, Txn, TxnResponse, Usage, Watch, WatchMessage,
    WatchRequest,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Opened events that a slow watcher has not taken yet; the store below keeps its own, and ends who is too slow.
const OPENED: usize = 64;

/// See the module.
pub struct Sealed {
    inner: Arc<dyn Store>,
    encryption: Arc<Encryption>,
}

/// A stored value that is still sealed, where no EncryptionConfiguration was given: nobody can open it.
pub fn opened_by_nobody(key: &[u8], value: &[u8]) -> Option<StoreError> {
    value.starts_with(SEALED).then(|| failed(key, SealError::Sealed))
}

fn failed(key: &[u8], why: SealError) -> StoreError {
    let context = format!("unable to transform key {:?}", String::from_utf8_lossy(key));
    StoreError::Backend { context, source: Arc::new(why) }
}

impl Sealed {
    pub fn over(inner: Arc<dyn Store>, encryption: Arc<Encryption>) -> Self {
        Sealed { inner, encryption }
    }

    fn seal(&self, key: &Bytes, value: Bytes) -> Result<Bytes> {
        self.encryption.seal(key, value).map_err(|e| failed(key, e))
    }

    async fn open(&self, kv: &mut KeyValue) -> Result<()> {
        open(&self.encryption, kv).await
    }

    async fn open_all(&self, kvs: &mut [KeyValue]) -> Result<()> {
        for kv in kvs {
            self.open(kv).await?;
        }
        Ok(())
    }

    fn seal_txn(&self, txn: &mut Txn) -> Result<()> {
        for compare in &txn.compare {
            let sealed =
                matches!(compare.target, CompareTarget::Value(_)) && self.encryption.covers(&compare.range.start);
            if sealed {
                // Two seals of one value are not equal.
                let why = std::io::Error::from(std::io::ErrorKind::Unsupported);
                let context = "values that are encrypted at rest cannot be compared".to_owned();
                return Err(StoreError::Backend { context, source: Arc::new(why) });
            }
        }
        for op in txn.success.iter_mut().chain(&mut txn.failure) {
            match op {
                Op::Put { key, value, ignore_value: false, .. } => *value = self.seal(key, std::mem::take(value))?,
                Op::Txn(inner) => self.seal_txn(inner)?,
                Op::Put { .. } | Op::Range(_) | Op::Delete { .. } => {}
            }
        }
        Ok(())
    }

    async fn open_answer(&self, answer: &mut TxnResponse) -> Result<()> {
        // Not by recursion, which an async function does not like.
        let mut rest: Vec<&mut OpResponse> = answer.responses.iter_mut().collect();
        while let Some(response) = rest.pop() {
            match response {
                OpResponse::Range(read) => self.open_all(&mut read.kvs).await?,
                OpResponse::Put { prev } => {
                    for kv in prev.iter_mut() {
                        self.open(kv).await?;
                    }
                }
                OpResponse::Delete { prev, .. } => self.open_all(prev).await?,
                OpResponse::Txn(inner) => rest.extend(inner.responses.iter_mut()),
            }
        }
        Ok(())
    }
}

async fn open(encryption: &Encryption, kv: &mut KeyValue) -> Result<()> {
    if kv.value.is_empty() {
        return Ok(());
    }
    let opened = encryption.open(&kv.key, kv.value.clone()).await;
    kv.value = opened.map_err(|e| failed(&kv.key, e))?.value;
    Ok(())
}

/// One that cannot be opened stays as it is: who reads it cannot make sense of it and says so, and the others are not held up.
async fn open_events(encryption: &Encryption, events: Arc<[Event]>) -> Arc<[Event]> {
    let covered = |e: &Event| encryption.covers(&e.kv.key) || e.kv.value.starts_with(SEALED);
    if !events.iter().any(covered) {
        return events;
    }
    let mut opened = events.to_vec();
    for event in &mut opened {
        for kv in std::iter::once(&mut event.kv).chain(&mut event.prev) {
            if let Err(e) = open(encryption, kv).await {
                tracing::error!(error = %isopod_base::errors::Chain(&e), "a change cannot be decrypted");
            }
        }
    }
    opened.into()
}

#[async_trait]
impl Store for Sealed {
    async fn range(&self, req: RangeRequest) -> Result<RangeResponse> {
        let mut read = self.inner.range(req).await?;
        self.open_all(&mut read.kvs).await?;
        Ok(read)
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnResponse> {
        self.seal_txn(&mut txn)?;
        let mut answer = self.inner.txn(txn).await?;
        self.open_answer(&mut answer).await?;
        Ok(answer)
    }

    async fn watch(&self, req: WatchRequest) -> Result<Watch> {
        let Watch { mut receiver, request_progress } = self.inner.watch(req).await?;
        let (sender, opened) = mpsc::channel(OPENED);
        let encryption = self.encryption.clone();
        tokio::spawn(async move {
            while let Some(message) = receiver.recv().await {
                let message = match message {
                    Ok(WatchMessage::Events(revision, events)) => {
                        Ok(WatchMessage::Events(revision, open_events(&encryption, events).await))
                    }
                    other => other,
                };
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        Ok(Watch { receiver: opened, request_progress })
    }

    async fn compact(&self, rev: Revision) -> Result<()> {
        self.inner.compact(rev).await
    }
    async fn compact_physically(&self, rev: Revision) -> Result<()> {
        self.inner.compact_physically(rev).await
    }
    async fn hash(&self, rev: Revision) -> Result<HistoryHash> {
        self.inner.hash(rev).await
    }
    /// As it is kept: a backup holds no more than the datastore does.
    async fn export(&self) -> Result<Export> {
        self.inner.export().await
    }
    async fn revisions(&self) -> Result<(Revision, Revision)> {
        self.inner.revisions().await
    }
    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus> {
        self.inner.lease_grant(id, ttl_seconds).await
    }
    async fn lease_grant_ephemeral(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus> {
        self.inner.lease_grant_ephemeral(id, ttl_seconds).await
    }
    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.inner.lease_revoke(id).await
    }
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        self.inner.lease_keep_alive(id).await
    }
    async fn lease_status(&self, id: LeaseId) -> Result<LeaseStatus> {
        self.inner.lease_status(id).await
    }
    async fn leases(&self) -> Result<Vec<LeaseId>> {
        self.inner.leases().await
    }
    async fn usage(&self) -> Result<Usage> {
        self.inner.usage().await
    }
    async fn defragment(&self) -> Result<()> {
        self.inner.defragment().await
    }
    async fn alarms(&self) -> Result<Vec<Alarm>> {
        self.inner.alarms().await
    }
    async fn set_alarm(&self, alarm: Alarm, raised: bool) -> Result<bool> {
        self.inner.set_alarm(alarm, raised).await
    }
    async fn setting(&self, name: &str) -> Result<Option<Bytes>> {
        self.inner.setting(name).await
    }
    async fn settings(&self) -> Result<BTreeMap<String, Bytes>> {
        self.inner.settings().await
    }
    async fn set_setting(&self, name: &str, value: Option<Bytes>) -> Result<()> {
        self.inner.set_setting(name, value).await
    }
    async fn swap_setting(&self, name: &str, expected: Option<Bytes>, value: Option<Bytes>) -> Result<bool> {
        self.inner.swap_setting(name, expected, value).await
    }
    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

impl Sealed {
    pub fn encryption(&self) -> &Encryption {
        &self.encryption
    }

    /// Would the value that a key has be written otherwise today? Then a write that changes nothing is no empty one.
    pub async fn is_stale(&self, key: &str) -> Result<bool> {
        let read = self.inner.range(RangeRequest::new(KeyRange::key(key.to_owned()))).await?;
        let Some(kv) = read.kvs.into_iter().next() else { return Ok(false) };
        let opened = self.encryption.open(&kv.key, kv.value).await;
        Ok(opened.map_err(|e| failed(&kv.key, e))?.stale)
    }
}
