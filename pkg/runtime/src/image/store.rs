//! Images on disk: blobs by digest, layers unpacked once, and an index of what is what.
//!
//! ```text
//! blobs/sha256/<hex>   configs and manifests, and layers until they are unpacked
//! blobs/partial/<hex>  downloads that are not whole
//! layers/<16 hex>/fs   an unpacked layer, named by the start of its chain id
//! index.json           images: names, config, layers
//! garbage              there may be layers that no image needs any more
//! *.lock               see [`Store`]
//! ```
//!
//! Invariants: what stands under its final name is whole and was synced before it got that name; a layer that an image or a
//! container refers to is never removed; several processes may have the store open, and none overwrites another's changes.

use super::digest::Hashing;
use super::lock::{self, Hold};
use super::manifest::ImageConfig;
use super::merged::Merged;
use super::unpack::{decompress, unpack};
use super::{Digest, ImageError, Reference};
use crate::persist;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, ImageError>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The config's digest.
    pub id: Digest,
    pub manifest: Digest,
    /// `registry/name:tag`
    pub tags: BTreeSet<String>,
    /// `registry/name@digest`
    pub digests: BTreeSet<String>,
    pub config: ImageConfig,
    pub layers: Vec<Layer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub chain: Digest,
    /// Bytes of its files.
    pub size: u64,
}

impl Image {
    /// The layers' directories below [`Store::layers`], topmost first.
    pub fn lowers(&self) -> Vec<String> {
        self.layers.iter().rev().map(|l| format!("{}/fs", short(&l.chain))).collect()
    }

    pub fn size(&self) -> u64 {
        self.layers.iter().map(|l| l.size).sum()
    }
}

/// 64 bits name a layer among those of one machine; the whole chain id lies beside it and is compared.
fn short(chain: &Digest) -> &str {
    &chain.hex()[..16]
}

type Index = BTreeMap<Digest, Image>;

/// Its locks, in the order in which they are taken: `open.lock` (shared by all that have the store open), `use.lock` (shared
/// by whoever brings an image in or takes one into use, exclusive for [`Store::collect`]), a download's own file,
/// `unpack.lock` (one unpacks at a time: it is disk-bound, and two images may share a layer), `index.lock` (for changes).
pub struct Store {
    root: PathBuf,
    index: Mutex<Loaded>,
    opened: Hold,
}

/// The index as last read.
#[derive(Default)]
struct Loaded {
    images: Index,
    /// Held open, so that no later index gets its inode number: another number means another index.
    file: Option<File>,
}

impl Loaded {
    fn refresh(&mut self, path: &Path) -> io::Result<()> {
        let there = match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                *self = Loaded::default();
                return Ok(());
            }
            other => other?,
        };
        if let Some(file) = &self.file
            && file.metadata()?.ino() == there.ino()
        {
            return Ok(());
        }
        let file = File::open(path)?;
        self.images = serde_json::from_reader(io::BufReader::new(&file))?;
        self.file = Some(file);
        Ok(())
    }
}

impl Store {
    pub fn open(root: &Path) -> Result<Self> {
        for dir in ["blobs/sha256", "blobs/partial", "layers"] {
            fs::create_dir_all(root.join(dir)).map_err(ImageError::io("make the image store"))?;
        }
        let opened = lock::shared(&root.join("open.lock")).map_err(ImageError::io("lock the image store"))?;
        let store = Store { root: root.into(), index: Mutex::default(), opened };
        store.images()?;
        // Unpacking that did not end, unless somebody is at it.
        let unpack = lock::try_exclusive(&store.unpack_lock()).map_err(ImageError::io("lock the layers"))?;
        if unpack.is_some() {
            for entry in fs::read_dir(store.layers()).map_err(ImageError::io("read the layers"))?.flatten() {
                if entry.file_name().to_string_lossy().starts_with("new-") {
                    persist::remove_tree(&entry.path()).map_err(ImageError::io("remove an unfinished layer"))?;
                }
            }
        }
        Ok(store)
    }

    fn unpack_lock(&self) -> PathBuf {
        self.root.join("unpack.lock")
    }

    fn garbage(&self) -> PathBuf {
        self.root.join("garbage")
    }

    /// Held by whoever brings an image in or takes one into use: no layer goes meanwhile.
    pub async fn in_use(&self) -> Result<Hold> {
        self.wait_for(lock::shared).await
    }

    /// Held for [`Store::collect`]; waits until nobody holds [`Store::in_use`].
    pub async fn alone(&self) -> Result<Hold> {
        self.wait_for(lock::exclusive).await
    }

    async fn wait_for(&self, lock: fn(&Path) -> io::Result<Hold>) -> Result<Hold> {
        let path = self.root.join("use.lock");
        let held = tokio::task::spawn_blocking(move || lock(&path)).await.map_err(io::Error::other);
        held.and_then(|h| h).map_err(ImageError::io("lock the image store"))
    }

    /// As [`Store::alone`], without waiting: `None` when images are in use just now.
    pub fn try_alone(&self) -> Result<Option<Hold>> {
        lock::try_exclusive(&self.root.join("use.lock")).map_err(ImageError::io("lock the image store"))
    }

    /// Runs `f` when nobody else, in this process or another, has the store open; it cannot be opened meanwhile.
    pub fn while_alone<T>(&self, f: impl FnOnce() -> T) -> Result<Option<T>> {
        self.opened.while_alone(f).map_err(ImageError::io("lock the image store"))
    }

    /// One brings a blob in at a time. Blocks while another does.
    pub fn claim_partial(&self, digest: &Digest) -> Result<Hold> {
        let path = self.partial(digest);
        let claim = || -> io::Result<Hold> {
            loop {
                let claim = lock::exclusive(&path)?;
                // Whoever had it may have given the file its final name: then this is no longer the download's file.
                match fs::metadata(&path) {
                    Ok(there) if there.ino() == claim.file.metadata()?.ino() => return Ok(claim),
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        };
        claim().map_err(ImageError::io("claim a download"))
    }

    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub fn partial(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/partial").join(digest.hex())
    }

    fn images(&self) -> Result<Index> {
        let mut index = self.index.lock();
        index.refresh(&self.root.join("index.json")).map_err(ImageError::io("read the image index"))?;
        Ok(index.images.clone())
    }

    /// Gives `look` the index as it is on disk, or as it was when that cannot be read.
    fn look<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        let mut index = self.index.lock();
        if let Err(error) = index.refresh(&self.root.join("index.json")) {
            tracing::warn!(%error, "cannot read the image index");
        }
        look(&index.images)
    }

    pub fn list(&self) -> Vec<Image> {
        self.look(|index| index.values().cloned().collect())
    }

    /// By id (whole, or at least 12 of its digits), by name, or by name and digest.
    pub fn find(&self, name: &str) -> Option<Image> {
        self.look(|index| by_id(index, name).or_else(|| by_name(index, &Reference::parse(name).ok()?)).cloned())
    }

    pub fn has_layer(&self, chain: &Digest) -> bool {
        fs::read_to_string(self.layers().join(short(chain)).join("chain")).is_ok_and(|c| c == chain.to_string())
    }

    /// Checks a finished download and gives it its name.
    pub fn commit_partial(&self, digest: &Digest) -> Result<()> {
        let from = self.partial(digest);
        let file = File::open(&from).map_err(ImageError::io("open a download"))?;
        let found = Hashing::new(&file).finish().map_err(ImageError::io("read a download"))?;
        if found != *digest {
            let _ = fs::remove_file(&from);
            return Err(ImageError::WrongDigest { expected: digest.to_string(), found: found.to_string() });
        }
        let name = || -> io::Result<()> {
            file.sync_all()?;
            fs::rename(&from, self.blob(digest))?;
            persist::sync_directory(&self.root.join("blobs/sha256"))
        };
        name().map_err(ImageError::io("keep a download"))
    }

    pub fn write_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        // A name of its own: others may be writing the same blob.
        let new = self.root.join("blobs/partial").join(uuid::Uuid::new_v4().simple().to_string());
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, self.blob(&digest))?;
            persist::sync_directory(&self.root.join("blobs/sha256"))
        };
        write().map_err(ImageError::io("write a blob"))?;
        Ok(digest)
    }

    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        fs::read(self.blob(digest)).map_err(ImageError::io(format!("read blob {digest}")))
    }

    /// Unpacks the layers that are missing, lowest first, from what `open` gives. Blocks.
    pub fn unpack_layers(
        &self,
        diff_ids: &[Digest],
        mut open: impl FnMut(usize) -> io::Result<Box<dyn io::Read>>,
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<Layer>> {
        let _one = lock::exclusive(&self.unpack_lock()).map_err(ImageError::io("lock the layers"))?;
        let mut layers: Vec<Layer> = Vec::with_capacity(diff_ids.len());
        for (i, diff_id) in diff_ids.iter().enumerate() {
            let chain = Digest::chained(layers.last().map(|l| &l.chain), diff_id);
            let dir = self.layers().join(short(&chain));
            if !self.has_layer(&chain) {
                progress(i);
                let from = open(i).map_err(ImageError::io(format!("open layer {diff_id}")))?;
                let below =
                    Merged::new(layers.iter().rev().map(|l| self.layers().join(short(&l.chain)).join("fs")).collect());
                self.unpack_layer(from, &chain, diff_id, &below, &dir)?;
            }
            let size = fs::read_to_string(dir.join("size")).ok().and_then(|t| t.parse().ok()).unwrap_or(0);
            layers.push(Layer { chain, size });
        }
        Ok(layers)
    }

    fn unpack_layer(
        &self,
        from: Box<dyn io::Read>,
        chain: &Digest,
        diff_id: &Digest,
        below: &Merged,
        dir: &Path,
    ) -> Result<()> {
        let failed = |e| ImageError::io(format!("unpack layer {diff_id}"))(e);
        if dir.exists() {
            return Err(ImageError::Malformed(format!("two layers share the name {}", dir.display())));
        }
        let new = self.layers().join(format!("new-{}", short(chain)));
        persist::remove_tree(&new).map_err(failed)?;
        let fs_dir = new.join("fs");
        let unpacked = || -> io::Result<(u64, Digest)> {
            fs::create_dir_all(&fs_dir)?;
            let mut hashing = Hashing::new(decompress(from)?);
            let size = unpack(&mut hashing, &fs_dir, below)?;
            Ok((size, hashing.finish()?))
        };
        let finished = unpacked().map_err(failed).and_then(|(size, found)| {
            if found != *diff_id {
                return Err(ImageError::WrongDigest { expected: diff_id.to_string(), found: found.to_string() });
            }
            let keep = || -> io::Result<()> {
                fs::write(new.join("size"), size.to_string())?;
                fs::write(new.join("chain"), chain.to_string())?;
                nix::unistd::syncfs(File::open(&new)?)?;
                fs::rename(&new, dir)?;
                persist::sync_directory(&self.layers())
            };
            keep().map_err(failed)
        });
        if finished.is_err() {
            let _ = persist::remove_tree(&new);
        }
        finished
    }

    /// Enters an image, or adds names to one. A tag names one image: it leaves the one that had it.
    pub fn add(&self, mut image: Image) -> Result<()> {
        self.change(|index| {
            for other in index.values_mut() {
                other.tags.retain(|t| !image.tags.contains(t));
            }
            if let Some(old) = index.remove(&image.id) {
                image.tags.extend(old.tags);
                image.digests.extend(old.digests);
            }
            index.insert(image.id.clone(), image);
            Ok(())
        })
    }

    /// Takes the image out of the index; its layers go with [`Store::collect`].
    pub fn remove(&self, id: &Digest) -> Result<()> {
        self.change(|index| {
            index.remove(id);
            self.mark_garbage()
        })
    }

    /// Takes a name from its image, and the image out of the index when that was its last. A repository's digests go with
    /// its last tag, and its tags with a digest. `None`: no image has the name, else whether the image is gone.
    pub fn remove_name(&self, name: &str) -> Result<Option<bool>> {
        self.change(|index| {
            let (id, reference) = match by_id(index, name) {
                Some(image) => (image.id.clone(), None),
                None => {
                    let Some(reference) = Reference::parse(name).ok() else { return Ok(None) };
                    let Some(image) = by_name(index, &reference) else { return Ok(None) };
                    (image.id.clone(), Some(reference))
                }
            };
            if let (Some(image), Some(reference)) = (index.get_mut(&id), reference) {
                let repository = format!("{}/{}", reference.registry, reference.repository);
                let of = |name: &String, end: char| name.rsplit_once(end).is_some_and(|(r, _)| r == repository);
                match (reference.digest.is_some(), reference.tagged()) {
                    (false, Some(tag)) => drop(image.tags.remove(&tag)),
                    _ => image.tags.retain(|t| !of(t, ':')),
                }
                if !image.tags.iter().any(|t| of(t, ':')) {
                    image.digests.retain(|d| !of(d, '@'));
                }
                if !image.tags.is_empty() || !image.digests.is_empty() {
                    return Ok(Some(false));
                }
            }
            index.remove(&id);
            self.mark_garbage()?;
            Ok(Some(true))
        })
    }

    fn mark_garbage(&self) -> io::Result<()> {
        fs::write(self.garbage(), uuid::Uuid::new_v4().to_string())
    }

    /// Changes the index as it is on disk, alone.
    fn change<T>(&self, change: impl FnOnce(&mut Index) -> io::Result<T>) -> Result<T> {
        let change = || -> io::Result<T> {
            let _one = lock::exclusive(&self.root.join("index.lock"))?;
            let path = self.root.join("index.json");
            let mut index = self.index.lock();
            index.refresh(&path)?;
            // Read again if what follows fails.
            index.file = None;
            let done = change(&mut index.images)?;
            persist::write_json(&path, &index.images)?;
            index.file = Some(File::open(&path)?);
            Ok(done)
        };
        change().map_err(ImageError::io("change the image index"))
    }

    /// Images were removed, and [`Store::collect`] has not run since.
    pub fn has_garbage(&self) -> bool {
        self.garbage().exists()
    }

    /// Removes layers and blobs that no image needs and no container stands on (`lowers` as [`Image::lowers`] names them).
    /// The caller holds [`Store::alone`].
    pub fn collect(&self, lowers: &BTreeSet<String>) -> Result<()> {
        let marked = fs::read(self.garbage()).ok();
        let mut layers: BTreeSet<String> =
            lowers.iter().filter_map(|l| Some(l.split_once('/')?.0.to_owned())).collect();
        let mut blobs = BTreeSet::new();
        for image in self.images()?.values() {
            layers.extend(image.layers.iter().map(|l| short(&l.chain).to_owned()));
            blobs.extend([image.id.hex().to_owned(), image.manifest.hex().to_owned()]);
        }
        let sweep = || -> io::Result<()> {
            // Or one who opens the store would clean up the same.
            let _one = lock::exclusive(&self.unpack_lock())?;
            self.sweep(&layers, &blobs)?;
            // What was removed meanwhile is for the next time.
            let _one = lock::exclusive(&self.root.join("index.lock"))?;
            match marked.is_some() && fs::read(self.garbage()).ok() == marked {
                true => fs::remove_file(self.garbage()),
                false => Ok(()),
            }
        };
        sweep().map_err(ImageError::io("remove unused layers"))
    }

    fn sweep(&self, layers: &BTreeSet<String>, blobs: &BTreeSet<String>) -> io::Result<()> {
        for entry in fs::read_dir(self.layers())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !layers.contains(&name) {
                // First the name, so that half a layer is never taken for whole.
                let going = self.layers().join(format!("new-{name}"));
                fs::rename(entry.path(), &going)?;
                persist::remove_tree(&going)?;
            }
        }
        for entry in fs::read_dir(self.root.join("blobs/sha256"))? {
            let entry = entry?;
            if !blobs.contains(&*entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
            }
        }
        for entry in fs::read_dir(self.root.join("blobs/partial"))? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }
}

fn by_id<'a>(index: &'a Index, name: &str) -> Option<&'a Image> {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    if hex.len() < 12 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut fitting = index.values().filter(|i| i.id.hex().starts_with(hex));
    fitting.next().filter(|_| fitting.next().is_none())
}

fn by_name<'a>(index: &'a Index, reference: &Reference) -> Option<&'a Image> {
    let with_digest = reference.digest.as_ref().map(|d| reference.with_digest(d));
    let tagged = reference.tagged();
    index.values().find(|i| match &with_digest {
        Some(d) => i.digests.contains(d),
        None => tagged.as_ref().is_some_and(|t| i.tags.contains(t)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(content: &str, tags: &[&str]) -> Image {
        let id = Digest::of(content.as_bytes());
        Image {
            manifest: id.clone(),
            tags: tags.iter().map(|t| Reference::parse(t).unwrap().tagged().unwrap()).collect(),
            digests: tags.iter().map(|t| Reference::parse(t).unwrap().with_digest(&id)).collect(),
            config: ImageConfig::default(),
            layers: vec![Layer { chain: id.clone(), size: 1 }],
            id,
        }
    }

    fn two_handles() -> (tempfile::TempDir, Store, Store) {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Store::open(dir.path()).unwrap(), Store::open(dir.path()).unwrap());
        (dir, a, b)
    }

    #[test]
    fn what_one_process_changes_another_sees() {
        let (_dir, a, b) = two_handles();
        assert_eq!(b.list(), []);
        a.add(image("x", &["box:1"])).unwrap();
        assert_eq!(b.find("box:1").unwrap().id, Digest::of(b"x"));
        b.add(image("y", &["box:1", "box:2"])).unwrap();
        assert_eq!(a.find("box:1").unwrap().id, Digest::of(b"y"));
        assert_eq!(a.list().len(), 2);
        a.remove(&Digest::of(b"y")).unwrap();
        assert_eq!((b.find("box:2"), b.list().len()), (None, 1));
    }

    #[test]
    fn changes_at_the_same_time_lose_nothing() {
        let (_dir, a, b) = two_handles();
        std::thread::scope(|s| {
            for (name, store) in [("a", &a), ("b", &b), ("c", &a), ("d", &b)] {
                s.spawn(move || {
                    for i in 0..8 {
                        store.add(image(&format!("{name}{i}"), &[&format!("{name}:{i}")])).unwrap();
                    }
                });
            }
        });
        assert_eq!((a.list().len(), a.list()), (32, b.list()));
    }

    #[test]
    fn an_image_goes_with_its_last_name() {
        let (_dir, a, b) = two_handles();
        let x = image("x", &["box:1", "box:2", "other/box:1"]);
        let digests = |n: &str| a.find(n).unwrap().digests.len();
        a.add(x.clone()).unwrap();
        assert_eq!(b.remove_name("box:3").unwrap(), None);
        assert_eq!(b.remove_name("Not a name").unwrap(), None);
        assert_eq!(b.remove_name("box:1").unwrap(), Some(false));
        assert_eq!((a.find("box:1"), digests("box:2")), (None, 2));
        assert_eq!(b.remove_name("box:2").unwrap(), Some(false));
        assert_eq!((digests("other/box:1"), a.has_garbage()), (1, false));
        assert_eq!(b.remove_name("other/box:1").unwrap(), Some(true));
        assert_eq!((a.list(), a.has_garbage()), (vec![], true));
        a.add(x.clone()).unwrap();
        assert_eq!(b.remove_name(&format!("box@{}", x.id)).unwrap(), Some(false));
        assert_eq!(a.find("other/box:1").unwrap().tags.len(), 1);
        assert_eq!(b.remove_name(&x.id.hex()[..12]).unwrap(), Some(true));
        assert_eq!(a.list(), []);
    }

    #[tokio::test]
    async fn nothing_is_collected_while_images_are_in_use() {
        let (dir, a, b) = two_handles();
        let x = image("x", &["box:1"]);
        let layer = a.layers().join(short(&x.id));
        fs::create_dir_all(layer.join("fs")).unwrap();
        a.add(x.clone()).unwrap();
        b.remove(&x.id).unwrap();
        let pulling = a.in_use().await.unwrap();
        let starting = b.in_use().await.unwrap();
        assert!(b.try_alone().unwrap().is_none());
        drop((pulling, starting));
        let _alone = b.try_alone().unwrap().unwrap();
        b.collect(&x.lowers().into_iter().collect()).unwrap();
        assert!(layer.exists() && !a.has_garbage());
        b.collect(&BTreeSet::new()).unwrap();
        assert!(!layer.exists());
        // Two have it open.
        assert_eq!(b.while_alone(|| ()).unwrap(), None);
        drop(a);
        assert_eq!(b.while_alone(|| ()).unwrap(), Some(()));
        Store::open(dir.path()).unwrap();
    }

    #[test]
    fn opening_leaves_another_process_its_unpacking() {
        let (dir, a, _b) = two_handles();
        let new = a.layers().join("new-0123456789abcdef");
        fs::create_dir_all(new.join("fs")).unwrap();
        let unpacking = lock::exclusive(&a.unpack_lock()).unwrap();
        Store::open(dir.path()).unwrap();
        assert!(new.exists());
        drop(unpacking);
        Store::open(dir.path()).unwrap();
        assert!(!new.exists());
    }

    #[test]
    fn a_blob_is_brought_in_once() {
        let (_dir, a, b) = two_handles();
        let digest = Digest::of(b"blob");
        let claim = a.claim_partial(&digest).unwrap();
        std::thread::scope(|s| {
            let second = s.spawn(|| {
                let _claim = b.claim_partial(&digest).unwrap();
                b.blob(&digest).exists()
            });
            fs::write(a.partial(&digest), b"blob").unwrap();
            a.commit_partial(&digest).unwrap();
            drop(claim);
            assert!(second.join().unwrap());
        });
        assert_eq!(b.read_blob(&digest).unwrap(), b"blob");
    }
}
