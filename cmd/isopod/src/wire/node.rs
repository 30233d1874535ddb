//! This machine's node: runtime, pod network, kubelet, proxy, DNS, and the agent's end of the tunnel.

use super::control_plane::ControlPlane;
use super::{Settings, TABLE_PREFIX};
use anyhow::{Context, anyhow, bail};
use hyper_util::rt::TokioIo;
use isopod_base::clock::Clock;
use isopod_base::supervisor::Supervisor;
use isopod_client::tunnel::{self, TcpDial};
use isopod_client::views::Node as NodeView;
use isopod_client::{Change, Informers, ListScope};
use isopod_dns::{Dns, DnsConfig};
use isopod_kubelet::config::Taint;
use isopod_kubelet::{Kubelet, KubeletConfig};
use isopod_proxy::{LocalOverride, Proxy, ProxyConfig};
use isopod_runtime::network::{Cidr, NetworkConfig, PodNetwork};
use isopod_runtime::{IsopodRuntime, RuntimeConfig};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The users as which proxy and DNS read the API.
pub const PROXY_USER: &str = "system:kube-proxy";
pub const DNS_USER: &str = "system:isopod-dns";
/// Bytes under way in the in-process tunnel.
const PIPE: usize = 256 << 10;

/// A running node.
pub struct Node {
    kubelet: Arc<Kubelet>,
    services: Supervisor,
}

impl Node {
    pub async fn start(
        settings: &Arc<Settings>,
        control_plane: &ControlPlane,
        clock: Clock,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let cluster_cidr: Cidr = settings.args.cluster_cidr.parse().context("invalid --cluster-cidr")?;
        let network = PodNetwork::open(NetworkConfig {
            service_cidr: Some(settings.args.service_cidr.parse().context("invalid --service-cidr")?),
            ..super::network_config(&settings.paths, cluster_cidr)
        })
        .context("cannot set up the pod network")?;
        let runtime = open_runtime(settings, network.clone()).await?;
        let listen = SocketAddr::new(settings.args.bind_address, settings.args.kubelet_port);
        let listener = TcpListener::bind(listen).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => anyhow!(
                "cannot listen on {listen}: the port is in use; stop what listens there (`ss -ltnp`) or choose another \
                 with --kubelet-port"
            ),
            _ => anyhow::Error::new(e).context(format!("cannot listen on {listen}")),
        })?;
        let user = format!("system:node:{}", settings.node_name);
        let informers = Informers::with_clock(control_plane.client(&user), clock.clone());
        let config = kubelet_config(settings, listen)?;
        let kubelet = Kubelet::start(config, &informers, runtime, clock.clone(), stop.clone())
            .await
            .context("cannot start the kubelet")?;
        let identity = settings.pki.kubelet_serving(&settings.node_name, vec![settings.node_ip])?;
        let tls = isopod_pki::tls::server("kubelet", &identity, &settings.pki.client_ca.cert_pem)?;
        tokio::spawn(kubelet.clone().serve(listener, Arc::new(tls), stop.clone()));
        open_tunnel(settings, control_plane, cluster_cidr);
        let services = Supervisor::new();
        tokio::spawn(follow_pod_range(Followed {
            settings: settings.clone(),
            network,
            nodes: informers,
            proxy: Informers::with_clock(control_plane.client(PROXY_USER), clock.clone()),
            dns: Informers::with_clock(control_plane.client(DNS_USER), clock.clone()),
            clock,
            services: services.clone(),
        }));
        Ok(Node { kubelet, services })
    }

    /// Ends the node's parts; pods and the service rules stay.
    pub async fn stopped(&self) {
        self.services.shutdown().await;
        self.kubelet.stopped().await;
    }
}

async fn open_runtime(settings: &Settings, network: Arc<PodNetwork>) -> anyhow::Result<Arc<IsopodRuntime>> {
    IsopodRuntime::open(RuntimeConfig {
        data_dir: settings.paths.runtime(),
        state_dir: settings.paths.run.clone(),
        cgroup_root: settings.args.cgroup_root.clone(),
        shim: settings.shim,
        network: Some(network),
        registries: settings.args.private_registry.clone(),
        seccomp_root: settings.paths.kubelet().join("seccomp"),
    })
    .await
    .context("cannot open the container runtime; `isopod check` tells what this machine lacks")
}

fn kubelet_config(settings: &Settings, listen: SocketAddr) -> anyhow::Result<KubeletConfig> {
    let args = &settings.args;
    let mut labels = std::collections::BTreeMap::new();
    for label in &args.node_label {
        let (key, value) = label.split_once('=').with_context(|| format!("--node-label {label:?}: write KEY=VALUE"))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    let taints = args.node_taint.iter().map(|t| Taint::parse(t)).collect::<Result<Vec<_>, _>>()?;
    Ok(KubeletConfig {
        node_name: settings.node_name.clone(),
        node_ips: vec![settings.node_ip],
        labels,
        taints,
        root_dir: settings.paths.kubelet(),
        pod_log_dir: settings.paths.logs(),
        cgroup_root: args.cgroup_root.clone(),
        cluster_dns: vec![settings.cluster_dns],
        cluster_domain: args.cluster_domain.clone(),
        resolv_conf: args.resolv_conf.clone(),
        listen,
        max_pods: args.max_pods,
        // Secure by default: a pod that names no profile gets the runtime's (KEP-2413).
        seccomp_default: true,
        ..Default::default()
    })
}

/// The same tunnel that a remote node has, over a pipe instead of TLS.
fn open_tunnel(settings: &Settings, control_plane: &ControlPlane, pods: Cidr) {
    let (server, agent) = tokio::io::duplex(PIPE);
    let (tunnels, node) = (control_plane.api.tunnels(), settings.node_name.clone());
    tokio::spawn(async move {
        if let Err(e) = tunnels.attach(&node, TokioIo::new(server)).await {
            tracing::warn!(node, error = %e, "the tunnel ended");
        }
    });
    let (own, port) = (settings.node_ip, settings.args.kubelet_port);
    // The kubelet's endpoints, pods and services: nothing else on this machine or its network.
    let allowed = move |to: SocketAddr| {
        let kubelet = (to.ip() == own || to.ip().is_loopback()) && to.port() == port;
        kubelet || matches!(to.ip(), IpAddr::V4(ip) if pods.contains(ip))
    };
    tokio::spawn(async move {
        if let Err(e) = tunnel::serve(agent, Arc::new(TcpDial(allowed))).await {
            tracing::warn!(error = %isopod_base::errors::Chain(&e), "the tunnel ended");
        }
    });
}

struct Followed {
    settings: Arc<Settings>,
    network: Arc<PodNetwork>,
    nodes: Informers,
    proxy: Informers,
    dns: Informers,
    clock: Clock,
    services: Supervisor,
}

/// Waits until the node has its range of pod addresses, then opens the network and starts what listens on the bridge.
async fn follow_pod_range(f: Followed) {
    let only = ListScope::fields(format!("metadata.name={}", f.settings.node_name));
    let mut changes = f.nodes.get::<NodeView>(NodeView::resource(), only).subscribe();
    while let Some(change) = changes.recv().await {
        let Change::Applied { new, .. } = change else { continue };
        if new.spec.pod_cidr.is_empty() {
            continue;
        }
        match open_network(&f, &new.spec.pod_cidr) {
            Ok(gateway) => return start_services(&f, gateway),
            Err(e) => {
                tracing::error!(cidr = new.spec.pod_cidr, error = %isopod_base::errors::Chain(e.as_ref()), "cannot set up the pod network")
            }
        }
    }
}

fn open_network(f: &Followed, pod_cidr: &str) -> anyhow::Result<Ipv4Addr> {
    f.network.set_pod_cidr(pod_cidr.parse()?)?;
    match f.network.gateway() {
        Some(ip) => Ok(ip),
        None => bail!("the bridge has no address"),
    }
}

fn start_services(f: &Followed, gateway: Ipv4Addr) {
    let resolver = SocketAddrV4::new(gateway, 53);
    let (args, cidr) = (&f.settings.args, |c: &str| c.parse::<Cidr>().map(|c| (c.net, c.prefix)).ok());
    let mut proxy = ProxyConfig::new(&f.settings.node_name, cidr(&args.cluster_cidr).unwrap_or((gateway, 32)));
    proxy.service_cidr = cidr(&args.service_cidr);
    proxy.table_prefix = TABLE_PREFIX.into();
    proxy.local_overrides =
        vec![LocalOverride { namespace: "kube-system".into(), name: "kube-dns".into(), port: 53, target: resolver }];
    let (informers, clock, stop) = (f.proxy.clone(), f.clock.clone(), f.services.token());
    f.services.spawn("proxy", move || Proxy::run(proxy.clone(), informers.clone(), clock.clone(), stop.clone()));
    let mut dns = DnsConfig::new(&args.cluster_domain, vec![resolver.into()]);
    dns.service_ip = Some(f.settings.cluster_dns);
    dns.resolv_conf.clone_from(&args.resolv_conf);
    let (informers, stop) = (f.dns.clone(), f.services.token());
    f.services.spawn("dns", move || Dns::run(dns.clone(), informers.clone(), stop.clone()));
}
