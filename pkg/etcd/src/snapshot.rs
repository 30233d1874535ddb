//! The store as etcd's snapshot: a bbolt file with etcd's buckets, which `etcdctl snapshot restore` turns into the data of a
//! real etcd.
//!
//! Invariant: the file shows one revision. It is written beside the data (a temporary file without a name) before the first
//! byte is sent, so that a slow client holds up nobody.

use crate::VERSION;
use crate::auth::State as Users;
use crate::bolt::BoltWriter;
use crate::pb::etcdserverpb::SnapshotResponse;
use crate::pb::mvccpb;
use crate::service::{Service, TERM};
use crate::{convert, status};
use futures::stream::{self, BoxStream, StreamExt};
use isopod_store::{Export, HistoryEntry, Revision};
use prost::Message as _;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom};
use std::path::Path;
use tonic::Status;

/// Bytes in an answer.
const PART: usize = 32 << 10;
/// Buckets that etcd expects and that are empty here.
const EMPTY: [&str; 4] = ["alarm", "cluster", "members", "members_removed"];

pub(crate) type Answers = BoxStream<'static, Result<SnapshotResponse, Status>>;

impl Service {
    pub(crate) async fn write_snapshot(&self) -> Result<Answers, Status> {
        let mut leases = Vec::new();
        for id in self.store.leases().await.map_err(status::of)? {
            // One that ends in this moment is left out.
            if let Ok(lease) = self.store.lease_status(id).await {
                leases.push((id, lease.granted_ttl));
            }
        }
        leases.sort_unstable_by_key(|(id, _)| id.to_be_bytes());
        let export = self.store.export().await.map_err(status::of)?;
        let auth = self.auth.state().await?;
        let folder = self.config.temporary_files.clone();
        let written = tokio::task::spawn_blocking(move || write(&folder, export, &leases, &auth)).await;
        let file = written.map_err(|e| Status::internal(format!("isopod: the snapshot was not written: {e}")))??;
        parts(file).map_err(cannot)
    }
}

fn cannot(e: std::io::Error) -> Status {
    Status::unknown(format!("isopod: cannot write the snapshot: {e}"))
}

/// Runs on a thread that may wait.
fn write(folder: &Path, mut export: Export, leases: &[(i64, i64)], auth: &Users) -> Result<File, Status> {
    let file = BufWriter::new(tempfile::tempfile_in(folder).map_err(cannot)?);
    let mut bolt = BoltWriter::new(file).map_err(cannot)?;
    while let Some(part) = export.entries.blocking_recv() {
        for entry in part.map_err(status::of)? {
            bolt.put(&revision_key(entry.revision, entry.sub, entry.kv.is_none()), &value(entry)).map_err(cannot)?;
        }
    }
    rest(bolt, &export, leases, auth).map_err(cannot)
}

/// The buckets beside the keys'.
fn rest(
    mut bolt: BoltWriter<BufWriter<File>>,
    export: &Export,
    leases: &[(i64, i64)],
    auth: &Users,
) -> std::io::Result<File> {
    bolt.end_bucket("key")?;
    for (id, ttl) in leases {
        bolt.put(&id.to_be_bytes(), &Lease { id: *id, ttl: *ttl }.encode_to_vec())?;
    }
    bolt.end_bucket("lease")?;
    bolt.put(b"consistent_index", &(export.revision as u64).to_be_bytes())?;
    if export.compacted > 0 {
        // Not "finished": etcd drops by itself what is left to drop.
        bolt.put(b"scheduledCompactRev", &revision_key(export.compacted, 0, false))?;
    }
    bolt.put(b"term", &TERM.to_be_bytes())?;
    bolt.end_bucket("meta")?;
    users_and_roles(&mut bolt, auth)?;
    for name in EMPTY {
        bolt.end_bucket(name)?;
    }
    bolt.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)
}

fn users_and_roles(bolt: &mut BoltWriter<BufWriter<File>>, auth: &Users) -> std::io::Result<()> {
    bolt.put(b"authEnabled", &[u8::from(auth.enabled)])?;
    bolt.put(b"authRevision", &auth.revision.to_be_bytes())?;
    bolt.end_bucket("auth")?;
    for (name, role) in auth.roles() {
        bolt.put(name.as_bytes(), &role.encode_to_vec())?;
    }
    bolt.end_bucket("authRoles")?;
    for (name, user) in auth.users() {
        bolt.put(name.as_bytes(), &user.encode_to_vec())?;
    }
    bolt.end_bucket("authUsers")
}

fn revision_key(revision: Revision, sub: u32, deleted: bool) -> Vec<u8> {
    let mut key = [&revision.to_be_bytes()[..], b"_", &i64::from(sub).to_be_bytes()].concat();
    if deleted {
        key.push(b't');
    }
    key
}

fn value(entry: HistoryEntry) -> Vec<u8> {
    let message = match entry.kv {
        Some(kv) => convert::key_value(kv),
        None => mvccpb::KeyValue { key: entry.key, ..Default::default() },
    };
    message.encode_to_vec()
}

/// As etcd stores a lease.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Lease {
    #[prost(int64, tag = "1")]
    pub id: i64,
    #[prost(int64, tag = "2")]
    pub ttl: i64,
}

/// The file, then its SHA-256.
fn parts(mut file: File) -> std::io::Result<Answers> {
    let size = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let answers = stream::unfold(Some((file, size, Sha256::new())), |state| async move {
        let (mut file, left, mut hash) = state?;
        if left == 0 {
            let answer = SnapshotResponse { blob: hash.finalize().to_vec().into(), ..answer(0) };
            return Some((Ok(answer), None));
        }
        let mut blob = vec![0; PART.min(left as usize)];
        // A page or two from the kernel's cache: not worth a thread.
        if let Err(e) = file.read_exact(&mut blob) {
            return Some((Err(cannot(e)), None));
        }
        hash.update(&blob);
        let left = left - blob.len() as u64;
        Some((Ok(SnapshotResponse { blob: blob.into(), ..answer(left) }), Some((file, left, hash))))
    });
    Ok(answers.boxed())
}

fn answer(remaining_bytes: u64) -> SnapshotResponse {
    SnapshotResponse { remaining_bytes, version: VERSION.into(), ..Default::default() }
}
