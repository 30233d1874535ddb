//! Unified diffs as upstream's errors show them: lines are matched by Ratcliff and Obershelp's algorithm (the longest common
//! block, then what lies before and after it), as in Python's `difflib`, which upstream's library follows.

use std::collections::HashMap;
use std::ops::Range;

/// Equal lines around a change.
const CONTEXT: usize = 3;
/// From so many lines on, lines that stand often do not anchor a block.
const MANY: usize = 200;

/// Lines of both texts that belong together: equal ones, or what was replaced by what.
#[derive(Clone, Debug, PartialEq)]
struct Piece {
    equal: bool,
    old: Range<usize>,
    new: Range<usize>,
}

/// The diff of two texts; empty where they are equal.
pub fn unified(old: &str, new: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (old.split('\n').collect(), new.split('\n').collect());
    let mut out = String::new();
    for group in grouped(pieces(&a, &b)) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let (before, after) = (first.old.start..last.old.end, first.new.start..last.new.end);
        out.push_str(&format!("@@ -{} +{} @@\n", shown(&before), shown(&after)));
        let mut lines = |mark: char, lines: &[&str]| {
            for line in lines {
                out.extend([mark]);
                out.push_str(line);
                out.push('\n');
            }
        };
        for piece in &group {
            if piece.equal {
                lines(' ', &a[piece.old.clone()]);
            } else {
                lines('-', &a[piece.old.clone()]);
                lines('+', &b[piece.new.clone()]);
            }
        }
    }
    out
}

/// A range of lines in a hunk's header, where the first line is 1.
fn shown(range: &Range<usize>) -> String {
    match range.len() {
        0 => format!("{},0", range.start),
        1 => (range.start + 1).to_string(),
        n => format!("{},{n}", range.start + 1),
    }
}

struct Matcher<'t> {
    a: &'t [&'t str],
    b: &'t [&'t str],
    /// Where lines stand in `b`, without those that are too frequent.
    places: HashMap<&'t str, Vec<usize>>,
}

impl<'t> Matcher<'t> {
    fn new(a: &'t [&'t str], b: &'t [&'t str]) -> Self {
        let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, line) in b.iter().enumerate() {
            places.entry(line).or_default().push(i);
        }
        if b.len() >= MANY {
            places.retain(|_, at| at.len() <= b.len() / 100 + 1);
        }
        Matcher { a, b, places }
    }

    /// The longest common block, the earliest of them: where it begins in both, and its length.
    fn longest(&self, old: &Range<usize>, new: &Range<usize>) -> (usize, usize, usize) {
        let (mut i, mut j, mut size) = (old.start, new.start, 0);
        // Lengths of the common blocks that end at the line before and at a place in `b`.
        let mut ending: HashMap<usize, usize> = HashMap::new();
        for at in old.clone() {
            let mut next = HashMap::new();
            for &place in self.places.get(self.a[at]).into_iter().flatten().filter(|p| new.contains(p)) {
                let length = 1 + place.checked_sub(1).and_then(|p| ending.get(&p)).copied().unwrap_or(0);
                next.insert(place, length);
                if length > size {
                    (i, j, size) = (at + 1 - length, place + 1 - length, length);
                }
            }
            ending = next;
        }
        // Frequent lines join it at both ends.
        while i > old.start && j > new.start && self.a[i - 1] == self.b[j - 1] {
            (i, j, size) = (i - 1, j - 1, size + 1);
        }
        while i + size < old.end && j + size < new.end && self.a[i + size] == self.b[j + size] {
            size += 1;
        }
        (i, j, size)
    }

    fn blocks(&self, old: Range<usize>, new: Range<usize>, out: &mut Vec<(usize, usize, usize)>) {
        let (i, j, size) = self.longest(&old, &new);
        if size == 0 {
            return;
        }
        if old.start < i && new.start < j {
            self.blocks(old.start..i, new.start..j, out);
        }
        out.push((i, j, size));
        if i + size < old.end && j + size < new.end {
            self.blocks(i + size..old.end, j + size..new.end, out);
        }
    }
}

/// Both texts as a row of pieces.
fn pieces(a: &[&str], b: &[&str]) -> Vec<Piece> {
    let mut blocks = Vec::new();
    Matcher::new(a, b).blocks(0..a.len(), 0..b.len(), &mut blocks);
    blocks.push((a.len(), b.len(), 0));
    let mut out: Vec<Piece> = Vec::new();
    let (mut i, mut j) = (0, 0);
    for (at, place, size) in blocks {
        if i < at || j < place {
            out.push(Piece { equal: false, old: i..at, new: j..place });
        }
        (i, j) = (at + size, place + size);
        match out.last_mut() {
            Some(last) if last.equal => {
                last.old.end = i;
                last.new.end = j;
            }
            _ if size > 0 => out.push(Piece { equal: true, old: at..i, new: place..j }),
            _ => {}
        }
    }
    out
}

/// The pieces in groups, with some equal lines around each change.
fn grouped(pieces: Vec<Piece>) -> Vec<Vec<Piece>> {
    let last = pieces.len().saturating_sub(1);
    let mut groups: Vec<Vec<Piece>> = vec![Vec::new()];
    for (n, mut piece) in pieces.into_iter().enumerate() {
        if piece.equal && n == 0 {
            let skipped = piece.old.len().saturating_sub(CONTEXT);
            piece = cut(&piece, skipped, 0);
        }
        if piece.equal && n == last {
            let skipped = piece.old.len().saturating_sub(CONTEXT);
            piece = cut(&piece, 0, skipped);
        }
        let length = piece.old.len();
        if piece.equal && length > 2 * CONTEXT {
            groups.last_mut().expect("one was made above").push(cut(&piece, 0, length - CONTEXT));
            groups.push(vec![cut(&piece, length - CONTEXT, 0)]);
        } else {
            groups.last_mut().expect("one was made above").push(piece);
        }
    }
    groups.retain(|g| g.iter().any(|p| !p.equal));
    groups
}

/// A piece without some of its first and last lines.
fn cut(piece: &Piece, front: usize, back: usize) -> Piece {
    let inner = |r: &Range<usize>| r.start + front..r.end - back;
    Piece { equal: piece.equal, old: inner(&piece.old), new: inner(&piece.new) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diffs_are_those_of_difflib() {
        assert_eq!(unified("a\nb", "a\nb"), "");
        assert_eq!(unified("a\nb\nc", "a\nx\nc"), "@@ -1,3 +1,3 @@\n a\n-b\n+x\n c\n");
        assert_eq!(unified("", "a"), "@@ -1 +1 @@\n-\n+a\n");
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12";
        let new = "1\n2\n3\n4\nfive\n6\n7\n8\n9\n10\n11";
        assert_eq!(unified(old, new), "@@ -2,11 +2,10 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n 9\n 10\n 11\n-12\n");
        let many: Vec<String> = (0..30).map(|n| n.to_string()).collect();
        let mut other = many.clone();
        other[3] = "x".into();
        other.insert(20, "y".into());
        let hunks = unified(&many.join("\n"), &other.join("\n"));
        assert!(hunks.starts_with("@@ -1,7 +1,7 @@\n 0\n 1\n 2\n-3\n+x\n 4\n"), "{hunks}");
        assert!(hunks.contains("@@ -18,6 +18,7 @@\n 17\n 18\n 19\n+y\n 20\n 21\n 22\n"), "{hunks}");
    }
}
