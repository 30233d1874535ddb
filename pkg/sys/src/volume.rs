//! What pod volumes need of the kernel: sized tmpfs mounts, and subpaths that cannot lead out of their volume.
//!
//! Invariant: a subpath is opened component by component below its volume's root (openat2, RESOLVE_BENEATH) and bound by its
//! descriptor, so a link that is swapped meanwhile leads nowhere else.

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path};

/// Mounts a tmpfs of at most `size` bytes (half the memory when `None`); programs on it may run.
pub fn tmpfs(dir: &Path, size: Option<u64>) -> io::Result<()> {
    let options = size.map(|s| format!("size={s}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some("tmpfs"), dir, Some("tmpfs"), flags, options.as_deref())?)
}

fn open_beneath(dir: impl AsFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(dir, path, how)
}

/// Opens `sub` below `root`, making directories that are missing.
pub fn open_subpath(root: &Path, sub: &Path) -> io::Result<OwnedFd> {
    let mut at = nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    if let Ok(found) = open_beneath(&at, sub, OFlag::O_PATH) {
        return Ok(found);
    }
    for part in sub.components() {
        let Component::Normal(name) = part else {
            if part == Component::CurDir {
                continue;
            }
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a subpath must be relative and without '..'"));
        };
        let name = Path::new(name);
        at = match open_beneath(&at, name, OFlag::O_PATH) {
            Err(nix::errno::Errno::ENOENT) => {
                match mkdirat(&at, name, Mode::from_bits_truncate(0o750)) {
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(e) => return Err(e.into()),
                }
                open_beneath(&at, name, OFlag::O_PATH)?
            }
            other => other?,
        };
    }
    Ok(at)
}

/// Binds what `found` is open on to `target`, which must exist and be a directory or a file as that is.
pub fn bind_open(found: &OwnedFd, target: &Path) -> io::Result<()> {
    let from = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(mount(Some(from.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subpaths_stay_below_their_root() {
        let dir = std::env::temp_dir().join(format!("isopod-subpath-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("root/in")).unwrap();
        std::fs::create_dir_all(dir.join("out")).unwrap();
        std::os::unix::fs::symlink("../out", dir.join("root/escape")).unwrap();
        std::os::unix::fs::symlink("in", dir.join("root/link")).unwrap();
        let root = dir.join("root");
        let open = |sub: &str| open_subpath(&root, Path::new(sub));
        assert!(open("in").is_ok() && open("link").is_ok());
        assert!(open("new/deep").is_ok() && root.join("new/deep").is_dir());
        for bad in ["escape", "escape/x", "../out", "/etc"] {
            assert!(open(bad).is_err(), "{bad}");
        }
        assert!(!dir.join("out/x").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
