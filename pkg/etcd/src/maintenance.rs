//! The service `Maintenance`.

use crate::VERSION;
use crate::auth::Credentials;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::downgrade_request::DowngradeAction;
use crate::service::{Service, TERM};
use crate::snapshot::Answers;
use crate::status;
use isopod_store::Alarm;
use tonic::{Request, Response, Status};

fn alarm_type(alarm: Alarm) -> pb::AlarmType {
    match alarm {
        Alarm::NoSpace => pb::AlarmType::Nospace,
        Alarm::Corrupt => pb::AlarmType::Corrupt,
    }
}

/// Two numbers or three.
fn is_version(text: &str) -> bool {
    let numbers: Vec<&str> = text.split('.').collect();
    (2..=3).contains(&numbers.len()) && numbers.iter().all(|n| n.parse::<u32>().is_ok())
}

impl Service {
    fn alarm_members(&self, only: pb::AlarmType) -> Vec<pb::AlarmMember> {
        let types = self.quota.alarms().into_iter().map(alarm_type);
        let wanted = types.filter(|t| only == pb::AlarmType::None || *t == only);
        wanted.map(|t| pb::AlarmMember { member_id: self.member_id, alarm: t as i32 }).collect()
    }

    /// Raises or takes back an alarm, and tells it; not where there was nothing to take back.
    async fn change_alarm(&self, request: pb::AlarmRequest, raised: bool) -> Result<Vec<pb::AlarmMember>, Status> {
        let types: Vec<Alarm> = match request.alarm() {
            pb::AlarmType::Nospace => vec![Alarm::NoSpace],
            pb::AlarmType::Corrupt => vec![Alarm::Corrupt],
            // etcd's client takes back all alarms of a member one by one, and asks for the kind first.
            pb::AlarmType::None => Vec::new(),
        };
        if request.member_id != 0 && request.member_id != self.member_id {
            return Ok(Vec::new());
        }
        let mut changed = Vec::new();
        for alarm in types {
            let news = self.quota.set_alarm(alarm, raised).await.map_err(status::of)?;
            if news || raised {
                changed.push(pb::AlarmMember { member_id: self.member_id, alarm: alarm_type(alarm) as i32 });
            }
        }
        Ok(changed)
    }
}

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for Service {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let shown = Credentials::of(&request);
        let request = request.into_inner();
        let _caller = match request.action() {
            AlarmAction::Get => self.known(&shown).await?,
            AlarmAction::Activate | AlarmAction::Deactivate => self.admin(&shown).await?,
        };
        let alarms = match request.action() {
            AlarmAction::Get => self.alarm_members(request.alarm()),
            AlarmAction::Activate => self.change_alarm(request, true).await?,
            AlarmAction::Deactivate => self.change_alarm(request, false).await?,
        };
        Ok(Response::new(pb::AlarmResponse { header: self.newest().await?, alarms }))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        self.known(&Credentials::of(&request)).await?;
        let usage = self.store.usage().await.map_err(status::of)?;
        let revision = self.revision().await?;
        let alarms = self.alarm_members(pb::AlarmType::None);
        let errors = alarms.iter().map(|a| format!("memberID:{} alarm:{} ", a.member_id, a.alarm().as_str_name()));
        Ok(Response::new(pb::StatusResponse {
            header: Some(self.header(revision)),
            version: VERSION.into(),
            db_size: usage.size as i64,
            leader: self.member_id,
            raft_index: revision as u64,
            raft_term: TERM,
            raft_applied_index: revision as u64,
            errors: errors.collect(),
            db_size_in_use: usage.in_use as i64,
            is_learner: false,
            storage_version: VERSION.into(),
            db_size_quota: self.quota.limit(),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.admin(&Credentials::of(&request)).await?;
        self.store.defragment().await.map_err(status::of)?;
        // etcd leaves the header out, here and where the leader moves.
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    /// Of the history and the leases. Only a store of the same program answers the same.
    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        self.admin(&Credentials::of(&request)).await?;
        let history = self.store.hash(0).await.map_err(status::of)?;
        let leases = self.store.leases().await.map_err(status::of)?;
        let bytes = leases.iter().flat_map(|id| id.to_be_bytes());
        let hash = bytes.fold(history.hash, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Ok(Response::new(pb::HashResponse { header: Some(self.header(history.revision)), hash }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        self.admin(&Credentials::of(&request)).await?;
        let revision = request.into_inner().revision.max(0);
        let history = self.store.hash(revision).await.map_err(status::of)?;
        Ok(Response::new(pb::HashKvResponse {
            header: Some(self.header(history.revision)),
            hash: history.hash,
            // As etcd counts: before the first compaction there is no such revision.
            compact_revision: if history.compact_revision > 0 { history.compact_revision } else { -1 },
            hash_revision: history.hash_revision,
        }))
    }

    type SnapshotStream = Answers;

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        self.admin(&Credentials::of(&request)).await?;
        Ok(Response::new(self.write_snapshot().await?))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.admin(&Credentials::of(&request)).await?;
        // To oneself is no move, and nobody else is there.
        if request.into_inner().target_id == self.member_id {
            return Ok(Response::new(pb::MoveLeaderResponse { header: None }));
        }
        Err(status::bad_leader_transferee())
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        self.admin(&Credentials::of(&request)).await?;
        let request = request.into_inner();
        let Ok(action) = DowngradeAction::try_from(request.action) else {
            return Err(Status::unknown("etcdserver: unknown method"));
        };
        match action {
            // There is none to take back, which etcd does not mind.
            DowngradeAction::Cancel => {
                let version = VERSION.rsplit_once('.').map_or(VERSION, |(cluster, _)| cluster).to_owned();
                Ok(Response::new(pb::DowngradeResponse { header: self.newest().await?, version }))
            }
            DowngradeAction::Validate | DowngradeAction::Enable if !is_version(&request.version) => {
                Err(status::wrong_downgrade_version())
            }
            // The store has one format, whatever version of etcd's API asks.
            DowngradeAction::Validate | DowngradeAction::Enable => Err(status::invalid_downgrade_version()),
        }
    }
}
