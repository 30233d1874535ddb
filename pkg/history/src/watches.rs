//! Each watch against the log: every transaction of its range once, whole, in order, none missed.

use crate::knowledge::Knowledge;
use crate::log::Log;
use crate::{Event, History, Kv, Note, Revision, Rule, Time, Violation, WatchLog};

pub(crate) fn check(history: &History, log: &Log, known: &Knowledge<'_>) -> Result<(), Violation> {
    for (index, watch) in history.watches.iter().enumerate() {
        let mut check = Check { log, known, watch, next: watch.start, created: watch.start > 0 };
        if watch.start == 0 {
            // Until the server says where it begins, it begins after what was known.
            check.next = known.before(watch.invoked) + 1;
        }
        for (at, note) in &watch.notes {
            check.note(*at, note).map_err(|v| v.of_watch(index))?;
        }
    }
    Ok(())
}

struct Check<'a> {
    log: &'a Log,
    known: &'a Knowledge<'a>,
    watch: &'a WatchLog,
    /// Everything of the range before this revision has been told.
    next: Revision,
    /// `next` is exact from the beginning.
    created: bool,
}

fn wrong(rule: Rule, rev: Revision, text: String) -> Result<(), Violation> {
    Err(Violation::new(rule, rev, text))
}

impl Check<'_> {
    fn note(&mut self, at: Time, note: &Note) -> Result<(), Violation> {
        match note {
            Note::Created(rev) => {
                if !self.created {
                    self.next = self.next.max(rev + 1);
                    self.created = true;
                }
                Ok(())
            }
            Note::Events(rev, events) => self.events(at, *rev, events),
            Note::Progress(rev) => self.progress(*rev),
            Note::Compacted(rev) => self.compacted(at, *rev),
            Note::Ended(_) => Ok(()),
        }
    }

    /// The next transaction of the range, from `self.next` on.
    fn due(&self) -> Option<(Revision, Vec<&Event>)> {
        self.log.from(self.next).find_map(|(rev, events)| {
            let mine: Vec<&Event> = events.iter().filter(|e| self.watch.keys.contains(&e.kv.key)).collect();
            (!mine.is_empty()).then_some((*rev, mine))
        })
    }

    fn events(&mut self, at: Time, rev: Revision, events: &[Event]) -> Result<(), Violation> {
        if rev < self.next {
            let text = format!("events of {rev}, and everything before {} had been told already", self.next);
            return wrong(Rule::WrongEvent, rev, text);
        }
        let Some((due, want)) = self.due().filter(|(due, _)| *due <= rev) else {
            return wrong(
                Rule::WrongEvent,
                rev,
                format!("events of {rev}, where the log has none of this range: {events:?}"),
            );
        };
        if due < rev && self.created {
            return wrong(
                Rule::EventMissed,
                due,
                format!("events of {rev} came, and those of {due} never did: {want:?}"),
            );
        }
        if due < rev {
            // Nobody said where this watch began: it begins here.
            self.next = rev;
            self.created = true;
            return self.events(at, rev, events);
        }
        let mut got: Vec<&Event> = events.iter().collect();
        got.sort_by(|a, b| a.kv.key.cmp(&b.kv.key));
        if got.len() < want.len() && got.iter().all(|g| want.iter().any(|w| w.kv == g.kv)) {
            return wrong(Rule::TornTransaction, rev, format!("{} of the {} events of {rev}", got.len(), want.len()));
        }
        let same =
            got.len() == want.len() && got.iter().zip(&want).all(|(g, w)| (&g.kv, g.deleted) == (&w.kv, w.deleted));
        if !same {
            return wrong(Rule::WrongEvent, rev, format!("events of {rev} are {got:?}; the log has {want:?}"));
        }
        for event in events {
            self.previous(at, rev, event)?;
        }
        self.next = rev + 1;
        self.created = true;
        Ok(())
    }

    /// What stood there may be missing only where the history before may be gone.
    fn previous(&self, at: Time, rev: Revision, event: &Event) -> Result<(), Violation> {
        let want: Option<&Kv> = self.log.at(rev - 1).get(&event.kv.key);
        let may_be_gone = || self.known.compacted_by(Some(&self.watch.keys), at) >= rev;
        match (&event.prev, want) {
            (None, None) => Ok(()),
            (Some(got), Some(want)) if got == want => Ok(()),
            (None, Some(_)) if !self.watch.prev || may_be_gone() => Ok(()),
            (got, want) => {
                let text = format!("{} at {rev}: {got:?} stood there before, instead of {want:?}", event.kv.key);
                wrong(Rule::WrongPrevious, rev, text)
            }
        }
    }

    fn progress(&mut self, rev: Revision) -> Result<(), Violation> {
        if rev > self.log.last {
            return wrong(Rule::FromTheFuture, rev, format!("progress {rev}; the log ends at {}", self.log.last));
        }
        if self.created
            && let Some((due, events)) = self.due().filter(|(due, _)| *due <= rev)
        {
            let text = format!("progress {rev}, and the events of {due} had not been told: {events:?}");
            return wrong(Rule::EarlyProgress, due, text);
        }
        // A watch that begins in the future is told where the store is.
        self.next = self.next.max(rev + 1);
        self.created = true;
        Ok(())
    }

    fn compacted(&self, at: Time, rev: Revision) -> Result<(), Violation> {
        let through = self.known.compacted_by(Some(&self.watch.keys), at);
        if self.next < through && rev <= through {
            return Ok(());
        }
        let text = format!(
            "ended for a compaction at {rev}; it was at {}, and {through} is the newest that can be",
            self.next
        );
        wrong(Rule::FalselyCompacted, rev, text)
    }
}
