//! Revisions that nobody was told are theirs: each must be a write whose outcome is unknown, or the end of a lease; and no
//! write may stand there twice.

use crate::eval::evaluate;
use crate::knowledge::Knowledge;
use crate::leases::{Leases, could_end};
use crate::log::Log;
use crate::operations::Claims;
use crate::{Event, History, Outcome, Request, Revision, Rule, Txn, Violation};
use std::collections::HashMap;

/// How many of the unknown writes happened.
pub(crate) fn check(
    history: &History,
    log: &Log,
    known: &Knowledge<'_>,
    leases: &Leases<'_>,
    claims: &Claims,
) -> Result<usize, Violation> {
    let unknown = |i: &usize| {
        let operation = &history.operations[*i];
        operation.outcome == Outcome::Unknown && matches!(operation.request, Request::Txn(_))
    };
    let unknown: Vec<usize> = (0..history.operations.len()).filter(unknown).collect();
    let mut matching = Matching { candidates: Vec::new(), taken: HashMap::new() };
    for (rev, events) in log.from(log.base + 1).filter(|(rev, _)| !claims.contains_key(rev)) {
        let end = lease_end(history, log, known, leases, *rev, events);
        if end == Some(Ok(())) {
            continue;
        }
        matching.candidates.push(candidates(history, log, known, &unknown, *rev, events));
        if !matching.place(matching.candidates.len() - 1, &mut Vec::new()) {
            if let Some(Err(early)) = end {
                return Err(early);
            }
            let text =
                format!("revision {rev}: nobody asked for {events:?}, or it was asked for once and happened twice");
            return Err(Violation::new(Rule::Unasked, *rev, text));
        }
    }
    Ok(matching.taken.len())
}

/// The unknown writes that would have done exactly this here.
fn candidates(
    history: &History,
    log: &Log,
    known: &Knowledge<'_>,
    unknown: &[usize],
    rev: Revision,
    events: &[Event],
) -> Vec<usize> {
    let forgotten = forgotten(history, rev);
    let untold = history.epochs.iter().any(|e| e.revision > rev && !e.clean && known.first_known(rev) >= Some(e.at));
    let fits = |index: &usize| {
        let operation = &history.operations[*index];
        let Request::Txn(txn) = &operation.request else { return false };
        if known.before(operation.invoked) >= rev {
            return false;
        }
        let before = log.at(rev - 1);
        if same(evaluate(txn, before, rev).events.iter(), events) {
            return true;
        }
        // What it compared and wrote of ephemeral keys may be forgotten: then either branch will do.
        untold
            && [&txn.success, &txn.failure].into_iter().any(|steps| {
                let effect = evaluate(&Txn::of(steps.clone()), before, rev);
                same(effect.events.iter().filter(|e| !forgotten(&e.kv.key)), events)
            })
    };
    unknown.iter().copied().filter(fits).collect()
}

/// A crash before anybody was told leaves no trace of what happened to ephemeral keys.
fn forgotten(history: &History, rev: Revision) -> impl Fn(&str) -> bool {
    let crash = history.epochs.iter().find(|e| e.revision > rev && !e.clean);
    move |key| crash.is_some_and(|e| e.covers(key))
}

fn same<'a>(effect: impl Iterator<Item = &'a Event>, events: &[Event]) -> bool {
    effect.map(|e| (&e.kv, e.deleted)).eq(events.iter().map(|e| (&e.kv, e.deleted)))
}

/// `Some`: these are the deletions of all keys of a lease. An error: its time had not come.
fn lease_end(
    history: &History,
    log: &Log,
    known: &Knowledge<'_>,
    leases: &Leases<'_>,
    rev: Revision,
    events: &[Event],
) -> Option<Result<(), Violation>> {
    let before = log.at(rev - 1);
    let held = |e: &Event| if e.deleted { before.get(&e.kv.key).map(|kv| kv.lease) } else { None };
    let lease = events.first().and_then(held).unwrap_or(0);
    if lease == 0 || events.iter().any(|e| held(e) != Some(lease)) {
        return None;
    }
    let forgotten = forgotten(history, rev);
    let shown = before.attached(lease).filter(|kv| !forgotten(&kv.key)).count();
    if events.len() != shown && events.len() != before.attached(lease).count() {
        return None;
    }
    could_end(leases, known, lease, rev)
}

/// A bipartite matching of revisions and writes, by augmenting paths.
struct Matching {
    /// Of each revision.
    candidates: Vec<Vec<usize>>,
    /// Which revision a write was placed at.
    taken: HashMap<usize, usize>,
}

impl Matching {
    /// Finds a write for the revision, where need be by placing others anew.
    fn place(&mut self, revision: usize, tried: &mut Vec<usize>) -> bool {
        for write in self.candidates[revision].clone() {
            if tried.contains(&write) {
                continue;
            }
            tried.push(write);
            let free = match self.taken.get(&write) {
                None => true,
                Some(holder) => self.place(*holder, tried),
            };
            if free {
                self.taken.insert(write, revision);
                return true;
            }
        }
        false
    }
}
