//! The watch cache. One watch over the whole store feeds the caches of those resources that somebody lists or watches, and the
//! [followers](Follower); other resources cost nothing.
//!
//! Invariants:
//! - A cache's content is the store's at [`Hub::revision`] or newer; the hub announces a revision only after every cache has
//!   taken its events in and handed them to its watchers.
//! - Fresh reads: [`Hub::fresh`] returns when everything that was committed before the call is in the caches.
//! - All events of one transaction enter a cache at once.
//! - Messages of protobuf are kept beside the JSON within a bound, and only for a while (`message`).
//! - A cache that may have missed something is dropped, and so is whoever read from it: [`Hub::fresh_cache`] never gives out
//!   one that was dropped before its content was known to be fresh.

pub mod entry;
mod index;
mod message;
mod parts;
pub mod resource;
pub mod watcher;

use crate::cache::message::PATIENCE;
use crate::cache::resource::Cache;
use crate::metrics::{CacheMetrics, DatastoreMetrics};
use isopod_api::Status;
use isopod_base::errors::Chain;
use isopod_kinds::Kind;
use isopod_store::{Event, KeyRange, Revision, Store, StoreError, Watch, WatchMessage, WatchRequest};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How long a read waits for the caches to get to where the store is.
const BEHIND: Duration = Duration::from_secs(10);
/// When to try again to watch a store that is away: this, then twice as long each time, up to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Feeds every cache from one watch.
pub struct Hub {
    store: Arc<dyn Store>,
    caches: RwLock<Caches>,
    revision: watch::Sender<Revision>,
    request_progress: RwLock<Arc<dyn Fn() + Send + Sync>>,
    followers: RwLock<Vec<Arc<dyn Follower>>>,
    /// Somebody has seen that the store is behind what was read from it.
    replaced: Arc<Notify>,
    /// When messages of protobuf were last asked for, while some may be kept.
    messages_wanted: Mutex<Option<Instant>>,
    pub metrics: CacheMetrics,
    pub datastore: DatastoreMetrics,
}

/// By key prefix: `/registry/pods/`.
#[derive(Default)]
struct Caches {
    running: BTreeMap<String, Arc<Cache>>,
    /// The kinds that a definition has given, as they are now. A request that began before a change still asks with the kind of that time.
    defined: BTreeMap<String, Arc<Kind>>,
}

/// Sees what the caches see, before the revision is announced.
pub trait Follower: Send + Sync {
    /// The events of one transaction, or none: then all is known up to the revision.
    fn take_in(&self, revision: Revision, events: &[Event]);
    /// Something was missed, or the datastore is another one: what comes from now on follows what can be read now.
    fn begin_anew(self: Arc<Self>);
}

/// When a write looks at the rest of the datastore: what was committed before its first read of a cache, each later one has, too,
/// and none of them waits again. A clone is another write's.
#[derive(Debug, Default)]
pub struct Moment(AtomicBool);

impl Clone for Moment {
    fn clone(&self) -> Self {
        Moment::default()
    }
}

impl Moment {
    /// The next read is of what is committed by then.
    pub fn renew(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Waits, at the first call, until what is committed now is in the caches.
    pub async fn reached(&self, hub: &Hub) -> Result<(), Status> {
        if !self.0.load(Ordering::Relaxed) {
            hub.fresh().await?;
            self.0.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A store's failure as the client sees it.
pub fn store_status(e: StoreError) -> Status {
    match e {
        StoreError::Compacted { .. } => Status::expired("The resourceVersion for the provided list is too old."),
        StoreError::FutureRevision { requested, newest } => too_large(requested, newest),
        other @ (StoreError::Unavailable { .. } | StoreError::NotDone { .. }) => away(Chain(&other)),
        StoreError::Closed => away("the datastore is shutting down"),
        e => {
            tracing::error!(error = %Chain(&e), "the datastore failed");
            Status::internal(Chain(&e))
        }
    }
}

/// 503: nothing was done, and soon it may be.
pub fn away(why: impl std::fmt::Display) -> Status {
    let mut status = Status::service_unavailable(why.to_string());
    status.details.get_or_insert_default().retry_after_seconds = 1;
    status
}

/// As [`store_status`], of a write: what was certainly not made may be asked for again. Nobody else knows whether one without an answer was made, and clients repeat by themselves what
/// comes with a time to retry after: so there is none.
pub fn write_status(e: StoreError) -> Status {
    match e {
        unknown @ StoreError::Unavailable { .. } => Status::timeout(Chain(&unknown), 0),
        e => store_status(e),
    }
}

/// 504: the client knows a revision that this server does not have yet.
pub fn too_large(requested: Revision, current: Revision) -> Status {
    let mut status = Status::timeout(format!("Too large resource version: {requested}, current: {current}"), 1);
    status.details.get_or_insert_default().causes = vec![isopod_api::Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    }];
    status
}

impl Hub {
    /// Starts at the store's newest revision and runs until the store is closed or the hub is dropped.
    pub async fn start(store: Arc<dyn Store>) -> Result<Arc<Hub>, StoreError> {
        let (newest, _) = store.revisions().await?;
        let watch = open(&*store, newest).await?;
        let hub = Arc::new(Hub {
            store,
            caches: RwLock::default(),
            revision: watch::Sender::new(newest),
            request_progress: RwLock::new(watch.request_progress.clone()),
            followers: RwLock::default(),
            replaced: Arc::default(),
            messages_wanted: Mutex::default(),
            metrics: CacheMetrics::default(),
            datastore: DatastoreMetrics::default(),
        });
        tokio::spawn(run(Arc::downgrade(&hub), hub.replaced.clone(), watch));
        Ok(hub)
    }

    /// Tells `follower` of all that comes from now on.
    pub fn follow(&self, follower: Arc<dyn Follower>) {
        self.followers.write().push(follower);
    }

    /// Asks the store for its revision: a gap in the sequence brings no event.
    pub fn ask(&self) {
        let ask = self.request_progress.read().clone();
        ask();
    }

    /// Everything up to and with this revision is in the caches.
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Waits until all that is committed now is in the caches, and returns that revision.
    pub async fn fresh(&self) -> Result<Revision, Status> {
        let seen = self.revision();
        let (newest, _) = self.store.revisions().await.map_err(store_status)?;
        if newest < seen {
            // It was replaced by an older one: the caches begin anew.
            self.replaced.notify_one();
            return Err(away("the datastore is behind what was read from it before"));
        }
        match tokio::time::timeout(BEHIND, self.wait(newest)).await {
            Ok(()) => Ok(newest),
            Err(_) => Err(away("the caches do not get to where the datastore is")),
        }
    }

    /// The cache of a stored kind with everything in it that is committed now, and that revision.
    pub async fn fresh_cache(&self, kind: &Arc<Kind>) -> Result<(Arc<Cache>, Revision), Status> {
        loop {
            let cache = self.cache(kind).await?;
            let (seen, began) = (self.revision(), Instant::now());
            let revision = self.fresh().await?;
            if revision > seen {
                self.metrics.waited(kind, began.elapsed());
            }
            // One that was dropped meanwhile has not got the events that were waited for.
            if !cache.is_expired() {
                return Ok((cache, revision));
            }
        }
    }

    /// The cache of a stored kind with everything in it that was committed at this moment.
    pub async fn cache_at(&self, kind: &Arc<Kind>, moment: &Moment) -> Result<Arc<Cache>, Status> {
        loop {
            let cache = self.cache(kind).await?;
            moment.reached(self).await?;
            // As in `fresh_cache`; the next one is read after the moment.
            if !cache.is_expired() {
                return Ok(cache);
            }
        }
    }

    /// Waits for a revision that is committed.
    pub async fn wait(&self, revision: Revision) {
        let mut seen = self.revision.subscribe();
        if *seen.borrow_and_update() >= revision {
            return;
        }
        tokio::task::yield_now().await;
        while *seen.borrow_and_update() < revision {
            self.ask();
            let changed = tokio::time::timeout(Duration::from_secs(1), seen.changed()).await;
            if matches!(changed, Ok(Err(_))) {
                return;
            }
        }
    }

    /// Waits, for as long as upstream does, until the caches have a revision that a client asked for.
    pub async fn wait_for_client(&self, revision: Revision) -> Result<(), Status> {
        let newest = self.fresh().await?;
        if newest >= revision {
            return Ok(());
        }
        let reached = tokio::time::timeout(Duration::from_secs(3), async {
            let mut seen = self.revision.subscribe();
            while *seen.borrow_and_update() < revision && seen.changed().await.is_ok() {}
        });
        reached.await.map_err(|_| too_large(revision, self.revision()))
    }

    /// The cache of a stored kind if it runs.
    pub fn running(&self, kind: &Kind) -> Option<Arc<Cache>> {
        self.caches.read().running.get(&kind.storage.keys).filter(|c| c.is_loaded()).cloned()
    }

    /// From now on a stored kind is this one: a cache of an older form is dropped, and none of it begins any more. Its watchers are told to
    /// start again.
    pub fn define(&self, kind: &Arc<Kind>) {
        self.redefine(&kind.storage.keys, Some(kind.clone()));
    }

    /// A kind is gone. The watchers of its cache are told to start again.
    pub fn forget(&self, kind: &Kind) {
        self.redefine(&kind.storage.keys, None);
    }

    fn redefine(&self, prefix: &str, kind: Option<Arc<Kind>>) {
        let mut caches = self.caches.write();
        let old = caches.running.remove(prefix);
        match kind {
            Some(kind) => drop(caches.defined.insert(prefix.to_owned(), kind)),
            None => drop(caches.defined.remove(prefix)),
        }
        drop(caches);
        old.iter().for_each(|c| c.expire());
    }

    /// The caches that run.
    pub fn caches(&self) -> Vec<Arc<Cache>> {
        self.caches.read().running.values().filter(|c| c.is_loaded()).cloned().collect()
    }

    /// The cache of a stored kind, loaded now if nobody has asked for it before.
    pub async fn cache(&self, kind: &Arc<Kind>) -> Result<Arc<Cache>, Status> {
        let prefix = &kind.storage.keys;
        let known = self.caches.read().running.get(prefix).cloned();
        // From its insertion on the cache is handed all events and keeps them aside until its content is there.
        let cache = match known {
            Some(cache) => cache,
            None => {
                let mut caches = self.caches.write();
                let kind = caches.defined.get(prefix).unwrap_or(kind).clone();
                let new = || Arc::new(Cache::new(kind, self.store.clone(), self.datastore.clone()));
                caches.running.entry(prefix.clone()).or_insert_with(new).clone()
            }
        };
        if let Some(took) = cache.load().await.map_err(store_status)? {
            self.metrics.initialized(kind, took);
        }
        Ok(cache)
    }

    /// Keeps the messages of protobuf that are made from now on until nobody has called this for a while.
    pub fn keep_messages(self: &Arc<Self>) {
        if self.messages_wanted.lock().replace(Instant::now()).is_none() {
            tokio::spawn(forget_messages(Arc::downgrade(self)));
        }
    }

    /// Until when messages are wanted as it is now; `None`: they are dropped.
    fn messages_until(&self, now: Instant) -> Option<Instant> {
        let mut wanted = self.messages_wanted.lock();
        let until = wanted.map(|at| at + PATIENCE).filter(|until| *until > now);
        if until.is_none() {
            *wanted = None;
            drop(wanted);
            for cache in self.caches() {
                cache.snapshot().entries.values().for_each(|e| e.message.forget());
            }
        }
        until
    }

    fn dispatch(&self, revision: Revision, events: &[Event]) {
        let caches = self.caches.read();
        let mut rest = events;
        while let Some(first) = rest.first() {
            let found = std::str::from_utf8(&first.kv.key).ok().and_then(|key| {
                let below = (Bound::Unbounded, Bound::Included(key));
                let (prefix, cache) = caches.running.range::<str, _>(below).next_back()?;
                key.starts_with(prefix.as_str()).then_some((prefix, cache))
            });
            let Some((prefix, cache)) = found else {
                rest = &rest[1..];
                continue;
            };
            // Events of a transaction come in key order as a rule: those of one resource stand together.
            let run = rest.iter().take_while(|e| e.kv.key.starts_with(prefix.as_bytes())).count();
            cache.apply(revision, &rest[..run]);
            rest = &rest[run..];
        }
        drop(caches);
        self.followers.read().iter().for_each(|f| f.take_in(revision, events));
        self.revision.send_if_modified(|r| {
            revision > *r && {
                *r = revision;
                true
            }
        });
    }

    /// The history that the caches would need is gone: drop them all. Their watchers are told to start again.
    fn reset(&self) {
        for (_, cache) in std::mem::take(&mut self.caches.write().running) {
            cache.expire();
        }
        self.followers.read().iter().for_each(|f| f.clone().begin_anew());
    }
}

async fn open(store: &dyn Store, after: Revision) -> Result<Watch, StoreError> {
    let range = KeyRange { start: b"\0".as_slice().into(), end: b"\0".as_slice().into() };
    store.watch(WatchRequest { range, start: after + 1 }).await
}

/// Waits until nobody wants the messages any more that are kept.
async fn forget_messages(hub: Weak<Hub>) {
    loop {
        let Some(until) = hub.upgrade().and_then(|hub| hub.messages_until(Instant::now())) else { return };
        tokio::time::sleep_until(until).await;
    }
}

async fn run(hub: Weak<Hub>, replaced: Arc<Notify>, mut watch: Watch) {
    loop {
        let message = tokio::select! {
            message = watch.receiver.recv() => message,
            () = replaced.notified() => None,
        };
        let Some(hub) = hub.upgrade() else { return };
        match message {
            Some(Ok(WatchMessage::Events(revision, events))) => hub.dispatch(revision, &events),
            Some(Ok(WatchMessage::Progress(revision))) => hub.dispatch(revision, &[]),
            Some(Err(StoreError::Closed)) => return,
            ended => {
                if let Some(Err(e)) = &ended {
                    tracing::warn!(error = %Chain(e), "the watch of the datastore ended; starting it again");
                }
                let gone = matches!(ended, Some(Err(StoreError::Compacted { .. } | StoreError::FutureRevision { .. })));
                match reopen(&hub, gone).await {
                    Some(new) => watch = new,
                    None => return,
                }
            }
        }
    }
}

/// Starts the hub's watch again where it ended, or, when that history is gone, at the newest revision with empty caches. Tries
/// until the store is closed.
async fn reopen(hub: &Hub, mut gone: bool) -> Option<Watch> {
    let mut pause = FIRST_PAUSE;
    loop {
        match again(hub, gone).await {
            Ok(watch) => {
                *hub.request_progress.write() = watch.request_progress.clone();
                return Some(watch);
            }
            Err(StoreError::Closed) => return None,
            Err(StoreError::Compacted { .. } | StoreError::FutureRevision { .. }) if !gone => gone = true,
            Err(e) => {
                if pause == FIRST_PAUSE {
                    tracing::error!(error = %Chain(&e), "cannot watch the datastore; trying until it answers");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

async fn again(hub: &Hub, gone: bool) -> Result<Watch, StoreError> {
    let (newest, _) = hub.store.revisions().await?;
    // A datastore that was restored from a backup, or has lost its last commits, is behind what was seen.
    if gone || newest < hub.revision() {
        hub.reset();
        hub.revision.send_replace(newest);
    }
    open(&*hub.store, hub.revision()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_store::memory::MemoryStore;
    use isopod_store::{Op, Options, Txn};

    #[tokio::test]
    async fn a_cache_has_the_form_that_was_defined_last() {
        let hub = Hub::start(Arc::new(MemoryStore::new(Options::default()))).await.unwrap();
        let first = isopod_kinds::table::builtin().into_iter().find(|k| k.gvk.kind == "ConfigMap").unwrap();
        let second = Arc::new((*first).clone());
        let cached = |kind: &Arc<Kind>| {
            let (hub, kind) = (hub.clone(), kind.clone());
            async move { hub.cache(&kind).await.unwrap() }
        };
        let old = cached(&first).await;
        hub.define(&second);
        assert!(old.is_expired());
        // By a request that began before.
        let new = cached(&first).await;
        assert!(Arc::ptr_eq(&new.kind, &second) && Arc::ptr_eq(&new, &cached(&second).await));
        hub.forget(&second);
        assert!(new.is_expired());
        // Nor does one begin that outlives a definition made anew.
        let late = cached(&first).await;
        hub.define(&second);
        assert!(late.is_expired() && Arc::ptr_eq(&cached(&first).await.kind, &second));
    }

    #[tokio::test]
    async fn messages_go_when_nobody_wants_them() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Options::default()));
        let map = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}"#;
        let put = Op::put("/registry/configmaps/default/a", map);
        store.txn(Txn { success: vec![put], ..Default::default() }).await.unwrap();
        let hub = Hub::start(store).await.unwrap();
        let kind = isopod_kinds::table::builtin().into_iter().find(|k| k.gvk.kind == "ConfigMap").unwrap();
        let entry = hub.cache(&kind).await.unwrap().get("default/a").unwrap();
        hub.keep_messages();
        entry.message.remember(b"message");
        let now = Instant::now();
        assert!(hub.messages_until(now).is_some_and(|until| until <= now + PATIENCE));
        assert!(entry.message.kept().is_some());
        assert!(hub.messages_until(now + PATIENCE).is_none());
        assert_eq!((entry.message.kept(), entry.message.length()), (None, Some(7)));
    }
}
