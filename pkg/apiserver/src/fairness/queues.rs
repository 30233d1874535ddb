//! The requests of one priority level: who runs, who waits, and who is next (KEP-1040, fair queuing for server requests).
//!
//! It is a state machine without a clock of its own: each call says what time it is. Fair queuing is by virtual time: a meter
//! (`progress`) runs as fast as each busy queue gets seats, and the request goes first that would be finished first if every
//! busy queue were served evenly.
//!
//! Invariants: what runs and what lingers has at most `limit` seats, but for one request that is wider than all of them, and
//! what ran already when the limit was lowered; while something waits, no request that is next and fits is left waiting; a
//! seat is given back once.

use super::demand::Integrator;
use super::seats::SeatSeconds;
use super::shard::{self, LARGEST_HAND};
use super::stats::FlowStats;
use slab::Slab;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// Time since any beginning.
pub type Moment = Duration;
/// A request that was taken in; its number is used again when it has ended.
pub type Id = usize;

/// How long a request is taken to run before it has.
const ESTIMATED: Duration = Duration::from_millis(3);

/// What a request is expected to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Seats while it runs.
    pub seats: u32,
    /// Seats for what goes on after it was answered, …
    pub final_seats: u32,
    /// … and for how long.
    pub lingering: Duration,
}

impl Work {
    pub const fn seats(seats: u32) -> Self {
        Work { seats, final_seats: 0, lingering: Duration::ZERO }
    }

    /// The seats that are kept from its start to its end.
    pub fn width(&self) -> u32 {
        self.seats.max(self.final_seats)
    }
}

/// What becomes of requests that find no seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discipline {
    /// Each finds one.
    Exempt,
    Reject,
    Queue {
        queues: usize,
        hand: usize,
        /// How many may wait in one queue.
        length: usize,
    },
}

/// A request that comes.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Of its flow: what deals it its queues.
    pub hash: u64,
    /// Which flow schema it came by: an index of [`Queues::flows`].
    pub flow: usize,
    pub work: Work,
    /// It is a watch, which has a seat only until it has begun.
    pub watch: bool,
}

/// Why a request is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    ConcurrencyLimit,
    QueueFull,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Waiting,
    Executing,
    /// Answered; its seats are kept for what it set going.
    Lingering,
}

/// A request, and what its owner keeps with it.
#[derive(Debug)]
pub struct Request<D> {
    /// Which flow schema it came by: an index of [`Queues::flows`].
    pub flow: usize,
    pub arrived: Moment,
    pub started: Moment,
    pub work: Work,
    pub state: State,
    /// `None`: it has never waited.
    pub queue: Option<usize>,
    pub detail: D,
    watch: bool,
    total: SeatSeconds,
    arrival: SeatSeconds,
}

#[derive(Debug, Default)]
pub struct Queue {
    pub waiting: VecDeque<Id>,
    /// Requests that execute.
    pub executing: u32,
    pub seats_in_use: u32,
    /// Where the meter stands when its next request starts, in the virtual world.
    pub next: SeatSeconds,
    waiting_work: SeatSeconds,
}

impl Queue {
    fn is_active(&self) -> bool {
        self.executing > 0 || !self.waiting.is_empty()
    }
}

/// Counts since the beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub dispatched: u64,
    pub rejected: u64,
    pub cancelled: u64,
}

/// See the module. `D`: what the owner keeps with each request.
#[derive(Debug)]
pub struct Queues<D> {
    pub queues: Vec<Queue>,
    pub flows: Vec<FlowStats>,
    pub tally: Tally,
    pub demand: Integrator,
    pub progress: SeatSeconds,
    pub limit: u32,
    discipline: Discipline,
    requests: Slab<Request<D>>,
    lingering: BinaryHeap<Reverse<(Moment, Id)>>,
    waiting: u32,
    executing: u32,
    seats_waiting: u32,
    seats_in_use: u32,
    /// Those of the seats in use that are not of any queue.
    seats_queueless: u32,
    active_queues: u32,
    last: Moment,
    robin: usize,
    /// The queue that a request has entered last.
    newest: usize,
    enqueued: usize,
    /// Started since they were last asked for, after having waited.
    started: Vec<Id>,
}

impl<D> Queues<D> {
    pub fn new(discipline: Discipline, limit: u32, now: Moment) -> Self {
        let mut all = Queues {
            queues: Vec::new(),
            flows: Vec::new(),
            tally: Tally::default(),
            demand: Integrator::new(now),
            progress: SeatSeconds::default(),
            limit,
            discipline,
            requests: Slab::new(),
            lingering: BinaryHeap::new(),
            waiting: 0,
            executing: 0,
            seats_waiting: 0,
            seats_in_use: 0,
            seats_queueless: 0,
            active_queues: 0,
            last: now,
            robin: 0,
            newest: 0,
            enqueued: 0,
            started: Vec::new(),
        };
        all.configure(discipline, limit, now);
        all
    }

    /// Changes the rules. Nobody who waits is sent away; queues that are too many are used up.
    pub fn configure(&mut self, discipline: Discipline, limit: u32, now: Moment) {
        self.advance(now);
        (self.discipline, self.limit) = (discipline, limit);
        let wanted = self.wanted_queues();
        if wanted > self.queues.len() {
            self.queues.resize_with(wanted, Queue::default);
        }
        self.shrink();
        self.dispatch();
    }

    fn wanted_queues(&self) -> usize {
        match self.discipline {
            Discipline::Queue { queues, .. } => queues,
            Discipline::Exempt | Discipline::Reject => 0,
        }
    }

    /// Drops queues that nobody is dealt any more, from the last one on: indexes stay what they are.
    fn shrink(&mut self) {
        let wanted = self.wanted_queues();
        let unused = |q: &Queue| !q.is_active() && q.seats_in_use == 0;
        while self.queues.len() > wanted && self.queues.last().is_some_and(unused) {
            self.queues.pop();
        }
    }

    pub fn is_idle(&self) -> bool {
        self.waiting == 0 && self.executing == 0
    }

    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    pub fn executing(&self) -> u32 {
        self.executing
    }

    #[cfg(test)]
    pub fn seats_in_use(&self) -> u32 {
        self.seats_in_use
    }

    pub fn request(&self, id: Id) -> Option<&Request<D>> {
        self.requests.get(id)
    }

    pub fn requests(&self) -> impl Iterator<Item = (Id, &Request<D>)> {
        self.requests.iter()
    }

    pub fn detail(&mut self, id: Id) -> Option<&mut D> {
        self.requests.get_mut(id).map(|r| &mut r.detail)
    }

    /// Those that waited and have started since this was last asked.
    pub fn take_started(&mut self) -> Vec<Id> {
        std::mem::take(&mut self.started)
    }

    /// When seats come free by themselves.
    pub fn next_release(&self) -> Option<Moment> {
        self.lingering.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes in what time has passed.
    pub fn advance(&mut self, now: Moment) {
        while let Some(Reverse((at, id))) = self.lingering.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.lingering.pop();
            self.tick(at);
            self.release(id);
            self.dispatch();
        }
        self.tick(now);
    }

    fn tick(&mut self, now: Moment) {
        let passed = now.saturating_sub(self.last);
        self.last = now.max(self.last);
        if self.active_queues > 0 {
            let wanted = self.seats_in_use - self.seats_queueless + self.seats_waiting;
            let rate = f64::from(wanted.min(self.limit)) / f64::from(self.active_queues);
            self.progress += SeatSeconds::of(rate, passed);
        }
    }

    /// Takes a request in, which then runs or waits.
    pub fn start(&mut self, now: Moment, arrival: Arrival, detail: D) -> Result<(Id, State), Refused> {
        self.advance(now);
        let Discipline::Queue { queues, hand, length } = self.discipline else {
            return self.start_at_once(arrival, detail);
        };
        let index = self.choose(arrival.hash, queues, hand);
        if self.seats_in_use >= self.limit && self.queues[index].waiting.len() >= length {
            return Err(self.refuse(arrival.flow, Refused::QueueFull));
        }
        let id = self.enqueue(index, arrival, detail);
        self.bound(index);
        self.dispatch();
        let state = self.requests[id].state;
        if state == State::Executing {
            // Its owner learns it from the answer.
            self.started.retain(|s| *s != id);
        }
        Ok((id, state))
    }

    fn start_at_once(&mut self, arrival: Arrival, detail: D) -> Result<(Id, State), Refused> {
        let width = arrival.work.width();
        if !self.fits(width) {
            return Err(self.refuse(arrival.flow, Refused::ConcurrencyLimit));
        }
        let id = self.insert(None, arrival, detail);
        self.seats_queueless += width;
        self.execute(id);
        Ok((id, State::Executing))
    }

    fn refuse(&mut self, flow: usize, why: Refused) -> Refused {
        self.tally.rejected += 1;
        self.flows[flow].refused(why);
        why
    }

    fn insert(&mut self, queue: Option<usize>, arrival: Arrival, detail: D) -> Id {
        let Arrival { flow, work, watch, .. } = arrival;
        self.flows[flow].seats.observe(f64::from(work.width()));
        let total = SeatSeconds::of(f64::from(work.seats), ESTIMATED)
            + SeatSeconds::of(f64::from(work.final_seats), work.lingering);
        let (arrived, arrival) = (self.last, self.progress);
        self.requests.insert(Request {
            flow,
            arrived,
            started: Moment::ZERO,
            work,
            state: State::Waiting,
            queue,
            detail,
            watch,
            total,
            arrival,
        })
    }

    /// The queue of the flow's hand where the least work waits. Where to begin to look goes round, so that flows whose hands
    /// overlap do not prefer the same queue.
    fn choose(&mut self, hash: u64, queues: usize, hand: usize) -> usize {
        let (cards, n) = shard::deal(hash, queues, hand.min(LARGEST_HAND));
        let offset = self.enqueued;
        self.enqueued = self.enqueued.wrapping_add(1);
        let in_turn = (0..n).map(|i| cards[(offset.wrapping_add(i)) % n]);
        in_turn.min_by_key(|i| self.queues[*i].waiting_work).unwrap_or_default()
    }

    fn enqueue(&mut self, index: usize, arrival: Arrival, detail: D) -> Id {
        let id = self.insert(Some(index), arrival, detail);
        let (width, total) = (arrival.work.width(), self.requests[id].total);
        let queue = &mut self.queues[index];
        if !queue.is_active() {
            queue.next = self.progress;
            self.active_queues += 1;
        }
        queue.waiting.push_back(id);
        queue.waiting_work += total;
        self.waiting += 1;
        self.seats_waiting += width;
        self.flows[arrival.flow].enqueued(width, queue.waiting.len());
        self.newest = index;
        self.note_demand();
        id
    }

    /// A queue that asks for less than its share does not save it up: nothing starts, in the virtual world, before it came.
    fn bound(&mut self, index: usize) {
        let Some(first) = self.queues[index].waiting.front() else { return };
        let arrival = self.requests[*first].arrival;
        let queue = &mut self.queues[index];
        queue.next = queue.next.max(arrival);
    }

    fn note_demand(&mut self) {
        self.demand.set(self.last, f64::from(self.seats_in_use + self.seats_waiting));
    }

    fn fits(&self, width: u32) -> bool {
        match self.discipline {
            Discipline::Exempt => true,
            // Wider than all seats: it runs alone.
            _ if width > self.limit => self.executing == 0,
            _ => self.seats_in_use + width <= self.limit,
        }
    }

    /// Starts whatever can be started.
    fn dispatch(&mut self) {
        while self.waiting > 0 && self.seats_in_use < self.limit {
            let Some(index) = self.next_queue() else { return };
            let Some(id) = self.queues[index].waiting.front().copied() else { return };
            if !self.fits(self.requests[id].work.width()) {
                let flow = self.requests[id].flow;
                self.flows[flow].no_accommodation += 1;
                return;
            }
            self.robin = index;
            self.leave_queue(index, 0);
            self.narrow(id);
            let request = &self.requests[id];
            let (width, total) = (request.work.width(), request.total);
            let queue = &mut self.queues[index];
            queue.next += total;
            queue.executing += 1;
            queue.seats_in_use += width;
            self.execute(id);
            self.started.push(id);
            self.bound(index);
        }
    }

    /// The queue whose first request would be finished first in the virtual world; of equals, the one after the last.
    fn next_queue(&self) -> Option<usize> {
        let n = self.queues.len();
        // As a rule nobody waits but the one that has just come.
        if self.queues.get(self.newest).is_some_and(|q| q.waiting.len() == self.waiting as usize) {
            return Some(self.newest);
        }
        let mut best: Option<(SeatSeconds, usize)> = None;
        for index in (1..=n).map(|i| (self.robin + i) % n) {
            let queue = &self.queues[index];
            let Some(first) = queue.waiting.front() else { continue };
            let finish = queue.next + self.requests[*first].total;
            if best.is_none_or(|(least, _)| finish < least) {
                best = Some((finish, index));
            }
        }
        best.map(|(_, index)| index)
    }

    /// Takes a request out of its queue, at this place of it.
    fn leave_queue(&mut self, index: usize, place: usize) {
        let Some(id) = self.queues[index].waiting.remove(place) else { return };
        let request = &self.requests[id];
        let width = request.work.width();
        self.queues[index].waiting_work -= request.total;
        self.waiting -= 1;
        self.seats_waiting -= width;
        self.flows[request.flow].left_queue(width);
    }

    /// What it sets going takes no more seats than there are: as much work, for longer.
    fn narrow(&mut self, id: Id) {
        let work = &mut self.requests[id].work;
        if work.final_seats > self.limit {
            let after = SeatSeconds::of(f64::from(work.final_seats), work.lingering);
            (work.final_seats, work.lingering) = (self.limit, after.spread_over(self.limit));
        }
    }

    fn execute(&mut self, id: Id) {
        let request = &mut self.requests[id];
        request.state = State::Executing;
        request.started = self.last;
        let width = request.work.width();
        self.executing += 1;
        self.seats_in_use += width;
        self.tally.dispatched += 1;
        let waited = request.queue.is_some().then(|| self.last.saturating_sub(request.arrived));
        self.flows[request.flow].started(width, waited);
        self.note_demand();
    }

    /// A request is answered, or does not want to wait any more.
    pub fn end(&mut self, now: Moment, id: Id) {
        self.advance(now);
        match self.requests.get(id).map(|r| r.state) {
            Some(State::Waiting) => self.cancel(id),
            Some(State::Executing) => self.finish(id),
            Some(State::Lingering) | None => return,
        }
        self.dispatch();
    }

    fn cancel(&mut self, id: Id) {
        let request = &self.requests[id];
        let Some(index) = request.queue else { return };
        let waited = self.last.saturating_sub(request.arrived);
        self.flows[request.flow].gave_up(waited);
        if let Some(place) = self.queues[index].waiting.iter().position(|w| *w == id) {
            self.leave_queue(index, place);
        }
        self.requests.remove(id);
        self.tally.rejected += 1;
        self.tally.cancelled += 1;
        if !self.queues[index].is_active() {
            self.active_queues -= 1;
        }
        self.bound(index);
        self.note_demand();
        self.shrink();
    }

    fn finish(&mut self, id: Id) {
        let now = self.last;
        let request = &mut self.requests[id];
        let (work, queue, flow, watch) = (request.work, request.queue, request.flow, request.watch);
        let took = now.saturating_sub(request.started);
        request.state = State::Lingering;
        self.executing -= 1;
        self.flows[flow].finished(took, watch);
        if let Some(index) = queue {
            let queue = &mut self.queues[index];
            queue.executing -= 1;
            // It was charged with an estimate when it started.
            queue.next += SeatSeconds::of(f64::from(work.seats), took);
            queue.next -= SeatSeconds::of(f64::from(work.seats), ESTIMATED);
            if !queue.is_active() {
                self.active_queues -= 1;
            }
            self.bound(index);
        }
        if work.lingering.is_zero() {
            self.release(id);
        } else {
            self.lingering.push(Reverse((now + work.lingering, id)));
        }
    }

    /// Gives the seats of an answered request back.
    fn release(&mut self, id: Id) {
        let Some(request) = self.requests.try_remove(id) else { return };
        let width = request.work.width();
        self.seats_in_use -= width;
        self.flows[request.flow].released(width);
        match request.queue {
            Some(index) => self.queues[index].seats_in_use -= width,
            None => self.seats_queueless -= width,
        }
        self.note_demand();
        self.shrink();
    }

    pub fn queue_sums(&self, index: usize) -> (u32, u32, SeatSeconds) {
        let queue = &self.queues[index];
        let works = queue.waiting.iter().map(|id| self.requests[*id].work);
        let (seats, widths) = works.fold((0, 0), |(s, w), work| (s + work.seats, w + work.width()));
        (seats, widths, queue.waiting_work)
    }
}

#[cfg(test)]
#[path = "queues_tests.rs"]
mod tests;
