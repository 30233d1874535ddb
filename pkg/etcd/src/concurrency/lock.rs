//! The service `Lock`.

use super::{Session, Withdrawal, below, contender, created_at, found, get, key_of, one, put, revision_of, uncoded};
use crate::auth::Credentials;
use crate::pb::etcdserverpb as etcd;
use crate::pb::etcdserverpb::range_request::SortOrder;
use crate::pb::v3lockpb as pb;
use crate::service::Service;
use bytes::Bytes;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl pb::lock_server::Lock for Service {
    async fn lock(&self, request: Request<pb::LockRequest>) -> Result<Response<pb::LockResponse>, Status> {
        let session = Session { service: self.clone(), shown: Credentials::of(&request) };
        session.lock(request.into_inner()).await.map(Response::new).map_err(uncoded)
    }

    async fn unlock(&self, request: Request<pb::UnlockRequest>) -> Result<Response<pb::UnlockResponse>, Status> {
        let shown = Credentials::of(&request);
        let delete = etcd::DeleteRangeRequest { key: request.into_inner().key, ..Default::default() };
        let answer = self.delete_as(&shown, delete).await.map_err(uncoded)?;
        Ok(Response::new(pb::UnlockResponse { header: answer.header }))
    }
}

impl Session {
    async fn lock(&self, request: pb::LockRequest) -> Result<pb::LockResponse, Status> {
        let lease = self.lease(request.lease).await?;
        let prefix = below(&request.name);
        let key = key_of(&prefix, lease);
        let owner = || get(contender(&prefix, SortOrder::Ascend));
        let mine = vec![put(&key, Bytes::new(), lease), owner()];
        // Who asks twice with one lease has one key.
        let mut answer = self.txn(created_at(&key, 0), mine, vec![get(one(&key)), owner()]).await?;
        let owner = found(answer.responses.pop());
        let before = found(answer.responses.pop());
        let created = before.map_or_else(|| revision_of(&answer.header), |kv| kv.create_revision);
        if owner.is_none_or(|kv| kv.create_revision == created) {
            return Ok(pb::LockResponse { header: answer.header, key });
        }
        let withdrawal = Withdrawal::new(self, &key, created);
        self.wait_for_turn(&prefix, created).await?;
        let answer = self.range(one(&key)).await?;
        withdrawal.disarm();
        if answer.kvs.is_empty() {
            return Err(Status::unknown("mutex: session is expired"));
        }
        Ok(pb::LockResponse { header: answer.header, key })
    }
}
