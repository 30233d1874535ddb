//! Delivers committed transactions to watchers.
//!
//! Invariants: a watcher gets whole transactions, each once, ascending; a watch from an old revision reads history until it
//! has caught up and joins the live ones under the lock that publishing takes, so nothing falls between; progress is sent
//! under that lock too, hence after what it covers. A live watcher always has one free place in its channel, kept for the
//! error that ends it.

use crate::intervals::Intervals;
use crate::{Event, KeyRange, Result, Revision, StoreError, Watch, WatchMessage, WatchRequest};
use async_trait::async_trait;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

pub(crate) type Committed = (Revision, Arc<[Event]>);
type Sender = mpsc::Sender<Result<WatchMessage>>;

/// How many events a watcher reads from history at a time.
const PAGE: usize = 500;

/// Where a watch from an old revision reads.
#[async_trait]
pub(crate) trait History: Send + Sync + 'static {
    /// Transactions of `range` in `[from, to]`, ascending, and the revision through which they are complete.
    async fn page(
        &self,
        range: &KeyRange,
        from: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<(Vec<Committed>, Revision)>;

    /// May a watch whose client knows everything before `start` go on in this history? Asked under the lock under which
    /// [`Hub::jump`] ends watches, so that none slips through between the two.
    fn check_start(&self, _start: Revision) -> Result<()> {
        Ok(())
    }
}

struct Watcher {
    id: u64,
    sender: Sender,
    /// Events before it are not wanted: a watch may start in the future.
    start: Revision,
    wants_progress: Arc<AtomicBool>,
}

struct Inner {
    published: Revision,
    closed: bool,
    next_id: u64,
    groups: HashMap<u64, Group>,
    ids: HashMap<KeyRange, u64>,
    index: Intervals,
}

/// Watchers of the same range share the events that were picked for it.
struct Group {
    range: KeyRange,
    watchers: Vec<Watcher>,
}

pub(crate) struct Hub {
    inner: Mutex<Inner>,
    moved: Condvar,
    buffer: usize,
}

impl Hub {
    pub fn new(published: Revision, buffer: usize) -> Self {
        let inner = Inner {
            published,
            closed: false,
            next_id: 0,
            groups: HashMap::new(),
            ids: HashMap::new(),
            index: Intervals::default(),
        };
        Hub { inner: Mutex::new(inner), moved: Condvar::new(), buffer }
    }

    /// The newest revision that readers and watchers may know of.
    pub fn published(&self) -> Revision {
        self.inner.lock().published
    }

    pub fn check_open(&self) -> Result<()> {
        if self.inner.lock().closed { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Blocks the thread until `rev` is published: only for a reader that already sees it committed.
    pub fn wait_for(&self, rev: Revision) -> Result<()> {
        let mut inner = self.inner.lock();
        while inner.published < rev {
            if inner.closed {
                return Err(StoreError::Closed);
            }
            self.moved.wait(&mut inner);
        }
        Ok(())
    }

    /// Hands committed transactions to the live watchers.
    pub fn publish(&self, committed: &[Committed]) {
        let mut inner = self.inner.lock();
        for (rev, events) in committed {
            inner.deliver(*rev, events);
            inner.published = *rev;
        }
        self.moved.notify_all();
    }

    /// Everything up to `rev` has been handed out: there is nothing between the last transaction and it.
    pub fn advance(&self, rev: Revision) {
        let mut inner = self.inner.lock();
        inner.published = inner.published.max(rev);
        self.moved.notify_all();
    }

    /// Goes on at `rev` without events: what lies between is no part of this history, or cannot be told any more. `check` is
    /// given the revision at which each live watch would go on, and says which of them end: those that miss something by it
    /// or were told what is true no longer. One that waits for a revision beyond all that need not be among them.
    pub fn jump(&self, rev: Revision, check: impl Fn(Revision) -> Result<()>) {
        let mut inner = self.inner.lock();
        inner.end_refused(check);
        inner.published = inner.published.max(rev);
        self.moved.notify_all();
    }

    /// Ends every watch; nothing is published any more.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.end(&StoreError::Closed);
        self.moved.notify_all();
    }

    /// Joins the live watchers if everything before `start` has been delivered, that is, if `start` is yet to come.
    fn join(
        &self,
        history: &dyn History,
        range: &KeyRange,
        start: Revision,
        sender: &Sender,
        progress: &Arc<AtomicBool>,
    ) -> Result<bool> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(StoreError::Closed);
        }
        history.check_start(start)?;
        if start <= inner.published {
            return Ok(false);
        }
        inner.next_id += 1;
        let watcher =
            Watcher { id: inner.next_id, sender: sender.clone(), start, wants_progress: Arc::clone(progress) };
        watcher.send_progress(inner.published);
        inner.add(range, watcher);
        Ok(true)
    }

    fn progress(&self, range: &KeyRange, wants: &Arc<AtomicBool>) {
        wants.store(true, Ordering::SeqCst);
        let inner = self.inner.lock();
        let mine = |w: &&Watcher| Arc::ptr_eq(&w.wants_progress, wants);
        let group = inner.ids.get(range).and_then(|id| inner.groups.get(id));
        if let Some(watcher) = group.and_then(|g| g.watchers.iter().find(mine)) {
            watcher.send_progress(inner.published);
        }
    }

    pub async fn watch(self: &Arc<Self>, history: Arc<dyn History>, req: WatchRequest) -> Result<Watch> {
        let (sender, receiver) = mpsc::channel(self.buffer + 2);
        let wants = Arc::new(AtomicBool::new(false));
        let start = if req.start > 0 { req.start } else { self.published() + 1 };
        if !self.join(&*history, &req.range, start, &sender, &wants)? {
            // The first page is read here so that a compacted start is the caller's error and not the stream's.
            let replay =
                Replay { hub: Arc::clone(self), history, range: req.range.clone(), sender, wants: wants.clone() };
            let first = replay.page(start).await?;
            tokio::spawn(replay.run(first));
        }
        let hub = Arc::downgrade(self);
        let request_progress = Arc::new(move || {
            if let Some(hub) = hub.upgrade() {
                hub.progress(&req.range, &wants);
            }
        });
        Ok(Watch { receiver, request_progress })
    }
}

impl Inner {
    fn add(&mut self, range: &KeyRange, watcher: Watcher) {
        let id = *self.ids.entry(range.clone()).or_insert(watcher.id);
        let new = || Group { range: range.clone(), watchers: Vec::new() };
        let group = self.groups.entry(id).or_insert_with(new);
        if group.watchers.is_empty() {
            self.index.insert(range, id);
        } else if group.watchers.len().is_power_of_two() {
            // Where nothing is written, nobody else notices that watchers are gone.
            group.watchers.retain(|w| !w.sender.is_closed());
        }
        group.watchers.push(watcher);
    }

    /// Ends the live watches.
    fn end(&mut self, error: &StoreError) {
        for watcher in self.groups.drain().flat_map(|(_, group)| group.watchers) {
            let _ = watcher.sender.try_send(Err(error.clone()));
        }
        self.ids.clear();
        self.index = Intervals::default();
    }

    /// Ends the live watches that `check` refuses.
    fn end_refused(&mut self, check: impl Fn(Revision) -> Result<()>) {
        let next = self.published + 1;
        for group in self.groups.values_mut() {
            group.watchers.retain(|w| match check(w.start.max(next)) {
                Ok(()) => true,
                Err(error) => {
                    let _ = w.sender.try_send(Err(error));
                    false
                }
            });
        }
        let empty: Vec<u64> = self.groups.iter().filter(|(_, g)| g.watchers.is_empty()).map(|(id, _)| *id).collect();
        for id in empty {
            self.forget(id);
        }
    }

    /// A group without watchers goes.
    fn forget(&mut self, id: u64) {
        if let Some(group) = self.groups.remove(&id) {
            self.index.remove(&group.range, id);
            self.ids.remove(&group.range);
        }
    }

    fn deliver(&mut self, rev: Revision, events: &Arc<[Event]>) {
        let mut ids: Vec<u64> = events.iter().flat_map(|e| self.index.holding(&e.kv.key)).copied().collect();
        if events.len() > 1 {
            ids.sort_unstable();
            ids.dedup();
        }
        for id in ids {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if let Some(picked) = pick(&group.range, events) {
                group.watchers.retain(|w| w.deliver(rev, &picked));
            }
            if group.watchers.is_empty() {
                self.forget(id);
            }
        }
    }
}

/// The events of the range; all of them without a copy.
fn pick(range: &KeyRange, events: &Arc<[Event]>) -> Option<Arc<[Event]>> {
    let n = events.iter().filter(|e| range.contains(&e.kv.key)).count();
    match n {
        0 => None,
        n if n == events.len() => Some(Arc::clone(events)),
        _ => Some(events.iter().filter(|e| range.contains(&e.kv.key)).cloned().collect()),
    }
}

impl Watcher {
    /// False: this watcher has ended.
    fn deliver(&self, rev: Revision, events: &Arc<[Event]>) -> bool {
        if rev < self.start {
            return !self.sender.is_closed();
        }
        // One place is kept for the error.
        if self.sender.capacity() <= 1 {
            tracing::warn!(watcher = self.id, revision = rev, "a watcher fell too far behind and is ended");
            let _ = self.sender.try_send(Err(StoreError::WatchOverrun));
            return false;
        }
        self.sender.try_send(Ok(WatchMessage::Events(rev, Arc::clone(events)))).is_ok()
    }

    /// When the channel is full the wish is kept for later: events go first.
    fn send_progress(&self, published: Revision) {
        if self.sender.capacity() > 1 && self.wants_progress.swap(false, Ordering::SeqCst) {
            let _ = self.sender.try_send(Ok(WatchMessage::Progress(published)));
        }
    }
}

/// A watcher that still reads history.
struct Replay {
    hub: Arc<Hub>,
    history: Arc<dyn History>,
    range: KeyRange,
    sender: Sender,
    wants: Arc<AtomicBool>,
}

impl Replay {
    async fn page(&self, from: Revision) -> Result<(Vec<Committed>, Revision)> {
        let to = self.hub.published();
        self.history.page(&self.range, from, to, PAGE).await
    }

    async fn run(self, first: (Vec<Committed>, Revision)) {
        if let Err(e) = self.follow(first).await {
            let _ = self.sender.send(Err(e)).await;
        }
    }

    /// Ends when the watcher has joined the live ones or is gone.
    async fn follow(&self, mut page: (Vec<Committed>, Revision)) -> Result<()> {
        loop {
            for (rev, events) in page.0 {
                // Two places, one used: a live watcher needs one left.
                let Ok(mut places) = self.sender.reserve_many(2).await else { return Ok(()) };
                if let Some(place) = places.next() {
                    place.send(Ok(WatchMessage::Events(rev, events)));
                }
            }
            let next = page.1 + 1;
            if self.hub.join(&*self.history, &self.range, next, &self.sender, &self.wants)? {
                return Ok(());
            }
            page = self.page(next).await?;
        }
    }
}
