//! What `/metrics` tells of the requests of one flow schema in one priority level. They change under the level's lock, so they
//! are plain numbers.

use super::queues::Refused;
use std::sync::Arc;
use std::time::Duration;

/// Upstream's buckets.
const SECONDS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
const LENGTHS: [f64; 8] = [0.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];
const SEATS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0];
const WATCHES: [f64; 6] = [0.0, 1.0, 10.0, 100.0, 1000.0, 10000.0];

/// How many observations were at most how much.
#[derive(Clone, Debug)]
pub struct Histogram {
    pub bounds: &'static [f64],
    /// Not cumulative; the last is of what is above all bounds.
    pub counts: Vec<u64>,
    pub sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Histogram { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    pub fn observe(&mut self, value: f64) {
        let bucket = self.bounds.iter().position(|b| value <= *b).unwrap_or(self.bounds.len());
        self.counts[bucket] += 1;
        self.sum += value;
    }

    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|n| *n == 0)
    }
}

#[derive(Clone, Debug)]
pub struct FlowStats {
    pub schema: Arc<str>,
    pub dispatched: u64,
    pub rejected_limit: u64,
    pub rejected_full: u64,
    pub rejected_late: u64,
    pub no_accommodation: u64,
    pub executing: u32,
    pub seats_executing: u32,
    pub waiting: u32,
    pub seats_waiting: u32,
    pub waited: Histogram,
    pub waited_in_vain: Histogram,
    pub executed: Histogram,
    pub watches_begun: Histogram,
    pub lengths: Histogram,
    pub seats: Histogram,
    pub watchers: Histogram,
}

impl FlowStats {
    pub fn new(schema: Arc<str>) -> Self {
        FlowStats {
            schema,
            dispatched: 0,
            rejected_limit: 0,
            rejected_full: 0,
            rejected_late: 0,
            no_accommodation: 0,
            executing: 0,
            seats_executing: 0,
            waiting: 0,
            seats_waiting: 0,
            waited: Histogram::new(&SECONDS),
            waited_in_vain: Histogram::new(&SECONDS),
            executed: Histogram::new(&SECONDS),
            watches_begun: Histogram::new(&SECONDS),
            lengths: Histogram::new(&LENGTHS),
            seats: Histogram::new(&SEATS),
            watchers: Histogram::new(&WATCHES),
        }
    }

    pub fn refused(&mut self, why: Refused) {
        match why {
            Refused::ConcurrencyLimit => self.rejected_limit += 1,
            Refused::QueueFull => self.rejected_full += 1,
        }
        self.waited_in_vain.observe(0.0);
    }

    /// `length`: of the queue that it stands in now.
    pub fn enqueued(&mut self, width: u32, length: usize) {
        self.waiting += 1;
        self.seats_waiting += width;
        self.lengths.observe(length as f64);
    }

    pub fn left_queue(&mut self, width: u32) {
        self.waiting -= 1;
        self.seats_waiting -= width;
    }

    pub fn gave_up(&mut self, waited: Duration) {
        self.rejected_late += 1;
        self.waited_in_vain.observe(waited.as_secs_f64());
    }

    /// `waited`: `None` for what is never held up.
    pub fn started(&mut self, width: u32, waited: Option<Duration>) {
        self.dispatched += 1;
        self.executing += 1;
        self.seats_executing += width;
        if let Some(waited) = waited {
            self.waited.observe(waited.as_secs_f64());
        }
    }

    pub fn finished(&mut self, took: Duration, watch: bool) {
        self.executing -= 1;
        let which = if watch { &mut self.watches_begun } else { &mut self.executed };
        which.observe(took.as_secs_f64());
    }

    pub fn released(&mut self, width: u32) {
        self.seats_executing -= width;
    }
}
