//! What was known at which time: revisions, and compactions. Real time's side of linearizability.

use crate::{Epoch, History, Keys, Note, Outcome, Request, Revision, Time};

/// Every revision that a client was told, by when it was told first.
pub(crate) struct Knowledge<'a> {
    /// Ascending in both: at this time at least this revision was known.
    steps: Vec<(Time, Revision)>,
    compactions: Vec<Compaction>,
    epochs: &'a [Epoch],
}

struct Compaction {
    revision: Revision,
    invoked: Time,
    acknowledged: Option<Time>,
}

impl<'a> Knowledge<'a> {
    pub fn of(history: &'a History) -> Self {
        let answers = history.operations.iter().filter_map(|o| match &o.outcome {
            Outcome::Answered(answer) => Some((o.returned, answer.revision())),
            _ => None,
        });
        let notes = history.watches.iter().flat_map(|w| &w.notes).filter_map(|(at, note)| match note {
            Note::Created(rev) | Note::Events(rev, _) | Note::Progress(rev) => Some((*at, *rev)),
            Note::Compacted(_) | Note::Ended(_) => None,
        });
        let epochs = history.epochs.iter().map(|e| (e.at, e.revision));
        let mut told: Vec<(Time, Revision)> = answers.chain(notes).chain(epochs).collect();
        told.sort_unstable();
        let mut steps: Vec<(Time, Revision)> = vec![(0, history.base)];
        for (at, rev) in told {
            if steps.last().is_none_or(|(_, known)| rev > *known) {
                steps.push((at, rev));
            }
        }
        Knowledge { steps, compactions: compactions(history), epochs: &history.epochs }
    }

    /// The newest revision that somebody knew before `at`.
    pub fn before(&self, at: Time) -> Revision {
        let i = self.steps.partition_point(|(t, _)| *t < at);
        if i == 0 { 0 } else { self.steps[i - 1].1 }
    }

    /// When `rev` was first known to exist; `None`: never.
    pub fn first_known(&self, rev: Revision) -> Option<Time> {
        let i = self.steps.partition_point(|(_, known)| *known < rev);
        self.steps.get(i).map(|(t, _)| *t)
    }

    /// Below which revision history may have been dropped by `at`. `keys`: whose history.
    pub fn compacted_by(&self, keys: Option<&Keys>, at: Time) -> Revision {
        let asked = self.compactions.iter().filter(|c| c.invoked < at).map(|c| c.revision);
        // The history of ephemeral keys begins anew with every start: after its revision.
        let started = self.epochs.iter().filter(|e| e.at <= at && keys.is_some_and(|k| e.meets(k)));
        asked.chain(started.map(|e| e.revision + 1)).max().unwrap_or(0)
    }

    /// The newest compaction that was acknowledged before `at`, by the server that runs: one that has nothing to drop need
    /// not outlive it.
    pub fn compacted_before(&self, at: Time) -> Revision {
        let started = self.epochs.iter().map(|e| e.at).filter(|t| *t <= at).max().unwrap_or(0);
        let done = self.compactions.iter().filter(|c| c.acknowledged.is_some_and(|t| t < at) && c.invoked >= started);
        done.map(|c| c.revision).max().unwrap_or(0)
    }
}

fn compactions(history: &History) -> Vec<Compaction> {
    let of = |o: &crate::Operation| {
        let Request::Compact { revision } = o.request else { return None };
        let acknowledged = matches!(o.outcome, Outcome::Answered(_)).then_some(o.returned);
        (!matches!(o.outcome, Outcome::Refused(_))).then_some(Compaction { revision, invoked: o.invoked, acknowledged })
    };
    history.operations.iter().filter_map(of).collect()
}
