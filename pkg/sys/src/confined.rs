//! Paths that cannot leave a directory, whatever links lie in it (`openat2` with `RESOLVE_IN_ROOT`, Linux 5.6).

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// A directory as the root of all look-ups: `..` and absolute links stay within.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    pub fn open(dir: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Root(nix::fcntl::open(dir, flags, Mode::empty())?))
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    pub fn open_at(&self, path: &Path, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(mode)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        loop {
            match openat2(self.0.as_fd(), path, how) {
                // A rename elsewhere in the tree raced with a `..`: the kernel asks to try again.
                Err(nix::errno::Errno::EAGAIN) => {}
                other => return Ok(other?),
            }
        }
    }

    pub fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_at(path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())
    }

    /// Opens a directory, making those of its path that are missing; `made` hears of each.
    pub fn make_directories(&self, path: &Path, mut made: impl FnMut(&Path) -> io::Result<()>) -> io::Result<OwnedFd> {
        match self.directory(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut so_far = PathBuf::new();
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            let parent = self.directory(&so_far)?;
            match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) => made(&so_far.join(name))?,
                Err(nix::errno::Errno::EEXIST) => {}
                Err(e) => return Err(e.into()),
            }
            so_far.push(name);
        }
        self.directory(&so_far)
    }
}

/// A path to an entry of an open directory, for calls that know no descriptors.
pub fn entry(directory: impl AsFd, name: impl AsRef<Path>) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd())).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_within_the_root() {
        let base = std::env::temp_dir().join(format!("isopod-confined-{}", std::process::id()));
        std::fs::create_dir_all(base.join("root/etc")).unwrap();
        std::fs::write(base.join("secret"), "outside").unwrap();
        std::fs::write(base.join("root/secret"), "inside").unwrap();
        for (name, to) in [("up", "../../secret"), ("absolute", "/secret"), ("chain", "../up")] {
            let dir = if name == "chain" { "root/etc" } else { "root" };
            std::os::unix::fs::symlink(to, base.join(dir).join(name)).unwrap();
        }
        let root = Root::open(&base.join("root")).unwrap();
        for path in ["up", "absolute", "etc/chain", "../secret", "/../../secret"] {
            let file = root.open_at(Path::new(path), OFlag::O_RDONLY, Mode::empty()).unwrap();
            let text = io::read_to_string(std::fs::File::from(file)).unwrap();
            assert_eq!(text, "inside", "{path}");
        }
        let mut made = vec![];
        root.make_directories(Path::new("etc/a/b"), |p| {
            made.push(p.to_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(made, [Path::new("etc/a"), Path::new("etc/a/b")]);
        assert!(base.join("root/etc/a/b").is_dir());
        std::fs::remove_dir_all(base).unwrap();
    }
}
