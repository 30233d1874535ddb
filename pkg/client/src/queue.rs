//! A work queue of keys: each key once, delays, and a backoff that doubles with every failure of a key.
//!
//! Invariants: a key is handed to one worker at a time; a key added while it is being worked on is handed out again after
//! [`WorkQueue::done`]; a key that waits twice is handed out at the earlier time. All waits are on the injected clock.

use crate::queue_metrics::{Measures, QueueMetrics};
use isopod_base::clock::Clock;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The first wait after a failure; it doubles up to [`MAX_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(5);
const MAX_WAIT: Duration = Duration::from_secs(1000);

/// A queue shared by producers and workers. Cheap to clone.
pub struct WorkQueue<K>(Arc<Shared<K>>);

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        WorkQueue(self.0.clone())
    }
}

struct Shared<K> {
    clock: Clock,
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys that wait to be handed out, and since when: in `ready`, or to be put there when their worker is done.
    dirty: HashMap<K, Instant>,
    working: HashMap<K, Instant>,
    waiting: BinaryHeap<Reverse<(Timestamp, K)>>,
    deadlines: HashMap<K, Timestamp>,
    failures: HashMap<K, u32>,
    closed: bool,
    /// Of a queue that has a name.
    measures: Option<Measures>,
}

impl<K: Clone + Ord + Hash> WorkQueue<K> {
    pub fn new(clock: Clock) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashMap::new(),
            working: HashMap::new(),
            waiting: BinaryHeap::new(),
            deadlines: HashMap::new(),
            failures: HashMap::new(),
            closed: false,
            measures: None,
        };
        WorkQueue(Arc::new(Shared { clock, state: Mutex::new(state), changed: Notify::new() }))
    }

    /// Counts what happens to the keys from now on.
    pub fn measured(&self, metrics: &QueueMetrics, name: &'static str) {
        let (mut state, measures) = (self.0.state.lock(), metrics.of(name));
        if !state.closed {
            state.dirty.iter().for_each(|_| measures.added());
            state.measures = Some(measures);
        }
    }

    pub fn add(&self, key: K) {
        let mut state = self.0.state.lock();
        if !state.closed && state.add(key) {
            self.0.changed.notify_one();
        }
    }

    /// Adds the key when `wait` is over.
    pub fn add_after(&self, key: K, wait: Duration) {
        if wait.is_zero() {
            return self.add(key);
        }
        let at = self.0.clock.now() + wait;
        let mut state = self.0.state.lock();
        if state.closed || state.deadlines.get(&key).is_some_and(|d| *d <= at) {
            return;
        }
        state.deadlines.insert(key.clone(), at);
        state.waiting.push(Reverse((at, key)));
        self.0.changed.notify_one();
    }

    /// Adds the key after a wait that doubles each time, until [`WorkQueue::forget`].
    pub fn add_rate_limited(&self, key: K) {
        let failures = {
            let mut state = self.0.state.lock();
            let n = state.failures.entry(key.clone()).or_default();
            *n += 1;
            let before = *n - 1;
            state.measures.iter().for_each(Measures::retried);
            before
        };
        let wait = FIRST_WAIT.saturating_mul(1u32.checked_shl(failures.min(31)).unwrap_or(u32::MAX)).min(MAX_WAIT);
        self.add_after(key, wait);
    }

    /// How often the key was added rate-limited since it was last forgotten.
    pub fn failures(&self, key: &K) -> u32 {
        self.0.state.lock().failures.get(key).copied().unwrap_or_default()
    }

    pub fn forget(&self, key: &K) {
        self.0.state.lock().failures.remove(key);
    }

    /// The next key; `None` when the queue is closed. Call [`WorkQueue::done`] after working on it.
    pub async fn next(&self) -> Option<K> {
        loop {
            let changed = self.0.changed.notified();
            let next_deadline = {
                let mut state = self.0.state.lock();
                if state.closed {
                    self.0.changed.notify_one();
                    return None;
                }
                let now = self.0.clock.now();
                state.wake(now);
                if let Some(key) = state.ready.pop_front() {
                    state.take(&key);
                    if !state.ready.is_empty() {
                        self.0.changed.notify_one();
                    }
                    return Some(key);
                }
                state.waiting.peek().map(|Reverse((at, _))| *at)
            };
            match next_deadline {
                None => changed.await,
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = self.0.clock.sleep_until(at) => {}
                },
            }
        }
    }

    /// The worker has finished with the key.
    pub fn done(&self, key: &K) {
        let mut state = self.0.state.lock();
        if let (Some(since), Some(measures)) = (state.working.remove(key), &state.measures) {
            measures.done(since.elapsed());
        }
        if state.dirty.contains_key(key) {
            state.ready.push_back(key.clone());
            self.0.changed.notify_one();
        }
    }

    /// Keys ready to be handed out.
    pub fn len(&self) -> usize {
        self.0.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends the queue: every worker gets `None`.
    pub fn close(&self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        if let Some(measures) = state.measures.take() {
            measures.dropped(state.dirty.len());
        }
        drop(state);
        self.0.changed.notify_one();
    }
}

impl<K: Clone + Ord + Hash> State<K> {
    /// Whether a worker should be woken.
    fn add(&mut self, key: K) -> bool {
        if self.dirty.contains_key(&key) {
            return false;
        }
        self.dirty.insert(key.clone(), Instant::now());
        self.measures.iter().for_each(Measures::added);
        if self.working.contains_key(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    /// Hands a key out.
    fn take(&mut self, key: &K) {
        let now = Instant::now();
        if let (Some(since), Some(measures)) = (self.dirty.remove(key), &self.measures) {
            measures.taken(now - since);
        }
        self.working.insert(key.clone(), now);
    }

    /// Moves the keys whose time has come.
    fn wake(&mut self, now: Timestamp) {
        while let Some(Reverse((at, _))) = self.waiting.peek() {
            if *at > now {
                return;
            }
            let Some(Reverse((at, key))) = self.waiting.pop() else { return };
            // An entry that was overtaken by an earlier one is stale.
            if self.deadlines.get(&key) == Some(&at) {
                self.deadlines.remove(&key);
                self.add(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> (Clock, WorkQueue<&'static str>) {
        let clock = Clock::fake(Timestamp::UNIX_EPOCH);
        (clock.clone(), WorkQueue::new(clock))
    }

    #[tokio::test]
    async fn a_key_is_handed_out_once_and_again_when_added_meanwhile() {
        let (_, q) = queue();
        q.add("a");
        q.add("a");
        q.add("b");
        assert_eq!(q.next().await, Some("a"));
        q.add("a");
        assert_eq!(q.next().await, Some("b"));
        assert!(q.is_empty(), "a waits for its worker");
        q.done(&"a");
        assert_eq!(q.next().await, Some("a"));
    }

    #[tokio::test]
    async fn a_queue_with_a_name_is_counted() {
        let ((_, queue), metrics) = (queue(), QueueMetrics::default());
        let mut registry = prometheus_client::registry::Registry::default();
        metrics.register(&mut registry);
        let page = || {
            let mut page = String::new();
            prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
            page
        };
        queue.add("early");
        queue.measured(&metrics, "q");
        queue.add("late");
        queue.add("late");
        let taken = queue.next().await.unwrap();
        queue.add(taken);
        queue.done(&taken);
        queue.add_rate_limited("again");
        let text = page();
        for line in [
            "adds_total{name=\"q\"} 3",
            "depth{name=\"q\"} 2",
            "retries_total{name=\"q\"} 1",
            "queue_duration_seconds_count{name=\"q\"} 1",
            "work_duration_seconds_count{name=\"q\"} 1",
        ] {
            assert!(text.contains(&format!("workqueue_{line}\n")), "{line} in {text}");
        }
        queue.close();
        assert!(page().contains("workqueue_depth{name=\"q\"} 0\n"), "{}", page());
    }

    #[tokio::test]
    async fn delayed_keys_come_at_the_earlier_of_two_times() {
        let (clock, q) = queue();
        q.add_after("a", Duration::from_secs(10));
        q.add_after("a", Duration::from_secs(5));
        q.add_after("a", Duration::from_secs(20));
        let waiter = tokio::spawn({
            let q = q.clone();
            async move { q.next().await }
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(4));
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        clock.advance(Duration::from_secs(1));
        assert_eq!(waiter.await.unwrap(), Some("a"));
        q.done(&"a");
        clock.advance(Duration::from_secs(60));
        q.add("b");
        assert_eq!(q.next().await, Some("b"), "the later times of a were dropped");
    }

    #[tokio::test]
    async fn failures_double_the_wait() {
        let (clock, q) = queue();
        for want in [5u64, 10, 20, 40] {
            q.add_rate_limited("a");
            let waiter = tokio::spawn({
                let q = q.clone();
                async move { q.next().await }
            });
            tokio::task::yield_now().await;
            clock.advance(Duration::from_millis(want - 1));
            tokio::task::yield_now().await;
            assert!(!waiter.is_finished(), "{want} ms");
            clock.advance(Duration::from_millis(1));
            assert_eq!(waiter.await.unwrap(), Some("a"));
            q.done(&"a");
        }
        assert_eq!(q.failures(&"a"), 4);
        q.forget(&"a");
        assert_eq!(q.failures(&"a"), 0);
    }

    #[tokio::test]
    async fn close_ends_every_worker() {
        let (_, q) = queue();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let q = q.clone();
                tokio::spawn(async move { q.next().await })
            })
            .collect();
        tokio::task::yield_now().await;
        q.close();
        for w in workers {
            assert_eq!(w.await.unwrap(), None);
        }
    }
}
