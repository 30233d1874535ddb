//! Images on disk: blobs by digest, layers unpacked once, and an index of what is what.
//!
//! ```text
//! blobs/sha256/<hex>   configs and manifests, and layers until they are unpacked
//! blobs/partial/<hex>  downloads that are not whole
//! layers/<16 hex>/fs   an unpacked layer, named by the start of its chain id
//! index.json           images: names, config, layers
//! ```
//!
//! Invariants: what stands under its final name is whole and was synced before it got that name; a layer that an image or a
//! container refers to is never removed.

use super::digest::Hashing;
use super::manifest::ImageConfig;
use super::merged::Merged;
use super::unpack::{decompress, unpack};
use super::{Digest, ImageError, Reference};
use crate::persist;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
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

pub struct Store {
    root: PathBuf,
    index: Mutex<BTreeMap<Digest, Image>>,
    /// One unpacks at a time: it is disk-bound, and two images may share a layer.
    unpacking: Mutex<()>,
    /// Taken for writing by garbage collection, for reading by whoever brings an image in.
    pub in_use: tokio::sync::RwLock<()>,
}

impl Store {
    pub fn open(root: &Path) -> Result<Self> {
        for dir in ["blobs/sha256", "blobs/partial", "layers"] {
            fs::create_dir_all(root.join(dir)).map_err(ImageError::io("make the image store"))?;
        }
        let index = persist::read_json(&root.join("index.json")).map_err(ImageError::io("read the image index"))?;
        let store = Store {
            root: root.into(),
            index: Mutex::new(index.unwrap_or_default()),
            unpacking: Mutex::new(()),
            in_use: tokio::sync::RwLock::new(()),
        };
        // Unpacking that did not end.
        for entry in fs::read_dir(store.layers()).map_err(ImageError::io("read the layers"))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("new-") {
                persist::remove_tree(&entry.path()).map_err(ImageError::io("remove an unfinished layer"))?;
            }
        }
        Ok(store)
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

    pub fn list(&self) -> Vec<Image> {
        self.index.lock().values().cloned().collect()
    }

    /// By id (whole, or at least 12 of its digits), by name, or by name and digest.
    pub fn find(&self, name: &str) -> Option<Image> {
        let index = self.index.lock();
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.len() >= 12 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            let mut by_id = index.values().filter(|i| i.id.hex().starts_with(hex));
            if let (Some(image), None) = (by_id.next(), by_id.next()) {
                return Some(image.clone());
            }
        }
        let reference = Reference::parse(name).ok()?;
        let with_digest = reference.digest.as_ref().map(|d| reference.with_digest(d));
        let tagged = reference.tagged();
        let fits = |i: &&Image| match &with_digest {
            Some(d) => i.digests.contains(d),
            None => tagged.as_ref().is_some_and(|t| i.tags.contains(t)),
        };
        index.values().find(fits).cloned()
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
        persist::write(&self.blob(&digest), bytes).map_err(ImageError::io("write a blob"))?;
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
        let _one = self.unpacking.lock();
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
    pub fn add(&self, image: Image) -> Result<()> {
        let mut index = self.index.lock();
        for other in index.values_mut() {
            other.tags.retain(|t| !image.tags.contains(t));
        }
        let mut image = image;
        if let Some(old) = index.remove(&image.id) {
            image.tags.extend(old.tags);
            image.digests.extend(old.digests);
        }
        index.insert(image.id.clone(), image);
        self.save(&index)
    }

    fn save(&self, index: &BTreeMap<Digest, Image>) -> Result<()> {
        persist::write_json(&self.root.join("index.json"), index).map_err(ImageError::io("write the image index"))
    }

    /// Takes the image out of the index; its layers go with [`Store::collect`].
    pub fn remove(&self, id: &Digest) -> Result<()> {
        let mut index = self.index.lock();
        index.remove(id);
        self.save(&index)
    }

    /// Removes layers and blobs that no image needs and no container stands on (`lowers` as [`Image::lowers`] names them).
    pub fn collect(&self, lowers: &BTreeSet<String>) -> Result<()> {
        let index = self.index.lock();
        let mut layers: BTreeSet<String> =
            lowers.iter().filter_map(|l| Some(l.split_once('/')?.0.to_owned())).collect();
        let mut blobs = BTreeSet::new();
        for image in index.values() {
            layers.extend(image.layers.iter().map(|l| short(&l.chain).to_owned()));
            blobs.extend([image.id.hex().to_owned(), image.manifest.hex().to_owned()]);
        }
        let sweep = || -> io::Result<()> {
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
        };
        sweep().map_err(ImageError::io("remove unused layers"))
    }
}
