//! What the runtime writes down about sandboxes and containers, so that one that starts anew knows them.

use crate::persist;
use crate::types::{ContainerConfig, Nanos, SandboxConfig};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: String,
    pub config: SandboxConfig,
    pub created_at: Nanos,
    pub ips: Vec<IpAddr>,
    /// 0: it has not started.
    pub shim_pid: i32,
    /// With the process id it names one process for ever.
    pub shim_start: u64,
    pub stopped: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub sandbox_id: String,
    pub pod_uid: String,
    pub config: ContainerConfig,
    pub created_at: Nanos,
    /// 0: not yet.
    pub started_at: Nanos,
    pub pid: i32,
    pub uid: u32,
    pub cgroup: String,
    pub log_path: PathBuf,
    pub lowers: Vec<String>,
    /// Layers of images that it has mounted.
    #[serde(default)]
    pub mounted_lowers: Vec<String>,
    pub working_dir: PathBuf,
    pub stop_signal: i32,
    /// Why it could not be started.
    pub start_failure: Option<String>,
}

/// Where things are. `data` outlives a reboot, `state` need not.
#[derive(Clone, Debug)]
pub struct Paths {
    pub data: PathBuf,
    pub state: PathBuf,
}

impl Paths {
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    pub fn sandboxes(&self) -> PathBuf {
        self.data.join("sandboxes")
    }

    pub fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }

    pub fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }

    /// The OCI bundle of a container, with its writable layer.
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// A private mount: what is mounted below it elsewhere is not seen here.
    pub fn mounts(&self) -> PathBuf {
        self.state.join("mounts")
    }

    pub fn rootfs(&self, container: &str) -> PathBuf {
        self.mounts().join("rootfs").join(container)
    }

    pub fn shm(&self, sandbox: &str) -> PathBuf {
        self.mounts().join("shm").join(sandbox)
    }

    pub fn shims(&self) -> PathBuf {
        self.state.join("shims")
    }

    pub fn shim(&self, sandbox: &str) -> PathBuf {
        self.shims().join(sandbox)
    }

    /// libcontainer's own records.
    pub fn libcontainer(&self) -> PathBuf {
        self.state.join("libcontainer")
    }
}

impl SandboxRecord {
    pub fn save(&self, paths: &Paths) -> io::Result<()> {
        persist::replace_json(&paths.sandbox(&self.id).join("sandbox.json"), self)
    }
}

impl ContainerRecord {
    pub fn save(&self, paths: &Paths) -> io::Result<()> {
        persist::replace_json(&paths.container(&self.id).join("container.json"), self)
    }
}

/// The records of all directories below `dir`. A directory without one was not finished, or lost it in a power loss, which
/// ended its processes too: it is removed.
pub fn load<T: serde::de::DeserializeOwned>(dir: &Path, file: &str) -> io::Result<Vec<T>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir)?.flatten() {
        match persist::read_json(&entry.path().join(file)) {
            Ok(Some(record)) => all.push(record),
            Ok(None) => persist::remove_tree(&entry.path())?,
            Err(e) => {
                tracing::warn!(path = %entry.path().display(), error = %e, "unreadable record; removing its directory");
                persist::remove_tree(&entry.path())?;
            }
        }
    }
    Ok(all)
}
