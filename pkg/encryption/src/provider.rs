//! Who seals what: the providers of each resource, in order, told apart by the prefix of what they have written.

use crate::cipher::{Cipher, CipherError};
use crate::config::{self, Keys, Resource, group_resource};
use crate::kms::{Kms, KmsError, PluginMetrics};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;

/// Every sealed value begins with it.
pub const SEALED: &[u8] = b"k8s:enc:";

/// A value cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("no matching prefix found")]
    NoProvider,
    #[error("no matching key was found for the provided {0} transformer")]
    NoKey(&'static str),
    #[error("identity transformer tried to read encrypted data")]
    Sealed,
    #[error(transparent)]
    Cipher(#[from] CipherError),
    #[error(transparent)]
    Kms(#[from] KmsError),
}

/// What was under the seal.
pub struct Opened {
    pub value: Bytes,
    /// The first provider, with its first key, would write it otherwise.
    pub stale: bool,
}

enum Provider {
    /// Plain text.
    Identity,
    Keyed {
        name: &'static str,
        prefix: &'static str,
        keys: Vec<(String, Cipher)>,
    },
    Kms {
        prefix: String,
        kms: Arc<Kms>,
    },
}

type Providers = Arc<Vec<Provider>>;

/// A configuration, ready for use.
#[derive(Default)]
pub struct Rules {
    rules: HashMap<(String, String), Providers>,
    plugins: Vec<Arc<Kms>>,
}

impl Rules {
    pub async fn new(resources: &[Resource], metrics: &Arc<PluginMetrics>) -> Result<Self, SealError> {
        let mut made = Rules::default();
        for entry in resources {
            let mut providers = Vec::new();
            for provider in &entry.providers {
                providers.push(made.provider(provider, metrics).await?);
            }
            let providers = Arc::new(providers);
            for text in &entry.resources {
                let (group, resource) = group_resource(text);
                made.rules.entry((group.to_owned(), resource.to_owned())).or_insert_with(|| providers.clone());
            }
        }
        Ok(made)
    }

    async fn provider(
        &mut self,
        provider: &config::Provider,
        metrics: &Arc<PluginMetrics>,
    ) -> Result<Provider, SealError> {
        let keyed = |name, prefix, keys: &Keys, make: fn(&[u8]) -> Result<Cipher, CipherError>| {
            let cipher = |k: &config::Key| Ok((format!("{}:", k.name), make(&k.secret())?));
            let keys = keys.keys.iter().map(cipher).collect::<Result<_, CipherError>>()?;
            Ok(Provider::Keyed { name, prefix, keys })
        };
        if let Some(keys) = &provider.aesgcm {
            return keyed("AES-GCM", "k8s:enc:aesgcm:v1:", keys, Cipher::aes_gcm);
        }
        if let Some(keys) = &provider.aescbc {
            return keyed("AES-CBC", "k8s:enc:aescbc:v1:", keys, Cipher::aes_cbc);
        }
        if let Some(keys) = &provider.secretbox {
            return keyed("Secretbox", "k8s:enc:secretbox:v1:", keys, Cipher::secretbox);
        }
        if let Some(kms) = &provider.kms {
            let prefix = format!("k8s:enc:kms:v2:{}:", kms.name);
            let kms = Kms::start(kms.name.clone(), kms.socket().into(), kms.timeout(), metrics.clone()).await;
            self.plugins.push(kms.clone());
            return Ok(Provider::Kms { prefix, kms });
        }
        Ok(Provider::Identity)
    }

    /// Do all plugins of key management services answer?
    pub fn is_well(&self) -> bool {
        self.plugins.iter().all(|p| p.unhealthy().is_none())
    }

    pub fn has_plugins(&self) -> bool {
        !self.plugins.is_empty()
    }

    /// The providers of a resource: of itself, of its group, of everything.
    fn of(&self, (group, resource): (&str, &str)) -> Option<&Providers> {
        let get = |g: &str, r: &str| self.rules.get(&(g.to_owned(), r.to_owned()));
        get(group, resource).or_else(|| get(group, "*")).or_else(|| get("*", "*"))
    }

    /// Whether a resource has providers.
    pub fn have(&self, resource: (&str, &str)) -> bool {
        self.of(resource).is_some()
    }

    pub fn seal(&self, resource: (&str, &str), place: &[u8], plain: Bytes) -> Result<Bytes, SealError> {
        match self.of(resource).and_then(|p| p.first()) {
            None | Some(Provider::Identity) => Ok(plain),
            Some(Provider::Keyed { name, prefix, keys }) => {
                let (key, cipher) = keys.first().ok_or(SealError::NoKey(name))?;
                let mut out = [prefix.as_bytes(), key.as_bytes()].concat();
                out.reserve(plain.len() + 64);
                cipher.seal(&plain, place, &mut out)?;
                Ok(out.into())
            }
            Some(Provider::Kms { prefix, kms }) => {
                let mut out = prefix.as_bytes().to_vec();
                kms.seal(&plain, place, &mut out)?;
                Ok(out.into())
            }
        }
    }

    /// Opens what any provider of the resource has written. What nobody seals may be plain.
    pub async fn open(&self, resource: (&str, &str), place: &[u8], stored: Bytes) -> Result<Opened, SealError> {
        let Some(providers) = self.of(resource) else { return identity(stored, false) };
        let mut error = SealError::NoProvider;
        for (i, provider) in providers.iter().enumerate() {
            match provider.open(place, &stored).await {
                Some(Ok(opened)) => return Ok(Opened { stale: opened.stale || i > 0, ..opened }),
                Some(Err(e)) => error = e,
                None => {}
            }
        }
        Err(error)
    }
}

fn identity(stored: Bytes, stale: bool) -> Result<Opened, SealError> {
    if stored.starts_with(SEALED) { Err(SealError::Sealed) } else { Ok(Opened { value: stored, stale }) }
}

impl Provider {
    /// `None`: another one has written it.
    async fn open(&self, place: &[u8], stored: &Bytes) -> Option<Result<Opened, SealError>> {
        match self {
            Provider::Identity => Some(identity(stored.clone(), false)),
            Provider::Keyed { name, prefix, keys } => {
                let behind = stored.strip_prefix(prefix.as_bytes())?;
                let mut error = SealError::NoKey(name);
                for (i, (key, cipher)) in keys.iter().enumerate() {
                    let Some(sealed) = behind.strip_prefix(key.as_bytes()) else { continue };
                    match cipher.open(sealed, place) {
                        Ok(plain) => return Some(Ok(Opened { value: plain.into(), stale: i > 0 })),
                        Err(e) => error = e.into(),
                    }
                }
                Some(Err(error))
            }
            Provider::Kms { prefix, kms } => {
                let behind = stored.strip_prefix(prefix.as_bytes())?;
                let opened = kms.open(behind, place).await;
                Some(opened.map(|(plain, stale)| Opened { value: plain.into(), stale }).map_err(SealError::from))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const B: &str = "YWJjZGVmZ2hpamtsbW5vcGFiY2RlZmdoaWprbG1ub3A=";

    async fn rules(resources: &str) -> Rules {
        let text =
            format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: {resources}");
        Rules::new(&config::parse(&text).unwrap(), &Arc::new(PluginMetrics::new(""))).await.unwrap()
    }

    fn keys(provider: &str, keys: &[(&str, &str)]) -> String {
        let keys: Vec<_> = keys.iter().map(|(n, s)| format!("{{name: {n}, secret: {s}}}")).collect();
        format!("{{{provider}: {{keys: [{}]}}}}", keys.join(", "))
    }

    const SECRETS: (&str, &str) = ("", "secrets");
    const PLACE: &[u8] = b"/registry/secrets/default/a";

    #[tokio::test]
    async fn the_first_provider_writes_and_all_of_them_read() {
        for provider in ["aesgcm", "aescbc", "secretbox"] {
            let old = rules(&format!(
                "[{{resources: [secrets], providers: [{}, {{identity: {{}}}}]}}]",
                keys(provider, &[("a", A)])
            ))
            .await;
            let sealed = old.seal(SECRETS, PLACE, Bytes::from_static(b"plain")).unwrap();
            assert!(sealed.starts_with(format!("k8s:enc:{provider}:v1:a:").as_bytes()));
            let opened = old.open(SECRETS, PLACE, sealed.clone()).await.unwrap();
            assert_eq!((&opened.value[..], opened.stale), (&b"plain"[..], false));
            // Not sealed yet.
            assert!(old.open(SECRETS, PLACE, Bytes::from_static(b"{}")).await.unwrap().stale);
            // Rotated: the new key first.
            let new =
                rules(&format!("[{{resources: [secrets], providers: [{}]}}]", keys(provider, &[("b", B), ("a", A)])))
                    .await;
            let opened = new.open(SECRETS, PLACE, sealed.clone()).await.unwrap();
            assert_eq!((&opened.value[..], opened.stale), (&b"plain"[..], true));
            // Its key is gone, its provider is gone, it is nobody's.
            let gone =
                rules(&format!("[{{resources: [secrets], providers: [{}]}}]", keys(provider, &[("b", B)]))).await;
            assert!(matches!(gone.open(SECRETS, PLACE, sealed.clone()).await, Err(SealError::NoKey(_))));
            let plain = rules("[{resources: [secrets], providers: [{identity: {}}]}]").await;
            assert!(matches!(plain.open(SECRETS, PLACE, sealed.clone()).await, Err(SealError::Sealed)));
            assert!(matches!(Rules::default().open(SECRETS, PLACE, sealed).await, Err(SealError::Sealed)));
        }
    }

    #[tokio::test]
    async fn the_narrowest_rule_counts() {
        let made = rules(&format!(
            "[{{resources: [secrets], providers: [{}]}}, {{resources: ['*.apps'], providers: [{{identity: {{}}}}]}}, {{resources: ['*.*'], providers: [{}]}}]",
            keys("aesgcm", &[("one", A)]), keys("secretbox", &[("all", A)])
        )).await;
        for (resource, prefix) in [
            (SECRETS, "k8s:enc:aesgcm:v1:one:"),
            (("apps", "deployments"), "plain"),
            (("", "configmaps"), "k8s:enc:secretbox:v1:all:"),
            (("shop.example.com", "widgets"), "k8s:enc:secretbox:v1:all:"),
        ] {
            let sealed = made.seal(resource, b"/k", Bytes::from_static(b"plain")).unwrap();
            assert!(sealed.starts_with(prefix.as_bytes()), "{resource:?}");
        }
    }
}
