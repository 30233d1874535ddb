//! This machine's node: runtime, pod network, kubelet, proxy, DNS, and the agent's end of the tunnel.

use super::control_plane::ControlPlane;
use super::{Settings, TABLE_PREFIX};
use anyhow::{Context, bail};
use hyper_util::rt::TokioIo;
use isopod_apiserver::Tunnels;
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use isopod_base::supervisor::Supervisor;
use isopod_client::tunnel::{self, Dial, TcpDial};
use isopod_client::views::Node as NodeView;
use isopod_client::{Change, Informers, ListScope};
use isopod_dns::{Dns, DnsConfig};
use isopod_kubelet::config::Taint;
use isopod_kubelet::{Kubelet, KubeletConfig};
use isopod_pki::{Own, ServerPki};
use isopod_proxy::{LocalOverride, Proxy, ProxyConfig};
use isopod_runtime::network::{Cidr, NetworkConfig, PodNetwork};
use isopod_runtime::{IsopodRuntime, RuntimeConfig};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The users as which proxy and DNS read the API.
pub const PROXY_USER: &str = "system:kube-proxy";
pub const DNS_USER: &str = "system:isopod-dns";
/// Bytes under way in the in-process tunnel.
const PIPE: usize = 256 << 10;

/// A running node.
pub struct Node {
    kubelet: Arc<Kubelet>,
}

impl Node {
    /// What runs beside the kubelet is in `parts`, and ends with it.
    pub async fn start(
        settings: &Arc<Settings>,
        pki: &ServerPki,
        control_plane: &ControlPlane,
        clock: Clock,
        listener: TcpListener,
        parts: &Supervisor,
    ) -> anyhow::Result<Self> {
        let cluster_cidr: Cidr = settings.args.cluster_cidr.parse().context("invalid --cluster-cidr")?;
        let network = PodNetwork::open(NetworkConfig {
            service_cidr: Some(settings.args.service_cidr.parse().context("invalid --service-cidr")?),
            ..super::network_config(&settings.paths, cluster_cidr)
        })
        .context("cannot set up the pod network")?;
        let runtime = open_runtime(settings, network.clone()).await?;
        let user = format!("system:node:{}", settings.node_name);
        let informers = Informers::with_clock(control_plane.client(&user), clock.clone());
        let services = watch::Sender::new(Some("the pod network and the service proxy are not up yet".to_owned()));
        let config =
            KubeletConfig { services: services.subscribe(), ..kubelet_config(settings, listener.local_addr()?)? };
        let kubelet = Kubelet::start(config, &informers, runtime, clock.clone(), parts)
            .await
            .context("cannot start the kubelet")?;
        let own = Own::Kubelet { node: settings.node_name.clone(), ips: vec![settings.node_ip] };
        let tls = isopod_pki::tls::server_showing("kubelet", pki.shown(own)?, &pki.client_ca.cert_pem)?;
        let tls = Arc::new(tls);
        parts.vital("the kubelet's listener", kubelet.clone().serve(listener, tls, parts.token()));
        let dial = Arc::new(TcpDial(allowed(settings, cluster_cidr)));
        keep_tunnel(parts, control_plane.api.tunnels(), &settings.node_name, dial);
        let followed = Arc::new(Followed {
            settings: settings.clone(),
            network,
            nodes: informers,
            proxy: Informers::with_clock(control_plane.client(PROXY_USER), clock.clone()),
            dns: Informers::with_clock(control_plane.client(DNS_USER), clock.clone()),
            clock,
            parts: parts.clone(),
            services,
        });
        parts.spawn("pod network", move || follow_pod_range(followed.clone()));
        Ok(Node { kubelet })
    }

    /// Returns when the node's status is one of this start.
    pub async fn reported(&self) {
        self.kubelet.reported().await;
    }

    /// Waits for the kubelet's end; pods and the service rules stay.
    pub async fn stopped(&self) {
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
    .context("cannot open the container runtime")
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
        eviction_hard: args.eviction_hard,
        // Secure by default: a pod that names no profile gets the runtime's (KEP-2413).
        seccomp_default: true,
        ..Default::default()
    })
}

/// The kubelet's endpoints, pods and services: nothing else on this machine or its network.
fn allowed(settings: &Settings, pods: Cidr) -> impl Fn(SocketAddr) -> bool + Send + Sync + 'static {
    let (own, port) = (settings.node_ip, settings.args.kubelet_port);
    move |to: SocketAddr| {
        let kubelet = (to.ip() == own || to.ip().is_loopback()) && to.port() == port;
        kubelet || matches!(to.ip(), IpAddr::V4(ip) if pods.contains(ip))
    }
}

/// The same tunnel that a remote node has, over a pipe instead of TLS; opened again whenever it ends.
fn keep_tunnel(parts: &Supervisor, tunnels: Arc<Tunnels>, node: &str, dial: Arc<dyn Dial>) {
    let (node, stop) = (node.to_owned(), parts.token());
    parts.keep("tunnel", move || {
        let (tunnels, node, dial, stop) = (tunnels.clone(), node.clone(), dial.clone(), stop.clone());
        async move {
            let (server, agent) = tokio::io::duplex(PIPE);
            let open = async {
                tokio::select! {
                    ended = tunnels.attach(&node, TokioIo::new(server)) => {
                        ended.err().map(|e| tracing::warn!(node, error = %Chain(&e), "the tunnel broke"))
                    }
                    ended = tunnel::serve(agent, dial) => {
                        ended.err().map(|e| tracing::warn!(node, error = %Chain(&e), "the tunnel broke"))
                    }
                }
            };
            stop.run_until_cancelled(open).await;
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
    parts: Supervisor,
    /// Why services and pods' connections do not work.
    services: watch::Sender<Option<String>>,
}

/// Waits until the node has its range of pod addresses, then opens the network and starts what listens on the bridge.
async fn follow_pod_range(f: Arc<Followed>) -> std::io::Result<()> {
    let only = ListScope::fields(format!("metadata.name={}", f.settings.node_name));
    let mut changes = f.nodes.get::<NodeView>(NodeView::resource(), only).subscribe();
    let stop = f.parts.token();
    while let Some(change) = stop.run_until_cancelled(changes.recv()).await {
        let Some(change) = change else {
            return Err(std::io::Error::other("the node's object is not watched any more"));
        };
        let Change::Applied { new, .. } = change else { continue };
        if new.spec.pod_cidr.is_empty() {
            continue;
        }
        match open_network(&f, &new.spec.pod_cidr) {
            Ok(gateway) => {
                start_services(&f, gateway);
                break;
            }
            Err(e) => {
                let why = format!("cannot set up the pod network: {}", Chain(e.as_ref()));
                tracing::error!(cidr = new.spec.pod_cidr, "{why}");
                f.services.send_replace(Some(why));
            }
        }
    }
    Ok(())
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
    proxy.trouble = f.services.clone();
    let (informers, clock, stop) = (f.proxy.clone(), f.clock.clone(), f.parts.token());
    f.parts.spawn("proxy", move || Proxy::run(proxy.clone(), informers.clone(), clock.clone(), stop.clone()));
    let mut dns = DnsConfig::new(&args.cluster_domain, vec![resolver.into()]);
    dns.service_ip = Some(f.settings.cluster_dns);
    dns.resolv_conf.clone_from(&args.resolv_conf);
    let (informers, stop) = (f.dns.clone(), f.parts.token());
    f.parts.spawn("dns", move || Dns::run(dns.clone(), informers.clone(), stop.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_apiserver::NodeDialer;
    use isopod_client::tunnel::{Dialing, Stream};
    use std::time::Duration;
    use tokio::io::AsyncReadExt;

    /// Says a word to whoever connects.
    fn says(word: &'static str) -> Arc<dyn Dial> {
        Arc::new(move |_: &str| -> Dialing {
            let (near, mut far) = tokio::io::duplex(64);
            Box::pin(async move {
                tokio::io::AsyncWriteExt::write_all(&mut far, word.as_bytes()).await?;
                Ok(Box::new(near) as Box<dyn Stream>)
            })
        })
    }

    /// What is said at the end of the node's tunnel, once there is one that says `word`.
    async fn hears(tunnels: &Arc<Tunnels>, word: &str) -> bool {
        let heard = async {
            loop {
                if let Ok(mut io) = tunnels.dial("n", "10.42.0.2:80").await {
                    let mut text = String::new();
                    if io.read_to_string(&mut text).await.is_ok() && text == word {
                        return;
                    }
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), heard).await.is_ok()
    }

    #[tokio::test]
    async fn a_tunnel_that_ends_is_opened_again() {
        let (parts, tunnels) = (Supervisor::new(), Arc::new(Tunnels::default()));
        keep_tunnel(&parts, tunnels.clone(), "n", says("own"));
        assert!(hears(&tunnels, "own").await);
        // A newer session takes the node's place, which ends the older one, and then goes away itself.
        let (server, agent) = tokio::io::duplex(1 << 10);
        let attached = tunnels.clone();
        let newer = tokio::spawn(async move { attached.attach("n", TokioIo::new(server)).await });
        let served = tokio::spawn(tunnel::serve(agent, says("other")));
        assert!(hears(&tunnels, "other").await);
        served.abort();
        newer.abort();
        assert!(hears(&tunnels, "own").await, "not opened again");
        parts.shutdown().await;
    }
}
