//! What one program at a time may use on a machine: a data directory, a control group, the links and tables of a network
//! namespace, a kubeconfig.
//!
//! Invariants: a claim is bound to the thing itself (a lock on the directory, a name in the namespace) and not to a path or
//! a kind of datastore, so two programs meet however each of them was told its way; the kernel takes a claim back when its
//! process ends, however it ends, and no file is left of it. Who finds one taken changes nothing.

use anyhow::{Context, bail};
use isopod_sys::cgroup::Hierarchies;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

/// The name, in the abstract namespace that each network namespace has, of who makes links and tables there.
const NETWORK: &str = "isopod/network";

/// A lock on a file or directory, held until it is dropped.
pub struct Lock(File);

impl Lock {
    /// `None`: another holds it.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread is just forking has the same open file until its exec.
        let _ = self.0.unlock();
    }
}

/// The data directory, made if it is not there.
pub fn data_directory(dir: &Path) -> anyhow::Result<Lock> {
    let cannot = || format!("cannot use the data directory {}; choose another with --data-dir", dir.display());
    DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(cannot)?;
    match Lock::take(dir).with_context(cannot)? {
        Some(lock) => Ok(lock),
        None => bail!(
            "the data directory {} is in use: an isopod is running on it; stop it, or choose another with --data-dir",
            dir.display()
        ),
    }
}

/// What the node of a running server has for itself.
pub struct Node {
    _network: UnixListener,
    _group: Vec<Lock>,
}

/// This network namespace and this control group, for a node.
pub fn node(cgroup_root: &str) -> anyhow::Result<Node> {
    let network = network()?;
    let hierarchies = Hierarchies::detect()?;
    let group = hierarchies.group(cgroup_root).context("--cgroup-root")?;
    group.create().with_context(|| format!("cannot make the control group {cgroup_root}"))?;
    let dir = group.directories().into_iter().next().context("no control group hierarchy is mounted")?;
    Ok(Node { _network: network, _group: vec![directory_of_group(&dir, cgroup_root)?] })
}

/// What [`node`] claims and all that lies above and below its control group, for one who is going to remove it. Makes
/// nothing.
pub fn removal(cgroup_root: &str) -> anyhow::Result<Node> {
    let network = network()?;
    let hierarchies = Hierarchies::detect()?;
    let mut dirs = Vec::new();
    let relative = cgroup_root.trim_matches('/');
    for (end, _) in relative.match_indices('/') {
        dirs.extend(hierarchies.group(&relative[..end]).context("--cgroup-root")?.directories().into_iter().next());
    }
    let own = hierarchies.group(cgroup_root).context("--cgroup-root")?.directories().into_iter().next();
    own.into_iter().for_each(|dir| with_directories_below(dir, &mut dirs));
    let mut claimed = Vec::new();
    for dir in dirs.iter().filter(|d| d.exists()) {
        claimed.push(directory_of_group(dir, cgroup_root)?);
    }
    Ok(Node { _network: network, _group: claimed })
}

fn with_directories_below(dir: PathBuf, all: &mut Vec<PathBuf>) {
    let below = fs::read_dir(&dir).into_iter().flatten().flatten();
    below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).for_each(|e| with_directories_below(e.path(), all));
    all.push(dir);
}

fn directory_of_group(dir: &Path, cgroup_root: &str) -> anyhow::Result<Lock> {
    match Lock::take(dir).with_context(|| format!("cannot lock the control group {}", dir.display()))? {
        Some(lock) => Ok(lock),
        None => bail!(
            "the control group {cgroup_root} is in use: another isopod is running with it; stop it, or choose another \
             with --cgroup-root"
        ),
    }
}

fn network() -> anyhow::Result<UnixListener> {
    let name = SocketAddr::from_abstract_name(NETWORK)?;
    UnixListener::bind_addr(&name).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "this machine's pod network is in use: another isopod is running a node here; stop it first (nodes side by \
             side need network namespaces of their own)"
        ),
        _ => anyhow::Error::new(e).context("cannot claim the pod network"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_program_at_a_time_has_a_data_directory() {
        let place = std::env::temp_dir().join(format!("isopod-claim-{}", std::process::id()));
        let dir = place.join("data");
        let first = data_directory(&dir).unwrap();
        let err = data_directory(&dir).err().unwrap().to_string();
        assert!(err.contains("in use") && err.contains("--data-dir"), "{err}");
        // By another way to the same directory, too.
        std::os::unix::fs::symlink(&dir, place.join("link")).unwrap();
        assert!(data_directory(&place.join("link")).is_err());
        drop(first);
        data_directory(&dir).unwrap();
        fs::remove_dir_all(place).unwrap();
    }
}
