//! The service `Cluster`: one member, which stays the only one.
//!
//! What makes sense with one member is done as etcd does it. Another member cannot join: data are replicated below this API
//! (several servers on one database), never by it; and to say yes would let an administrator believe in a replica that is
//! none.

use crate::auth::Credentials;
use crate::pb::etcdserverpb as pb;
use crate::service::{Service, TERM};
use crate::status;
use tonic::{Request, Response, Status};

/// Where the store keeps the peer URLs that an administrator gave, a line each.
const PEER_URLS: &str = "peer-urls";

impl Service {
    async fn members(&self) -> Result<Vec<pb::Member>, Status> {
        let changed = self.store.setting(PEER_URLS).await.map_err(status::of)?;
        let peer_urls = match changed {
            Some(lines) => String::from_utf8_lossy(&lines).lines().map(str::to_owned).collect(),
            None => self.config.peer_urls.clone(),
        };
        Ok(vec![pb::Member {
            id: self.member_id,
            name: self.config.name.clone(),
            peer_ur_ls: peer_urls,
            client_ur_ls: self.config.advertise_client_urls.clone(),
            is_learner: false,
        }])
    }

    fn check_member(&self, id: u64) -> Result<(), Status> {
        if id == self.member_id { Ok(()) } else { Err(status::member_not_found()) }
    }

    /// Of an answer about members, which have no revision.
    fn cluster_header(&self) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            raft_term: TERM,
            ..Default::default()
        })
    }
}

/// `http://HOST:PORT` or `unix://PATH`, with TLS or without; no path behind it.
fn is_peer_url(url: &str) -> bool {
    match url.trim().split_once("://") {
        Some(("http" | "https", rest)) => rest
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()),
        Some(("unix" | "unixs", path)) => !path.is_empty(),
        _ => false,
    }
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for Service {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let urls = &request.get_ref().peer_ur_ls;
        if urls.is_empty() || !urls.iter().all(|u| is_peer_url(u)) {
            return Err(status::member_bad_urls());
        }
        self.admin(&Credentials::of(&request)).await?;
        Err(Status::failed_precondition(
            "isopod: this datastore has one member and no other can join it: for several servers let each use one \
             Postgres, or a real etcd, as its --datastore-endpoint",
        ))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.admin(&Credentials::of(&request)).await?;
        self.check_member(request.into_inner().id)?;
        Err(status::not_enough_started_members())
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.admin(&Credentials::of(&request)).await?;
        let request = request.into_inner();
        self.check_member(request.id)?;
        let lines = request.peer_ur_ls.join("\n");
        self.store.set_setting(PEER_URLS, Some(lines.into())).await.map_err(status::of)?;
        let members = self.members().await?;
        Ok(Response::new(pb::MemberUpdateResponse { header: self.cluster_header(), members }))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.known(&Credentials::of(&request)).await?;
        let members = self.members().await?;
        Ok(Response::new(pb::MemberListResponse { header: self.cluster_header(), members }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.admin(&Credentials::of(&request)).await?;
        self.check_member(request.into_inner().id)?;
        Err(status::member_not_learner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_peers() {
        for good in ["http://127.0.0.1:2380", "https://[::1]:2380", "http://name:1", "unix://a:1"] {
            assert!(is_peer_url(good), "{good}");
        }
        for bad in ["", "127.0.0.1:2380", "http://127.0.0.1", "http://h:1/path", "http://:1", "ftp://h:1", "unix://"] {
            assert!(!is_peer_url(bad), "{bad}");
        }
    }
}
