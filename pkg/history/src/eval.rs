//! What a request makes of a state: the model that answers are compared with.

use crate::log::Snapshot;
use crate::{Compare, Event, Found, Get, Keys, Kv, Relation, Revision, Step, StepAnswer, Target, Txn};
use std::collections::BTreeMap;

pub(crate) struct Effect {
    pub succeeded: bool,
    pub steps: Vec<StepAnswer>,
    /// Ascending by key.
    pub events: Vec<Event>,
}

/// The transaction on the state `before`; what it writes is written at `revision`.
pub(crate) fn evaluate(txn: &Txn, before: Snapshot<'_>, revision: Revision) -> Effect {
    let succeeded = txn.compares.iter().all(|c| holds(c, before.get(&c.key)));
    let mut draft = Draft { before, revision, written: BTreeMap::new(), events: Vec::new() };
    let steps = if succeeded { &txn.success } else { &txn.failure };
    let steps = steps.iter().map(|s| draft.step(s)).collect();
    draft.events.sort_by(|a, b| a.kv.key.cmp(&b.kv.key));
    Effect { succeeded, steps, events: draft.events }
}

struct Draft<'a> {
    before: Snapshot<'a>,
    revision: Revision,
    written: BTreeMap<String, Option<Kv>>,
    events: Vec<Event>,
}

impl Draft<'_> {
    fn step(&mut self, step: &Step) -> StepAnswer {
        match step {
            Step::Put { key, value, lease, prev } => {
                let old = self.current(&Keys::One(key.clone())).pop();
                let kv = Kv {
                    key: key.clone(),
                    value: value.clone(),
                    created: old.as_ref().map_or(self.revision, |o| o.created),
                    modified: self.revision,
                    version: old.as_ref().map_or(1, |o| o.version + 1),
                    lease: *lease,
                };
                self.written.insert(key.clone(), Some(kv.clone()));
                self.events.push(Event { kv, deleted: false, prev: old.clone() });
                StepAnswer::Put { prev: old.filter(|_| *prev) }
            }
            Step::Delete { keys, prev } => {
                let gone = self.current(keys);
                for old in &gone {
                    self.written.insert(old.key.clone(), None);
                    let kv = tombstone(&old.key, self.revision);
                    self.events.push(Event { kv, deleted: true, prev: Some(old.clone()) });
                }
                StepAnswer::Delete { deleted: gone.len() as u64, prev: if *prev { gone } else { Vec::new() } }
            }
            Step::Get(get) => StepAnswer::Get(select(get, self.current(&get.keys))),
        }
    }

    fn current(&self, keys: &Keys) -> Vec<Kv> {
        let mut found: BTreeMap<String, Kv> =
            self.before.range(keys).into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        for (key, written) in self.written.iter().filter(|(k, _)| keys.contains(k)) {
            match written {
                Some(kv) => found.insert(key.clone(), kv.clone()),
                None => found.remove(key),
            };
        }
        found.into_values().collect()
    }
}

pub(crate) fn tombstone(key: &str, revision: Revision) -> Kv {
    Kv { key: key.to_owned(), value: String::new(), created: 0, modified: revision, version: 0, lease: 0 }
}

/// The answer where all that is in the range is `all`.
pub(crate) fn select(get: &Get, mut all: Vec<Kv>) -> Found {
    let count = all.len() as u64;
    if get.count_only {
        return Found { kvs: Vec::new(), count, more: false };
    }
    let more = get.limit != 0 && all.len() > get.limit;
    if more {
        all.truncate(get.limit);
    }
    Found { kvs: all, count, more }
}

fn holds(compare: &Compare, kv: Option<&Kv>) -> bool {
    let number = |of: fn(&Kv) -> i64, want: i64| kv.map_or(0, of).cmp(&want);
    let ordering = match &compare.target {
        Target::Created(want) => number(|kv| kv.created, *want),
        Target::Modified(want) => number(|kv| kv.modified, *want),
        Target::Version(want) => number(|kv| kv.version, *want),
        Target::Lease(want) => number(|kv| kv.lease, *want),
        Target::Value(want) => match kv {
            Some(kv) => kv.value.cmp(want),
            None => return false,
        },
    };
    match compare.relation {
        Relation::Equal => ordering.is_eq(),
        Relation::NotEqual => ordering.is_ne(),
        Relation::Greater => ordering.is_gt(),
        Relation::Less => ordering.is_lt(),
    }
}
