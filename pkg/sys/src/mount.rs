//! Mounts: the few kinds that the runtime makes, and the table of what is mounted.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    pub path: PathBuf,
    pub root: PathBuf,
    pub fstype: String,
    /// Options of the file system (not of this mount of it): a cgroup v1 hierarchy's controllers.
    pub options: Vec<String>,
    pub shared: bool,
}

/// What is mounted in this process's namespace, in mount order.
pub fn table() -> io::Result<Vec<MountPoint>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

/// What a process sees mounted, in paths of its own root.
pub fn table_of(pid: i32) -> io::Result<Vec<MountPoint>> {
    Ok(parse(&std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))?))
}

fn parse(text: &str) -> Vec<MountPoint> {
    text.lines()
        .filter_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            let front: Vec<&str> = front.split(' ').collect();
            let mut back = back.split(' ');
            Some(MountPoint {
                root: unescape(front.get(3)?),
                path: unescape(front.get(4)?),
                shared: front.get(6..)?.iter().any(|f| f.starts_with("shared:")),
                fstype: back.next()?.to_owned(),
                options: back.nth(1)?.split(',').map(str::to_owned).collect(),
            })
        })
        .collect()
}

/// `\040` and its like stand for space, tab, newline and backslash.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::with_capacity(bytes.len()), 0);
    while i < bytes.len() {
        let octal = text.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\').and_then(|o| u8::from_str_radix(o, 8).ok());
        out.push(octal.unwrap_or(bytes[i]));
        i += if octal.is_some() { 4 } else { 1 };
    }
    std::ffi::OsString::from_vec(out).into()
}

pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    Ok(table()?.iter().any(|m| m.path == path))
}

/// Binds a directory to itself as a private mount: what is mounted below it in another namespace stays there.
pub fn make_private_place(dir: &Path) -> io::Result<()> {
    if !is_mount_point(dir)? {
        mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    set_propagation(dir, MsFlags::MS_PRIVATE)
}

pub fn tmpfs(dir: &Path, options: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("shm"), dir, Some("tmpfs"), flags, Some(options))?)
}

pub fn bind(from: &Path, to: &Path) -> io::Result<()> {
    Ok(mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}

/// `lowers` are topmost first; relative names are meant from the current directory.
pub fn overlay(lowers: &[String], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let options = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), upper.display(), work.display());
    if options.len() >= 4096 {
        return Err(io::Error::other("the image has more layers than one mount can name"));
    }
    Ok(mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?)
}

fn set_propagation(path: &Path, flags: MsFlags) -> io::Result<()> {
    Ok(mount(None::<&str>, path, None::<&str>, flags, None::<&str>)?)
}

pub fn make_private(path: &Path) -> io::Result<()> {
    set_propagation(path, MsFlags::MS_PRIVATE | MsFlags::MS_REC)
}

pub fn make_slave(path: &Path) -> io::Result<()> {
    set_propagation(path, MsFlags::MS_SLAVE | MsFlags::MS_REC)
}

pub fn make_shared(path: &Path) -> io::Result<()> {
    set_propagation(path, MsFlags::MS_SHARED | MsFlags::MS_REC)
}

/// This mount of its file system, not the file system.
pub fn remount_read_only(path: &Path) -> io::Result<()> {
    let keep = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    set_propagation(path, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | keep)
}

/// Takes a mount away at once, busy or not. Not mounted: nothing to do.
pub fn detach(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Takes every mount below `dir` away, the last made first. `dir` itself may be a mount point: that mount stays.
pub fn detach_below(dir: &Path) -> io::Result<()> {
    for m in table()?.iter().rev().filter(|m| m.path != dir && m.path.starts_with(dir)) {
        detach(&m.path)?;
    }
    Ok(())
}

/// Removes a directory and everything in it, without going into what is mounted there. Answers the mount points that are
/// left: those below it as they are, itself emptied. Gone already: nothing to do. `dir` has no symbolic link in it.
pub fn remove_tree(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mounts: BTreeSet<PathBuf> = table()?.into_iter().map(|m| m.path).filter(|p| p.starts_with(dir)).collect();
    if mounts.is_empty() {
        return gone(fs::remove_dir_all(dir)).map(|()| Vec::new());
    }
    remove_beside(dir, &mounts)?;
    Ok(mounts.into_iter().collect())
}

fn remove_beside(dir: &Path, mounts: &BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if mounts.contains(&path) {
            continue;
        }
        if !entry.file_type()?.is_dir() {
            gone(fs::remove_file(&path))?;
        } else if mounts.iter().any(|m| m.starts_with(&path)) {
            remove_beside(&path, mounts)?;
        } else {
            gone(fs::remove_dir_all(&path))?;
        }
    }
    Ok(())
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Size and use of the file system that holds `path`: (capacity, available, used) in bytes, (inodes, free inodes).
pub fn usage(path: &Path) -> io::Result<([u64; 3], [u64; 2])> {
    let s = nix::sys::statvfs::statvfs(path)?;
    let unit = s.fragment_size();
    let (blocks, free, available) = (s.blocks(), s.blocks_free(), s.blocks_available());
    Ok(([blocks * unit, available * unit, (blocks - free) * unit], [s.files(), s.files_free()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_mount_table() {
        let text = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
                    42 27 0:30 /a /run/x\\040y rw shared:1 master:2 - cgroup cgroup rw,cpu,cpuacct\n";
        let got = parse(text);
        assert_eq!(got[0].path, Path::new("/"));
        assert!(!got[0].shared);
        assert_eq!(got[1].path, Path::new("/run/x y"));
        assert_eq!(got[1].options, ["rw", "cpu", "cpuacct"]);
        assert!(got[1].shared);
        assert!(table().unwrap().iter().any(|m| m.path == Path::new("/proc")));
    }

    /// Needs root.
    #[test]
    fn what_others_mounted_is_left() {
        let place = tempfile::tempdir().unwrap();
        let data = place.path().canonicalize().unwrap().join("data");
        let (own, theirs, inner) = (data.join("agent/pods/v"), data.join("agent/images"), data.join("agent/images/x"));
        fs::create_dir_all(&data).unwrap();
        tmpfs(&data, "size=1m").unwrap();
        fs::create_dir_all(&own).unwrap();
        fs::create_dir_all(&theirs).unwrap();
        fs::write(data.join("agent/file"), "x").unwrap();
        tmpfs(&own, "size=1m").unwrap();
        tmpfs(&theirs, "size=1m").unwrap();
        fs::write(&inner, "precious").unwrap();
        let test = || -> io::Result<(bool, Vec<PathBuf>, bool, String, Vec<String>)> {
            detach_below(&data.join("agent/pods"))?;
            let detached = !is_mount_point(&own)?;
            detach_below(&theirs)?;
            let left = remove_tree(&data)?;
            let names = |d: &Path| -> io::Result<Vec<String>> {
                fs::read_dir(d)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect()
            };
            Ok((detached, left, is_mount_point(&data)?, fs::read_to_string(&inner)?, names(&data.join("agent"))?))
        };
        let got = test();
        for mounted in [&own, &theirs, &data] {
            detach(mounted).unwrap();
        }
        let (detached, left, still, text, names) = got.unwrap();
        assert!(detached, "what is ours is still mounted");
        assert_eq!(left, [data.clone(), theirs]);
        assert!(still, "the data directory's own mount is gone");
        assert_eq!((text.as_str(), names), ("precious", vec!["images".to_owned()]));
        assert_eq!(remove_tree(&data).unwrap(), Vec::<PathBuf>::new());
        assert!(!data.exists());
        remove_tree(&data).unwrap();
    }
}
