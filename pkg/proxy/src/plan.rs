//! What one service, or one host port, needs of this node's table. Pure: the same objects give the same rows.

use crate::config::{HostPort, LocalOverride, Network, NodePortAddresses};
use crate::select::{NodeFacts, Selected, candidates, select};
use crate::state::{Changes, Class, Endpoint, Front, Key, Masquerade, Protocol, Refusal, Row, State, Target, Value};
use isopod_client::views::{EndpointSlice, Pod, Service, ServicePort};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

/// Seconds a client keeps its endpoint by default (`DefaultClientIPServiceAffinitySeconds`).
const DEFAULT_AFFINITY: u32 = 10_800;
/// Services with this label belong to another proxy.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Links a slice to its service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// What plans depend on besides the objects.
#[derive(Clone, Debug)]
pub struct Node {
    pub facts: NodeFacts,
    pub cluster_cidr: Network,
    pub node_port_addresses: NodePortAddresses,
    pub local_overrides: Vec<LocalOverride>,
}

/// `namespace/name` of the service that a slice belongs to.
pub fn service_of(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.get(SERVICE_NAME_LABEL)?;
    Some(format!("{}/{name}", slice.metadata.namespace))
}

/// The rows of all services: what a table begins with.
pub fn desired(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>], node: &Node) -> State {
    let mut by_service: BTreeMap<String, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in slices {
        by_service.entry(service_of(slice).unwrap_or_default()).or_default().push(slice.clone());
    }
    let mut state = State::default();
    for service in services {
        let name = format!("{}/{}", service.metadata.namespace, service.metadata.name);
        let rows = service_rows(service, by_service.get(&name).map_or(&[], Vec::as_slice), node, &mut state);
        state.set(&name, rows, &mut Changes::default());
    }
    state
}

/// The rows of one service; none when this proxy has nothing to do for it. Endpoints get their numbers from `state`.
pub fn service_rows(service: &Service, slices: &[Arc<EndpointSlice>], node: &Node, state: &mut State) -> Vec<Row> {
    let spec = &service.spec;
    // Headless ("None") and not allocated yet ("") have no IPv4 cluster IP.
    let ips = if spec.cluster_ips.is_empty() { std::slice::from_ref(&spec.cluster_ip) } else { &spec.cluster_ips[..] };
    let Some(cluster_ip) = ips.iter().find_map(|ip| ip.parse::<Ipv4Addr>().ok()) else { return Vec::new() };
    if spec.kind == "ExternalName" || service.metadata.labels.contains_key(PROXY_NAME_LABEL) {
        return Vec::new();
    }
    let mut rows = vec![(Key::ClusterIp(cluster_ip), Value::None)];
    for port in &spec.ports {
        let (Some(protocol), Ok(number)) = (Protocol::parse(&port.protocol), u16::try_from(port.port)) else {
            continue;
        };
        let mut plan = PortPlan::new(service, slices, port, protocol, number, node, state);
        plan.internal(Front { ip: cluster_ip, protocol, port: number }, &mut rows);
        for front in external_fronts(service, port, protocol, number, node) {
            plan.external(front, &mut rows);
        }
        plan.endpoint_rows(protocol, &mut rows);
    }
    rows
}

/// Where clients outside the cluster send to: external IPs, load balancers' IPs, node ports.
fn external_fronts(service: &Service, port: &ServicePort, protocol: Protocol, number: u16, node: &Node) -> Vec<Front> {
    let balancer = service.status.load_balancer.ingress.iter();
    let balancer = balancer.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).map(|i| i.ip.as_str());
    let named = service.spec.external_ips.iter().map(String::as_str).chain(balancer);
    let mut fronts: Vec<Front> =
        named.filter_map(|ip| ip.parse().ok()).map(|ip| Front { ip, protocol, port: number }).collect();
    if let Some(port) = u16::try_from(port.node_port).ok().filter(|p| *p != 0) {
        let any = [Ipv4Addr::UNSPECIFIED];
        let ips = match &node.node_port_addresses {
            NodePortAddresses::All => &any[..],
            NodePortAddresses::Only(ips) => ips,
        };
        fronts.extend(ips.iter().map(|ip| Front { ip: *ip, protocol, port }));
    }
    fronts
}

/// The endpoints of one port and how each kind of traffic uses them.
struct PortPlan {
    selected: Selected,
    /// For traffic that may go to any node, and for traffic that must stay here.
    cluster: Arc<[Endpoint]>,
    local: Arc<[Endpoint]>,
    internal_local: bool,
    external_local: bool,
    affinity: u32,
    /// Some front uses the cluster's, the local list.
    uses: [bool; 2],
}

impl PortPlan {
    fn new(
        service: &Service,
        slices: &[Arc<EndpointSlice>],
        port: &ServicePort,
        protocol: Protocol,
        number: u16,
        node: &Node,
        state: &mut State,
    ) -> Self {
        let (meta, spec) = (&service.metadata, &service.spec);
        let is_override = |o: &&LocalOverride| o.port == number && o.name == meta.name && o.namespace == meta.namespace;
        let selected = match node.local_overrides.iter().find(is_override) {
            Some(o) => Selected { cluster: vec![o.target], local: vec![o.target], any: true, hairpin: Vec::new() },
            None => select(&candidates(slices, &port.name, protocol, &node.facts)),
        };
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        let timeout = config.and_then(|c| u32::try_from(c.timeout_seconds?).ok()).unwrap_or(DEFAULT_AFFINITY);
        let affinity = if spec.session_affinity == "ClientIP" { timeout.max(1) } else { 0 };
        let owner = format!("{}/{}", meta.namespace, meta.name);
        let mut endpoint = |address: &SocketAddrV4| Endpoint {
            address: *address,
            number: if affinity > 0 { state.number(&owner, protocol, number, *address) } else { 0 },
        };
        PortPlan {
            cluster: selected.cluster.iter().map(&mut endpoint).collect(),
            local: selected.local.iter().map(&mut endpoint).collect(),
            selected,
            internal_local: spec.internal_traffic_policy == "Local",
            external_local: spec.external_traffic_policy == "Local",
            affinity,
            uses: [false; 2],
        }
    }

    /// A target among these endpoints, `None` when there are none.
    fn target(&mut self, local: bool, masquerade: Masquerade, front: Front, inside: bool) -> Option<Value> {
        let endpoints = if local { &self.local } else { &self.cluster };
        let number = u32::try_from(endpoints.len()).ok().filter(|n| *n > 0)?;
        self.uses[usize::from(local)] = true;
        let any_address = front.ip.is_unspecified();
        let class = Class { masquerade, endpoints: number, affinity: self.affinity, any_address, inside };
        Some(Value::Target(Target { class, endpoints: endpoints.clone() }))
    }

    fn refuse(&self, front: Front, rows: &mut Vec<Row>) {
        let refusal = if self.selected.any { Refusal::Drop } else { Refusal::Reject };
        rows.push((Key::Refused(front), Value::Refusal(refusal)));
    }

    fn internal(&mut self, front: Front, rows: &mut Vec<Row>) {
        match self.target(self.internal_local, Masquerade::Outsiders, front, false) {
            Some(target) => rows.push((Key::Service(front), target)),
            None => self.refuse(front, rows),
        }
    }

    fn external(&mut self, front: Front, rows: &mut Vec<Row>) {
        if !self.external_local {
            match self.target(false, Masquerade::All, front, false) {
                Some(target) => rows.push((Key::Service(front), target)),
                None => self.refuse(front, rows),
            }
            return;
        }
        // The policy is for traffic from outside: pods and the node itself reach any endpoint.
        if let Some(target) = self.target(false, Masquerade::Outsiders, front, true) {
            rows.push((Key::Inside(front), target));
        }
        match self.target(true, Masquerade::Nothing, front, false) {
            Some(target) => rows.push((Key::Service(front), target)),
            None => self.refuse(front, rows),
        }
    }

    fn endpoint_rows(&self, protocol: Protocol, rows: &mut Vec<Row>) {
        let lists = [&self.cluster, &self.local].into_iter().zip(self.uses).filter(|(_, used)| *used);
        let sticky = lists.flat_map(|(list, _)| list.iter()).filter(|e| e.number > 0);
        rows.extend(sticky.map(|e| (Key::Kept(protocol, e.number), Value::Address(e.address))));
        rows.extend(self.selected.hairpin.iter().map(|ip| (Key::Hairpin(*ip), Value::None)));
    }
}

/// The host ports of the API's pods that run on this node.
pub fn host_ports_of(pods: &[Arc<Pod>]) -> Vec<HostPort> {
    let mut all = Vec::new();
    for pod in pods.iter().filter(|p| !p.spec.host_network && !p.is_terminal()) {
        let ips = pod.status.pod_ips.iter().map(|i| &i.ip).chain([&pod.status.pod_ip]);
        let Some(ip) = ips.filter_map(|ip| ip.parse::<Ipv4Addr>().ok()).next() else { continue };
        let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
        for port in pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports) {
            let numbers = (u16::try_from(port.host_port), u16::try_from(port.container_port));
            if let (Some(protocol), (Ok(host_port @ 1..), Ok(target))) = (Protocol::parse(&port.protocol), numbers) {
                let host_ip = port.host_ip.parse().ok().filter(|ip: &Ipv4Addr| !ip.is_unspecified());
                all.push(HostPort { protocol, host_ip, host_port, pod: SocketAddrV4::new(ip, target) });
            }
        }
    }
    all
}

/// The owner name under which all host ports stand in the state; no service has it.
pub const HOST_PORTS: &str = "host ports";

/// The rows of all host ports. Of two with one front the first is served.
pub fn host_port_rows(ports: &[HostPort]) -> Vec<Row> {
    let mut rows = Vec::new();
    for p in ports {
        let front = Front { ip: p.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED), protocol: p.protocol, port: p.host_port };
        let any_address = front.ip.is_unspecified();
        let class = Class { masquerade: Masquerade::Loopback, endpoints: 1, affinity: 0, any_address, inside: false };
        let endpoints = [Endpoint { address: p.pod, number: 0 }].into();
        rows.push((Key::Service(front), Value::Target(Target { class, endpoints })));
        rows.push((Key::Hairpin(*p.pod.ip()), Value::None));
    }
    rows
}
