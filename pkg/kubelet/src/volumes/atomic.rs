//! Writes a volume's files so that a reader sees all old or all new ones (upstream's `AtomicWriter`).
//!
//! Layout: the files stand in a directory named after the time; `..data` links to it and is swapped by one rename; each
//! top-level name links through `..data`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Component, Path, PathBuf};

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Who owns it, when not root.
    pub uid: Option<u32>,
}

/// Files by their path below the volume.
pub type Payload = BTreeMap<PathBuf, File>;

/// Brings the directory to this content. False when it had it already.
pub fn write(dir: &Path, payload: &Payload, fs_group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        if !path.components().all(|c| matches!(c, Component::Normal(_))) || path.starts_with(DATA) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is no path within a volume")));
        }
    }
    std::fs::create_dir_all(dir)?;
    let old = std::fs::read_link(dir.join(DATA)).ok();
    let changed = match &old {
        Some(old) => !same(&dir.join(old), payload, fs_group)?,
        None => true,
    };
    if changed {
        swap(dir, payload, fs_group)?;
    }
    // Links may be missing after a crash between the swap and here.
    links(dir, payload)?;
    if changed && let Some(old) = old {
        std::fs::remove_dir_all(dir.join(old)).or_else(gone)?;
    }
    Ok(changed)
}

fn gone(e: io::Error) -> io::Result<()> {
    if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }
}

fn mode_of(file: &File, fs_group: Option<u32>) -> u32 {
    // The group may read what its owner may (upstream's SetVolumeOwnership on read-only volumes).
    if fs_group.is_some() { file.mode | 0o440 } else { file.mode }
}

fn same(dir: &Path, payload: &Payload, fs_group: Option<u32>) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    files_below(dir, Path::new(""), &mut found)?;
    if found.len() != payload.len() {
        return Ok(false);
    }
    for (path, file) in payload {
        let full = dir.join(path);
        if !found.contains(path)
            || std::fs::read(&full)? != file.data
            || full.metadata()?.permissions().mode() & 0o7777 != mode_of(file, fs_group)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

fn files_below(root: &Path, below: &Path, out: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    let entries = match std::fs::read_dir(root.join(below)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        r => r?,
    };
    for entry in entries {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files_below(root, &path, out)?;
        } else {
            out.insert(path);
        }
    }
    Ok(())
}

fn swap(dir: &Path, payload: &Payload, fs_group: Option<u32>) -> io::Result<()> {
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let fresh = dir.join(&stamp);
    std::fs::create_dir(&fresh)?;
    set(&fresh, 0o755, None, fs_group, true)?;
    for (path, file) in payload {
        let full = fresh.join(path);
        let mut made = fresh.clone();
        for part in path.parent().into_iter().flat_map(Path::components) {
            made.push(part);
            if !made.is_dir() {
                std::fs::create_dir(&made)?;
                set(&made, 0o755, None, fs_group, true)?;
            }
        }
        std::fs::write(&full, &file.data)?;
        set(&full, mode_of(file, fs_group), file.uid, fs_group, false)?;
    }
    let tmp = dir.join(DATA_TMP);
    std::fs::remove_file(&tmp).or_else(gone)?;
    symlink(&stamp, &tmp)?;
    std::fs::rename(&tmp, dir.join(DATA))
}

fn set(path: &Path, mode: u32, uid: Option<u32>, gid: Option<u32>, dir: bool) -> io::Result<()> {
    if uid.is_some() || gid.is_some() {
        chown(path, uid, gid)?;
    }
    // A directory with a group hands it on to what is made in it.
    let mode = if dir && gid.is_some() { mode | 0o2000 } else { mode };
    // After chown, which clears set-id bits.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn links(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<PathBuf> =
        payload.keys().filter_map(|p| p.components().next()).map(|c| c.as_os_str().into()).collect();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = PathBuf::from(entry.file_name());
        let ours = name.to_string_lossy().starts_with("..");
        if !ours && !wanted.contains(&name) && entry.file_type()?.is_symlink() {
            std::fs::remove_file(entry.path())?;
        }
    }
    for name in wanted {
        let link = dir.join(&name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(&name), &link)?;
        }
    }
    Ok(())
}

/// Gives everything below `dir` to a group that may read and write it, as `fsGroup` asks of volumes that pods write to.
/// `on_root_mismatch`: only when the root is not so yet.
pub fn own(dir: &Path, group: u32, on_root_mismatch: bool) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::symlink_metadata(dir)?;
    let done = meta.gid() == group && meta.mode() & 0o2070 == 0o2070;
    if on_root_mismatch && done {
        return Ok(());
    }
    own_below(dir, group)
}

fn own_below(path: &Path, group: u32) -> io::Result<()> {
    let meta = std::fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let mode = meta.permissions().mode() & 0o7777;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path)? {
            own_below(&entry?.path(), group)?;
        }
        return std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode | 0o2770));
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode | 0o660))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.into(), mode: 0o644, uid: None };
        files.iter().map(|(p, d)| (PathBuf::from(p), file(d))).collect()
    }

    #[test]
    fn content_is_swapped_whole_and_old_names_go() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| std::fs::read_to_string(dir.path().join(name));
        assert!(write(dir.path(), &payload(&[("a", "1"), ("d/x", "2"), ("d/y", "3")]), None).unwrap());
        assert_eq!((at("a").unwrap(), at("d/y").unwrap()), ("1".into(), "3".into()));
        assert_eq!(std::fs::read_link(dir.path().join("d")).unwrap(), Path::new("..data/d"));
        let before = std::fs::read_link(dir.path().join("..data")).unwrap();
        assert!(!write(dir.path(), &payload(&[("a", "1"), ("d/x", "2"), ("d/y", "3")]), None).unwrap());
        assert_eq!(std::fs::read_link(dir.path().join("..data")).unwrap(), before);
        assert!(write(dir.path(), &payload(&[("a", "9"), ("b", "4")]), None).unwrap());
        assert_eq!((at("a").unwrap(), at("b").unwrap()), ("9".into(), "4".into()));
        assert!(at("d/x").is_err() && !dir.path().join(before).exists());
    }

    #[test]
    fn paths_cannot_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/x", "a/../../x", "..data"] {
            assert!(write(dir.path(), &payload(&[(bad, "1")]), None).is_err(), "{bad}");
        }
    }

    #[test]
    fn modes_are_kept_and_compared() {
        let dir = tempfile::tempdir().unwrap();
        let mut p = payload(&[("a", "1")]);
        write(dir.path(), &p, None).unwrap();
        p.get_mut(Path::new("a")).unwrap().mode = 0o400;
        assert!(write(dir.path(), &p, None).unwrap());
        assert_eq!(dir.path().join("a").metadata().unwrap().permissions().mode() & 0o777, 0o400);
    }
}
