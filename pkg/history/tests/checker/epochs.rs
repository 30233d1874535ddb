//! What a crash may do to ephemeral keys, and what it may not.

use isopod_history::*;

fn kv(key: &str, value: &str, created: Revision, modified: Revision, version: i64) -> Kv {
    Kv { key: key.into(), value: value.into(), created, modified, version, lease: 0 }
}

fn put(rev: Revision, key: &str, value: &str, durable: bool) -> Operation {
    let step = Step::Put { key: key.into(), value: value.into(), lease: 0, prev: false };
    let at = rev as Time * 10;
    Operation {
        client: 1,
        invoked: at,
        returned: at + 5,
        request: Request::Txn(Txn { durable, ..Txn::of(vec![step]) }),
        outcome: Outcome::Answered(Answer::Txn {
            revision: rev,
            succeeded: true,
            steps: vec![StepAnswer::Put { prev: None }],
        }),
    }
}

/// `e/a` is written three times, the second time durably; then a crash.
fn history(left: Vec<Kv>, epoch: Revision) -> History {
    let event = |kv: Kv| {
        (kv.modified as Time * 10 + 4, Note::Events(kv.modified, vec![Event { kv, deleted: false, prev: None }]))
    };
    let notes = vec![
        event(kv("e/a", "1", 2, 2, 1)),
        event(kv("e/a", "2", 2, 3, 2)),
        event(kv("e/a", "3", 2, 4, 3)),
        (45, Note::Ended("the server was killed".into())),
    ];
    let watch =
        WatchLog { client: 0, keys: Keys::prefix("e/"), start: 2, prev: false, invoked: 0, notes, witness: true };
    History {
        base: 1,
        alone: true,
        operations: vec![put(2, "e/a", "1", false), put(3, "e/a", "2", true), put(4, "e/a", "3", false)],
        watches: vec![watch],
        epochs: vec![Epoch { at: 50, revision: epoch, clean: false, prefixes: vec!["e/".into()], left }],
        ..History::default()
    }
}

fn rule(history: &History) -> Option<Rule> {
    check(history).err().map(|v| v.rule)
}

#[test]
fn a_crash_may_take_back_what_was_not_asked_to_be_durable() {
    let restamped = |value: &str, version| vec![kv("e/a", value, 2, 100, version)];
    assert_eq!(rule(&history(restamped("3", 3), 100)), None, "all is left");
    assert_eq!(rule(&history(restamped("2", 2), 100)), None, "the last is lost");
    assert_eq!(rule(&history(restamped("1", 1), 100)), Some(Rule::WrongSurvivor), "a durable write is lost");
    assert_eq!(rule(&history(Vec::new(), 100)), Some(Rule::WrongSurvivor), "all is lost");
    assert_eq!(rule(&history(restamped("9", 3), 100)), Some(Rule::WrongSurvivor), "never was");
    let old_stamp = vec![kv("e/a", "3", 2, 4, 3)];
    assert_eq!(rule(&history(old_stamp, 100)), Some(Rule::WrongSurvivor), "an old revision");
    let mut same_epoch = history(vec![kv("e/a", "3", 2, 4, 3)], 4);
    assert_eq!(rule(&same_epoch), Some(Rule::RevisionReused), "no new revision");
    same_epoch.epochs[0].clean = true;
    assert_eq!(rule(&same_epoch), None, "a clean end");
    same_epoch.epochs[0].left = vec![kv("e/a", "2", 2, 3, 2)];
    assert_eq!(rule(&same_epoch), Some(Rule::WrongSurvivor), "a clean end loses nothing");
}

#[test]
fn watches_on_ephemeral_keys_end_with_a_crash() {
    let mut after = history(vec![kv("e/a", "3", 2, 100, 3)], 100);
    let told = |start, keys: &str| WatchLog {
        client: 2,
        keys: Keys::prefix(keys),
        start,
        prev: false,
        invoked: 60,
        notes: vec![(61, Note::Compacted(100))],
        witness: false,
    };
    after.watches.push(told(4, "e/"));
    assert_eq!(rule(&after), None);
    after.watches[1] = told(4, "d/");
    assert_eq!(rule(&after), Some(Rule::FalselyCompacted), "durable history goes on");
    after.watches[1] = told(101, "e/");
    assert_eq!(rule(&after), Some(Rule::FalselyCompacted), "the epoch's own events are there");
}
