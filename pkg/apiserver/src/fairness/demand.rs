//! How many seats a priority level could use, over time: what its share of the server is derived from.

use std::time::Duration;

/// Half of what was is forgotten in five minutes of periods.
const SMOOTHING: f64 = 0.977;

/// The integral of a value over time, begun anew each period.
#[derive(Debug)]
pub struct Integrator {
    last: Duration,
    value: f64,
    seconds: f64,
    sum: f64,
    squares: f64,
    max: f64,
}

/// What a period came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Period {
    pub seconds: f64,
    pub average: f64,
    pub deviation: f64,
    pub max: f64,
}

impl Integrator {
    pub fn new(now: Duration) -> Self {
        Integrator { last: now, value: 0.0, seconds: 0.0, sum: 0.0, squares: 0.0, max: 0.0 }
    }

    pub fn set(&mut self, now: Duration, value: f64) {
        self.advance(now);
        self.value = value;
        self.max = self.max.max(value);
    }

    fn advance(&mut self, now: Duration) {
        let seconds = now.saturating_sub(self.last).as_secs_f64();
        self.last = now.max(self.last);
        self.seconds += seconds;
        self.sum += self.value * seconds;
        self.squares += self.value * self.value * seconds;
    }

    /// Ends the period and begins the next.
    pub fn take(&mut self, now: Duration) -> Period {
        self.advance(now);
        let average = if self.seconds > 0.0 { self.sum / self.seconds } else { 0.0 };
        let variance = if self.seconds > 0.0 { self.squares / self.seconds - average * average } else { 0.0 };
        let period = Period { seconds: self.seconds, average, deviation: variance.max(0.0).sqrt(), max: self.max };
        (self.seconds, self.sum, self.squares, self.max) = (0.0, 0.0, 0.0, self.value);
        period
    }
}

/// What is known of a level's demand at the end of a period.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    pub average: f64,
    pub deviation: f64,
    pub high_watermark: u32,
    /// Rises at once and falls slowly.
    pub smoothed: f64,
}

impl Demand {
    pub fn update(&mut self, period: Period) {
        self.high_watermark = period.max.round() as u32;
        if period.seconds <= 0.0 {
            return;
        }
        self.average = period.average;
        self.deviation = period.deviation;
        let envelope = period.average + period.deviation;
        self.smoothed = envelope.max(SMOOTHING * self.smoothed + (1.0 - SMOOTHING) * envelope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn an_average_is_over_time() {
        let mut demand = Integrator::new(s(0));
        demand.set(s(0), 2.0);
        demand.set(s(5), 4.0);
        assert_eq!(demand.take(s(10)), Period { seconds: 10.0, average: 3.0, deviation: 1.0, max: 4.0 });
        // The value stays when a period ends.
        assert_eq!(demand.take(s(12)), Period { seconds: 2.0, average: 4.0, deviation: 0.0, max: 4.0 });
    }

    #[test]
    fn demand_rises_at_once_and_falls_slowly() {
        let mut demand = Demand::default();
        let period = |average| Period { seconds: 10.0, average, deviation: 0.0, max: average };
        demand.update(period(100.0));
        assert_eq!(demand.smoothed, 100.0);
        demand.update(period(0.0));
        assert!((demand.smoothed - 97.7).abs() < 1e-9);
        assert_eq!(demand.high_watermark, 0);
    }
}
