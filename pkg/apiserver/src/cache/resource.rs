//! The cache of one resource: an ordered map of entries that is cheap to snapshot, a bounded ring of changes, and the
//! watchers that wait for more.

use crate::cache::entry::{Entry, Filter, Views};
use crate::cache::index::LabelIndex;
use crate::cache::watcher::{Delivery, EventType, History, Watcher};
use crate::metrics::DatastoreMetrics;
use bytes::Bytes;
use imbl::OrdMap;
use isopod_base::errors::Chain;
use isopod_kinds::Kind;
use isopod_store::{Event, EventKind, KeyRange, RangeRequest, Revision, Store, StoreError};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, mpsc};

/// The ring holds at most so many changes and so many bytes; what is older is in the store's history.
pub const RING_CHANGES: usize = 1024;
const RING_BYTES: usize = 4 << 20;
/// A watcher that is further behind is ended; it starts again from where it was.
const WATCHER_QUEUE: usize = 2048;

pub type Entries = OrdMap<Arc<str>, Arc<Entry>>;

/// What happened to one object, shared by all watchers.
pub struct Change {
    pub revision: Revision,
    pub old: Option<Arc<Entry>>,
    pub new: Option<Arc<Entry>>,
    /// The encoded watch events, by type and form.
    forms: Mutex<Vec<(EventType, u64, Bytes)>>,
    views: Views<Change>,
}

impl Change {
    pub fn new(revision: Revision, old: Option<Arc<Entry>>, new: Option<Arc<Entry>>) -> Self {
        Change { revision, old, new, forms: Mutex::default(), views: Views::default() }
    }

    /// Where the same change in another version is kept.
    pub fn view_cell(&self, version: &str) -> Arc<OnceCell<Arc<Change>>> {
        self.views.cell(version)
    }

    /// What this change is to a watcher with this filter, if anything. An object that leaves the selector is DELETED.
    pub fn seen_by(&self, kind: &Kind, filter: &Filter) -> Option<EventType> {
        let sees = |e: &Option<Arc<Entry>>| e.as_ref().is_some_and(|e| filter.matches(kind, e));
        match (sees(&self.old), sees(&self.new)) {
            (false, true) => Some(EventType::Added),
            (true, true) => Some(EventType::Modified),
            (true, false) => Some(EventType::Deleted),
            (false, false) => None,
        }
    }

    /// The JSON that an event of this type carries: the new object, or the old one at the new revision.
    pub fn body(&self, ty: EventType) -> Bytes {
        match (ty, &self.old, &self.new) {
            (EventType::Deleted, Some(old), _) => old.body_at(self.revision),
            (_, _, Some(new)) => new.body.clone(),
            _ => Bytes::new(),
        }
    }

    /// The encoded event in a form, made by `encode` for the first watcher that wants it.
    pub fn encoded(&self, ty: EventType, form: u64, encode: impl FnOnce(Bytes) -> Bytes) -> Bytes {
        if let Some((.., bytes)) = self.forms.lock().iter().find(|(t, f, _)| (*t, *f) == (ty, form)) {
            return bytes.clone();
        }
        let bytes = encode(self.body(ty));
        self.forms.lock().push((ty, form, bytes.clone()));
        bytes
    }

    fn size(&self) -> usize {
        self.old.as_ref().map_or(64, |e| e.size())
    }
}

/// The content of a resource at one revision.
#[derive(Clone)]
pub struct Snapshot {
    pub revision: Revision,
    pub entries: Entries,
}

#[derive(Default)]
struct Content {
    entries: Entries,
    labelled: LabelIndex,
    /// Of all bodies.
    bytes: usize,
    /// Events up to and with this revision are in `entries`.
    revision: Revision,
    ring: VecDeque<Arc<Change>>,
    ring_bytes: usize,
    /// The ring has every change after this revision.
    ring_after: Revision,
    watchers: Vec<Watcher>,
    /// So many watchers that it is time to look for those that are gone.
    sweep_at: usize,
    /// Before the content was read: the events that came meanwhile.
    aside: Option<Vec<(Revision, Vec<Event>)>>,
    expired: bool,
}

/// Among so many it costs nothing to look for those that are gone.
const FEW_WATCHERS: usize = 16;

impl Content {
    /// Takes a watcher in. Those that are gone are looked for when their number may have doubled, as nothing else may happen that
    /// shows them: to look each time would be as much work for each of many watchers as there are others.
    fn join(&mut self, watcher: Watcher) {
        if self.watchers.len() >= self.sweep_at {
            self.watchers.retain(|w| !w.is_gone());
            self.sweep_at = 2 * self.watchers.len().max(FEW_WATCHERS);
        }
        self.watchers.push(watcher);
    }
}

/// See the module.
pub struct Cache {
    pub kind: Arc<Kind>,
    store: Arc<dyn Store>,
    datastore: DatastoreMetrics,
    loaded: OnceCell<()>,
    content: Mutex<Content>,
    /// How many events it got.
    received: AtomicU64,
    /// How many of them it has told its watchers of.
    dispatched: AtomicU64,
}

impl Cache {
    pub fn new(kind: Arc<Kind>, store: Arc<dyn Store>, datastore: DatastoreMetrics) -> Self {
        let content = Content { aside: Some(Vec::new()), ..Default::default() };
        let content = Mutex::new(content);
        Cache {
            kind,
            store,
            datastore,
            loaded: OnceCell::new(),
            content,
            received: AtomicU64::new(0),
            dispatched: AtomicU64::new(0),
        }
    }

    pub fn is_loaded(&self) -> bool {
        self.loaded.initialized()
    }

    /// Reads the resource at one revision, then takes in what came meanwhile. Once: who did it is told how long it took.
    pub async fn load(&self) -> Result<Option<Duration>, StoreError> {
        let mut took = None;
        let slot = &mut took;
        let read = || async move {
            let began = Instant::now();
            self.read().await?;
            *slot = Some(began.elapsed());
            Ok::<_, StoreError>(())
        };
        self.loaded.get_or_try_init(read).await?;
        Ok(took)
    }

    async fn read(&self) -> Result<(), StoreError> {
        let range = KeyRange::prefix(self.kind.storage.keys.clone());
        let read = self.datastore.asked("list", &self.kind, self.store.range(RangeRequest::new(range))).await?;
        let mut entries = Entries::new();
        for kv in &read.kvs {
            if let Some(entry) = self.entry(&kv.key, &kv.value, kv.mod_revision) {
                entries.insert(Arc::from(&*entry.key), entry);
            } else if let Some(sealed) = isopod_encryption::opened_by_nobody(&kv.key, &kv.value) {
                // It was encrypted, and this server was started without the configuration: nothing is to look empty.
                return Err(sealed);
            }
        }
        let mut content = self.content.lock();
        content.bytes = entries.values().map(|e| e.body.len()).sum();
        if let Some(label) = self.kind.hooks.indexed_label() {
            entries.values().for_each(|e| content.labelled.replace(label, None, Some(e)));
        }
        content.entries = entries;
        content.revision = read.revision;
        content.ring_after = read.revision;
        for (revision, events) in content.aside.take().unwrap_or_default() {
            self.take_in(&mut content, revision, &events);
        }
        Ok(())
    }

    /// An entry from stored bytes; what cannot be read is left out and said in the log.
    pub fn entry(&self, key: &[u8], value: &[u8], revision: Revision) -> Option<Arc<Entry>> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(&*self.kind.storage.keys)?;
        match Entry::new(&self.kind, key, value, revision) {
            Ok(entry) => Some(Arc::new(entry)),
            Err(e) => {
                tracing::error!(error = %Chain(&e), "left out of the cache");
                None
            }
        }
    }

    /// Takes the events of one transaction in and hands them to the watchers.
    pub fn apply(&self, revision: Revision, events: &[Event]) {
        self.received.fetch_add(events.len() as u64, Ordering::Relaxed);
        let mut content = self.content.lock();
        match &mut content.aside {
            Some(aside) => aside.push((revision, events.to_vec())),
            None => self.take_in(&mut content, revision, events),
        }
    }

    fn take_in(&self, content: &mut Content, revision: Revision, events: &[Event]) {
        if revision <= content.revision {
            return;
        }
        for event in events {
            let Some(change) = self.change(content, event) else { continue };
            let change = Arc::new(change);
            content.ring_bytes += change.size();
            content.ring.push_back(change.clone());
            content.watchers.retain_mut(|w| w.offer(&self.kind, &change));
            self.dispatched.fetch_add(1, Ordering::Relaxed);
        }
        content.revision = revision;
        while content.ring.len() > RING_CHANGES || content.ring_bytes > RING_BYTES {
            let Some(oldest) = content.ring.pop_front() else { break };
            content.ring_bytes -= oldest.size();
            content.ring_after = oldest.revision;
        }
        // A transaction leaves the ring whole.
        while content.ring.front().is_some_and(|c| c.revision <= content.ring_after) {
            if let Some(oldest) = content.ring.pop_front() {
                content.ring_bytes -= oldest.size();
            }
        }
    }

    fn change(&self, content: &mut Content, event: &Event) -> Option<Change> {
        let key = std::str::from_utf8(&event.kv.key).ok()?.strip_prefix(&*self.kind.storage.keys)?;
        let revision = event.kv.mod_revision;
        let (old, new) = match event.kind {
            EventKind::Put => {
                let new = self.entry(&event.kv.key, &event.kv.value, revision)?;
                (content.entries.insert(Arc::from(key), new.clone()), Some(new))
            }
            EventKind::Delete => (content.entries.remove(key), None),
        };
        let length = |e: &Option<Arc<Entry>>| e.as_ref().map_or(0, |e| e.body.len());
        content.bytes = content.bytes.saturating_sub(length(&old)) + length(&new);
        if let Some(label) = self.kind.hooks.indexed_label() {
            content.labelled.replace(label, old.as_deref(), new.as_deref());
        }
        (old.is_some() || new.is_some()).then(|| Change::new(revision, old, new))
    }

    /// Ends every watcher; nobody gets this cache again.
    pub fn expire(&self) {
        let mut content = self.content.lock();
        content.expired = true;
        content.watchers.clear();
    }

    /// It may have missed something, now or later.
    pub fn is_expired(&self) -> bool {
        self.content.lock().expired
    }

    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.content.lock().entries.get(key).cloned()
    }

    /// The entries of a namespace whose [indexed label](isopod_kinds::kind::Hooks::indexed_label) has this value, by name.
    pub fn labelled(&self, namespace: &str, value: &str) -> Vec<Arc<Entry>> {
        let content = self.content.lock();
        content.labelled.keys(namespace, value).filter_map(|key| content.entries.get(key).cloned()).collect()
    }

    pub fn snapshot(&self) -> Snapshot {
        let content = self.content.lock();
        Snapshot { revision: content.revision, entries: content.entries.clone() }
    }

    /// How many objects there are.
    pub fn count(&self) -> usize {
        self.content.lock().entries.len()
    }

    /// How many objects there are, and how many bytes they have.
    pub fn size(&self) -> (usize, usize) {
        let content = self.content.lock();
        (content.entries.len(), content.bytes)
    }

    /// How many events it got from the store.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// How many of them were handed to those who watch.
    pub fn dispatched(&self) -> u64 {
        self.dispatched.load(Ordering::Relaxed)
    }

    /// Registers a watcher for everything after `after`. Returns what of that the ring has already; `Err(revision)` when the
    /// ring begins later: then the watcher gets what comes after the returned revision, and the rest is history.
    pub fn subscribe(&self, filter: Filter, after: Revision) -> (mpsc::Receiver<Delivery>, History) {
        let (sender, receiver) = mpsc::channel(WATCHER_QUEUE);
        let mut content = self.content.lock();
        let history = if after >= content.ring_after {
            let start = content.ring.partition_point(|c| c.revision <= after);
            History::Ring(content.ring.iter().skip(start).cloned().collect())
        } else {
            History::Store { until: content.revision }
        };
        if !content.expired {
            // A watcher from the future sees nothing before it.
            content.join(Watcher { filter, sender, after });
        }
        (receiver, history)
    }

    /// Registers a watcher together with the content that its events follow.
    pub fn subscribe_with_snapshot(&self, filter: Filter) -> (mpsc::Receiver<Delivery>, Snapshot) {
        let (sender, receiver) = mpsc::channel(WATCHER_QUEUE);
        let mut content = self.content.lock();
        let snapshot = Snapshot { revision: content.revision, entries: content.entries.clone() };
        if !content.expired {
            content.join(Watcher { filter, sender, after: snapshot.revision });
        }
        (receiver, snapshot)
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}
