//! Waits that double: restarts of containers, pulls of images (client-go's `flowcontrol.Backoff`).

use jiff::Timestamp;
use std::collections::HashMap;
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(10);

struct Entry {
    delay: Duration,
    updated: Timestamp,
}

/// Keys are container or image names within one pod.
pub struct Backoff {
    max: Duration,
    entries: HashMap<String, Entry>,
}

impl Backoff {
    pub fn new(max: Duration) -> Self {
        Backoff { max, entries: HashMap::new() }
    }

    /// A wait ends with the entry after twice the maximum of peace.
    fn expired(&self, e: &Entry, at: Timestamp) -> bool {
        at.duration_since(e.updated).unsigned_abs() > self.max * 2 && at > e.updated
    }

    /// When a wait that counts from `since` ends, if it has not ended by `now`; with its length.
    pub fn waits(&self, key: &str, since: Timestamp, now: Timestamp) -> Option<(Timestamp, Duration)> {
        let e = self.entries.get(key).filter(|e| !self.expired(e, since))?;
        let until = since + e.delay;
        (now < until).then_some((until, e.delay))
    }

    /// As [`Backoff::waits`], counted from the last failure.
    pub fn waits_since_failure(&self, key: &str, now: Timestamp) -> Option<(Timestamp, Duration)> {
        let updated = self.entries.get(key)?.updated;
        self.waits(key, updated, now)
    }

    /// The next wait is twice as long, or the first again after a time of peace.
    pub fn failed(&mut self, key: &str, event: Timestamp, now: Timestamp) {
        let delay = match self.entries.get(key) {
            Some(e) if !self.expired(e, event) => (e.delay * 2).min(self.max),
            _ => FIRST.min(self.max),
        };
        self.entries.insert(key.to_owned(), Entry { delay, updated: now });
    }
}

/// As Go prints a duration of whole seconds: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(d: Duration) -> String {
    let s = d.as_secs();
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(s).unwrap()
    }

    #[test]
    fn waits_double_up_to_the_maximum_and_end_after_peace() {
        let mut b = Backoff::new(Duration::from_secs(300));
        assert_eq!(b.waits("c", at(100), at(100)), None);
        let mut now = 100;
        for want in [10, 20, 40, 80, 160, 300, 300] {
            b.failed("c", at(now), at(now));
            let (until, delay) = b.waits("c", at(now), at(now)).unwrap();
            assert_eq!((until, delay), (at(now + want), Duration::from_secs(want as u64)));
            assert_eq!(b.waits("c", at(now), at(now + want)), None);
            now += want;
        }
        now += 601;
        b.failed("c", at(now), at(now));
        assert_eq!(b.waits("c", at(now), at(now)).unwrap().1, Duration::from_secs(10));
    }

    #[test]
    fn durations_read_as_gos() {
        for (s, want) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
            assert_eq!(go_duration(Duration::from_secs(s)), want);
        }
    }
}
