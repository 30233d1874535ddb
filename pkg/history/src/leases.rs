//! Leases: not before their time, and then with all their keys.

use crate::knowledge::Knowledge;
use crate::log::Log;
use crate::{History, LeaseId, Operation, Outcome, Refusal, Request, Revision, Rule, Time, Violation};

fn answered(operation: &Operation) -> bool {
    matches!(operation.outcome, Outcome::Answered(_))
}

/// Before this time the lease cannot end by itself, where it is looked at `by`; `None`: nobody had asked for it. An id may
/// be used again after its lease has ended, so that of several grants the first counts.
fn earliest_end(history: &History, lease: LeaseId, by: Time) -> Option<Time> {
    let granted = history.operations.iter().filter_map(|o| match o.request {
        Request::Grant { lease: l, ttl, .. } if l == lease && o.invoked <= by => {
            (!matches!(o.outcome, Outcome::Refused(_))).then_some((o.invoked, ttl))
        }
        _ => None,
    });
    let (first, ttl) = granted.min()?;
    let kept = history.operations.iter().filter(|o| {
        matches!(o.request, Request::KeepAlive { lease: l } if l == lease) && answered(o) && o.returned <= by
    });
    Some(kept.map(|o| o.invoked).fold(first, Time::max) + ttl)
}

/// Could the lease have ended at `rev`? An error: its time had not come. `None`: nobody ever asked for such a lease.
pub(crate) fn could_end(
    history: &History,
    known: &Knowledge<'_>,
    lease: LeaseId,
    rev: Revision,
) -> Option<Result<(), Violation>> {
    let revoked = history.operations.iter().any(|o| {
        matches!(o.request, Request::Revoke { lease: l } if l == lease)
            && !matches!(o.outcome, Outcome::Refused(_))
            && known.before(o.invoked) < rev
    });
    if revoked {
        return Some(Ok(()));
    }
    let seen = known.first_known(rev).unwrap_or(Time::MAX);
    let earliest = earliest_end(history, lease, seen)?;
    if seen >= earliest {
        return Some(Ok(()));
    }
    let text = format!("revision {rev}: lease {lease} ended by {seen}, and had time until {earliest}");
    Some(Err(Violation::new(Rule::LeaseEndedEarly, rev, text)))
}

pub(crate) fn check(history: &History, log: &Log) -> Result<(), Violation> {
    for (index, operation) in history.operations.iter().enumerate() {
        let found = match (&operation.request, &operation.outcome) {
            (Request::Revoke { lease }, Outcome::Answered(_)) => revoked(history, log, operation, *lease),
            (_, Outcome::Refused(Refusal::LeaseNotFound)) => not_found(history, operation),
            _ => Ok(()),
        };
        found.map_err(|v| v.of_operation(index))?;
    }
    Ok(())
}

/// Was the lease, or one of the same id, asked for so late that it may live after `revoked`?
fn may_live_after(history: &History, lease: LeaseId, revoked: Time) -> bool {
    history.operations.iter().any(|o| {
        matches!(o.request, Request::Grant { lease: l, .. } if l == lease)
            && !matches!(o.outcome, Outcome::Refused(_))
            && o.returned > revoked
    })
}

/// A crash may bring an ephemeral lease back that was ended before it, with its keys.
fn may_come_back(history: &History, lease: LeaseId) -> bool {
    let ephemeral =
        |o: &Operation| matches!(o.request, Request::Grant { lease: l, durable, .. } if l == lease && !durable);
    history.epochs.iter().any(|e| !e.clean) && history.operations.iter().any(ephemeral)
}

fn revoked(history: &History, log: &Log, operation: &Operation, lease: LeaseId) -> Result<(), Violation> {
    if may_live_after(history, lease, operation.invoked) || may_come_back(history, lease) {
        return Ok(());
    }
    match log.at(log.last).attached(lease).next() {
        None => Ok(()),
        Some(kv) => {
            let text = format!("lease {lease} was revoked, and {} still has it at the end", kv.key);
            Err(Violation::new(Rule::KeyOutlivesLease, kv.modified, text))
        }
    }
}

/// A lease that nobody revoked and whose time had not come is there.
fn not_found(history: &History, operation: &Operation) -> Result<(), Violation> {
    let lease = match &operation.request {
        Request::Revoke { lease } | Request::KeepAlive { lease } => *lease,
        Request::Txn(txn) => {
            let leases = txn.success.iter().chain(&txn.failure).filter_map(|s| match s {
                crate::Step::Put { lease, .. } if *lease != 0 => Some(*lease),
                _ => None,
            });
            let leases: Vec<LeaseId> = leases.collect();
            // Of several it is not said which one is missing.
            let [lease] = leases[..] else { return Ok(()) };
            lease
        }
        _ => return Ok(()),
    };
    let sure = |o: &Operation| {
        matches!(o.request, Request::Grant { lease: l, durable: true, .. } if l == lease)
            && answered(o)
            && o.returned < operation.invoked
    };
    let ended = |o: &Operation| {
        matches!(o.request, Request::Revoke { lease: l } if l == lease)
            && o.invoked <= operation.returned
            && o != operation
    };
    if !history.operations.iter().any(sure) || history.operations.iter().any(ended) {
        return Ok(());
    }
    match earliest_end(history, lease, operation.invoked) {
        Some(earliest) if operation.returned < earliest => {
            let text = format!("lease {lease} is said not to be there; it had time until {earliest}");
            Err(Violation::new(Rule::WrongRefusal, 0, text))
        }
        _ => Ok(()),
    }
}
