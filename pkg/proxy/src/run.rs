//! The loop: waits for a change of services, slices, host ports or the node, and brings the table in line.
//!
//! Invariants: nothing is written before the first complete lists are here, so a restart never empties a working table; all
//! changes that wait are taken together; after a failure the whole table is written again, with a growing pause.

use crate::config::{HostPort, HostPorts, ProxyConfig};
use crate::plan::{HOST_PORTS, Node, host_port_rows, host_ports_of, service_of, service_rows};
use crate::select::NodeFacts;
use crate::stale::{is_stale, touched};
use crate::state::{Changes, Class, Endpoint, Front, Key, Masquerade, Protocol, Refusal, State, Target, Value};
use crate::table::ServiceTable;
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use isopod_client::informer::Receiver;
use isopod_client::views::{self, EndpointSlice, Pod, Service};
use isopod_client::{Change, Informer, Informers, ListScope};
use isopod_sys::netlink::{NetlinkError, RouteSocket};
use isopod_sys::nft::{Batch, NftError, NftSocket};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const BY_SERVICE: &str = "service";
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_WAIT_FOR_PODS: Duration = Duration::from_secs(5);
/// A batch larger than this is committed on a thread that may block.
const INLINE_BATCH: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("cannot program the service table")]
    Table(#[from] NftError),
    #[error("cannot clean up tracked UDP flows")]
    Stale(#[from] NetlinkError),
    #[error("the thread that wrote the service table failed")]
    Thread(#[from] tokio::task::JoinError),
}

/// What the proxy has done so far.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Batches that the kernel took.
    pub syncs: AtomicU64,
    /// Of these, replacements of the whole table.
    pub full_syncs: AtomicU64,
    pub failures: AtomicU64,
    /// Nanoseconds that planning and writing the last batch took.
    pub last_sync_nanos: AtomicU64,
    pub stale_flows_deleted: AtomicU64,
}

/// The service proxy.
pub struct Proxy;

impl Proxy {
    /// Keeps this node's table in line with the cluster until `stop`. The table stays when it ends: services keep working
    /// while the program is replaced.
    pub async fn run(
        config: ProxyConfig,
        informers: Informers,
        clock: Clock,
        stop: CancellationToken,
    ) -> Result<(), ProxyError> {
        let trouble = config.trouble.clone();
        match stop.run_until_cancelled(run(config, informers, clock)).await {
            Some(Err(e)) => {
                tell(&trouble, &e);
                Err(e)
            }
            _ => Ok(()),
        }
    }

    /// Writes a table with a service of every class into the calling thread's network namespace: does this kernel take it?
    pub fn try_table() -> Result<(), ProxyError> {
        let cluster = (Ipv4Addr::new(10, 42, 0, 0), 16);
        let mut config = ProxyConfig::new("probe", cluster);
        config.table_prefix = "isopod-probe".into();
        config.service_cidr = Some((Ipv4Addr::new(10, 43, 0, 0), 16));
        Ok(NftSocket::open()?.commit(ServiceTable::new(&config).replace(&sample(cluster.0)))?)
    }

    /// Removes the table that a proxy with this prefix made.
    pub fn cleanup(table_prefix: &str) -> Result<(), ProxyError> {
        let mut config = ProxyConfig::new("", (Ipv4Addr::UNSPECIFIED, 0));
        config.table_prefix = table_prefix.to_owned();
        Ok(NftSocket::open()?.commit(ServiceTable::new(&config).removal())?)
    }
}

/// Rows of every kind: services with and without affinity, a host port, and what is refused.
fn sample(pods: Ipv4Addr) -> State {
    let pod = SocketAddrV4::new(pods, 80);
    let (mut state, mut rows, mut port) = (State::default(), Vec::new(), 0);
    for masquerade in [Masquerade::Outsiders, Masquerade::All, Masquerade::Nothing] {
        for (affinity, any_address, inside) in [(0, false, false), (10_800, true, false), (0, false, true)] {
            port += 1;
            let number = if affinity > 0 { state.number("sample", Protocol::Tcp, port, pod) } else { 0 };
            let endpoints = [Endpoint { address: pod, number }; 2].into();
            let class = Class { masquerade, endpoints: 2, affinity, any_address, inside };
            let ip = if any_address { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::new(10, 43, 0, 1) };
            let front = Front { ip, protocol: Protocol::Tcp, port };
            let key = if inside { Key::Inside(front) } else { Key::Service(front) };
            rows.push((key, Value::Target(Target { class, endpoints })));
            if affinity > 0 {
                rows.push((Key::Kept(Protocol::Tcp, number), Value::Address(pod)));
            }
        }
    }
    for refusal in [Refusal::Reject, Refusal::Drop] {
        port += 1;
        let front = Front { ip: Ipv4Addr::new(10, 43, 0, 1), protocol: Protocol::Udp, port };
        rows.push((Key::Refused(front), Value::Refusal(refusal)));
    }
    rows.push((Key::ClusterIp(Ipv4Addr::new(10, 43, 0, 1)), Value::None));
    let host = HostPort { protocol: Protocol::Tcp, host_ip: None, host_port: 99, pod };
    rows.extend(host_port_rows(&[host]));
    state.set("sample", rows, &mut Changes::default());
    state
}

/// Says what went wrong, unless there is a table that services work with.
fn tell(trouble: &watch::Sender<Option<String>>, e: &ProxyError) {
    trouble.send_if_modified(|t| t.is_some() && t.replace(format!("service proxy: {}", Chain(e))).is_some());
}

/// The informers' side.
struct Sources {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<views::Node>,
    pods: Option<Informer<Pod>>,
    service_changes: Receiver<Service>,
    slice_changes: Receiver<EndpointSlice>,
    node_changes: Receiver<views::Node>,
    pod_changes: Option<Receiver<Pod>>,
    given: Option<watch::Receiver<Vec<HostPort>>>,
}

/// What must be planned again.
#[derive(Default)]
struct Dirty {
    services: BTreeSet<String>,
    node: bool,
    host_ports: bool,
}

impl Sources {
    fn new(config: &ProxyConfig, informers: &Informers) -> Self {
        let services = informers.get::<Service>(Service::resource(), ListScope::all());
        let slices = informers.get::<EndpointSlice>(EndpointSlice::resource(), ListScope::all());
        slices.add_index(BY_SERVICE, |s| service_of(s).into_iter().collect());
        let this_node = ListScope::fields(format!("metadata.name={}", config.node_name));
        let nodes = informers.get::<views::Node>(views::Node::resource(), this_node);
        let mine = || ListScope::fields(format!("spec.nodeName={}", config.node_name));
        let pods = matches!(config.host_ports, HostPorts::Pods).then(|| informers.get::<Pod>(Pod::resource(), mine()));
        let given = match &config.host_ports {
            HostPorts::Given(ports) => Some(ports.clone()),
            _ => None,
        };
        Sources {
            service_changes: services.subscribe(),
            slice_changes: slices.subscribe(),
            node_changes: nodes.subscribe(),
            pod_changes: pods.as_ref().map(Informer::subscribe),
            services,
            slices,
            nodes,
            pods,
            given,
        }
    }

    /// Waits for complete lists and answers that everything is to be planned. Services do not wait long for host ports: an
    /// identity that may not list pods must not cost the node its services.
    async fn first(&mut self, clock: &Clock) -> Dirty {
        self.services.synced().await;
        self.slices.synced().await;
        if let Some(pods) = &self.pods {
            tokio::select! {
                () = pods.synced() => {}
                () = clock.sleep(LONGEST_WAIT_FOR_PODS) => tracing::warn!("host ports are not served yet: pods cannot be listed"),
            }
        }
        let mut dirty = Dirty { node: true, host_ports: true, ..Dirty::default() };
        self.drain(&mut dirty);
        dirty
    }

    /// Waits for a change, then takes all that wait. `None`: the informers have ended.
    async fn next(&mut self) -> Option<Dirty> {
        let mut dirty = Dirty::default();
        let pods = async {
            match &mut self.pod_changes {
                Some(changes) => changes.recv().await,
                None => std::future::pending().await,
            }
        };
        let given = async {
            let changed = match &mut self.given {
                Some(ports) => ports.changed().await.is_ok(),
                None => false,
            };
            // The giver may end first (at shutdown): what it said last stays.
            if !changed {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            c = self.service_changes.recv() => dirty.service(&c?),
            c = self.slice_changes.recv() => dirty.slice(&c?),
            c = self.node_changes.recv() => { c?; dirty.node = true; }
            c = pods => { c?; dirty.host_ports = true; }
            () = given => dirty.host_ports = true,
        }
        self.drain(&mut dirty);
        Some(dirty)
    }

    fn drain(&mut self, dirty: &mut Dirty) {
        while let Ok(c) = self.service_changes.try_recv() {
            dirty.service(&c);
        }
        while let Ok(c) = self.slice_changes.try_recv() {
            dirty.slice(&c);
        }
        while self.node_changes.try_recv().is_ok() {
            dirty.node = true;
        }
        while self.pod_changes.as_mut().is_some_and(|c| c.try_recv().is_ok()) {
            dirty.host_ports = true;
        }
    }

    fn host_ports(&mut self) -> Vec<HostPort> {
        match (&self.pods, &mut self.given) {
            (Some(pods), _) => host_ports_of(&pods.list()),
            (None, Some(given)) => given.borrow_and_update().clone(),
            _ => Vec::new(),
        }
    }

    fn zone(&self, node: &str) -> String {
        let node = self.nodes.get("", node);
        node.and_then(|n| n.metadata.labels.get(ZONE_LABEL).cloned()).unwrap_or_default()
    }
}

impl Dirty {
    fn service(&mut self, change: &Change<Service>) {
        if let Change::Applied { new: s, .. } | Change::Deleted(s) = change {
            self.services.insert(format!("{}/{}", s.metadata.namespace, s.metadata.name));
        }
    }

    fn slice(&mut self, change: &Change<EndpointSlice>) {
        let slices = match change {
            Change::Applied { old, new } => [old.as_deref(), Some(&**new)],
            Change::Deleted(old) => [Some(&**old), None],
            Change::Resync => [None, None],
        };
        self.services.extend(slices.into_iter().flatten().filter_map(service_of));
    }
}

async fn run(config: ProxyConfig, informers: Informers, clock: Clock) -> Result<(), ProxyError> {
    let mut sources = Sources::new(&config, &informers);
    let mut writer = Writer::new(&config)?;
    let mut dirty = sources.first(&clock).await;
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let changes = writer.plan(&mut sources, dirty);
        match writer.write(changes).await {
            Ok(()) => {
                pause = FIRST_PAUSE;
                config.trouble.send_if_modified(|t| t.take().is_some());
            }
            Err(e) => {
                tell(&config.trouble, &e);
                config.statistics.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(error = %Chain(&e), "the service table is not up to date; writing it anew");
                clock.sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                dirty = Dirty::default();
                sources.drain(&mut dirty);
                continue;
            }
        }
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        config.statistics.last_sync_nanos.store(nanos, Ordering::Relaxed);
        match sources.next().await {
            Some(next) => dirty = next,
            None => return Ok(()),
        }
    }
}

/// The state and the table that holds it.
struct Writer {
    node: Node,
    state: State,
    table: ServiceTable,
    socket: Option<NftSocket>,
    /// The table is to be replaced.
    full: bool,
    statistics: Arc<Statistics>,
}

impl Writer {
    fn new(config: &ProxyConfig) -> Result<Self, ProxyError> {
        let node = Node {
            facts: NodeFacts { name: config.node_name.clone(), zone: String::new() },
            cluster_cidr: config.cluster_cidr,
            node_port_addresses: config.node_port_addresses.clone(),
            local_overrides: config.local_overrides.clone(),
        };
        Ok(Writer {
            node,
            state: State::default(),
            table: ServiceTable::new(config),
            socket: Some(NftSocket::open()?),
            full: true,
            statistics: config.statistics.clone(),
        })
    }

    /// Plans what is dirty; answers what that changes.
    fn plan(&mut self, sources: &mut Sources, mut dirty: Dirty) -> Changes {
        if dirty.node {
            let zone = sources.zone(&self.node.facts.name);
            if zone != self.node.facts.zone {
                self.node.facts.zone = zone;
                dirty.services.extend(self.state.owners().filter(|o| *o != HOST_PORTS).map(str::to_owned));
            }
        }
        let mut changes = Changes::default();
        for name in dirty.services {
            let service = name.split_once('/').and_then(|(ns, n)| sources.services.get(ns, n));
            let rows = service.map_or_else(Vec::new, |service| {
                let slices = sources.slices.by_index(BY_SERVICE, &name);
                service_rows(&service, &slices, &self.node, &mut self.state)
            });
            self.state.set(&name, rows, &mut changes);
        }
        if dirty.host_ports {
            let rows = host_port_rows(&sources.host_ports());
            self.state.set(HOST_PORTS, rows, &mut changes);
        }
        changes
    }

    async fn write(&mut self, changes: Changes) -> Result<(), ProxyError> {
        let full = std::mem::replace(&mut self.full, true);
        let batch = if full { self.table.replace(&self.state) } else { self.table.update(&self.state, &changes) };
        if !batch.is_empty() {
            self.commit(batch).await?;
            self.statistics.syncs.fetch_add(1, Ordering::Relaxed);
            self.statistics.full_syncs.fetch_add(u64::from(full), Ordering::Relaxed);
        }
        // From here on the table holds the state.
        self.full = false;
        self.forget_stale(full, &changes);
        Ok(())
    }

    async fn commit(&mut self, batch: Batch) -> Result<(), ProxyError> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => NftSocket::open()?,
        };
        // A socket that failed is not used again.
        if batch.len() <= INLINE_BATCH {
            socket.commit(batch)?;
            self.socket = Some(socket);
        } else {
            let written = tokio::task::spawn_blocking(move || socket.commit(batch).map(|()| socket));
            self.socket = Some(written.await??);
        }
        Ok(())
    }

    /// Deletes tracked UDP flows that would go elsewhere today. That this fails is no reason to write the table again.
    fn forget_stale(&self, full: bool, changes: &Changes) {
        let touched = touched(&changes.against(&self.state));
        let gone = match touched {
            Some(gone) => gone,
            None if full => BTreeSet::new(),
            None => return,
        };
        match delete_stale(&self.state, &gone) {
            Ok(n) => {
                self.statistics.stale_flows_deleted.fetch_add(n as u64, Ordering::Relaxed);
            }
            Err(e) => {
                tracing::warn!(error = %Chain(&ProxyError::from(e)), "UDP clients may keep an endpoint that is gone")
            }
        }
    }
}

fn delete_stale(state: &State, gone: &BTreeSet<crate::state::Front>) -> Result<usize, NetlinkError> {
    let addresses = RouteSocket::open()?.addresses()?;
    let node: Vec<Ipv4Addr> = addresses
        .iter()
        .filter_map(|a| match a.ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
        .collect();
    isopod_sys::conntrack::delete_udp(|flow| is_stale(state, gone, &node, flow))
}
