//! The image store for a program that runs no pods: listing, pulling, importing and removing, while a server may be running
//! on the same data directory.
//!
//! Invariant: it touches nothing but images; layers go only when no container's record names them.

use crate::image::registries::Registries;
use crate::image::{ImageError, Puller, Reference, Store, archive};
use crate::persist;
use crate::records::{ContainerRecord, Paths};
use crate::runtime::OpenError;
use crate::service::image_status;
use crate::types::{ImageStatus, ProgressFn, RuntimeError};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Result<T> = std::result::Result<T, ImagesError>;

#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    #[error("image {0:?} is not present")]
    NotPresent(String),
    #[error(transparent)]
    Name(#[from] RuntimeError),
    #[error("cannot pull {image}")]
    Pull {
        image: String,
        #[source]
        source: ImageError,
    },
    #[error("cannot open the archive {path}")]
    Archive {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot import {path}")]
    Import {
        path: PathBuf,
        #[source]
        source: ImageError,
    },
    #[error("cannot remove {image}")]
    Remove {
        image: String,
        #[source]
        source: ImageError,
    },
    #[error("cannot run a blocking step")]
    Join(#[from] tokio::task::JoinError),
}

pub struct Images {
    paths: Paths,
    store: Arc<Store>,
    puller: Puller,
}

impl Images {
    /// `data_dir` is the runtime's, as in [`crate::RuntimeConfig`]; `registries` need not exist.
    pub fn open(data_dir: &Path, registries: &Path) -> std::result::Result<Self, OpenError> {
        // The TLS provider that image pulls use; set already when the program uses TLS elsewhere.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let paths = Paths { data: data_dir.into(), state: PathBuf::new() };
        let registries = Registries::load(registries)?;
        let store = Arc::new(Store::open(&paths.images())?);
        Ok(Images { paths, puller: Puller::new(store.clone(), registries), store })
    }

    pub fn list(&self) -> Vec<ImageStatus> {
        self.store.list().iter().map(image_status).collect()
    }

    /// `name` as a user writes it, or an id.
    pub fn find(&self, name: &str) -> Option<ImageStatus> {
        self.store.find(name).as_ref().map(image_status)
    }

    /// Answers the image's id.
    pub async fn pull(&self, name: &str, progress: Option<ProgressFn>) -> Result<String> {
        let reference = Reference::parse(name)?;
        let failed = |source| ImagesError::Pull { image: reference.to_string(), source };
        Ok(self.puller.pull(&reference, &[], progress).await.map_err(failed)?.to_string())
    }

    /// Imports an OCI or `docker save` archive; answers its images' ids.
    pub async fn import(&self, path: &Path) -> Result<Vec<String>> {
        let file = File::open(path).map_err(|source| ImagesError::Archive { path: path.into(), source })?;
        let failed = |source| ImagesError::Import { path: path.into(), source };
        let _in_use = self.store.in_use().await.map_err(failed)?;
        let store = self.store.clone();
        let scratch = self.paths.data.join(format!("import-{}", uuid::Uuid::new_v4().simple()));
        let imported = tokio::task::spawn_blocking(move || archive::import(&store, file, &scratch)).await?;
        Ok(imported.map_err(failed)?.iter().map(ToString::to_string).collect())
    }

    /// Removes a name, or with an id all of an image's names. Answers whether the image is gone: that goes with its last
    /// name. Its layers go at once when no server runs here, else the server removes them when nothing uses them.
    pub async fn remove(&self, name: &str) -> Result<bool> {
        let (store, containers, wanted) = (self.store.clone(), self.paths.containers(), name.to_owned());
        let removed = tokio::task::spawn_blocking(move || -> std::result::Result<_, ImageError> {
            let removed = store.remove_name(&wanted)?;
            if removed == Some(true) {
                collect(&store, &containers)?;
            }
            Ok(removed)
        });
        removed
            .await?
            .map_err(|source| ImagesError::Remove { image: name.into(), source })?
            .ok_or_else(|| ImagesError::NotPresent(name.into()))
    }
}

fn collect(store: &Store, containers: &Path) -> std::result::Result<(), ImageError> {
    let collected = store.while_alone(|| {
        let Some(_alone) = store.try_alone()? else { return Ok(()) };
        match lowers_on_record(containers) {
            Ok(lowers) => store.collect(&lowers),
            // Who cannot tell what is in use leaves it to the server.
            Err(error) => {
                tracing::debug!(%error, "unused layers stay until the server runs");
                Ok(())
            }
        }
    })?;
    collected.unwrap_or(Ok(()))
}

/// The layers of all containers on record, which may run on while the server does not.
fn lowers_on_record(containers: &Path) -> io::Result<BTreeSet<String>> {
    let entries = match fs::read_dir(containers) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other?,
    };
    let mut lowers = BTreeSet::new();
    for entry in entries {
        // Without a record it was not finished.
        if let Some(record) = persist::read_json::<ContainerRecord>(&entry?.path().join("container.json"))? {
            lowers.extend(record.lowers);
            lowers.extend(record.mounted_lowers);
        }
    }
    Ok(lowers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An OCI-less archive as `docker save` writes it: one layer with one file.
    fn archive(tag: &str) -> Vec<u8> {
        let tar = |files: &[(&str, &[u8])]| {
            let mut b = tar::Builder::new(vec![]);
            for (path, body) in files {
                let mut h = tar::Header::new_gnu();
                h.set_size(body.len() as u64);
                h.set_mode(0o644);
                b.append_data(&mut h, path, *body).unwrap();
            }
            b.into_inner().unwrap()
        };
        let layer = tar(&[("hello", b"world")]);
        let diff_id = crate::image::Digest::of(&layer);
        let config = serde_json::json!({"config": {}, "rootfs": {"diff_ids": [diff_id]}}).to_string();
        let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": [tag], "Layers": ["l.tar"]}]).to_string();
        tar(&[("c.json", config.as_bytes()), ("l.tar", &layer), ("manifest.json", manifest.as_bytes())])
    }

    #[tokio::test]
    async fn layers_go_at_once_only_when_no_server_runs() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("runtime");
        let open = || Images::open(&data, &dir.path().join("registries.yaml")).unwrap();
        let images = open();
        let tar = dir.path().join("box.tar");
        fs::write(&tar, archive("box:1")).unwrap();
        let layers = || fs::read_dir(data.join("images/layers")).unwrap().count();

        let ids = images.import(&tar).await.unwrap();
        assert_eq!((images.list()[0].id.clone(), layers()), (ids[0].clone(), 1));
        assert_eq!(images.find("box:1").unwrap().repo_tags, ["docker.io/library/box:1"]);
        assert!(images.remove("box:1").await.unwrap());
        assert_eq!((images.list().len(), layers()), (0, 0));

        // As a server does, another handle has it open.
        images.import(&tar).await.unwrap();
        let server = open();
        assert!(images.remove(&ids[0]).await.unwrap());
        assert_eq!((server.list().len(), layers()), (0, 1));
        assert!(server.store.has_garbage());
    }

    #[tokio::test]
    async fn layers_that_cannot_be_told_to_be_unused_stay() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path(), &dir.path().join("registries.yaml")).unwrap();
        let tar = dir.path().join("box.tar");
        fs::write(&tar, archive("box:1")).unwrap();
        images.import(&tar).await.unwrap();
        fs::create_dir_all(dir.path().join("containers/c")).unwrap();
        fs::write(dir.path().join("containers/c/container.json"), "{").unwrap();
        assert!(images.remove("box:1").await.unwrap());
        assert_eq!(fs::read_dir(dir.path().join("images/layers")).unwrap().count(), 1);
        // Half a container has no record.
        fs::remove_file(dir.path().join("containers/c/container.json")).unwrap();
        images.import(&tar).await.unwrap();
        assert!(images.remove("box:1").await.unwrap());
        assert_eq!(fs::read_dir(dir.path().join("images/layers")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn errors_say_what_is_wrong() {
        use isopod_base::errors::Chain;
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path(), &dir.path().join("registries.yaml")).unwrap();
        let e = images.remove("nothing:1").await.unwrap_err();
        assert_eq!(e.to_string(), "image \"nothing:1\" is not present");
        let e = images.import(Path::new("/no/such.tar")).await.unwrap_err();
        assert_eq!(
            Chain(&e).to_string(),
            "cannot open the archive /no/such.tar: No such file or directory (os error 2)"
        );
        let e = images.pull("Wrong", None).await.unwrap_err();
        assert!(e.to_string().starts_with("invalid image name \"Wrong\""), "{e}");
        // Port 1 of this machine: nobody listens.
        let e = images.pull("127.0.0.1:1/a/b:c", None).await.unwrap_err();
        let text = Chain(&e).to_string();
        assert!(text.starts_with("cannot pull 127.0.0.1:1/a/b:c: registry 127.0.0.1:1: "), "{text}");
    }
}
