//! Encryption at rest: which EncryptionConfiguration is in force, and the store that follows it.

use super::Settings;
use anyhow::{Context, bail};
use isopod_encryption::{Encryption, Resources, Sealed, opened_by_nobody};
use isopod_kinds::Kind;
use isopod_pki::write_atomic;
use isopod_store::{KeyRange, RangeRequest, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The store as it is, or under encryption where the flags say so.
pub async fn over(
    settings: &Settings,
    store: Arc<dyn Store>,
    kinds: &[Arc<Kind>],
) -> anyhow::Result<Option<Arc<Sealed>>> {
    let args = &settings.args.encryption;
    let (path, reload) = match (&args.encryption_provider_config, args.secrets_encryption) {
        (Some(path), _) => (path.clone(), args.encryption_provider_config_automatic_reload),
        (None, true) => (generated(&settings.paths.encryption(), &*store).await?, true),
        (None, false) => return Ok(None),
    };
    let rows = kinds.iter().map(|k| (k.storage.prefix.clone(), k.gvk.group.clone(), k.resource.clone()));
    let encryption =
        Encryption::load(path, Resources::new(rows), reload, &format!("apiserver-{}", settings.node_name)).await?;
    Ok(Some(Arc::new(Sealed::over(store, encryption))))
}

/// The configuration of `--secrets-encryption`: made once, with a key of its own, and read from then on. What was written before
/// can still be read.
async fn generated(path: &Path, store: &dyn Store) -> anyhow::Result<PathBuf> {
    if !path.exists() {
        let read = store.range(RangeRequest::new(KeyRange::prefix("/registry/secrets/"))).await?;
        if read.kvs.iter().any(|kv| opened_by_nobody(&kv.key, &kv.value).is_some()) {
            // A new key would open none of them.
            bail!(
                "the datastore holds encrypted Secrets, and their key, {}, is missing: put it back, or give another \
                 configuration that can read them with --encryption-provider-config",
                path.display()
            );
        }
        let text = isopod_encryption::new_configuration();
        write_atomic(path, text.as_bytes(), 0o600).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(path.to_owned())
}
