//! Waits that double with every failure.

use jiff::Timestamp;
use std::collections::HashMap;
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// The wait of each key.
#[derive(Default)]
pub struct Backoff(HashMap<String, (Duration, Timestamp)>);

impl Backoff {
    /// How long the key still has to wait; `None` when it need not.
    pub fn left(&self, key: &str, now: Timestamp) -> Option<Duration> {
        let (wait, since) = self.0.get(key)?;
        let left = wait.saturating_sub(now.duration_since(*since).unsigned_abs());
        (!left.is_zero()).then_some(left)
    }

    /// A failure. What has not failed for twice the longest wait is forgotten.
    pub fn next(&mut self, key: &str, now: Timestamp) {
        self.0.retain(|_, (_, since)| now.duration_since(*since).unsigned_abs() <= 2 * LONGEST);
        let wait = self.0.get(key).map_or(FIRST, |(wait, _)| (*wait * 2).min(LONGEST));
        self.0.insert(key.to_owned(), (wait, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_are_forgotten() {
        let (mut b, mut now) = (Backoff::default(), Timestamp::UNIX_EPOCH);
        assert_eq!(b.left("a", now), None);
        for seconds in [1, 2, 4] {
            b.next("a", now);
            assert_eq!(b.left("a", now), Some(Duration::from_secs(seconds)));
        }
        now += Duration::from_secs(3);
        assert_eq!(b.left("a", now), Some(Duration::from_secs(1)));
        now += 3 * LONGEST;
        assert_eq!(b.left("a", now), None);
        b.next("a", now);
        assert_eq!(b.left("a", now), Some(FIRST));
    }
}
