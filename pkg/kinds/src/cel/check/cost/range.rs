//! A number between two bounds. Arithmetic stops at the largest number.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub min: u64,
    pub max: u64,
}

impl Range {
    pub const UNKNOWN: Range = Range { min: 0, max: u64::MAX };

    pub fn of(n: u64) -> Self {
        Range { min: n, max: n }
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Range { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    #[must_use]
    pub fn multiply(self, other: Self) -> Self {
        Range { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    /// Rounded up.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        // A float that is too large becomes the largest number.
        let times = |n: u64| (n as f64 * factor).ceil() as u64;
        Range { min: times(self.min), max: times(self.max) }
    }

    /// Both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}
