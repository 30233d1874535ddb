//! A layer's archive becomes a directory that overlayfs can stack.
//!
//! Invariants: every path is resolved with the layer's directory as root, so no link leads out; a directory that the archive
//! does not list, but has something in, looks as in the layers below; whiteouts become overlayfs's (a character device 0:0,
//! or the opaque attribute). Ownership, modes, times, attributes and hard links are kept.

use super::merged::{Merged, OPAQUE, is_whiteout};
use isopod_sys::confined::{Root, entry as path_of};
use isopod_sys::xattr;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, makedev, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use tar::{Entry, EntryType};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
const XATTR: &[u8] = b"SCHILY.xattr.";

/// Undoes gzip or zstd, told by their first bytes.
pub fn decompress<'a>(mut from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = Vec::new();
    from.by_ref().take(4).read_to_end(&mut head)?;
    let magic = head.clone();
    let whole = io::Cursor::new(head).chain(from);
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

/// Unpacks into an empty directory; answers the bytes of its files.
pub fn unpack(from: impl Read, into: &Path, below: &Merged) -> io::Result<u64> {
    let mut unpacker = Unpacker { root: Root::open(into)?, below, times: vec![], bytes: 0 };
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path_bytes().into_owned();
        unpacker.entry(&mut entry).map_err(|e| {
            io::Error::new(e.kind(), format!("cannot unpack {:?}: {e}", String::from_utf8_lossy(&name)))
        })?;
    }
    // Last, because what was put into a directory changed its time.
    for (path, time) in unpacker.times.iter().rev() {
        if let Ok(dir) = unpacker.root.directory(path) {
            let time = TimeSpec::new(*time, 0);
            utimensat(&dir, ".", &time, &time, UtimensatFlags::NoFollowSymlink)?;
        }
    }
    Ok(unpacker.bytes)
}

struct Unpacker<'a> {
    root: Root,
    below: &'a Merged,
    times: Vec<(PathBuf, i64)>,
    bytes: u64,
}

/// A path below the root, without `.`; `..` is refused.
fn clean(bytes: &[u8]) -> io::Result<PathBuf> {
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(bytes)).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the path leaves the layer"));
            }
            _ => {}
        }
    }
    Ok(path)
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let path = clean(&entry.path_bytes())?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // The root itself.
            let root = self.root.directory(Path::new(""))?;
            return self.finish(entry, &root, OsStr::new("."), &path);
        };
        let dir = self.parent(parent)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return whiteout(&dir, name.as_bytes(), OsStr::from_bytes(hidden));
        }
        self.make(entry, kind, &dir, name)?;
        self.finish(entry, &dir, name, &path)
    }

    /// The directory that an entry goes into, made as the layers below have it where the archive does not list it.
    fn parent(&self, path: &Path) -> io::Result<OwnedFd> {
        self.root.make_directories(path, |made| {
            let Some(model) = self.below.directory(made)? else { return Ok(()) };
            let metadata = fs::metadata(&model)?;
            let dir = self.root.directory(made)?;
            fchownat(&dir, ".", Some(metadata.uid().into()), Some(metadata.gid().into()), AtFlags::empty())?;
            fchmodat(&dir, ".", Mode::from_bits_truncate(metadata.mode() & 0o7777), FchmodatFlags::FollowSymlink)?;
            for name in xattr::list(&model)?.iter().filter(|n| !n.starts_with(b"trusted.overlay.")) {
                if let Some(value) = xattr::get(&model, name)? {
                    xattr::set(&path_of(&dir, "."), name, &value)?;
                }
            }
            Ok(())
        })
    }

    fn make<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        kind: EntryType,
        dir: &OwnedFd,
        name: &OsStr,
    ) -> io::Result<()> {
        let replaced = clear(dir, name, kind.is_dir())?;
        match kind {
            EntryType::Directory => {
                if replaced != Replaced::KeptDirectory {
                    mkdirat(dir, name, Mode::from_bits_truncate(0o755))?;
                }
                if replaced == Replaced::Whiteout {
                    xattr::set(&path_of(dir, name), OPAQUE, b"y")?;
                }
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or(io::ErrorKind::InvalidData)?;
                symlinkat(OsStr::from_bytes(&target), dir, name)?;
            }
            EntryType::Link => {
                let target = clean(&entry.link_name_bytes().ok_or(io::ErrorKind::InvalidData)?)?;
                let (Some(parent), Some(file)) = (target.parent(), target.file_name()) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                linkat(self.root.directory(parent)?, file, dir, name, AtFlags::empty())?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let flag = match kind {
                    EntryType::Char => SFlag::S_IFCHR,
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                let header = entry.header();
                let (major, minor) = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
                mknodat(dir, name, flag, Mode::from_bits_truncate(0o600), makedev(major.into(), minor.into()))?;
            }
            _ => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = nix::fcntl::openat(dir, name, flags, Mode::from_bits_truncate(0o600))?;
                self.bytes += io::copy(entry, &mut fs::File::from(file))?;
            }
        }
        Ok(())
    }

    /// Owner, mode, attributes and time of what was made.
    fn finish<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if kind == EntryType::Link {
            return Ok(());
        }
        let header = entry.header();
        // Some writers leave these fields blank: that is zero, as other readers take it.
        let (uid, gid) = (header.uid().unwrap_or(0) as u32, header.gid().unwrap_or(0) as u32);
        let (mode, time) = (header.mode()?, header.mtime().unwrap_or(0) as i64);
        let (uid, gid) = pax_ids(entry, uid, gid)?;
        fchownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let place = path_of(dir, name);
        if kind != EntryType::Symlink {
            // After the owner: changing that clears the set-user-id bits and file capabilities.
            fchmodat(dir, name, Mode::from_bits_truncate(mode & 0o7777), FchmodatFlags::FollowSymlink)?;
        }
        for (name, value) in pax(entry)? {
            let Some(name) = name.strip_prefix(XATTR) else { continue };
            // Overlayfs's own attributes are ours to set.
            if name.starts_with(b"trusted.overlay.") {
                continue;
            }
            match xattr::set(&place, name, &value) {
                Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENOTSUP | nix::libc::EPERM)) => {}
                other => other?,
            }
        }
        if kind.is_dir() {
            self.times.push((path.to_owned(), time));
        } else {
            let time = TimeSpec::new(time, 0);
            utimensat(dir, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
        }
        Ok(())
    }
}

fn pax<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(vec![]) };
    extensions.map(|e| e.map(|e| (e.key_bytes().to_vec(), e.value_bytes().to_vec()))).collect()
}

/// Numbers that the old header has no room for.
fn pax_ids<R: Read>(entry: &mut Entry<'_, R>, uid: u32, gid: u32) -> io::Result<(u32, u32)> {
    let all = pax(entry)?;
    let number = |key: &[u8]| {
        let value = &all.iter().find(|(k, _)| k == key)?.1;
        std::str::from_utf8(value).ok()?.parse().ok()
    };
    Ok((number(b"uid").unwrap_or(uid), number(b"gid").unwrap_or(gid)))
}

fn whiteout(dir: &OwnedFd, name: &[u8], hidden: &OsStr) -> io::Result<()> {
    if name == OPAQUE_WHITEOUT {
        return xattr::set(&path_of(dir, "."), OPAQUE, b"y");
    }
    // AUFS's own files.
    if hidden.as_bytes().starts_with(WHITEOUT) || hidden.is_empty() {
        return Ok(());
    }
    let place = path_of(dir, hidden);
    match fs::symlink_metadata(&place) {
        // A whiteout hides what lies below this layer, not what this layer has itself.
        Ok(m) if m.is_dir() => xattr::set(&place, OPAQUE, b"y"),
        Ok(_) => Ok(()),
        Err(_) => Ok(mknodat(dir, hidden, SFlag::S_IFCHR, Mode::empty(), 0)?),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Replaced {
    Nothing,
    KeptDirectory,
    Whiteout,
}

/// Makes room for an entry: an archive may list a path twice, the later one wins.
fn clear(dir: &OwnedFd, name: &OsStr, for_directory: bool) -> io::Result<Replaced> {
    let place = path_of(dir, name);
    let Ok(metadata) = fs::symlink_metadata(&place) else { return Ok(Replaced::Nothing) };
    if metadata.is_dir() {
        if for_directory {
            return Ok(Replaced::KeptDirectory);
        }
        fs::remove_dir_all(&place)?;
        return Ok(Replaced::Nothing);
    }
    let was = if is_whiteout(&metadata) { Replaced::Whiteout } else { Replaced::Nothing };
    unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
    Ok(was)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    use tar::{Builder, Header};

    fn header(kind: EntryType, mode: u32) -> Header {
        let mut h = Header::new_gnu();
        h.set_entry_type(kind);
        h.set_mode(mode);
        h.set_mtime(1_000_000);
        h.set_uid(7);
        h.set_gid(8);
        h
    }

    fn file(b: &mut Builder<Vec<u8>>, path: &str, text: &str) {
        let mut h = header(EntryType::Regular, 0o644);
        h.set_size(text.len() as u64);
        b.append_data(&mut h, path, text.as_bytes()).unwrap();
    }

    fn link(b: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, target: &str) {
        let mut h = header(kind, 0o777);
        h.set_size(0);
        b.append_link(&mut h, path, target).unwrap();
    }

    fn unpacked(b: Builder<Vec<u8>>, below: &Merged) -> (tempfile::TempDir, io::Result<u64>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("layer")).unwrap();
        let bytes = b.into_inner().unwrap();
        let done = unpack(decompress(&bytes[..]).unwrap(), &dir.path().join("layer"), below);
        (dir, done)
    }

    #[test]
    fn keeps_owners_modes_times_and_hard_links() {
        let mut b = Builder::new(vec![]);
        let mut h = header(EntryType::Directory, 0o1777);
        h.set_size(0);
        b.append_data(&mut h, "tmp/", io::empty()).unwrap();
        file(&mut b, "./tmp/a", "hello");
        link(&mut b, EntryType::Link, "tmp/b", "tmp/a");
        let mut h = header(EntryType::Regular, 0o4755);
        h.set_size(0);
        b.append_data(&mut h, "su", io::empty()).unwrap();
        let (dir, done) = unpacked(b, &Merged::default());
        assert_eq!(done.unwrap(), 5);
        let stat = |p: &str| fs::symlink_metadata(dir.path().join("layer").join(p)).unwrap();
        assert_eq!((stat("tmp/a").uid(), stat("tmp/a").gid(), stat("tmp/a").mtime()), (7, 8, 1_000_000));
        assert_eq!((stat("tmp/a").ino(), stat("tmp/a").nlink()), (stat("tmp/b").ino(), 2));
        assert_eq!(stat("tmp").permissions().mode() & 0o7777, 0o1777);
        assert_eq!(stat("tmp").mtime(), 1_000_000);
        assert_eq!(stat("su").permissions().mode() & 0o7777, 0o4755);
    }

    #[test]
    fn no_path_leads_out_of_the_layer() {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        fs::write(&victim, "safe").unwrap();
        let to = outside.path().to_str().unwrap();
        // Through a symbolic link to outside: the link's target is meant within the layer.
        let mut b = Builder::new(vec![]);
        link(&mut b, EntryType::Symlink, "escape", to);
        link(&mut b, EntryType::Symlink, "up", "../../../../../../..");
        file(&mut b, "escape/victim", "overwritten");
        file(&mut b, &format!("up{to}/victim"), "overwritten");
        let (_dir, _) = unpacked(b, &Merged::default());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "safe");
        // A hard link to outside, through such a link.
        let mut b = Builder::new(vec![]);
        link(&mut b, EntryType::Symlink, "escape", to);
        link(&mut b, EntryType::Link, "stolen", "escape/victim");
        let (dir, done) = unpacked(b, &Merged::default());
        assert!(done.is_err() && !dir.path().join("layer/stolen").exists());
        // The file itself is a link that was there before: replaced, not followed.
        let mut b = Builder::new(vec![]);
        link(&mut b, EntryType::Symlink, "x", victim.to_str().unwrap());
        file(&mut b, "x", "overwritten");
        let (dir, done) = unpacked(b, &Merged::default());
        done.unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "safe");
        assert_eq!(fs::read_to_string(dir.path().join("layer/x")).unwrap(), "overwritten");
    }

    #[test]
    fn dot_dot_is_refused() {
        let mut b = Builder::new(vec![]);
        let mut h = header(EntryType::Regular, 0o644);
        h.set_size(0);
        h.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../escape");
        h.set_cksum();
        b.append(&h, io::empty()).unwrap();
        let (dir, done) = unpacked(b, &Merged::default());
        assert!(done.is_err() && !dir.path().join("escape").exists());
    }

    #[test]
    fn whiteouts_become_overlayfs_ones() {
        let mut b = Builder::new(vec![]);
        file(&mut b, "dir/.wh.gone", "");
        file(&mut b, "opaque/.wh..wh..opq", "");
        file(&mut b, ".wh.replaced", "");
        let mut h = header(EntryType::Directory, 0o755);
        h.set_size(0);
        b.append_data(&mut h, "replaced/", io::empty()).unwrap();
        let (dir, done) = unpacked(b, &Merged::default());
        done.unwrap();
        let at = |p: &str| dir.path().join("layer").join(p);
        let gone = fs::symlink_metadata(at("dir/gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        for p in ["opaque", "replaced"] {
            assert_eq!(xattr::get(&at(p), OPAQUE).unwrap().as_deref(), Some(&b"y"[..]), "{p}");
        }
    }

    #[test]
    fn a_directory_that_is_not_listed_looks_as_below() {
        let below = tempfile::tempdir().unwrap();
        fs::create_dir(below.path().join("home")).unwrap();
        fs::set_permissions(below.path().join("home"), fs::Permissions::from_mode(0o1750)).unwrap();
        symlink("home", below.path().join("alias")).unwrap();
        let mut b = Builder::new(vec![]);
        file(&mut b, "home/new/file", "x");
        let (dir, done) = unpacked(b, &Merged::new(vec![below.path().into()]));
        done.unwrap();
        let mode = |p: &str| fs::metadata(dir.path().join("layer").join(p)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("home"), mode("home/new")), (0o1750, 0o755));
    }

    #[test]
    fn gzip_zstd_and_plain_are_told_apart() {
        use std::io::Write;
        let mut gz = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        gz.write_all(b"text").unwrap();
        for packed in [gz.finish().unwrap(), zstd::encode_all(&b"text"[..], 1).unwrap(), b"text".to_vec()] {
            assert_eq!(io::read_to_string(decompress(&packed[..]).unwrap()).unwrap(), "text");
        }
    }
}
