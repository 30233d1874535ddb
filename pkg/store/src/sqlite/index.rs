//! Where each key's newest row is: the table `newest`, and in memory what that does not say yet.
//!
//! A commit writes its rows at the end of the log, next to one another; their places in the index lie anywhere. So the index
//! is written in rounds: when enough rows have come, the keys that they are of are entered in the order of keys, a few with a
//! commit, so that a page is written once for all of them. The more pages there are, the more rows a round takes. `meta` says through which row the index is complete; what a
//! process that ended left out is entered at the next start.
//!
//! Invariants: memory has every row that the table does not have, those of the open batch too, and a row is there before any
//! snapshot shows it; a snapshot whose table may have less than memory counts on is told by its last row, and taken anew; a row
//! is dropped from the log only once the index is complete past it.

use super::newest;
use super::queries::failed;
use crate::{KeyRange, Result};
use bytes::Bytes;
use parking_lot::RwLock;
use rusqlite::{Connection, Transaction};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Keys entered with a commit, and the part of a round that this is at most.
const STEP: usize = 128;
const STEPS: usize = 16;
/// Rows that come between two steps, and the part of a round that this is at most.
const PAUSE: usize = 32;
const PAUSES: usize = 64;
/// After the end of a round, so many rows come before memory forgets what the table has now: who had just begun to read need not
/// begin again.
const PATIENCE: usize = 64;
/// A round begins when there is a row for so many pages of the database …
const PAGES: usize = 5;
/// … and with this many times the least number of rows at the latest: with the default 65,536, of 150 bytes of memory each.
const MOST: usize = 32;

/// A row as the index names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub id: i64,
    pub live: bool,
    pub lease: i64,
}

/// Keys of a range that memory says something about, in their order.
pub(crate) type Recent = Vec<(Bytes, Point)>;

/// What memory has; shared with the readers.
#[derive(Default)]
pub(crate) struct Points {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Every row after this one is here.
    base: i64,
    /// A snapshot with a row after this one has a table that is complete through `base`. One without may have it too: rows of
    /// deletions are dropped.
    since: i64,
    /// The rows of each key, the newest one last.
    keys: BTreeMap<Bytes, Vec<Point>>,
}

impl Inner {
    /// Keys of a range and their rows.
    fn within(&self, range: &KeyRange) -> impl Iterator<Item = (&Bytes, &Vec<Point>)> {
        let start = &range.start;
        let bounds = if range.is_single() {
            (Bound::Included(start), Bound::Included(start))
        } else {
            match range.end_bound() {
                None => (Bound::Included(start), Bound::Unbounded),
                // A range without keys, which a map refuses.
                Some(end) if end <= *start => (Bound::Excluded(start), Bound::Included(start)),
                Some(_) => (Bound::Included(start), Bound::Excluded(&range.end)),
            }
        };
        self.keys.range::<Bytes, _>(bounds)
    }

    fn of_range(&self, range: &KeyRange, last: i64) -> Recent {
        self.within(range).filter_map(|(key, points)| Some((key.clone(), shown(points, last)?))).collect()
    }

    /// Has a key of the range a row after `last`?
    fn goes_beyond(&self, range: &KeyRange, last: i64) -> bool {
        self.within(range).any(|(_, points)| points.last().is_some_and(|p| p.id > last))
    }
}

/// What a snapshot whose last row is `last` shows of a key's rows.
fn shown(points: &[Point], last: i64) -> Option<Point> {
    points.iter().rev().find(|p| p.id <= last).copied()
}

impl Points {
    /// Begins to read: a snapshot, its last row, and what there is of the ranges to its table.
    pub fn begin<'a>(&self, conn: &'a Connection, ranges: &[&KeyRange]) -> Result<(Transaction<'a>, i64, Vec<Recent>)> {
        loop {
            let transaction = conn.unchecked_transaction().map_err(failed("begin to read"))?;
            let last = newest::last_row(conn)?;
            // After the snapshot: all that it has beyond its table is here, unless it is very old by now.
            let recent = match self.of_ranges(ranges, last, None) {
                None => self.of_ranges(ranges, last, Some(newest::seen(conn)?.indexed)),
                recent => recent,
            };
            if let Some(recent) = recent {
                return Ok((transaction, last, recent));
            }
        }
    }

    /// What there is to the table of a snapshot whose last row is `last`, complete through `indexed`, if that is known. `None`:
    /// the snapshot may be too old, or more must be known of it. The row of a deletion that this tells of may be gone.
    fn of_ranges(&self, ranges: &[&KeyRange], last: i64, indexed: Option<i64>) -> Option<Vec<Recent>> {
        let inner = self.inner.read();
        match indexed {
            // Rows that came after its last one may be in it and dropped already: then its table knows of them.
            Some(indexed) => {
                let through = if indexed == i64::MAX { last } else { last.max(indexed) };
                let is_enough = last > inner.since || indexed >= inner.base;
                is_enough.then(|| ranges.iter().map(|range| inner.of_range(range, through)).collect())
            }
            None if last > inner.since && !ranges.iter().any(|range| inner.goes_beyond(range, last)) => {
                Some(ranges.iter().map(|range| inner.of_range(range, last)).collect())
            }
            None => None,
        }
    }

    /// The newest row of a key.
    fn get(&self, key: &[u8]) -> Option<Point> {
        self.inner.read().keys.get(key).and_then(|points| points.last().copied())
    }

    fn add(&self, key: &Bytes, point: Point) {
        let mut inner = self.inner.write();
        match inner.keys.get_mut(key) {
            Some(points) => points.push(point),
            // The key may be a piece of a large request.
            None => drop(inner.keys.insert(Bytes::copy_from_slice(key), vec![point])),
        }
    }

    /// Takes back what came after `last`.
    fn truncate(&self, last: i64) {
        self.inner.write().keys.retain(|_, points| {
            points.retain(|p| p.id <= last);
            !points.is_empty()
        });
    }

    /// Forgets the rows through `base`, which every snapshot with a row after `since` has in its table.
    fn forget(&self, base: i64, since: i64) {
        let mut inner = self.inner.write();
        (inner.base, inner.since) = (base, since);
        inner.keys.retain(|_, points| {
            points.retain(|p| p.id > base);
            !points.is_empty()
        });
    }

    /// Keys from one on that a table which is complete through `indexed` may not have, `limit` of them at most.
    fn missing(&self, from: &Bytes, indexed: i64, limit: usize) -> Recent {
        let inner = self.inner.read();
        let newest = |points: &Vec<Point>| points.last().copied().filter(|p| p.id > indexed);
        let keys = inner.keys.range(from.clone()..).filter_map(|(key, points)| Some((key.clone(), newest(points)?)));
        keys.take(limit).collect()
    }
}

/// A round: all keys with rows through `through` are entered.
#[derive(Clone)]
struct Round {
    through: i64,
    /// The first key to look at.
    next: Bytes,
}

/// How far the index is.
#[derive(Clone)]
struct State {
    /// The table is complete through this row.
    indexed: i64,
    /// The last row that was written.
    last: i64,
    round: Option<Round>,
    /// Rows since the last round began, and since keys were entered last.
    rows: usize,
    due: usize,
}

/// The writer's side.
pub(crate) struct Index {
    pub points: Arc<Points>,
    state: State,
    /// What it was when the open batch began.
    before: Option<State>,
    /// What memory counts on the table to have.
    base: i64,
    /// Rows that come between two rounds: now, and at least.
    rows: usize,
    least: usize,
}

impl Index {
    /// Of a database whose table is complete through its last row.
    pub fn new(last: i64, least: usize, pages: usize) -> Self {
        let points = Points::default();
        points.forget(last, last - 1);
        let state = State { indexed: last, last, round: None, rows: 0, due: 0 };
        let least = least.max(1);
        let mut index = Index { points: Arc::new(points), state, before: None, base: last, rows: least, least };
        index.fit(pages);
        index
    }

    /// The database has so many pages.
    pub fn fit(&mut self, pages: usize) {
        self.rows = (pages / PAGES).clamp(self.least, self.least * MOST);
    }

    /// The newest row of a key where the table does not have it. What the table has as well may have been dropped.
    pub fn recent(&self, key: &[u8]) -> Option<Point> {
        self.points.get(key).filter(|p| p.id > self.state.indexed)
    }

    pub fn of_range(&self, range: &KeyRange) -> Recent {
        self.points.inner.read().of_range(range, i64::MAX)
    }

    fn changes(&mut self) -> &mut State {
        self.before.get_or_insert_with(|| self.state.clone());
        &mut self.state
    }

    /// A row that was written to the log.
    pub fn add(&mut self, key: &Bytes, point: Point) {
        self.points.add(key, point);
        let state = self.changes();
        (state.last, state.rows, state.due) = (point.id, state.rows + 1, state.due + 1);
    }

    /// What the commit of a batch that wrote rows brings with it. Returns how many keys were entered.
    pub fn ride(&mut self, conn: &Connection) -> Result<usize> {
        if self.before.is_none() {
            return Ok(0);
        }
        if self.is_due() {
            self.begin();
        }
        if self.state.round.is_none() || self.state.due < PAUSE.min(self.rows / PAUSES) {
            return Ok(0);
        }
        // More than came, so that the round ends.
        self.enter(conn, self.step().max(2 * self.state.due))
    }

    /// Works towards an index that is complete through `id`. Returns how many keys were entered; `None`: it is.
    pub fn reach(&mut self, conn: &Connection, id: i64) -> Result<Option<usize>> {
        if self.state.indexed >= id.min(self.state.last) {
            return Ok(None);
        }
        if self.state.round.is_none() {
            self.begin();
        }
        self.enter(conn, self.step()).map(Some)
    }

    fn step(&self) -> usize {
        STEP.min(self.rows.div_ceil(STEPS))
    }

    pub fn is_complete(&self) -> bool {
        self.state.indexed >= self.state.last
    }

    /// Is it time for a round? It may be that the database has grown, and that one is larger now.
    pub fn is_due(&self) -> bool {
        self.before.is_some() && self.state.round.is_none() && self.state.rows >= self.rows
    }

    fn begin(&mut self) {
        let state = self.changes();
        state.round = Some(Round { through: state.last, next: Bytes::new() });
        state.rows = 0;
    }

    fn enter(&mut self, conn: &Connection, limit: usize) -> Result<usize> {
        let Some(round) = self.state.round.clone() else { return Ok(0) };
        let keys = self.points.missing(&round.next, self.state.indexed, limit);
        for (key, point) in &keys {
            newest::set_point(conn, key, *point)?;
        }
        let state = self.changes();
        state.due = 0;
        match keys.last() {
            Some((last, _)) if keys.len() == limit => {
                let next = [&last[..], &[0]].concat().into();
                state.round = Some(Round { next, ..round });
            }
            _ => {
                super::queries::set_meta(conn, newest::INDEXED, round.through)?;
                (state.round, state.indexed) = (None, round.through);
            }
        }
        Ok(keys.len())
    }

    /// The batch is on the disk.
    pub fn committed(&mut self) {
        let Some(before) = self.before.take() else { return };
        // The table has this since an earlier commit.
        let known = before.indexed;
        let is_next = self.state.round.is_some() || known < self.state.indexed;
        // A snapshot with one of this batch's rows is from after that commit.
        let wrote = before.last < self.state.last;
        if wrote && self.base < known && (is_next || self.state.due >= PATIENCE.min(self.rows)) {
            self.base = known;
            self.points.forget(known, before.last);
        }
    }

    /// The batch is taken back.
    pub fn rolled_back(&mut self) {
        if let Some(before) = self.before.take() {
            self.points.truncate(before.last);
            self.state = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::newest::Seen;
    use crate::sqlite::queries;
    use crate::sqlite::{draft::Draft, files::Files};
    use crate::{Event, EventKind, KeyValue};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const KEYS: usize = 12;

    /// What a snapshot shows, as the index says it and as it really is.
    struct Snapshot {
        last: i64,
        indexed: i64,
        table: BTreeMap<Bytes, Point>,
        truth: BTreeMap<Bytes, Point>,
    }

    fn table(conn: &Connection) -> BTreeMap<Bytes, Point> {
        let mut all = BTreeMap::new();
        let every = KeyRange::prefix("");
        newest::scan(conn, &every, &Vec::new(), &mut |key, point| {
            all.insert(Bytes::copy_from_slice(key), point.point());
            Ok(true)
        })
        .unwrap();
        all
    }

    /// A deletion may be told of or not: the key is not there.
    fn alive(mut points: BTreeMap<Bytes, Point>) -> BTreeMap<Bytes, Point> {
        points.retain(|_, point| point.live);
        points
    }

    /// Laid over the table, in the range and key by key.
    fn read(points: &Points, snapshot: &Snapshot, range: &KeyRange) -> Option<BTreeMap<Bytes, Point>> {
        let within = |key: &Bytes| *key >= range.start && range.end_bound().is_none_or(|end| *key < end);
        let mut all = snapshot.table.clone();
        all.retain(|key, _| within(key));
        let by_last = points.of_ranges(&[range], snapshot.last, None);
        let recent = by_last.or_else(|| points.of_ranges(&[range], snapshot.last, Some(snapshot.indexed)))?;
        all.extend(recent.into_iter().flatten());
        Some(alive(all))
    }

    struct World {
        rng: StdRng,
        index: Index,
        truth: BTreeMap<Bytes, Point>,
        snapshots: Vec<Snapshot>,
        last: i64,
        too_old: usize,
    }

    impl World {
        fn write(&mut self, conn: &Connection) {
            for _ in 0..self.rng.random_range(1..5) {
                let key: Bytes = format!("k{:02}", self.rng.random_range(0..KEYS)).into();
                let prev = self.index.recent(&key).or_else(|| newest::point(conn, &key).unwrap());
                let live = |point: Option<Point>| point.filter(|p| p.live);
                assert_eq!(live(prev), live(self.truth.get(&key).copied()), "the writer sees its own writes");
                self.last += 1;
                let kind = if self.rng.random_range(0..4) > 0 { EventKind::Put } else { EventKind::Delete };
                let value = Bytes::new();
                let kv =
                    KeyValue { key: key.clone(), value, create_revision: 1, mod_revision: 1, version: 1, lease: 0 };
                let event = Event { kind, kv, prev: None };
                let point = queries::log_event(conn, self.last, prev.map_or(0, |p| p.id), &event).unwrap();
                self.index.add(&key, point);
                self.truth.insert(key, point);
            }
        }

        /// A compaction through `id` drops the rows of deletions, and what the index has of them.
        fn compact(&mut self, conn: &Connection, id: i64) {
            while self.index.reach(conn, id).unwrap().is_some() {}
            conn.execute("DELETE FROM log WHERE id <= ?1 AND kind = 1", [id]).unwrap();
            conn.execute("DELETE FROM newest WHERE id <= ?1 AND NOT live", [id]).unwrap();
        }

        /// Readers that took their snapshots some time ago look at memory now.
        fn look(&mut self) {
            for snapshot in &self.snapshots {
                let key = |n: usize| Bytes::from(format!("k{n:02}"));
                let (a, b) = (self.rng.random_range(0..KEYS), self.rng.random_range(0..KEYS));
                for range in [KeyRange::prefix(""), KeyRange::key(key(a)), KeyRange { start: key(a), end: key(b) }] {
                    let Some(found) = read(&self.index.points, snapshot, &range) else {
                        self.too_old += 1;
                        continue;
                    };
                    let mut want = snapshot.truth.clone();
                    want.retain(|key, _| *key >= range.start && range.end_bound().is_none_or(|end| *key < end));
                    assert_eq!(found, alive(want), "{range:?} at {:?}", snapshot.last);
                }
            }
            let newest = self.snapshots.last().unwrap();
            assert!(read(&self.index.points, newest, &KeyRange::prefix("")).is_some(), "a new snapshot will do");
        }
    }

    #[test]
    fn every_snapshot_finds_its_newest_rows() {
        let mut too_old = 0;
        for seed in 0..60 {
            let dir = tempfile::tempdir().unwrap();
            let files = Files::of(dir.path());
            let draft = Draft::begin(&files, None).unwrap();
            let conn = &draft.conn;
            conn.execute_batch("COMMIT; PRAGMA journal_mode = MEMORY").unwrap();
            queries::set_meta(conn, newest::INDEXED, 0).unwrap();
            let rng = StdRng::seed_from_u64(seed);
            let index = Index::new(0, 1 + seed as usize, 0);
            let mut world = World { rng, index, truth: BTreeMap::new(), snapshots: Vec::new(), last: 0, too_old: 0 };
            for _ in 0..200 {
                conn.execute_batch("BEGIN").unwrap();
                let (before, last) = (world.truth.clone(), world.last);
                world.write(conn);
                world.index.ride(conn).unwrap();
                if world.rng.random_range(0..6) == 0 {
                    let all = world.rng.random();
                    while world.index.reach(conn, if all { i64::MAX } else { last }).unwrap().is_some() && all {}
                }
                if world.rng.random_range(0..8) == 0 {
                    let through = if world.rng.random() { last } else { world.last };
                    world.compact(conn, through);
                }
                if world.rng.random_range(0..5) == 0 {
                    conn.execute_batch("ROLLBACK").unwrap();
                    world.index.rolled_back();
                    (world.truth, world.last) = (before, last);
                } else {
                    conn.execute_batch("COMMIT").unwrap();
                    let (Seen { last, indexed }, table) = (newest::seen(conn).unwrap(), table(conn));
                    world.snapshots.push(Snapshot { last, indexed, table, truth: world.truth.clone() });
                    if world.rng.random_range(0..3) == 0 {
                        world.look();
                    }
                    world.index.committed();
                }
                if !world.snapshots.is_empty() {
                    world.look();
                }
                let kept = world.snapshots.len().saturating_sub(40);
                world.snapshots.drain(..kept);
            }
            // What a process that ends here leaves to the next.
            for (key, point) in newest::unindexed(conn).unwrap() {
                newest::set_point(conn, &key, point).unwrap();
            }
            assert_eq!(alive(table(conn)), alive(world.truth));
            too_old += world.too_old;
        }
        assert!(too_old > 0, "some snapshots were too old");
    }
}
