//! How long the rules of custom resources take, for who shows it (`apiserver_cel_*_duration_seconds`). As upstream's, these are
//! the process's: schemas are compiled and rules judged in many places.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Prometheus' own, in seconds.
pub const BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Compiling the rules of one place of a schema.
pub static COMPILATION: Timing = Timing::new();
/// Judging a value, with all that is in it, by the rules of its schema.
pub static EVALUATION: Timing = Timing::new();

/// A histogram.
pub struct Timing {
    /// How many took no longer than a bound and longer than the one before; the last ones are above all.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

/// Something that is being timed, until it is dropped.
pub struct Timed {
    by: &'static Timing,
    began: Instant,
}

impl Timing {
    const fn new() -> Self {
        Timing { counts: [const { AtomicU64::new(0) }; BOUNDS.len() + 1], nanoseconds: AtomicU64::new(0) }
    }

    pub fn start(&'static self) -> Timed {
        Timed { by: self, began: Instant::now() }
    }

    fn observe(&self, took: Duration) {
        let place = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(BOUNDS.len());
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// One for each bound, and one for what is above.
    pub fn counts(&self) -> [u64; BOUNDS.len() + 1] {
        std::array::from_fn(|i| self.counts[i].load(Ordering::Relaxed))
    }

    pub fn seconds(&self) -> f64 {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)).as_secs_f64()
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.by.observe(self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_sorted_by_bounds() {
        let timing = Timing::new();
        for millis in [5, 6, 900, 60_000] {
            timing.observe(Duration::from_millis(millis));
        }
        assert_eq!(timing.counts(), [1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(timing.seconds(), 60.911);
    }
}
