//! The service `Election`.

use super::{
    Changes, Session, Withdrawal, below, contender, created_at, delete, found, get, key_of, one, put, revision_of,
    uncoded,
};
use crate::auth::Credentials;
use crate::convert;
use crate::pb::etcdserverpb as etcd;
use crate::pb::etcdserverpb::range_request::SortOrder;
use crate::pb::v3electionpb as pb;
use crate::service::Service;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use isopod_store::{EventKind, KeyRange, Revision};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// Answers that wait for the connection.
const QUEUE: usize = 16;

type Out = mpsc::Sender<Result<pb::LeaderResponse, Status>>;

fn session<T>(service: &Service, request: &Request<T>) -> Session {
    Session { service: service.clone(), shown: Credentials::of(request) }
}

fn leader_key(leader: Option<pb::LeaderKey>) -> Result<pb::LeaderKey, Status> {
    leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))
}

#[tonic::async_trait]
impl pb::election_server::Election for Service {
    async fn campaign(&self, request: Request<pb::CampaignRequest>) -> Result<Response<pb::CampaignResponse>, Status> {
        let session = session(self, &request);
        session.campaign(request.into_inner()).await.map(Response::new).map_err(uncoded)
    }

    async fn proclaim(&self, request: Request<pb::ProclaimRequest>) -> Result<Response<pb::ProclaimResponse>, Status> {
        let session = session(self, &request);
        let pb::ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader_key(leader)?;
        let header = session.proclaim(&leader.key, leader.rev, value, leader.lease).await.map_err(uncoded)?;
        Ok(Response::new(pb::ProclaimResponse { header }))
    }

    async fn leader(&self, request: Request<pb::LeaderRequest>) -> Result<Response<pb::LeaderResponse>, Status> {
        let session = session(self, &request);
        let prefix = below(&request.into_inner().name);
        let answer = session.range(contender(&prefix, SortOrder::Ascend)).await.map_err(uncoded)?;
        let Some(kv) = answer.kvs.into_iter().next() else { return Err(Status::unknown("election: no leader")) };
        Ok(Response::new(pb::LeaderResponse { header: answer.header, kv: Some(kv) }))
    }

    type ObserveStream = BoxStream<'static, Result<pb::LeaderResponse, Status>>;

    async fn observe(&self, request: Request<pb::LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let session = session(self, &request);
        let prefix = below(&request.into_inner().name);
        let (out, mut answers) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let failed = tokio::select! {
                () = out.closed() => return,
                ended = session.observe(&prefix, &out) => ended,
            };
            if let Err(e) = failed {
                let _ = out.send(Err(uncoded(e))).await;
            }
        });
        Ok(Response::new(futures::stream::poll_fn(move |cx| answers.poll_recv(cx)).boxed()))
    }

    async fn resign(&self, request: Request<pb::ResignRequest>) -> Result<Response<pb::ResignResponse>, Status> {
        let session = session(self, &request);
        let leader = leader_key(request.into_inner().leader)?;
        // Who does not lead any more has nothing to give up.
        let resigned = session.txn(created_at(&leader.key, leader.rev), vec![delete(&leader.key)], Vec::new()).await;
        Ok(Response::new(pb::ResignResponse { header: resigned.map_err(uncoded)?.header }))
    }
}

impl Session {
    async fn campaign(&self, request: pb::CampaignRequest) -> Result<pb::CampaignResponse, Status> {
        let lease = self.lease(request.lease).await?;
        let prefix = below(&request.name);
        let key = key_of(&prefix, lease);
        let mine = vec![put(&key, request.value.clone(), lease)];
        let mut answer = self.txn(created_at(&key, 0), mine, vec![get(one(&key))]).await?;
        let mut created = revision_of(&answer.header);
        let before = if answer.succeeded { None } else { found(answer.responses.pop()) };
        if let Some(kv) = &before {
            created = kv.create_revision;
        }
        let withdrawal = Withdrawal::new(self, &key, created);
        if before.is_some_and(|kv| kv.value != request.value) {
            self.proclaim(&key, created, request.value, lease).await?;
        }
        self.wait_for_turn(&prefix, created).await?;
        withdrawal.disarm();
        let leader = pb::LeaderKey { name: request.name, key, rev: created, lease };
        Ok(pb::CampaignResponse { header: answer.header, leader: Some(leader) })
    }

    async fn proclaim(
        &self,
        key: &Bytes,
        created: Revision,
        value: Bytes,
        lease: i64,
    ) -> Result<Option<etcd::ResponseHeader>, Status> {
        let answer = self.txn(created_at(key, created), vec![put(key, value, lease)], Vec::new()).await?;
        if answer.succeeded { Ok(answer.header) } else { Err(Status::unknown("election: not leader")) }
    }

    /// Tells of each leader, and of what he proclaims, one after another, until the client is gone.
    async fn observe(&self, prefix: &Bytes, out: &Out) -> Result<(), Status> {
        loop {
            let (key, mut next) = self.tell_leader(prefix, out).await?;
            let mut changes = Changes::new(self, KeyRange::key(key), next);
            loop {
                let event = changes.next().await?;
                if event.kind == EventKind::Delete {
                    break;
                }
                next = event.kv.mod_revision;
                self.tell(out, next, convert::key_value(event.kv)).await;
            }
        }
    }

    /// Tells of the one who leads, or who will; his key, and the revision after what was told.
    async fn tell_leader(&self, prefix: &Bytes, out: &Out) -> Result<(Bytes, Revision), Status> {
        let answer = self.range(contender(prefix, SortOrder::Ascend)).await?;
        let revision = revision_of(&answer.header);
        if let Some(kv) = answer.kvs.into_iter().next() {
            let key = kv.key.clone();
            self.tell(out, revision, kv).await;
            return Ok((key, revision + 1));
        }
        let mut changes = Changes::new(self, KeyRange::prefix(prefix.clone()), revision + 1);
        loop {
            let event = changes.next().await?;
            if event.kind == EventKind::Put {
                let (key, revision) = (event.kv.key.clone(), event.kv.mod_revision);
                self.tell(out, revision, convert::key_value(event.kv)).await;
                return Ok((key, revision + 1));
            }
        }
    }

    async fn tell(&self, out: &Out, revision: Revision, kv: crate::pb::mvccpb::KeyValue) {
        let header = Some(self.service.header(revision));
        // A client that went away is noticed by the caller.
        let _ = out.send(Ok(pb::LeaderResponse { header, kv: Some(kv) })).await;
    }
}
