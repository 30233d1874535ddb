//! What a request must not be, told in etcd's order before the store sees it.

use crate::pb::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, range_request, request_op::Request,
};
use crate::status;
use tonic::Status;

type Checked = Result<(), Status>;

pub(crate) fn range(r: &RangeRequest) -> Checked {
    if r.key.is_empty() {
        return Err(status::empty_key());
    }
    let known = range_request::SortOrder::try_from(r.sort_order).is_ok()
        && range_request::SortTarget::try_from(r.sort_target).is_ok();
    if known { Ok(()) } else { Err(status::invalid_sort_option()) }
}

/// A stream of parts has them in the order of the keys, as it finds them.
pub(crate) fn range_stream(r: &RangeRequest) -> Checked {
    range(r)?;
    let by_key = r.sort_target == range_request::SortTarget::Key as i32;
    let ascends = r.sort_order == range_request::SortOrder::Ascend as i32;
    if r.sort_order != range_request::SortOrder::None as i32 && !(by_key && ascends) {
        return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    let bounds = [r.min_mod_revision, r.max_mod_revision, r.min_create_revision, r.max_create_revision];
    if bounds != [0; 4] {
        return Err(Status::unimplemented("RangeStream does not support revision filters"));
    }
    Ok(())
}

pub(crate) fn put(r: &PutRequest) -> Checked {
    if r.key.is_empty() {
        return Err(status::empty_key());
    }
    if r.ignore_value && !r.value.is_empty() {
        return Err(status::value_provided());
    }
    if r.ignore_lease && r.lease != 0 {
        return Err(status::lease_provided());
    }
    Ok(())
}

pub(crate) fn delete(r: &DeleteRangeRequest) -> Checked {
    if r.key.is_empty() { Err(status::empty_key()) } else { Ok(()) }
}

/// `max_ops` shrinks with each level of nesting by what the level above has.
pub(crate) fn txn(r: &TxnRequest, max_ops: usize) -> Checked {
    let ops = r.compare.len().max(r.success.len()).max(r.failure.len());
    if ops > max_ops {
        return Err(status::too_many_ops());
    }
    if r.compare.iter().any(|c| c.key.is_empty()) {
        return Err(status::empty_key());
    }
    r.success.iter().chain(&r.failure).try_for_each(|o| op(o, max_ops - ops))
}

fn op(o: &RequestOp, max_ops: usize) -> Checked {
    match &o.request {
        Some(Request::RequestRange(r)) => range(r),
        Some(Request::RequestPut(r)) => put(r),
        Some(Request::RequestDeleteRange(r)) => delete(r),
        Some(Request::RequestTxn(r)) => txn(r, max_ops),
        None => Err(status::key_not_found()),
    }
}
