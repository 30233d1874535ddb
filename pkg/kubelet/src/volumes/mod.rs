//! A pod's volumes: made before its first container, refreshed when their objects change, taken away after its last.
//!
//! Invariants: set-up is idempotent; what a volume shows changes atomically; nothing of a pod outlives [`tear_down`].

mod atomic;
mod certificate;
mod host_path;
mod project;
mod token;
mod trust_bundle;

pub use certificate::Certificates;
pub use token::Tokens;

use crate::downward::{Addresses, Allocatable};
use crate::objects::PodObjects;
use crate::pod::PodExt;
use crate::resources;
use atomic::Payload;
use isopod_client::Error as ApiError;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What volumes ask of the kernel; a seam for tests that must not mount.
pub trait Mounter: Send + Sync {
    fn tmpfs(&self, dir: &Path, size: Option<u64>) -> io::Result<()>;
    /// Shows `sub` of the volume at `root` at `target`.
    fn bind_subpath(&self, root: &Path, sub: &Path, target: &Path) -> io::Result<()>;
    fn is_mounted(&self, dir: &Path) -> io::Result<bool>;
    fn detach_below(&self, dir: &Path) -> io::Result<()>;
}

/// The kernel.
pub struct HostMounter;

impl Mounter for HostMounter {
    fn tmpfs(&self, dir: &Path, size: Option<u64>) -> io::Result<()> {
        isopod_sys::volume::tmpfs(dir, size)
    }
    fn bind_subpath(&self, root: &Path, sub: &Path, target: &Path) -> io::Result<()> {
        let found = isopod_sys::volume::open_subpath(root, sub)?;
        // The descriptor's link says what it is open on; metadata follows it.
        use std::os::fd::AsRawFd;
        let is_dir = std::fs::metadata(format!("/proc/self/fd/{}", found.as_raw_fd()))?.is_dir();
        if is_dir {
            std::fs::create_dir_all(target)?;
        } else {
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::OpenOptions::new().create(true).append(true).open(target)?;
        }
        isopod_sys::volume::bind_open(&found, target)
    }
    fn is_mounted(&self, dir: &Path) -> io::Result<bool> {
        isopod_sys::mount::is_mount_point(dir)
    }
    fn detach_below(&self, dir: &Path) -> io::Result<()> {
        isopod_sys::mount::detach_below(dir)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("configmap {0:?} not found")]
    NoConfigMap(String),
    #[error("secret {0:?} not found")]
    NoSecret(String),
    #[error("references non-existent config key: {0}")]
    NoConfigKey(String),
    #[error("references non-existent secret key: {0}")]
    NoSecretKey(String),
    #[error("hostPath type check failed: {path} is not {what}")]
    HostPathType { path: String, what: &'static str },
    #[error("no volume plugin matched")]
    Unsupported,
    #[error(transparent)]
    Downward(#[from] crate::downward::DownwardError),
    #[error("while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {0:?} not found")]
    NoTrustBundle(String),
    #[error("combination of signerName and labelSelector matched zero ClusterTrustBundles")]
    NoTrustBundleOfSigner,
    #[error("while parsing label selector: {0}")]
    Selector(String),
    #[error("ClusterTrustBundle projection requires either name or signerName to be set")]
    UnnamedTrustBundle,
    #[error("{0} informer has not yet synced")]
    NotSynced(&'static str),
    #[error("credential bundle is not issued yet")]
    NotIssued,
    #[error("PodCertificateRequest was permanently {how}: reason={reason:?} message={message:?}")]
    Refused { how: &'static str, reason: String, message: String },
    #[error(transparent)]
    Key(#[from] isopod_pki::PkiError),
    #[error("failed to fetch token")]
    Token(#[source] ApiError),
    #[error("cannot read {what}")]
    Api {
        what: String,
        #[source]
        source: ApiError,
    },
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> VolumeError {
    let what = what.into();
    move |source| VolumeError::Io { what, source }
}

/// Where a pod's volumes are on the host, by volume name.
pub type Paths = HashMap<String, PathBuf>;

/// What setting up volumes needs besides the pod.
pub struct SetUp<'a> {
    pub pod_dir: PathBuf,
    pub mounter: Arc<dyn Mounter>,
    pub objects: &'a mut PodObjects,
    pub tokens: &'a mut Tokens,
    pub certificates: &'a mut Certificates,
    /// Of the node's object.
    pub node_uid: String,
    pub addresses: Addresses,
    pub node: Allocatable,
    pub now: Timestamp,
}

/// Makes or refreshes every volume. The error names the volume, as upstream's `FailedMount` event does.
pub async fn set_up(pod: &Pod, cx: &mut SetUp<'_>) -> Result<Paths, (String, VolumeError)> {
    let mut paths = Paths::new();
    for volume in pod.spec().volumes.iter().flatten() {
        // Images are mounted by the runtime.
        if volume.image.is_some() {
            continue;
        }
        let path = one(pod, volume, cx).await.map_err(|e| (volume.name.clone(), e))?;
        paths.insert(volume.name.clone(), path);
    }
    Ok(paths)
}

fn fs_group(pod: &Pod) -> Option<u32> {
    pod.spec().security_context.as_ref().and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok())
}

async fn one(pod: &Pod, v: &Volume, cx: &mut SetUp<'_>) -> Result<PathBuf, VolumeError> {
    let dir = |plugin: &str| cx.pod_dir.join("volumes").join(format!("kubernetes.io~{plugin}")).join(&v.name);
    if let Some(source) = &v.host_path {
        let path = PathBuf::from(&source.path);
        host_path::check(&path, source.type_.as_deref().unwrap_or_default())?;
        return Ok(path);
    }
    if let Some(source) = &v.empty_dir {
        let dir = dir("empty-dir");
        let memory = source.medium.as_deref() == Some("Memory");
        let size = source.size_limit.as_ref().and_then(resources::parse).map(|q| q.value()).filter(|s| *s > 0);
        let (mounter, group, target) = (cx.mounter.clone(), fs_group(pod), dir.clone());
        let root_only = on_root_mismatch(pod);
        blocking(move || empty_dir(&*mounter, &target, memory, size, group, root_only)).await?;
        return Ok(dir);
    }
    let (dir, payload, memory) = if let Some(source) = &v.config_map {
        (dir("configmap"), project::config_map(source, cx).await?, false)
    } else if let Some(source) = &v.secret {
        (dir("secret"), project::secret(source, cx).await?, true)
    } else if let Some(source) = &v.downward_api {
        (dir("downward-api"), project::downward(pod, source, cx)?, false)
    } else if let Some(source) = &v.projected {
        (dir("projected"), project::projected(pod, &v.name, source, cx).await?, true)
    } else {
        return Err(VolumeError::Unsupported);
    };
    let (mounter, group, target) = (cx.mounter.clone(), fs_group(pod), dir.clone());
    blocking(move || write(&*mounter, &target, &payload, group, memory)).await?;
    Ok(dir)
}

async fn blocking(work: impl FnOnce() -> Result<(), VolumeError> + Send + 'static) -> Result<(), VolumeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(r) => r,
        Err(e) => {
            Err(VolumeError::Io { what: "setting up the volume was interrupted".into(), source: io::Error::other(e) })
        }
    }
}

fn on_root_mismatch(pod: &Pod) -> bool {
    let policy = pod.spec().security_context.as_ref().and_then(|s| s.fs_group_change_policy.as_deref());
    policy == Some("OnRootMismatch")
}

fn empty_dir(
    mounter: &dyn Mounter,
    dir: &Path,
    memory: bool,
    size: Option<i64>,
    group: Option<u32>,
    root_only: bool,
) -> Result<(), VolumeError> {
    use std::os::unix::fs::PermissionsExt;
    let fresh = !dir.exists();
    std::fs::create_dir_all(dir).map_err(io_error(format!("cannot make {}", dir.display())))?;
    let mut mounted = false;
    if memory && !mounter.is_mounted(dir).map_err(io_error("cannot read the mount table"))? {
        mounter.tmpfs(dir, size.and_then(|s| u64::try_from(s).ok())).map_err(io_error("cannot mount a tmpfs"))?;
        mounted = true;
    }
    if fresh || mounted {
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(dir, open).map_err(io_error(format!("cannot open {} to all", dir.display())))?;
        if let Some(group) = group {
            atomic::own(dir, group, root_only).map_err(io_error("cannot apply fsGroup"))?;
        }
    }
    Ok(())
}

/// Secrets and tokens stay in memory; a directory that is none yet becomes a tmpfs.
fn write(
    mounter: &dyn Mounter,
    dir: &Path,
    payload: &Payload,
    group: Option<u32>,
    memory: bool,
) -> Result<(), VolumeError> {
    std::fs::create_dir_all(dir).map_err(io_error(format!("cannot make {}", dir.display())))?;
    if memory && !mounter.is_mounted(dir).map_err(io_error("cannot read the mount table"))? {
        mounter.tmpfs(dir, None).map_err(io_error("cannot mount a tmpfs"))?;
    }
    atomic::write(dir, payload, group).map_err(io_error(format!("cannot write {}", dir.display())))?;
    Ok(())
}

/// Unmounts and removes everything below a pod's directory. Gone already: nothing to do.
pub fn tear_down(mounter: &dyn Mounter, pod_dir: &Path) -> io::Result<()> {
    if !pod_dir.exists() {
        return Ok(());
    }
    mounter.detach_below(pod_dir)?;
    // A mount that could not be taken away must not be emptied through.
    match std::fs::remove_dir_all(pod_dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The host path of a mount with a subpath: bound once to a place of its own, so that what the path leads to cannot change.
pub fn subpath(
    mounter: &dyn Mounter,
    pod_dir: &Path,
    volume: (&str, &Path),
    container: &str,
    index: usize,
    sub: &str,
) -> io::Result<PathBuf> {
    let (name, root) = volume;
    let target = pod_dir.join("volume-subpaths").join(name).join(container).join(index.to_string());
    if !mounter.is_mounted(&target)? {
        mounter.bind_subpath(root, Path::new(sub), &target)?;
    }
    Ok(target)
}
