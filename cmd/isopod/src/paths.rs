//! Where things lie. One place, so that `cleanup` and `image` find what `server` made.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const DEFAULT_DATA_DIR: &str = "/var/lib/isopod";

/// The layout below a data directory.
#[derive(Clone, Debug)]
pub struct Paths {
    pub data: PathBuf,
    /// Sockets and what a reboot may forget: `/run/isopod`, with a suffix for other data directories, so that several
    /// clusters run side by side and socket paths stay short.
    pub run: PathBuf,
}

impl Paths {
    pub fn new(data_dir: &Path) -> std::io::Result<Self> {
        let data = std::path::absolute(data_dir)?;
        let run = if data == Path::new(DEFAULT_DATA_DIR) {
            PathBuf::from("/run/isopod")
        } else {
            PathBuf::from(format!("/run/isopod-{:08x}", fnv1a(data.as_os_str().as_bytes())))
        };
        Ok(Paths { data, run })
    }

    /// The datastore.
    pub fn store(&self) -> PathBuf {
        self.data.join("server/db")
    }
    /// What `--secrets-encryption` encrypts with.
    pub fn encryption(&self) -> PathBuf {
        self.data.join("server/encryption.yaml")
    }
    pub fn tls(&self) -> PathBuf {
        self.data.join("server/tls")
    }
    /// Where kubeconfigs were written, for `cleanup`.
    pub fn kubeconfigs(&self) -> PathBuf {
        self.data.join("server/kubeconfigs")
    }
    /// Images, snapshots, containers.
    pub fn runtime(&self) -> PathBuf {
        self.data.join("agent/runtime")
    }
    /// Pods' volumes and their like.
    pub fn kubelet(&self) -> PathBuf {
        self.data.join("agent/kubelet")
    }
    /// Containers' logs.
    pub fn logs(&self) -> PathBuf {
        self.data.join("agent/logs/pods")
    }
    pub fn network(&self) -> PathBuf {
        self.data.join("agent/network")
    }
}

/// FNV-1a, 32 bits: the same in every version of this program, which `cleanup` relies on.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_data_directory_has_its_own_run_directory() {
        let run = |d: &str| Paths::new(Path::new(d)).unwrap().run;
        assert_eq!(run("/var/lib/isopod"), Path::new("/run/isopod"));
        assert_ne!(run("/srv/a"), run("/srv/b"));
        assert_eq!(fnv1a(b"foobar"), 0xbf9c_f968);
    }
}
