//! The configuration in force, and how it follows its file.

use crate::config::{self, ConfigError};
use crate::kms::PluginMetrics;
use crate::metrics::{Direction, RELOADS, Transformations};
use crate::provider::{Opened, Rules, SealError};
use crate::resources::Resources;
use arc_swap::ArcSwap;
use bytes::Bytes;
use isopod_base::errors::Chain;
use isopod_base::reloads::Reloads;
use prometheus_client::registry::Registry;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How often the file is looked at, as upstream does.
const LOOK: Duration = Duration::from_secs(60);

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read the encryption configuration {0}")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("the encryption configuration {0}: error while parsing file")]
    Parse(PathBuf, #[source] ConfigError),
    #[error("the encryption configuration {0}: error while building transformers")]
    Build(PathBuf, #[source] SealError),
}

struct Loaded {
    rules: Rules,
    /// Not the text: keys are in no more places than needed.
    digest: [u8; 32],
}

/// See the module.
pub struct Encryption {
    path: PathBuf,
    resources: Resources,
    loaded: ArcSwap<Loaded>,
    reloads: bool,
    transformations: Transformations,
    plugins: Arc<PluginMetrics>,
    reloaded: Reloads,
}

impl Encryption {
    /// Reads the file; with `reload` it is read again when it changes. One that has become bad is said in the log, and what was
    /// in force stays so. `server`: what this API server is called among others, for its metrics.
    pub async fn load(path: PathBuf, resources: Resources, reload: bool, server: &str) -> Result<Arc<Self>, LoadError> {
        let plugins = Arc::new(PluginMetrics::new(server));
        let (text, digest) = read(&path).await?;
        let loaded = build(&path, &text, digest, &plugins).await?;
        let made = Arc::new(Encryption {
            path,
            resources,
            loaded: ArcSwap::from_pointee(loaded),
            reloads: reload,
            transformations: Transformations::default(),
            plugins,
            reloaded: Reloads::new(server, &text),
        });
        if reload {
            tokio::spawn(follow(Arc::downgrade(&made)));
        }
        Ok(made)
    }

    /// Looks at the file once. True: another configuration is in force now.
    pub async fn look(&self) -> Result<bool, LoadError> {
        let looked = self.read_again().await;
        match &looked {
            Ok(None) => return Ok(false),
            Ok(Some(text)) => self.reloaded.succeeded(text),
            Err(_) => self.reloaded.failed(),
        }
        looked.map(|text| text.is_some())
    }

    /// What the file says, if that is something else than before. It is in force then.
    async fn read_again(&self) -> Result<Option<String>, LoadError> {
        let (text, digest) = read(&self.path).await?;
        if digest == self.loaded.load().digest {
            return Ok(None);
        }
        self.loaded.store(Arc::new(build(&self.path, &text, digest, &self.plugins).await?));
        Ok(Some(text))
    }

    /// Do all plugins of key management services answer? What is wrong with one that does not is in the log.
    pub fn is_well(&self) -> bool {
        self.loaded.load().rules.is_well()
    }

    /// Are there such plugins, or can there be some without a restart?
    pub fn may_have_plugins(&self) -> bool {
        self.reloads || self.loaded.load().rules.has_plugins()
    }

    pub(crate) fn covers(&self, key: &[u8]) -> bool {
        self.resources.of(key).is_some()
    }

    pub(crate) fn seal(&self, key: &[u8], plain: Bytes) -> Result<Bytes, SealError> {
        let loaded = self.loaded.load();
        let Some(resource) = self.resources.of(key).filter(|r| loaded.rules.have(*r)) else { return Ok(plain) };
        let began = Instant::now();
        let sealed = loaded.rules.seal(resource, key, plain);
        let value = sealed.as_ref().map(|s| &**s).unwrap_or_default();
        self.transformations.observe(resource, Direction::Seal, value, sealed.as_ref().err(), began.elapsed());
        sealed
    }

    pub(crate) async fn open(&self, key: &[u8], stored: Bytes) -> Result<Opened, SealError> {
        let Some(resource) = self.resources.of(key) else { return Ok(Opened { value: stored, stale: false }) };
        let loaded = self.loaded.load_full();
        let began = Instant::now();
        let opened = loaded.rules.open(resource, key, stored.clone()).await;
        if loaded.rules.have(resource) {
            self.transformations.observe(resource, Direction::Open, &stored, opened.as_ref().err(), began.elapsed());
        }
        opened
    }

    /// Shows what is sealed and opened.
    pub fn register(&self, registry: &mut Registry) {
        self.transformations.register(registry);
        self.plugins.register(registry);
        self.reloaded.register("apiserver_encryption_config_controller", &RELOADS, registry);
    }
}

async fn read(path: &Path) -> Result<(String, [u8; 32]), LoadError> {
    let text = tokio::fs::read_to_string(path).await.map_err(|e| LoadError::Read(path.into(), e))?;
    let digest = Sha256::digest(text.as_bytes()).into();
    Ok((text, digest))
}

async fn build(path: &Path, text: &str, digest: [u8; 32], plugins: &Arc<PluginMetrics>) -> Result<Loaded, LoadError> {
    let resources = config::parse(text).map_err(|e| LoadError::Parse(path.into(), e))?;
    let rules = Rules::new(&resources, plugins).await.map_err(|e| LoadError::Build(path.into(), e))?;
    Ok(Loaded { rules, digest })
}

async fn follow(encryption: Weak<Encryption>) {
    let mut said = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(encryption) = encryption.upgrade() else { return };
        match encryption.look().await {
            Ok(true) => tracing::info!(file = %encryption.path.display(), "the encryption configuration has changed"),
            Ok(false) => {}
            Err(e) => {
                let text = Chain(&e).to_string();
                if said.as_ref() != Some(&text) {
                    tracing::error!(error = %text, "the encryption configuration in force stays");
                }
                said = Some(text);
                continue;
            }
        }
        said = None;
    }
}
