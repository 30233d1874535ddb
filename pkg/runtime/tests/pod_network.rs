//! Pods' networks in namespaces of the tests' own, with real connections. Needs root.

#![allow(clippy::unwrap_used)]

use isopod_runtime::network::{Cidr, NetworkConfig, NetworkError, PodNetwork};
use isopod_sys::netlink::{NetNs, RouteSocket, Veth};
use isopod_sys::nft::{Batch, Chain, ChainKind, Data, Element, Expr, Hook, NftSocket, Rule, Set, Table, Type};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

fn cidr(s: &str) -> Cidr {
    s.parse().unwrap()
}

fn config(dir: &Path) -> NetworkConfig {
    NetworkConfig {
        bridge: "isopod0".into(),
        pod_cidr: Some(cidr("10.42.0.0/24")),
        cluster_cidr: cidr("10.42.0.0/16"),
        service_cidr: Some(cidr("10.43.0.0/16")),
        mtu: None,
        state_dir: dir.join("network"),
        table_prefix: "isopod".into(),
    }
}

/// A path by which this process's open namespace can be opened again.
fn path(ns: &NetNs) -> PathBuf {
    format!("/proc/self/fd/{}", ns.as_fd().as_raw_fd()).into()
}

fn node() -> NetNs {
    let ns = NetNs::create().unwrap();
    RouteSocket::open_in(&ns).unwrap().set_up(1).unwrap();
    ns
}

fn v4(ips: Vec<IpAddr>) -> Ipv4Addr {
    match ips[..] {
        [IpAddr::V4(ip)] => ip,
        _ => panic!("{ips:?}"),
    }
}

/// Accepts one connection and answers with the address that it came from.
fn serve_once(ns: &NetNs) -> (u16, std::thread::JoinHandle<()>) {
    let listener = ns.run(|| TcpListener::bind("0.0.0.0:0").unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut s, from) = listener.accept().unwrap();
        s.write_all(from.ip().to_string().as_bytes()).unwrap();
    });
    (port, thread)
}

/// Connects and answers what the server says: the client's address as the server saw it.
fn ask(ns: &NetNs, to: Ipv4Addr, port: u16) -> String {
    ns.run(|| {
        let timeout = std::time::Duration::from_secs(5);
        let mut s = TcpStream::connect_timeout(&(to, port).into(), timeout).unwrap();
        s.set_read_timeout(Some(timeout)).unwrap();
        let mut answer = String::new();
        s.read_to_string(&mut answer).unwrap();
        answer
    })
    .unwrap()
}

#[test]
fn pods_reach_each_other_the_node_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let (node, a, b) = (node(), NetNs::create().unwrap(), NetNs::create().unwrap());
    let network = node.run(|| PodNetwork::open(config(dir.path())).unwrap()).unwrap();
    let attach = |id: &str, ns: &NetNs| v4(node.run(|| network.attach(id, &path(ns)).unwrap()).unwrap());
    let (ip_a, ip_b) = (attach("a", &a), attach("b", &b));
    assert_eq!((ip_a.to_string(), ip_b.to_string()), ("10.42.0.2".into(), "10.42.0.3".into()));
    assert_eq!(attach("a", &a), ip_a, "attaching again keeps the address");
    for (from, to, address, seen) in [
        (&a, &b, ip_b, ip_a),
        (&a, &node, Ipv4Addr::new(10, 42, 0, 1), ip_a),
        (&node, &a, ip_a, Ipv4Addr::new(10, 42, 0, 1)),
        (&a, &a, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST),
    ] {
        let (port, server) = serve_once(to);
        assert_eq!(ask(from, address, port), seen.to_string());
        server.join().unwrap();
    }
    node.run(|| {
        network.detach("a").unwrap();
        network.detach("a").unwrap();
        assert_eq!(network.address("a"), None);
    })
    .unwrap();
    assert!(RouteSocket::open_in(&a).unwrap().link("eth0").unwrap().is_none());
}

/// A node that also has a wire to the world, which does not know the pods' addresses.
#[test]
fn traffic_that_leaves_the_cluster_is_masqueraded() {
    let dir = tempfile::tempdir().unwrap();
    let (node, world, pod) = (node(), NetNs::create().unwrap(), NetNs::create().unwrap());
    let mut links = RouteSocket::open_in(&node).unwrap();
    let peer_mac = [2, 0, 0, 0, 0, 1];
    links
        .add_veth(&Veth { name: "wan", master: 0, mtu: 1300, peer_name: "lan", peer_mac, peer_netns: world.as_fd() })
        .unwrap();
    let wan = links.link("wan").unwrap().unwrap().index;
    links.add_address(wan, Ipv4Addr::new(192, 0, 2, 1).into(), 24).unwrap();
    let mut outside = RouteSocket::open_in(&world).unwrap();
    let lan = outside.link("lan").unwrap().unwrap().index;
    let server_ip = Ipv4Addr::new(192, 0, 2, 2);
    outside.set_up(lan).unwrap();
    outside.add_address(lan, server_ip.into(), 24).unwrap();
    let route = isopod_sys::netlink::Route { to: None, gateway: Some(server_ip.into()), index: wan, source: None };
    links.add_route(&route).unwrap();

    let network = node.run(|| PodNetwork::open(config(dir.path())).unwrap()).unwrap();
    node.run(|| network.attach("pod", &path(&pod)).unwrap()).unwrap();
    let eth0 = RouteSocket::open_in(&pod).unwrap().link("eth0").unwrap().unwrap();
    assert_eq!(eth0.mtu, 1300, "taken from the default route's interface");
    let (port, server) = serve_once(&world);
    assert_eq!(ask(&pod, server_ip, port), "192.0.2.1");
    server.join().unwrap();
}

/// What the proxy does to a packet must be undone for the answer, on one bridge and for a pod that reaches itself.
#[test]
fn answers_pass_the_nodes_connection_tracking() {
    let dir = tempfile::tempdir().unwrap();
    let (node, a, b) = (node(), NetNs::create().unwrap(), NetNs::create().unwrap());
    let network = node
        .run(|| {
            // The case of a kernel without br_netfilter; where it is missing there is nothing to switch off.
            let _ = isopod_sys::netlink::set_sysctl("net/bridge/bridge-nf-call-iptables", "0");
            PodNetwork::open(config(dir.path())).unwrap()
        })
        .unwrap();
    let attach = |id: &str, ns: &NetNs| v4(node.run(|| network.attach(id, &path(ns)).unwrap()).unwrap());
    let (ip_a, ip_b) = (attach("a", &a), attach("b", &b));
    let vip = Ipv4Addr::new(10, 43, 0, 99);
    let (port_a, server_a) = serve_once(&a);
    let (port_b, server_b) = serve_once(&b);
    node.run(|| {
        let t = Table("service".into());
        let mut batch = Batch::new();
        batch.add_table(&t);
        batch.add_chain(&t, &Chain::base("pre", ChainKind::Nat, Hook::Prerouting, -100));
        batch.add_chain(&t, &Chain::base("post", ChainKind::Nat, Hook::Postrouting, 100));
        batch.add_set(&t, &Set::map("to", &[Type::Ipv4, Type::Port], &[Type::Ipv4, Type::Port]));
        let pair = |ip: Ipv4Addr, port: u16| [&ip.octets()[..], &port.to_be_bytes(), &[0, 0]].concat();
        let to = [(port_a, ip_a), (port_b, ip_b)];
        let elements = to.map(|(port, ip)| Element { key: pair(vip, port), data: Data::Bytes(pair(ip, port)) });
        batch.add_elements(&t, "to", elements);
        let rule = Rule::new().destination(0).destination_port(1).expr(Expr::Map { map: "to".into(), key: 0, to: 2 });
        batch.add_rule(&t, "pre", &rule.expr(Expr::Dnat { address: 2, port: Some(3) }));
        let own = Rule::new().source(0).equals(0, &ip_a.octets()).destination(1).equals(1, &ip_a.octets());
        batch.add_rule(&t, "post", &own.expr(Expr::Masquerade));
        NftSocket::open().unwrap().commit(batch).unwrap();
    })
    .unwrap();
    assert_eq!(ask(&a, vip, port_b), ip_a.to_string());
    server_b.join().unwrap();
    assert_eq!(ask(&a, vip, port_a), "10.42.0.1", "a pod reaches itself, masqueraded");
    server_a.join().unwrap();
}

#[test]
fn what_ended_sandboxes_held_is_freed_and_cleanup_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (node, a, b) = (node(), NetNs::create().unwrap(), NetNs::create().unwrap());
    node.run(|| {
        let before = RouteSocket::open().unwrap().links().unwrap();
        let config = config(dir.path());
        let network = PodNetwork::open(NetworkConfig { pod_cidr: None, ..config.clone() }).unwrap();
        assert!(matches!(network.attach("a", &path(&a)), Err(NetworkError::NoPodCidr)));
        network.set_pod_cidr(cidr("10.42.7.0/24")).unwrap();
        assert_eq!(network.gateway(), Some(Ipv4Addr::new(10, 42, 7, 1)));
        network.attach("a", &path(&a)).unwrap();
        let ip_b = network.attach("b", &path(&b)).unwrap();
        drop(network);

        let network =
            PodNetwork::open(NetworkConfig { pod_cidr: Some(cidr("10.42.7.0/24")), ..config.clone() }).unwrap();
        network.reconcile(&BTreeSet::from(["b".to_owned()])).unwrap();
        assert_eq!((network.address("a"), network.address("b")), (None, Some(ip_b[0])));
        assert!(RouteSocket::open_in(&a).unwrap().link("eth0").unwrap().is_none());
        assert!(RouteSocket::open_in(&b).unwrap().link("eth0").unwrap().is_some());

        PodNetwork::cleanup(&config).unwrap();
        PodNetwork::cleanup(&config).unwrap();
        assert_eq!(RouteSocket::open().unwrap().links().unwrap(), before);
        assert!(!config.state_dir.exists());
        let mut gone = Batch::new();
        gone.delete_table(&Table("isopod-pods".into()));
        assert_eq!(NftSocket::open().unwrap().commit(gone).unwrap_err().errno(), Some(2));
    })
    .unwrap();
}

#[test]
fn a_failed_attach_leaves_no_address_and_bad_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    node()
        .run(|| {
            let network = PodNetwork::open(config(dir.path())).unwrap();
            assert!(network.attach("a", Path::new("/does/not/exist")).is_err());
            // A file that is no namespace is refused by the kernel.
            assert!(network.attach("a", Path::new("/dev/null")).is_err());
            assert_eq!(network.address("a"), None);
            let bad = NetworkConfig { bridge: "sixteen-chars-xx".into(), ..config(dir.path()) };
            assert!(matches!(PodNetwork::open(bad), Err(NetworkError::InvalidBridge(_))));
        })
        .unwrap();
}
