//! The runtime's trait and its requests: CRI's shape, without gRPC.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// Nanoseconds since the epoch.
pub type Nanos = i64;

/// Names the pod that a sandbox belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodId {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// How often the sandbox was made anew.
    pub attempt: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    #[default]
    Pod,
    Container,
    Node,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    pub id: PodId,
    pub hostname: String,
    /// Becomes the containers' /etc/resolv.conf. Empty: a copy of the node's.
    #[serde(default)]
    pub dns: DnsConfig,
    /// Host network when `Node`.
    pub network: NamespaceMode,
    /// `Pod`: one shared process namespace; `Container`: one each; `Node`: the host's.
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    pub sysctls: BTreeMap<String, String>,
    /// Path of the pod's cgroup below the controllers' root, made by the runtime: `/isopod/burstable/pod<uid>`.
    pub cgroup_parent: String,
    /// Limits of the pod's own cgroup.
    pub resources: Resources,
    /// `/var/log/pods/<ns>_<name>_<uid>`.
    pub log_directory: PathBuf,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The kubelet's record of what it started, opaque to the runtime.
    pub port_mappings: Vec<PortMapping>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    pub container_port: u16,
    pub host_port: u16,
    pub host_ip: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub cpu_shares: Option<u64>,
    /// Microseconds.
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    pub cpuset_cpus: String,
    /// Bytes.
    pub memory_limit: Option<i64>,
    pub memory_request: Option<i64>,
    pub pids_limit: Option<i64>,
    pub oom_score_adj: Option<i32>,
    pub hugepages: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    Ready,
    NotReady,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// The sandbox's id, 64 hex digits.
    pub id: String,
    pub config: SandboxConfig,
    pub state: SandboxState,
    pub created_at: Nanos,
    /// Empty for host network.
    pub ips: Vec<IpAddr>,
    /// The shim's process, for statistics.
    pub pid: i32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// What of an image a mount shows (KEP-4639).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMount {
    /// The image's id as [`Runtime::image_status`] gave it.
    pub id: String,
    /// A path in it; empty: all of it.
    pub sub_path: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub host_path: PathBuf,
    /// Shows an image in place of a host's path; always read-only.
    #[serde(default)]
    pub image: Option<ImageMount>,
    pub container_path: PathBuf,
    pub read_only: bool,
    pub recursive_read_only: bool,
    pub propagation: Propagation,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompProfile {
    #[default]
    RuntimeDefault,
    Unconfined,
    /// A path below the seccomp profile root.
    Localhost(PathBuf),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityContext {
    pub privileged: bool,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    /// A user name from the image, when no numeric user is given.
    pub run_as_username: Option<String>,
    pub supplemental_groups: Vec<i64>,
    /// `true`: only `supplemental_groups`; `false`: also those that the image's /etc/group gives the user.
    pub strict_supplemental_groups: bool,
    pub read_only_root: bool,
    pub allow_privilege_escalation: Option<bool>,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub seccomp: SeccompProfile,
    /// `None`: the default masked and read-only paths; `Some(true)`: unmasked (`procMount: Unmasked`).
    pub unmasked_proc: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    pub name: String,
    pub attempt: u32,
    /// The image's id as [`Runtime::image_status`] gave it.
    pub image_id: String,
    /// As the user wrote it.
    pub image: String,
    /// Overrides the image's entrypoint when not empty.
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
    /// In order; later ones win.
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<(PathBuf, PathBuf, String)>,
    /// Relative to the sandbox's log directory: `<container>/<attempt>.log`.
    pub log_path: PathBuf,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub resources: Resources,
    pub security: SecurityContext,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// From the pod's `lifecycle.stopSignal`, else the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// Shares the process namespace of this container (ephemeral containers with a target).
    pub target_container_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// 64 hex digits.
    pub id: String,
    pub sandbox_id: String,
    pub config: ContainerConfig,
    pub state: ContainerState,
    pub created_at: Nanos,
    /// 0: not yet.
    pub started_at: Nanos,
    pub finished_at: Nanos,
    /// 128 + signal when a signal ended it.
    pub exit_code: i32,
    pub signal: Option<i32>,
    /// `OOMKilled`, `StartError`, `ContainerCannotRun`, `Completed`, `Error`, or empty while it runs.
    pub reason: String,
    pub message: String,
    pub pid: i32,
    /// The user that it runs as.
    pub uid: u32,
    pub log_path: PathBuf,
    pub mounts: Vec<Mount>,
}

/// Says that something about this sandbox or container changed: look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    ContainerStarted {
        sandbox_id: String,
        container_id: String,
        pod_uid: String,
    },
    ContainerExited {
        sandbox_id: String,
        container_id: String,
        pod_uid: String,
    },
    SandboxExited {
        sandbox_id: String,
        pod_uid: String,
    },
    /// Events were lost: relist.
    Lagged,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// `sha256:…` of the image's config.
    pub id: String,
    /// `registry/name:tag`
    pub repo_tags: Vec<String>,
    /// `registry/name@sha256:…`
    pub repo_digests: Vec<String>,
    /// Bytes, unpacked.
    pub size: u64,
    /// The image's user: a number …
    pub uid: Option<i64>,
    /// … or a name.
    pub username: String,
    pub env: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub pinned: bool,
}

/// Credentials for one pull, in the order to try.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    pub identity_token: String,
    pub registry_token: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// The streams of an exec or attach, given by the caller. With a TTY there is no stderr.
pub struct Streams {
    pub stdin: Option<BoxRead>,
    pub stdout: Option<BoxWrite>,
    pub stderr: Option<BoxWrite>,
    pub tty: bool,
    /// Sizes as the user's terminal changes.
    pub resize: Option<tokio::sync::mpsc::Receiver<TerminalSize>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    pub exit_code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerStats {
    pub id: String,
    pub timestamp: Nanos,
    /// Core-nanoseconds since it started.
    pub cpu_usage: u64,
    pub memory_usage: u64,
    pub memory_working_set: u64,
    pub memory_rss: u64,
    pub pids: u64,
    /// Bytes of the writable layer.
    pub writable_layer: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsUsage {
    pub mountpoint: PathBuf,
    pub capacity: u64,
    pub available: u64,
    pub used: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// One step of a pull, for progress bars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullProgress {
    Resolving,
    /// digest, bytes so far, bytes in all.
    Layer(String, u64, u64),
    Unpacking(String),
    Done,
}

pub type ProgressFn = Arc<dyn Fn(PullProgress) + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("image {0:?} is not present")]
    ImageNotPresent(String),
    #[error("invalid image name {0:?}: {1}")]
    InvalidImageName(String, String),
    /// The registry could not be reached, or refused; the text says which and why.
    #[error("failed to pull image {image:?}: {why}")]
    Pull { image: String, why: String },
    #[error("no such sandbox: {0}")]
    NoSuchSandbox(String),
    #[error("no such container: {0}")]
    NoSuchContainer(String),
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The container could not be created from its configuration (a bad user, a missing mount).
    #[error("{0}")]
    CreateContainer(String),
    /// The process could not be started (no such executable).
    #[error("{0}")]
    StartContainer(String),
    #[error("the command did not end within {0:?}")]
    ExecTimeout(std::time::Duration),
    #[error("{context}")]
    Io {
        context: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the shim of sandbox {sandbox} failed: {why}")]
    Shim { sandbox: String, why: String },
    #[error("pod network: {0}")]
    Network(String),
}

pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

/// What the kubelet asks of a runtime. Calls are idempotent where CRI's are: stopping what is stopped and removing what is
/// gone succeed.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Name and version for `status.nodeInfo.containerRuntimeVersion`: `isopod://0.1.0`.
    fn version(&self) -> String;
    fn subscribe(&self) -> tokio::sync::broadcast::Receiver<RuntimeEvent>;
    /// Whether pods can have a network of their own by now (CRI's `NetworkReady`).
    fn network_ready(&self) -> tokio::sync::watch::Receiver<bool>;

    /// Makes the sandbox: cgroup, namespaces, shim, network. Answers its id.
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<String>;
    /// Kills what still runs in it, takes its network down. Its containers' statuses stay.
    async fn stop_sandbox(&self, id: &str) -> Result<()>;
    async fn remove_sandbox(&self, id: &str) -> Result<()>;
    /// Other limits for the pod's control group.
    async fn update_sandbox(&self, id: &str, resources: Resources) -> Result<()>;
    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>>;
    async fn sandbox(&self, id: &str) -> Result<SandboxStatus>;

    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String>;
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Sends the stop signal, waits `grace`, then kills. `grace` zero kills at once.
    async fn stop_container(&self, id: &str, grace: std::time::Duration) -> Result<()>;
    async fn remove_container(&self, id: &str) -> Result<()>;
    async fn containers(&self) -> Result<Vec<ContainerStatus>>;
    async fn container(&self, id: &str) -> Result<ContainerStatus>;
    /// Other limits for a container, and other annotations in its configuration.
    async fn update_container(
        &self,
        id: &str,
        resources: Resources,
        annotations: BTreeMap<String, String>,
    ) -> Result<()>;
    async fn container_stats(&self, id: &str) -> Result<ContainerStats>;
    /// Reopens the log file after it was rotated.
    async fn reopen_log(&self, id: &str) -> Result<()>;

    /// Runs a command to its end (probes, hooks). Output is cut at 16 KiB each.
    async fn exec_sync(&self, id: &str, cmd: Vec<String>, timeout: Option<std::time::Duration>) -> Result<ExecOutput>;
    /// Runs a command on these streams; answers its exit code.
    async fn exec(&self, id: &str, cmd: Vec<String>, streams: Streams) -> Result<i32>;
    /// Joins the main process's streams until it ends or stdin's side hangs up.
    async fn attach(&self, id: &str, streams: Streams) -> Result<()>;
    /// Connects to a port inside the sandbox's network namespace.
    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<tokio::net::TcpStream>;

    async fn images(&self) -> Result<Vec<ImageStatus>>;
    /// `None`: not present. `image` is a name as a user writes it, or an id.
    async fn image_status(&self, image: &str) -> Result<Option<ImageStatus>>;
    /// Answers the image's id.
    async fn pull_image(&self, image: &str, auth: Vec<RegistryAuth>, progress: Option<ProgressFn>) -> Result<String>;
    async fn remove_image(&self, image: &str) -> Result<()>;
    async fn image_fs(&self) -> Result<FsUsage>;
}
