//! Network namespaces by file: running a closure inside one, and the sysctls of the current one.
//!
//! Invariant: no thread but a throw-away one ever changes its namespace.

use super::socket::NetlinkError;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// A network namespace, held open.
pub struct NetNs(File);

impl NetNs {
    /// `path` is a bind mount below `/run/netns`, or `/proc/<pid>/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetlinkError> {
        let path = path.as_ref();
        File::open(path).map(NetNs).map_err(|source| NetlinkError::File {
            action: "open the network namespace",
            path: path.display().to_string(),
            source,
        })
    }

    /// Makes a namespace without a name: it is gone when the last handle, socket and process in it is.
    pub fn create() -> Result<Self, NetlinkError> {
        let made = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).map_err(|e| NetlinkError::Transport {
                    action: "make a network namespace".into(),
                    source: e.into(),
                })?;
                Self::open("/proc/thread-self/ns/net")
            });
            thread.join()
        });
        made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `f` on a thread of its own inside the namespace. A socket that `f` opens stays there when it is handed out.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetlinkError> {
        let entered = std::thread::scope(|scope| {
            let thread = scope.spawn(|| setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).map(|()| f()));
            thread.join()
        });
        match entered {
            Ok(r) => {
                r.map_err(|e| NetlinkError::Transport { action: "enter a network namespace".into(), source: e.into() })
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/{name}")
}

/// Reads a sysctl of the calling thread's namespace. `name` is a path: `net/ipv4/ip_forward`.
pub fn read_sysctl(name: &str) -> Result<String, NetlinkError> {
    let path = sysctl_path(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(NetlinkError::File { action: "read", path, source }),
    }
}

/// Sets a sysctl of the calling thread's namespace; writes nothing when it has that value.
pub fn set_sysctl(name: &str, value: &str) -> Result<(), NetlinkError> {
    if read_sysctl(name)? == value {
        return Ok(());
    }
    let path = sysctl_path(name);
    std::fs::write(&path, value).map_err(|source| NetlinkError::File { action: "write", path, source })
}
