//! The seeded scheduler: who does the next step, and what goes wrong.

use super::clients::{SECOND, TTL, Wishes};
use super::convert;
use super::disk::{Disk, Reader};
use super::faults::{Fault, Faults, Faulty, Mischief};
use super::watchers::{Watched, Watcher};
use crate::machine::{Machine, Shared};
use crate::*;
use isopod_base::clock::Clock;
use isopod_history::{self as seen, History, Outcome, Request, Time, Violation};
use jiff::Timestamp;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

const CLIENTS: usize = 5;
const WATCHERS: usize = 5;
/// Small, so that slow watchers fall behind.
const BUFFER: usize = 12;

/// What happened over all seeds: a simulation that no longer does something must not pass for one that finds no fault in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub crashes: usize,
    pub restarts: usize,
    pub failed_commits: usize,
    pub unknown: usize,
    pub happened: usize,
    pub compacted_watches: usize,
    pub overruns: usize,
    pub lease_ends: usize,
    pub probes: usize,
    pub epochs: usize,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.crashes += other.crashes;
        self.restarts += other.restarts;
        self.failed_commits += other.failed_commits;
        self.unknown += other.unknown;
        self.happened += other.happened;
        self.compacted_watches += other.compacted_watches;
        self.overruns += other.overruns;
        self.lease_ends += other.lease_ends;
        self.probes += other.probes;
        self.epochs += other.epochs;
    }

    pub fn must_show_everything(&self, ephemeral: bool) {
        println!("{self:?}");
        let Counts { crashes, restarts, failed_commits, unknown, happened, .. } = *self;
        // One seed alone is replayed.
        if std::env::var_os("ISOPOD_SIM_SEED").is_some() {
            return;
        }
        assert!(crashes > 100 && restarts > 50 && failed_commits > 100, "{self:?}");
        assert!(unknown > 100 && happened > 20 && happened < unknown, "{self:?}");
        assert!(
            self.compacted_watches > 20 && self.overruns > 5 && self.lease_ends > 50 && self.probes > 1000,
            "{self:?}"
        );
        assert_eq!(self.epochs > 50, ephemeral, "{self:?}");
    }
}

struct Running<B> {
    machine: Machine<Faulty<B>>,
    shared: Arc<Shared>,
    reader: Arc<dyn Reader>,
}

enum Client {
    Idle,
    /// In the queue, or being served.
    Waiting(Time, Request),
    /// Served; the answer is on its way.
    Served(Time, Request, Outcome),
}

pub(crate) struct World<D: Disk> {
    rng: StdRng,
    wishes: Wishes,
    clock: Clock,
    began: Timestamp,
    disk: D,
    options: Options,
    mischief: Option<Mischief>,
    running: Option<Running<D::Backend>>,
    faults: Arc<Mutex<Faults>>,
    runtime: Runtime,
    clients: Vec<Client>,
    queue: VecDeque<usize>,
    watchers: Vec<Watcher>,
    probed: Arc<Mutex<Vec<(seen::Get, Outcome)>>>,
    pub history: History,
    pub counts: Counts,
}

impl<D: Disk> World<D> {
    pub fn new(disk: D, seed: u64, mischief: Option<Mischief>) -> Self {
        let began = Timestamp::UNIX_EPOCH;
        let clock = Clock::fake(began);
        let index_rows = 1 + (seed % 40) as usize;
        // For none of the newest rows, for the shorter ones, for all.
        let cache_bytes = [0, 12_800 + 64 * (seed % 10) as usize, 4 << 20][(seed % 3) as usize];
        let ephemeral: Vec<bytes::Bytes> =
            D::EPHEMERAL.iter().map(|p| bytes::Bytes::from_static(p.as_bytes())).collect();
        let wishes = Wishes {
            rng: StdRng::seed_from_u64(seed ^ 0x9e37_79b9),
            ephemeral: !ephemeral.is_empty(),
            values: 0,
            ttl: TTL,
            last_lease: 0,
            heard: Default::default(),
        };
        let mut watchers = vec![Watcher::new(seen::Keys::prefix("d/"), 2, true)];
        watchers.extend(D::EPHEMERAL.iter().map(|p| Watcher::new(seen::Keys::prefix(p), 2, true)));
        World {
            rng: StdRng::seed_from_u64(seed),
            wishes,
            options: Options {
                ephemeral,
                clock: clock.clone(),
                watch_buffer: BUFFER,
                index_rows,
                cache_bytes,
                ..Options::default()
            },
            clock,
            began,
            disk,
            mischief,
            running: None,
            faults: Arc::default(),
            runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
            clients: (0..CLIENTS).map(|_| Client::Idle).collect(),
            queue: VecDeque::new(),
            watchers,
            probed: Arc::default(),
            history: History { base: 1, alone: true, ..History::default() },
            counts: Counts::default(),
        }
    }

    pub fn run(&mut self, steps: usize) -> Result<(), Violation> {
        self.start(None);
        for _ in 0..steps {
            self.clock.advance(Duration::from_millis(1));
            self.step();
            self.drain_witnesses();
        }
        self.finish();
        let summary = seen::check(&self.history)?;
        self.counts.unknown += summary.unknown;
        self.counts.happened += summary.happened;
        let notes = || self.history.watches.iter().flat_map(|w| &w.notes);
        self.counts.compacted_watches += notes().filter(|(_, n)| matches!(n, seen::Note::Compacted(_))).count();
        let overrun = |n: &seen::Note| matches!(n, seen::Note::Ended(e) if e.contains("too far behind"));
        self.counts.overruns += notes().filter(|(_, n)| overrun(n)).count();
        Ok(())
    }

    fn now(&self) -> Time {
        self.clock.now().duration_since(self.began).as_nanos() as Time
    }

    fn newest(&self) -> Revision {
        self.running.as_ref().map_or(1, |r| r.shared.hub.published())
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..=29 => self.client_steps(),
            30..=49 => self.serve(),
            50..=64 => self.read(),
            65..=84 => self.watcher_steps(),
            85..=88 => self.runtime.block_on(tokio::task::yield_now()),
            89..=91 => self.time_passes(),
            92..=95 => {
                if let Some(running) = &mut self.running {
                    self.disk.idle(&mut running.machine.backend.inner, running.machine.revision);
                }
            }
            96..=97 => {
                let all = [Fault::AppendFails, Fault::CommitFails, Fault::CrashBeforeCommit, Fault::CrashAfterCommit];
                self.faults.lock().next = Some(all[self.rng.random_range(0..all.len())]);
            }
            98 if self.rng.random_bool(0.3) => self.crash(),
            98 => {}
            _ if self.rng.random_bool(0.3) => self.restart(),
            _ => {}
        }
    }

    // -- the process

    /// `clean`: how the process before it ended; `None`: there was none.
    fn start(&mut self, clean: Option<bool>) {
        let started = self.disk.start(&self.options);
        let shared = Shared::new(self.options.clone(), started.revision, started.compacted, started.leases);
        let reader = self.disk.reader(&started.backend, &shared);
        let (faults, hub) = (Arc::clone(&self.faults), Some(Arc::clone(&shared.hub)));
        let backend = Faulty { inner: started.backend, faults, mischief: self.mischief, hub, dead: false };
        let machine = Machine { backend, revision: started.revision, shared: Arc::clone(&shared) };
        *self.faults.lock() = Faults::default();
        self.running = Some(Running { machine, shared, reader });
        if !D::EPHEMERAL.is_empty() {
            // Before the first start nothing was missing.
            self.begin_epoch(started.revision, clean.unwrap_or(true));
        }
        self.catch_up_witnesses();
    }

    fn begin_epoch(&mut self, revision: Revision, clean: bool) {
        let Some(running) = &self.running else { return };
        let read = |p: &&str| running.reader.range(&RangeRequest::new(KeyRange::prefix(p.as_bytes().to_vec())));
        let found = D::EPHEMERAL.iter().map(|p| read(p).expect("the newest state can be read"));
        let left = found.flat_map(|r| r.kvs.iter().map(convert::kv).collect::<Vec<_>>()).collect();
        let prefixes = D::EPHEMERAL.iter().map(|p| (*p).to_owned()).collect();
        self.history.epochs.push(seen::Epoch { at: self.now(), revision, clean, prefixes, left });
        self.counts.epochs += usize::from(!clean);
        // What went before is known; the witness of ephemeral keys begins anew.
        for watcher in self.watchers.iter_mut().skip(1).filter(|w| w.witness) {
            watcher.next = revision + 1;
        }
    }

    /// What the process had not told by then, nobody will hear.
    fn crash(&mut self) {
        self.drain_witnesses();
        for i in 0..self.clients.len() {
            match std::mem::replace(&mut self.clients[i], Client::Idle) {
                Client::Idle => {}
                Client::Waiting(invoked, request) | Client::Served(invoked, request, _) => {
                    self.note(i, invoked, request, Outcome::Unknown);
                }
            }
        }
        self.queue.clear();
        self.counts.crashes += 1;
        let Some(running) = self.end_process() else { return };
        self.disk.crash(running.machine.backend.inner);
        self.start(Some(false));
    }

    /// In order: what waits is refused.
    fn restart(&mut self) {
        self.drain_witnesses();
        while let Some(i) = self.queue.pop_front() {
            let refused = Outcome::Refused(seen::Refusal::Other("the store is closed".into()));
            self.served(i, refused);
        }
        self.counts.restarts += 1;
        let Some(running) = self.end_process() else { return };
        let newest = running.machine.revision;
        self.disk.end(running.machine.backend.inner, newest);
        self.start(Some(true));
    }

    fn end_process(&mut self) -> Option<Running<D::Backend>> {
        let (mut store, watchers) = self.watched()?;
        for watcher in watchers {
            watcher.lose(&mut store);
        }
        let running = self.running.take()?;
        self.faults.lock().probe = None;
        running.shared.hub.close();
        Some(running)
    }

    // -- clients

    fn note(&mut self, client: usize, invoked: Time, request: Request, outcome: Outcome) {
        let returned = self.now();
        self.history.operations.push(seen::Operation { client: client as u32, invoked, returned, request, outcome });
    }

    fn client_steps(&mut self) {
        let i = self.rng.random_range(0..self.clients.len());
        match std::mem::replace(&mut self.clients[i], Client::Idle) {
            Client::Idle => {
                let request = self.wishes.request(self.newest());
                self.ask(i, request);
            }
            Client::Served(invoked, request, outcome) => {
                self.hear(&outcome);
                self.note(i, invoked, request, outcome);
            }
            waiting @ Client::Waiting(..) => self.clients[i] = waiting,
        }
    }

    fn ask(&mut self, i: usize, request: Request) {
        match request {
            Request::KeepAlive { lease } => {
                let Some(running) = &self.running else { return };
                let revision = self.newest();
                let answer = running.shared.keep_alive(lease).map(|_| seen::Answer::Done { revision });
                self.note(i, self.now(), Request::KeepAlive { lease }, convert::outcome(answer));
            }
            // The witnesses must be able to go on from where they are.
            Request::Compact { revision } if self.witnessed() < revision => {}
            request => {
                self.clients[i] = Client::Waiting(self.now(), request);
                self.queue.push_back(i);
            }
        }
    }

    fn witnessed(&self) -> Revision {
        self.watchers.iter().filter(|w| w.witness).map(|w| w.next).min().unwrap_or(0)
    }

    /// Clients remember revisions, to compare with them later.
    fn hear(&mut self, outcome: &Outcome) {
        if let Outcome::Answered(seen::Answer::Get { found, .. }) = outcome {
            for kv in &found.kvs {
                self.wishes.heard.insert(kv.key.clone(), kv.modified);
            }
        }
    }

    fn served(&mut self, i: usize, outcome: Outcome) {
        if let Client::Waiting(invoked, request) = std::mem::replace(&mut self.clients[i], Client::Idle) {
            self.clients[i] = Client::Served(invoked, request, outcome);
        }
    }

    /// A batch of the writer: transactions together, anything else alone.
    fn serve(&mut self) {
        let most = self.rng.random_range(1..6);
        let mut batch: Vec<(usize, Txn)> = Vec::new();
        while let Some(i) = self.queue.front().copied().filter(|_| batch.len() < most) {
            let Client::Waiting(_, request) = &self.clients[i] else { panic!("it waits") };
            match request {
                Request::Txn(txn) => batch.push((i, convert::txn(txn))),
                _ if batch.is_empty() => {
                    self.queue.pop_front();
                    return self.serve_alone(i);
                }
                _ => break,
            }
            self.queue.pop_front();
        }
        if batch.is_empty() {
            return;
        }
        self.set_probe();
        let Some(running) = &mut self.running else { return };
        let (who, txns): (Vec<usize>, Vec<Txn>) = batch.into_iter().unzip();
        let answers = running.machine.run(&txns);
        self.after_commit();
        if self.faults.lock().crashed {
            return self.crash();
        }
        self.counts.failed_commits += usize::from(answers.iter().any(|a| matches!(a, Err(StoreError::NoSpace))));
        for (i, answer) in who.into_iter().zip(answers) {
            self.served(i, convert::outcome(answer.map(convert::txn_answer)));
        }
    }

    fn serve_alone(&mut self, i: usize) {
        let Client::Waiting(_, request) = &self.clients[i] else { return };
        let request = request.clone();
        self.set_probe();
        let Some(running) = &mut self.running else { return };
        let machine = &mut running.machine;
        let done = match request {
            Request::Grant { lease, ttl, durable } => {
                let durability = if durable { Durability::Durable } else { Durability::Ephemeral };
                machine.grant(lease, (ttl / SECOND) as i64, durability).map(|_| ())
            }
            Request::Revoke { lease } => machine.revoke(lease),
            Request::Compact { revision } => machine.compact(revision),
            other => panic!("{other:?} is not served alone"),
        };
        self.after_commit();
        if self.faults.lock().crashed {
            return self.crash();
        }
        let revision = self.newest();
        self.served(i, convert::outcome(done.map(|()| seen::Answer::Done { revision })));
    }

    /// Time goes on by milliseconds, or jumps; then leases end.
    fn time_passes(&mut self) {
        let by = [50, 500, 2000, 60_000, 4_000_000][self.rng.random_range(0..5)];
        self.clock.advance(Duration::from_millis(by));
        self.set_probe();
        let Some(running) = &mut self.running else { return };
        let ended = running.shared.leases.lock().expired(self.clock.now());
        self.counts.lease_ends += ended.len();
        running.machine.expire(&ended);
        self.after_commit();
        if self.faults.lock().crashed {
            self.crash();
        }
    }

    // -- reads

    fn read(&mut self) {
        let get = self.wishes.read(self.newest());
        let Some(running) = &self.running else { return };
        let outcome = read(&running.reader, &get);
        self.hear(&outcome);
        self.note(CLIENTS, self.now(), Request::Get(get), outcome);
    }

    /// Reads, and wishes for progress, in the midst of the next commit.
    fn set_probe(&mut self) {
        let get = self.wishes.read(self.newest());
        let Some(running) = &self.running else { return };
        let (reader, probed) = (Arc::clone(&running.reader), Arc::clone(&self.probed));
        let wishes: Vec<_> = self.watchers.iter().filter_map(Watcher::ask_for_progress).collect();
        let wish = wishes.get(self.rng.random_range(0..WATCHERS + 2)).cloned();
        let probe = Arc::new(move || {
            probed.lock().push((get.clone(), read(&reader, &get)));
            if let Some(wish) = &wish {
                wish();
            }
        });
        self.faults.lock().probe = Some(probe);
    }

    fn after_commit(&mut self) {
        self.faults.lock().probe = None;
        let probed = std::mem::take(&mut *self.probed.lock());
        self.counts.probes += probed.len();
        for (get, outcome) in probed {
            self.note(CLIENTS + 1, self.now(), Request::Get(get), outcome);
        }
    }

    // -- watchers

    fn watched(&mut self) -> Option<(Watched<'_>, &mut Vec<Watcher>)> {
        let now = self.now();
        let running = self.running.as_ref()?;
        let (shared, reader, runtime) = (&running.shared, &running.reader, &self.runtime);
        Some((Watched { shared, reader, runtime, now, history: &mut self.history }, &mut self.watchers))
    }

    fn watcher_steps(&mut self) {
        if self.watchers.len() < WATCHERS + 2 && self.rng.random_bool(0.3) {
            let past = (self.newest() - self.rng.random_range(-2..20)).max(1);
            let start = if self.rng.random_bool(0.5) { 0 } else { past };
            let keys = self.wishes.keys();
            self.watchers.push(Watcher::new(keys, start, false));
        }
        let i = self.rng.random_range(0..self.watchers.len());
        let (choice, count) = (self.rng.random_range(0..20), self.rng.random_range(1..5));
        let Some((mut store, watchers)) = self.watched() else { return };
        let watcher = &mut watchers[i];
        if watcher.witness {
            return;
        }
        match choice {
            _ if !watcher.is_open() => watcher.open(&mut store),
            0 => watcher.lose(&mut store),
            1..=3 => {
                if let Some(ask) = watcher.ask_for_progress() {
                    ask();
                }
            }
            // One of them is slow.
            _ if i % 4 == 3 && choice > 5 => {}
            _ => {
                for _ in 0..count {
                    watcher.receive(&mut store);
                }
            }
        }
    }

    fn drain_witnesses(&mut self) {
        let newest = self.newest();
        let Some((mut store, watchers)) = self.watched() else { return };
        for watcher in watchers.iter_mut().filter(|w| w.witness) {
            while watcher.receive(&mut store) {}
            if !watcher.is_open() {
                watcher.catch_up(&mut store, newest);
            }
        }
    }

    fn catch_up_witnesses(&mut self) {
        let newest = self.newest();
        let Some((mut store, watchers)) = self.watched() else { return };
        for watcher in watchers.iter_mut().filter(|w| w.witness) {
            watcher.catch_up(&mut store, newest);
        }
    }

    /// All that is on its way ends; a last write that everybody sees; a last look at everything.
    fn finish(&mut self) {
        *self.faults.lock() = Faults::default();
        if self.rng.random_bool(0.5) {
            self.crash();
        }
        self.clock.advance(Duration::from_millis(1));
        while !self.queue.is_empty() {
            self.serve();
            self.drain_witnesses();
        }
        self.clock.advance(Duration::from_millis(1));
        for i in 0..self.clients.len() {
            if let Client::Served(invoked, request, outcome) = std::mem::replace(&mut self.clients[i], Client::Idle) {
                self.note(i, invoked, request, outcome);
            }
        }
        let put = seen::Step::Put { key: "d/end".into(), value: "end".into(), lease: 0, prev: false };
        self.clock.advance(Duration::from_millis(1));
        self.ask(0, Request::Txn(seen::Txn::of(vec![put])));
        self.serve();
        self.client_hears(0);
        self.catch_up_witnesses();
        self.clock.advance(Duration::from_millis(1));
        let Some(running) = &self.running else { return };
        let get = seen::Get::newest(seen::Keys::From(String::new()));
        let outcome = read(&running.reader, &get);
        self.note(CLIENTS, self.now(), Request::Get(get), outcome);
        let newest = self.newest();
        let Some((mut store, watchers)) = self.watched() else { return };
        for watcher in watchers.iter_mut().filter(|w| w.is_open()) {
            watcher.catch_up(&mut store, newest);
        }
        self.end_process();
    }

    fn client_hears(&mut self, i: usize) {
        if let Client::Served(invoked, request, outcome) = std::mem::replace(&mut self.clients[i], Client::Idle) {
            self.note(i, invoked, request, outcome);
        }
    }
}

fn read(reader: &Arc<dyn Reader>, get: &seen::Get) -> Outcome {
    let answer = reader.range(&convert::get(get));
    convert::outcome(answer.map(|r| seen::Answer::Get { revision: r.revision, found: convert::found(&r) }))
}
