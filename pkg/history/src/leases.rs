//! Leases: not before their time, and then with all their keys.

use crate::knowledge::Knowledge;
use crate::log::Log;
use crate::{History, LeaseId, Operation, Outcome, Refusal, Request, Revision, Rule, Time, Violation};

fn answered(operation: &Operation) -> bool {
    matches!(operation.outcome, Outcome::Answered(_))
}

/// Before this time the lease cannot end by itself; `None`: nobody ever asked for it.
fn earliest_end(history: &History, lease: LeaseId, by: Time) -> Option<Time> {
    let granted = |o: &&Operation| matches!(o.request, Request::Grant { lease: l, .. } if l == lease);
    let mut grants = history.operations.iter().filter(granted).filter(|o| !matches!(o.outcome, Outcome::Refused(_)));
    let grant = grants.next()?;
    let Request::Grant { ttl, .. } = grant.request else { return None };
    let kept = history.operations.iter().filter(|o| {
        matches!(o.request, Request::KeepAlive { lease: l } if l == lease) && answered(o) && o.returned <= by
    });
    Some(kept.map(|o| o.invoked).fold(grant.invoked, Time::max) + ttl)
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
            (Request::Revoke { lease }, Outcome::Answered(_)) => revoked(history, log, *lease),
            (_, Outcome::Refused(Refusal::LeaseNotFound)) => not_found(history, operation),
            _ => Ok(()),
        };
        found.map_err(|v| v.of_operation(index))?;
    }
    Ok(())
}

/// A crash may bring an ephemeral lease or key back.
fn is_ephemeral(history: &History, key: &str) -> bool {
    history.epochs.iter().any(|e| e.covers(key))
}

fn revoked(history: &History, log: &Log, lease: LeaseId) -> Result<(), Violation> {
    let kept = log.at(log.last).attached(lease).find(|kv| !is_ephemeral(history, &kv.key));
    match kept {
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
    match earliest_end(history, lease, operation.returned) {
        Some(earliest) if operation.returned < earliest => {
            let text = format!("lease {lease} is said not to be there; it had time until {earliest}");
            Err(Violation::new(Rule::WrongRefusal, 0, text))
        }
        _ => Ok(()),
    }
}
