//! A store that is too simple to be wrong, and clients of it whose operations overlap: it makes valid histories.

use isopod_history::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

const CLIENTS: usize = 4;
const TTL: Time = 400;

struct Toy {
    rng: StdRng,
    now: Time,
    revision: Revision,
    state: BTreeMap<String, Kv>,
    /// The state at each revision.
    past: BTreeMap<Revision, BTreeMap<String, Kv>>,
    log: Vec<(Revision, Vec<Event>)>,
    compacted: Revision,
    /// Each lease and when it ends.
    leases: BTreeMap<LeaseId, Time>,
    next_lease: LeaseId,
    values: u64,
    history: History,
}

struct Pending {
    invoked: Time,
    request: Request,
    outcome: Option<Outcome>,
}

struct Watcher {
    log: usize,
    next: Revision,
}

/// `steps` steps of everybody together.
pub fn run(seed: u64, steps: usize) -> History {
    let mut toy = Toy {
        rng: StdRng::seed_from_u64(seed),
        now: 0,
        revision: 1,
        state: BTreeMap::new(),
        past: BTreeMap::from([(1, BTreeMap::new())]),
        log: Vec::new(),
        compacted: 0,
        leases: BTreeMap::new(),
        next_lease: 1,
        values: 0,
        history: History { base: 1, alone: true, ..History::default() },
    };
    let mut clients: Vec<Option<Pending>> = (0..CLIENTS).map(|_| None).collect();
    let mut watchers = vec![toy.watch(Keys::From(String::new()), 2, true)];
    for _ in 0..steps {
        toy.now += 1;
        match toy.rng.random_range(0..10) {
            0..=6 => {
                let i = toy.rng.random_range(0..CLIENTS);
                let pending = clients[i].take();
                clients[i] = toy.client(i as u32, pending);
            }
            7..=8 => {
                let i = toy.rng.random_range(0..watchers.len());
                toy.deliver(&mut watchers[i]);
            }
            _ if watchers.len() < 6 => {
                let keys = [Keys::prefix("a"), Keys::One("b1".into()), Keys::From(String::new())];
                let keys = keys[toy.rng.random_range(0..3)].clone();
                let start = if toy.rng.random_bool(0.5) { 0 } else { toy.revision.max(toy.compacted) };
                let watcher = toy.watch(keys, start, false);
                watchers.push(watcher);
            }
            _ => {
                // The connection is lost; the client goes on from where it was.
                let i = toy.rng.random_range(1..watchers.len());
                let (index, next) = (watchers[i].log, watchers[i].next);
                let note = (toy.now, Note::Ended("connection lost".into()));
                toy.history.watches[index].notes.push(note);
                let keys = toy.history.watches[index].keys.clone();
                watchers[i] = toy.watch(keys, next.max(toy.compacted), false);
            }
        }
        toy.end_leases();
    }
    for watcher in &mut watchers {
        toy.now += 1;
        while toy.deliver(watcher) {}
    }
    for (i, pending) in clients.into_iter().enumerate() {
        let Some(pending) = pending else { continue };
        toy.note(i as u32, Pending { outcome: Some(Outcome::Unknown), ..pending });
    }
    toy.history
}

impl Toy {
    fn key(&mut self) -> String {
        let names = ["a1", "a2", "a3", "b1", "b2"];
        names[self.rng.random_range(0..names.len())].to_owned()
    }

    /// A step of a client: asks, is served, or is answered.
    fn client(&mut self, client: u32, pending: Option<Pending>) -> Option<Pending> {
        let Some(mut pending) = pending else {
            let request = self.request();
            return Some(Pending { invoked: self.now, request, outcome: None });
        };
        match pending.outcome {
            None => {
                let lost = self.rng.random_bool(0.05);
                let outcome = if lost { Outcome::Unknown } else { self.serve(&pending.request) };
                // The answer may be lost as well as the question.
                pending.outcome = Some(if self.rng.random_bool(0.05) { Outcome::Unknown } else { outcome });
                Some(pending)
            }
            Some(_) => {
                self.note(client, pending);
                None
            }
        }
    }

    fn note(&mut self, client: u32, pending: Pending) {
        let Pending { invoked, request, outcome } = pending;
        let outcome = outcome.unwrap_or(Outcome::Unknown);
        self.history.operations.push(Operation { client, invoked, returned: self.now, request, outcome });
    }

    fn request(&mut self) -> Request {
        match self.rng.random_range(0..20) {
            0..=5 => Request::Get(self.get()),
            6..=9 => {
                let put = self.put();
                Request::Txn(Txn::of(vec![put]))
            }
            10..=11 => {
                let keys = if self.rng.random_bool(0.3) { Keys::prefix("b") } else { Keys::One(self.key()) };
                Request::Txn(Txn::of(vec![Step::Delete { keys, prev: self.rng.random_bool(0.5) }]))
            }
            12..=15 => self.guarded(),
            16 => {
                self.next_lease += 1;
                Request::Grant { lease: self.next_lease, ttl: TTL, durable: true }
            }
            17 => Request::KeepAlive { lease: self.lease() },
            18 => Request::Revoke { lease: self.lease() },
            _ => Request::Compact { revision: (self.revision - self.rng.random_range(0..30)).max(1) },
        }
    }

    fn lease(&mut self) -> LeaseId {
        let n = self.next_lease;
        self.rng.random_range((n - 3).max(1)..=n)
    }

    fn put(&mut self) -> Step {
        self.values += 1;
        let lease = if self.rng.random_bool(0.2) { self.lease() } else { 0 };
        let prev = self.rng.random_bool(0.5);
        Step::Put { key: self.key(), value: format!("v{}", self.values), lease, prev }
    }

    fn get(&mut self) -> Get {
        let keys = [Keys::One(self.key()), Keys::prefix("a"), Keys::From(String::new())];
        let past = self.revision - self.rng.random_range(-2..20);
        Get {
            keys: keys[self.rng.random_range(0..3)].clone(),
            revision: if self.rng.random_bool(0.3) { past.max(1) } else { 0 },
            serializable: false,
            limit: self.rng.random_range(0..4),
            count_only: self.rng.random_bool(0.2),
        }
    }

    /// Compares what stands there and then writes one or two keys, or reads.
    fn guarded(&mut self) -> Request {
        let key = self.key();
        let modified = self.state.get(&key).map_or(0, |kv| kv.modified);
        let target = Target::Modified(if self.rng.random_bool(0.8) { modified } else { modified + 1 });
        let mut success = vec![self.put()];
        let other = self.put();
        let distinct = |a: &Step, b: &Step| match (a, b) {
            (Step::Put { key: a, .. }, Step::Put { key: b, .. }) => a != b,
            _ => false,
        };
        if distinct(&success[0], &other) {
            success.push(other);
        }
        success.push(Step::Get(Get::newest(Keys::prefix("a"))));
        let failure = vec![Step::Get(Get::newest(Keys::One(key.clone())))];
        let compares = vec![Compare { key, relation: Relation::Equal, target }];
        Request::Txn(Txn { compares, success, failure, durable: true })
    }

    fn serve(&mut self, request: &Request) -> Outcome {
        let done = |toy: &Self| Outcome::Answered(Answer::Done { revision: toy.revision });
        match request {
            Request::Get(get) => self.read(get),
            Request::Txn(txn) => self.transact(txn),
            Request::Grant { lease, ttl, .. } => {
                if self.leases.contains_key(lease) {
                    return Outcome::Refused(Refusal::LeaseExists);
                }
                self.leases.insert(*lease, self.now + ttl);
                done(self)
            }
            Request::KeepAlive { lease } | Request::Revoke { lease } if !self.leases.contains_key(lease) => {
                Outcome::Refused(Refusal::LeaseNotFound)
            }
            Request::KeepAlive { lease } => {
                self.leases.insert(*lease, self.now + TTL);
                done(self)
            }
            Request::Revoke { lease } => {
                self.end_lease(*lease);
                done(self)
            }
            Request::Compact { revision } if *revision <= self.compacted => Outcome::Refused(Refusal::Compacted),
            Request::Compact { revision } => {
                self.compacted = *revision;
                done(self)
            }
        }
    }

    fn read(&self, get: &Get) -> Outcome {
        if get.revision > self.revision {
            return Outcome::Refused(Refusal::Future);
        }
        if get.revision > 0 && get.revision < self.compacted {
            return Outcome::Refused(Refusal::Compacted);
        }
        let state = if get.revision > 0 { &self.past[&get.revision] } else { &self.state };
        Outcome::Answered(Answer::Get { revision: self.revision, found: found(get, state) })
    }

    fn transact(&mut self, txn: &Txn) -> Outcome {
        let holds = |c: &Compare| {
            let Target::Modified(want) = c.target else { panic!("{c:?}") };
            self.state.get(&c.key).map_or(0, |kv| kv.modified) == want
        };
        let succeeded = txn.compares.iter().all(holds);
        let steps = if succeeded { &txn.success } else { &txn.failure };
        let unknown =
            |s: &Step| matches!(s, Step::Put { lease, .. } if *lease != 0 && !self.leases.contains_key(lease));
        if steps.iter().any(unknown) {
            return Outcome::Refused(Refusal::LeaseNotFound);
        }
        let mut events = Vec::new();
        let answers = steps.iter().map(|step| self.step(step, &mut events)).collect();
        self.commit(events);
        Outcome::Answered(Answer::Txn { revision: self.revision, succeeded, steps: answers })
    }

    fn step(&mut self, step: &Step, events: &mut Vec<Event>) -> StepAnswer {
        let next = self.revision + 1;
        match step {
            Step::Get(get) => StepAnswer::Get(found(get, &self.state)),
            Step::Put { key, value, lease, prev } => {
                let old = self.state.get(key).cloned();
                let (created, version) = old.as_ref().map_or((next, 1), |o| (o.created, o.version + 1));
                let (key, value) = (key.clone(), value.clone());
                let kv = Kv { key: key.clone(), value, created, modified: next, version, lease: *lease };
                self.state.insert(key, kv.clone());
                events.push(Event { kv, deleted: false, prev: old.clone() });
                StepAnswer::Put { prev: old.filter(|_| *prev) }
            }
            Step::Delete { keys, prev } => {
                let gone: Vec<Kv> = self.state.values().filter(|kv| keys.contains(&kv.key)).cloned().collect();
                for kv in &gone {
                    self.remove(&kv.key, events);
                }
                StepAnswer::Delete { deleted: gone.len() as u64, prev: if *prev { gone } else { Vec::new() } }
            }
        }
    }

    fn remove(&mut self, key: &str, events: &mut Vec<Event>) {
        let prev = self.state.remove(key);
        let (key, modified) = (key.to_owned(), self.revision + 1);
        let kv = Kv { key, value: String::new(), created: 0, modified, version: 0, lease: 0 };
        events.push(Event { kv, deleted: true, prev });
    }

    fn commit(&mut self, events: Vec<Event>) {
        if !events.is_empty() {
            self.revision += 1;
            self.past.insert(self.revision, self.state.clone());
            self.log.push((self.revision, events));
        }
    }

    fn end_lease(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let keys: Vec<String> = self.state.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect();
        let mut events = Vec::new();
        for key in keys {
            self.remove(&key, &mut events);
        }
        self.commit(events);
    }

    fn end_leases(&mut self) {
        let now = self.now;
        let ended: Vec<LeaseId> = self.leases.iter().filter(|(_, end)| **end <= now).map(|(id, _)| *id).collect();
        for lease in ended {
            self.end_lease(lease);
        }
    }

    fn watch(&mut self, keys: Keys, start: Revision, witness: bool) -> Watcher {
        let notes = vec![(self.now, Note::Created(self.revision))];
        let client = self.history.watches.len() as u32;
        let prev = self.rng.random_bool(0.7);
        self.history.watches.push(WatchLog { client, keys, start, prev, invoked: self.now, notes, witness });
        let next = if start > 0 { start } else { self.revision + 1 };
        Watcher { log: self.history.watches.len() - 1, next }
    }

    /// The next transaction, or progress. False: there was nothing to tell.
    fn deliver(&mut self, watcher: &mut Watcher) -> bool {
        let watch = &mut self.history.watches[watcher.log];
        let mine = |events: &[Event]| -> Vec<Event> {
            let shown = |e: &&Event| watch.keys.contains(&e.kv.key);
            let shape = |e: Event| if watch.prev { e } else { Event { prev: None, ..e } };
            events.iter().filter(shown).cloned().map(shape).collect()
        };
        let begin = self.log.partition_point(|(rev, _)| *rev < watcher.next);
        let next = self.log[begin..].iter().map(|(rev, events)| (*rev, mine(events))).find(|(_, e)| !e.is_empty());
        match next {
            Some((rev, events)) => {
                watch.notes.push((self.now, Note::Events(rev, events)));
                watcher.next = rev + 1;
                true
            }
            None => {
                watch.notes.push((self.now, Note::Progress(self.revision)));
                watcher.next = watcher.next.max(self.revision + 1);
                false
            }
        }
    }
}

fn found(get: &Get, state: &BTreeMap<String, Kv>) -> Found {
    let all: Vec<Kv> = state.values().filter(|kv| get.keys.contains(&kv.key)).cloned().collect();
    let count = all.len() as u64;
    if get.count_only {
        return Found { kvs: Vec::new(), count, more: false };
    }
    let shown = if get.limit == 0 { all.len() } else { get.limit.min(all.len()) };
    Found { more: shown < all.len(), kvs: all[..shown].to_vec(), count }
}
