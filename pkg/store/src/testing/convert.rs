//! Between the store's types and those of a history.

use crate::*;
use bytes::Bytes;
use isopod_history as seen;

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn kv(kv: &KeyValue) -> seen::Kv {
    seen::Kv {
        key: text(&kv.key),
        value: text(&kv.value),
        created: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

pub fn range(keys: &seen::Keys) -> KeyRange {
    match keys {
        seen::Keys::One(key) => KeyRange::key(key.clone()),
        seen::Keys::Between(start, end) => KeyRange { start: start.clone().into(), end: end.clone().into() },
        // A range that begins before every key.
        seen::Keys::From(start) if start.is_empty() => KeyRange { start: "\0".into(), end: "\0".into() },
        seen::Keys::From(start) => KeyRange { start: start.clone().into(), end: "\0".into() },
    }
}

pub fn get(get: &seen::Get) -> RangeRequest {
    let (revision, limit, count_only) = (get.revision, get.limit, get.count_only);
    RangeRequest { revision, limit, count_only, ..RangeRequest::new(range(&get.keys)) }
}

pub fn found(answer: &RangeResponse) -> seen::Found {
    seen::Found { kvs: answer.kvs.iter().map(kv).collect(), count: answer.count, more: answer.more }
}

fn op(step: &seen::Step) -> Op {
    match step {
        seen::Step::Put { key, value, lease, prev } => Op::Put {
            key: key.clone().into(),
            value: value.clone().into(),
            lease: *lease,
            prev_kv: *prev,
            ignore_value: false,
            ignore_lease: false,
        },
        seen::Step::Delete { keys, prev } => Op::Delete { range: range(keys), prev_kv: *prev },
        seen::Step::Get(g) => Op::Range(get(g)),
    }
}

fn compare(compare: &seen::Compare) -> Compare {
    let op = match compare.relation {
        seen::Relation::Equal => CompareOp::Equal,
        seen::Relation::NotEqual => CompareOp::NotEqual,
        seen::Relation::Greater => CompareOp::Greater,
        seen::Relation::Less => CompareOp::Less,
    };
    let target = match &compare.target {
        seen::Target::Created(n) => CompareTarget::CreateRevision(*n),
        seen::Target::Modified(n) => CompareTarget::ModRevision(*n),
        seen::Target::Version(n) => CompareTarget::Version(*n),
        seen::Target::Lease(n) => CompareTarget::Lease(*n),
        seen::Target::Value(v) => CompareTarget::Value(v.clone().into()),
    };
    Compare { range: KeyRange::key(compare.key.clone()), op, target }
}

pub fn txn(txn: &seen::Txn) -> Txn {
    Txn {
        compare: txn.compares.iter().map(compare).collect(),
        success: txn.success.iter().map(op).collect(),
        failure: txn.failure.iter().map(op).collect(),
        durability: if txn.durable { Durability::Durable } else { Durability::Ephemeral },
    }
}

pub fn txn_answer(answer: TxnResponse) -> seen::Answer {
    let step = |r: &OpResponse| match r {
        OpResponse::Range(r) => seen::StepAnswer::Get(found(r)),
        OpResponse::Put { prev } => seen::StepAnswer::Put { prev: prev.as_ref().map(kv) },
        OpResponse::Delete { deleted, prev } => {
            seen::StepAnswer::Delete { deleted: *deleted, prev: prev.iter().map(kv).collect() }
        }
        OpResponse::Txn(_) => unreachable!("no client nests transactions"),
    };
    let steps = answer.responses.iter().map(step).collect();
    seen::Answer::Txn { revision: answer.revision, succeeded: answer.succeeded, steps }
}

pub fn event(event: &Event) -> seen::Event {
    let deleted = event.kind == EventKind::Delete;
    seen::Event { kv: kv(&event.kv), deleted, prev: event.prev.as_ref().map(kv) }
}

pub fn outcome(answer: Result<seen::Answer>) -> seen::Outcome {
    let refusal = match answer {
        Ok(answer) => return seen::Outcome::Answered(answer),
        Err(StoreError::Compacted { .. }) => seen::Refusal::Compacted,
        Err(StoreError::FutureRevision { .. }) => seen::Refusal::Future,
        Err(StoreError::LeaseNotFound(_)) => seen::Refusal::LeaseNotFound,
        Err(StoreError::LeaseExists(_)) => seen::Refusal::LeaseExists,
        Err(other) => seen::Refusal::Other(other.to_string()),
    };
    seen::Outcome::Refused(refusal)
}
