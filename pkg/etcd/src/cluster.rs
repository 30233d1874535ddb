//! The service `Cluster`: one member, which stays the only one.

use crate::pb::etcdserverpb as pb;
use crate::service::Service;
use crate::status;
use tonic::{Request, Response, Status};

impl Service {
    fn members(&self) -> Vec<pb::Member> {
        vec![pb::Member {
            id: self.member_id,
            name: self.config.name.clone(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: self.config.advertise_client_urls.clone(),
            is_learner: false,
        }]
    }

    fn check_member(&self, id: u64) -> Result<(), Status> {
        if id == self.member_id { Ok(()) } else { Err(status::member_not_found()) }
    }
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for Service {
    async fn member_add(&self, _: Request<pb::MemberAddRequest>) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(Status::unimplemented("isopod: this datastore has one member; others cannot join it"))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.check_member(request.into_inner().id)?;
        Err(status::not_enough_started_members())
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.check_member(request.into_inner().id)?;
        Err(Status::unimplemented("isopod: this datastore has one member and no peer URLs"))
    }

    async fn member_list(&self, _: Request<pb::MemberListRequest>) -> Result<Response<pb::MemberListResponse>, Status> {
        Ok(Response::new(pb::MemberListResponse { header: self.newest().await?, members: self.members() }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.check_member(request.into_inner().id)?;
        Err(status::member_not_learner())
    }
}
