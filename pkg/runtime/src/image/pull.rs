//! Pulling: the manifest for this machine, its layers side by side, each download resumable and checked.

use super::manifest::{ACCEPTED, Descriptor, ImageConfig, Manifest, for_this_platform};
use super::registries::{Auth, Endpoint, Registries, RegistryConfig};
use super::store::{Image, Store};
use super::{Digest, ImageError, Reference, oauth};
use crate::types::{ProgressFn, PullProgress, RegistryAuth};
use base64::Engine;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use isopod_base::errors::Chain;
use oci_client::client::{Certificate, CertificateEncoding, Client, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth as ClientAuth;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

type Result<T> = std::result::Result<T, ImageError>;

/// Layers that download at a time.
const PARALLEL: usize = 3;
/// Each download is taken up again where it stopped so many times.
const ATTEMPTS: u32 = 5;
/// A registry that is silent for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(30);
const USER_AGENT: &str = concat!("isopod/", env!("CARGO_PKG_VERSION"));

pub struct Puller {
    store: Arc<Store>,
    registries: Registries,
    /// One image at a time of each registry: images share layers, and three replicas ask for the same one. A registry that is
    /// silent holds up nobody else's images.
    turns: parking_lot::Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// One image is unpacked at a time: images of different registries may share layers too.
    unpacking: tokio::sync::Mutex<()>,
}

/// One registry with one set of credentials.
struct Session {
    client: Client,
    reference: oci_client::Reference,
    auth: ClientAuth,
    host: String,
}

struct Fetched {
    bytes: Vec<u8>,
    manifest: Manifest,
}

impl Puller {
    pub fn new(store: Arc<Store>, registries: Registries) -> Self {
        Puller { store, registries, turns: Default::default(), unpacking: Default::default() }
    }

    /// Tries every endpoint with every set of credentials; when all fail, every failure is told.
    pub async fn pull(
        &self,
        image: &Reference,
        auths: &[RegistryAuth],
        progress: Option<ProgressFn>,
    ) -> Result<Digest> {
        let say = |p: PullProgress| progress.iter().for_each(|f| f(p.clone()));
        say(PullProgress::Resolving);
        let endpoints = self
            .registries
            .endpoints(image)
            .map_err(|e| ImageError::Registry { registry: image.registry.clone(), why: Chain(&e).to_string() })?;
        let mut failures: Vec<ImageError> = Vec::new();
        for endpoint in &endpoints {
            let config = self.registries.config(&endpoint.host, &image.registry);
            for auth in credentials(auths, &config.auth) {
                let session = match Session::open(endpoint, &config, auth, image).await {
                    Ok(session) => session,
                    Err(e) => {
                        failures.push(e);
                        continue;
                    }
                };
                match session.manifest(image.digest.as_ref()).await {
                    Ok(top) => match self.pull_from(&session, image, top, &say).await {
                        Ok(id) => {
                            say(PullProgress::Done);
                            return Ok(id);
                        }
                        Err(e) => failures.push(e),
                    },
                    Err(e) => {
                        let unreachable = matches!(e, ImageError::Unreachable { .. });
                        failures.push(e);
                        if unreachable {
                            break;
                        }
                    }
                }
            }
        }
        Err(together(failures))
    }

    async fn pull_from(
        &self,
        session: &Session,
        image: &Reference,
        top: Fetched,
        say: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<Digest> {
        let turn = self.turns.lock().entry(image.registry.clone()).or_default().clone();
        let _turn = turn.lock().await;
        let _in_use = self.store.in_use().await?;
        let named = Digest::of(&top.bytes);
        let fetched = match &top.manifest.manifests {
            Some(platforms) => session.manifest(Some(&for_this_platform(platforms)?.digest)).await?,
            None => top,
        };
        let missing = || ImageError::Malformed("the manifest has no config".into());
        let config_blob = fetched.manifest.config.as_ref().ok_or_else(missing)?;
        self.download(session, config_blob, None, &|_, _| {}).await?;
        let config: ImageConfig = serde_json::from_slice(&self.store.read_blob(&config_blob.digest)?)
            .map_err(ImageError::json("the image's config"))?;
        let layers = &fetched.manifest.layers;
        if config.rootfs.diff_ids.len() != layers.len() {
            return Err(ImageError::Malformed(
                "the image's config and manifest differ in their number of layers".into(),
            ));
        }
        let mut parent: Option<Digest> = None;
        let mut wanted = Vec::new();
        for (layer, diff_id) in layers.iter().zip(&config.rootfs.diff_ids) {
            let chain = Digest::chained(parent.as_ref(), diff_id);
            if !self.store.has_layer(&chain) {
                wanted.push((layer, chain.clone()));
            }
            parent = Some(chain);
        }
        let mut downloads: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        for (layer, chain) in &wanted {
            downloads.push(Box::pin(self.download_layer(session, layer, chain, say)));
        }
        futures::stream::iter(downloads).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
        if let Some((layer, _)) = wanted.first() {
            say(PullProgress::Unpacking(layer.digest.to_string()));
        }
        let (store, blobs) = (self.store.clone(), layers.iter().map(|l| l.digest.clone()).collect::<Vec<_>>());
        let image = Image {
            id: config_blob.digest.clone(),
            manifest: Digest::of(&fetched.bytes),
            tags: image.tagged().into_iter().collect(),
            digests: BTreeSet::from([image.with_digest(&named)]),
            config,
            layers: vec![],
        };
        let _alone = self.unpacking.lock().await;
        tokio::task::spawn_blocking(move || enter(&store, image, &blobs, &fetched.bytes))
            .await
            .map_err(|e| ImageError::io("unpack the image")(io::Error::other(e)))?
    }

    async fn download_layer(
        &self,
        session: &Session,
        layer: &Descriptor,
        chain: &Digest,
        say: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<()> {
        let name = layer.digest.to_string();
        self.download(session, layer, Some(chain), &|done, all| say(PullProgress::Layer(name.clone(), done, all))).await
    }

    /// Brings a blob in, taking up what an earlier attempt left. `chain` is the layer it is for.
    async fn download(
        &self,
        session: &Session,
        blob: &Descriptor,
        chain: Option<&Digest>,
        say: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<()> {
        if self.store.blob(&blob.digest).exists() {
            return Ok(());
        }
        let (store, digest) = (self.store.clone(), blob.digest.clone());
        let _claim = tokio::task::spawn_blocking(move || store.claim_partial(&digest))
            .await
            .map_err(|e| ImageError::io("claim a download")(io::Error::other(e)))??;
        // Somebody else may have brought it in meanwhile, and even unpacked it.
        if self.store.blob(&blob.digest).exists() || chain.is_some_and(|c| self.store.has_layer(c)) {
            let _ = std::fs::remove_file(self.store.partial(&blob.digest));
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            match self.download_once(session, blob, say).await {
                Ok(()) => {
                    let (store, digest) = (self.store.clone(), blob.digest.clone());
                    return tokio::task::spawn_blocking(move || store.commit_partial(&digest))
                        .await
                        .map_err(|e| ImageError::io("check a download")(io::Error::other(e)))?;
                }
                Err(e) if attempt == ATTEMPTS => return Err(e),
                Err(e) => tracing::debug!(blob = %blob.digest, error = %Chain(&e), "download interrupted; going on"),
            }
            tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
            attempt += 1;
        }
    }

    async fn download_once(
        &self,
        session: &Session,
        blob: &Descriptor,
        say: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<()> {
        use oci_client::client::BlobResponse;
        let failed = |e| ImageError::io(format!("write blob {}", blob.digest))(e);
        let path = self.store.partial(&blob.digest);
        let mut file = tokio::fs::OpenOptions::new().create(true).append(true).open(&path).await.map_err(failed)?;
        let mut done = file.metadata().await.map_err(failed)?.len();
        if blob.size > 0 && done == blob.size {
            return Ok(());
        }
        if done > blob.size {
            file.set_len(0).await.map_err(failed)?;
            done = 0;
        }
        let digest = blob.digest.to_string();
        session.client.store_auth_if_needed(session.reference.resolve_registry(), &session.auth).await;
        let mut stream = match done {
            0 => session.client.pull_blob_stream(&session.reference, digest.as_str()).await,
            _ => match session.client.pull_blob_stream_partial(&session.reference, digest.as_str(), done, None).await {
                Ok(BlobResponse::Partial(s)) => Ok(s),
                // The registry knows no ranges: from the start.
                Ok(BlobResponse::Full(s)) => {
                    file.set_len(0).await.map_err(failed)?;
                    done = 0;
                    Ok(s)
                }
                Err(e) => Err(e),
            },
        }
        .map_err(|e| session.error(&e))?;
        while let Some(bytes) = stream.try_next().await.map_err(|e| session.error(&e))? {
            file.write_all(&bytes).await.map_err(failed)?;
            done += bytes.len() as u64;
            say(done, blob.size);
        }
        file.flush().await.map_err(failed)
    }
}

/// No connection came about.
fn is_unreachable(e: &(dyn std::error::Error + 'static)) -> bool {
    let chain = std::iter::successors(Some(e), |e| e.source());
    chain.filter_map(|e| e.downcast_ref::<reqwest::Error>()).any(reqwest::Error::is_connect)
}

/// One error for all that was tried; the same text is said once.
fn together(mut failures: Vec<ImageError>) -> ImageError {
    if failures.len() == 1
        && let Some(only) = failures.pop()
    {
        return only;
    }
    let mut texts: Vec<String> = Vec::new();
    for failure in &failures {
        let text = Chain(failure).to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    ImageError::Malformed(if texts.is_empty() { "the image has no endpoint".into() } else { texts.join("; ") })
}

/// Unpacks and enters a downloaded image. Its layers' archives are not kept.
fn enter(store: &Store, mut image: Image, blobs: &[Digest], manifest: &[u8]) -> Result<Digest> {
    let open = |i: usize| Ok(Box::new(std::fs::File::open(store.blob(&blobs[i]))?) as Box<dyn io::Read>);
    image.layers = store.unpack_layers(&image.config.rootfs.diff_ids, open, |_| {})?;
    store.write_blob(manifest)?;
    let id = image.id.clone();
    store.add(image)?;
    for blob in blobs.iter().filter(|b| **b != id) {
        let _ = std::fs::remove_file(store.blob(blob));
    }
    Ok(id)
}

/// What a session is opened with.
enum Credential {
    /// As the client takes it.
    Ready(ClientAuth),
    /// To be exchanged first.
    Identity(String),
}

/// The caller's credentials, the configured ones, and none at all.
fn credentials(given: &[RegistryAuth], configured: &Auth) -> Vec<Credential> {
    let mut all: Vec<Credential> = given.iter().filter_map(credential).collect();
    let configured =
        match base64::engine::general_purpose::STANDARD.decode(&configured.auth).ok().map(String::from_utf8) {
            Some(Ok(pair)) if pair.contains(':') => {
                let (username, password) = pair.split_once(':').unwrap_or_default();
                RegistryAuth { username: username.into(), password: password.into(), ..Default::default() }
            }
            _ => RegistryAuth {
                username: configured.username.clone(),
                password: configured.password.clone(),
                identity_token: configured.identity_token.clone(),
                ..Default::default()
            },
        };
    all.extend(credential(&configured));
    all.push(Credential::Ready(ClientAuth::Anonymous));
    all
}

fn credential(auth: &RegistryAuth) -> Option<Credential> {
    if !auth.registry_token.is_empty() {
        Some(Credential::Ready(ClientAuth::Bearer(auth.registry_token.clone())))
    } else if !auth.identity_token.is_empty() {
        Some(Credential::Identity(auth.identity_token.clone()))
    } else if !auth.username.is_empty() {
        Some(Credential::Ready(ClientAuth::Basic(auth.username.clone(), auth.password.clone())))
    } else {
        None
    }
}

/// As the registry client's own, for what that one does not do.
fn http_client(config: &RegistryConfig, ca: Option<&[u8]>) -> reqwest::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .tls_danger_accept_invalid_certs(config.tls.insecure_skip_verify)
        .read_timeout(SILENCE)
        .connect_timeout(CONNECT)
        .user_agent(USER_AGENT);
    if let Some(pem) = ca {
        builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
    }
    builder.build()
}

impl Session {
    async fn open(
        endpoint: &Endpoint,
        config: &RegistryConfig,
        credential: Credential,
        image: &Reference,
    ) -> Result<Self> {
        let host = endpoint.host.clone();
        let refused = |why: String| ImageError::Registry { registry: host.clone(), why };
        if config.tls.cert_file.is_some() || config.tls.key_file.is_some() {
            return Err(refused("client certificates (tls.cert_file, tls.key_file) are not supported".into()));
        }
        let ca = match &config.tls.ca_file {
            Some(path) => {
                Some(std::fs::read(path).map_err(|e| refused(format!("cannot read {}: {e}", path.display())))?)
            }
            None => None,
        };
        let auth = match credential {
            Credential::Ready(auth) => auth,
            Credential::Identity(token) => {
                let http = http_client(config, ca.as_deref()).map_err(|e| refused(Chain(&e).to_string()))?;
                let base = format!("{}://{host}", if endpoint.https { "https" } else { "http" });
                let granted = oauth::exchange(&http, &base, &endpoint.repository, &token).await.map_err(&refused)?;
                granted.map_or(ClientAuth::Anonymous, ClientAuth::Bearer)
            }
        };
        let client = Client::new(ClientConfig {
            protocol: if endpoint.https { ClientProtocol::Https } else { ClientProtocol::Http },
            accept_invalid_certificates: config.tls.insecure_skip_verify,
            extra_root_certificates: ca
                .map(|data| Certificate { encoding: CertificateEncoding::Pem, data })
                .into_iter()
                .collect(),
            read_timeout: Some(SILENCE),
            connect_timeout: Some(CONNECT),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        });
        let (host, repository) = (endpoint.host.clone(), endpoint.repository.clone());
        let reference = match (&image.digest, &image.tag) {
            (Some(d), _) => oci_client::Reference::with_digest(host.clone(), repository, d.to_string()),
            (None, t) => {
                let tag = t.clone().unwrap_or_else(|| "latest".into());
                oci_client::Reference::with_tag(host.clone(), repository, tag)
            }
        };
        Ok(Session { client, reference, auth, host })
    }

    fn error(&self, e: &(dyn std::error::Error + 'static)) -> ImageError {
        let (registry, why) = (self.host.clone(), Chain(e).to_string());
        if is_unreachable(e) {
            ImageError::Unreachable { registry, why }
        } else {
            ImageError::Registry { registry, why }
        }
    }

    async fn manifest(&self, digest: Option<&Digest>) -> Result<Fetched> {
        let reference = match digest {
            Some(d) => self.reference.clone_with_digest(d.to_string()),
            None => self.reference.clone(),
        };
        let got = self.client.pull_manifest_raw(&reference, &self.auth, &ACCEPTED).await;
        let bytes = got.map_err(|e| self.error(&e))?.0.to_vec();
        if let Some(expected) = digest
            && Digest::of(&bytes) != *expected
        {
            return Err(ImageError::WrongDigest {
                expected: expected.to_string(),
                found: Digest::of(&bytes).to_string(),
            });
        }
        let manifest = serde_json::from_slice(&bytes).map_err(ImageError::json("the manifest"))?;
        Ok(Fetched { bytes, manifest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refused_connection_is_told_from_a_refusal() {
        // The port of a listener that is gone.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let e = reqwest::Client::builder()
            .no_proxy()
            .build()
            .unwrap()
            .get(format!("http://127.0.0.1:{port}/"))
            .send()
            .await;
        assert!(is_unreachable(&e.unwrap_err()));
        assert!(!is_unreachable(&io::Error::other("denied")));
    }
}
