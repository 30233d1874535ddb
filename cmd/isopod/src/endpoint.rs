//! Which datastore: what `--datastore-endpoint` may say, and the one way from there to a store.
//!
//! Invariant: a password in the endpoint is shown by nothing: no message, no log, no arguments of another process.

use crate::args::Datastore;
use anyhow::{Context, bail};
use isopod_base::errors::Chain;
use isopod_etcd::remote::{self, EtcdOptions, EtcdStore, User};
use isopod_pki::{Identity, tls};
use isopod_store::memory::MemoryStore;
use isopod_store::postgres::{PostgresOptions, PostgresStore};
use isopod_store::sqlite::SqliteStore;
use isopod_store::{Options, Store, StoreError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const FORMS: &str = "write sqlite, sqlite:///DIRECTORY, memory, postgres://USER:PASSWORD@HOST:PORT/DATABASE, or the \
                     endpoints of an etcd: https://[USER:PASSWORD@]HOST:PORT,… or http://HOST:PORT,… or unix:///PATH";
/// Where systems keep the authorities that they trust.
const SYSTEM_CAS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// How often a datastore that is away is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// What `--datastore-endpoint` says.
pub enum Endpoint {
    Memory,
    /// In this directory; `None`: in the data directory.
    Sqlite(Option<PathBuf>),
    Postgres(PostgresOptions),
    Etcd {
        endpoints: Vec<remote::Endpoint>,
        user: Option<User>,
    },
}

impl Endpoint {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        match text {
            "memory" => return Ok(Endpoint::Memory),
            "sqlite" => return Ok(Endpoint::Sqlite(None)),
            _ => {}
        }
        if let Some(directory) = text.strip_prefix("sqlite://") {
            if !directory.starts_with('/') {
                bail!("--datastore-endpoint: {text:?}: write the whole path: sqlite:///DIRECTORY");
            }
            return Ok(Endpoint::Sqlite(Some(directory.into())));
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            let options = PostgresOptions::new(text);
            options.check().context("--datastore-endpoint")?;
            return Ok(Endpoint::Postgres(options));
        }
        let (mut endpoints, mut user) = (Vec::new(), None);
        for one in text.split(',') {
            let (bare, named) = without_user(one.trim()).context("--datastore-endpoint")?;
            let endpoint = bare.parse().ok().with_context(|| format!("--datastore-endpoint: {bare:?}: {FORMS}"))?;
            endpoints.push(endpoint);
            user = user.or(named);
        }
        Ok(Endpoint::Etcd { endpoints, user })
    }

    /// The directory that SQLite uses, `default` if none is named.
    pub fn directory(&self, default: PathBuf) -> Option<PathBuf> {
        match self {
            Endpoint::Sqlite(named) => Some(named.clone().unwrap_or(default)),
            _ => None,
        }
    }

    /// May other servers use the same data at the same time?
    pub fn is_shared(&self) -> bool {
        matches!(self, Endpoint::Etcd { .. } | Endpoint::Postgres(_))
    }

    /// Opens the store; one that is reached over a network is waited for. `default`: SQLite's directory if none is named.
    pub async fn open(&self, args: &Datastore, default: PathBuf, options: Options) -> anyhow::Result<Arc<dyn Store>> {
        if let Some(directory) = self.directory(default) {
            let cannot = || format!("cannot open the datastore in {}", directory.display());
            return Ok(Arc::new(SqliteStore::open(&directory, options).with_context(cannot)?));
        }
        match self {
            Endpoint::Etcd { endpoints, user } => {
                let mut options = EtcdOptions::new(endpoints.clone());
                options.user.clone_from(user);
                if endpoints.iter().any(|e| e.tls) {
                    options.tls = Some(Arc::new(client_tls(args)?));
                }
                Ok(Arc::new(reach(async || EtcdStore::open(options.clone()).await).await?))
            }
            Endpoint::Postgres(place) => {
                let place = with_files(place, args);
                let store = reach(async || PostgresStore::open(place.clone(), options.clone()).await).await?;
                Ok(Arc::new(store))
            }
            _ => Ok(Arc::new(MemoryStore::new(options))),
        }
    }
}

/// A database with the certificates that are to be used with it.
pub fn with_files(place: &PostgresOptions, args: &Datastore) -> PostgresOptions {
    let mut place = place.clone();
    place.ca_file.clone_from(&args.datastore_cafile);
    place.cert_file.clone_from(&args.datastore_certfile);
    place.key_file.clone_from(&args.datastore_keyfile);
    place
}

/// A machine that boots before its database waits for it, and says so once.
async fn reach<S>(open: impl AsyncFn() -> isopod_store::Result<S>) -> anyhow::Result<S> {
    let mut said = false;
    loop {
        let away = match open().await {
            Err(e @ StoreError::Unavailable { .. }) => e,
            other => return other.context("cannot use the datastore"),
        };
        if !std::mem::replace(&mut said, true) {
            println!("Waiting for the datastore: {}", Chain(&away));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn client_tls(args: &Datastore) -> anyhow::Result<rustls::ClientConfig> {
    let read = |p: &Path| std::fs::read_to_string(p).with_context(|| format!("cannot read {}", p.display()));
    let identity = match (&args.datastore_certfile, &args.datastore_keyfile) {
        (Some(cert), Some(key)) => Some(Identity { cert_pem: read(cert)?, key_pem: read(key)? }),
        _ => None,
    };
    let system = || SYSTEM_CAS.iter().map(Path::new).find(|p| p.exists());
    let ca = args.datastore_cafile.as_deref().or_else(system);
    let ca = ca.context("no system CAs are installed: name the CA of the datastore with --datastore-cafile")?;
    Ok(tls::client("the datastore's client", identity.as_ref(), &read(ca)?, &["h2"])?)
}

/// The URL without the user in it.
fn without_user(url: &str) -> anyhow::Result<(String, Option<User>)> {
    let Some((scheme, rest)) = url.split_once("://") else { return Ok((after_at(url).to_owned(), None)) };
    let Some((user, place)) = rest.rsplit_once('@') else { return Ok((url.to_owned(), None)) };
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let decoded = |s| percent_decoded(s).context("a user or password has a % that is not followed by two hex digits");
    Ok((format!("{scheme}://{place}"), Some(User { name: decoded(name)?, password: decoded(password)? })))
}

/// What does not look like a URL may still have a password in it.
fn after_at(text: &str) -> &str {
    text.rsplit('@').next().unwrap_or_default()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        assert!(matches!(Endpoint::parse("memory").unwrap(), Endpoint::Memory));
        let default = || PathBuf::from("/data");
        assert_eq!(Endpoint::parse("sqlite").unwrap().directory(default()), Some("/data".into()));
        assert_eq!(Endpoint::parse("sqlite:///a/b").unwrap().directory(default()), Some("/a/b".into()));
        let etcd = Endpoint::parse("https://a:2379,https://[::1]:2379, unix:///run/etcd.sock").unwrap();
        assert!(etcd.is_shared() && etcd.directory(default()).is_none());
        let Endpoint::Etcd { endpoints, user: None } = etcd else { panic!() };
        let urls: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(urls, ["https://a:2379", "https://[::1]:2379", "unix:///run/etcd.sock"]);
    }

    #[test]
    fn postgres_endpoints() {
        for url in ["postgres://me:pw@db:5432/k8s?sslmode=verify-full", "postgresql:///k8s?host=/run/postgresql"] {
            let endpoint = Endpoint::parse(url).unwrap();
            assert!(endpoint.is_shared() && endpoint.directory("/data".into()).is_none());
            assert!(matches!(endpoint, Endpoint::Postgres(options) if options.url == url));
        }
        let error = format!("{:#}", Endpoint::parse("postgres://me:secret@db/k8s?sslmode=no").err().unwrap());
        assert!(error.contains("--datastore-endpoint") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn a_user_and_password_are_taken_out() {
        let Endpoint::Etcd { endpoints, user: Some(user) } =
            Endpoint::parse("https://ro%40ot:p%3Aw%25@a:2379,https://b:2379").unwrap()
        else {
            panic!()
        };
        assert_eq!((user.name.as_str(), user.password.as_str()), ("ro@ot", "p:w%"));
        assert_eq!(endpoints[0].to_string(), "https://a:2379");
        assert!(Endpoint::parse("https://a%zz:b@c:1").is_err());
    }

    #[test]
    fn mistakes_name_the_forms_and_no_password() {
        for bad in
            ["", "sqlte", "sqlite://here", "http://a", "https://u:secret@a", "u:secret@a:1", "mysql://u:secret@a:1/d"]
        {
            let error = format!("{:#}", Endpoint::parse(bad).err().unwrap());
            assert!(error.contains("--datastore-endpoint") && error.contains("sqlite:///"), "{bad}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
