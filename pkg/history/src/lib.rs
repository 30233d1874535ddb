//! Was what clients saw of a datastore that speaks etcd's model right? [`check`] answers for a recorded concurrent history of
//! operations and watches, exactly: every write says its revision, so the order of all writes is known and only writes
//! whose outcome nobody was told have to be placed.
//!
//! What is checked:
//! - Writes: each acknowledged one stands in the log at its revision with the effect that the state before it makes of it;
//!   no revision belongs to two; nothing stands in the log that nobody asked for; real time is respected.
//! - Reads: the answer is the state at its revision, which is no older than anything that was known when it was asked for.
//! - Refusals are true: what is said to be compacted, in the future, without a lease, is.
//! - Watches: each transaction of the range once, whole, in order, none missed, with what stood there before; progress is
//!   never announced before the events that it covers.
//! - Leases: keys end with them, and not before their time.
//! - Epochs: ephemeral keys may fall back after a crash, but only to what they had been, and under a new revision.
//!
//! Nothing here knows a store: the crate must stay independent of what it judges.

mod eval;
mod history;
mod knowledge;
mod leases;
mod log;
mod operations;
mod report;
mod unclaimed;
mod violation;
mod watches;

pub use history::*;
pub use report::report;
pub use violation::{Rule, Violation};

/// What a history that is right consisted of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Transactions in the log.
    pub transactions: usize,
    pub acknowledged: usize,
    pub refused: usize,
    /// Operations whose outcome nobody was told …
    pub unknown: usize,
    /// … and how many of these happened.
    pub happened: usize,
    pub reads: usize,
    pub watches: usize,
    pub events: usize,
}

/// Checks everything; the first violation ends it.
pub fn check(history: &History) -> Result<Summary, Violation> {
    let known = knowledge::Knowledge::of(history);
    let claims = operations::claims(history)?;
    let log = log::Log::build(history, &claims, &known)?;
    operations::check(history, &log, &known)?;
    let leases = leases::Leases::of(history);
    let happened = unclaimed::check(history, &log, &known, &leases, &claims)?;
    leases::check(history, &leases, &log)?;
    watches::check(history, &log, &known)?;
    let count = |f: fn(&Operation) -> bool| history.operations.iter().filter(|o| f(o)).count();
    Ok(Summary {
        transactions: log.len(),
        acknowledged: count(|o| matches!(o.outcome, Outcome::Answered(_))),
        refused: count(|o| matches!(o.outcome, Outcome::Refused(_))),
        unknown: count(|o| matches!(o.outcome, Outcome::Unknown)),
        happened,
        reads: count(|o| matches!(o.request, Request::Get(_))),
        watches: history.watches.len(),
        events: history.watches.iter().map(WatchLog::events).sum(),
    })
}
