//! The MVCC log in memory: all of a [`crate::memory::MemoryStore`], and the ephemeral keys of a durable store.
//!
//! Invariants: entries of a key ascend by revision; a key appears at most once at a revision; `history` holds every event
//! since `history_from`, ascending by (revision, sub). Readers give the revision at which they read, so what the writer
//! has appended but not published is invisible to them and can be taken back.

use crate::hash::{HistoryHasher, is_hashed};
use crate::{
    Event, EventKind, HistoryEntry, KeyRange, KeyValue, RangeRequest, RangeResponse, Result, Revision, StoreError,
};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

struct Entry {
    rev: Revision,
    sub: u32,
    /// `None`: deleted at `rev`.
    kv: Option<KeyValue>,
}

/// One event and its place: `sub` orders the events of a transaction.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub rev: Revision,
    pub sub: u32,
    pub event: Event,
}

#[derive(Default)]
pub(crate) struct MemLog {
    keys: BTreeMap<Bytes, Vec<Entry>>,
    history: VecDeque<Logged>,
    /// Reads before this revision are refused.
    compacted: Revision,
    /// Watches from before this revision are refused.
    history_from: Revision,
    bytes: u64,
}

fn weight(event: &Event) -> u64 {
    (event.kv.key.len() + event.kv.value.len() + 128) as u64
}

impl MemLog {
    /// Puts a key in without history: what an earlier run left.
    pub fn restore(&mut self, kv: KeyValue) {
        self.bytes += (kv.key.len() + kv.value.len() + 128) as u64;
        self.keys.insert(kv.key.clone(), vec![Entry { rev: kv.mod_revision, sub: 0, kv: Some(kv) }]);
    }

    /// Nothing is known about changes up to and with `rev`.
    pub fn forget_history_through(&mut self, rev: Revision) {
        self.compacted = self.compacted.max(rev);
        self.history_from = self.history_from.max(rev + 1);
    }

    pub fn append(&mut self, rev: Revision, sub: u32, event: &Event) {
        self.bytes += weight(event);
        let kv = (event.kind == EventKind::Put).then(|| event.kv.clone());
        self.keys.entry(event.kv.key.clone()).or_default().push(Entry { rev, sub, kv });
        self.history.push_back(Logged { rev, sub, event: event.clone() });
    }

    /// Takes back everything after `rev`.
    pub fn truncate_after(&mut self, rev: Revision) {
        while let Some(last) = self.history.back() {
            if last.rev <= rev {
                return;
            }
            self.bytes = self.bytes.saturating_sub(weight(&last.event));
            let key = last.event.kv.key.clone();
            if let Some(entries) = self.keys.get_mut(&key) {
                entries.retain(|e| e.rev <= rev);
                if entries.is_empty() {
                    self.keys.remove(&key);
                }
            }
            self.history.pop_back();
        }
    }

    pub fn get(&self, key: &[u8], at: Revision) -> Option<&KeyValue> {
        visible(self.keys.get(key)?, at)
    }

    pub fn check_read(&self, at: Revision) -> Result<()> {
        if at < self.compacted {
            return Err(StoreError::Compacted { requested: at, compacted: self.compacted });
        }
        Ok(())
    }

    /// The answer at revision `at`; `req.revision` is not looked at.
    pub fn range(&self, req: &RangeRequest, at: Revision) -> Result<RangeResponse> {
        self.check_read(at)?;
        let mut out = RangeResponse { revision: at, ..Default::default() };
        for kv in self.live(&req.range, at) {
            out.count += 1;
            if req.count_only {
                continue;
            }
            if req.limit != 0 && out.kvs.len() == req.limit {
                out.more = true;
                if req.uncounted {
                    break;
                }
                continue;
            }
            out.kvs.push(shaped(kv.clone(), req.keys_only));
        }
        Ok(out)
    }

    fn live<'a>(&'a self, range: &KeyRange, at: Revision) -> impl Iterator<Item = &'a KeyValue> + use<'a> {
        let end = range.end_bound().map_or(Bound::Unbounded, Bound::Excluded);
        // A BTreeMap panics on a range that ends before it starts; etcd answers such a range with nothing.
        let empty = matches!(&end, Bound::Excluded(e) if *e <= range.start);
        let start = Bound::Included(range.start.clone());
        let bounds = if empty { (start.clone(), Bound::Excluded(range.start.clone())) } else { (start, end) };
        self.keys.range::<Bytes, _>(bounds).filter_map(move |(_, entries)| visible(entries, at))
    }

    /// Events of `range` from `from` through `to`. Whole transactions: stops at the first revision after `soft_limit` events.
    pub fn history(&self, range: &KeyRange, from: Revision, to: Revision, soft_limit: usize) -> Result<Vec<Logged>> {
        if from < self.history_from {
            return Err(StoreError::Compacted { requested: from, compacted: self.history_from });
        }
        let begin = self.history.partition_point(|l| l.rev < from);
        let mut out: Vec<Logged> = Vec::new();
        for logged in self.history.range(begin..).take_while(|l| l.rev <= to) {
            if out.len() >= soft_limit && out.last().is_some_and(|l| l.rev != logged.rev) {
                break;
            }
            if range.contains(&logged.event.kv.key) {
                let mut logged = logged.clone();
                if logged.rev <= self.compacted {
                    // What stood there before it is gone, here as in the other backends.
                    logged.event.prev = None;
                }
                out.push(logged);
            }
        }
        Ok(out)
    }

    /// Keeps of each key its newest entry at `rev` and all later ones. Events at `rev` itself stay: a watch may start there.
    pub fn compact(&mut self, rev: Revision) {
        self.compacted = self.compacted.max(rev);
        self.history_from = self.history_from.max(rev);
        let through = self.history.partition_point(|l| l.rev <= rev);
        for logged in self.history.range(..through) {
            let key = &logged.event.kv.key;
            let Some(entries) = self.keys.get_mut(key) else { continue };
            let keep = entries.partition_point(|e| e.rev <= rev).saturating_sub(1);
            entries.drain(..keep);
            if entries.first().is_some_and(|e| e.kv.is_none() && e.rev < rev) {
                entries.remove(0);
            }
            if entries.is_empty() {
                self.keys.remove(key);
            }
        }
        while self.history.front().is_some_and(|l| l.rev < rev) {
            if let Some(l) = self.history.pop_front() {
                self.bytes = self.bytes.saturating_sub(weight(&l.event));
            }
        }
    }

    /// Every entry up to and with `at`, in order.
    pub fn export(&self, at: Revision) -> Vec<HistoryEntry> {
        let mut out: Vec<HistoryEntry> = Vec::new();
        for (key, entries) in &self.keys {
            let seen = entries.iter().take_while(|e| e.rev <= at);
            out.extend(seen.map(|e| HistoryEntry { revision: e.rev, sub: e.sub, key: key.clone(), kv: e.kv.clone() }));
        }
        out.sort_by_key(|e| (e.revision, e.sub));
        out
    }

    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Adds every entry up to and with `at`.
    pub fn hash(&self, hasher: &mut HistoryHasher, at: Revision) {
        let mut counted: Vec<(&Bytes, &Entry)> = Vec::new();
        for (key, entries) in &self.keys {
            let seen = &entries[..entries.partition_point(|e| e.rev <= at)];
            let counts = |i: usize, e: &Entry| is_hashed(e.rev, self.compacted, e.kv.is_none(), i + 1 < seen.len());
            counted.extend(seen.iter().enumerate().filter(|(i, e)| counts(*i, e)).map(|(_, e)| (key, e)));
        }
        counted.sort_by_key(|(_, e)| (e.rev, e.sub));
        for (key, entry) in counted {
            hasher.add(entry.rev, entry.sub, key, entry.kv.as_ref());
        }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn visible(entries: &[Entry], at: Revision) -> Option<&KeyValue> {
    let i = entries.partition_point(|e| e.rev <= at);
    entries[..i].last()?.kv.as_ref()
}

pub(crate) fn shaped(mut kv: KeyValue, keys_only: bool) -> KeyValue {
    if keys_only {
        kv.value = Bytes::new();
    }
    kv
}

/// Groups events, ascending by (revision, sub), into transactions.
pub(crate) fn transactions(events: Vec<Logged>) -> Vec<(Revision, std::sync::Arc<[Event]>)> {
    let mut out = Vec::new();
    let mut current: Vec<Event> = Vec::new();
    let mut rev = 0;
    for logged in events {
        if logged.rev != rev && !current.is_empty() {
            out.push((rev, std::mem::take(&mut current).into()));
        }
        rev = logged.rev;
        current.push(logged.event);
    }
    if !current.is_empty() {
        out.push((rev, current.into()));
    }
    out
}
