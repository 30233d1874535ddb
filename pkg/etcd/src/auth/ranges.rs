//! Which keys somebody may touch: ranges, put together.

use bytes::Bytes;
use isopod_store::KeyRange;

/// Ranges that do not touch one another, ascending. `None`: without end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<(Bytes, Option<Bytes>)>);

impl Ranges {
    /// Ranges that overlap or touch become one: what two permissions cover together may be asked for at once.
    pub fn new(ranges: impl IntoIterator<Item = KeyRange>) -> Self {
        let mut parts: Vec<(Bytes, Option<Bytes>)> =
            ranges.into_iter().map(|r| (r.start.clone(), r.end_bound())).collect();
        parts.sort();
        let mut merged: Vec<(Bytes, Option<Bytes>)> = Vec::new();
        for (start, end) in parts {
            match merged.last_mut() {
                Some((_, None)) => break,
                Some((_, last)) if last.as_ref().is_some_and(|l| start <= *l) => {
                    if end.is_none() || end > *last {
                        *last = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        Ranges(merged)
    }

    /// Every key of `range`?
    pub fn cover(&self, range: &KeyRange) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= range.start);
        let Some((_, end)) = after.checked_sub(1).and_then(|i| self.0.get(i)) else { return false };
        match (end, range.end_bound()) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(end), Some(wanted)) => range.start < *end && wanted <= *end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange { start: start.into(), end: end.into() }
    }

    #[test]
    fn ranges_are_put_together() {
        let ranges = Ranges::new([range("m", ""), range("a", "c"), range("c", "e"), range("b", "d"), range("x", "\0")]);
        assert_eq!(ranges.0.len(), 3, "{ranges:?}");
        for (start, end) in [("a", ""), ("a", "e"), ("b", "d"), ("m", ""), ("x", ""), ("y", "z"), ("x", "\0")] {
            assert!(ranges.cover(&range(start, end)), "{start} {end}");
        }
        for (start, end) in [("e", ""), ("a", "f"), ("0", "b"), ("m", "n"), ("m\0", ""), ("a", "\0"), ("w", "\0")] {
            assert!(!ranges.cover(&range(start, end)), "{start} {end}");
        }
        assert!(!Ranges::default().cover(&range("a", "")));
    }

    #[test]
    fn the_longer_of_two_that_begin_alike_counts() {
        for parts in [["c", "b"], ["b", "c"], ["\0", "b"]] {
            let ranges = Ranges::new(parts.map(|end| range("a", end)));
            assert!(ranges.cover(&range("a", parts.into_iter().find(|e| *e != "b").unwrap())), "{ranges:?}");
        }
    }
}
