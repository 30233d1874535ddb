//! Newest rows of keys, kept in memory up to a bound: what a put reads before it writes, what is got often, lists. On the disk
//! rows stand in the order of their writing, so a list of keys that were written again reads a page for each.
//!
//! Invariants: only committed rows are kept; whoever looks one up says which row it is by its id, which he has from the
//! index, so that a row of another snapshot is never served; what is kept is a copy of its own, and not a slice of a
//! request that would keep all of it alive.

use super::index::Recent;
use super::newest;
use crate::{KeyValue, RangeRequest, RangeResponse, Result};
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
        let kept = shard.rows.get_mut(key).filter(|kept| kept.id == id)?;
        kept.used = true;
        Some(kept.kv.clone())
    }

    /// Keeps a committed row that shares its bytes with nothing large.
    fn keep(&self, id: i64, kv: KeyValue) {
        let bytes = weight(&kv);
        if bytes > self.limit / SHARE {
            return self.forget(&kv.key);
        }
        let mut shard = self.shard(&kv.key).lock();
        match shard.rows.get_mut(&kv.key) {
            // A reader of an older snapshot.
            Some(kept) if kept.id >= id => return,
            Some(kept) => {
                let before = weight(&kept.kv);
                *kept = Kept { id, kv, used: kept.used };
                shard.bytes = shard.bytes + bytes - before;
            }
            None => {
                shard.order.push_back(kv.key.clone());
                shard.bytes += bytes;
                shard.rows.insert(kv.key.clone(), Kept { id, kv, used: false });
            }
        }
        shard.shrink(self.limit);
    }

    /// As [`Rows::keep`], of a row that came with a request.
    pub fn keep_copy(&self, id: i64, kv: &KeyValue) {
        if weight(kv) <= self.limit / SHARE {
            let (key, value) = (Bytes::copy_from_slice(&kv.key), Bytes::copy_from_slice(&kv.value));
            self.keep(id, KeyValue { key, value, ..*kv });
        } else {
            self.forget(&kv.key);
        }
    }

    /// The key was deleted.
    pub fn forget(&self, key: &[u8]) {
        let mut shard = self.shard(key).lock();
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

    /// The answer from the newest rows of what a reader sees; its revision is left 0.
    pub fn range(&self, conn: &Connection, req: &RangeRequest, recent: &Recent) -> Result<RangeResponse> {
        if req.count_only || req.keys_only || self.limit == 0 {
            return newest::range_newest(conn, req, recent);
        }
        let room = match req.limit {
            0 => usize::MAX,
            // Without a count, one more than asked tells whether there is more.
            n => n.saturating_add(usize::from(req.uncounted)),
        };
        let mut kvs = self.scan(conn, req, recent, room)?;
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

    fn scan(&self, conn: &Connection, req: &RangeRequest, recent: &Recent, room: usize) -> Result<Vec<KeyValue>> {
        let (mut kvs, mut kept) = (Vec::new(), 0);
        newest::scan(conn, &req.range, recent, &mut |key, found| {
            let Some(id) = found.row() else { return Ok(true) };
            let kv = match self.find(key, id) {
                Some(kv) => kv,
                None => {
                    let Some(kv) = newest::newest_row(conn, key, id, true)? else { return Ok(true) };
                    kept += weight(&kv);
                    if kept <= self.limit / SHARE * SHARDS {
                        self.keep(id, kv.clone());
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
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        rows.keep_copy(7, &kv("a", 10, 7));
        assert_eq!(rows.find(b"a", 7).unwrap().mod_revision, 7);
        assert!(rows.find(b"a", 6).is_none() && rows.find(b"b", 7).is_none());
        // A reader that is behind does not bring an older row back.
        rows.keep(5, kv("a", 10, 5));
        assert!(rows.find(b"a", 7).is_some() && rows.find(b"a", 5).is_none());
        rows.forget(b"a");
        assert!(rows.find(b"a", 7).is_none());
        assert_eq!(bytes(&rows), 0);
    }

    #[test]
    fn the_bound_holds_and_what_is_used_stays() {
        let limit = 1 << 20;
        let rows = Rows::new(limit);
        rows.keep_copy(1, &kv("used", 100, 1));
        for n in 2..5_000 {
            assert!(rows.find(b"used", 1).is_some(), "{n}");
            rows.keep_copy(n, &kv(&format!("k{n}"), 1000, n));
            assert!(bytes(&rows) <= limit);
        }
        assert!(bytes(&rows) > limit / 2, "it is made use of");
        rows.keep_copy(6_000, &kv("k4999", limit, 6_000));
        assert!(rows.find(b"k4999", 6_000).is_none(), "too large");
    }

    #[test]
    fn keys_that_come_and_go_take_no_room() {
        let rows = Rows::new(1 << 20);
        for n in 0..10_000 {
            rows.keep_copy(n, &kv("a", 1000, n));
            rows.forget(b"a");
        }
        assert!(rows.shards.iter().all(|s| s.lock().order.len() < 100));
    }
}
