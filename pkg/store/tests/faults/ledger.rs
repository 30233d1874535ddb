//! What clients asked and were told, and whether a store agrees with it.
//!
//! An answer is a promise. A write without one may have happened or not, but whole, and once: the first look settles it.

use bytes::Bytes;
use isopod_store::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Keys below it are ephemeral.
pub const EPHEMERAL: &str = "e/";
const DURABLE: &str = "d/";

/// Keys and what they became; `None`: deleted.
pub type Changes = Vec<(String, Option<Bytes>)>;
/// What a key is: its value, its revision and version.
type State = BTreeMap<String, (Bytes, Revision, i64)>;

#[derive(Clone, Default)]
pub struct Ledger {
    /// Durable changes by revision: acknowledged, or seen since.
    writes: BTreeMap<Revision, Changes>,
    /// Every revision that anyone was told, ephemeral ones included.
    told: BTreeSet<Revision>,
    /// Asked for, never answered, not looked for yet.
    open: Vec<Changes>,
    leases: BTreeSet<LeaseId>,
    /// The counter kept as a setting: what was acknowledged and what was asked.
    pub setting: (u64, u64),
}

macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(format!($($text)*));
        }
    };
}

fn durable(changes: Changes) -> Changes {
    changes.into_iter().filter(|(k, _)| k.starts_with(DURABLE)).collect()
}

impl Ledger {
    pub fn acknowledged(&mut self, rev: Revision, changes: Changes) -> Result<(), String> {
        ensure!(self.told.insert(rev), "revision {rev} was handed out twice");
        let changes = durable(changes);
        if !changes.is_empty() {
            self.writes.insert(rev, changes);
        }
        Ok(())
    }

    pub fn unanswered(&mut self, changes: Changes) {
        let changes = durable(changes);
        if !changes.is_empty() {
            self.open.push(changes);
        }
    }

    pub fn lease(&mut self, id: LeaseId) {
        self.leases.insert(id);
    }

    /// The newest revision that anyone was told.
    pub fn newest(&self) -> Revision {
        self.told.last().copied().unwrap_or(1)
    }

    fn state(&self, at: Revision) -> State {
        let mut state = State::new();
        for (rev, changes) in self.writes.range(..=at) {
            for (key, value) in changes {
                match value {
                    Some(v) => {
                        let version = state.get(key).map_or(1, |(_, _, version)| version + 1);
                        state.insert(key.clone(), (v.clone(), *rev, version));
                    }
                    None => drop(state.remove(key)),
                }
            }
        }
        state
    }

    /// Compares everything; settles the writes that were not answered.
    pub async fn verify(&mut self, store: &dyn Store) -> Result<(), String> {
        let (newest, oldest) = store.revisions().await.map_err(|e| format!("cannot ask for the revision: {e}"))?;
        ensure!(newest >= self.newest(), "revision {newest} after {} was told", self.newest());
        let all = range(store, 0).await?;
        self.settle(&all)?;
        same(&all, &self.state(newest))?;
        let old = oldest.max(newest - (newest - oldest) / 3);
        same(&range(store, old).await?, &self.state(old)).map_err(|e| format!("at revision {old}: {e}"))?;
        self.verify_history(store, oldest.max(2), newest).await?;
        let leases = store.leases().await.unwrap();
        let lost = self.leases.iter().find(|id| !leases.contains(id));
        ensure!(lost.is_none(), "lease {lost:?} is lost");
        let setting =
            store.setting("counter").await.unwrap().map_or(0, |v| String::from_utf8_lossy(&v).parse().unwrap());
        let (acknowledged, asked) = self.setting;
        ensure!((acknowledged..=asked).contains(&setting), "setting {setting}, not {acknowledged} to {asked}");
        self.setting.0 = setting;
        Ok(())
    }

    /// Finds out which of the unanswered writes happened.
    fn settle(&mut self, found: &[KeyValue]) -> Result<(), String> {
        let values: BTreeMap<&[u8], &KeyValue> = found.iter().map(|kv| (&kv.key[..], kv)).collect();
        let mut happened: BTreeMap<Revision, Changes> = BTreeMap::new();
        for changes in std::mem::take(&mut self.open) {
            // Each value is written once only: a put tells of its transaction, and each has one.
            let put = changes.iter().find_map(|(k, v)| v.as_ref().map(|v| (k, v)));
            let Some((key, value)) = put else { continue };
            let Some(kv) = values.get(key.as_bytes()).filter(|kv| kv.value == *value) else { continue };
            let rev = kv.mod_revision;
            ensure!(self.told.insert(rev), "an unanswered write has revision {rev}, which was told to another");
            happened.insert(rev, changes);
        }
        for (rev, changes) in happened {
            let before = self.state(rev - 1);
            // A delete of what is not there is none.
            let real = |(k, v): &(String, Option<Bytes>)| v.is_some() || before.contains_key(k);
            self.writes.insert(rev, changes.into_iter().filter(real).collect());
        }
        Ok(())
    }

    /// The events of durable keys from `start` on are those of the writes, each once and whole.
    async fn verify_history(&self, store: &dyn Store, start: Revision, newest: Revision) -> Result<(), String> {
        let range = KeyRange::prefix(DURABLE);
        let watch = store.watch(WatchRequest { range, start }).await;
        let mut watch = watch.map_err(|e| format!("cannot watch from {start}: {e}"))?;
        (watch.request_progress)();
        let mut seen: BTreeMap<Revision, Changes> = BTreeMap::new();
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), watch.receiver.recv()).await;
            match message.map_err(|_| "the watch is silent".to_owned())? {
                Some(Ok(WatchMessage::Events(rev, events))) => {
                    let change = |e: &Event| {
                        let value = (e.kind == EventKind::Put).then(|| e.kv.value.clone());
                        (String::from_utf8_lossy(&e.kv.key).into_owned(), value)
                    };
                    ensure!(seen.keys().all(|r| *r < rev), "revision {rev} comes late or twice");
                    seen.insert(rev, events.iter().map(change).collect());
                }
                Some(Ok(WatchMessage::Progress(rev))) if rev >= newest => break,
                Some(Ok(WatchMessage::Progress(_))) => {}
                Some(Err(e)) => return Err(format!("the watch from {start} ends: {e}")),
                None => return Err("the watch ended".to_owned()),
            }
        }
        let sorted = |changes: &Changes| {
            let mut changes = changes.clone();
            changes.sort();
            changes
        };
        for (rev, changes) in self.writes.range(start..) {
            let got = seen.remove(rev).ok_or_else(|| format!("the events of revision {rev} are lost"))?;
            ensure!(sorted(&got) == sorted(changes), "revision {rev} has other events");
        }
        ensure!(seen.is_empty(), "nobody asked for the events of {:?}", seen.keys());
        Ok(())
    }
}

async fn range(store: &dyn Store, revision: Revision) -> Result<Vec<KeyValue>, String> {
    let req = RangeRequest { revision, ..RangeRequest::new(KeyRange::prefix(DURABLE)) };
    store.range(req).await.map(|r| r.kvs).map_err(|e| format!("cannot read at {revision}: {e}"))
}

fn same(found: &[KeyValue], wanted: &State) -> Result<(), String> {
    let found: BTreeMap<String, &KeyValue> =
        found.iter().map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv)).collect();
    for (key, (value, rev, version)) in wanted {
        let kv = found.get(key).ok_or_else(|| format!("{key}, written at {rev}, is lost"))?;
        let got = (kv.mod_revision, kv.version);
        ensure!(got == (*rev, *version), "{key} has revision and version {got:?}, not {:?}", (rev, version));
        ensure!(kv.value == *value, "{key} at {rev} has another value");
    }
    let more = found.keys().find(|k| !wanted.contains_key(*k));
    ensure!(more.is_none(), "{more:?} is there and should not be");
    Ok(())
}
