//! What an API server is made from. Everything that it uses is given here: nothing is read from the environment.

use crate::access::Access;
use crate::aggregation;
use crate::aggregation::FrontProxy;
use crate::audit::Audit;
use crate::authn::Authenticator;
use crate::authorization::AuthorizerChain;
use crate::component_status::Components;
use crate::tokens::{ServiceAccounts, TokenSource};
use isopod_auth::token::Tokens;
use isopod_base::clock::Clock;
use isopod_encryption::Sealed;
use isopod_kinds::Kind;
use isopod_store::Store;
use prometheus_client::registry::Registry;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// Registers metrics of another part of this process.
pub type RegisterMetrics = dyn Fn(&mut Registry) + Send + Sync;

/// The parts and settings of an API server. [`Config::new`] fills in upstream's defaults.
#[derive(Clone)]
pub struct Config {
    pub store: Arc<dyn Store>,
    /// `store`, where it keeps values encrypted: what has to be written anew is asked of it.
    pub sealed: Option<Arc<Sealed>>,
    /// What else of this process `/metrics` shows.
    pub metrics: Vec<Arc<RegisterMetrics>>,
    /// Other API servers may use the same data.
    pub shared_store: bool,
    /// Every served version of every built-in resource.
    pub kinds: Vec<Arc<Kind>>,
    pub authorizer: Arc<AuthorizerChain>,
    /// Asked in order; the first that knows the credentials decides.
    pub authenticators: Vec<Arc<dyn Authenticator>>,
    /// Records requests.
    pub audit: Option<Arc<Audit>>,
    /// Whether requests without credentials are served as `system:anonymous`.
    pub anonymous_auth: bool,
    /// The paths that these are served on; none: all.
    pub anonymous_paths: Vec<String>,
    /// Who knows bearer tokens, asked in order.
    pub token_sources: Vec<Arc<dyn TokenSource>>,
    /// Signs and checks service-account tokens; without it `serviceaccounts/token` answers 501.
    pub tokens: Option<Arc<Tokens>>,
    /// What the RBAC and node authorizers know: followed from the store, asked for rules and against escalation.
    pub access: Option<Arc<Access>>,
    /// `--service-cidr`, for example `10.43.0.0/16`.
    pub service_cidr: String,
    pub node_ports: RangeInclusive<u16>,
    /// Where the `kubernetes` service leads.
    pub advertise_address: IpAddr,
    pub port: u16,
    /// The machine's name, from which this server's identity is made.
    pub hostname: String,
    pub clock: Clock,
    /// When the certificate that its clients are shown is over, in seconds of the Unix epoch: it is renewed while it is shown.
    pub certificate_expires: Option<Arc<dyn Fn() -> i64 + Send + Sync>>,
    /// How the server speaks to kubelets through the tunnel: its client certificate and the CA of their serving certificates.
    pub kubelet_tls: Option<Arc<rustls::ClientConfig>>,
    /// How extension API servers know this one.
    pub aggregation: aggregation::Settings,
    /// Whom this server takes for a proxy in front of it.
    pub front_proxy: Option<Arc<FrontProxy>>,
    /// How this server was started: what `/flagz` shows.
    pub flags: Option<BTreeMap<String, String>>,
    /// Which components run in this process.
    pub components: Components,
    /// Objects that are created at start if they are not there.
    pub bootstrap: Vec<Value>,
    /// `--enable-priority-and-fairness`: the limits below together are shared out by flow schemas and priority levels. Without
    /// it each is a plain limit, and 0 is none.
    pub priority_and_fairness: bool,
    pub max_requests_in_flight: usize,
    pub max_mutating_requests_in_flight: usize,
    /// `--request-timeout`: a request that is not a watch or a stream ends by then.
    pub request_timeout: Duration,
    /// `--min-request-timeout`: a watch without `timeoutSeconds` ends after this time or up to twice of it.
    pub min_request_timeout: Duration,
    /// `--goaway-chance`: the part of the HTTP/2 requests whose connection is closed, so that clients find other servers.
    pub goaway_chance: f64,
}

impl Config {
    pub fn new(store: Arc<dyn Store>, kinds: Vec<Arc<Kind>>, authorizer: Arc<AuthorizerChain>) -> Self {
        Config {
            store,
            sealed: None,
            metrics: Vec::new(),
            shared_store: false,
            kinds,
            authorizer,
            authenticators: Vec::new(),
            audit: None,
            anonymous_auth: true,
            anonymous_paths: Vec::new(),
            token_sources: vec![Arc::new(ServiceAccounts)],
            tokens: None,
            access: None,
            service_cidr: "10.43.0.0/16".into(),
            node_ports: 30000..=32767,
            advertise_address: IpAddr::from([127, 0, 0, 1]),
            port: 6443,
            hostname: "localhost".into(),
            clock: Clock::system(),
            certificate_expires: None,
            kubelet_tls: None,
            aggregation: aggregation::Settings::default(),
            front_proxy: None,
            flags: None,
            components: Components::default(),
            bootstrap: Vec::new(),
            priority_and_fairness: true,
            max_requests_in_flight: 400,
            max_mutating_requests_in_flight: 200,
            request_timeout: Duration::from_secs(60),
            min_request_timeout: Duration::from_secs(1800),
            goaway_chance: 0.0,
        }
    }
}
