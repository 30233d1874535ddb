//! Pods that wait for a node: ready by priority and age, backing off after a failure, or waiting for a change.
//!
//! Invariant: a pod is in one of the three places, once.

use crate::framework::Wake;
use crate::pod::PodInfo;
use jiff::{SignedDuration, Timestamp};
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

const FIRST_BACKOFF: SignedDuration = SignedDuration::from_secs(1);
const MAX_BACKOFF: SignedDuration = SignedDuration::from_secs(10);
/// A pod that no change woke is tried again after this long all the same.
const FORGOTTEN: SignedDuration = SignedDuration::from_mins(5);

struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    last_try: Timestamp,
    since: (Timestamp, u64),
}

enum Place {
    Ready,
    /// Until then.
    Backoff(Timestamp),
    /// For one of these changes, or until it is [`FORGOTTEN`].
    Waiting(Wake, Timestamp),
}

type ReadyKey = (Reverse<i32>, Timestamp, u64, String);

/// The queue. Times are given, never read.
#[derive(Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    ready: BTreeSet<ReadyKey>,
    /// Deadlines of `Backoff` and `Waiting`.
    timed: BTreeSet<(Timestamp, String)>,
    count: u64,
}

fn backoff(attempts: u32) -> SignedDuration {
    let doubled = FIRST_BACKOFF * 2i32.saturating_pow(attempts.saturating_sub(1).min(10));
    doubled.min(MAX_BACKOFF)
}

impl Queue {
    fn ready_key(uid: &str, e: &Entry) -> ReadyKey {
        (Reverse(e.pod.pod.spec.priority), e.since.0, e.since.1, uid.to_owned())
    }

    /// Adds a pod that has no node, or takes in its change, which may be what it waited for.
    pub fn add(&mut self, pod: Arc<PodInfo>, now: Timestamp) {
        let uid = pod.uid().to_owned();
        let (attempts, last_try, since) = match self.take(&uid) {
            Some(old) => (old.attempts, old.last_try, old.since),
            None => {
                self.count += 1;
                (0, Timestamp::UNIX_EPOCH, (now, self.count))
            }
        };
        self.put(uid, Entry { pod, place: Place::Ready, attempts, last_try, since });
    }

    /// A try failed. `wakes_on` zero: not for want of a fitting node, so try again after the backoff.
    pub fn failed(&mut self, pod: Arc<PodInfo>, attempts: u32, wakes_on: Wake, now: Timestamp) {
        let place = if wakes_on == 0 {
            Place::Backoff(now + backoff(attempts))
        } else {
            Place::Waiting(wakes_on, now + FORGOTTEN)
        };
        self.count += 1;
        let uid = pod.uid().to_owned();
        let entry = Entry { pod, place, attempts, last_try: now, since: (now, self.count) };
        self.put(uid, entry);
    }

    /// The pod needs no node any more.
    pub fn remove(&mut self, uid: &str) {
        self.take(uid);
    }

    /// Something changed: pods that wait for it become ready, after what is left of their backoff.
    pub fn wake(&mut self, what: Wake, now: Timestamp) {
        let woken: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, e)| matches!(e.place, Place::Waiting(on, _) if on & what != 0))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in woken {
            self.release(&uid, now);
        }
    }

    /// The next pod to try, and how often it was tried before. It leaves the queue.
    pub fn pop(&mut self, now: Timestamp) -> Option<(Arc<PodInfo>, u32)> {
        while let Some((at, uid)) = self.timed.first()
            && *at <= now
        {
            let uid = uid.clone();
            self.release(&uid, now);
        }
        let uid = self.ready.first()?.3.clone();
        let entry = self.take(&uid)?;
        Some((entry.pod, entry.attempts))
    }

    /// When something becomes ready by time alone.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.timed.first().map(|(at, _)| *at)
    }

    /// Makes it ready, or lets it back off what is left.
    fn release(&mut self, uid: &str, now: Timestamp) {
        let Some(mut entry) = self.take(uid) else { return };
        let until = entry.last_try + backoff(entry.attempts);
        entry.place = if entry.attempts > 0 && until > now { Place::Backoff(until) } else { Place::Ready };
        self.put(uid.to_owned(), entry);
    }

    fn put(&mut self, uid: String, entry: Entry) {
        match entry.place {
            Place::Ready => drop(self.ready.insert(Self::ready_key(&uid, &entry))),
            Place::Backoff(at) | Place::Waiting(_, at) => drop(self.timed.insert((at, uid.clone()))),
        }
        self.entries.insert(uid, entry);
    }

    fn take(&mut self, uid: &str) -> Option<Entry> {
        let entry = self.entries.remove(uid)?;
        match entry.place {
            Place::Ready => drop(self.ready.remove(&Self::ready_key(uid, &entry))),
            Place::Backoff(at) | Place::Waiting(_, at) => drop(self.timed.remove(&(at, uid.to_owned()))),
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::{NODE_ADDED, NODE_TAINTS};
    use isopod_client::views::Pod;

    fn pod(uid: &str, priority: i32) -> Arc<PodInfo> {
        let mut p = Pod::default();
        p.metadata.uid = uid.into();
        p.spec.priority = priority;
        Arc::new(PodInfo::new(Arc::new(p)))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn next(q: &mut Queue, now: i64) -> Option<String> {
        q.pop(at(now)).map(|(p, _)| p.uid().to_owned())
    }

    #[test]
    fn priority_then_age() {
        let mut q = Queue::default();
        q.add(pod("old", 0), at(1));
        q.add(pod("young", 0), at(2));
        q.add(pod("high", 10), at(3));
        let order: Vec<_> = std::iter::from_fn(|| next(&mut q, 4)).collect();
        assert_eq!(order, ["high", "old", "young"]);
    }

    #[test]
    fn a_refused_pod_waits_for_the_right_change_and_its_backoff() {
        let mut q = Queue::default();
        q.failed(pod("a", 0), 1, NODE_TAINTS, at(10));
        q.wake(NODE_ADDED, at(20));
        assert_eq!(next(&mut q, 20), None);
        q.wake(NODE_TAINTS, at(20));
        assert_eq!(next(&mut q, 20).as_deref(), Some("a"));
        // The third failure backs off for four seconds from the try.
        q.failed(pod("a", 0), 3, NODE_TAINTS, at(30));
        q.wake(NODE_TAINTS, at(31));
        assert_eq!(next(&mut q, 33), None);
        assert_eq!(q.next_deadline(), Some(at(34)));
        assert_eq!(next(&mut q, 34).as_deref(), Some("a"));
        // No change at all: tried again in the end.
        q.failed(pod("a", 0), 1, NODE_TAINTS, at(100));
        assert_eq!(next(&mut q, 399), None);
        assert_eq!(next(&mut q, 400).as_deref(), Some("a"));
    }

    #[test]
    fn removal_leaves_nothing() {
        let mut q = Queue::default();
        q.add(pod("a", 0), at(1));
        q.failed(pod("b", 0), 1, 0, at(1));
        q.remove("a");
        q.remove("b");
        assert_eq!((next(&mut q, 100), q.next_deadline()), (None, None));
    }
}
