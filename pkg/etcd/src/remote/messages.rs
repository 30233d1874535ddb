//! The store's requests as etcd's messages, and etcd's answers as the store's.

use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb;
use isopod_store::*;

pub(super) fn range(r: RangeRequest) -> pb::RangeRequest {
    use pb::range_request::{SortOrder, SortTarget as Target};
    let order = match r.order {
        Order::None => SortOrder::None,
        Order::Ascend => SortOrder::Ascend,
        Order::Descend => SortOrder::Descend,
    };
    let target = match r.sort_by {
        SortTarget::Key => Target::Key,
        SortTarget::Version => Target::Version,
        SortTarget::CreateRevision => Target::Create,
        SortTarget::ModRevision => Target::Mod,
        SortTarget::Value => Target::Value,
    };
    pb::RangeRequest {
        key: r.range.start,
        range_end: r.range.end,
        limit: i64::try_from(r.limit).unwrap_or(i64::MAX),
        revision: r.revision,
        sort_order: order as i32,
        sort_target: target as i32,
        keys_only: r.keys_only,
        count_only: r.count_only,
        min_mod_revision: r.mod_revisions.min,
        max_mod_revision: r.mod_revisions.max,
        min_create_revision: r.create_revisions.min,
        max_create_revision: r.create_revisions.max,
        ..Default::default()
    }
}

pub(super) fn txn(t: Txn) -> pb::TxnRequest {
    let ops = |ops: Vec<Op>| ops.into_iter().map(op).collect();
    pb::TxnRequest {
        compare: t.compare.into_iter().map(compare).collect(),
        success: ops(t.success),
        failure: ops(t.failure),
    }
}

fn op(o: Op) -> pb::RequestOp {
    use pb::request_op::Request;
    let request = match o {
        Op::Range(r) => Request::RequestRange(range(r)),
        Op::Put { key, value, lease, prev_kv, ignore_value, ignore_lease } => {
            Request::RequestPut(pb::PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease })
        }
        Op::Delete { range, prev_kv } => {
            Request::RequestDeleteRange(pb::DeleteRangeRequest { key: range.start, range_end: range.end, prev_kv })
        }
        Op::Txn(t) => Request::RequestTxn(txn(*t)),
    };
    pb::RequestOp { request: Some(request) }
}

fn compare(c: Compare) -> pb::Compare {
    use pb::compare::{CompareResult, CompareTarget as Target, TargetUnion};
    let result = match c.op {
        CompareOp::Equal => CompareResult::Equal,
        CompareOp::NotEqual => CompareResult::NotEqual,
        CompareOp::Greater => CompareResult::Greater,
        CompareOp::Less => CompareResult::Less,
    };
    let (target, union) = match c.target {
        CompareTarget::Version(n) => (Target::Version, TargetUnion::Version(n)),
        CompareTarget::CreateRevision(n) => (Target::Create, TargetUnion::CreateRevision(n)),
        CompareTarget::ModRevision(n) => (Target::Mod, TargetUnion::ModRevision(n)),
        CompareTarget::Value(v) => (Target::Value, TargetUnion::Value(v)),
        CompareTarget::Lease(n) => (Target::Lease, TargetUnion::Lease(n)),
    };
    pb::Compare {
        result: result as i32,
        target: target as i32,
        key: c.range.start,
        range_end: c.range.end,
        target_union: Some(union),
    }
}

/// A transaction that changes nothing may be asked again.
pub(super) fn only_reads(t: &Txn) -> bool {
    t.success.iter().chain(&t.failure).all(|op| match op {
        Op::Range(_) => true,
        Op::Txn(t) => only_reads(t),
        Op::Put { .. } | Op::Delete { .. } => false,
    })
}

pub(super) fn revision(header: &Option<pb::ResponseHeader>) -> Revision {
    header.as_ref().map_or(0, |h| h.revision)
}

pub(super) fn key_value(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

pub(super) fn range_response(r: pb::RangeResponse) -> RangeResponse {
    RangeResponse {
        revision: revision(&r.header),
        kvs: r.kvs.into_iter().map(key_value).collect(),
        count: u64::try_from(r.count).unwrap_or(0),
        more: r.more,
    }
}

pub(super) fn txn_response(r: pb::TxnResponse) -> TxnResponse {
    use pb::response_op::Response;
    let revision = revision(&r.header);
    let one = |op: pb::ResponseOp| {
        Some(match op.response? {
            Response::ResponseRange(r) => OpResponse::Range(range_response(r)),
            Response::ResponsePut(r) => OpResponse::Put { prev: r.prev_kv.map(key_value) },
            Response::ResponseDeleteRange(r) => OpResponse::Delete {
                deleted: u64::try_from(r.deleted).unwrap_or(0),
                prev: r.prev_kvs.into_iter().map(key_value).collect(),
            },
            Response::ResponseTxn(t) => OpResponse::Txn(txn_response(t)),
        })
    };
    TxnResponse { revision, succeeded: r.succeeded, responses: r.responses.into_iter().filter_map(one).collect() }
}

/// `None`: an event without a key, which etcd does not send.
pub(super) fn event(e: mvccpb::Event) -> Option<Event> {
    let kind = match e.r#type() {
        mvccpb::event::EventType::Put => EventKind::Put,
        mvccpb::event::EventType::Delete => EventKind::Delete,
    };
    Some(Event { kind, kv: key_value(e.kv?), prev: e.prev_kv.map(key_value) })
}
