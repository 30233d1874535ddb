//! Newest rows of keys, kept in memory up to a bound: what a put reads before it writes, what is got often, lists. On the disk
//! rows stand in the order of their writing, so a list of keys that were written again reads a page for each.
//!
//! Invariants: only committed rows are kept, and of each key none but the newest: the writer brings a key's row here, or takes it
//! out, with the commit that makes it the newest, before anyone hears of that commit. What is kept is a copy of its own, and not a
//! slice of a request that would keep all of it alive.

use super::index::Recent;
use super::newest;
use crate::log::shaped;
use crate::{KeyValue, RangeRequest, RangeResponse, Result, Revision, select};
use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::Connection;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

/// Readers and the writer seldom meet in one.
const SHARDS: usize = 16;
/// Of a row beside its bytes, about.
const OVERHEAD: usize = 192;
/// The part of all room that one range may take: it must not push out everything else.
const SHARE: usize = 4;

pub(crate) struct Rows {
    shards: Vec<Mutex<Shard>>,
    hashes: RandomState,
    /// Bytes in a shard.
    limit: usize,
}

#[derive(Default)]
struct Shard {
    rows: HashMap<Bytes, Kept>,
    /// Keys as they came: the ones to go next are in front, unless they were used meanwhile. A key that is forgotten stays here
    /// until it comes to the front.
    order: VecDeque<Bytes>,
    bytes: usize,
    /// The last one of the rows that went. A reader whose snapshot does not show that one may have read what was the newest before it.
    gone: i64,
}

struct Kept {
    id: i64,
    kv: KeyValue,
    used: bool,
}

fn weight(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len() + OVERHEAD
}

impl Rows {
    /// 0 bytes: nothing is kept.
    pub fn new(bytes: usize) -> Self {
        let shards = std::iter::repeat_with(Mutex::default).take(SHARDS).collect();
        Rows { shards, hashes: RandomState::new(), limit: bytes / SHARDS }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<Shard> {
        &self.shards[self.hashes.hash_one(key) as usize % SHARDS]
    }

    fn find(&self, key: &[u8], id: i64) -> Option<KeyValue> {
        let mut shard = self.shard(key).lock();
        shard.find(key).filter(|kept| kept.id == id).map(|kept| kept.kv.clone())
    }

    /// The newest row of a key as of the last commit, if it is here.
    fn newest(&self, key: &[u8]) -> Option<KeyValue> {
        self.shard(key).lock().find(key).map(|kept| kept.kv.clone())
    }

    /// The id of that.
    pub fn newest_id(&self, key: &[u8]) -> Option<i64> {
        self.shard(key).lock().find(key).map(|kept| kept.id)
    }

    /// The answer as of the last commit to a request for a single key at the newest revision, and the key's own one, if its row is
    /// here. The answer's revision is left 0.
    pub fn answer(&self, req: &RangeRequest) -> Option<(Revision, RangeResponse)> {
        let kv = self.newest(&req.range.start)?;
        let revision = kv.mod_revision;
        let of = |req: &RangeRequest| RangeResponse {
            count: 1,
            kvs: if req.count_only { Vec::new() } else { vec![shaped(kv, req.keys_only)] },
            ..Default::default()
        };
        let answer = match select::plain(req) {
            None => of(req),
            Some(plain) => select::pick(req, of(&plain)),
        };
        Some((revision, answer))
    }

    /// Keeps a row that was read in a snapshot of which `last` is the last row.
    fn keep_read(&self, last: i64, id: i64, kv: KeyValue) {
        let mut shard = self.shard(&kv.key).lock();
        if weight(&kv) <= self.limit / SHARE && last >= shard.gone {
            shard.insert(id, kv, self.limit);
        }
    }

    /// Keeps the row of a commit, a copy of it.
    pub fn keep_written(&self, id: i64, kv: &KeyValue) {
        if weight(kv) > self.limit / SHARE {
            return self.forget(&kv.key, id);
        }
        let (key, value) = (Bytes::copy_from_slice(&kv.key), Bytes::copy_from_slice(&kv.value));
        self.shard(&kv.key).lock().insert(id, KeyValue { key, value, ..*kv }, self.limit);
    }

    /// The newest row of a key is this one now, and it is not kept: a deletion, or too large.
    pub fn forget(&self, key: &[u8], id: i64) {
        let mut shard = self.shard(key).lock();
        shard.gone = shard.gone.max(id);
        if let Some(kept) = shard.rows.remove(key) {
            shard.bytes -= weight(&kept.kv);
        }
    }

    /// A key's newest row, which has this id. What the writer reads is not kept: it may never be committed.
    pub fn get(&self, conn: &Connection, key: &[u8], id: i64) -> Result<Option<KeyValue>> {
        match self.find(key, id) {
            Some(kv) => Ok(Some(kv)),
            None => newest::newest_row(conn, key, id, true),
        }
    }

    /// The answer from the newest rows of a snapshot, of which `last` is the last one; its revision is left 0.
    pub fn range(&self, conn: &Connection, req: &RangeRequest, last: i64, recent: &Recent) -> Result<RangeResponse> {
        if req.count_only || req.keys_only || self.limit == 0 {
            return newest::range_newest(conn, req, recent);
        }
        let room = match req.limit {
            0 => usize::MAX,
            // Without a count, one more than asked tells whether there is more.
            n => n.saturating_add(usize::from(req.uncounted)),
        };
        let mut kvs = self.scan(conn, req, last, recent, room)?;
        if req.limit == 0 || kvs.len() < req.limit {
            let count = kvs.len() as u64;
            return Ok(RangeResponse { kvs, count, ..Default::default() });
        }
        if req.uncounted {
            let more = kvs.len() > req.limit;
            kvs.truncate(req.limit);
            return Ok(RangeResponse { count: kvs.len() as u64, kvs, more, ..Default::default() });
        }
        let count = newest::count(conn, &req.range, recent)?;
        Ok(RangeResponse { count, more: count > kvs.len() as u64, kvs, ..Default::default() })
    }

    fn scan(
        &self,
        conn: &Connection,
        req: &RangeRequest,
        last: i64,
        recent: &Recent,
        room: usize,
    ) -> Result<Vec<KeyValue>> {
        let (mut kvs, mut kept) = (Vec::new(), 0);
        newest::scan(conn, &req.range, recent, &mut |key, found| {
            let Some(id) = found.row() else { return Ok(true) };
            let kv = match self.find(key, id) {
                Some(kv) => kv,
                None => {
                    let Some(kv) = newest::newest_row(conn, key, id, true)? else { return Ok(true) };
                    kept += weight(&kv);
                    if kept <= self.limit / SHARE * SHARDS {
                        self.keep_read(last, id, kv.clone());
                    }
                    kv
                }
            };
            kvs.push(kv);
            Ok(kvs.len() < room)
        })?;
        Ok(kvs)
    }
}

impl Shard {
    fn find(&mut self, key: &[u8]) -> Option<&Kept> {
        let kept = self.rows.get_mut(key)?;
        kept.used = true;
        Some(kept)
    }

    fn insert(&mut self, id: i64, kv: KeyValue, limit: usize) {
        let bytes = weight(&kv);
        match self.rows.get_mut(&kv.key) {
            // A reader of an older snapshot.
            Some(kept) if kept.id >= id => return,
            Some(kept) => {
                self.bytes = self.bytes + bytes - weight(&kept.kv);
                *kept = Kept { id, kv, used: kept.used };
            }
            None => {
                self.order.push_back(kv.key.clone());
                self.bytes += bytes;
                self.rows.insert(kv.key.clone(), Kept { id, kv, used: false });
            }
        }
        self.shrink(limit);
    }

    fn shrink(&mut self, limit: usize) {
        // Mostly keys that were forgotten.
        if self.order.len() > 2 * self.rows.len() + 64 {
            self.order = self.rows.keys().cloned().collect();
        }
        while self.bytes > limit
            && let Some(key) = self.order.pop_front()
        {
            let was_used = self.rows.get_mut(&key).is_some_and(|kept| std::mem::take(&mut kept.used));
            if was_used {
                self.order.push_back(key);
            } else if let Some(kept) = self.rows.remove(&key) {
                self.bytes -= weight(&kept.kv);
                self.gone = self.gone.max(kept.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeyRange, Order, RevisionBounds};

    fn kv(key: &str, value: usize, rev: i64) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: vec![b'x'; value].into(),
            create_revision: 1,
            mod_revision: rev,
            version: 1,
            lease: 0,
        }
    }

    fn bytes(rows: &Rows) -> usize {
        rows.shards.iter().map(|s| s.lock().bytes).sum()
    }

    #[test]
    fn rows_are_told_apart_by_their_ids() {
        let rows = Rows::new(1 << 20);
        rows.keep_written(7, &kv("a", 10, 7));
        assert_eq!(rows.find(b"a", 7).unwrap().mod_revision, 7);
        assert_eq!(rows.newest_id(b"a"), Some(7));
        assert!(rows.find(b"a", 6).is_none() && rows.find(b"b", 7).is_none() && rows.newest(b"b").is_none());
        rows.forget(b"a", 8);
        assert!(rows.find(b"a", 7).is_none() && rows.newest(b"a").is_none());
        assert_eq!(bytes(&rows), 0);
    }

    #[test]
    fn a_reader_that_is_behind_does_not_bring_an_older_row_back() {
        let rows = Rows::new(1 << 20);
        rows.keep_written(7, &kv("a", 10, 7));
        rows.keep_read(5, 5, kv("a", 10, 5));
        assert_eq!(rows.newest_id(b"a"), Some(7));
        // Deleted, or too large to be kept, after the reader had begun.
        rows.forget(b"a", 8);
        rows.keep_read(7, 7, kv("a", 10, 7));
        assert_eq!(rows.newest_id(b"a"), None);
        rows.keep_read(9, 9, kv("a", 10, 9));
        assert_eq!(rows.newest_id(b"a"), Some(9));
        rows.keep_written(10, &kv("a", 1 << 20, 10));
        rows.keep_read(9, 9, kv("a", 10, 9));
        assert_eq!(rows.newest_id(b"a"), None);
        // Pushed out by others since.
        rows.keep_written(11, &kv("b", 10, 11));
        for n in 12..5_000 {
            rows.keep_written(n, &kv(&format!("k{n}"), 1000, n));
        }
        assert_eq!(rows.newest_id(b"b"), None);
        rows.keep_read(10, 10, kv("b", 10, 10));
        assert_eq!(rows.newest_id(b"b"), None);
        rows.keep_read(5_000, 11, kv("b", 10, 11));
        assert_eq!(rows.newest_id(b"b"), Some(11));
    }

    #[test]
    fn a_row_answers_what_a_snapshot_would() {
        let rows = Rows::new(1 << 20);
        rows.keep_written(7, &kv("a", 10, 7));
        let req = RangeRequest::new(KeyRange::key("a"));
        let shape = |req: &RangeRequest| {
            let (revision, answer) = rows.answer(req).unwrap();
            (revision, answer.count, answer.more, answer.kvs.iter().map(|kv| kv.value.len()).collect::<Vec<_>>())
        };
        assert_eq!(shape(&req), (7, 1, false, vec![10]));
        assert_eq!(shape(&RangeRequest { limit: 1, ..req.clone() }), (7, 1, false, vec![10]));
        assert_eq!(shape(&RangeRequest { keys_only: true, ..req.clone() }), (7, 1, false, vec![0]));
        assert_eq!(shape(&RangeRequest { count_only: true, ..req.clone() }), (7, 1, false, vec![]));
        assert_eq!(shape(&RangeRequest { order: Order::Descend, ..req.clone() }), (7, 1, false, vec![10]));
        let newer = RevisionBounds { min: 8, ..Default::default() };
        assert_eq!(shape(&RangeRequest { mod_revisions: newer, ..req.clone() }), (7, 1, false, vec![]));
        assert!(rows.answer(&RangeRequest::new(KeyRange::key("b"))).is_none());
    }

    #[test]
    fn the_bound_holds_and_what_is_used_stays() {
        let limit = 1 << 20;
        let rows = Rows::new(limit);
        rows.keep_written(1, &kv("used", 100, 1));
        for n in 2..5_000 {
            assert!(rows.find(b"used", 1).is_some(), "{n}");
            rows.keep_written(n, &kv(&format!("k{n}"), 1000, n));
            assert!(bytes(&rows) <= limit);
        }
        assert!(bytes(&rows) > limit / 2, "it is made use of");
        rows.keep_written(6_000, &kv("k4999", limit, 6_000));
        assert!(rows.find(b"k4999", 6_000).is_none(), "too large");
    }

    #[test]
    fn keys_that_come_and_go_take_no_room() {
        let rows = Rows::new(1 << 20);
        for n in 0..10_000 {
            rows.keep_written(n, &kv("a", 1000, n));
            rows.forget(b"a", n);
        }
        assert!(rows.shards.iter().all(|s| s.lock().order.len() < 100));
    }
}
