//! Answers that are kept for a while, the ones that were asked for last.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// More are not kept.
const MOST: usize = 8192;

/// A digest of a question.
pub type Key = [u8; 32];

struct Entry<T> {
    value: T,
    until: Instant,
    /// When it was used last: a key of `by_use`.
    used: u64,
}

/// Invariant: `by_use` has each key of `entries` once, under its `used`.
pub struct Kept<T> {
    entries: HashMap<Key, Entry<T>>,
    by_use: BTreeMap<u64, Key>,
    uses: u64,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept { entries: HashMap::new(), by_use: BTreeMap::new(), uses: 0 }
    }
}

impl<T: Clone> Kept<T> {
    pub fn get(&mut self, key: &Key, now: Instant) -> Option<T> {
        let entry = self.entries.get_mut(key)?;
        self.by_use.remove(&entry.used);
        if entry.until <= now {
            self.entries.remove(key);
            return None;
        }
        self.uses += 1;
        entry.used = self.uses;
        self.by_use.insert(self.uses, *key);
        Some(entry.value.clone())
    }

    /// Keeps it for `time`; for no time: not at all.
    pub fn add(&mut self, key: Key, value: T, now: Instant, time: Duration) {
        if time.is_zero() {
            return;
        }
        self.uses += 1;
        let entry = Entry { value, until: now + time, used: self.uses };
        if let Some(old) = self.entries.insert(key, entry) {
            self.by_use.remove(&old.used);
        }
        self.by_use.insert(self.uses, key);
        if self.entries.len() > MOST
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_le_bytes());
        key
    }

    #[test]
    fn what_is_old_or_not_used_goes() {
        let (mut kept, now, minute) = (Kept::default(), Instant::now(), Duration::from_secs(60));
        kept.add(key(0), 'a', now, minute);
        kept.add(key(1), 'b', now, Duration::ZERO);
        assert_eq!((kept.get(&key(0), now), kept.get(&key(1), now)), (Some('a'), None));
        assert_eq!(kept.get(&key(0), now + minute), None);
        for n in 0..MOST {
            kept.add(key(n), 'c', now, minute);
        }
        assert_eq!(kept.get(&key(0), now), Some('c'));
        kept.add(key(MOST), 'd', now, minute);
        assert_eq!(kept.get(&key(1), now), None, "the one that was used least lately");
        assert_eq!((kept.get(&key(0), now), kept.get(&key(MOST), now)), (Some('c'), Some('d')));
        assert_eq!(kept.entries.len(), kept.by_use.len());
    }
}
