//! What can be wrong.

use crate::Revision;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Two writes were acknowledged at one revision, or a revision does not lie above all that came before.
    RevisionReused,
    /// An acknowledged write is not in the log.
    WriteLost,
    /// What a write did is not what its request says on the state before it.
    WrongEffect,
    /// A write stands before what was known when it was asked for.
    WriteInThePast,
    /// A change that nobody asked for, or that was asked for once and happened twice.
    Unasked,
    /// A revision is missing in the log.
    Gap,
    /// A read older than what was known when it was asked for.
    StaleRead,
    /// An answer at a revision that there never was.
    FromTheFuture,
    WrongAnswer,
    WrongRefusal,
    /// A watch jumped over an event.
    EventMissed,
    /// An event that is not in the log, or again, or out of order.
    WrongEvent,
    /// What an event says stood there before did not.
    WrongPrevious,
    /// Part of a transaction's events.
    TornTransaction,
    EarlyProgress,
    /// History was refused that nobody had dropped.
    FalselyCompacted,
    LeaseEndedEarly,
    KeyOutlivesLease,
    /// What is left after a crash had never been.
    WrongSurvivor,
}

/// The first thing found to be wrong, and where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    pub message: String,
    /// 0: it is about no revision.
    pub revision: Revision,
    /// The operation's place in the history.
    pub operation: Option<usize>,
    pub watch: Option<usize>,
}

impl Violation {
    pub(crate) fn new(rule: Rule, revision: Revision, message: String) -> Self {
        Violation { rule, message, revision, operation: None, watch: None }
    }

    pub(crate) fn of_operation(self, index: usize) -> Self {
        Violation { operation: Some(index), ..self }
    }

    pub(crate) fn of_watch(self, index: usize) -> Self {
        Violation { watch: Some(index), ..self }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.message)
    }
}

impl std::error::Error for Violation {}
