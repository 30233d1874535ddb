//! Datastore, API server, controllers and scheduler.

use super::follow::follow;
use super::{Settings, encryption};
use crate::args::RequestLimits;
use crate::front_proxy::FrontProxyTrust;
use anyhow::{Context, bail};
use futures::FutureExt;
use futures::future::BoxFuture;
use isopod_api::UserInfo;
use isopod_apiserver::audit::Audit;
use isopod_apiserver::component_status::{Components, Running};
use isopod_apiserver::tokens::Jwt;
use isopod_apiserver::{Access, ApiServer, ClientCertificate, Config};
use isopod_auth::token;
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use isopod_base::supervisor::Supervisor;
use isopod_client::election::{Election, Timing};
use isopod_client::views::Node;
use isopod_client::{Change, Informers, ListScope, QueueMetrics};
use isopod_controllers::certificates::signing::Signers;
use isopod_controllers::service_account_tokens::TokenIssuer;
use isopod_pki::{Own, ServerPki};
use isopod_store::{Options, Store};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Keys that wear out an SD card when they are written to it: Events, and the heartbeats of nodes and API servers.
const EPHEMERAL: [&str; 3] =
    ["/registry/events/", "/registry/leases/kube-node-lease/", "/registry/leases/kube-system/apiserver-"];

pub struct ControlPlane {
    pub api: Arc<ApiServer>,
    /// The CAs, PEM, whose certificates clients and front proxies show.
    pub client_authorities: String,
    signers: Signers,
    store: Arc<dyn Store>,
    /// Whose file is followed.
    issuers: Option<Arc<Jwt>>,
    /// Those of the controllers.
    queues: QueueMetrics,
}

impl ControlPlane {
    pub async fn start(
        settings: &Settings,
        pki: &ServerPki,
        store: Arc<dyn Store>,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let access = Access::new();
        let kinds = isopod_kinds::table::builtin();
        let sealed = encryption::over(settings, store.clone(), &kinds).await?;
        let opened: Arc<dyn Store> = sealed.clone().map_or(store.clone(), |s| s);
        let args = &settings.args;
        let authorizer = args.authorization.chain(&access, &settings.node_name)?;
        let mut config = Config::new(opened, kinds, authorizer);
        let signers = args.signing.signers(&settings.paths.tls())?;
        config.sealed = sealed;
        config.access = Some(access);
        config.shared_store = settings.datastore.is_shared();
        config.audit = Audit::open(&args.audit.settings())?;
        config.authenticators = vec![Arc::new(ClientCertificate)];
        config.tokens = Some(Arc::new(tokens(settings, pki)?));
        let own = args.auth.issuers(&args.cluster_domain);
        let issuers = args.auth.apply(&mut config, &own, &settings.node_name)?;
        if config.anonymous_auth && args.authorization.allows_everything() {
            tracing::warn!("requests without credentials are refused: with AlwaysAllow they could do everything");
            config.anonymous_auth = false;
        }
        config.service_cidr.clone_from(&args.service_cidr);
        config.node_ports = args.service_node_port_range.0..=args.service_node_port_range.1;
        config.advertise_address = settings.advertise;
        config.port = args.https_listen_port;
        config.hostname.clone_from(&settings.host_name);
        let serving = pki.shown(Own::Serving)?;
        config.certificate_expires = Some(Arc::new(move || serving.expires()));
        limit(&mut config, &args.limits)?;
        config.clock = clock;
        config.kubelet_tls = Some(Arc::new(isopod_pki::tls::client_showing(
            "kube-apiserver-kubelet-client",
            pki.shown(Own::KubeletClient)?,
            &pki.server_ca.cert_pem,
            &["http/1.1"],
        )?));
        let trust = FrontProxyTrust::new(&args.front_proxy, pki)?;
        config.aggregation = trust.aggregation(pki);
        let front_proxy = Arc::new(trust.authenticator(pki)?);
        config.authenticators.insert(0, front_proxy.clone());
        config.front_proxy = Some(front_proxy);
        config.bootstrap = bootstrap(settings);
        config.flags = Some(settings.flags.clone());
        let queues = QueueMetrics::default();
        let shown = queues.clone();
        config.metrics.push(Arc::new(move |registry| shown.register(registry)));
        config.components = Components {
            controller_manager: (!args.disable_controller_manager).then(Running::default),
            scheduler: (!args.disable_scheduler).then(Running::default),
        };
        let api = ApiServer::new(config).await.context("cannot start the API server")?;
        let client_authorities = trust.listener(pki);
        Ok(ControlPlane { api, client_authorities, signers, store, issuers, queues })
    }

    pub async fn bootstrap(&self) -> anyhow::Result<()> {
        Ok(self.api.bootstrap().await?)
    }

    /// Takes in what changes in configuration files.
    pub fn follow_files(&self, parts: &Supervisor) {
        let (chain, stop) = (self.api.config.authorizer.clone(), parts.token());
        if let Some(file) = chain.file().map(Path::to_owned) {
            parts.keep("authorization configuration", move || {
                let (chain, file, stop) = (chain.clone(), file.clone(), stop.clone());
                async move { follow(&file, stop, || async { chain.look() }).await }
            });
        }
        let stop = parts.token();
        if let Some((issuers, file)) = self.issuers.clone().and_then(|i| Some((i.clone(), i.file()?.to_owned()))) {
            parts.keep("authentication configuration", move || {
                let (issuers, file, stop) = (issuers.clone(), file.clone(), stop.clone());
                async move { follow(&file, stop, || issuers.look()).await }
            });
        }
    }

    /// A client in this process, as `user`.
    pub fn client(&self, user: &str) -> kube::Client {
        isopod_client::in_process(self.api.service(), identity(user))
    }

    /// Starts controllers and scheduler, as far as they are wanted.
    pub fn run_loops(&self, settings: &Settings, pki: &ServerPki, clock: &Clock, parts: &Supervisor) {
        if !settings.args.disable_controller_manager {
            self.run_controllers(settings, pki, clock, parts);
        }
        if !settings.args.disable_scheduler {
            let (client, time, stop) = (self.client(isopod_scheduler::USER), clock.clone(), parts.token());
            let election = elect(settings, &client, clock, "kube-scheduler");
            let running = self.api.config.components.scheduler.clone().unwrap_or_default();
            parts.keep("scheduler", move || {
                let (client, time) = (client.clone(), time.clone());
                let work = in_turn(election.clone(), stop.clone(), move |stop| {
                    isopod_scheduler::run(client.clone(), time.clone(), stop).boxed()
                });
                while_running(running.clone(), work)
            });
        }
    }

    fn run_controllers(&self, settings: &Settings, pki: &ServerPki, clock: &Clock, parts: &Supervisor) {
        let options = isopod_controllers::Options {
            cluster_cidr: Some(settings.args.cluster_cidr.clone()),
            service_cidr: settings.args.service_cidr.clone(),
            root_ca_pem: pki.server_ca.cert_pem.clone(),
            token_issuer: self.api.config.tokens.clone().map(token_issuer),
            signers: self.signers.clone(),
            queues: self.queues.clone(),
            ..Default::default()
        };
        let (api, time, stop) = (self.api.clone(), clock.clone(), parts.token());
        let election = elect(settings, &self.client(isopod_controllers::MANAGER), clock, "kube-controller-manager");
        let running = self.api.config.components.controller_manager.clone().unwrap_or_default();
        parts.keep("controllers", move || {
            let (api, options, time) = (api.clone(), options.clone(), time.clone());
            let work = in_turn(election.clone(), stop.clone(), move |stop| {
                let api = api.clone();
                let factory = move |user: &str| isopod_client::in_process(api.service(), identity(user));
                isopod_controllers::run(factory, options.clone(), time.clone(), stop).boxed()
            });
            while_running(running.clone(), work)
        });
    }

    /// Returns when `/readyz` says so.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let client = self.client("system:admin");
        let request = http::Request::get("/readyz").body(Vec::new())?;
        let text = client.request_text(request).await.context("the API server does not become ready")?;
        if text.trim() == "ok" { Ok(()) } else { bail!("the API server is not ready: {text}") }
    }

    pub async fn node_ready(&self, name: &str) -> anyhow::Result<()> {
        let informers = Informers::new(self.client("system:admin"));
        let node = informers.get::<Node>(Node::resource(), ListScope::fields(format!("metadata.name={name}")));
        let mut changes = node.subscribe();
        while let Some(change) = changes.recv().await {
            if let Change::Applied { new, .. } = change
                && new.condition("Ready").is_some_and(|c| c.status == "True")
            {
                return Ok(());
            }
        }
        bail!("the API server ended before the node was ready")
    }

    pub async fn close(&self) -> anyhow::Result<()> {
        self.api.stop();
        self.api.farewell().await;
        if let Some(audit) = &self.api.config.audit {
            audit.close().await;
        }
        self.store.close().await.context("cannot close the datastore")
    }
}

/// How much clients may ask.
fn limit(config: &mut Config, limits: &RequestLimits) -> anyhow::Result<()> {
    let (reading, mutating) = (limits.max_requests_inflight as usize, limits.max_mutating_requests_inflight as usize);
    if limits.enable_priority_and_fairness && reading + mutating == 0 {
        bail!(
            "--max-requests-inflight + --max-mutating-requests-inflight must be greater than 0 with priority and fairness"
        );
    }
    if limits.request_timeout.is_zero() {
        bail!("--request-timeout can not be 0");
    }
    config.priority_and_fairness = limits.enable_priority_and_fairness;
    (config.max_requests_in_flight, config.max_mutating_requests_in_flight) = (reading, mutating);
    config.request_timeout = limits.request_timeout;
    config.min_request_timeout = Duration::from_secs(limits.min_request_timeout.into());
    config.goaway_chance = limits.goaway_chance;
    Ok(())
}

/// A candidate for upstream's lease; `None` where no other server can be: a single one writes nothing while nothing happens.
fn elect(settings: &Settings, client: &kube::Client, clock: &Clock, lease: &str) -> Option<Election> {
    let candidate = || Election::new(client.clone(), clock.clone(), lease, &settings.node_name, Timing::default());
    settings.datastore.is_shared().then(candidate)
}

/// Does the work, and says so where it is asked for.
async fn while_running(running: Running, work: impl Future<Output = ()>) {
    let _run = running.begin();
    work.await;
}

/// Runs the work, while it leads if there is an election, until `stop`.
async fn in_turn<F>(election: Option<Election>, stop: CancellationToken, work: F)
where
    F: Fn(CancellationToken) -> BoxFuture<'static, ()>,
{
    match election {
        Some(election) => election.lead(stop, work).await,
        None => work(stop).await,
    }
}

/// The user that a name stands for, with the groups that such names have.
fn identity(user: &str) -> UserInfo {
    match user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, _)) => {
            UserInfo::new(user, &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")])
        }
        None if user == "system:admin" => UserInfo::new(user, &["system:masters"]),
        None if user.starts_with("system:node:") => UserInfo::new(user, &["system:nodes"]),
        None => UserInfo::new(user, &[]),
    }
}

pub async fn open_store(settings: &Settings, clock: Clock) -> anyhow::Result<Arc<dyn Store>> {
    let ephemeral = EPHEMERAL.iter().map(|p| p.as_bytes().into()).collect();
    let options = Options { ephemeral, clock, ..Default::default() };
    settings.datastore.open(&settings.args.datastore, settings.paths.store(), options).await
}

fn tokens(settings: &Settings, pki: &ServerPki) -> anyhow::Result<token::Tokens> {
    let args = &settings.args.auth;
    let read =
        |file: &std::path::PathBuf| std::fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    // The server's own key counts as long as it signs.
    let own = args.service_account_signing_key_file.is_none().then(|| pki.service_account_public_pem.clone());
    let mut public_pems: Vec<Vec<u8>> = own.map(String::into_bytes).into_iter().collect();
    for file in &args.service_account_key_file {
        public_pems.push(read(file)?);
    }
    let private_pem = match &args.service_account_signing_key_file {
        Some(file) => read(file)?,
        None => pki.service_account_key_pem.clone().into_bytes(),
    };
    token::Tokens::new(token::Settings {
        issuers: args.issuers(&settings.args.cluster_domain),
        api_audiences: args.api_audiences.clone(),
        private_pem,
        public_pems,
    })
    .context("cannot use the service-account key")
}

/// Who signs the tokens that stand in secrets.
fn token_issuer(tokens: Arc<token::Tokens>) -> TokenIssuer {
    TokenIssuer::new(move |bearer| {
        let account = token::Subject {
            namespace: bearer.namespace.to_owned(),
            name: bearer.account.to_owned(),
            uid: bearer.account_uid.to_owned(),
        };
        tokens.issue_legacy(&account, bearer.secret).map_err(|e| Chain(&e).to_string())
    })
}

/// What every cluster has: namespaces, priority classes, RBAC, and the service of its DNS.
fn bootstrap(settings: &Settings) -> Vec<Value> {
    let mut objects = isopod_kinds::bootstrap::objects(std::slice::from_ref(&settings.args.service_cidr));
    objects.extend(isopod_auth::bootstrap::objects());
    if !settings.args.disable_agent {
        objects.push(dns_service(settings));
        objects.extend(node_rights());
    }
    objects
}

/// Every node answers this address itself (see the proxy's local overrides), so the service has no selector.
fn dns_service(settings: &Settings) -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "targetPort": 53, "protocol": protocol});
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {
            "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}},
        "spec": {"clusterIP": settings.cluster_dns.to_string(), "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")]},
    })
}

/// What proxies and DNS servers of nodes read beyond upstream's roles: host ports, and names of pods.
fn node_rights() -> Vec<Value> {
    let rule = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["list", "watch"]});
    let mut objects = rights("system:isopod-proxy", super::node::PROXY_USER, json!([rule("", &["pods"])]));
    let core = rule("", &["services", "namespaces", "pods"]);
    let slices = rule("discovery.k8s.io", &["endpointslices"]);
    objects.extend(rights("system:isopod-dns", super::node::DNS_USER, json!([core, slices])));
    objects
}

/// A cluster role, and its binding to a user.
fn rights(name: &str, user: &str, rules: Value) -> Vec<Value> {
    let group = "rbac.authorization.k8s.io";
    vec![
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}),
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}]}),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ephemeral_is_so_to_api_server_and_store() {
        let kinds = isopod_kinds::table::builtin();
        let of_kind = |kind: &isopod_kinds::Kind| {
            let prefix = format!("/registry/{}/", kind.storage.prefix);
            let below = kind.storage.ephemeral_below.iter().map(|begin| format!("{prefix}{begin}"));
            let mut all: Vec<String> = below.collect();
            all.extend(kind.storage.ephemeral.then_some(prefix));
            all
        };
        let mut all: Vec<String> = kinds.iter().flat_map(|kind| of_kind(kind)).collect();
        all.sort();
        all.dedup();
        assert_eq!(all, EPHEMERAL);
    }
}
