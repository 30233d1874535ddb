//! A real etcd cluster, 3.5 or newer, as a [`Store`]: what it holds and promises is etcd's.
//!
//! Invariants:
//! - A write is acknowledged when etcd has acknowledged it; one whose outcome is unknown is [`StoreError::Unavailable`] and is
//!   never sent again by itself (`cluster.rs`).
//! - Reads are linearizable: what any server was acknowledged is seen by every later read.
//! - Every request ends within [`EtcdOptions::request_timeout`]; watches stay, and go on when the cluster is back.
//!
//! etcd knows nothing that is ephemeral: all is durable there.

mod cluster;
mod endpoint;
mod error;
mod export;
mod messages;
mod revisions;
mod watch;

pub use endpoint::{Endpoint, InvalidEndpoint};

use crate::pb::etcdserverpb as pb;
use async_trait::async_trait;
use bytes::Bytes;
use cluster::{Channel, Cluster, Repeat, client};
use error::{about, backend};
use isopod_store::*;
use revisions::Revisions;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Before these, progress could be announced before the events that it covers (etcd-io/etcd#15220).
const OLDEST: [(u64, u64, u64); 2] = [(3, 5, 8), (3, 6, 0)];

/// A user of etcd's.
#[derive(Clone)]
pub struct User {
    pub name: String,
    pub password: String,
}

/// How to reach a cluster.
#[derive(Clone)]
pub struct EtcdOptions {
    /// Tried in order, until one serves. Not empty.
    pub endpoints: Vec<Endpoint>,
    /// For endpoints with TLS; its ALPN protocol must be `h2`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    pub user: Option<User>,
    /// A request ends by then, whatever happens.
    pub request_timeout: Duration,
    /// The key by which the newest revision is asked for. A user needs to be allowed to read it.
    pub probe_key: Bytes,
}

impl EtcdOptions {
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        EtcdOptions {
            endpoints,
            tls: None,
            user: None,
            request_timeout: Duration::from_secs(10),
            probe_key: Bytes::from_static(b"/registry/health"),
        }
    }
}

/// See the module.
pub struct EtcdStore {
    cluster: Arc<Cluster>,
    revisions: Arc<Revisions>,
}

impl EtcdStore {
    /// Connects and looks whether the cluster can be used. [`StoreError::Unavailable`]: later it may.
    pub async fn open(options: EtcdOptions) -> Result<Self> {
        if options.endpoints.is_empty() {
            return Err(backend("cannot use etcd", "no endpoint is given"));
        }
        let store = EtcdStore { cluster: Arc::new(Cluster::new(options)), revisions: Arc::default() };
        store.require_version().await?;
        store.revisions.newest(&store.cluster).await?;
        watch::learn_compacted(&store.cluster).await?;
        Ok(store)
    }

    async fn require_version(&self) -> Result<()> {
        let version = self.status().await?.version;
        let mut numbers = version.split(['.', '-', '+']).map(|n| n.parse().unwrap_or(0));
        let mut number = || numbers.next().unwrap_or(0);
        let found = (number(), number(), number());
        let oldest = OLDEST.into_iter().find(|o| (o.0, o.1) == (found.0, found.1)).unwrap_or(OLDEST[0]);
        if found < oldest {
            let (major, minor, patch) = oldest;
            let why = format!("this one is {version}: upgrade it to {major}.{minor}.{patch} or newer");
            return Err(backend("the etcd is too old", why));
        }
        Ok(())
    }

    async fn status(&self) -> Result<pb::StatusResponse> {
        let ask =
            |c| async move { client!(c, maintenance_client::MaintenanceClient).status(pb::StatusRequest {}).await };
        self.cluster.call("cannot read etcd's status", Repeat::Safe, ask).await
    }

    async fn compact_with(&self, revision: Revision, physical: bool) -> Result<()> {
        let request = pb::CompactionRequest { revision, physical };
        let ask = |c| async move { client!(c, kv_client::KvClient).compact(request).await };
        match self.cluster.call("cannot compact", Repeat::Never, ask).await {
            Ok(_) => {
                self.cluster.note_compacted(revision);
                Ok(())
            }
            Err(e) => Err(self.about(e, revision).await),
        }
    }

    async fn grant(&self, id: LeaseId, ttl: i64) -> Result<LeaseStatus> {
        let request = pb::LeaseGrantRequest { ttl, id };
        let ask = |c| async move { client!(c, lease_client::LeaseClient).lease_grant(request).await };
        let granted = self.cluster.call("cannot grant a lease", Repeat::Never, ask).await;
        let l = granted.map_err(|e| about(e, id, 0))?;
        Ok(LeaseStatus { id: l.id, granted_ttl: l.ttl, ttl: l.ttl, keys: Vec::new() })
    }

    async fn alarm(
        &self,
        action: pb::alarm_request::AlarmAction,
        member: pb::AlarmMember,
    ) -> Result<Vec<pb::AlarmMember>> {
        let request = pb::AlarmRequest { action: action as i32, member_id: member.member_id, alarm: member.alarm };
        let ask = |c| async move { client!(c, maintenance_client::MaintenanceClient).alarm(request).await };
        Ok(self.cluster.call("cannot speak of alarms", Repeat::Safe, ask).await?.alarms)
    }

    async fn raised(&self) -> Result<Vec<pb::AlarmMember>> {
        self.alarm(pb::alarm_request::AlarmAction::Get, pb::AlarmMember::default()).await
    }

    /// The error with the revisions that etcd's message leaves out.
    async fn about(&self, error: StoreError, asked: Revision) -> StoreError {
        let known = match &error {
            StoreError::Compacted { .. } => {
                if asked >= self.cluster.compacted() {
                    // Somebody else's doing. Not to know how far is no reason to hide the error.
                    let _ = watch::learn_compacted(&self.cluster).await;
                }
                self.cluster.compacted()
            }
            StoreError::FutureRevision { .. } => self.revisions.newest(&self.cluster).await.unwrap_or(0),
            _ => 0,
        };
        about(error, asked, known)
    }
}

/// One message there and one back.
async fn keep_alive_once(
    channel: Channel,
    id: LeaseId,
) -> Result<tonic::Response<pb::LeaseKeepAliveResponse>, tonic::Status> {
    let request = pb::LeaseKeepAliveRequest { id };
    // The stream stays open until the answer is there.
    let requests = futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
    let mut answers = client!(channel, lease_client::LeaseClient).lease_keep_alive(requests).await?.into_inner();
    let answer = answers.message().await?;
    answer.map(tonic::Response::new).ok_or_else(|| tonic::Status::unavailable("the stream ended"))
}

fn known_alarm(member: &pb::AlarmMember) -> Option<Alarm> {
    match member.alarm() {
        pb::AlarmType::Nospace => Some(Alarm::NoSpace),
        pb::AlarmType::Corrupt => Some(Alarm::Corrupt),
        pb::AlarmType::None => None,
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn range(&self, req: RangeRequest) -> Result<RangeResponse> {
        let revision = req.revision;
        let request = messages::range(req);
        let ask = |c| {
            let request = request.clone();
            async move { client!(c, kv_client::KvClient).range(request).await }
        };
        match self.cluster.call("cannot read", Repeat::Safe, ask).await {
            Ok(answer) => Ok(messages::range_response(answer)),
            Err(e) => Err(self.about(e, revision).await),
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        let repeat = if messages::only_reads(&txn) { Repeat::Safe } else { Repeat::Never };
        let request = messages::txn(txn);
        let ask = |c| {
            let request = request.clone();
            async move { client!(c, kv_client::KvClient).txn(request).await }
        };
        match self.cluster.call("cannot write", repeat, ask).await {
            Ok(answer) => Ok(messages::txn_response(answer)),
            Err(e) => Err(self.about(e, 0).await),
        }
    }

    async fn watch(&self, req: WatchRequest) -> Result<Watch> {
        watch::start(self.cluster.clone(), self.revisions.clone(), req).await
    }

    async fn compact(&self, rev: Revision) -> Result<()> {
        self.compact_with(rev, false).await
    }

    async fn compact_physically(&self, rev: Revision) -> Result<()> {
        self.compact_with(rev, true).await
    }

    /// Of the member that serves.
    async fn hash(&self, revision: Revision) -> Result<HistoryHash> {
        let request = pb::HashKvRequest { revision };
        let ask = |c| async move { client!(c, maintenance_client::MaintenanceClient).hash_kv(request).await };
        let answer = match self.cluster.call("cannot read a hash", Repeat::Safe, ask).await {
            Ok(answer) => answer,
            Err(e) => return Err(self.about(e, revision).await),
        };
        let newest = messages::revision(&answer.header);
        // Before 3.6 an answer does not say what it is about.
        let hash_revision = match (answer.hash_revision, revision) {
            (0, 0) => newest,
            (0, asked) => asked,
            (said, _) => said,
        };
        let compact_revision = answer.compact_revision;
        Ok(HistoryHash { hash: answer.hash, hash_revision, compact_revision, revision: newest })
    }

    /// The newest state alone: etcd's API does not give older values away but by revision.
    async fn export(&self) -> Result<Export> {
        export::start(self.cluster.clone(), self.revisions.newest(&self.cluster).await?).await
    }

    async fn revisions(&self) -> Result<(Revision, Revision)> {
        let newest = self.revisions.newest(&self.cluster).await?;
        Ok((newest, self.cluster.compacted().max(1)))
    }

    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus> {
        self.grant(id, ttl_seconds).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        let request = pb::LeaseRevokeRequest { id };
        let ask = |c| async move { client!(c, lease_client::LeaseClient).lease_revoke(request).await };
        let revoked = self.cluster.call("cannot revoke a lease", Repeat::Never, ask).await;
        revoked.map(drop).map_err(|e| about(e, id, 0))
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        let kept = self.cluster.call("cannot renew a lease", Repeat::Safe, |c| keep_alive_once(c, id)).await;
        let ttl = kept.map_err(|e| about(e, id, 0))?.ttl;
        match ttl {
            ..=0 => Err(StoreError::LeaseNotFound(id)),
            ttl => Ok(LeaseStatus { id, granted_ttl: ttl, ttl, keys: Vec::new() }),
        }
    }

    async fn lease_status(&self, id: LeaseId) -> Result<LeaseStatus> {
        let request = pb::LeaseTimeToLiveRequest { id, keys: true };
        let ask = |c| async move { client!(c, lease_client::LeaseClient).lease_time_to_live(request).await };
        let answer = self.cluster.call("cannot read a lease", Repeat::Safe, ask).await.map_err(|e| about(e, id, 0))?;
        if answer.ttl < 0 {
            return Err(StoreError::LeaseNotFound(id));
        }
        Ok(LeaseStatus { id, granted_ttl: answer.granted_ttl, ttl: answer.ttl, keys: answer.keys })
    }

    async fn leases(&self) -> Result<Vec<LeaseId>> {
        let ask =
            |c| async move { client!(c, lease_client::LeaseClient).lease_leases(pb::LeaseLeasesRequest {}).await };
        let answer = self.cluster.call("cannot list leases", Repeat::Safe, ask).await?;
        Ok(answer.leases.into_iter().map(|l| l.id).collect())
    }

    /// Of the member that serves.
    async fn usage(&self) -> Result<Usage> {
        let status = self.status().await?;
        let bytes = |n| u64::try_from(n).unwrap_or(0);
        Ok(Usage { size: bytes(status.db_size), in_use: bytes(status.db_size_in_use) })
    }

    /// One member after the other, as long as it takes.
    async fn defragment(&self) -> Result<()> {
        for endpoint in &self.cluster.options.endpoints {
            let ask = |c| async move {
                client!(c, maintenance_client::MaintenanceClient).defragment(pb::DefragmentRequest {}).await
            };
            self.cluster.call_at("cannot defragment", endpoint, ask).await?;
        }
        Ok(())
    }

    async fn alarms(&self) -> Result<Vec<Alarm>> {
        let mut alarms: Vec<Alarm> = self.raised().await?.iter().filter_map(known_alarm).collect();
        alarms.sort_unstable();
        alarms.dedup();
        Ok(alarms)
    }

    async fn set_alarm(&self, alarm: Alarm, raised: bool) -> Result<bool> {
        use pb::alarm_request::AlarmAction;
        let kind = match alarm {
            Alarm::NoSpace => pb::AlarmType::Nospace,
            Alarm::Corrupt => pb::AlarmType::Corrupt,
        };
        let known: Vec<_> = self.raised().await?.into_iter().filter(|a| a.alarm() == kind).collect();
        if raised && known.is_empty() {
            self.alarm(AlarmAction::Activate, pb::AlarmMember { member_id: 0, alarm: kind as i32 }).await?;
        }
        if !raised {
            // Each is that of the member which raised it.
            for member in &known {
                self.alarm(AlarmAction::Deactivate, *member).await?;
            }
        }
        Ok(known.is_empty() == raised)
    }

    /// etcd's API has no place for one, so nobody has set it.
    async fn setting(&self, _: &str) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn settings(&self) -> Result<BTreeMap<String, Bytes>> {
        Ok(BTreeMap::new())
    }

    async fn set_setting(&self, _: &str, _: Option<Bytes>) -> Result<()> {
        let context = "an etcd as the datastore keeps no settings beside its keys";
        Err(backend(context, "make users and roles with etcdctl at the etcd itself"))
    }

    async fn swap_setting(&self, name: &str, _: Option<Bytes>, value: Option<Bytes>) -> Result<bool> {
        self.set_setting(name, value).await.map(|()| true)
    }

    async fn close(&self) -> Result<()> {
        self.cluster.closed.cancel();
        Ok(())
    }
}
