//! Leases: how long each has left and which keys end with it. What is durable about them is the backend's business.

use crate::{Event, LeaseId, LeaseStatus, Result, StoreError};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeSet, HashMap};

struct Lease {
    ttl: i64,
    expires: Timestamp,
    /// Of its newest renewal, see [`Leases::renewed`].
    stamp: i64,
    keys: BTreeSet<Bytes>,
}

/// Seconds; longer ones would overflow the calendar. etcd has the same limit.
const MAX_TTL: i64 = 9_000_000_000;

#[derive(Default)]
pub(crate) struct Leases {
    all: HashMap<LeaseId, Lease>,
    by_expiry: BTreeSet<(Timestamp, LeaseId)>,
}

impl Leases {
    pub fn contains(&self, id: LeaseId) -> bool {
        self.all.contains_key(&id)
    }

    pub fn ids(&self) -> Vec<LeaseId> {
        let mut ids: Vec<_> = self.all.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// A lease id that is not taken.
    pub fn unused_id(&self) -> LeaseId {
        loop {
            let id = (rand::random::<u64>() >> 1) as i64;
            if id != 0 && !self.contains(id) {
                return id;
            }
        }
    }

    pub fn grant(&mut self, id: LeaseId, ttl: i64, now: Timestamp) -> LeaseStatus {
        let ttl = ttl.clamp(1, MAX_TTL);
        let expires = after(now, ttl);
        self.by_expiry.insert((expires, id));
        self.all.insert(id, Lease { ttl, expires, stamp: 0, keys: BTreeSet::new() });
        LeaseStatus { id, granted_ttl: ttl, ttl, keys: Vec::new() }
    }

    pub fn keep_alive(&mut self, id: LeaseId, now: Timestamp) -> Result<LeaseStatus> {
        // One whose time is over is about to be ended, and is not kept by somebody who comes in between.
        let alive = self.all.get_mut(&id).filter(|lease| lease.expires > now);
        let lease = alive.ok_or(StoreError::LeaseNotFound(id))?;
        self.by_expiry.remove(&(lease.expires, id));
        lease.expires = after(now, lease.ttl);
        self.by_expiry.insert((lease.expires, id));
        Ok(LeaseStatus { id, granted_ttl: lease.ttl, ttl: lease.ttl, keys: Vec::new() })
    }

    /// A lease that could not be ended is tried again after a while.
    pub fn postpone(&mut self, id: LeaseId, now: Timestamp) {
        if let Some(lease) = self.all.get_mut(&id) {
            self.by_expiry.remove(&(lease.expires, id));
            lease.expires = after(now, 5);
            self.by_expiry.insert((lease.expires, id));
        }
    }

    /// Somebody, here or on another server, has given the lease its whole time, which is counted from now on. `stamp` tells
    /// this renewal from all others of the lease.
    pub fn renewed(&mut self, id: LeaseId, ttl: i64, stamp: i64, now: Timestamp) {
        if let Some(lease) = self.all.get_mut(&id) {
            self.by_expiry.remove(&(lease.expires, id));
            (lease.ttl, lease.stamp, lease.expires) = (ttl, stamp, after(now, ttl));
            self.by_expiry.insert((lease.expires, id));
        }
    }

    /// The newest renewal that this server knows of; 0: it only granted the lease, or there is none.
    pub fn stamp(&self, id: LeaseId) -> i64 {
        self.all.get(&id).map_or(0, |lease| lease.stamp)
    }

    pub fn status(&self, id: LeaseId, now: Timestamp) -> Result<LeaseStatus> {
        let lease = self.all.get(&id).ok_or(StoreError::LeaseNotFound(id))?;
        let left = lease.expires.duration_since(now).as_secs().max(0);
        Ok(LeaseStatus { id, granted_ttl: lease.ttl, ttl: left, keys: lease.keys.iter().cloned().collect() })
    }

    pub fn keys(&self, id: LeaseId) -> Vec<Bytes> {
        self.all.get(&id).map(|l| l.keys.iter().cloned().collect()).unwrap_or_default()
    }

    pub fn remove(&mut self, id: LeaseId) {
        if let Some(lease) = self.all.remove(&id) {
            self.by_expiry.remove(&(lease.expires, id));
        }
    }

    pub fn attach(&mut self, id: LeaseId, key: Bytes) {
        if let Some(lease) = self.all.get_mut(&id) {
            lease.keys.insert(key);
        }
    }

    /// Moves keys between leases as committed events say.
    pub fn apply(&mut self, events: &[Event]) {
        for event in events {
            let (key, now) = (&event.kv.key, event.kv.lease);
            match &event.prev {
                Some(before) if before.lease == now => continue,
                Some(before) => {
                    if let Some(lease) = self.all.get_mut(&before.lease) {
                        lease.keys.remove(key);
                    }
                }
                // Another server compacted what stood there before this one heard of the event: any lease may have held it.
                None if event.kv.version != 1 => {
                    for lease in self.all.values_mut() {
                        lease.keys.remove(key);
                    }
                }
                None => {}
            }
            if now != 0 {
                self.attach(now, key.clone());
            }
        }
    }

    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.by_expiry.first().map(|(t, _)| *t)
    }

    pub fn expired(&self, now: Timestamp) -> Vec<LeaseId> {
        self.by_expiry.iter().take_while(|(t, _)| *t <= now).map(|(_, id)| *id).collect()
    }

    pub fn has_expired(&self, id: LeaseId, now: Timestamp) -> bool {
        self.all.get(&id).is_some_and(|l| l.expires <= now)
    }
}

fn after(now: Timestamp, seconds: i64) -> Timestamp {
    now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventKind, KeyValue};

    fn put(version: i64, lease: LeaseId) -> Event {
        let (key, value) = (Bytes::from_static(b"a"), Bytes::new());
        let kv = KeyValue { key, value, create_revision: 0, mod_revision: 0, version, lease };
        Event { kind: EventKind::Put, kv, prev: None }
    }

    /// A lease that ends must not take along a key that it held once: its next owner wrote it without the lease.
    #[test]
    fn a_key_whose_former_state_was_compacted_leaves_its_lease() {
        let gone = Event { kind: EventKind::Delete, ..put(0, 0) };
        for (what, events) in
            [("deleted", vec![gone, put(1, 0)]), ("written", vec![put(3, 0)]), ("moved", vec![put(3, 2)])]
        {
            let mut leases = Leases::default();
            for id in [1, 2] {
                leases.grant(id, 60, Timestamp::UNIX_EPOCH);
            }
            leases.apply(&[put(1, 1)]);
            assert_eq!(leases.keys(1), ["a"], "{what}");
            leases.apply(&events);
            assert!(leases.keys(1).is_empty(), "{what}: {:?}", leases.keys(1));
            assert_eq!(leases.keys(2).len(), usize::from(what == "moved"), "{what}");
        }
    }
}
