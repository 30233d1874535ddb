//! When a client that was refused is told to come again: later, the more are refused.

use std::collections::VecDeque;

/// Seconds.
const LONGEST: i64 = 32;

/// What was refused in which second, by one priority level.
#[derive(Debug)]
pub struct Drops {
    history: VecDeque<(i64, i64)>,
    second: i64,
    count: i64,
    retry_after: i64,
    raised: i64,
}

impl Default for Drops {
    fn default() -> Self {
        Drops { history: VecDeque::new(), second: 0, count: 0, retry_after: 1, raised: 0 }
    }
}

impl Drops {
    /// Counts a refusal in this second of any clock, and returns the seconds after which to try again.
    pub fn record(&mut self, second: i64) -> i64 {
        if self.second == second {
            self.count += 1;
            return self.retry_after;
        }
        self.history.push_back((self.second, self.count));
        let kept = (2 * self.retry_after).min(LONGEST);
        let newest = self.second;
        self.history.retain(|(at, _)| newest - at <= kept);
        (self.second, self.count) = (second, 1);
        self.adjust();
        self.retry_after
    }

    /// As TCP does: doubled when much was refused of late, less by one when little was.
    fn adjust(&mut self) {
        let (now, after) = (self.second, self.retry_after);
        let of_late = self.history.iter().filter(|(at, _)| now - at <= after && *at < now);
        let dropped: i64 = of_late.map(|(_, n)| n).sum();
        if now - self.raised >= after && dropped >= 3 * after {
            self.retry_after = (2 * after).min(LONGEST);
            self.raised = now;
        } else if dropped < after && after > 1 {
            self.retry_after -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_refusals_send_clients_away_for_longer() {
        let mut drops = Drops::default();
        let mut told = Vec::new();
        for second in 100..120 {
            for _ in 0..200 {
                drops.record(second);
            }
            told.push(drops.record(second));
        }
        assert_eq!(told[..8], [1, 2, 2, 4, 4, 4, 4, 8]);
        assert_eq!(told.iter().max(), Some(&16));
        // Quiet returns step by step.
        let after: Vec<i64> = (0..3).map(|i| drops.record(1000 + 100 * i)).collect();
        assert_eq!(after, [15, 14, 13]);
    }
}
