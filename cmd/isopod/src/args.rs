//! The command line. Where a flag means what a k3s flag means, it has the k3s name. Every flag of `server` is also a key
//! of the configuration file (see `config.rs`).

use crate::audit_flags::AuditArgs;
use crate::auth_flags::AuthArgs;
use crate::authz_flags::AuthorizationArgs;
use crate::front_proxy::FrontProxyArgs;
use crate::signing_flags::SigningArgs;
use clap::{Args, Parser, Subcommand};
use isopod_kubelet::Thresholds;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Parser)]
#[command(
    name = "isopod",
    version,
    about = "Kubernetes in one small program, for edge devices and single servers",
    after_help = "Start a cluster:  isopod server\nThen:             export KUBECONFIG=/etc/isopod/isopod.yaml; kubectl get nodes"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the API server, datastore, controllers and scheduler, and (unless --disable-agent) a node
    Server(Box<ServerArgs>),
    /// Run the datastore alone and serve etcd's API, version 3
    Datastore(Box<DatastoreArgs>),
    /// Write the cluster's state and keys into one file, beside a running server or without one
    Backup(BackupArgs),
    /// Make a cluster's state and keys of a backup
    Restore(RestoreArgs),
    /// List, pull, import and remove the node's container images
    Image(ImageArgs),
    /// Tell whether this machine can run a cluster, and what to do if not
    Check(CheckArgs),
    /// Stop every pod and remove all that Isopod made on this machine, data included
    Cleanup(CleanupArgs),
    /// Print shell completions
    Completion { shell: clap_complete::Shell },
}

#[derive(Args, Clone)]
pub struct DataDir {
    /// Where state, keys, images and pods lie
    #[arg(long, short = 'd', default_value = "/var/lib/isopod", env = "ISOPOD_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,
}

/// Where the data are kept. The names are k3s's.
#[derive(Args, Clone)]
pub struct Datastore {
    /// `sqlite` (in the data directory), sqlite:///DIRECTORY, `memory` (lost at exit), postgres://USER@HOST:PORT/DATABASE, or
    /// an etcd cluster: https://HOST:PORT,… A password in it is better given in the environment or the configuration file
    #[arg(
        long,
        default_value = "sqlite",
        env = "ISOPOD_DATASTORE_ENDPOINT",
        hide_env_values = true,
        value_name = "URL",
        help_heading = "Datastore"
    )]
    pub datastore_endpoint: String,
    /// CA of the datastore's certificate, PEM [default: the system's]
    #[arg(long, value_name = "FILE", help_heading = "Datastore")]
    pub datastore_cafile: Option<PathBuf>,
    /// Certificate to show to the datastore, PEM
    #[arg(long, requires = "datastore_keyfile", value_name = "FILE", help_heading = "Datastore")]
    pub datastore_certfile: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, requires = "datastore_certfile", value_name = "FILE", help_heading = "Datastore")]
    pub datastore_keyfile: Option<PathBuf>,
}

/// How much clients may ask of the API server. The names are upstream's.
#[derive(Args, Clone)]
pub struct RequestLimits {
    /// Share out what runs at a time by flow schemas and priority levels; else the two limits below stand for themselves
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true",
          action = clap::ArgAction::Set, value_name = "BOOL", help_heading = "API server")]
    pub enable_priority_and_fairness: bool,
    /// Reads that run at a time. With priority and fairness it adds up with the next limit; without, 0 is no limit
    #[arg(long, default_value_t = 400, value_name = "N", help_heading = "API server")]
    pub max_requests_inflight: u32,
    /// Other requests that run at a time
    #[arg(long, default_value_t = 200, value_name = "N", help_heading = "API server")]
    pub max_mutating_requests_inflight: u32,
    /// How long a request may take that is not a watch or a stream
    #[arg(long, default_value = "1m", value_parser = duration, value_name = "DURATION", help_heading = "API server")]
    pub request_timeout: Duration,
    /// Seconds after which a watch ends that names no time of its own; up to twice as many
    #[arg(long, default_value_t = 1800, value_name = "SECONDS", help_heading = "API server")]
    pub min_request_timeout: u32,
    /// The part of HTTP/2 requests whose connection is closed, so that clients find other servers; at most 0.02
    #[arg(long, default_value_t = 0.0, value_parser = goaway_chance, value_name = "PART", help_heading = "API server")]
    pub goaway_chance: f64,
}

#[derive(Args)]
pub struct EncryptionArgs {
    /// Encrypt Secrets in the datastore with a key that is made once, DATA_DIR/server/encryption.yaml
    #[arg(long, conflicts_with = "encryption_provider_config", help_heading = "Datastore")]
    pub secrets_encryption: bool,
    /// EncryptionConfiguration: what is encrypted in the datastore, and with what
    #[arg(long, value_name = "FILE", help_heading = "Datastore")]
    pub encryption_provider_config: Option<PathBuf>,
    /// Read it again when it changes, within a minute
    #[arg(long, requires = "encryption_provider_config", help_heading = "Datastore")]
    pub encryption_provider_config_automatic_reload: bool,
}

#[derive(Args)]
pub struct ServerArgs {
    #[command(flatten)]
    pub data: DataDir,
    /// YAML file whose keys are these flags without the dashes in front
    #[arg(long, short = 'c', default_value = "/etc/isopod/config.yaml", value_name = "FILE")]
    pub config: PathBuf,
    /// Write the administrator's kubeconfig here
    #[arg(long, short = 'o', default_value = "/etc/isopod/isopod.yaml", value_name = "FILE")]
    pub write_kubeconfig: PathBuf,
    /// Its mode, octal
    #[arg(long, default_value = "600", value_parser = octal, value_name = "MODE")]
    pub write_kubeconfig_mode: u32,

    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0", value_name = "IP", help_heading = "API server")]
    pub bind_address: IpAddr,
    /// Port to listen on
    #[arg(long, default_value_t = 6443, value_name = "PORT", help_heading = "API server")]
    pub https_listen_port: u16,
    /// Address that others reach the API server at [default: --node-ip]
    #[arg(long, value_name = "IP", help_heading = "API server")]
    pub advertise_address: Option<IpAddr>,
    /// Further name or address in the API server's certificate (repeatable)
    #[arg(long, value_name = "NAME", help_heading = "API server")]
    pub tls_san: Vec<String>,
    #[command(flatten)]
    pub limits: RequestLimits,
    #[command(flatten)]
    pub front_proxy: FrontProxyArgs,
    #[command(flatten)]
    pub datastore: Datastore,
    #[command(flatten)]
    pub encryption: EncryptionArgs,

    #[command(flatten)]
    pub auth: AuthArgs,
    #[command(flatten)]
    pub authorization: AuthorizationArgs,
    #[command(flatten)]
    pub audit: AuditArgs,

    /// Run no scheduler: bind pods with one of your own
    #[arg(long, help_heading = "Control plane")]
    pub disable_scheduler: bool,
    /// Run no controllers: what upstream's kube-controller-manager does is left to others
    #[arg(long, help_heading = "Control plane")]
    pub disable_controller_manager: bool,
    #[command(flatten)]
    pub signing: SigningArgs,

    /// Addresses of pods
    #[arg(long, default_value = "10.42.0.0/16", value_name = "CIDR", value_parser = cidr, help_heading = "Network")]
    pub cluster_cidr: String,
    /// Addresses of services
    #[arg(long, default_value = "10.43.0.0/16", value_name = "CIDR", value_parser = cidr, help_heading = "Network")]
    pub service_cidr: String,
    /// Ports of NodePort services
    #[arg(long, default_value = "30000-32767", value_name = "FROM-TO", value_parser = port_range, help_heading = "Network")]
    pub service_node_port_range: (u16, u16),
    /// Address of the cluster's DNS [default: the tenth of --service-cidr]
    #[arg(long, value_name = "IP", help_heading = "Network")]
    pub cluster_dns: Option<IpAddr>,
    /// Domain of the cluster
    #[arg(long, default_value = "cluster.local", value_name = "NAME", help_heading = "Network")]
    pub cluster_domain: String,

    /// Run no node: no pods on this machine, no root needed
    #[arg(long, help_heading = "Node")]
    pub disable_agent: bool,
    /// Name of this node [default: the host's name]
    #[arg(long, value_name = "NAME", help_heading = "Node")]
    pub node_name: Option<String>,
    /// Address of this node [default: that of the default route]
    #[arg(long, short = 'i', value_name = "IP", help_heading = "Node")]
    pub node_ip: Option<IpAddr>,
    /// Label of this node, KEY=VALUE (repeatable)
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Node")]
    pub node_label: Vec<String>,
    /// Taint of this node, KEY=VALUE:EFFECT (repeatable)
    #[arg(long, value_name = "KEY=VALUE:EFFECT", help_heading = "Node")]
    pub node_taint: Vec<String>,
    /// Port of the kubelet's HTTPS endpoints
    #[arg(long, default_value_t = 10250, value_name = "PORT", help_heading = "Node")]
    pub kubelet_port: u16,
    /// How many pods this node takes
    #[arg(long, default_value_t = 110, value_name = "N", help_heading = "Node")]
    pub max_pods: u32,
    /// What must be left, or the node is under pressure and takes no more pods: bytes or percent of memory.available, nodefs.available and
    /// imagefs.available
    #[arg(long, default_value = Thresholds::DEFAULT, value_name = "SIGNAL<AMOUNT,…", help_heading = "Node")]
    pub eviction_hard: Thresholds,
    /// Registries: mirrors, credentials, insecure ones
    #[arg(long, default_value = "/etc/isopod/registries.yaml", value_name = "FILE", help_heading = "Node")]
    pub private_registry: PathBuf,
    /// cgroup under which pods run, below each controller's root
    #[arg(long, default_value = "/isopod", value_name = "PATH", help_heading = "Node")]
    pub cgroup_root: String,
    /// resolv.conf from which pods' upstream name servers come
    #[arg(long, default_value = "/etc/resolv.conf", value_name = "FILE", help_heading = "Node")]
    pub resolv_conf: PathBuf,

    /// error, warn, info, debug, trace, or target=level,…
    #[arg(long, default_value = "warn", env = "ISOPOD_LOG", value_name = "FILTER", help_heading = "Logs")]
    pub log_level: String,
    /// One JSON object a line
    #[arg(long, help_heading = "Logs")]
    pub log_json: bool,
}

/// The names are etcd's.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DatastoreArgs {
    #[command(subcommand)]
    pub command: Option<DatastoreCommand>,
    #[command(flatten)]
    pub data: DataDir,
    #[command(flatten)]
    pub datastore: Datastore,
    /// Name of this member
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub name: String,
    /// Where clients connect: http://IP:PORT, https://IP:PORT, unix:///PATH, unixs:///PATH (repeatable, or with commas)
    #[arg(long, default_value = "http://localhost:2379", value_delimiter = ',', value_name = "URL")]
    pub listen_client_urls: Vec<String>,
    /// Where clients are told to connect [default: --listen-client-urls]
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    pub advertise_client_urls: Vec<String>,

    /// Where /metrics, /health and the like are served, and nothing else
    #[arg(long, value_delimiter = ',', alias = "listen-client-http-urls", value_name = "URL")]
    pub listen_metrics_urls: Vec<String>,
    /// Told to who asks for the members; nobody listens there
    #[arg(long, default_value = "http://localhost:2380", value_delimiter = ',', value_name = "URL")]
    pub initial_advertise_peer_urls: Vec<String>,
    /// Of this member alone, NAME=URL; more are refused
    #[arg(long, value_delimiter = ',', value_name = "NAME=URL")]
    pub initial_cluster: Vec<String>,

    /// The server's certificate, PEM
    #[arg(long, requires = "key_file", value_name = "FILE", help_heading = "TLS")]
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, requires = "cert_file", value_name = "FILE", help_heading = "TLS")]
    pub key_file: Option<PathBuf>,
    /// CA whose certificates clients must show, PEM
    #[arg(long, requires = "cert_file", value_name = "FILE", help_heading = "TLS")]
    pub trusted_ca_file: Option<PathBuf>,
    /// Let in only clients that show a certificate; needs --trusted-ca-file, and comes with it
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
          action = clap::ArgAction::Set, value_name = "BOOL", help_heading = "TLS")]
    pub client_cert_auth: bool,

    /// Certificates that are not let in any more: a revocation list, PEM or DER, read at each handshake
    #[arg(long, requires = "trusted_ca_file", value_name = "FILE", help_heading = "TLS")]
    pub client_crl_file: Option<PathBuf>,
    /// Let in only clients whose certificate is valid for one of these names
    #[arg(long, requires = "trusted_ca_file", value_delimiter = ',', value_name = "NAME", help_heading = "TLS")]
    pub client_cert_allowed_hostname: Vec<String>,
    /// Ciphers of TLS 1.2, by their IANA names [default: every safe one]
    #[arg(long, value_delimiter = ',', value_name = "NAME", help_heading = "TLS")]
    pub cipher_suites: Vec<String>,
    /// TLS1.2 or TLS1.3
    #[arg(long, value_name = "VERSION", help_heading = "TLS")]
    pub tls_min_version: Option<String>,
    /// TLS1.2 or TLS1.3
    #[arg(long, value_name = "VERSION", help_heading = "TLS")]
    pub tls_max_version: Option<String>,

    /// What clients get for their password: simple, or jwt,sign-method=RS256,priv-key=FILE,pub-key=FILE,ttl=5m
    #[arg(long, default_value = "simple", value_name = "TYPE", help_heading = "Users")]
    pub auth_token: String,
    /// Seconds that a simple token lives unused
    #[arg(long, default_value_t = 300, value_name = "SECONDS", help_heading = "Users")]
    pub auth_token_ttl: u64,
    /// Cost of new passwords' hashes, 4 to 31: one more takes twice as long
    #[arg(long, default_value_t = 10, value_name = "N", help_heading = "Users")]
    pub bcrypt_cost: u32,

    /// Size of the store at which writes are refused until space is made; 0: 2 GiB; negative: no limit
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "BYTES", help_heading = "Limits")]
    pub quota_backend_bytes: i64,
    /// Newest values kept in memory beside the database, in bytes; default: a sixteenth of the memory there is
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub cache_bytes: Option<usize>,
    /// Largest request
    #[arg(long, default_value_t = 3 << 19, value_name = "BYTES", help_heading = "Limits")]
    pub max_request_bytes: usize,
    /// Operations in a transaction
    #[arg(long, default_value_t = 128, value_name = "N", help_heading = "Limits")]
    pub max_txn_ops: usize,
    /// Requests that run at the same time on one connection [default: no limit]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub max_concurrent_streams: Option<u32>,
    /// How often watches that want it are told of progress while nothing happens
    #[arg(long, default_value = "10m", value_parser = duration,
          value_name = "DURATION", help_heading = "Limits")]
    pub watch_progress_notify_interval: Duration,
    /// How often a silent connection is asked whether it lives
    #[arg(long, default_value = "2h", value_parser = duration, value_name = "DURATION", help_heading = "Limits")]
    pub grpc_keepalive_interval: Duration,
    /// How long the answer may take
    #[arg(long, default_value = "20s", value_parser = duration, value_name = "DURATION", help_heading = "Limits")]
    pub grpc_keepalive_timeout: Duration,
    /// What --auto-compaction-retention counts
    #[arg(long, default_value = "periodic", value_parser = ["periodic", "revision"], help_heading = "Limits")]
    pub auto_compaction_mode: String,
    /// History to keep: hours or a duration, or a number of revisions; 0: all, until a client compacts
    #[arg(long, default_value = "0", value_name = "N", help_heading = "Limits")]
    pub auto_compaction_retention: String,

    /// error, warn, info, debug, trace, or target=level,…
    #[arg(long, default_value = "warn", env = "ISOPOD_LOG", value_name = "FILTER", help_heading = "Logs")]
    pub log_level: String,
    /// One JSON object a line
    #[arg(long, help_heading = "Logs")]
    pub log_json: bool,
    /// The same in etcd's words: json or console
    #[arg(long, value_parser = ["json", "console"], value_name = "FORMAT", help_heading = "Logs")]
    pub log_format: Option<String>,
}

#[derive(Subcommand)]
pub enum DatastoreCommand {
    /// Tell whether the datastore of a server that does not run is damaged
    Check(DataDir),
    /// Make a new datastore of what can be read of a damaged one, which is kept, and tell what cannot
    Repair(DataDir),
    /// Make a datastore of another program's: of k3s' (kine's) on SQLite, or of a snapshot of etcd's
    Import(ImportArgs),
}

#[derive(Args)]
pub struct ImportArgs {
    #[command(flatten)]
    pub data: DataDir,
    /// What to read: sqlite:///PATH (kine's database, which k3s has in /var/lib/rancher/k3s/server/db/state.db) or
    /// etcd-snapshot:///PATH (what `etcdctl snapshot save` wrote, or member/snap/db of an etcd that has ended)
    #[arg(long, value_name = "URL")]
    pub from: String,
    /// Who will run on it: `isopod` (`isopod server`; the objects as they are now), or `kube-apiserver` (every key as it
    /// is, and the history)
    #[arg(long = "for", default_value = "isopod", value_parser = ["isopod", "kube-apiserver"], value_name = "SERVER")]
    pub purpose: String,
    #[command(flatten)]
    pub datastore: Datastore,
    /// Leave out what cannot be taken over; without it that ends the import
    #[arg(long)]
    pub skip_unreadable: bool,
    /// Move a datastore that is there aside
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct BackupArgs {
    #[command(flatten)]
    pub data: DataDir,
    #[command(flatten)]
    pub datastore: Datastore,
    /// Where to write it: a file, a directory, or - [default: isopod-backup-TIME.isopod in this directory]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Remove older backups beside it whose names are defaults, but for the newest N in all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,
}

#[derive(Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub data: DataDir,
    #[command(flatten)]
    pub datastore: Datastore,
    /// The backup; - reads it from the standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Read the backup to its end and say what it holds; change nothing
    #[arg(long)]
    pub check: bool,
    /// Move what is there aside
    #[arg(long)]
    pub force: bool,
    /// How far the revisions jump, so that clients that know newer ones than the backup look again; 0: only where it is
    /// certain that none do
    #[arg(long, default_value_t = 1_000_000_000, value_parser = clap::value_parser!(i64).range(0..=1_000_000_000_000), value_name = "N")]
    pub bump_revision: i64,
}

#[derive(Args)]
pub struct ImageArgs {
    #[command(flatten)]
    pub data: DataDir,
    /// Registries: mirrors, credentials, insecure ones
    #[arg(long, default_value = "/etc/isopod/registries.yaml", value_name = "FILE")]
    pub private_registry: PathBuf,
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Subcommand)]
pub enum ImageCommand {
    /// List the images that are present
    #[command(alias = "list")]
    Ls,
    /// Pull images from their registries
    Pull {
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Import images from OCI or docker archives
    Import {
        #[arg(required = true, value_name = "TAR")]
        archives: Vec<PathBuf>,
    },
    /// Remove images
    Rm {
        #[arg(required = true)]
        images: Vec<String>,
    },
}

#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub data: DataDir,
    /// The API server's port
    #[arg(long, default_value_t = 6443)]
    pub https_listen_port: u16,
    /// The kubelet's port
    #[arg(long, default_value_t = 10250)]
    pub kubelet_port: u16,
}

#[derive(Args)]
pub struct CleanupArgs {
    #[command(flatten)]
    pub data: DataDir,
    /// cgroup under which pods ran
    #[arg(long, default_value = "/isopod", value_name = "PATH")]
    pub cgroup_root: String,
    /// Keep the datastore and the keys: remove pods, images, network and mounts only
    #[arg(long)]
    pub keep_state: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
}

fn octal(s: &str) -> Result<u32, String> {
    u32::from_str_radix(s, 8).ok().filter(|m| *m <= 0o777).ok_or_else(|| "write three octal digits, such as 600".into())
}

/// An IPv4 network with room for at least a few addresses.
fn cidr(s: &str) -> Result<String, String> {
    let parsed = s.split_once('/').and_then(|(ip, len)| Some((ip.parse::<Ipv4Addr>().ok()?, len.parse::<u32>().ok()?)));
    match parsed {
        Some((ip, len)) if (8..=28).contains(&len) => {
            let network = Ipv4Addr::from(u32::from(ip) & (u32::MAX << (32 - len)));
            if network == ip {
                Ok(s.to_owned())
            } else {
                Err(format!("host bits are set; did you mean {network}/{len}?"))
            }
        }
        Some(_) => Err("the prefix length must be between 8 and 28".into()),
        None => Err("write an IPv4 network, such as 10.42.0.0/16".into()),
    }
}

/// As Go writes them: `1h30m`, `10s`, `500ms`.
pub fn duration(s: &str) -> Result<Duration, String> {
    let wrong = || "write a duration, such as 500ms, 10s or 1h30m".to_owned();
    let mut rest = s;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let n: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let one = match &rest[..unit] {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return Err(wrong()),
        };
        let part = u32::try_from(n).ok().and_then(|n| one.checked_mul(n)).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &rest[unit..];
    }
    if s.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// As upstream limits it: a client that is sent away at every request gets nowhere.
fn goaway_chance(s: &str) -> Result<f64, String> {
    let part = s.parse::<f64>().ok().filter(|p| (0.0..=0.02).contains(p));
    part.ok_or_else(|| "--goaway-chance can not be less than 0 or greater than 0.02".to_owned())
}

fn port_range(s: &str) -> Result<(u16, u16), String> {
    let parse = |s: &str| s.trim().parse::<u16>().ok().filter(|p| *p > 0);
    match s.split_once('-').map(|(a, b)| (parse(a), parse(b))) {
        Some((Some(a), Some(b))) if a <= b => Ok((a, b)),
        _ => Err("write FROM-TO, such as 30000-32767".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn networks() {
        assert!(cidr("10.42.0.0/16").is_ok());
        assert!(cidr("10.42.1.0/16").unwrap_err().contains("10.42.0.0/16"));
        for bad in ["", "10.42.0.0", "10.42.0.0/33", "fd00::/64", "x/16"] {
            assert!(cidr(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "5", "s", "5x", "-1s", "1.5h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_ranges() {
        assert_eq!(port_range("30000-32767"), Ok((30000, 32767)));
        for bad in ["", "1", "0-5", "9-1", "1-70000"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
    }
}
