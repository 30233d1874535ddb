//! What a controller has done and not yet seen in its cache.
//!
//! Invariant: while something is expected, the owner is not counted and not scaled again, so a slow cache never makes a
//! controller create or delete twice. What is never seen is forgotten after [`TIMEOUT`].

use crate::controller::Key;
use isopod_base::clock::Clock;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

pub const TIMEOUT: Duration = Duration::from_secs(300);

pub struct Expectations {
    clock: Clock,
    owners: Mutex<HashMap<Key, Expected>>,
}

struct Expected {
    /// Creations to be seen. Below zero when a creation was seen before it was expected.
    creations: i64,
    /// Uids whose deletion is to be seen.
    deletions: HashSet<String>,
    since: Timestamp,
}

impl Expectations {
    pub fn new(clock: Clock) -> Self {
        Expectations { clock, owners: Mutex::default() }
    }

    /// Call before creating.
    pub fn expect_creations(&self, owner: &Key, count: usize) {
        self.expect(owner, count, []);
    }

    /// Call before creating `creations` objects and deleting those with these uids.
    pub fn expect(&self, owner: &Key, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let deletions = deletions.into_iter().collect();
        let expected = Expected { creations: creations as i64, deletions, since: self.clock.now() };
        self.owners.lock().insert(owner.clone(), expected);
    }

    /// A creation was seen, or failed.
    pub fn created(&self, owner: &Key, count: usize) {
        if let Some(e) = self.owners.lock().get_mut(owner) {
            e.creations -= count as i64;
        }
    }

    /// A deletion was seen, or failed.
    pub fn deleted(&self, owner: &Key, uid: &str) {
        if let Some(e) = self.owners.lock().get_mut(owner) {
            e.deletions.remove(uid);
        }
    }

    pub fn forget(&self, owner: &Key) {
        self.owners.lock().remove(owner);
    }

    /// Whether the cache shows everything that was done.
    pub fn are_met(&self, owner: &Key) -> bool {
        let now = self.clock.now();
        self.owners.lock().get(owner).is_none_or(|e| {
            (e.creations <= 0 && e.deletions.is_empty()) || now.duration_since(e.since).unsigned_abs() > TIMEOUT
        })
    }

    /// How long until unmet expectations are given up.
    pub fn expire_in(&self, owner: &Key) -> Option<Duration> {
        let now = self.clock.now();
        let owners = self.owners.lock();
        let e = owners.get(owner)?;
        Some((TIMEOUT + Duration::from_secs(1)).saturating_sub(now.duration_since(e.since).unsigned_abs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_are_met_by_what_is_seen_or_by_time() {
        let clock = Clock::fake(Timestamp::UNIX_EPOCH);
        let e = Expectations::new(clock.clone());
        let key = Key::new("ns", "rs");
        assert!(e.are_met(&key));
        e.expect_creations(&key, 2);
        e.created(&key, 1);
        assert!(!e.are_met(&key));
        e.created(&key, 1);
        assert!(e.are_met(&key));
        e.expect(&key, 0, ["u1".to_owned()]);
        e.deleted(&key, "other");
        assert!(!e.are_met(&key));
        clock.advance(TIMEOUT + Duration::from_secs(1));
        assert!(e.are_met(&key));
    }
}
