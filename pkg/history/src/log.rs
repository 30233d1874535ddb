//! The log: every transaction at its revision, as the witnesses tell it, and the state that it makes at each revision.

use crate::knowledge::Knowledge;
use crate::operations::Claims;
use crate::{Event, History, Keys, Kv, Note, Request, Revision, Rule, Violation};
use std::collections::{BTreeMap, btree_map};

type Versions = Vec<(Revision, Option<Kv>)>;

pub(crate) struct Log {
    /// Events ascending by key.
    transactions: BTreeMap<Revision, Vec<Event>>,
    keys: BTreeMap<String, Versions>,
    pub base: Revision,
    pub last: Revision,
}

/// The state at one revision.
#[derive(Clone, Copy)]
pub(crate) struct Snapshot<'a> {
    keys: &'a BTreeMap<String, Versions>,
    at: Revision,
}

impl<'a> Snapshot<'a> {
    pub fn get(&self, key: &str) -> Option<&'a Kv> {
        visible(self.keys.get(key)?, self.at)
    }

    /// Ascending by key.
    pub fn range(&self, keys: &Keys) -> Vec<Kv> {
        let within = |keys: &Keys| match keys {
            Keys::One(one) => self.keys.range::<String, _>(one..=one),
            Keys::Between(start, end) if start < end => self.keys.range::<String, _>(start..end),
            Keys::Between(start, _) => self.keys.range::<String, _>(start..start),
            Keys::From(start) => self.keys.range::<String, _>(start..),
        };
        within(keys).filter_map(|(_, versions)| visible(versions, self.at)).cloned().collect()
    }

    pub fn attached(&self, lease: i64) -> impl Iterator<Item = &'a Kv> {
        let at = self.at;
        self.keys.values().filter_map(move |versions| visible(versions, at)).filter(move |kv| kv.lease == lease)
    }
}

fn visible(versions: &Versions, at: Revision) -> Option<&Kv> {
    let i = versions.partition_point(|(rev, _)| *rev <= at);
    versions[..i].last()?.1.as_ref()
}

impl Log {
    pub fn build(history: &History, claims: &Claims, known: &Knowledge<'_>) -> Result<Self, Violation> {
        let told = gather(history)?;
        let mut log =
            Log { transactions: BTreeMap::new(), keys: BTreeMap::new(), base: history.base, last: history.base };
        for kv in &history.baseline {
            log.keys.insert(kv.key.clone(), vec![(kv.modified, Some(kv.clone()))]);
        }
        let mut epochs = history.epochs.iter().peekable();
        for (rev, events) in told {
            while let Some(epoch) = epochs.next_if(|e| e.revision < rev) {
                log.begin_epoch(epoch, history, claims)?;
            }
            // What ephemeral keys went through in the batch that a crash cut off, nobody was told.
            let untold = |e: &crate::Epoch| !e.clean && e.revision > rev && known.first_known(rev) >= Some(e.at);
            log.append(rev, events, history.alone && !history.epochs.iter().any(untold))?;
        }
        for epoch in epochs {
            log.begin_epoch(epoch, history, claims)?;
        }
        Ok(log)
    }

    fn append(&mut self, rev: Revision, events: Vec<Event>, gapless: bool) -> Result<(), Violation> {
        let wrong = |rule, text: String| Violation::new(rule, rev, format!("revision {rev}: {text}"));
        if rev <= self.last {
            return Err(wrong(Rule::RevisionReused, format!("the store was at {} before it", self.last)));
        }
        if gapless && rev != self.last + 1 {
            return Err(wrong(Rule::Gap, format!("nothing is known of the revisions after {}", self.last)));
        }
        for event in &events {
            let old = self.at(rev).get(&event.kv.key).cloned();
            check_event(rev, event, old.as_ref())?;
            let versions = self.keys.entry(event.kv.key.clone()).or_default();
            versions.push((rev, (!event.deleted).then(|| event.kv.clone())));
        }
        self.transactions.insert(rev, events);
        self.last = rev;
        Ok(())
    }

    fn begin_epoch(&mut self, epoch: &crate::Epoch, history: &History, claims: &Claims) -> Result<(), Violation> {
        let rev = epoch.revision;
        let wrong =
            |rule, text: String| Err(Violation::new(rule, rev, format!("after the start at revision {rev}: {text}")));
        if if epoch.clean { rev < self.last } else { rev <= self.last } {
            return wrong(Rule::RevisionReused, format!("the store had been at {}", self.last));
        }
        let left: BTreeMap<&str, &Kv> = epoch.left.iter().map(|kv| (kv.key.as_str(), kv)).collect();
        let known = self.keys.keys().filter(|k| epoch.covers(k)).cloned();
        let names: std::collections::BTreeSet<String> = known.chain(left.keys().map(|k| (*k).to_owned())).collect();
        for key in names {
            let survivor = left.get(key.as_str()).copied();
            let from = if epoch.clean { Revision::MAX } else { self.kept_from(&key, history, claims) };
            let versions = self.keys.entry(key.clone()).or_default();
            let since = &versions[versions.partition_point(|(rev, _)| *rev <= from).saturating_sub(1)..];
            // It fell back to what a lease held that has ended since, or nobody was told of the lease's end.
            let ended = survivor.is_none() && since.iter().any(|(_, kv)| kv.as_ref().is_some_and(|kv| kv.lease != 0));
            let untold = !epoch.clean && (ended || may_have_become(history, &key, survivor));
            if !untold && !has_been(versions, survivor, from) {
                return wrong(Rule::WrongSurvivor, format!("{key} is {survivor:?}, which it was not since {from}"));
            }
            if epoch.clean {
                continue;
            }
            if let Some(kv) = survivor
                && kv.modified != rev
            {
                return wrong(Rule::WrongSurvivor, format!("{key} counts as written at {}", kv.modified));
            }
            versions.push((rev, survivor.cloned()));
        }
        self.last = rev;
        Ok(())
    }

    /// The revision up to which a crash may not take the key back: the last start, or an acknowledged durable write.
    fn kept_from(&self, key: &str, history: &History, claims: &Claims) -> Revision {
        let started = history.epochs.iter().map(|e| e.revision).filter(|r| *r <= self.last).max();
        let durable = |index: &usize| matches!(&history.operations[*index].request, Request::Txn(txn) if txn.durable);
        let writes = |events: &Vec<Event>| events.iter().any(|e| e.kv.key == key);
        let written =
            self.transactions.iter().rev().find(|(rev, events)| writes(events) && claims.get(rev).is_some_and(durable));
        started.max(written.map(|(rev, _)| *rev)).unwrap_or(0)
    }

    pub fn at(&self, rev: Revision) -> Snapshot<'_> {
        Snapshot { keys: &self.keys, at: rev }
    }

    pub fn get(&self, rev: Revision) -> Option<&[Event]> {
        self.transactions.get(&rev).map(|events| &events[..])
    }

    pub fn from(&self, rev: Revision) -> btree_map::Range<'_, Revision, Vec<Event>> {
        self.transactions.range(rev..)
    }

    pub fn len(&self) -> usize {
        self.transactions.len()
    }
}

/// Was the key, at `from` or later, what is left of it? Its revision aside, which is a new one.
fn has_been(versions: &Versions, survivor: Option<&Kv>, from: Revision) -> bool {
    let same = |kv: Option<&Kv>| match (kv, survivor) {
        (None, None) => true,
        (Some(a), Some(b)) => (&a.value, a.created, a.version, a.lease) == (&b.value, b.created, b.version, b.lease),
        _ => false,
    };
    let first = versions.partition_point(|(rev, _)| *rev <= from);
    same(versions[..first].last().and_then(|(_, kv)| kv.as_ref()))
        || versions[first..].iter().any(|(_, kv)| same(kv.as_ref()))
}

/// Could a write that nobody was told of have made the key so, just before the crash?
fn may_have_become(history: &History, key: &str, survivor: Option<&Kv>) -> bool {
    let makes = |step: &crate::Step| match (step, survivor) {
        (crate::Step::Put { key: put, value, .. }, Some(kv)) => put == key && *value == kv.value,
        (crate::Step::Delete { keys, .. }, None) => keys.contains(key),
        _ => false,
    };
    history.operations.iter().filter(|o| o.outcome == crate::Outcome::Unknown).any(|o| match &o.request {
        Request::Txn(txn) => txn.success.iter().chain(&txn.failure).any(makes),
        _ => false,
    })
}

/// What the witnesses saw, each transaction once.
fn gather(history: &History) -> Result<BTreeMap<Revision, Vec<Event>>, Violation> {
    let mut told: BTreeMap<Revision, BTreeMap<&str, &Event>> = BTreeMap::new();
    for (index, watch) in history.watches.iter().enumerate().filter(|(_, w)| w.witness) {
        for (_, note) in &watch.notes {
            let Note::Events(rev, events) = note else { continue };
            for event in events {
                let other = told.entry(*rev).or_default().insert(&event.kv.key, event);
                if let Some(other) = other.filter(|o| (&o.kv, o.deleted) != (&event.kv, event.deleted)) {
                    let text = format!("revision {rev}: two witnesses disagree: {event:?}, {other:?}");
                    return Err(Violation::new(Rule::WrongEvent, *rev, text).of_watch(index));
                }
            }
        }
    }
    Ok(told.into_iter().map(|(rev, events)| (rev, events.into_values().cloned().collect())).collect())
}

fn check_event(rev: Revision, event: &Event, old: Option<&Kv>) -> Result<(), Violation> {
    let kv = &event.kv;
    let wrong =
        |text: String| Err(Violation::new(Rule::WrongEvent, rev, format!("revision {rev}: {}: {text}", kv.key)));
    if kv.modified != rev {
        return wrong(format!("the event says revision {}", kv.modified));
    }
    match (event.deleted, old) {
        (true, None) => wrong("what was not there was deleted".into()),
        (true, Some(_)) => Ok(()),
        (false, old) => {
            let want = (old.map_or(rev, |o| o.created), old.map_or(1, |o| o.version + 1));
            if (kv.created, kv.version) == want {
                return Ok(());
            }
            wrong(format!("created {} and version {}, after {old:?}", kv.created, kv.version))
        }
    }
}
