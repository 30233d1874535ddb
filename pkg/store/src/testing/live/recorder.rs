//! What all clients together asked and were told.

use super::{DURABLE, EPHEMERAL};
use crate::testing::clients::{SECOND, Wishes};
use crate::testing::convert;
use crate::*;
use isopod_base::clock::Clock;
use isopod_history::{
    self as seen, Answer, Epoch, Get, History, Keys, Operation, Outcome, Request, Step, Time, WatchLog,
};
use jiff::Timestamp;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

pub(crate) struct Recorder {
    clock: Clock,
    began: Timestamp,
    wishes: Mutex<Wishes>,
    history: Mutex<History>,
    /// The newest revision that anybody heard of.
    newest: AtomicI64,
    /// Before these revisions the witnesses of durable and of ephemeral keys have seen everything.
    pub witnessed: [AtomicI64; 2],
    /// A failover has lost what is after the first one; the history goes on after the second one.
    lost: Mutex<Option<(Revision, Revision)>>,
    pub may_compact: AtomicBool,
}

impl Recorder {
    /// `ttl`: of every lease, in seconds.
    pub fn new(seed: u64, clock: Clock, ttl: u64) -> Self {
        let wishes = Wishes {
            rng: StdRng::seed_from_u64(seed),
            ephemeral: true,
            values: 0,
            ttl,
            last_lease: 0,
            heard: Default::default(),
        };
        let clock = clock.steady();
        Recorder {
            began: clock.now(),
            clock,
            wishes: Mutex::new(wishes),
            history: Mutex::new(History { base: 1, alone: true, ..History::default() }),
            newest: AtomicI64::new(1),
            witnessed: [AtomicI64::new(2), AtomicI64::new(2)],
            lost: Mutex::new(None),
            may_compact: AtomicBool::new(true),
        }
    }

    /// Time goes on whenever somebody looks, so that what happened one after another has times in that order.
    pub fn now(&self) -> Time {
        self.clock.advance(Duration::from_micros(1));
        self.clock.now().duration_since(self.began).as_nanos() as Time
    }

    pub fn heard(&self, revision: Revision) {
        self.newest.fetch_max(revision, Ordering::SeqCst);
    }

    pub fn newest(&self) -> Revision {
        self.newest.load(Ordering::SeqCst)
    }

    pub fn lose(&self, base: Revision, first: Revision) {
        *self.lost.lock() = Some((base, first));
    }

    /// From where the witness of that class goes on. What was lost it has seen and has to forget, however late a server that
    /// has not heard of the failover yet tells it that there is nothing new.
    pub fn resume(&self, class: usize) -> Revision {
        let next = self.witnessed[class].load(Ordering::SeqCst);
        match *self.lost.lock() {
            Some((base, first)) if next > base && next <= first => base + 1,
            _ => next,
        }
    }

    fn witnessed(&self) -> Revision {
        self.witnessed.iter().map(|w| w.load(Ordering::SeqCst)).min().unwrap_or(0)
    }

    pub fn watch(&self, log: WatchLog) {
        self.history.lock().watches.push(log);
    }

    pub fn take(&self) -> History {
        std::mem::take(&mut *self.history.lock())
    }

    /// A process has started: what is left of the ephemeral keys? Nobody else asks the store yet.
    pub async fn begin_epoch(&self, store: &dyn Store, clean: impl FnOnce(Revision) -> bool) -> Result<()> {
        let (revision, _) = store.revisions().await?;
        let left = store.range(RangeRequest::new(KeyRange::prefix(EPHEMERAL))).await?;
        let epoch = Epoch {
            at: self.now(),
            revision,
            clean: clean(revision),
            prefixes: vec![EPHEMERAL.to_owned()],
            left: left.kvs.iter().map(convert::kv).collect(),
        };
        self.history.lock().epochs.push(epoch);
        // Not `heard`: what a broken store has lost nobody waits for.
        self.newest.store(revision, Ordering::SeqCst);
        // The history of ephemeral keys begins anew.
        self.witnessed[1].store(revision + 1, Ordering::SeqCst);
        Ok(())
    }

    /// Asks for one thing after another while `goes_on`.
    pub async fn client(&self, store: &dyn Store, client: u32, most: usize, goes_on: impl Fn() -> bool) {
        for _ in 0..most {
            if !goes_on() {
                return;
            }
            let request = {
                let mut wishes = self.wishes.lock();
                match wishes.rng.random_range(0..100) {
                    0..30 => Request::Get(wishes.read(self.newest())),
                    _ => wishes.request(self.newest()),
                }
            };
            // The witnesses must be able to go on from where they are.
            let may = |through| self.may_compact.load(Ordering::SeqCst) && through <= self.witnessed();
            if matches!(request, Request::Compact { revision } if !may(revision)) {
                continue;
            }
            self.ask(store, client, request).await;
            self.time_passes();
        }
    }

    fn time_passes(&self) {
        let by = match self.wishes.lock().rng.random_range(0..300) {
            0 => 301_000,
            1..10 => 2500,
            10..40 => 100,
            _ => return,
        };
        self.clock.advance(Duration::from_millis(by));
    }

    pub async fn ask(&self, store: &dyn Store, client: u32, request: Request) -> Outcome {
        let invoked = self.now();
        let answer = send(store, &request).await;
        let returned = self.now();
        let outcome = match answer {
            Err(StoreError::Unavailable { .. } | StoreError::Backend { .. } | StoreError::Closed) => Outcome::Unknown,
            told => convert::outcome(told),
        };
        if let Outcome::Answered(answer) = &outcome {
            self.hear(answer);
        }
        // A read that was not answered says nothing.
        if outcome != Outcome::Unknown || !matches!(request, Request::Get(_)) {
            let outcome = outcome.clone();
            self.history.lock().operations.push(Operation { client, invoked, returned, request, outcome });
        }
        outcome
    }

    fn hear(&self, answer: &Answer) {
        self.heard(answer.revision());
        if let Answer::Get { found, .. } = answer {
            let heard = &mut self.wishes.lock().heard;
            heard.extend(found.kvs.iter().map(|kv| (kv.key.clone(), kv.modified)));
        }
    }

    /// A write to each class, which the witnesses must see, and a look at everything.
    pub async fn last_writes(&self, store: &dyn Store) {
        for prefix in [DURABLE, EPHEMERAL] {
            let step = Step::Put { key: format!("{prefix}end"), value: "end".into(), lease: 0, prev: true };
            self.ask(store, 0, Request::Txn(seen::Txn::of(vec![step]))).await;
            self.ask(store, 0, Request::Get(Get::newest(Keys::prefix(prefix)))).await;
        }
    }
}

/// Panics with what the checker found.
pub(crate) fn judge(what: &str, seed: u64, history: &History) -> seen::Summary {
    match seen::check(history) {
        Ok(summary) => summary,
        Err(violation) => panic!("{what}: seed {seed}\n{}", seen::report(history, &violation)),
    }
}

async fn send(store: &dyn Store, request: &Request) -> Result<Answer> {
    // 0: it is not said.
    let done = |_| Answer::Done { revision: 0 };
    match request {
        Request::Get(get) => {
            let answer = store.range(convert::get(get)).await?;
            Ok(Answer::Get { revision: answer.revision, found: convert::found(&answer) })
        }
        Request::Txn(txn) => store.txn(convert::txn(txn)).await.map(convert::txn_answer),
        Request::Grant { lease, ttl, durable } => {
            let seconds = (ttl / SECOND) as i64;
            let granted = match durable {
                true => store.lease_grant(*lease, seconds).await,
                false => store.lease_grant_ephemeral(*lease, seconds).await,
            };
            granted.map(|_| done(()))
        }
        Request::Revoke { lease } => store.lease_revoke(*lease).await.map(done),
        Request::KeepAlive { lease } => store.lease_keep_alive(*lease).await.map(|_| done(())),
        Request::Compact { revision } => store.compact(*revision).await.map(done),
    }
}
