//! What a client asks for, by chance: what a seed decides.

use isopod_history::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

const SECOND: Time = 1_000_000_000;

pub struct Wishes {
    rng: StdRng,
    pub client: u32,
    prefix: String,
    values: u64,
    leases: u64,
    /// Revisions of keys as this client last heard of them.
    heard: BTreeMap<String, Revision>,
}

impl Wishes {
    pub fn new(seed: u64, client: u32, prefix: String) -> Self {
        Wishes { rng: StdRng::seed_from_u64(seed), client, prefix, values: 0, leases: 0, heard: BTreeMap::new() }
    }

    /// `newest`: about where the store is. `witnessed`: before it everything has been seen.
    pub fn request(&mut self, newest: Revision, witnessed: Revision) -> Request {
        match self.rng.random_range(0..1000) {
            0..=249 => Request::Get(self.get(newest)),
            250..=449 => {
                let put = self.put();
                Request::Txn(Txn::of(vec![put]))
            }
            450..=549 => {
                let keys = if self.rng.random_bool(0.1) { self.keys() } else { Keys::One(self.key()) };
                Request::Txn(Txn::of(vec![Step::Delete { keys, prev: self.rng.random_bool(0.5) }]))
            }
            550..=939 => self.guarded(),
            940..=969 => {
                // Now and then an id that is there.
                self.leases += u64::from(self.leases == 0 || self.rng.random_bool(0.9));
                Request::Grant {
                    lease: self.lease_id(self.leases),
                    ttl: self.rng.random_range(2..6) * SECOND,
                    durable: true,
                }
            }
            970..=989 => Request::Revoke { lease: self.lease() },
            990..=994 => Request::KeepAlive { lease: self.lease() },
            _ => {
                let revision = (newest - self.rng.random_range(0..400)).min(witnessed).max(1);
                Request::Compact { revision }
            }
        }
    }

    /// What the client learns from an answer.
    pub fn hear(&mut self, outcome: &Outcome) {
        let Outcome::Answered(answer) = outcome else { return };
        let found: Vec<&Found> = match answer {
            Answer::Get { found, .. } => vec![found],
            Answer::Txn { steps, .. } => {
                steps.iter().filter_map(|s| if let StepAnswer::Get(f) = s { Some(f) } else { None }).collect()
            }
            Answer::Done { .. } => Vec::new(),
        };
        for kv in found.into_iter().flat_map(|f| &f.kvs) {
            self.heard.insert(kv.key.clone(), kv.modified);
        }
    }

    fn key(&mut self) -> String {
        let folder = if self.rng.random_bool(0.5) { "a" } else { "b" };
        format!("{}{folder}/{}", self.prefix, self.rng.random_range(0..4))
    }

    fn keys(&mut self) -> Keys {
        match self.rng.random_range(0..4) {
            0 => Keys::prefix(&self.prefix),
            1 => Keys::prefix(&format!("{}a/", self.prefix)),
            2 => Keys::Between(format!("{}a/2", self.prefix), format!("{}b/2", self.prefix)),
            _ => Keys::One(self.key()),
        }
    }

    fn get(&mut self, newest: Revision) -> Get {
        let past = (newest - self.rng.random_range(-2..300)).max(1);
        Get {
            keys: self.keys(),
            revision: if self.rng.random_bool(0.25) { past } else { 0 },
            serializable: self.rng.random_bool(0.1),
            limit: if self.rng.random_bool(0.2) { self.rng.random_range(1..4) } else { 0 },
            count_only: self.rng.random_bool(0.1),
        }
    }

    fn lease_id(&self, n: u64) -> LeaseId {
        (i64::from(self.client) + 1) << 32 | n as i64
    }

    /// One of this client's last ones.
    fn lease(&mut self) -> LeaseId {
        let last = self.leases.max(1);
        let n = self.rng.random_range(last.saturating_sub(3).max(1)..=last);
        self.lease_id(n)
    }

    fn put(&mut self) -> Step {
        self.values += 1;
        let lease = if self.leases > 0 && self.rng.random_bool(0.15) { self.lease() } else { 0 };
        // No two writes have the same value: who wrote what is known.
        let value = format!("{}-{}", self.client, self.values);
        Step::Put { key: self.key(), value, lease, prev: self.rng.random_bool(0.3) }
    }

    /// Compares and then writes some keys, or reads: what an API server does.
    fn guarded(&mut self) -> Request {
        let key = self.key();
        let heard = self.heard.get(&key).copied().unwrap_or(0);
        let (relation, target) = match self.rng.random_range(0..10) {
            0 => (Relation::Greater, Target::Version(2)),
            1 => (Relation::NotEqual, Target::Lease(0)),
            2 => (Relation::Less, Target::Created(heard.max(1))),
            _ => (Relation::Equal, Target::Modified(heard)),
        };
        let mut success: Vec<Step> = Vec::new();
        for _ in 0..self.rng.random_range(1..4) {
            let step = self.put();
            let same = |other: &Step| match (other, &step) {
                (Step::Put { key: a, .. }, Step::Put { key: b, .. }) => a == b,
                _ => false,
            };
            // A key is written once.
            if !success.iter().any(same) {
                success.push(step);
            }
        }
        if self.rng.random_bool(0.3) {
            success.push(Step::Get(Get::newest(self.keys())));
        }
        let failure = vec![Step::Get(Get::newest(Keys::One(key.clone())))];
        let compares = vec![Compare { key, relation, target }];
        Request::Txn(Txn { compares, success, failure, durable: true })
    }
}
