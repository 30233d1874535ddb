//! The unit of work: a seat kept for a time. Whole numbers, so that sums come out the same in any order.

use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::Duration;

/// How many units make one seat-second.
const SCALE: i128 = 100_000_000;
const NANOS_PER_UNIT: f64 = 1e9 / SCALE as f64;

/// Seats times seconds. Wide enough that no progress meter ever runs over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeatSeconds(i128);

impl SeatSeconds {
    pub fn of(seats: f64, time: Duration) -> Self {
        SeatSeconds((seats * time.as_nanos() as f64 / NANOS_PER_UNIT).round() as i128)
    }

    /// How long so many seats take for it.
    pub fn spread_over(self, seats: u32) -> Duration {
        let nanos = self.0 as f64 / f64::from(seats.max(1)) * NANOS_PER_UNIT;
        Duration::from_nanos(nanos.max(0.0) as u64)
    }

    pub fn as_f64(self) -> f64 {
        self.0 as f64 / SCALE as f64
    }
}

impl fmt::Display for SeatSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, part) = (self.0.unsigned_abs() / SCALE as u128, self.0.unsigned_abs() % SCALE as u128);
        write!(f, "{sign}{whole}.{part:08}ss")
    }
}

impl Add for SeatSeconds {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        SeatSeconds(self.0 + other.0)
    }
}

impl Sub for SeatSeconds {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        SeatSeconds(self.0 - other.0)
    }
}

impl AddAssign for SeatSeconds {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl SubAssign for SeatSeconds {
    fn sub_assign(&mut self, other: Self) {
        self.0 -= other.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_times_time() {
        let work = SeatSeconds::of(10.0, Duration::from_millis(5));
        assert_eq!(work.to_string(), "0.05000000ss");
        assert_eq!(work.spread_over(4), Duration::from_micros(12_500));
        assert_eq!(SeatSeconds::of(1.0, Duration::from_secs(3)).to_string(), "3.00000000ss");
        assert_eq!((SeatSeconds::default() - work).to_string(), "-0.05000000ss");
    }
}
