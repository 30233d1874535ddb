//! A backup of a datastore in one file: made from any backend, and a backend of any kind can be made from it.
//!
//! Layout: a line that names the format, then blocks (`block.rs`): the header, what stands beside the keys, files of whoever
//! makes the backup, the entries of the history, and a last block that says how many they were.
//!
//! Invariants: what is not exactly what was written is refused, wherever it was cut or changed: each block carries a
//! checksum over itself and over all blocks before it, and only a file with its last block is whole. Neither side holds
//! more than a block in memory.

mod block;
mod codec;
mod read;
mod write;

use crate::{Alarm, Export, HistoryEntry, KeyRange, LeaseId, RangeRequest, Result, Revision, Store, StoreError};
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use read::Archive;
pub use write::write;

/// What stands beside the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Id and granted TTL in seconds. Restored ones begin anew with their whole time.
    pub leases: BTreeMap<LeaseId, i64>,
    pub settings: BTreeMap<String, Bytes>,
    pub alarms: BTreeSet<Alarm>,
}

/// How much of another program's datastore is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Everything since its compaction.
    History,
    /// The keys as they are now.
    Newest,
}

/// A datastore's whole content as it was at one moment, on its way from one backend to another or into a file.
pub struct Content {
    pub state: State,
    /// Revisions up to here may have been handed out beyond those of the entries; 0: none were.
    pub reserved: Revision,
    /// Keys that are there at the export's revision.
    pub keys: u64,
    pub export: Export,
}

impl Content {
    /// The content of an open store.
    pub async fn of(store: &dyn Store) -> Result<Content> {
        let mut state = State::default();
        // A lease of the exported moment was there before it or came with it: look twice.
        leases(store, &mut state).await?;
        let export = store.export().await?;
        leases(store, &mut state).await?;
        state.settings = store.settings().await?;
        state.alarms = store.alarms().await?.into_iter().collect();
        let keys = count(store, export.revision).await?;
        Ok(Content { state, reserved: 0, keys, export })
    }

    /// Goes on at a revision that nobody has been told: what the lost server handed out after this content was read lies
    /// before it and counts as compacted, so that who knows one of those revisions is told to look again.
    pub fn begin_epoch(&mut self, bump: Revision) {
        let past_reserved = if self.reserved > 0 { self.reserved + 1 } else { 0 };
        let next = (self.export.revision + bump).max(past_reserved);
        if next > self.export.revision {
            (self.export.revision, self.export.compacted) = (next, next);
        }
        self.reserved = 0;
    }
}

/// Where entries stand within their revisions, one after another.
#[derive(Default)]
pub(crate) struct Places {
    last: (Revision, u32),
}

impl Places {
    pub fn next(&mut self, entry: &HistoryEntry) -> u32 {
        // Keys that share a revision by a restart, not by a transaction, share its first place.
        let sub = if entry.revision == self.last.0 { entry.sub.max(self.last.1 + 1) } else { entry.sub };
        self.last = (entry.revision, sub);
        sub
    }
}

async fn leases(store: &dyn Store, state: &mut State) -> Result<()> {
    for id in store.leases().await? {
        match store.lease_status(id).await {
            Ok(lease) => {
                state.leases.insert(id, lease.granted_ttl);
            }
            // It has just ended.
            Err(StoreError::LeaseNotFound(_)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn count(store: &dyn Store, revision: Revision) -> Result<u64> {
    let everything = KeyRange { start: Bytes::from_static(b"\0"), end: Bytes::from_static(b"\0") };
    let at = |revision| RangeRequest { revision, count_only: true, ..RangeRequest::new(everything.clone()) };
    match store.range(at(revision)).await {
        // A compaction has passed since: the newest number is as good to a reader.
        Err(StoreError::Compacted { .. }) => Ok(store.range(at(0)).await?.count),
        other => Ok(other?.count),
    }
}

/// What an archive says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub revision: Revision,
    pub compacted: Revision,
    /// As [`Content::reserved`].
    pub reserved: Revision,
    pub keys: u64,
    pub created: Timestamp,
    /// Where the content comes from, in words.
    pub source: String,
    /// The program that wrote it, and its version.
    pub program: String,
}

/// A file that belongs to what was backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedFile {
    pub name: String,
    pub mode: u32,
    pub content: Bytes,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ArchiveError {
    #[error("this is not a backup of Isopod's: it begins otherwise")]
    Foreign,
    #[error(
        "the backup has format {0}, which this program does not know: restore it with the version that wrote it, or a newer one"
    )]
    Format(String),
    #[error("the backup ends in its block {block}: it was not written or not copied to its end; use another one")]
    Truncated { block: u64 },
    #[error("the backup's block {block} was changed or damaged: use another one")]
    Damaged { block: u64 },
    #[error("something follows the end of the backup: the file is not what was written; use another one")]
    Trailing,
    #[error("cannot {doing} the backup")]
    Io { doing: &'static str, source: Arc<std::io::Error> },
    #[error("cannot read the datastore")]
    Source(#[source] StoreError),
}

impl From<ArchiveError> for StoreError {
    fn from(e: ArchiveError) -> Self {
        match e {
            ArchiveError::Source(e) => e,
            e => StoreError::Backend { context: "cannot read the backup".into(), source: Arc::new(e) },
        }
    }
}

/// A thread that reads for somebody else and may wait for it.
pub(crate) fn start_thread(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().name(name.into()).spawn(work);
    let cannot = |e| StoreError::Backend { context: format!("cannot start the thread {name}"), source: Arc::new(e) };
    started.map(drop).map_err(cannot)
}
