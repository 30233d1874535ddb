//! What clients ask for, by chance.

use isopod_history::*;
use rand::Rng;
use rand::rngs::StdRng;

/// Seconds of a lease's life, where time costs nothing.
pub const TTL: u64 = 5;
pub const SECOND: Time = 1_000_000_000;

pub struct Wishes {
    pub rng: StdRng,
    /// Keys under which there are ephemeral ones.
    pub ephemeral: bool,
    pub values: u64,
    /// Of every lease, in seconds.
    pub ttl: u64,
    pub last_lease: LeaseId,
    /// Revisions of keys as clients last heard of them, to compare with.
    pub heard: std::collections::BTreeMap<String, Revision>,
}

impl Wishes {
    fn key(&mut self) -> String {
        let n = self.rng.random_range(0..4);
        if self.ephemeral && self.rng.random_bool(0.4) { format!("e/{n}") } else { format!("d/{n}") }
    }

    pub fn keys(&mut self) -> Keys {
        match self.rng.random_range(0..5) {
            0 => Keys::prefix("d/"),
            1 if self.ephemeral => Keys::prefix("e/"),
            2 => Keys::From(String::new()),
            3 => Keys::Between("d/1".into(), "d/3".into()),
            _ => Keys::One(self.key()),
        }
    }

    /// `newest`: what the store is at, for reads and compactions of the past.
    pub fn request(&mut self, newest: Revision) -> Request {
        match self.rng.random_range(0..100) {
            0..=34 => self.put(),
            35..=49 => self.delete(),
            50..=79 => self.guarded(),
            80..=87 => self.grant(),
            88..=93 => Request::Revoke { lease: self.lease() },
            94..=96 => Request::KeepAlive { lease: self.lease() },
            _ => Request::Compact { revision: (newest - self.rng.random_range(-1..12)).max(1) },
        }
    }

    pub fn read(&mut self, newest: Revision) -> Get {
        let past = (newest - self.rng.random_range(-1..15)).max(1);
        Get {
            keys: self.keys(),
            revision: if self.rng.random_bool(0.4) { past } else { 0 },
            serializable: false,
            limit: if self.rng.random_bool(0.3) { self.rng.random_range(1..4) } else { 0 },
            count_only: self.rng.random_bool(0.1),
        }
    }

    fn lease(&mut self) -> LeaseId {
        let last = self.last_lease;
        self.rng.random_range((last - 3).max(1)..=last.max(1))
    }

    fn put_step(&mut self) -> Step {
        self.values += 1;
        let lease = if self.last_lease > 0 && self.rng.random_bool(0.25) { self.lease() } else { 0 };
        Step::Put { key: self.key(), value: format!("v{}", self.values), lease, prev: self.rng.random_bool(0.4) }
    }

    fn durable(&mut self) -> bool {
        !self.ephemeral || self.rng.random_bool(0.5)
    }

    fn put(&mut self) -> Request {
        let step = self.put_step();
        Request::Txn(Txn { durable: self.durable(), ..Txn::of(vec![step]) })
    }

    fn delete(&mut self) -> Request {
        let keys = if self.rng.random_bool(0.2) { self.keys() } else { Keys::One(self.key()) };
        let step = Step::Delete { keys, prev: self.rng.random_bool(0.5) };
        Request::Txn(Txn { durable: self.durable(), ..Txn::of(vec![step]) })
    }

    fn guarded(&mut self) -> Request {
        let key = self.key();
        let heard = self.heard.get(&key).copied().unwrap_or(0);
        let (relation, target) = match self.rng.random_range(0..8) {
            0 => (Relation::Greater, Target::Version(1)),
            1 => (Relation::NotEqual, Target::Lease(0)),
            2 => (Relation::Less, Target::Created(heard)),
            3 => (Relation::Equal, Target::Value(format!("v{}", self.values))),
            _ => (Relation::Equal, Target::Modified(heard)),
        };
        let mut success = Vec::new();
        let mut written: Vec<String> = Vec::new();
        for _ in 0..self.rng.random_range(1..4) {
            let step = self.put_step();
            let Step::Put { key, .. } = &step else { continue };
            // A key is written once.
            if !written.contains(key) {
                written.push(key.clone());
                success.push(step);
            }
        }
        if self.rng.random_bool(0.5) {
            success.push(Step::Get(Get::newest(self.keys())));
        }
        let failure = vec![Step::Get(Get::newest(Keys::One(key.clone())))];
        let compares = vec![Compare { key, relation, target }];
        Request::Txn(Txn { compares, success, failure, durable: self.durable() })
    }

    fn grant(&mut self) -> Request {
        // Now and then one that is there.
        if self.last_lease == 0 || self.rng.random_bool(0.9) {
            self.last_lease += 1;
        }
        Request::Grant { lease: self.last_lease, ttl: self.ttl * SECOND, durable: self.durable() }
    }
}
