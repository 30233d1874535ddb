//! Quantiles of the last five hours, each within two percent: counts by logarithm, an hour each.

use super::step_labels;
use super::times::{COMBINATIONS, combinations, place};
use crate::admission::{Operation, Step};
use crate::exposition::Family;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const HOURS: usize = 5;
const HOUR: u64 = 3600;
const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];
/// A count is of values up to so many times as large as those of the one before.
const RATIO: f64 = 1.04;

#[derive(Default)]
struct Summary {
    /// Which hour each of `counts` is of.
    hours: [u64; HOURS],
    counts: [BTreeMap<i32, u64>; HOURS],
    sum: f64,
    count: u64,
}

impl Summary {
    fn observe(&mut self, hour: u64, seconds: f64) {
        let at = (hour % HOURS as u64) as usize;
        if self.hours[at] != hour {
            self.hours[at] = hour;
            self.counts[at].clear();
        }
        *self.counts[at].entry(seconds.max(1e-9).log(RATIO).round() as i32).or_default() += 1;
        self.sum += seconds;
        self.count += 1;
    }

    /// `NaN`: nothing was observed in the last hours.
    fn quantile(&self, hour: u64, quantile: f64) -> f64 {
        let mut counts: BTreeMap<i32, u64> = BTreeMap::new();
        let recent = self.hours.iter().zip(&self.counts).filter(|(of, _)| **of + (HOURS as u64) > hour);
        for (_, of_hour) in recent {
            of_hour.iter().for_each(|(value, n)| *counts.entry(*value).or_default() += n);
        }
        let rank = (counts.values().sum::<u64>() as f64 * quantile).ceil();
        let mut below = 0;
        let found = counts.iter().find(|(_, n)| {
            below += **n;
            below as f64 >= rank
        });
        found.map_or(f64::NAN, |(value, _)| RATIO.powi(*value))
    }
}

/// One for each step, operation and outcome.
pub struct Summaries {
    begun: Instant,
    all: [Mutex<Summary>; COMBINATIONS],
}

impl Default for Summaries {
    fn default() -> Self {
        Summaries { begun: Instant::now(), all: Default::default() }
    }
}

impl Summaries {
    fn hour(&self) -> u64 {
        self.begun.elapsed().as_secs() / HOUR
    }

    pub fn observe(&self, step: Step, operation: Operation, refused: bool, took: Duration) {
        self.all[place(step, operation, refused)].lock().observe(self.hour(), took.as_secs_f64());
    }

    pub fn write(&self, family: &mut Family<'_>) {
        let hour = self.hour();
        for (summary, combination) in self.all.iter().zip(combinations()) {
            let summary = summary.lock();
            if summary.count > 0 {
                let quantiles = QUANTILES.map(|q| (q, summary.quantile(hour, q)));
                family.summary(&step_labels(&[], combination), &quantiles, summary.sum, summary.count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_near_and_of_the_last_hours() {
        let mut summary = Summary::default();
        assert!(summary.quantile(0, 0.5).is_nan());
        (1..=1000).for_each(|n| summary.observe(0, f64::from(n) / 1000.0));
        for (quantile, want) in [(0.5, 0.5), (0.9, 0.9), (0.99, 0.99)] {
            let is = summary.quantile(4, quantile);
            assert!((is / want - 1.0).abs() < 0.02, "{quantile}: {is}");
        }
        summary.observe(5, 7.0);
        assert!((summary.quantile(5, 0.5) / 7.0 - 1.0).abs() < 0.02, "what is old counts no more");
        assert!(summary.quantile(20, 0.5).is_nan());
        assert_eq!(summary.count, 1001);
    }
}
