//! Where the parts of a server meet, and nowhere else: each is given its clients, its settings and the token that stops it.

mod control_plane;
mod node;

use crate::args::ServerArgs;
use crate::paths::Paths;
use anyhow::Context;
use control_plane::ControlPlane;
use isopod_base::clock::Clock;
use isopod_pki::ServerPki;
use isopod_runtime::network::{Cidr, NetworkConfig, PodNetwork};
use node::Node;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What was decided before anything was started.
pub struct Settings {
    pub args: ServerArgs,
    pub paths: Paths,
    pub pki: ServerPki,
    pub node_name: String,
    pub node_ip: IpAddr,
    pub advertise: IpAddr,
    pub cluster_dns: IpAddr,
    pub shim: &'static [u8],
}

/// A running server.
pub struct Cluster {
    pub settings: Arc<Settings>,
    control_plane: ControlPlane,
    node: Option<Node>,
    tasks: TaskTracker,
    /// Stops controllers, scheduler and node.
    stop: CancellationToken,
    /// Stops the API server, after those that use it.
    stop_api: CancellationToken,
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

pub async fn start(settings: Settings, listener: TcpListener) -> anyhow::Result<Cluster> {
    let settings = Arc::new(settings);
    let clock = Clock::system();
    let (tasks, stop, stop_api) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
    let control_plane = ControlPlane::start(&settings, clock.clone()).await?;
    let tls = isopod_pki::tls::server("kube-apiserver", &settings.pki.serving, &settings.pki.client_ca.cert_pem)?;
    tasks.spawn(control_plane.api.clone().serve(listener, Arc::new(tls), stop_api.clone()));
    // Watches of in-process clients end with the API server's own token; those over TLS with the listener's.
    control_plane.bootstrap().await.context("cannot write the objects that every cluster has")?;
    control_plane.run_controllers(&settings, &clock, &tasks, &stop);
    let node = if settings.args.disable_agent {
        None
    } else {
        Some(Node::start(&settings, &control_plane, clock, stop.clone()).await?)
    };
    Ok(Cluster { settings, control_plane, node, tasks, stop, stop_api })
}

impl Cluster {
    /// Returns when the API server answers `/readyz`.
    pub async fn api_ready(&self) -> anyhow::Result<()> {
        self.control_plane.ready().await
    }

    /// Returns when this machine's node says that it is ready.
    pub async fn node_ready(&self) -> anyhow::Result<()> {
        self.control_plane.node_ready(&self.settings.node_name).await
    }

    pub fn stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Returns when a part has ended that the others cannot do without.
    pub async fn failed(&self) {
        self.stop.cancelled().await;
    }

    /// Stops the parts in order; pods keep running. What is ephemeral in the store is flushed.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.tasks.close();
        let ended = async {
            if let Some(node) = &self.node {
                node.stopped().await;
            }
            self.stop_api.cancel();
            self.tasks.wait().await;
        };
        if tokio::time::timeout(STOPPING, ended).await.is_err() {
            self.stop_api.cancel();
            tracing::warn!("some parts did not stop in time");
        }
        self.control_plane.close().await
    }
}
