//! What the runtime is opened with.

use crate::network::PodNetwork;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Clone)]
pub struct RuntimeConfig {
    /// Images, records and writable layers: `<data-dir>/runtime`.
    pub data_dir: PathBuf,
    /// Sockets and mount points, gone after a reboot: `/run/isopod/runtime`.
    pub state_dir: PathBuf,
    /// The group, below every controller's root, that the runtime's own processes live in: `/isopod`.
    pub cgroup_root: String,
    /// The shim's program, compressed by zstd.
    pub shim: &'static [u8],
    /// `None`: pods get a network namespace with loopback only.
    pub network: Option<Arc<PodNetwork>>,
    /// `registries.yaml`, which need not exist.
    pub registries: PathBuf,
    /// Where `Localhost` seccomp profiles are.
    pub seccomp_root: PathBuf,
}
