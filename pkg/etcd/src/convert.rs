//! Between etcd's messages and the store's requests.

use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb;
use crate::status;
use bytes::Bytes;
use isopod_store::*;
use tonic::Status;

pub(crate) fn key_range(key: Bytes, range_end: Bytes) -> KeyRange {
    KeyRange { start: key, end: range_end }
}

pub(crate) fn range(r: pb::RangeRequest) -> RangeRequest {
    use pb::range_request::{SortOrder, SortTarget as Target};
    let order = match r.sort_order() {
        SortOrder::None => Order::None,
        SortOrder::Ascend => Order::Ascend,
        SortOrder::Descend => Order::Descend,
    };
    let sort_by = match r.sort_target() {
        Target::Key => SortTarget::Key,
        Target::Version => SortTarget::Version,
        Target::Create => SortTarget::CreateRevision,
        Target::Mod => SortTarget::ModRevision,
        Target::Value => SortTarget::Value,
    };
    RangeRequest {
        range: key_range(r.key, r.range_end),
        // A negative revision or limit is none.
        revision: r.revision.max(0),
        limit: usize::try_from(r.limit).unwrap_or(0),
        keys_only: r.keys_only,
        count_only: r.count_only,
        uncounted: false,
        order,
        sort_by,
        mod_revisions: RevisionBounds { min: r.min_mod_revision, max: r.max_mod_revision },
        create_revisions: RevisionBounds { min: r.min_create_revision, max: r.max_create_revision },
    }
}

pub(crate) fn put(r: pb::PutRequest) -> Op {
    Op::Put {
        key: r.key,
        value: r.value,
        lease: r.lease,
        prev_kv: r.prev_kv,
        ignore_value: r.ignore_value,
        ignore_lease: r.ignore_lease,
    }
}

pub(crate) fn delete(r: pb::DeleteRangeRequest) -> Op {
    Op::Delete { range: key_range(r.key, r.range_end), prev_kv: r.prev_kv }
}

pub(crate) fn txn(r: pb::TxnRequest) -> Result<Txn, Status> {
    let ops = |ops: Vec<pb::RequestOp>| ops.into_iter().map(op).collect::<Result<Vec<Op>, Status>>();
    Ok(Txn {
        compare: r.compare.into_iter().map(compare).collect::<Result<_, _>>()?,
        success: ops(r.success)?,
        failure: ops(r.failure)?,
        durability: Durability::Durable,
    })
}

fn op(o: pb::RequestOp) -> Result<Op, Status> {
    use pb::request_op::Request;
    Ok(match o.request {
        Some(Request::RequestRange(r)) => {
            // Here, and only here, etcd takes a negative one for compacted.
            let revision = r.revision;
            Op::Range(RangeRequest { revision, ..range(r) })
        }
        Some(Request::RequestPut(r)) => put(r),
        Some(Request::RequestDeleteRange(r)) => delete(r),
        Some(Request::RequestTxn(r)) => Op::Txn(Box::new(txn(r)?)),
        None => return Err(status::key_not_found()),
    })
}

/// The number or value to compare with is that of the target; another one, or none, counts as zero or empty, as in etcd.
fn compare(c: pb::Compare) -> Result<Compare, Status> {
    use pb::compare::{CompareResult, CompareTarget as Target, TargetUnion};
    let unknown = |_| Status::invalid_argument("etcdserver: unknown compare result or target");
    let op = match CompareResult::try_from(c.result).map_err(unknown)? {
        CompareResult::Equal => CompareOp::Equal,
        CompareResult::Greater => CompareOp::Greater,
        CompareResult::Less => CompareOp::Less,
        CompareResult::NotEqual => CompareOp::NotEqual,
    };
    let target = match (Target::try_from(c.target).map_err(unknown)?, c.target_union) {
        (Target::Version, Some(TargetUnion::Version(n))) => CompareTarget::Version(n),
        (Target::Version, _) => CompareTarget::Version(0),
        (Target::Create, Some(TargetUnion::CreateRevision(n))) => CompareTarget::CreateRevision(n),
        (Target::Create, _) => CompareTarget::CreateRevision(0),
        (Target::Mod, Some(TargetUnion::ModRevision(n))) => CompareTarget::ModRevision(n),
        (Target::Mod, _) => CompareTarget::ModRevision(0),
        (Target::Value, Some(TargetUnion::Value(v))) => CompareTarget::Value(v),
        (Target::Value, _) => CompareTarget::Value(Bytes::new()),
        (Target::Lease, Some(TargetUnion::Lease(n))) => CompareTarget::Lease(n),
        (Target::Lease, _) => CompareTarget::Lease(0),
    };
    Ok(Compare { range: key_range(c.key, c.range_end), op, target })
}

pub(crate) fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

pub(crate) fn event(e: &Event, prev_kv: bool) -> mvccpb::Event {
    use mvccpb::event::EventType;
    let kind = match e.kind {
        EventKind::Put => EventType::Put,
        EventKind::Delete => EventType::Delete,
    };
    let prev = e.prev.as_ref().filter(|_| prev_kv);
    mvccpb::Event {
        r#type: kind as i32,
        kv: Some(key_value(e.kv.clone())),
        prev_kv: prev.map(|kv| key_value(kv.clone())),
    }
}

pub(crate) fn range_response(r: RangeResponse, header: pb::ResponseHeader) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header),
        kvs: r.kvs.into_iter().map(key_value).collect(),
        more: r.more,
        count: r.count as i64,
    }
}

fn at(revision: Revision) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..Default::default() })
}

/// The header of an operation tells the revision after it: the transaction's from its first write on.
struct Answers {
    revision: Revision,
    before: Revision,
}

pub(crate) fn txn_response(r: TxnResponse, header: pb::ResponseHeader) -> pb::TxnResponse {
    let before = if writes(&r.responses) { r.revision - 1 } else { r.revision };
    let mut answers = Answers { revision: r.revision, before };
    let responses = answers.ops(r.responses);
    pb::TxnResponse { header: Some(header), succeeded: r.succeeded, responses }
}

fn writes(responses: &[OpResponse]) -> bool {
    responses.iter().any(|r| match r {
        OpResponse::Put { .. } => true,
        OpResponse::Delete { deleted, .. } => *deleted > 0,
        OpResponse::Txn(t) => writes(&t.responses),
        OpResponse::Range(_) => false,
    })
}

impl Answers {
    fn ops(&mut self, responses: Vec<OpResponse>) -> Vec<pb::ResponseOp> {
        responses.into_iter().map(|r| pb::ResponseOp { response: Some(self.op(r)) }).collect()
    }

    fn op(&mut self, r: OpResponse) -> pb::response_op::Response {
        use pb::response_op::Response;
        if writes(std::slice::from_ref(&r)) && !matches!(r, OpResponse::Txn(_)) {
            self.before = self.revision;
        }
        match r {
            OpResponse::Range(r) => {
                let header = pb::ResponseHeader { revision: self.before, ..Default::default() };
                Response::ResponseRange(range_response(r, header))
            }
            OpResponse::Put { prev } => {
                Response::ResponsePut(pb::PutResponse { header: at(self.before), prev_kv: prev.map(key_value) })
            }
            OpResponse::Delete { deleted, prev } => Response::ResponseDeleteRange(pb::DeleteRangeResponse {
                header: at(self.before),
                deleted: deleted as i64,
                prev_kvs: prev.into_iter().map(key_value).collect(),
            }),
            // etcd leaves the header of a nested transaction empty.
            OpResponse::Txn(t) => Response::ResponseTxn(pb::TxnResponse {
                header: at(0),
                succeeded: t.succeeded,
                responses: self.ops(t.responses),
            }),
        }
    }
}
