//! The service `Lease`.

use crate::auth::Credentials;
use crate::auth::requests::Need;
use crate::pb::etcdserverpb as pb;
use crate::service::Service;
use crate::status;
use futures::stream::{self, BoxStream, StreamExt};
use isopod_store::StoreError;
use tonic::{Request, Response, Status, Streaming};

/// Seconds, as in etcd.
const MAX_TTL: i64 = 9_000_000_000;

#[tonic::async_trait]
impl pb::lease_server::Lease for Service {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let shown = Credentials::of(&request);
        let request = request.into_inner();
        let _caller = self.known(&shown).await?;
        if request.ttl > MAX_TTL {
            return Err(status::lease_ttl_too_large());
        }
        self.quota.admit_lease().await?;
        let lease = self.store.lease_grant(request.id, request.ttl).await.map_err(status::of)?;
        let header = self.newest().await?;
        Ok(Response::new(pb::LeaseGrantResponse { header, id: lease.id, ttl: lease.granted_ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let shown = Credentials::of(&request);
        let id = request.into_inner().id;
        self.quota.check_sound()?;
        let caller = self.known(&shown).await?;
        if !caller.is_free() {
            self.check_need(&caller, Need::WriteLeased(id)).await?;
        }
        self.store.lease_revoke(id).await.map_err(status::of)?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: self.newest().await? }))
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let state = (self.clone(), Credentials::of(&request), request.into_inner());
        let answers = stream::try_unfold(state, |(service, shown, mut requests)| async move {
            let request = tokio::select! {
                request = requests.message() => request?,
                () = service.stop.cancelled() => return Err(status::stopped()),
            };
            let Some(request) = request else { return Ok(None) };
            // Before the lease is touched: nobody reads from it that a lease lived at a revision at which it had ended.
            let header = service.newest().await?;
            let caller = service.known(&shown).await?;
            if !caller.is_free() {
                service.check_need(&caller, Need::WriteLeased(request.id)).await?;
            }
            let ttl = match service.store.lease_keep_alive(request.id).await {
                Ok(lease) => lease.ttl,
                // To the client the lease that is gone has no time left.
                Err(StoreError::LeaseNotFound(_)) => 0,
                Err(e) => return Err(status::of(e)),
            };
            let answer = pb::LeaseKeepAliveResponse { header, id: request.id, ttl };
            Ok(Some((answer, (service, shown, requests))))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let shown = Credentials::of(&request);
        let request = request.into_inner();
        let caller = self.known(&shown).await?;
        if request.keys && !caller.is_free() {
            self.check_need(&caller, Need::ReadLeased(request.id)).await?;
        }
        let mut answer = pb::LeaseTimeToLiveResponse { id: request.id, ttl: -1, ..Default::default() };
        match self.store.lease_status(request.id).await {
            Ok(lease) => {
                answer.ttl = lease.ttl;
                answer.granted_ttl = lease.granted_ttl;
                answer.keys = if request.keys { lease.keys } else { Vec::new() };
            }
            Err(StoreError::LeaseNotFound(_)) => {}
            Err(e) => return Err(status::of(e)),
        }
        answer.header = self.newest().await?;
        Ok(Response::new(answer))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let caller = self.known(&Credentials::of(&request)).await?;
        let ids = self.store.leases().await.map_err(status::of)?;
        if !caller.is_free() {
            for id in &ids {
                self.check_need(&caller, Need::ReadLeased(*id)).await?;
            }
        }
        let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header: self.newest().await?, leases }))
    }
}
