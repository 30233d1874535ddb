//! One watcher of a cache, and what it missed.

use crate::cache::entry::Filter;
use crate::cache::resource::{Cache, Change};
use crate::cache::store_status;
use isopod_api::Status;
use isopod_kinds::Kind;
use isopod_store::{EventKind, KeyRange, Revision, StoreError, WatchMessage, WatchRequest};
use std::sync::Arc;
use tokio::sync::mpsc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

impl EventType {
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
            Self::Error => "ERROR",
        }
    }
}

/// A change as one watcher sees it.
pub type Delivery = (EventType, Arc<Change>);

/// What happened between the revision that a watcher starts from and its first delivery.
pub enum History {
    /// All of it.
    Ring(Vec<Arc<Change>>),
    /// It lies in the store, up to and with this revision.
    Store { until: Revision },
}

pub struct Watcher {
    pub filter: Filter,
    pub sender: mpsc::Sender<Delivery>,
    /// Only later changes are wanted.
    pub after: Revision,
}

impl Watcher {
    /// Queues the change if it is one for this watcher. False: the watcher is gone or too slow, and ends.
    pub fn offer(&mut self, kind: &Kind, change: &Arc<Change>) -> bool {
        if change.revision <= self.after {
            return true;
        }
        match change.seen_by(kind, &self.filter) {
            Some(ty) => self.sender.try_send((ty, change.clone())).is_ok(),
            None => !self.sender.is_closed(),
        }
    }

    pub fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }
}

/// 410 in the words of a watch.
pub fn too_old(requested: Revision, oldest: Revision) -> Status {
    Status::expired(format!("too old resource version: {requested} ({oldest})"))
}

/// A watcher that missed more bytes than this reads the list again: what comes from the store is in memory for it alone, as long
/// as its client takes to read it.
const MOST_MISSED: usize = 16 << 20;

impl Cache {
    /// The changes in `(after, until]` from the store's history that are for this filter.
    pub async fn history(&self, after: Revision, until: Revision, filter: &Filter) -> Result<Vec<Arc<Change>>, Status> {
        let expired = |e| match e {
            StoreError::Compacted { requested, compacted } => too_old(requested - 1, compacted),
            e => store_status(e),
        };
        let range = KeyRange::prefix(format!("{}{}", self.kind.storage.keys, filter.key_prefix(&self.kind)));
        let mut watch = self.store().watch(WatchRequest { range, start: after + 1 }).await.map_err(expired)?;
        let (mut changes, mut size) = (Vec::new(), 0);
        (watch.request_progress)();
        while let Some(message) = watch.receiver.recv().await {
            let (reached, events) = match message.map_err(expired)? {
                WatchMessage::Events(revision, events) => (revision, Some(events)),
                WatchMessage::Progress(revision) => (revision, None),
            };
            for event in events.iter().flat_map(|e| e.iter()).filter(|e| e.kv.mod_revision <= until) {
                let revision = event.kv.mod_revision;
                let new = (event.kind == EventKind::Put)
                    .then(|| self.entry(&event.kv.key, &event.kv.value, revision))
                    .flatten();
                let prev = event.prev.as_ref();
                let old = prev.and_then(|p| self.entry(&p.key, &p.value, p.mod_revision));
                // The last state of a deleted object is part of its event.
                if old.is_none() && new.is_none() {
                    return Err(too_old(after, revision));
                }
                let change = Change::new(revision, old, new);
                if change.seen_by(&self.kind, filter).is_none() {
                    continue;
                }
                size += [&change.old, &change.new].into_iter().flatten().map(|e| e.size()).sum::<usize>();
                if size > MOST_MISSED {
                    return Err(too_old(after, revision));
                }
                changes.push(Arc::new(change));
            }
            if reached >= until {
                return Ok(changes);
            }
            (watch.request_progress)();
        }
        Err(Status::service_unavailable("the datastore ended the watch"))
    }
}
