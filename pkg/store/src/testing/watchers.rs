//! Watchers in the simulation: quick ones, slow ones, and the witnesses, which miss nothing.

use super::convert;
use super::disk::Reader;
use crate::hub::{Committed, History as Past};
use crate::machine::Shared;
use crate::*;
use async_trait::async_trait;
use isopod_history as seen;
use isopod_history::{Keys, Note, Time, WatchLog};
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::TryRecvError;

/// Where a watch reads the past.
pub(crate) struct ReaderPast(pub Arc<dyn Reader>);

#[async_trait]
impl Past for ReaderPast {
    async fn page(
        &self,
        range: &KeyRange,
        from: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<(Vec<Committed>, Revision)> {
        self.0.history(range, from, to, limit)
    }
}

pub(crate) struct Watcher {
    keys: Keys,
    watch: Option<Watch>,
    /// Its place among the history's watches.
    log: usize,
    /// What it goes on from; 0: from now.
    pub next: Revision,
    pub witness: bool,
}

/// A store to watch.
pub(crate) struct Watched<'a> {
    pub shared: &'a Arc<Shared>,
    pub reader: &'a Arc<dyn Reader>,
    pub runtime: &'a Runtime,
    pub now: Time,
    pub history: &'a mut seen::History,
}

impl Watcher {
    pub fn new(keys: Keys, next: Revision, witness: bool) -> Self {
        Watcher { keys, watch: None, log: 0, next, witness }
    }

    pub fn is_open(&self) -> bool {
        self.watch.is_some()
    }

    pub fn open(&mut self, store: &mut Watched<'_>) {
        let at = store.shared.hub.published();
        self.log = store.history.watches.len();
        store.history.watches.push(WatchLog {
            client: self.log as u32,
            keys: self.keys.clone(),
            start: self.next,
            prev: true,
            invoked: store.now,
            notes: Vec::new(),
            witness: self.witness,
        });
        let request = WatchRequest { range: convert::range(&self.keys), start: self.next };
        let past = Arc::new(ReaderPast(Arc::clone(store.reader)));
        let hub = Arc::clone(&store.shared.hub);
        let opened = store
            .shared
            .check_watch(self.next)
            .and_then(|()| store.runtime.block_on(async { hub.watch(past, request).await }));
        match opened {
            Ok(watch) => {
                self.note(store, Note::Created(at));
                self.watch = Some(watch);
                if self.next == 0 {
                    self.next = at + 1;
                }
            }
            Err(e) => self.fail(store, &e),
        }
    }

    fn note(&self, store: &mut Watched<'_>, note: Note) {
        store.history.watches[self.log].notes.push((store.now, note));
    }

    /// The watch has ended. After a compaction it goes on from now.
    fn fail(&mut self, store: &mut Watched<'_>, error: &StoreError) {
        self.watch = None;
        match error {
            StoreError::Compacted { .. } => {
                self.note(store, Note::Compacted(0));
                self.next = 0;
            }
            other => self.note(store, Note::Ended(other.to_string())),
        }
    }

    /// One message. False: there is none.
    pub fn receive(&mut self, store: &mut Watched<'_>) -> bool {
        let Some(watch) = &mut self.watch else { return false };
        match watch.receiver.try_recv() {
            Ok(Ok(WatchMessage::Events(rev, events))) => {
                self.next = rev + 1;
                self.note(store, Note::Events(rev, events.iter().map(convert::event).collect()));
                true
            }
            Ok(Ok(WatchMessage::Progress(rev))) => {
                self.next = self.next.max(rev + 1);
                self.note(store, Note::Progress(rev));
                true
            }
            Ok(Err(e)) => {
                self.fail(store, &e);
                true
            }
            Err(TryRecvError::Empty) => false,
            Err(TryRecvError::Disconnected) => {
                self.fail(store, &StoreError::Closed);
                true
            }
        }
    }

    pub fn ask_for_progress(&self) -> Option<Arc<dyn Fn() + Send + Sync>> {
        self.watch.as_ref().map(|w| Arc::clone(&w.request_progress))
    }

    /// The connection is gone, and what was on its way.
    pub fn lose(&mut self, store: &mut Watched<'_>) {
        if self.watch.take().is_some() {
            self.note(store, Note::Ended("connection lost".into()));
        }
    }

    /// Receives until everything up to and with `rev` has been told.
    pub fn catch_up(&mut self, store: &mut Watched<'_>, rev: Revision) {
        for _ in 0..10_000 {
            if !self.is_open() {
                self.open(store);
            }
            if let Some(ask) = self.ask_for_progress() {
                ask();
            }
            store.runtime.block_on(tokio::task::yield_now());
            while self.receive(store) {}
            if self.next > rev {
                return;
            }
        }
        panic!("a watcher of {:?} is stuck at {}, before {rev}", self.keys, self.next);
    }
}
