//! The services `Lock` and `Election`: etcd's recipes, run by the server for clients that do not know them.
//!
//! Each contender has a key below the name, which lives with his lease; the oldest key holds the lock, or leads. Clients that
//! run the recipes themselves use the same keys, so both kinds contend with one another.

mod election;
mod lock;

use crate::auth::Credentials;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::mvccpb;
use crate::service::Service;
use crate::status;
use bytes::Bytes;
use isopod_store::{Event, StoreError};
use isopod_store::{EventKind, KeyRange, Revision, Watch, WatchMessage, WatchRequest};
use std::sync::Arc;
use tonic::Status;

/// Seconds; of who brings no lease.
const SESSION_TTL: i64 = 60;

/// A client of this server's own, in the name of who asked.
#[derive(Clone)]
struct Session {
    service: Service,
    shown: Credentials,
}

/// etcd's recipes run behind its client library, which tells texts but no codes.
fn uncoded(e: Status) -> Status {
    match e.code() {
        tonic::Code::Unavailable => e,
        _ => Status::unknown(e.message()),
    }
}

fn below(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

fn key_of(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    [prefix, format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into()
}

fn created_at(key: &Bytes, revision: Revision) -> pb::Compare {
    pb::Compare {
        result: pb::compare::CompareResult::Equal as i32,
        target: pb::compare::CompareTarget::Create as i32,
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(pb::compare::TargetUnion::CreateRevision(revision)),
    }
}

fn put(key: &Bytes, value: Bytes, lease: i64) -> pb::RequestOp {
    let put = pb::PutRequest { key: key.clone(), value, lease, ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

fn get(request: pb::RangeRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(request)) }
}

fn delete(key: &Bytes) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest { key: key.clone(), ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestDeleteRange(delete)) }
}

fn one(key: &Bytes) -> pb::RangeRequest {
    pb::RangeRequest { key: key.clone(), ..Default::default() }
}

/// The contender that came first, or last.
fn contender(prefix: &Bytes, order: SortOrder) -> pb::RangeRequest {
    let range = KeyRange::prefix(prefix.clone());
    pb::RangeRequest {
        key: range.start,
        range_end: range.end,
        limit: 1,
        sort_order: order as i32,
        sort_target: SortTarget::Create as i32,
        ..Default::default()
    }
}

fn found(op: Option<pb::ResponseOp>) -> Option<mvccpb::KeyValue> {
    match op?.response? {
        pb::response_op::Response::ResponseRange(r) => r.kvs.into_iter().next(),
        _ => None,
    }
}

fn revision_of(header: &Option<pb::ResponseHeader>) -> Revision {
    header.as_ref().map_or(0, |h| h.revision)
}

impl Session {
    /// The lease to contend with: the client's own, or a new one that nobody keeps alive.
    async fn lease(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let _caller = self.service.known(&self.shown).await?;
        self.service.quota.admit_lease().await?;
        Ok(self.service.store.lease_grant(0, SESSION_TTL).await.map_err(status::of)?.id)
    }

    async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        self.service.range_as(&self.shown, request).await
    }

    async fn txn(
        &self,
        compare: pb::Compare,
        success: Vec<pb::RequestOp>,
        failure: Vec<pb::RequestOp>,
    ) -> Result<pb::TxnResponse, Status> {
        let request = pb::TxnRequest { compare: vec![compare], success, failure };
        self.service.txn_as(&self.shown, request).await
    }

    /// Until every contender that came before `revision` is gone.
    async fn wait_for_turn(&self, prefix: &Bytes, revision: Revision) -> Result<(), Status> {
        loop {
            let mut request = contender(prefix, SortOrder::Descend);
            request.max_create_revision = revision - 1;
            let answer = self.range(request).await?;
            let Some(before) = answer.kvs.first() else { return Ok(()) };
            let next = revision_of(&answer.header) + 1;
            let mut changes = Changes::new(self, KeyRange::key(before.key.clone()), next);
            while changes.next().await?.kind != EventKind::Delete {}
        }
    }
}

/// What happens to a range, event by event.
struct Changes<'a> {
    session: &'a Session,
    range: KeyRange,
    next: Revision,
    watch: Option<Watch>,
    waiting: Option<(Arc<[Event]>, usize)>,
}

impl<'a> Changes<'a> {
    fn new(session: &'a Session, range: KeyRange, next: Revision) -> Self {
        Changes { session, range, next, watch: None, waiting: None }
    }

    async fn next(&mut self) -> Result<Event, Status> {
        loop {
            if let Some((events, at)) = &mut self.waiting {
                if let Some(event) = events.get(*at) {
                    *at += 1;
                    return Ok(event.clone());
                }
                self.waiting = None;
            }
            match self.message().await {
                Ok(WatchMessage::Events(revision, events)) => {
                    self.next = revision + 1;
                    self.waiting = Some((events, 0));
                }
                Ok(WatchMessage::Progress(_)) => {}
                // It goes on from where it was.
                Err(StoreError::WatchOverrun) => self.watch = None,
                Err(e) => return Err(status::of(e)),
            }
        }
    }

    async fn message(&mut self) -> Result<WatchMessage, StoreError> {
        let service = &self.session.service;
        if self.watch.is_none() {
            let request = WatchRequest { range: self.range.clone(), start: self.next };
            self.watch = Some(service.store.watch(request).await?);
        }
        let Some(watch) = &mut self.watch else { return Err(StoreError::Closed) };
        tokio::select! {
            message = watch.receiver.recv() => message.unwrap_or(Err(StoreError::Closed)),
            () = service.stop.cancelled() => Err(StoreError::Closed),
        }
    }
}

/// Gives a contender's key back where nobody waits for the answer any more: the client went away.
struct Withdrawal {
    session: Session,
    key: Bytes,
    created: Revision,
    armed: bool,
}

impl Withdrawal {
    fn new(session: &Session, key: &Bytes, created: Revision) -> Self {
        Withdrawal { session: session.clone(), key: key.clone(), created, armed: true }
    }

    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if self.armed {
            let (session, key, created) = (self.session.clone(), self.key.clone(), self.created);
            tokio::spawn(async move {
                // Where it fails the lease ends it.
                let _ = session.txn(created_at(&key, created), vec![delete(&key)], Vec::new()).await;
            });
        }
    }
}
