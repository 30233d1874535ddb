//! Removing everything that a runtime made, when it is dead or never to run again.

use crate::records::{Paths, SandboxRecord, load};
use isopod_sys::cgroup::Hierarchies;
use isopod_sys::{mount, process};
use std::io;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// Kills the shims and their containers, removes their control groups and mounts, and the two directories, of which what
/// others mounted there is left. What is gone already is no error. The pods' network has a clean-up of its own.
pub fn cleanup(data_dir: &Path, state_dir: &Path, cgroup_root: &str) -> io::Result<()> {
    let paths = Paths { data: data_dir.into(), state: state_dir.into() };
    let hierarchies = Hierarchies::detect()?;
    let records = match load::<SandboxRecord>(&paths.sandboxes(), "sandbox.json") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => vec![],
        other => other?,
    };
    for record in &records {
        if record.shim_pid > 0 && process::start_time(record.shim_pid) == Some(record.shim_start) {
            process::signal(record.shim_pid, nix::libc::SIGKILL)?;
        }
        hierarchies.group(&record.config.cgroup_parent)?.remove(PATIENCE)?;
    }
    // Shims without a record too.
    hierarchies.group(cgroup_root)?.remove(PATIENCE)?;
    // The runtime mounts in its state directory only; what else is mounted is not ours.
    if let Ok(real) = state_dir.canonicalize() {
        mount::detach_below(&real)?;
    }
    for dir in [state_dir, data_dir] {
        if let Ok(real) = dir.canonicalize() {
            mount::remove_tree(&real)?;
        }
    }
    Ok(())
}
