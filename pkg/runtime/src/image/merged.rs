//! The view of stacked layers that overlayfs would give, for looking things up without a mount.
//!
//! Invariant: a look-up never leaves the layers: links are followed in the merged view only, and a directory of a layer is
//! entered only after it was seen to be one.

use isopod_sys::xattr;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// Layers' directories, topmost first.
#[derive(Clone, Debug, Default)]
pub struct Merged {
    layers: Vec<PathBuf>,
}

/// What a path leads to: a directory of one or more layers, or one other thing.
enum Found {
    Directories(Vec<PathBuf>),
    Other(PathBuf, fs::Metadata),
}

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// A file that hides those of lower layers.
pub fn is_whiteout(metadata: &fs::Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";

fn is_opaque(dir: &Path) -> bool {
    xattr::get(dir, OPAQUE).is_ok_and(|v| v.as_deref() == Some(b"y"))
}

impl Merged {
    pub fn new(layers: Vec<PathBuf>) -> Self {
        Merged { layers }
    }

    /// The text of a file; `None`: there is none.
    pub fn read(&self, path: &Path) -> io::Result<Option<String>> {
        match self.find(path)? {
            Some(Found::Other(file, metadata)) if metadata.is_file() => {
                Ok(Some(String::from_utf8_lossy(&fs::read(file)?).into_owned()))
            }
            _ => Ok(None),
        }
    }

    /// The topmost layer's directory at this path.
    pub fn directory(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        Ok(match self.find(path)? {
            Some(Found::Directories(dirs)) => dirs.into_iter().next(),
            _ => None,
        })
    }

    /// What is at this path: the directories of all layers that make it, topmost first, or the one file. Empty: nothing.
    pub fn places(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(match self.find(path)? {
            Some(Found::Directories(dirs)) => dirs,
            Some(Found::Other(file, _)) => vec![file],
            None => Vec::new(),
        })
    }

    fn find(&self, path: &Path) -> io::Result<Option<Found>> {
        // The directories on the way, each as the layers have it; the last is where we are.
        let mut way = vec![self.layers.clone()];
        let mut todo: VecDeque<PathBuf> = path.components().map(|c| PathBuf::from(c.as_os_str())).collect();
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            match part.components().next() {
                Some(Component::Normal(_)) => {}
                Some(Component::ParentDir) => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                Some(Component::RootDir) => {
                    way.truncate(1);
                    continue;
                }
                _ => continue,
            }
            let Some(here) = way.last() else { return Ok(None) };
            match child(here, &part)? {
                None => return Ok(None),
                Some(Found::Directories(dirs)) => way.push(dirs),
                Some(Found::Other(link, m)) if m.file_type().is_symlink() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(io::Error::from_raw_os_error(nix::libc::ELOOP));
                    }
                    let target = fs::read_link(link)?;
                    for c in target.components().rev() {
                        todo.push_front(PathBuf::from(c.as_os_str()));
                    }
                }
                Some(other) => return Ok(todo.is_empty().then_some(other)),
            }
        }
        Ok(way.pop().map(Found::Directories))
    }
}

/// An entry of a merged directory.
fn child(directories: &[PathBuf], name: &Path) -> io::Result<Option<Found>> {
    let mut found = Vec::new();
    for dir in directories {
        let path = dir.join(name);
        let metadata = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if metadata.is_dir() {
            let opaque = is_opaque(&path);
            found.push(path);
            if opaque {
                break;
            }
        } else if !found.is_empty() || is_whiteout(&metadata) {
            break;
        } else {
            return Ok(Some(Found::Other(path, metadata)));
        }
    }
    Ok((!found.is_empty()).then_some(Found::Directories(found)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn upper_layers_win_and_links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let (low, high) = (dir.path().join("low"), dir.path().join("high"));
        fs::create_dir_all(low.join("etc/sub")).unwrap();
        fs::create_dir_all(high.join("etc")).unwrap();
        fs::write(low.join("etc/passwd"), "low").unwrap();
        fs::write(low.join("etc/group"), "low").unwrap();
        fs::write(high.join("etc/passwd"), "high").unwrap();
        symlink("/etc/passwd", high.join("absolute")).unwrap();
        symlink("../../../../etc/group", high.join("etc/up")).unwrap();
        symlink("loop", high.join("loop")).unwrap();
        let merged = Merged::new(vec![high, low]);
        let read = |p: &str| merged.read(Path::new(p)).unwrap();
        assert_eq!(read("etc/passwd").as_deref(), Some("high"));
        assert_eq!(read("/etc/group").as_deref(), Some("low"));
        assert_eq!(read("absolute").as_deref(), Some("high"));
        assert_eq!(read("etc/up").as_deref(), Some("low"));
        assert_eq!(read("etc/none"), None);
        assert_eq!(read("etc/passwd/x"), None);
        assert!(merged.read(Path::new("loop")).is_err());
        assert!(merged.directory(Path::new("etc/sub")).unwrap().is_some());
        let places = |p: &str| merged.places(Path::new(p)).unwrap();
        assert_eq!(places("etc"), [dir.path().join("high/etc"), dir.path().join("low/etc")]);
        assert_eq!(places("etc/up"), [dir.path().join("low/etc/group")]);
        assert_eq!(places("none"), [""; 0].map(PathBuf::from));
    }
}
