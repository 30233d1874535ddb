//! A failover that loses commits leaves two histories: one ends with the lost database, and one goes on from what the other
//! database had. Each must be right by itself, and nobody may have been led from a lost part of the one into the other.

use isopod_history::{
    Answer, Epoch, Event, History, Kv, Note, Operation, Outcome, Refusal, Request, Revision, Time, WatchLog,
};
use std::collections::BTreeMap;

pub(crate) struct Failover {
    /// The last revision that was not lost.
    pub base: Revision,
    /// Revisions go on after it.
    pub first: Revision,
    /// Until then the old database was there for certain, and from the other time on it was certainly not.
    pub began: Time,
    pub ended: Time,
}

/// When somebody was first told of a revision from `first` on.
pub(crate) fn first_told(history: &History, first: Revision) -> Option<Time> {
    let answers = history.operations.iter().filter(|o| revision(o) >= first).map(|o| o.returned);
    let notes = history.watches.iter().flat_map(|w| &w.notes).filter(|(_, n)| told(n) >= first).map(|(at, _)| *at);
    answers.chain(notes).min()
}

/// 0: none was told.
fn revision(operation: &Operation) -> Revision {
    if let Outcome::Answered(answer) = &operation.outcome { answer.revision() } else { 0 }
}

fn told(note: &Note) -> Revision {
    match note {
        Note::Created(rev) | Note::Events(rev, _) | Note::Progress(rev) => *rev,
        Note::Compacted(_) | Note::Ended(_) => 0,
    }
}

/// Without what was rightly refused: nothing is known of the revisions between the two databases' histories.
pub(crate) fn without_refusals(mut history: History, failover: &Failover) -> History {
    let in_gap = |rev: Revision| rev > failover.base && rev <= failover.first;
    history.operations.retain(|o| match (&o.request, &o.outcome) {
        (Request::Get(get), Outcome::Refused(Refusal::Compacted)) => !in_gap(get.revision),
        _ => true,
    });
    for watch in &mut history.watches {
        let next = watch.notes.iter().map(|(_, n)| told(n)).fold(watch.start, |next, rev| next.max(rev + 1));
        // Who knows the last revision of the first history goes on.
        if in_gap(next) && next != failover.base + 1 {
            watch.notes.retain(|(_, n)| !matches!(n, Note::Compacted(_)));
        }
    }
    history
}

pub(crate) fn split(history: History, failover: Failover) -> (History, History) {
    let at = first_told(&history, failover.first).expect("somebody was told of the epoch");
    let baseline = state(&history.watches, failover.base);
    let epoch = Epoch { at, revision: failover.first, clean: false, prefixes: Vec::new(), left: Vec::new() };
    let mut before = History { base: history.base, alone: true, ..History::default() };
    let mut after = History { baseline, base: failover.base, alone: true, epochs: vec![epoch], ..History::default() };
    for operation in history.operations {
        place(operation, &failover, &mut before, &mut after);
    }
    for watch in history.watches {
        part(watch, &failover, &mut before, &mut after);
    }
    (before, after)
}

fn place(operation: Operation, failover: &Failover, before: &mut History, after: &mut History) {
    let unknown = || Operation { outcome: Outcome::Unknown, ..operation.clone() };
    let is_txn = matches!(operation.request, Request::Txn(_));
    if operation.returned < failover.began {
        if !is_txn && !matches!(operation.request, Request::Get(_)) {
            // A lease that was granted may be there or not; likewise its end.
            after.operations.push(unknown());
        }
        return before.operations.push(operation);
    }
    let asked = match &operation.request {
        Request::Get(get) => get.revision,
        _ => 0,
    };
    let lost = asked > failover.base && asked < failover.first;
    if operation.outcome == Outcome::Refused(Refusal::Compacted) && lost {
        return;
    }
    let rev = revision(&operation);
    // The past that both have, as it was told when only one of them was left: neither part has all that this says.
    if asked > 0 && asked <= failover.base && rev >= failover.first {
        return;
    }
    if rev >= failover.first || operation.invoked > failover.ended {
        return after.operations.push(operation);
    }
    match &operation.outcome {
        Outcome::Answered(Answer::Get { .. } | Answer::Txn { .. }) if rev > failover.base => {
            before.operations.push(operation);
        }
        Outcome::Unknown | Outcome::Answered(Answer::Done { .. }) => {
            before.operations.push(unknown());
            after.operations.push(unknown());
        }
        // Of which database it was said cannot be told, or it says that nothing was done.
        Outcome::Answered(_) | Outcome::Refused(_) => {}
    }
}

fn part(watch: WatchLog, failover: &Failover, before: &mut History, after: &mut History) {
    let next = watch
        .notes
        .iter()
        .map(|(_, n)| told(n))
        .filter(|r| *r < failover.first)
        .fold(watch.start, |next, rev| next.max(rev + 1));
    let lost = next > failover.base + 1 && next <= failover.first;
    // Its server may have shown more than this watch was told of: then it ends as well.
    let open = |at| watch.invoked <= failover.ended && at >= failover.began;
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for (at, note) in watch.notes {
        match note {
            // Rightly refused.
            Note::Compacted(_) if (lost || open(at)) && told_none(&new) => old.push((at, Note::Ended("lost".into()))),
            note if told(&note) >= failover.first || !told_none(&new) => new.push((at, note)),
            note => old.push((at, note)),
        }
    }
    assert!(!lost || told_none(&new), "a watch at {next} went on after {} was lost", failover.base);
    let part = |start, notes| WatchLog { start, notes, keys: watch.keys.clone(), ..watch };
    // From what was left, where it had begun before.
    let start = if watch.start == 0 || watch.start > failover.base { watch.start } else { failover.base + 1 };
    before.watches.push(part(watch.start, old));
    after.watches.push(part(start, new));
}

fn told_none(notes: &[(Time, Note)]) -> bool {
    notes.iter().all(|(_, n)| told(n) == 0)
}

/// What the witnesses know of the state at `rev`.
fn state(watches: &[WatchLog], rev: Revision) -> Vec<Kv> {
    let mut events: BTreeMap<(Revision, &str), &Event> = BTreeMap::new();
    for (_, note) in watches.iter().filter(|w| w.witness).flat_map(|w| &w.notes) {
        if let Note::Events(at, told) = note
            && *at <= rev
        {
            events.extend(told.iter().map(|e| ((*at, e.kv.key.as_str()), e)));
        }
    }
    let mut state: BTreeMap<&str, &Kv> = BTreeMap::new();
    for ((_, key), event) in events {
        match event.deleted {
            true => drop(state.remove(key)),
            false => drop(state.insert(key, &event.kv)),
        }
    }
    state.into_values().cloned().collect()
}
