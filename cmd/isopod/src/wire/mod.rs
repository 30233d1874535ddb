//! Where the parts of a server meet, and nowhere else: each is given its clients, its settings and the token that stops it.

mod control_plane;
mod encryption;
mod follow;
mod node;
mod renewal;

use crate::admin_config::Held;
use crate::args::ServerArgs;
use crate::claim::{self, Lock};
use crate::endpoint::Endpoint;
use crate::paths::Paths;
use crate::probe;
use anyhow::Context;
use control_plane::ControlPlane;
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use isopod_base::supervisor::{Failure, Supervisor};
use isopod_pki::{Own, ServerPki};
use isopod_runtime::network::{Cidr, NetworkConfig, PodNetwork};
use isopod_store::Store;
use node::Node;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// What was decided before anything was started.
pub struct Settings {
    pub args: ServerArgs,
    /// All flags with their values, as `/flagz` shows them.
    pub flags: BTreeMap<String, String>,
    pub datastore: Endpoint,
    pub paths: Paths,
    pub host_name: String,
    pub node_name: String,
    pub node_ip: IpAddr,
    pub advertise: IpAddr,
    /// Of the service `kubernetes`.
    pub service_ip: IpAddr,
    pub cluster_dns: IpAddr,
    pub shim: &'static [u8],
}

/// What a server has for itself, taken before it writes anything that others read.
pub struct Claimed {
    clock: Clock,
    store: Arc<dyn Store>,
    api: TcpListener,
    kubelet: Option<TcpListener>,
    claims: Claims,
}

/// Held until the very end.
struct Claims {
    _data: Lock,
    _node: Option<claim::Node>,
}

impl Claimed {
    /// For a server that does not start after all.
    pub async fn give_back(self) {
        close(&*self.store).await;
    }
}

async fn close(store: &dyn Store) {
    if let Err(e) = store.close().await {
        tracing::warn!(error = %Chain(&e), "cannot close the datastore");
    }
}

/// The data directory, then the datastore (of this version), then the ports, then this machine's pod network; and the
/// machine must be able to run a node.
pub async fn claim(settings: &Settings) -> anyhow::Result<Claimed> {
    let clock = Clock::system();
    let data = claim::data_directory(&settings.paths.data)?;
    let place = settings.paths.data.clone();
    // Beside the rest, which does not wait for the kernel.
    let probing = (!settings.args.disable_agent)
        .then(|| tokio::task::spawn_blocking(move || probe::require(probe::NODE, &place)));
    let store = control_plane::open_store(settings, clock.clone()).await?;
    let places = async {
        let claimed = claim_places(settings).await?;
        if let Some(probing) = probing {
            probing.await??;
        }
        anyhow::Ok(claimed)
    };
    match places.await {
        Ok((api, kubelet, node)) => {
            Ok(Claimed { clock, store, api, kubelet, claims: Claims { _data: data, _node: node } })
        }
        Err(e) => {
            close(&*store).await;
            Err(e)
        }
    }
}

async fn claim_places(settings: &Settings) -> anyhow::Result<(TcpListener, Option<TcpListener>, Option<claim::Node>)> {
    let args = &settings.args;
    let api = listen(SocketAddr::new(args.bind_address, args.https_listen_port), "--https-listen-port").await?;
    if args.disable_agent {
        return Ok((api, None, None));
    }
    let kubelet = listen(SocketAddr::new(args.bind_address, args.kubelet_port), "--kubelet-port").await?;
    let node = claim::node(&args.cgroup_root)?;
    Ok((api, Some(kubelet), Some(node)))
}

async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let why = match e.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!("the port is in use; stop what listens there (`ss -ltnp`) or choose another with {flag}")
            }
            std::io::ErrorKind::PermissionDenied => format!("not permitted; choose a port above 1023 with {flag}"),
            std::io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address; choose another with --bind-address".into()
            }
            _ => return anyhow::Error::new(e).context(format!("cannot listen on {address}")),
        };
        anyhow::anyhow!("cannot listen on {address}: {why}")
    })
}

/// A running server.
pub struct Cluster {
    pub settings: Arc<Settings>,
    control_plane: ControlPlane,
    node: Option<Node>,
    /// Controllers, scheduler and node.
    parts: Supervisor,
    /// The API server's listener, which ends after those that use it.
    api: Supervisor,
    kubeconfig: Arc<Held>,
    _claims: Claims,
}

/// Tables of ours in nftables begin with this.
pub const TABLE_PREFIX: &str = "isopod";

/// Removes bridge, links and rules of the pod network.
pub fn remove_network(paths: &Paths) -> anyhow::Result<()> {
    let everything = Cidr { net: Ipv4Addr::UNSPECIFIED, prefix: 0 };
    Ok(PodNetwork::cleanup(&network_config(paths, everything))?)
}

fn network_config(paths: &Paths, cluster_cidr: Cidr) -> NetworkConfig {
    NetworkConfig {
        bridge: "isopod0".into(),
        pod_cidr: None,
        cluster_cidr,
        service_cidr: None,
        mtu: None,
        state_dir: paths.network(),
        table_prefix: TABLE_PREFIX.into(),
    }
}

/// How long the parts may take to stop before they are left behind.
const STOPPING: Duration = Duration::from_secs(10);

/// `kubeconfig`: the administrator's, held until the end.
pub async fn start(settings: Settings, pki: ServerPki, kubeconfig: Held, claimed: Claimed) -> anyhow::Result<Cluster> {
    let Claimed { clock, store, api, kubelet, claims } = claimed;
    let control_plane = match ControlPlane::start(&settings, &pki, store.clone(), clock.clone()).await {
        Ok(started) => started,
        Err(e) => {
            close(&*store).await;
            return Err(e);
        }
    };
    let mut cluster = Cluster {
        settings: Arc::new(settings),
        control_plane,
        node: None,
        parts: Supervisor::new(),
        api: Supervisor::new(),
        kubeconfig: Arc::new(kubeconfig),
        _claims: claims,
    };
    match cluster.start_parts(&pki, clock.clone(), api, kubelet).await {
        Ok(()) => {
            renewal::start(Arc::new(pki), cluster.kubeconfig.clone(), clock, &cluster.parts);
            Ok(cluster)
        }
        Err(e) => {
            if let Err(also) = cluster.shutdown().await {
                tracing::warn!(error = %Chain(also.as_ref()), "after the failed start");
            }
            Err(e)
        }
    }
}

impl Cluster {
    async fn start_parts(
        &mut self,
        pki: &ServerPki,
        clock: Clock,
        api: TcpListener,
        kubelet: Option<TcpListener>,
    ) -> anyhow::Result<()> {
        let (shown, authorities) = (pki.shown(Own::Serving)?, &self.control_plane.client_authorities);
        let tls = isopod_pki::tls::server_showing("kube-apiserver", shown, authorities)?;
        let serving = self.control_plane.api.clone().serve(api, Arc::new(tls), self.api.token());
        self.api.vital("the API server's listener", serving);
        // Watches of in-process clients end with the API server's own token; those over TLS with the listener's.
        self.control_plane.bootstrap().await.context("cannot write the objects that every cluster has")?;
        self.control_plane.follow_files(&self.parts);
        self.control_plane.run_loops(&self.settings, pki, &clock, &self.parts);
        if let Some(listener) = kubelet {
            let (settings, parts) = (&self.settings, &self.parts);
            self.node = Some(Node::start(settings, pki, &self.control_plane, clock, listener, parts).await?);
        }
        Ok(())
    }

    /// Returns when the API server answers `/readyz`.
    pub async fn api_ready(&self) -> anyhow::Result<()> {
        self.control_plane.ready().await
    }

    /// Returns when the kubelet of this start has reported and this machine's node is ready.
    pub async fn node_ready(&self) -> anyhow::Result<()> {
        if let Some(node) = &self.node {
            node.reported().await;
        }
        self.control_plane.node_ready(&self.settings.node_name).await
    }

    /// Returns when a part has ended that the others cannot do without.
    pub async fn failed(&self) -> Failure {
        tokio::select! {
            failure = self.api.failed() => failure,
            failure = self.parts.failed() => failure,
        }
    }

    /// Stops the parts in order; pods keep running. What is ephemeral in the store is flushed.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        let ended = async {
            self.parts.shutdown().await;
            if let Some(node) = &self.node {
                node.stopped().await;
            }
            self.api.shutdown().await;
        };
        if tokio::time::timeout(STOPPING, ended).await.is_err() {
            self.api.token().cancel();
            tracing::warn!("some parts did not stop in time");
        }
        self.control_plane.close().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_flag() {
        let first = listen("127.0.0.1:0".parse().unwrap(), "--x").await.unwrap();
        let taken = first.local_addr().unwrap();
        for flag in ["--https-listen-port", "--kubelet-port"] {
            let err = listen(taken, flag).await.unwrap_err().to_string();
            assert!(err.contains("in use") && err.contains(flag) && err.contains(&taken.to_string()), "{err}");
        }
    }
}
