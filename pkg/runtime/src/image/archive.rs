//! Images from archives: an OCI layout in a tar, or what `docker save` writes, compressed or not.

use super::manifest::{Descriptor, ImageConfig, Manifest, for_this_platform};
use super::store::{Image, Store};
use super::unpack::decompress;
use super::{Digest, ImageError, Reference};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, ImageError>;

/// Descriptions of images, not their layers.
const MAX_JSON: u64 = 16 << 20;

/// An archive's files, kept in a directory that goes with this value.
struct Contents {
    dir: PathBuf,
    /// Path in the archive → file.
    files: BTreeMap<String, PathBuf>,
    /// Links between files, which old `docker save`s use for shared layers.
    links: BTreeMap<String, String>,
}

impl Drop for Contents {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn normal(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for c in path.components() {
        match c {
            std::path::Component::Normal(n) => parts.push(n.to_string_lossy().into_owned()),
            std::path::Component::ParentDir => {
                parts.pop();
            }
            _ => {}
        }
    }
    parts.join("/")
}

impl Contents {
    fn read(from: impl Read, dir: PathBuf) -> io::Result<Self> {
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        let mut contents = Contents { dir, files: BTreeMap::new(), links: BTreeMap::new() };
        let mut archive = tar::Archive::new(decompress(from)?);
        for (i, entry) in archive.entries()?.enumerate() {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            match entry.header().entry_type() {
                t if t.is_file() => {
                    let to = contents.dir.join(i.to_string());
                    io::copy(&mut entry, &mut File::create(&to)?)?;
                    contents.files.insert(normal(&path), to);
                }
                t if t.is_symlink() || t.is_hard_link() => {
                    let Some(target) = entry.link_name()? else { continue };
                    let base = if t.is_symlink() { path.parent().unwrap_or(Path::new("")) } else { Path::new("") };
                    contents.links.insert(normal(&path), normal(&base.join(target)));
                }
                _ => {}
            }
        }
        Ok(contents)
    }

    fn file(&self, path: &str) -> Result<&Path> {
        let target = self.links.get(path).map_or(path, String::as_str);
        let missing = || ImageError::Malformed(format!("the archive lacks {path}"));
        self.files.get(target).map(PathBuf::as_path).ok_or_else(missing)
    }

    fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        let read = |p: &Path| -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(p)?.take(MAX_JSON).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read(self.file(path)?).map_err(ImageError::io(format!("read {path} of the archive")))
    }

    /// A description whose digest is checked.
    fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = self.bytes(&blob_path(digest))?;
        let found = Digest::of(&bytes);
        if found == *digest {
            Ok(bytes)
        } else {
            Err(ImageError::WrongDigest { expected: digest.to_string(), found: found.to_string() })
        }
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Imports every image of an archive; answers their ids. Blocks.
pub fn import(store: &Store, from: impl Read, scratch: &Path) -> Result<Vec<Digest>> {
    let contents = Contents::read(from, scratch.into()).map_err(ImageError::io("read the image archive"))?;
    if contents.files.contains_key("index.json") {
        let index: Manifest =
            serde_json::from_slice(&contents.bytes("index.json")?).map_err(ImageError::json("index.json"))?;
        return index.manifests.unwrap_or_default().iter().map(|d| import_oci(store, &contents, d)).collect();
    }
    if contents.files.contains_key("manifest.json") {
        let images: Vec<DockerImage> =
            serde_json::from_slice(&contents.bytes("manifest.json")?).map_err(ImageError::json("manifest.json"))?;
        return images.iter().map(|i| import_docker(store, &contents, i)).collect();
    }
    Err(ImageError::Malformed("the archive has neither index.json (OCI) nor manifest.json (docker save)".into()))
}

fn import_oci(store: &Store, contents: &Contents, entry: &Descriptor) -> Result<Digest> {
    let mut digest = entry.digest.clone();
    let mut bytes = contents.blob(&digest)?;
    let mut manifest: Manifest = serde_json::from_slice(&bytes).map_err(ImageError::json("the manifest"))?;
    if let Some(platforms) = &manifest.manifests {
        digest = for_this_platform(platforms)?.digest.clone();
        bytes = contents.blob(&digest)?;
        manifest = serde_json::from_slice(&bytes).map_err(ImageError::json("the manifest"))?;
    }
    let config = manifest.config.ok_or_else(|| ImageError::Malformed("the manifest has no config".into()))?;
    let names = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    let name = names.iter().find_map(|n| entry.annotations.get(*n)).and_then(|n| Reference::parse(n).ok());
    let layers: Vec<String> = manifest.layers.iter().map(|l| blob_path(&l.digest)).collect();
    store.write_blob(&bytes)?;
    let tags = name.as_ref().and_then(Reference::tagged).into_iter().collect();
    let digests = name.map(|n| n.with_digest(&entry.digest)).into_iter().collect();
    enter(store, contents, contents.blob(&config.digest)?, &layers, digest, tags, digests)
}

fn import_docker(store: &Store, contents: &Contents, image: &DockerImage) -> Result<Digest> {
    let config = contents.bytes(&image.config)?;
    let tags = image.repo_tags.iter().flatten().filter_map(|t| Reference::parse(t).ok()?.tagged()).collect();
    let manifest = Digest::of(&config);
    enter(store, contents, config, &image.layers, manifest, tags, BTreeSet::new())
}

fn enter(
    store: &Store,
    contents: &Contents,
    config: Vec<u8>,
    layers: &[String],
    manifest: Digest,
    tags: BTreeSet<String>,
    digests: BTreeSet<String>,
) -> Result<Digest> {
    let parsed: ImageConfig = serde_json::from_slice(&config).map_err(ImageError::json("the image's config"))?;
    if parsed.rootfs.diff_ids.len() != layers.len() {
        return Err(ImageError::Malformed("the image's config and manifest differ in their number of layers".into()));
    }
    let files: Vec<&Path> = layers.iter().map(|l| contents.file(l)).collect::<Result<_>>()?;
    let open = |i: usize| Ok(Box::new(File::open(files[i])?) as Box<dyn Read>);
    let unpacked = store.unpack_layers(&parsed.rootfs.diff_ids, open, |_| {})?;
    let id = store.write_blob(&config)?;
    store.add(Image { id: id.clone(), manifest, tags, digests, config: parsed, layers: unpacked })?;
    Ok(id)
}
