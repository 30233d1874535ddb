//! Which of many ranges hold a key: found in one look, however many ranges there are.
//!
//! The ranges' ends cut the keys into pieces; each piece lists the ranges that hold all of it. Invariant: neighbours differ,
//! so there are at most twice as many pieces as ranges.

use crate::KeyRange;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

#[derive(Default)]
pub(crate) struct Intervals {
    /// From each first key up to the next one; what comes before the first is held by none.
    pieces: BTreeMap<Bytes, Vec<u64>>,
}

impl Intervals {
    /// The ids of the ranges that hold `key`.
    pub fn holding(&self, key: &[u8]) -> &[u64] {
        let up_to = (Bound::Unbounded, Bound::Included(key));
        self.pieces.range::<[u8], _>(up_to).next_back().map_or(&[], |(_, ids)| ids)
    }

    /// `id` is not in use.
    pub fn insert(&mut self, range: &KeyRange, id: u64) {
        self.each_piece(range, |ids| ids.push(id));
    }

    /// `range` is as it was inserted.
    pub fn remove(&mut self, range: &KeyRange, id: u64) {
        self.each_piece(range, |ids| ids.retain(|other| *other != id));
    }

    fn each_piece(&mut self, range: &KeyRange, change: impl Fn(&mut Vec<u64>)) {
        let end = range.end_bound();
        // Such a range holds nothing, and a BTreeMap panics on it.
        if end.as_ref().is_some_and(|end| *end <= range.start) {
            return;
        }
        self.cut(&range.start);
        if let Some(end) = &end {
            self.cut(end);
        }
        let upper = end.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        for (_, ids) in self.pieces.range_mut::<Bytes, _>((Bound::Included(&range.start), upper)) {
            change(ids);
        }
        self.join(&range.start);
        if let Some(end) = &end {
            self.join(end);
        }
    }

    /// A piece begins at `key`.
    fn cut(&mut self, key: &Bytes) {
        if !self.pieces.contains_key(key) {
            let ids = self.holding(key).to_vec();
            self.pieces.insert(key.clone(), ids);
        }
    }

    /// Unless the pieces before and after `key` differ, they are one.
    fn join(&mut self, key: &Bytes) {
        let before = self.pieces.range::<Bytes, _>(..key).next_back().map_or(&[][..], |(_, ids)| ids);
        if self.pieces.get(key).is_some_and(|ids| ids == before) {
            self.pieces.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn word(random: &mut StdRng) -> Bytes {
        (0..random.random_range(0..3)).map(|_| random.random_range(b'a'..b'e')).collect::<Vec<u8>>().into()
    }

    fn range(random: &mut StdRng) -> KeyRange {
        let start = word(random);
        match random.random_range(0..4) {
            0 => KeyRange::key(start),
            1 => KeyRange::prefix(start),
            2 => KeyRange { start, end: Bytes::from_static(b"\0") },
            _ => KeyRange { start, end: word(random) },
        }
    }

    #[test]
    fn it_agrees_with_a_look_at_each_range() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut index, mut all): (Intervals, Vec<(KeyRange, u64)>) = Default::default();
            for id in 0..100 {
                if all.len() > 20 || (random.random_bool(0.4) && !all.is_empty()) {
                    let (range, id) = all.swap_remove(random.random_range(0..all.len()));
                    index.remove(&range, id);
                } else {
                    let range = range(&mut random);
                    index.insert(&range, id);
                    all.push((range, id));
                }
                assert!(index.pieces.len() <= 2 * all.len(), "seed {seed}");
                let key = word(&mut random);
                let mut found = index.holding(&key).to_vec();
                found.sort_unstable();
                let mut wanted: Vec<u64> = all.iter().filter(|(r, _)| r.contains(&key)).map(|(_, id)| *id).collect();
                wanted.sort_unstable();
                assert_eq!(found, wanted, "seed {seed}, key {key:?}");
            }
        }
    }
}
