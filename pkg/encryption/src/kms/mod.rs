//! KMS v2 (KEP-3299): a plugin on a Unix socket seals the seeds from which the keys of values are derived. It is asked for a new
//! seed when its key changes, and for an old one when a value is met that was sealed with it: not for every value.
//!
//! Invariant: nothing is written with a seed that the plugin has not confirmed within [`WRITE_TTL`].

mod envelope;
mod metrics;
mod plugin;

use crate::cipher::{self, Cipher, CipherError};
use crate::metrics::Direction;
use arc_swap::ArcSwapOption;
use envelope::{Envelope, SEED};
use isopod_base::errors::Chain;
pub use metrics::PluginMetrics;
use parking_lot::Mutex;
use plugin::{Plugin, Seed};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A plugin that is well is asked for its status so often, and one that is not so often: upstream's figures, on which people rely
/// who wait before they re-encrypt.
const WELL: Duration = Duration::from_secs(60);
const ILL: Duration = Duration::from_secs(10);
const WRITE_TTL: Duration = Duration::from_secs(180);
/// How many seeds are kept; each restart and each change of the plugin's key makes one.
const KNOWN: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum KmsError {
    #[error("the KMS plugin {name:?} has given no key yet: {why}")]
    NoKey { name: String, why: String },
    #[error("the KMS plugin {name:?} has not confirmed its key for {seconds} seconds: {why}")]
    Expired { name: String, seconds: u64, why: String },
    #[error("the sealed value is malformed: {0}")]
    Envelope(&'static str),
    #[error("failed to decrypt DEK, error: {0}")]
    Decrypt(String),
    #[error(transparent)]
    Cipher(#[from] CipherError),
}

/// What is written with.
struct Current {
    seed: Seed,
    cipher: Arc<Cipher>,
    /// What the envelope of a value says of the seed, encoded.
    head: Vec<u8>,
    confirmed: Instant,
}

/// One plugin.
pub struct Kms {
    name: String,
    plugin: Plugin,
    current: ArcSwapOption<Current>,
    /// The last failure; `None`: it is well.
    failure: Mutex<Option<String>>,
    known: Mutex<HashMap<Vec<u8>, Arc<Cipher>>>,
    metrics: Arc<PluginMetrics>,
}

impl Kms {
    /// Asks the plugin for its key, and goes on asking until the last owner drops it. A plugin that is not there yet is waited
    /// for in the background.
    pub async fn start(name: String, socket: PathBuf, timeout: Duration, metrics: Arc<PluginMetrics>) -> Arc<Self> {
        let kms = Arc::new(Kms {
            plugin: Plugin::new(name.clone(), socket, timeout, metrics.clone()),
            name,
            current: ArcSwapOption::empty(),
            failure: Mutex::new(Some("it was not asked yet".into())),
            known: Mutex::default(),
            metrics,
        });
        let mut well = kms.check().await;
        let weak: Weak<Kms> = Arc::downgrade(&kms);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(if well { WELL } else { ILL }).await;
                let Some(kms) = weak.upgrade() else { return };
                well = kms.check().await;
            }
        });
        kms
    }

    pub fn unhealthy(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Asks for the status, and for a new seed where the key is another one. True: it is well.
    async fn check(&self) -> bool {
        let failure = self.confirm().await.err();
        let mut last = self.failure.lock();
        if let Some(why) = failure.as_ref().filter(|_| failure != *last) {
            tracing::error!(plugin = %self.name, error = %why, "the KMS plugin is not well");
        }
        *last = failure;
        last.is_none()
    }

    async fn confirm(&self) -> Result<(), String> {
        let asked = Instant::now();
        let status = self.plugin.status().await.map_err(|e| {
            format!(
                "failed to perform status section of the healthz check for KMS Provider {}, error: {}",
                self.name,
                Chain(&e)
            )
        })?;
        let key = envelope::check_key_id(&status.key_id);
        match key {
            Ok(()) => self.metrics.confirmed(&self.name, &status.key_id),
            Err(_) if status.key_id.is_empty() => self.metrics.refused(&self.name, "empty"),
            Err(_) => self.metrics.refused(&self.name, "too_long"),
        }
        if status.healthz != "ok" {
            return Err(format!("got unexpected healthz status: {}", status.healthz));
        }
        if !["v2", "v2beta1"].contains(&status.version.as_str()) {
            return Err(format!("got unsupported version {:?}", status.version));
        }
        key.map_err(|e| format!("expected valid key ID, got invalid: {e}"))?;
        let same = self.current.load_full().filter(|c| c.seed.key_id == status.key_id);
        let (seed, cipher) = match same {
            Some(current) => (current.seed.clone(), current.cipher.clone()),
            None => self.new_seed(&status.key_id).await?,
        };
        let head = envelope::head(&seed);
        self.current.store(Some(Arc::new(Current { seed, cipher, head, confirmed: asked })));
        Ok(())
    }

    async fn new_seed(&self, key_id: &str) -> Result<(Seed, Arc<Cipher>), String> {
        let plain = cipher::seed();
        let seed = self.plugin.encrypt(&plain).await;
        let seed = seed.map_err(|e| format!("failed to encrypt DEK, error: {}", Chain(&e)))?;
        if seed.key_id != key_id {
            // It has changed between the two calls: the next status tells.
            return Err(format!(
                "the key ID of the status, {key_id:?}, is not that of what it encrypts, {:?}",
                seed.key_id
            ));
        }
        envelope::check(&seed).map_err(|e| format!("the plugin's answer cannot be used: {e}"))?;
        let cipher = Arc::new(Cipher::derived(&plain).map_err(|e| Chain(&e).to_string())?);
        self.remember(envelope::identity(&seed, SEED), cipher.clone());
        Ok((seed, cipher))
    }

    fn remember(&self, identity: Vec<u8>, cipher: Arc<Cipher>) {
        let mut known = self.known.lock();
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(identity, cipher);
        self.metrics.known(&self.name, known.len());
    }

    /// Appends the envelope of a value.
    pub fn seal(&self, plain: &[u8], place: &[u8], out: &mut Vec<u8>) -> Result<(), KmsError> {
        let why = || self.unhealthy().unwrap_or_default();
        let current = self.current.load_full();
        let current = current.ok_or_else(|| KmsError::NoKey { name: self.name.clone(), why: why() })?;
        let age = current.confirmed.elapsed();
        if age > WRITE_TTL {
            return Err(KmsError::Expired { name: self.name.clone(), seconds: age.as_secs(), why: why() });
        }
        let mut sealed = Vec::with_capacity(plain.len() + 64);
        current.cipher.seal(plain, place, &mut sealed)?;
        self.metrics.used(&self.name, Direction::Seal, &current.seed.key_id);
        envelope::append(&current.head, &sealed, out);
        Ok(())
    }

    /// What is in an envelope, and whether it would be written with another key now.
    pub async fn open(&self, stored: &[u8], place: &[u8]) -> Result<(Vec<u8>, bool), KmsError> {
        let envelope = Envelope::decode(stored)?;
        let identity = envelope::identity(&envelope.seed, envelope.source);
        let known = self.known.lock().get(&identity).cloned();
        let cipher = match known {
            Some(cipher) => cipher,
            None => {
                let plain = self.plugin.decrypt(&envelope.seed).await;
                let plain = plain.map_err(|e| KmsError::Decrypt(Chain(&e).to_string()))?;
                let made = if envelope.source == SEED { Cipher::derived(&plain) } else { Cipher::aes_gcm(&plain) };
                let cipher = Arc::new(made?);
                self.remember(identity, cipher.clone());
                cipher
            }
        };
        self.metrics.used(&self.name, Direction::Open, &envelope.seed.key_id);
        let plain = cipher.open(&envelope.sealed, place)?;
        let current = self.current.load();
        let stale = envelope.source != SEED || current.as_ref().is_none_or(|c| c.seed.key_id != envelope.seed.key_id);
        Ok((plain, stale))
    }
}

#[cfg(test)]
mod tests;
