//! Leases: not before their time, and then with all their keys.

use crate::knowledge::Knowledge;
use crate::log::Log;
use crate::{History, LeaseId, Operation, Outcome, Refusal, Request, Revision, Rule, Time, Violation};
use std::collections::HashMap;

/// The operations of each lease.
pub(crate) struct Leases<'a> {
    operations: HashMap<LeaseId, Vec<&'a Operation>>,
    after_a_crash: bool,
}

impl<'a> Leases<'a> {
    pub fn of(history: &'a History) -> Self {
        let mut operations: HashMap<LeaseId, Vec<&Operation>> = HashMap::new();
        for operation in &history.operations {
            match operation.request {
                Request::Grant { lease, .. } | Request::KeepAlive { lease } | Request::Revoke { lease } => {
                    operations.entry(lease).or_default().push(operation);
                }
                _ => {}
            }
        }
        Leases { operations, after_a_crash: history.epochs.iter().any(|e| !e.clean) }
    }

    fn of_lease(&self, lease: LeaseId) -> impl Iterator<Item = &'a Operation> {
        self.operations.get(&lease).into_iter().flatten().copied()
    }
}

fn answered(operation: &Operation) -> bool {
    matches!(operation.outcome, Outcome::Answered(_))
}

/// Before this time the lease cannot end by itself, where it is looked at `by`; `None`: nobody had asked for it. An id may
/// be used again after its lease has ended, so that of several grants the first counts.
fn earliest_end(leases: &Leases<'_>, lease: LeaseId, by: Time) -> Option<Time> {
    let granted = leases.of_lease(lease).filter_map(|o| match o.request {
        Request::Grant { ttl, .. } if o.invoked <= by => {
            (!matches!(o.outcome, Outcome::Refused(_))).then_some((o.invoked, ttl))
        }
        _ => None,
    });
    let (first, ttl) = granted.min()?;
    let keeps = |o: &&Operation| matches!(o.request, Request::KeepAlive { .. }) && answered(o) && o.returned <= by;
    let kept = leases.of_lease(lease).filter(keeps);
    Some(kept.map(|o| o.invoked).fold(first, Time::max) + ttl)
}

/// Could the lease have ended at `rev`? An error: its time had not come. `None`: nobody ever asked for such a lease.
pub(crate) fn could_end(
    leases: &Leases<'_>,
    known: &Knowledge<'_>,
    lease: LeaseId,
    rev: Revision,
) -> Option<Result<(), Violation>> {
    let revoked = leases.of_lease(lease).any(|o| {
        matches!(o.request, Request::Revoke { .. })
            && !matches!(o.outcome, Outcome::Refused(_))
            && known.before(o.invoked) < rev
    });
    if revoked {
        return Some(Ok(()));
    }
    let seen = known.first_known(rev).unwrap_or(Time::MAX);
    let earliest = earliest_end(leases, lease, seen)?;
    if seen >= earliest {
        return Some(Ok(()));
    }
    let text = format!("revision {rev}: lease {lease} ended by {seen}, and had time until {earliest}");
    Some(Err(Violation::new(Rule::LeaseEndedEarly, rev, text)))
}

pub(crate) fn check(history: &History, leases: &Leases<'_>, log: &Log) -> Result<(), Violation> {
    for (index, operation) in history.operations.iter().enumerate() {
        let found = match (&operation.request, &operation.outcome) {
            (Request::Revoke { lease }, Outcome::Answered(_)) => revoked(leases, log, operation, *lease),
            (_, Outcome::Refused(Refusal::LeaseNotFound)) => not_found(leases, operation),
            _ => Ok(()),
        };
        found.map_err(|v| v.of_operation(index))?;
    }
    Ok(())
}

/// Was the lease, or one of the same id, asked for so late that it may live after `revoked`?
fn may_live_after(leases: &Leases<'_>, lease: LeaseId, revoked: Time) -> bool {
    leases.of_lease(lease).any(|o| {
        matches!(o.request, Request::Grant { .. }) && !matches!(o.outcome, Outcome::Refused(_)) && o.returned > revoked
    })
}

/// A crash may take an ephemeral lease away, and may bring one back that was ended before it, with its keys.
fn may_come_and_go(leases: &Leases<'_>, lease: LeaseId) -> bool {
    let ephemeral = |o: &Operation| matches!(o.request, Request::Grant { durable: false, .. });
    leases.after_a_crash && leases.of_lease(lease).any(ephemeral)
}

fn revoked(leases: &Leases<'_>, log: &Log, operation: &Operation, lease: LeaseId) -> Result<(), Violation> {
    if may_live_after(leases, lease, operation.invoked) || may_come_and_go(leases, lease) {
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
fn not_found(leases: &Leases<'_>, operation: &Operation) -> Result<(), Violation> {
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
        matches!(o.request, Request::Grant { durable: true, .. }) && answered(o) && o.returned < operation.invoked
    };
    let ended = |o: &Operation| {
        matches!(o.request, Request::Revoke { .. }) && o.invoked <= operation.returned && o != operation
    };
    let uncertain = leases.of_lease(lease).any(ended) || may_come_and_go(leases, lease);
    if uncertain || !leases.of_lease(lease).any(sure) {
        return Ok(());
    }
    match earliest_end(leases, lease, operation.invoked) {
        Some(earliest) if operation.returned < earliest => {
            let text = format!("lease {lease} is said not to be there; it had time until {earliest}");
            Err(Violation::new(Rule::WrongRefusal, 0, text))
        }
        _ => Ok(()),
    }
}
