//! Sets of completion indexes, as the status of a job keeps them: `1,3-5,7`.

use std::fmt;

/// Closed ranges in order, none next to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// What cannot be read, and what is not below `completions`, is left out.
    pub fn parse(text: &str, completions: i32) -> Self {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (i32, i32) = (first.parse().ok()?, last.parse().ok()?);
            let last = last.min(completions - 1);
            (first <= last).then_some((first, last))
        };
        Indexes(text.split(',').filter_map(range).collect()).normal()
    }

    pub fn of(indexes: impl IntoIterator<Item = i32>) -> Self {
        Indexes(indexes.into_iter().map(|i| (i, i)).collect()).normal()
    }

    pub fn union(&self, other: &Indexes) -> Self {
        Indexes(self.0.iter().chain(&other.0).copied().collect()).normal()
    }

    fn normal(mut self) -> Self {
        self.0.sort_unstable();
        let mut ranges: Vec<(i32, i32)> = Vec::new();
        for (first, last) in self.0 {
            match ranges.last_mut() {
                Some((_, end)) if first <= *end + 1 => *end = (*end).max(last),
                _ => ranges.push((first, last)),
            }
        }
        Indexes(ranges)
    }

    pub fn total(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub fn has(&self, index: i32) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= index);
        after > 0 && self.0[after - 1].1 >= index
    }

    /// How many indexes both have.
    pub fn common(&self, other: &Indexes) -> i32 {
        let overlap =
            |(a, b): &(i32, i32)| -> i32 { other.0.iter().map(|(c, d)| (b.min(d) - a.max(c) + 1).max(0)).sum() };
        self.0.iter().map(overlap).sum()
    }

    /// The first `count` indexes below `completions` that are not in the set.
    pub fn first_missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let mut missing = Vec::new();
        let mut next = 0;
        for (first, last) in self.0.iter().chain([&(completions, completions)]) {
            missing.extend((next..(*first).min(completions)).take(count - missing.len()));
            next = last + 1;
        }
        missing
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_read_and_written_as_ranges() {
        for (text, want, total) in [
            ("", "", 0),
            ("1,3-5,7", "1,3-5,7", 5),
            ("1,2", "1,2", 2),
            ("1,2,3", "1-3", 3),
            ("0-20", "0-9", 10),
            ("x,4", "4", 1),
            ("12", "", 0),
        ] {
            let indexes = Indexes::parse(text, 10);
            assert_eq!((indexes.to_string().as_str(), indexes.total()), (want, total), "{text}");
        }
    }

    #[test]
    fn sets() {
        let a = Indexes::parse("1,3-5", 10);
        assert_eq!([0, 1, 2, 3, 5, 6].map(|i| a.has(i)), [false, true, false, true, true, false]);
        assert_eq!(a.union(&Indexes::of([6, 2])).to_string(), "1-6");
        assert_eq!(a.common(&Indexes::parse("4-9", 10)), 2);
        assert_eq!(a.first_missing(3, 10), [0, 2, 6]);
        assert_eq!(a.first_missing(9, 7), [0, 2, 6]);
        assert_eq!(Indexes::default().first_missing(2, 10), [0, 1]);
    }
}
