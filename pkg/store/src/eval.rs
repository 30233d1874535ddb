//! What a transaction does, decided without doing it: reads a [`View`], returns the answer and the events to append.
//!
//! As etcd does, the compares of a transaction and of the transactions nested in it are all decided on the state before
//! it; its operations run in order and see one another; a key is written at most once.

use crate::log::shaped;
use crate::select::select;
use crate::*;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};

/// How many keys one transaction may write.
pub const MAX_TXN_EVENTS: usize = 1 << 20;

/// The newest state, with everything that the running batch has done so far.
pub(crate) trait View {
    fn revision(&self) -> Revision;
    fn get(&self, key: &[u8]) -> Result<Option<KeyValue>>;
    /// `req.revision` is 0 or at most [`View::revision`]. Only asked for ranges ascending by key.
    fn range(&self, req: &RangeRequest) -> Result<RangeResponse>;
    fn lease_exists(&self, id: LeaseId) -> bool;
}

pub(crate) struct Outcome {
    pub response: TxnResponse,
    pub events: Vec<Event>,
}

pub(crate) fn evaluate(view: &dyn View, txn: &Txn) -> Result<Outcome> {
    check_duplicates(&txn.success)?;
    check_duplicates(&txn.failure)?;
    let mut draft = Draft { view, writes: BTreeMap::new(), seen: HashMap::new(), events: Vec::new() };
    let mut path = Vec::new();
    draft.choose(txn, &mut path)?;
    path.reverse();
    let mut response = draft.run(txn, &mut path)?;
    if draft.events.len() > MAX_TXN_EVENTS {
        return Err(StoreError::TooManyWrites(draft.events.len()));
    }
    if !draft.events.is_empty() {
        response.revision = draft.next();
    }
    Ok(Outcome { response, events: draft.events })
}

/// The keys that a list of operations writes. The branches of a nested transaction exclude each other.
#[derive(Default)]
struct Writes {
    puts: Vec<KeyRange>,
    deletes: Vec<KeyRange>,
}

impl Writes {
    fn clashes(&self, other: &Writes) -> bool {
        let any = |a: &[KeyRange], b: &[KeyRange]| a.iter().any(|x| b.iter().any(|y| x.overlaps(y)));
        any(&self.puts, &other.puts) || any(&self.puts, &other.deletes) || any(&self.deletes, &other.puts)
    }

    fn absorb(&mut self, other: Writes) {
        self.puts.extend(other.puts);
        self.deletes.extend(other.deletes);
    }
}

fn check_duplicates(ops: &[Op]) -> Result<Writes> {
    let mut all = Writes::default();
    for op in ops {
        let mut mine = Writes::default();
        match op {
            Op::Range(_) => continue,
            Op::Put { key, .. } => mine.puts.push(KeyRange::key(key.clone())),
            Op::Delete { range, .. } => mine.deletes.push(range.clone()),
            Op::Txn(nested) => {
                mine = check_duplicates(&nested.success)?;
                mine.absorb(check_duplicates(&nested.failure)?);
            }
        }
        // A lease's end deletes many keys in one transaction: deletes never clash with one another.
        if !(mine.puts.is_empty() && all.puts.is_empty()) && all.clashes(&mine) {
            return Err(StoreError::DuplicateKey);
        }
        all.absorb(mine);
    }
    Ok(all)
}

struct Draft<'a> {
    view: &'a dyn View,
    /// What this transaction has written; `None`: deleted.
    writes: BTreeMap<Bytes, Option<KeyValue>>,
    /// What it has read: a compare and the put that it guards look at the same key.
    seen: HashMap<Bytes, Option<KeyValue>>,
    events: Vec<Event>,
}

impl Draft<'_> {
    fn next(&self) -> Revision {
        self.view.revision() + 1
    }

    fn get(&mut self, key: &Bytes) -> Result<Option<KeyValue>> {
        if let Some(written) = self.writes.get(key) {
            return Ok(written.clone());
        }
        if let Some(seen) = self.seen.get(key) {
            return Ok(seen.clone());
        }
        let kv = self.view.get(key)?;
        self.seen.insert(key.clone(), kv.clone());
        Ok(kv)
    }

    /// Decides every compare, depth first in the order of the operations.
    fn choose(&mut self, txn: &Txn, path: &mut Vec<bool>) -> Result<()> {
        let mut holds = true;
        for compare in &txn.compare {
            holds = holds && self.compare(compare)?;
        }
        path.push(holds);
        for op in if holds { &txn.success } else { &txn.failure } {
            if let Op::Txn(nested) = op {
                self.choose(nested, path)?;
            }
        }
        Ok(())
    }

    fn compare(&mut self, compare: &Compare) -> Result<bool> {
        if compare.range.is_single() {
            let kv = self.get(&compare.range.start)?;
            return Ok(holds(compare, kv.as_ref()));
        }
        let kvs = self.view.range(&RangeRequest::new(compare.range.clone()))?.kvs;
        if kvs.is_empty() {
            return Ok(holds(compare, None));
        }
        Ok(kvs.iter().all(|kv| holds(compare, Some(kv))))
    }

    /// `path` holds the decisions still to come, the next one last.
    fn run(&mut self, txn: &Txn, path: &mut Vec<bool>) -> Result<TxnResponse> {
        let succeeded = path.pop().unwrap_or(false);
        let mut responses = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            responses.push(match op {
                Op::Range(req) => OpResponse::Range(self.range(req)?),
                Op::Put { key, value, lease, prev_kv, ignore_value, ignore_lease } => {
                    let prev = self.put(key, value, *lease, *ignore_value, *ignore_lease)?;
                    OpResponse::Put { prev: prev.filter(|_| *prev_kv) }
                }
                Op::Delete { range, prev_kv } => {
                    let prev = self.delete(range)?;
                    OpResponse::Delete { deleted: prev.len() as u64, prev: if *prev_kv { prev } else { Vec::new() } }
                }
                Op::Txn(nested) => OpResponse::Txn(self.run(nested, path)?),
            });
        }
        Ok(TxnResponse { revision: self.view.revision(), succeeded, responses })
    }

    fn put(
        &mut self,
        key: &Bytes,
        value: &Bytes,
        lease: LeaseId,
        ignore_value: bool,
        ignore_lease: bool,
    ) -> Result<Option<KeyValue>> {
        if lease != 0 && !self.view.lease_exists(lease) {
            return Err(StoreError::LeaseNotFound(lease));
        }
        let prev = self.get(key)?;
        if (ignore_value || ignore_lease) && prev.is_none() {
            return Err(StoreError::KeyNotFound);
        }
        let mut kv = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: self.next(),
            mod_revision: self.next(),
            version: 1,
            lease,
        };
        if let Some(prev) = &prev {
            kv.create_revision = prev.create_revision;
            kv.version = prev.version + 1;
            if ignore_value {
                kv.value = prev.value.clone();
            }
            if ignore_lease {
                kv.lease = prev.lease;
            }
        }
        self.writes.insert(key.clone(), Some(kv.clone()));
        self.events.push(Event { kind: EventKind::Put, kv, prev: prev.clone() });
        Ok(prev)
    }

    fn delete(&mut self, range: &KeyRange) -> Result<Vec<KeyValue>> {
        let gone = if range.is_single() {
            self.get(&range.start)?.into_iter().collect()
        } else {
            self.range(&RangeRequest::new(range.clone()))?.kvs
        };
        for prev in &gone {
            let kv = KeyValue {
                key: prev.key.clone(),
                value: Bytes::new(),
                create_revision: 0,
                mod_revision: self.next(),
                version: 0,
                lease: 0,
            };
            self.writes.insert(prev.key.clone(), None);
            self.events.push(Event { kind: EventKind::Delete, kv, prev: Some(prev.clone()) });
        }
        Ok(gone)
    }

    fn range(&mut self, req: &RangeRequest) -> Result<RangeResponse> {
        select(req, |plain| self.plain_range(plain))
    }

    fn plain_range(&mut self, req: &RangeRequest) -> Result<RangeResponse> {
        if req.revision > self.view.revision() {
            return Err(StoreError::FutureRevision { requested: req.revision, newest: self.view.revision() });
        }
        if req.revision < 0 {
            return Err(StoreError::Compacted { requested: req.revision, compacted: 0 });
        }
        if req.revision > 0 || !self.writes.keys().any(|k| req.range.contains(k)) {
            return self.view.range(req);
        }
        // Rare: a transaction reads what it wrote. Lay its writes over all of the range.
        let base = self.view.range(&RangeRequest::new(req.range.clone()))?;
        let mut kvs: BTreeMap<Bytes, KeyValue> = base.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        for (key, written) in self.writes.iter().filter(|(k, _)| req.range.contains(k)) {
            match written {
                Some(kv) => kvs.insert(key.clone(), kv.clone()),
                None => kvs.remove(key),
            };
        }
        let count = kvs.len();
        let limit = if req.limit == 0 { count } else { req.limit.min(count) };
        let take = if req.count_only { 0 } else { limit };
        let kvs = kvs.into_values().take(take).map(|kv| shaped(kv, req.keys_only)).collect();
        Ok(RangeResponse { revision: base.revision, kvs, count: count as u64, more: !req.count_only && limit < count })
    }
}

fn holds(compare: &Compare, kv: Option<&KeyValue>) -> bool {
    use std::cmp::Ordering;
    let number = |f: fn(&KeyValue) -> i64, want: i64| kv.map_or(0, f).cmp(&want);
    let ordering = match &compare.target {
        CompareTarget::CreateRevision(want) => number(|kv| kv.create_revision, *want),
        CompareTarget::ModRevision(want) => number(|kv| kv.mod_revision, *want),
        CompareTarget::Version(want) => number(|kv| kv.version, *want),
        CompareTarget::Lease(want) => number(|kv| kv.lease, *want),
        // A key that is not there has no value to compare: never true, as in etcd.
        CompareTarget::Value(want) => match kv {
            Some(kv) => kv.value.cmp(want),
            None => return false,
        },
    };
    match compare.op {
        CompareOp::Equal => ordering == Ordering::Equal,
        CompareOp::NotEqual => ordering != Ordering::Equal,
        CompareOp::Greater => ordering == Ordering::Greater,
        CompareOp::Less => ordering == Ordering::Less,
    }
}
