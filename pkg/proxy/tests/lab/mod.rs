//! What the proxy's tests share: objects, and a node with pods and an outside world made of network namespaces.
#![allow(dead_code)]

use isopod_client::views::{EndpointSlice, Service};
use isopod_proxy::plan::{Node, desired, service_rows};
use isopod_proxy::select::NodeFacts;
use isopod_proxy::state::{Changes, State, diff};
use isopod_proxy::table::ServiceTable;
use isopod_proxy::{NodePortAddresses, ProxyConfig};
use isopod_sys::netlink::{NetNs, Route, RouteSocket, Veth, set_sysctl};
use isopod_sys::nft::NftSocket;
use serde_json::{Value as Json, json};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

pub const CLUSTER: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 42, 0, 0), 16);
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OUTSIDE_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);
const TIMEOUT: Duration = Duration::from_secs(5);

pub fn facts() -> Node {
    Node {
        facts: NodeFacts { name: "me".into(), zone: String::new() },
        cluster_cidr: CLUSTER,
        node_port_addresses: NodePortAddresses::All,
        local_overrides: Vec::new(),
    }
}

pub fn config() -> ProxyConfig {
    ProxyConfig { service_cidr: Some((Ipv4Addr::new(10, 43, 0, 0), 16)), ..ProxyConfig::new("me", CLUSTER) }
}

/// Service `ns/web`, cluster IP [`VIP`], port 80 to `http`; `more` is merged into its spec.
pub fn service_json(more: Json) -> Json {
    let mut spec = json!({
        "type": "ClusterIP", "clusterIP": VIP.to_string(), "clusterIPs": [VIP.to_string()],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    });
    for (k, v) in more.as_object().unwrap() {
        spec[k] = v.clone();
    }
    json!({"metadata": {"namespace": "ns", "name": "web", "resourceVersion": "1"}, "spec": spec})
}

/// An endpoint of [`slice_json`]: `r` ready, `t` terminating but serving, `n` not ready; `l` on this node.
pub fn slice_json(endpoints: &[(Ipv4Addr, &str)], protocol: &str) -> Json {
    let all: Vec<Json> = endpoints
        .iter()
        .map(|(ip, how)| {
            json!({
                "addresses": [ip.to_string()],
                "nodeName": if how.contains('l') { "me" } else { "other" },
                "conditions": {
                    "ready": how.contains('r'), "serving": !how.contains('n'), "terminating": how.contains('t'),
                },
            })
        })
        .collect();
    json!({
        "metadata": {"namespace": "ns", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}, "resourceVersion": "1"},
        "addressType": "IPv4", "endpoints": all, "ports": [{"name": "http", "port": 8080, "protocol": protocol}],
    })
}

pub fn service(more: Json) -> Arc<Service> {
    Arc::new(serde_json::from_value(service_json(more)).unwrap())
}

pub fn slice(endpoints: &[(Ipv4Addr, &str)], protocol: &str) -> Arc<EndpointSlice> {
    Arc::new(serde_json::from_value(slice_json(endpoints, protocol)).unwrap())
}

/// The state of that one service.
pub fn state(more: Json, endpoints: &[(Ipv4Addr, &str)]) -> State {
    let protocol = if more.to_string().contains("UDP") { "UDP" } else { "TCP" };
    desired(&[service(more)], &[slice(endpoints, protocol)], &facts())
}

/// A node, `outside` on a wire to it, and pods.
pub struct Lab {
    pub node: NetNs,
    pub outside: NetNs,
    table: ServiceTable,
    now: State,
}

fn wire(a: &NetNs, name: &str, b: &NetNs) -> (RouteSocket, u32, RouteSocket, u32) {
    let (mut here, mut there) = (RouteSocket::open_in(a).unwrap(), RouteSocket::open_in(b).unwrap());
    let peer_mac = [2, 0, 0, 0, 0, 2];
    here.add_veth(&Veth { name, master: 0, mtu: 1500, peer_name: "eth0", peer_mac, peer_netns: b.as_fd() }).unwrap();
    let far = there.link("eth0").unwrap().unwrap().index;
    there.set_up(1).unwrap();
    there.set_up(far).unwrap();
    let near = here.link(name).unwrap().unwrap().index;
    (here, near, there, far)
}

impl Lab {
    pub fn new() -> Self {
        let (node, outside) = (NetNs::create().unwrap(), NetNs::create().unwrap());
        RouteSocket::open_in(&node).unwrap().set_up(1).unwrap();
        let (mut here, near, mut there, far) = wire(&node, "wan", &outside);
        here.add_address(near, NODE_IP.into(), 24).unwrap();
        there.add_address(far, OUTSIDE_IP.into(), 24).unwrap();
        let default = |gateway: Ipv4Addr, index| Route { to: None, gateway: Some(gateway.into()), index, source: None };
        here.add_route(&default(OUTSIDE_IP, near)).unwrap();
        there.add_route(&default(NODE_IP, far)).unwrap();
        node.run(|| set_sysctl("net/ipv4/ip_forward", "1").unwrap()).unwrap();
        Lab { node, outside, table: ServiceTable::new(&config()), now: State::default() }
    }

    /// A pod with the address 10.42.0.`n`.
    pub fn pod(&self, n: u8) -> NetNs {
        let pod = NetNs::create().unwrap();
        let name = format!("pod{n}");
        let ip = pod_ip(n);
        let (mut here, near, mut there, far) = wire(&self.node, &name, &pod);
        here.add_address(near, GATEWAY.into(), 32).unwrap();
        here.add_route(&Route { to: Some((ip.into(), 32)), gateway: None, index: near, source: None }).unwrap();
        self.node.run(|| set_sysctl(&format!("net/ipv4/conf/{name}/route_localnet"), "1").unwrap()).unwrap();
        there.add_address(far, ip.into(), 32).unwrap();
        let on_link = Route { to: Some((GATEWAY.into(), 32)), gateway: None, index: far, source: None };
        there.add_route(&on_link).unwrap();
        there.add_route(&Route { to: None, gateway: Some(GATEWAY.into()), ..on_link }).unwrap();
        pod
    }

    /// Begins the table with this state.
    pub fn replace(&mut self, state: State) {
        let batch = self.table.replace(&state);
        self.node.run(|| NftSocket::open().unwrap().commit(batch).unwrap()).unwrap();
        self.now = state;
    }

    /// Plans the one service anew and goes there by differences, as the running proxy does: endpoints keep their numbers.
    pub fn plan(&mut self, more: Json, endpoints: &[(Ipv4Addr, &str)]) {
        let mut changes = Changes::default();
        let rows = service_rows(&service(more), &[slice(endpoints, "TCP")], &facts(), &mut self.now);
        self.now.set("ns/web", rows, &mut changes);
        let batch = self.table.update(&self.now, &changes);
        self.node.run(|| NftSocket::open().unwrap().commit(batch).unwrap()).unwrap();
    }

    /// Goes to this state by differences.
    pub fn update(&mut self, state: State) {
        let changes = diff(&self.now, &state);
        let batch = self.table.update(&state, &changes);
        self.node.run(|| NftSocket::open().unwrap().commit(batch).unwrap()).unwrap();
        self.now = state;
    }
}

pub fn pod_ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 42, 0, n)
}

/// Serves TCP on `port` in the namespace for the rest of the test: answers "`name` client's address".
pub fn serve(ns: &NetNs, name: &str, port: u16) {
    let listener = ns.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
    let name = name.to_owned();
    std::thread::spawn(move || {
        for mut s in listener.incoming().flatten() {
            let from = s.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
            let _ = s.write_all(format!("{name} {from}").as_bytes());
        }
    });
}

/// As [`serve`], UDP: an answer to each datagram.
pub fn serve_udp(ns: &NetNs, name: &str, port: u16) {
    let socket = ns.run(|| UdpSocket::bind(("0.0.0.0", port)).unwrap()).unwrap();
    let name = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", from.ip()).as_bytes(), from);
        }
    });
}

/// Connects from the namespace; the answer, or the error's kind in words.
pub fn ask(ns: &NetNs, ip: Ipv4Addr, port: u16) -> String {
    ask_within(ns, ip, port, TIMEOUT)
}

pub fn ask_within(ns: &NetNs, ip: Ipv4Addr, port: u16, timeout: Duration) -> String {
    ns.run(|| {
        let answer = TcpStream::connect_timeout(&SocketAddr::new(IpAddr::V4(ip), port), timeout).and_then(|mut s| {
            s.set_read_timeout(Some(timeout))?;
            let mut answer = String::new();
            s.read_to_string(&mut answer)?;
            Ok(answer)
        });
        answer.unwrap_or_else(|e| format!("{:?}", e.kind()))
    })
    .unwrap()
}

/// The names that answer `n` connections, sorted, each once.
pub fn answering(ns: &NetNs, ip: Ipv4Addr, port: u16, n: usize) -> Vec<String> {
    let mut all: Vec<String> =
        (0..n).map(|_| ask(ns, ip, port).split(' ').next().unwrap_or_default().to_owned()).collect();
    all.sort();
    all.dedup();
    all
}

/// A UDP client that keeps its port.
pub struct UdpClient(UdpSocket);

impl UdpClient {
    pub fn new(ns: &NetNs) -> Self {
        let socket = ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        UdpClient(socket)
    }

    pub fn ask(&self, ip: Ipv4Addr, port: u16) -> String {
        let mut buffer = [0; 64];
        match self.0.send_to(b"?", (ip, port)).and_then(|_| self.0.recv(&mut buffer)) {
            Ok(n) => String::from_utf8_lossy(&buffer[..n]).into_owned(),
            Err(e) => format!("{:?}", e.kind()),
        }
    }
}
