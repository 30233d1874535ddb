//! The service `KV`.

use crate::auth::{Credentials, requests};
use crate::convert;
use crate::pb::etcdserverpb as pb;
use crate::service::Service;
use crate::{check, status};
use futures::stream::{self, BoxStream, StreamExt};
use isopod_store::{KeyRange, Op, OpResponse, RangeRequest, Txn, TxnResponse};
use prost::Message as _;
use tonic::{Request, Response, Status};

/// Keys in the first part of a streamed range.
const FIRST_PART: usize = 64;

impl Service {
    async fn run(&self, txn: Txn) -> Result<TxnResponse, Status> {
        self.quota.admit_txn(&txn).await?;
        self.store.txn(txn).await.map_err(status::of)
    }

    async fn run_one(&self, op: Op) -> Result<(OpResponse, pb::ResponseHeader), Status> {
        let mut answer = self.run(Txn { success: vec![op], ..Txn::default() }).await?;
        let header = self.header(answer.revision);
        let op = answer.responses.pop().ok_or_else(|| Status::internal("the store answered nothing"))?;
        Ok((op, header))
    }

    async fn put_as(&self, shown: &Credentials, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        check::put(&request)?;
        self.check_size(&request)?;
        let _caller = self.permitted(shown, || requests::of_put(&request)).await?;
        let (OpResponse::Put { prev }, header) = self.run_one(convert::put(request)).await? else {
            return Err(unexpected());
        };
        Ok(pb::PutResponse { header: Some(header), prev_kv: prev.map(convert::key_value) })
    }

    pub(crate) async fn range_as(
        &self,
        shown: &Credentials,
        request: pb::RangeRequest,
    ) -> Result<pb::RangeResponse, Status> {
        check::range(&request)?;
        let _caller = self.permitted(shown, || requests::of_range(&request)).await?;
        let answer = self.store.range(convert::range(request)).await.map_err(status::of)?;
        let header = self.header(answer.revision);
        Ok(convert::range_response(answer, header))
    }

    pub(crate) async fn delete_as(
        &self,
        shown: &Credentials,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Status> {
        check::delete(&request)?;
        self.check_size(&request)?;
        let _caller = self.permitted(shown, || requests::of_delete(&request)).await?;
        let (OpResponse::Delete { deleted, prev }, header) = self.run_one(convert::delete(request)).await? else {
            return Err(unexpected());
        };
        Ok(pb::DeleteRangeResponse {
            header: Some(header),
            deleted: deleted as i64,
            prev_kvs: prev.into_iter().map(convert::key_value).collect(),
        })
    }

    pub(crate) async fn txn_as(&self, shown: &Credentials, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        check::txn(&request, self.config.max_txn_ops)?;
        self.check_size(&request)?;
        let _caller = self.permitted(shown, || requests::of_txn(&request)).await?;
        let answer = self.run(convert::txn(request)?).await?;
        let header = self.header(answer.revision);
        Ok(convert::txn_response(answer, header))
    }
}

fn unexpected() -> Status {
    Status::internal("the store answered another operation")
}

#[tonic::async_trait]
impl pb::kv_server::Kv for Service {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let shown = Credentials::of(&request);
        Ok(Response::new(self.range_as(&shown, request.into_inner()).await?))
    }

    type RangeStreamStream = BoxStream<'static, Result<pb::RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let shown = Credentials::of(&request);
        let request = request.into_inner();
        check::range_stream(&request)?;
        self.permitted(&shown, || requests::of_range(&request)).await?;
        let service = self.clone();
        if request.count_only {
            let parts = stream::once(async move {
                let answer = service.store.range(convert::range(request)).await.map_err(status::of)?;
                let header = service.header(answer.revision);
                Ok(pb::RangeStreamResponse { range_response: Some(convert::range_response(answer, header)) })
            });
            return Ok(Response::new(parts.boxed()));
        }
        let parts = stream::try_unfold(Some(Parts::new(service, convert::range(request))), |parts| async move {
            match parts {
                Some(parts) => parts.next().await.map(Some),
                None => Ok(None),
            }
        });
        Ok(Response::new(parts.boxed()))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let shown = Credentials::of(&request);
        Ok(Response::new(self.put_as(&shown, request.into_inner()).await?))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let shown = Credentials::of(&request);
        Ok(Response::new(self.delete_as(&shown, request.into_inner()).await?))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let shown = Credentials::of(&request);
        Ok(Response::new(self.txn_as(&shown, request.into_inner()).await?))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let shown = Credentials::of(&request);
        let request = request.into_inner();
        self.quota.check_sound()?;
        let _caller = self.admin(&shown).await?;
        let done = match request.physical {
            true => self.store.compact_physically(request.revision).await,
            false => self.store.compact(request.revision).await,
        };
        done.map_err(status::of)?;
        Ok(Response::new(pb::CompactionResponse { header: self.newest().await? }))
    }
}

/// A range in parts of about the largest size of a request, all of one revision.
struct Parts {
    service: Service,
    next: RangeRequest,
    /// 0: no limit.
    limit: usize,
    sent: u64,
    /// The store's revision when the first part was read; the header is that of the last part alone.
    revision: i64,
}

impl Parts {
    fn new(service: Service, request: RangeRequest) -> Self {
        let limit = request.limit;
        let first = if limit == 0 { FIRST_PART } else { limit.min(FIRST_PART) };
        Parts { service, next: RangeRequest { limit: first, uncounted: true, ..request }, limit, sent: 0, revision: 0 }
    }

    async fn next(mut self) -> Result<(pb::RangeStreamResponse, Option<Self>), Status> {
        let answer = self.service.store.range(self.next.clone()).await.map_err(status::of)?;
        if self.revision == 0 {
            self.revision = answer.revision;
            if self.next.revision == 0 {
                self.next.revision = answer.revision;
            }
        }
        self.sent += answer.kvs.len() as u64;
        let more = answer.more;
        let done = !more || (self.limit != 0 && self.sent >= self.limit as u64);
        let last = answer.kvs.last().map(|kv| kv.key.clone()).unwrap_or_default();
        let mut part = convert::range_response(answer, pb::ResponseHeader::default());
        let bytes = part.encoded_len();
        self.advance(&last, bytes);
        part.header = done.then(|| self.service.header(self.revision));
        part.more = done && more;
        part.count = 0;
        if done {
            part.count = (self.sent + if more { self.rest().await? } else { 0 }) as i64;
        }
        Ok((pb::RangeStreamResponse { range_response: Some(part) }, (!done).then_some(self)))
    }

    /// How many keys come after what was sent.
    async fn rest(&self) -> Result<u64, Status> {
        let request = RangeRequest { count_only: true, uncounted: false, limit: 0, ..self.next.clone() };
        Ok(self.service.store.range(request).await.map_err(status::of)?.count)
    }

    fn advance(&mut self, last: &[u8], bytes: usize) {
        let target = self.service.config.max_request_bytes;
        let mut limit = self.next.limit;
        if bytes < target / 2 {
            limit *= 2;
        } else if bytes > target * 2 {
            limit = (limit / 2).max(1);
        }
        if self.limit != 0 {
            limit = limit.min(self.limit.saturating_sub(self.sent as usize)).max(1);
        }
        self.next.limit = limit;
        let start = [last, b"\0"].concat().into();
        self.next.range = KeyRange { start, end: self.next.range.end.clone() };
    }
}
