//! A violation as people read it: what is wrong, and the operations around it.

use crate::{History, Operation, Outcome, Revision, Time, Violation};
use std::fmt::Write;

/// Operations that are shown.
const AROUND: usize = 24;
/// How many revisions before and after are close.
const NEAR: Revision = 3;

/// The violation and what happened around it, in order of time.
pub fn report(history: &History, violation: &Violation) -> String {
    let mut out = format!("{violation}\n");
    if let Some(watch) = violation.watch.and_then(|i| history.watches.get(i).map(|w| (i, w))) {
        let (index, w) = watch;
        let _ = writeln!(out, "watch {index} of client {}, {:?} from {}, told:", w.client, w.keys, w.start);
        let near = |(_, note): &&(Time, crate::Note)| match note {
            crate::Note::Events(rev, _) | crate::Note::Progress(rev) => (rev - violation.revision).abs() <= NEAR,
            _ => true,
        };
        for (at, note) in w.notes.iter().filter(near).take(AROUND) {
            let _ = writeln!(out, "  {:>14}  {note:?}", stamp(*at));
        }
    }
    let _ = writeln!(out, "operations around it:");
    for (index, operation) in around(history, violation) {
        let mark = if violation.operation == Some(index) { '>' } else { ' ' };
        let (from, to) = (stamp(operation.invoked), stamp(operation.returned));
        let _ = writeln!(
            out,
            "{mark} {index:>6}  client {:<3} {from:>14} – {to:<14} {:?}\n             {:?}",
            operation.client, operation.request, operation.outcome
        );
    }
    out
}

/// Milliseconds.
fn stamp(at: Time) -> String {
    format!("{}.{:06}", at / 1_000_000, at % 1_000_000)
}

/// The operation itself, those close by revision, and those that were on their way at the same time.
fn around<'a>(history: &'a History, violation: &Violation) -> Vec<(usize, &'a Operation)> {
    let subject = violation.operation.map(|i| &history.operations[i]);
    let distance = |index: usize, o: &Operation| {
        if violation.operation == Some(index) {
            return Some(0);
        }
        let by_revision = match &o.outcome {
            Outcome::Answered(a) if violation.revision > 0 => Some((a.revision() - violation.revision).abs()),
            _ => None,
        };
        let overlaps = subject.is_some_and(|s| o.invoked <= s.returned && s.invoked <= o.returned);
        by_revision.filter(|d| *d <= NEAR).or(overlaps.then_some(NEAR + 1))
    };
    let all = history.operations.iter().enumerate();
    let mut near: Vec<(i64, usize)> = all.filter_map(|(i, o)| Some((distance(i, o)?, i))).collect();
    near.sort_unstable();
    near.truncate(AROUND);
    let mut shown: Vec<usize> = near.into_iter().map(|(_, i)| i).collect();
    shown.sort_by_key(|i| (history.operations[*i].invoked, *i));
    shown.into_iter().map(|i| (i, &history.operations[i])).collect()
}
