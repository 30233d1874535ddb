//! Each way of breaking a correct history is found, and called what it is.

use crate::toy;
use isopod_history::*;

/// Changes the history; false: this one has nothing that could be broken so.
type Mutation = fn(&mut History) -> bool;

const MUTATIONS: [(&str, Mutation, Rule); 24] = [
    ("an event is dropped", drop_event, Rule::EventMissed),
    ("an event comes twice", repeat_event, Rule::WrongEvent),
    ("two events change places", swap_events, Rule::EventMissed),
    ("part of a transaction is missing", tear, Rule::TornTransaction),
    ("an event shows another value", change_event, Rule::WrongEvent),
    ("what stood there before is another", change_previous, Rule::WrongPrevious),
    ("progress comes before its events", early_progress, Rule::EarlyProgress),
    ("progress comes from nowhere", future_progress, Rule::FromTheFuture),
    ("a watch ends as compacted", false_compaction, Rule::FalselyCompacted),
    ("a read is stale", stale_read, Rule::StaleRead),
    ("a read misses a key", short_read, Rule::WrongAnswer),
    ("a read miscounts", miscount, Rule::WrongAnswer),
    ("a read is from the future", future_read, Rule::FromTheFuture),
    ("a read is falsely refused as compacted", refused_as_compacted, Rule::FalselyCompacted),
    ("a read is falsely refused as in the future", refused_as_future, Rule::WrongRefusal),
    ("an acknowledged write is lost", lose_write, Rule::WriteLost),
    ("a revision is missing", lose_revision, Rule::Gap),
    ("a write has another effect", change_request, Rule::WrongEffect),
    ("a revision is used twice", reuse_revision, Rule::RevisionReused),
    ("a write happens twice", apply_twice, Rule::Unasked),
    ("a write stands before what was known", write_in_the_past, Rule::WriteInThePast),
    ("a lease ends early", end_lease_early, Rule::LeaseEndedEarly),
    ("a key outlives its lease", keep_key, Rule::KeyOutlivesLease),
    ("a transaction answers with another value", change_answer, Rule::WrongAnswer),
];

#[test]
fn every_mutation_is_found() {
    for (name, mutate, rule) in MUTATIONS {
        let mut tried = 0;
        for seed in 0..400 {
            if tried == 10 {
                break;
            }
            let mut history = toy::run(seed, 1500);
            check(&history).unwrap();
            if !mutate(&mut history) {
                continue;
            }
            tried += 1;
            let violation = check(&history).expect_err(&format!("{name}, seed {seed}"));
            assert_eq!(violation.rule, rule, "{name}, seed {seed}: {violation}");
            assert!(report(&history, &violation).contains(&violation.message));
        }
        assert!(tried >= 3, "{name}: only {tried} histories could be broken so");
    }
}

/// A watch that is no witness, and where its events stand among its notes.
fn watch_with(history: &mut History, events: usize) -> Option<(&mut WatchLog, Vec<usize>)> {
    let stand = |w: &WatchLog| -> Vec<usize> {
        let at = |(i, (_, note)): (usize, &(Time, Note))| matches!(note, Note::Events(..)).then_some(i);
        w.notes.iter().enumerate().filter_map(at).collect()
    };
    let found = history.watches.iter_mut().filter(|w| !w.witness).map(|w| (stand(w), w));
    found.filter(|(at, _)| at.len() >= events).map(|(at, w)| (w, at)).next()
}

fn only_events(watch: &mut WatchLog) {
    watch.notes.retain(|(_, note)| matches!(note, Note::Events(..) | Note::Created(_)));
}

fn drop_event(history: &mut History) -> bool {
    let Some((watch, at)) = watch_with(history, 5) else { return false };
    watch.notes.remove(at[2]);
    only_events(watch);
    true
}

fn repeat_event(history: &mut History) -> bool {
    let Some((watch, at)) = watch_with(history, 5) else { return false };
    let note = watch.notes[at[2]].clone();
    watch.notes.insert(at[3], note);
    true
}

fn swap_events(history: &mut History) -> bool {
    let Some((watch, at)) = watch_with(history, 5) else { return false };
    let (a, b) = (watch.notes[at[2]].1.clone(), watch.notes[at[3]].1.clone());
    (watch.notes[at[2]].1, watch.notes[at[3]].1) = (b, a);
    // Both late, so that nobody knew of a write before it was asked for.
    watch.notes[at[2]].0 = watch.notes[at[3]].0;
    only_events(watch);
    true
}

fn tear(history: &mut History) -> bool {
    for watch in history.watches.iter_mut().filter(|w| !w.witness) {
        for (_, note) in &mut watch.notes {
            if let Note::Events(_, events) = note
                && events.len() > 1
            {
                events.pop();
                return true;
            }
        }
    }
    false
}

fn change_event(history: &mut History) -> bool {
    let Some((watch, at)) = watch_with(history, 1) else { return false };
    let Note::Events(_, events) = &mut watch.notes[at[0]].1 else { return false };
    events[0].kv.value.push('!');
    true
}

fn change_previous(history: &mut History) -> bool {
    for watch in &mut history.watches {
        for (_, note) in &mut watch.notes {
            if let Note::Events(_, events) = note
                && let Some(prev) = events.iter_mut().find_map(|e| e.prev.as_mut())
            {
                prev.version += 1;
                return true;
            }
        }
    }
    false
}

fn early_progress(history: &mut History) -> bool {
    let Some((watch, at)) = watch_with(history, 5) else { return false };
    let (when, note) = watch.notes[at[2]].clone();
    let Note::Events(rev, _) = note else { return false };
    watch.notes.insert(at[2], (when, Note::Progress(rev)));
    true
}

fn future_progress(history: &mut History) -> bool {
    let end = history.watches[0].notes.last().map_or(0, |(at, _)| *at);
    history.watches[0].notes.push((end, Note::Progress(1_000_000)));
    true
}

fn false_compaction(history: &mut History) -> bool {
    history.operations.retain(|o| !matches!(o.request, Request::Compact { .. }));
    // Who was refused for a compaction would tell first.
    history.operations.retain(|o| o.outcome != Outcome::Refused(Refusal::Compacted));
    let watch = &mut history.watches[0];
    let end = watch.notes.last().map_or(0, |(at, _)| *at);
    watch.notes.push((end, Note::Compacted(5)));
    true
}

/// The reads of the newest state that found something, late in the history.
fn late_reads(history: &mut History) -> impl Iterator<Item = (Time, &Get, &mut Revision, &mut Found)> {
    history.operations.iter_mut().rev().filter_map(|o| match (&o.request, &mut o.outcome) {
        (Request::Get(get), Outcome::Answered(Answer::Get { revision, found })) if get.revision == 0 => {
            Some((o.invoked, get, revision, found))
        }
        _ => None,
    })
}

fn stale_read(history: &mut History) -> bool {
    let first = |o: &Operation| matches!(&o.outcome, Outcome::Answered(Answer::Get { .. }));
    let Some(Outcome::Answered(Answer::Get { revision, found })) =
        history.operations.iter().find(|o| first(o)).map(|o| o.outcome.clone())
    else {
        return false;
    };
    let Some((_, _, late, answer)) = late_reads(history).next() else { return false };
    if *late < revision + 20 {
        return false;
    }
    (*late, *answer) = (revision, found);
    true
}

fn short_read(history: &mut History) -> bool {
    late_reads(history).find_map(|(_, _, _, found)| found.kvs.pop()).is_some()
}

fn miscount(history: &mut History) -> bool {
    late_reads(history).next().map(|(_, _, _, found)| found.count += 1).is_some()
}

fn future_read(history: &mut History) -> bool {
    late_reads(history).next().map(|(_, _, revision, _)| *revision += 1000).is_some()
}

fn last_get(history: &mut History, refusal: Refusal) -> bool {
    for operation in history.operations.iter_mut().rev() {
        if let Request::Get(get) = &mut operation.request {
            get.revision = if refusal == Refusal::Future { 2 } else { 1_000_000 };
            operation.outcome = Outcome::Refused(refusal);
            return true;
        }
    }
    false
}

fn refused_as_compacted(history: &mut History) -> bool {
    last_get(history, Refusal::Compacted)
}

fn refused_as_future(history: &mut History) -> bool {
    last_get(history, Refusal::Future)
}

fn remove_revision(history: &mut History, rev: Revision) {
    for watch in &mut history.watches {
        watch.notes.retain(|(_, note)| !matches!(note, Note::Events(r, _) if *r == rev));
    }
}

/// Acknowledged puts of one key, ascending by revision.
fn puts(history: &History) -> Vec<(Revision, usize)> {
    let put = |(i, o): (usize, &Operation)| match (&o.request, &o.outcome) {
        (Request::Txn(txn), Outcome::Answered(a)) if matches!(txn.success[..], [Step::Put { .. }]) => {
            Some((a.revision(), i))
        }
        _ => None,
    };
    let mut all: Vec<_> = history.operations.iter().enumerate().filter_map(put).collect();
    all.sort_unstable();
    all
}

fn last_revision(history: &History) -> Revision {
    let told = history.watches.iter().flat_map(|w| &w.notes);
    told.filter_map(|(_, n)| if let Note::Events(rev, _) = n { Some(*rev) } else { None }).max().unwrap_or(0)
}

/// The last one that happened was acknowledged, and then nothing but its acknowledgement knows of it.
fn lose_write(history: &mut History) -> bool {
    let last = last_revision(history);
    if puts(history).last().is_none_or(|(rev, _)| *rev != last) {
        return false;
    }
    remove_revision(history, last);
    history.operations.retain(|o| match &o.outcome {
        Outcome::Answered(a) => {
            a.revision() < last
                || a.revision() == last
                    && matches!(a, Answer::Txn { steps, .. } if matches!(steps[..], [StepAnswer::Put { .. }]))
        }
        _ => true,
    });
    for watch in &mut history.watches {
        watch.notes.retain(|(_, note)| !matches!(note, Note::Progress(rev) | Note::Created(rev) if *rev >= last));
    }
    true
}

fn lose_revision(history: &mut History) -> bool {
    let middle = last_revision(history) / 2;
    remove_revision(history, middle);
    middle > 2
}

fn change_request(history: &mut History) -> bool {
    let all = puts(history);
    let Some((_, index)) = all.get(all.len() / 2) else { return false };
    let Request::Txn(txn) = &mut history.operations[*index].request else { return false };
    let [Step::Put { value, .. }] = &mut txn.success[..] else { return false };
    value.push('!');
    true
}

fn reuse_revision(history: &mut History) -> bool {
    let all = puts(history);
    if all.len() < 3 {
        return false;
    }
    let Outcome::Answered(Answer::Txn { revision, .. }) = &mut history.operations[all[1].1].outcome else {
        return false;
    };
    *revision = all[2].0;
    true
}

/// The witness tells of a put again, at a revision of its own.
fn apply_twice(history: &mut History) -> bool {
    let rev = last_revision(history) + 1;
    let mut newest = None;
    for (at, note) in &history.watches[0].notes {
        if let Note::Events(_, events) = note {
            newest = Some((*at, events.last().unwrap().clone()));
        }
    }
    let Some((at, event)) = newest.filter(|(_, e)| !e.deleted) else { return false };
    let mut again = Event { prev: Some(event.kv.clone()), ..event };
    again.kv.modified = rev;
    again.kv.version += 1;
    let end = history.watches[0].notes.last().map_or(at, |(t, _)| *t);
    history.watches[0].notes.push((end, Note::Events(rev, vec![again])));
    true
}

fn write_in_the_past(history: &mut History) -> bool {
    let all = puts(history);
    let Some((_, index)) = all.get(all.len() / 2) else { return false };
    let end = history.operations.iter().map(|o| o.returned).max().unwrap_or(0);
    let operation = &mut history.operations[*index];
    (operation.invoked, operation.returned) = (end + 1, end + 2);
    true
}

fn end_lease_early(history: &mut History) -> bool {
    let revoked: Vec<LeaseId> = history
        .operations
        .iter()
        .filter_map(|o| if let Request::Revoke { lease } = o.request { Some(lease) } else { None })
        .collect();
    // Leases that ended by themselves, with a key.
    let held = |kv: &Kv| kv.lease != 0 && !revoked.contains(&kv.lease);
    let ended = history.watches[0].notes.iter().find_map(|(_, note)| match note {
        Note::Events(_, events) if events.len() == 1 && events[0].deleted => {
            events[0].prev.as_ref().filter(|kv| held(kv)).map(|kv| (kv.lease, events[0].kv.modified, kv.key.clone()))
        }
        _ => None,
    });
    let Some((lease, rev, key)) = ended else { return false };
    // It must have been the lease's end and not somebody's deletion.
    if history.operations.iter().any(|o| matches!(&o.outcome, Outcome::Answered(a) if a.wrote_at() == Some(rev))) {
        return false;
    }
    // … nor something whose outcome is unknown.
    let deletes = |s: &Step| matches!(s, Step::Delete { keys, .. } if keys.contains(&key));
    let could = |o: &Operation| matches!(&o.request, Request::Txn(t) if t.success.iter().any(deletes));
    if history.operations.iter().any(|o| o.outcome == Outcome::Unknown && could(o)) {
        return false;
    }
    for operation in &mut history.operations {
        match &mut operation.request {
            Request::Grant { lease: l, ttl, .. } if *l == lease => *ttl = 1_000_000,
            _ => {}
        }
    }
    true
}

trait WroteAt {
    fn wrote_at(&self) -> Option<Revision>;
}

impl WroteAt for Answer {
    fn wrote_at(&self) -> Option<Revision> {
        let Answer::Txn { revision, steps, .. } = self else { return None };
        steps.iter().any(|s| !matches!(s, StepAnswer::Get(_))).then_some(*revision)
    }
}

fn keep_key(history: &mut History) -> bool {
    let last = last_revision(history);
    let Some((_, Note::Events(rev, events))) =
        history.watches[0].notes.iter().rev().find(|(_, n)| matches!(n, Note::Events(..)))
    else {
        return false;
    };
    let Some(kv) = events.iter().map(|e| &e.kv).find(|kv| kv.lease != 0 && *rev == last) else { return false };
    let lease = kv.lease;
    let end = history.operations.iter().map(|o| o.returned).max().unwrap_or(0);
    history.operations.push(Operation {
        client: 99,
        invoked: end,
        returned: end + 1,
        request: Request::Revoke { lease },
        outcome: Outcome::Answered(Answer::Done { revision: last }),
    });
    true
}

fn change_answer(history: &mut History) -> bool {
    for operation in &mut history.operations {
        let Outcome::Answered(Answer::Txn { steps, .. }) = &mut operation.outcome else { continue };
        for step in steps {
            if let StepAnswer::Put { prev: Some(prev) } = step {
                prev.value.push('!');
                return true;
            }
        }
    }
    false
}
