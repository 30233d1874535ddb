//! Drops what nobody may read any more, in small steps that fit between commits.
//!
//! What a row supersedes lies anywhere in the log. So the rows to drop are gathered over a long stretch of the log first, and
//! then go in the log's order: a page whose rows all go is given up as it is, and not written again for each of them.
//!
//! Invariants: a row goes only after what it supersedes, so a chain is cut at its old end alone; whoever cannot
//! commit a step makes the compaction anew from its span; on disk the compaction has come as far as all is dropped, what was only gathered is gathered anew.

use super::queries::{self, failed, row_id, row_revision};
use crate::{Result, Revision};
use rusqlite::Connection;

/// How much is done at a time.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// Rows that a step looks at …
    pub look: usize,
    /// … or drops.
    pub drop: usize,
    /// Rows to drop that are gathered; 16 bytes each.
    pub gather: usize,
}

pub(crate) const PACE: Pace = Pace { look: 1024, drop: 512, gather: 128 << 10 };

/// Runs to the rows of revision `to`, which stay themselves: a watch may start there.
pub(crate) struct Compaction {
    /// What rows before this one supersede is dropped.
    from: i64,
    to: Revision,
    /// Where to look next; `None`: all has been looked at.
    next: Option<i64>,
    /// Rows to drop, the next one last, once all are gathered; and whether they are deletions.
    doomed: Vec<(i64, bool)>,
    gathered: bool,
}

impl Compaction {
    pub fn new(from: i64, to: Revision) -> Self {
        Compaction { from, to, next: Some(from), doomed: Vec::new(), gathered: false }
    }

    /// Where one that is to begin instead of this one must begin: deletions before `to` itself are looked at again.
    pub fn resume_at(&self) -> i64 {
        self.from.min(row_id(self.to, 0))
    }

    /// Of what one is made that does again what this one has not come to the end of.
    pub fn span(&self) -> (i64, Revision) {
        (self.from, self.to)
    }

    /// One step inside the open SQL transaction. True: all is done.
    pub fn step(&mut self, conn: &Connection, pace: Pace) -> Result<bool> {
        if !self.gathered {
            self.look(conn, pace)?;
        } else {
            let rest = self.doomed.len().saturating_sub(pace.drop);
            let rows = self.doomed.drain(rest..).rev();
            queries::drop_rows(conn, rows).map_err(failed("compact the history"))?;
        }
        if self.gathered && self.doomed.is_empty() { self.advance(conn) } else { Ok(false) }
    }

    fn look(&mut self, conn: &Connection, pace: Pace) -> Result<()> {
        let Some(from) = self.next else { return Ok(()) };
        let links = queries::links(conn, from, self.to, pace.look).map_err(failed("compact the history"))?;
        for link in &links {
            if link.prev != 0 && row_revision(link.prev) < self.to {
                self.doomed.push((link.prev, false));
            }
            if !link.put && row_revision(link.id) < self.to {
                self.doomed.push((link.id, true));
            }
        }
        self.next = links.last().filter(|_| links.len() == pace.look).map(|last| last.id + 1);
        if self.next.is_none() || self.doomed.len() >= pace.gather {
            // Of a row that is there twice, the one that knows it for a deletion.
            self.doomed.sort_unstable_by(|a, b| b.cmp(a));
            self.doomed.dedup_by_key(|(id, _)| *id);
            self.gathered = true;
        }
        Ok(())
    }

    /// The next compaction begins at the rows of this one's revision: their tombstones go then.
    fn advance(&mut self, conn: &Connection) -> Result<bool> {
        let through = self.next.unwrap_or(row_id(self.to, 0));
        queries::set_meta(conn, "compacted_through", through)?;
        if let Some(next) = self.next {
            *self = Compaction::new(next, self.to);
        }
        Ok(self.next.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HistoryHasher;
    use crate::sqlite::{draft::Draft, files::Files, newest};
    use crate::{Event, EventKind, KeyRange, KeyValue, RangeRequest};
    use std::collections::{BTreeMap, BTreeSet};

    const KEYS: i64 = 7;

    /// Puts, and at times a deletion, of keys in a scattered order; several in some revisions.
    fn fill(conn: &Connection, revisions: i64) {
        let mut live: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
        for rev in 2..=revisions {
            for sub in 0..1 + (rev % 3 == 0) as i64 {
                let n = (rev * 5 + sub * 3 + rev / 11) % KEYS;
                let put = rev % 4 != 1 || !live.contains_key(&n);
                let (created, version) = live.get(&n).map_or((rev, 1), |(c, v)| (*c, v + 1));
                if put {
                    live.insert(n, (created, version))
                } else {
                    live.remove(&n)
                };
                let kv = KeyValue {
                    key: format!("k{n}").into(),
                    value: if put { format!("{rev}-{sub}").into() } else { Default::default() },
                    create_revision: if put { created } else { 0 },
                    mod_revision: rev,
                    version: if put { version } else { 0 },
                    lease: 0,
                };
                let kind = if put { EventKind::Put } else { EventKind::Delete };
                queries::append(conn, rev, sub as u32, &Event { kind, kv, prev: None }).unwrap();
            }
        }
    }

    fn rows(conn: &Connection) -> BTreeSet<i64> {
        let mut ids = conn.prepare("SELECT id FROM log").unwrap();
        ids.query_map([], |r| r.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    fn newest(conn: &Connection) -> BTreeSet<i64> {
        let mut ids = conn.prepare("SELECT id FROM newest").unwrap();
        ids.query_map([], |r| r.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    /// What must stay of `all`, told without any order of work: of each key what is newest at `to`, unless it is a deletion
    /// before it, and everything since.
    fn wanted(conn: &Connection, to: Revision) -> BTreeSet<i64> {
        let sql = "SELECT id FROM log l WHERE id >= ?1 OR (kind = 0 AND NOT EXISTS
                   (SELECT 1 FROM log n WHERE n.key = l.key AND n.id > l.id AND n.id <= ?2))";
        let mut ids = conn.prepare(sql).unwrap();
        let bounds = [row_id(to, 0), queries::last_id(to)];
        ids.query_map(bounds, |r| r.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    fn history(conn: &Connection, compacted: Revision, at: Revision) -> u32 {
        let mut hasher = HistoryHasher::new();
        queries::hash(conn, &mut hasher, compacted, at).unwrap();
        hasher.finish()
    }

    #[test]
    fn whatever_the_pace_and_wherever_it_is_broken_off_the_same_rows_stay() {
        let read = |conn: &Connection, at| {
            let all = RangeRequest::new(KeyRange::prefix("k"));
            format!("{:?}", newest::range_at(conn, &all, at, &Vec::new()).unwrap().kvs)
        };
        for pace in [PACE, Pace { look: 3, drop: 2, gather: 5 }, Pace { look: 1, drop: 1, gather: 1 }] {
            let dir = tempfile::tempdir().unwrap();
            let files = Files::of(dir.path());
            let draft = Draft::begin(&files, None).unwrap();
            let conn = &draft.conn;
            fill(conn, 120);
            let mut begun_at = 0;
            for to in [40, 41, 90, 120] {
                queries::set_meta(conn, "compacted", to).unwrap();
                let (stay, seen, summed) = (wanted(conn, to), read(conn, to), history(conn, to, 120));
                let mut compaction = Compaction::new(begun_at, to);
                let mut steps = 0;
                while !compaction.step(conn, pace).unwrap() {
                    steps += 1;
                    assert_eq!(read(conn, to), seen, "to {to}, step {steps}");
                    assert_eq!(history(conn, to, 120), summed, "to {to}, step {steps}");
                    // As after a crash, when what had been gathered is forgotten.
                    if steps % 13 == 0 {
                        let through = queries::meta(conn, "compacted_through").unwrap().unwrap_or(0);
                        assert_eq!(through, compaction.span().0);
                        compaction = Compaction::new(through, to);
                    }
                    assert!(steps < 10_000);
                }
                assert_eq!(rows(conn), stay, "to {to}");
                assert!(newest(conn).is_subset(&stay), "to {to}");
                begun_at = queries::meta(conn, "compacted_through").unwrap().unwrap();
            }
        }
    }
}
