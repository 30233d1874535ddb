//! Operations whose outcome is known: each against the log at its revision, and against what was known when it was asked.

use crate::eval::{evaluate, select};
use crate::knowledge::Knowledge;
use crate::log::Log;
use crate::{
    Answer, Found, Get, History, Operation, Outcome, Refusal, Request, Revision, Rule, StepAnswer, Txn, Violation,
};
use std::collections::BTreeMap;

/// Which operation was told that its write stands at a revision.
pub(crate) type Claims = BTreeMap<Revision, usize>;

pub(crate) fn claims(history: &History) -> Result<Claims, Violation> {
    let mut claims = Claims::new();
    for (index, operation) in history.operations.iter().enumerate() {
        let Outcome::Answered(answer) = &operation.outcome else { continue };
        if !answer.wrote() {
            continue;
        }
        let rev = answer.revision();
        if let Some(other) = claims.insert(rev, index) {
            let text = format!("revision {rev} was given to operations {other} and {index}");
            return Err(Violation::new(Rule::RevisionReused, rev, text).of_operation(index));
        }
    }
    Ok(claims)
}

pub(crate) fn check(history: &History, log: &Log, known: &Knowledge<'_>) -> Result<(), Violation> {
    let check = Check { log, known };
    for (index, operation) in history.operations.iter().enumerate() {
        let found = match &operation.outcome {
            Outcome::Answered(answer) => check.answered(operation, answer),
            Outcome::Refused(refusal) => check.refused(operation, refusal),
            Outcome::Unknown => Ok(()),
        };
        found.map_err(|v| v.of_operation(index))?;
    }
    Ok(())
}

struct Check<'a> {
    log: &'a Log,
    known: &'a Knowledge<'a>,
}

fn wrong(rule: Rule, rev: Revision, text: String) -> Result<(), Violation> {
    Err(Violation::new(rule, rev, text))
}

impl Check<'_> {
    fn answered(&self, operation: &Operation, answer: &Answer) -> Result<(), Violation> {
        let rev = answer.revision();
        if rev > self.log.last && !answer.wrote() {
            return wrong(Rule::FromTheFuture, rev, format!("an answer at {rev}; the log ends at {}", self.log.last));
        }
        match (&operation.request, answer) {
            (Request::Get(get), Answer::Get { found, .. }) => self.get(operation, get, rev, found),
            (Request::Txn(txn), Answer::Txn { succeeded, steps, .. }) if answer.wrote() => {
                self.write(operation, txn, rev, (*succeeded, steps))
            }
            (Request::Txn(txn), Answer::Txn { succeeded, steps, .. }) => {
                self.not_stale(operation, rev)?;
                let effect = evaluate(txn, self.log.at(rev), rev + 1);
                if !effect.events.is_empty() {
                    return wrong(
                        Rule::WrongEffect,
                        rev,
                        format!("at {rev} it would have written {:?}", effect.events),
                    );
                }
                same_answer(rev, (effect.succeeded, &effect.steps), (*succeeded, steps))
            }
            (_, Answer::Done { .. }) => Ok(()),
            _ => wrong(Rule::WrongAnswer, rev, "the answer is one to another request".into()),
        }
    }

    fn get(&self, operation: &Operation, get: &Get, rev: Revision, found: &Found) -> Result<(), Violation> {
        if !get.serializable {
            self.not_stale(operation, rev)?;
        }
        if get.revision > rev {
            return wrong(Rule::FromTheFuture, rev, format!("{} was read, and the store at {rev}", get.revision));
        }
        let dropped = if get.revision > 0 { self.known.compacted_before(operation.invoked) } else { 0 };
        if get.revision < dropped && !get.serializable {
            let text = format!("{} was read after a compaction at {dropped} was acknowledged", get.revision);
            return wrong(Rule::WrongAnswer, get.revision, text);
        }
        let at = if get.revision > 0 { get.revision } else { rev };
        let want = select(get, self.log.at(at).range(&get.keys));
        if *found == want {
            return Ok(());
        }
        wrong(Rule::WrongAnswer, at, format!("at {at}: answered {found:?}; the state was {want:?}"))
    }

    fn write(
        &self,
        operation: &Operation,
        txn: &Txn,
        rev: Revision,
        answer: (bool, &[StepAnswer]),
    ) -> Result<(), Violation> {
        let known = self.known.before(operation.invoked);
        if rev <= known {
            return wrong(
                Rule::WriteInThePast,
                rev,
                format!("written at {rev}; {known} was known before it was asked for"),
            );
        }
        let Some(events) = self.log.get(rev) else {
            return wrong(
                Rule::WriteLost,
                rev,
                format!("acknowledged at {rev}, where no watcher was told of anything"),
            );
        };
        let effect = evaluate(txn, self.log.at(rev - 1), rev);
        let same = effect.events.len() == events.len()
            && effect.events.iter().zip(events).all(|(a, b)| (&a.kv, a.deleted) == (&b.kv, b.deleted));
        if !same {
            let text = format!("at {rev} it had to do {:?}, and the log has {events:?}", effect.events);
            return wrong(Rule::WrongEffect, rev, text);
        }
        same_answer(rev, (effect.succeeded, &effect.steps), answer)
    }

    fn not_stale(&self, operation: &Operation, rev: Revision) -> Result<(), Violation> {
        let known = self.known.before(operation.invoked);
        if rev >= known {
            return Ok(());
        }
        wrong(Rule::StaleRead, rev, format!("answered at {rev}; {known} was known before it was asked for"))
    }

    fn refused(&self, operation: &Operation, refusal: &Refusal) -> Result<(), Violation> {
        let asked = match &operation.request {
            Request::Get(get) => get.revision,
            Request::Compact { revision } => *revision,
            _ => 0,
        };
        match refusal {
            Refusal::Compacted => {
                let keys = if let Request::Get(get) = &operation.request { Some(&get.keys) } else { None };
                let through = self.known.compacted_by(keys, operation.returned);
                // A compaction at the same revision again is refused by this word too.
                let again = matches!(operation.request, Request::Compact { .. });
                if asked < through || (again && asked <= through) {
                    return Ok(());
                }
                wrong(
                    Rule::FalselyCompacted,
                    asked,
                    format!("{asked} is said to be compacted; {through} is the newest that can be"),
                )
            }
            Refusal::Future => {
                let known = self.known.before(operation.invoked);
                if asked > known {
                    return Ok(());
                }
                wrong(Rule::WrongRefusal, asked, format!("{asked} is said to be in the future; {known} was known"))
            }
            // Judged where leases are.
            Refusal::LeaseNotFound | Refusal::LeaseExists | Refusal::Other(_) => Ok(()),
        }
    }
}

fn same_answer(rev: Revision, want: (bool, &[StepAnswer]), got: (bool, &[StepAnswer])) -> Result<(), Violation> {
    if want == got {
        return Ok(());
    }
    wrong(Rule::WrongAnswer, rev, format!("at {rev}: answered {got:?}, instead of {want:?}"))
}
