//! What a range asks for beyond "ascending by key": bounds on revisions, other orders. Done here once, over what a backend
//! finds; a plain request passes through untouched.

use crate::log::shaped;
use crate::{KeyValue, Order, RangeRequest, RangeResponse, Result, RevisionBounds, SortTarget};

/// Answers `req` with `fetch`, which is only asked for ranges ascending by key.
pub(crate) fn select(
    req: &RangeRequest,
    fetch: impl FnOnce(&RangeRequest) -> Result<RangeResponse>,
) -> Result<RangeResponse> {
    match plain(req) {
        None => fetch(req),
        Some(plain) => Ok(pick(req, fetch(&plain)?)),
    }
}

/// The range ascending by key of whose answer [`pick`] makes the one to `req`; `None`: `req` is such a range itself.
pub(crate) fn plain(req: &RangeRequest) -> Option<RangeRequest> {
    let bounded = req.mod_revisions != RevisionBounds::default() || req.create_revisions != RevisionBounds::default();
    let by_key = req.sort_by == SortTarget::Key;
    if req.count_only || (!bounded && by_key && req.order != Order::Descend) {
        return None;
    }
    let all = bounded || req.order != Order::None;
    // Without an order, one more than asked is found before it is sorted: so does etcd.
    let limit = if all || req.limit == 0 { 0 } else { req.limit.saturating_add(1) };
    let mut plain = RangeRequest { limit, ..RangeRequest::new(req.range.clone()) };
    plain.revision = req.revision;
    plain.keys_only = req.keys_only && req.sort_by != SortTarget::Value;
    Some(plain)
}

/// What `req` wants of the answer to its [`plain`] range.
pub(crate) fn pick(req: &RangeRequest, mut answer: RangeResponse) -> RangeResponse {
    let descends = req.order == Order::Descend;
    answer
        .kvs
        .retain(|kv| req.mod_revisions.contains(kv.mod_revision) && req.create_revisions.contains(kv.create_revision));
    if req.sort_by != SortTarget::Key || descends {
        sort(&mut answer.kvs, req.sort_by, descends);
    }
    answer.more = req.limit != 0 && answer.kvs.len() > req.limit;
    if answer.more {
        answer.kvs.truncate(req.limit);
    }
    answer.kvs = answer.kvs.into_iter().map(|kv| shaped(kv, req.keys_only)).collect();
    answer
}

/// Keys that are equal to the order stay ascending, whatever its direction.
fn sort(kvs: &mut [KeyValue], by: SortTarget, descends: bool) {
    kvs.sort_by(|a, b| {
        let ordering = match by {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::CreateRevision => a.create_revision.cmp(&b.create_revision),
            SortTarget::ModRevision => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if descends { ordering.reverse() } else { ordering }
    });
}
