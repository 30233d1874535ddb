//! `isopod datastore` itself: the store alone, behind etcd's API.

use crate::args::{DatastoreArgs, duration};
use crate::endpoint::Endpoint;
use crate::paths::Paths;
use anyhow::{Context, bail};
use isopod_etcd::compaction::{self, AutoCompaction};
use isopod_etcd::{AuthConfig, Config, Listener, Service, TokenOptions};
use isopod_pki::{FromFiles, ListenerOptions};
use isopod_store::Options;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Room for the newest values of a cluster of some size, which its API server lists when it starts. The store inside of a
/// server needs less: its API server keeps what it lists.
const CACHE_BYTES: usize = 64 << 20;

/// `notes`: what there is to tell of etcd's flags.
pub async fn run(args: DatastoreArgs, notes: Vec<String>) -> anyhow::Result<()> {
    isopod_base::logging::init(
        log_level(&args.log_level),
        args.log_json || args.log_format.as_deref() == Some("json"),
    )?;
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    check_initial_cluster(&args)?;
    check_data_dir(&args.data.data_dir)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let tls = tls_config(&args)?;
    let auto_compaction = auto_compaction(&args.auto_compaction_mode, &args.auto_compaction_retention)?;
    let mut places = Vec::new();
    let mut listeners = Vec::new();
    for (flag, url, pages_only) in urls(&args) {
        let place = place(flag, url)?;
        let listener = listen(&place, tls.as_ref(), flag).await?;
        listeners.push(if pages_only { Listener::Pages(Box::new(listener)) } else { listener });
        places.push(place);
    }
    let endpoint = Endpoint::parse(&args.datastore.datastore_endpoint)?;
    let default = Paths::new(&args.data.data_dir)?.store();
    let options = Options { cache_bytes: CACHE_BYTES, ..Options::default() };
    let store = tokio::select! {
        opened = endpoint.open(&args.datastore, default.clone(), options) => opened?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let config = config(&args, endpoint.directory(default))?;
    let service = Service::new(Arc::clone(&store), config).await.context("cannot read the datastore")?;
    let stop = CancellationToken::new();
    let compacting = tokio::spawn(compaction::run(Arc::clone(&store), auto_compaction, stop.clone()));
    println!("Datastore ready  {}", args.listen_client_urls.join(" "));
    tokio::select! {
        () = isopod_etcd::serve(service, listeners, stop.clone()) => {}
        () = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
            // The server lets running requests end, and the first branch ends with it.
            std::future::pending::<()>().await;
        } => {}
    }
    let _ = compacting.await;
    let closed = store.close().await.context("cannot close the datastore");
    for place in &places {
        if let Address::Unix(path) = &place.address {
            let _ = std::fs::remove_file(path);
        }
    }
    closed
}

fn config(args: &DatastoreArgs, directory: Option<PathBuf>) -> anyhow::Result<Config> {
    let advertised = if args.advertise_client_urls.is_empty() {
        args.listen_client_urls.clone()
    } else {
        args.advertise_client_urls.clone()
    };
    let mut config = Config {
        name: args.name.clone(),
        advertise_client_urls: advertised,
        quota_backend_bytes: args.quota_backend_bytes,
        max_request_bytes: args.max_request_bytes,
        max_txn_ops: args.max_txn_ops,
        watch_progress_notify_interval: args.watch_progress_notify_interval,
        keepalive_interval: args.grpc_keepalive_interval,
        keepalive_timeout: args.grpc_keepalive_timeout,
        max_concurrent_streams: args.max_concurrent_streams,
        peer_urls: args.initial_advertise_peer_urls.clone(),
        auth: AuthConfig {
            tokens: TokenOptions::parse(&args.auth_token)?,
            token_ttl: Duration::from_secs(args.auth_token_ttl),
            bcrypt_cost: args.bcrypt_cost,
            certificates: args.client_cert_auth,
        },
        ..Config::default()
    };
    if let Some(directory) = directory {
        // Room for the data is there.
        config.temporary_files = directory;
    }
    Ok(config)
}

fn tls_config(args: &DatastoreArgs) -> anyhow::Result<Option<Arc<rustls::ServerConfig>>> {
    if args.client_cert_auth && args.trusted_ca_file.is_none() {
        bail!("--client-cert-auth needs --trusted-ca-file: the CA whose certificates clients show");
    }
    let (Some(cert), Some(key)) = (&args.cert_file, &args.key_file) else { return Ok(None) };
    let read = |p: &PathBuf| std::fs::read_to_string(p).with_context(|| format!("cannot read {}", p.display()));
    // As etcd's, it may be renewed while the server runs.
    let identity = Arc::new(FromFiles::open(cert, key)?);
    let options = ListenerOptions {
        client_ca_pem: args.trusted_ca_file.as_ref().map(read).transpose()?,
        revoked: args.client_crl_file.clone(),
        client_names: args.client_cert_allowed_hostname.clone(),
        min_version: args.tls_min_version.clone(),
        max_version: args.tls_max_version.clone(),
        cipher_suites: args.cipher_suites.clone(),
    };
    Ok(Some(Arc::new(options.config_showing("the datastore", identity)?)))
}

/// etcd knows two more, both above an error.
fn log_level(text: &str) -> &str {
    if ["panic", "dpanic", "fatal"].contains(&text) { "error" } else { text }
}

/// Who names other members expects what this datastore is not.
fn check_initial_cluster(args: &DatastoreArgs) -> anyhow::Result<()> {
    let name = |entry: &String| entry.split_once('=').map_or_else(|| entry.clone(), |(n, _)| n.to_owned());
    if let Some(other) = args.initial_cluster.iter().map(name).find(|n| *n != args.name) {
        bail!(
            "--initial-cluster names {other}, and this datastore has one member, {}: for several servers let each use \
             one Postgres, or a real etcd, as its --datastore-endpoint",
            args.name
        );
    }
    Ok(())
}

/// Who lets this program take etcd's place must not find an empty datastore instead of his data.
fn check_data_dir(dir: &Path) -> anyhow::Result<()> {
    if dir.join("member/snap/db").exists() {
        bail!(
            "--data-dir {} holds the data of an etcd, which this program does not read: choose another directory, and \
             take the data over from the running etcd (etcdctl make-mirror)",
            dir.display()
        );
    }
    Ok(())
}

/// Flag, URL, and whether only pages are served there.
fn urls(args: &DatastoreArgs) -> impl Iterator<Item = (&'static str, &str, bool)> {
    let clients = args.listen_client_urls.iter().map(|u| ("--listen-client-urls", u.as_str(), false));
    clients.chain(args.listen_metrics_urls.iter().map(|u| ("--listen-metrics-urls", u.as_str(), true)))
}

/// A URL to listen on, taken apart.
#[derive(Debug, PartialEq)]
struct Place {
    url: String,
    address: Address,
    tls: bool,
}

#[derive(Debug, PartialEq)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

fn place(flag: &str, url: &str) -> anyhow::Result<Place> {
    let wrong = || format!("{flag}: {url}: write http://IP:PORT, https://IP:PORT, unix:///PATH or unixs:///PATH");
    let (scheme, rest) = url.split_once("://").with_context(wrong)?;
    let address = match scheme {
        "http" | "https" => {
            let (host, port) = rest.trim_end_matches('/').rsplit_once(':').with_context(wrong)?;
            let ip = match host.trim_start_matches('[').trim_end_matches(']') {
                "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
                ip => ip.parse().ok().with_context(wrong)?,
            };
            Address::Tcp(SocketAddr::new(ip, port.parse().ok().with_context(wrong)?))
        }
        "unix" | "unixs" if rest.starts_with('/') => Address::Unix(rest.into()),
        _ => bail!(wrong()),
    };
    Ok(Place { url: url.to_owned(), address, tls: matches!(scheme, "https" | "unixs") })
}

async fn listen(place: &Place, tls: Option<&Arc<rustls::ServerConfig>>, flag: &str) -> anyhow::Result<Listener> {
    let url = &place.url;
    let tls = match (place.tls, tls) {
        (false, _) => None,
        (true, Some(tls)) => Some(Arc::clone(tls)),
        (true, None) => bail!("{url} needs --cert-file and --key-file"),
    };
    let cannot = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "cannot listen on {url}: it is in use; stop what listens there, or choose another with {flag}"
        ),
        _ => anyhow::Error::new(e).context(format!("cannot listen on {url}")),
    };
    Ok(match &place.address {
        Address::Tcp(address) => Listener::Tcp(TcpListener::bind(address).await.map_err(cannot)?, tls),
        Address::Unix(path) => {
            remove_dead_socket(path);
            Listener::Unix(UnixListener::bind(path).map_err(cannot)?, tls)
        }
    })
}

/// What a killed server left; a living one's is not touched.
fn remove_dead_socket(path: &Path) {
    let refused = |e: std::io::Error| e.kind() == std::io::ErrorKind::ConnectionRefused;
    if UnixStream::connect(path).is_err_and(refused) {
        let _ = std::fs::remove_file(path);
    }
}

fn auto_compaction(mode: &str, retention: &str) -> anyhow::Result<AutoCompaction> {
    let number = retention.parse::<u32>().ok();
    let wrong =
        || format!("--auto-compaction-retention: {retention}: write a number, or for periodic a duration such as 30m");
    Ok(match (mode, number) {
        (_, Some(0)) => AutoCompaction::Off,
        ("revision", Some(n)) => AutoCompaction::Revision(i64::from(n)),
        ("periodic", Some(hours)) => AutoCompaction::Periodic(Duration::from_secs(3600) * hours),
        ("periodic", None) => AutoCompaction::Periodic(duration(retention).ok().with_context(wrong)?),
        _ => bail!(wrong()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_to_listen_on() {
        let place = |url: &str| place("--listen-client-urls", url);
        let tcp = |url: &str| match place(url).unwrap() {
            Place { address: Address::Tcp(a), tls, .. } => (a.to_string(), tls),
            other => panic!("{other:?}"),
        };
        assert_eq!(tcp("http://localhost:2379"), ("127.0.0.1:2379".into(), false));
        assert_eq!(tcp("https://[::1]:2379/"), ("[::1]:2379".into(), true));
        assert_eq!(place("unix:///run/x.sock").unwrap().address, Address::Unix("/run/x.sock".into()));
        for bad in ["", "localhost:2379", "http://localhost", "http://name:1", "unix://x", "ftp://1.2.3.4:5"] {
            assert!(place(bad).unwrap_err().to_string().contains("--listen-client-urls"), "{bad}");
        }
    }

    #[test]
    fn what_is_kept() {
        let minute = Duration::from_secs(60);
        assert_eq!(auto_compaction("periodic", "0").unwrap(), AutoCompaction::Off);
        assert_eq!(auto_compaction("periodic", "1").unwrap(), AutoCompaction::Periodic(minute * 60));
        assert_eq!(auto_compaction("periodic", "5m").unwrap(), AutoCompaction::Periodic(minute * 5));
        assert_eq!(auto_compaction("revision", "1000").unwrap(), AutoCompaction::Revision(1000));
        for (mode, bad) in [("revision", "5m"), ("periodic", "x"), ("periodic", "-1")] {
            assert!(auto_compaction(mode, bad).is_err(), "{bad}");
        }
    }
}
