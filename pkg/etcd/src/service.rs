//! What every service of the API shares: the store, the settings, the header of answers.

use crate::auth::{Auth, AuthConfig};
use crate::pb::etcdserverpb::ResponseHeader;
use crate::quota::Quota;
use crate::status;
use isopod_store::{Revision, Store};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Settings; the names of the flags are etcd's.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    /// Told to clients that ask for the members.
    pub advertise_client_urls: Vec<String>,
    /// Told with them, for tools that show it. Nobody listens there.
    pub peer_urls: Vec<String>,
    /// Bytes; 0 is etcd's default of 2 GiB, a negative number is no quota.
    pub quota_backend_bytes: i64,
    pub max_request_bytes: usize,
    pub max_txn_ops: usize,
    /// How often a watch that wants it is told of progress while nothing happens.
    pub watch_progress_notify_interval: Duration,
    /// Where snapshots are written before they are sent.
    pub temporary_files: PathBuf,
    /// How often an idle connection is asked whether it lives, and how long the answer may take.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    /// Requests that run at the same time on one connection; `None`: no limit.
    pub max_concurrent_streams: Option<u32>,
    pub auth: AuthConfig,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            name: "default".into(),
            advertise_client_urls: vec!["http://localhost:2379".into()],
            peer_urls: vec!["http://localhost:2380".into()],
            quota_backend_bytes: 0,
            max_request_bytes: 3 << 19,
            max_txn_ops: 128,
            watch_progress_notify_interval: Duration::from_secs(600),
            temporary_files: std::env::temp_dir(),
            keepalive_interval: Duration::from_secs(2 * 3600),
            keepalive_timeout: Duration::from_secs(20),
            max_concurrent_streams: None,
            auth: AuthConfig::default(),
        }
    }
}

/// What gRPC adds to a request of the largest size, as etcd reckons it.
pub(crate) const REQUEST_OVERHEAD: usize = 512 << 10;

/// See the crate. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) config: Arc<Config>,
    pub(crate) quota: Arc<Quota>,
    pub(crate) auth: Arc<Auth>,
    pub(crate) member_id: u64,
    pub(crate) cluster_id: u64,
    /// Ends streams.
    pub(crate) stop: CancellationToken,
}

/// The one term: this server never loses an election.
pub(crate) const TERM: u64 = 1;

impl Service {
    /// Fails if the store cannot tell its alarms and users.
    pub async fn new(store: Arc<dyn Store>, config: Config) -> isopod_store::Result<Self> {
        let quota = Quota::new(Arc::clone(&store), config.quota_backend_bytes).await?;
        let auth = Auth::new(Arc::clone(&store), &config.auth).await?;
        let member_id = fnv1a(&[&[config.name.as_str()][..], &texts(&config.advertise_client_urls)].concat());
        Ok(Service {
            store,
            quota: Arc::new(quota),
            auth: Arc::new(auth),
            member_id,
            cluster_id: fnv1a(&["cluster", &member_id.to_string()]),
            config: Arc::new(config),
            stop: CancellationToken::new(),
        })
    }

    /// Ends the streams; requests that run are answered.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    pub(crate) fn header(&self, revision: Revision) -> ResponseHeader {
        ResponseHeader { cluster_id: self.cluster_id, member_id: self.member_id, revision, raft_term: TERM }
    }

    /// The newest revision.
    pub(crate) async fn revision(&self) -> Result<Revision, Status> {
        Ok(self.store.revisions().await.map_err(status::of)?.0)
    }

    /// The header of an answer that has no revision of its own.
    pub(crate) async fn newest(&self) -> Result<Option<ResponseHeader>, Status> {
        Ok(Some(self.header(self.revision().await?)))
    }

    pub(crate) fn check_size(&self, request: &impl prost::Message) -> Result<(), Status> {
        if request.encoded_len() > self.config.max_request_bytes {
            return Err(status::request_too_large());
        }
        Ok(())
    }
}

fn texts(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

/// FNV-1a, 64 bits: ids must be the same after a restart, and are not secret.
fn fnv1a(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|p| p.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
