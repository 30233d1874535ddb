//! The kernel's answers to what this crate says over netlink, in namespaces of the tests' own. Needs root.

#![allow(clippy::unwrap_used)]

use isopod_sys::conntrack;
use isopod_sys::netlink::{Address, Bridge, NetNs, Route, RouteSocket, Veth, read_sysctl, set_sysctl};
use isopod_sys::nft::*;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

fn namespace() -> NetNs {
    let ns = NetNs::create().expect("root may make a network namespace");
    RouteSocket::open_in(&ns).unwrap().set_up(1).unwrap();
    ns
}

fn service_key(ip: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut key = ip.octets().to_vec();
    key.extend([6, 0, 0, 0]);
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
    key
}

fn endpoint(address: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(a) = address else { panic!("IPv4 only") };
    let mut value = a.ip().octets().to_vec();
    value.extend(a.port().to_be_bytes());
    value.extend([0, 0]);
    value
}

/// A table that sends connections from this machine to where the map says.
fn redirecting(table: &Table, elements: Vec<Element>) -> Batch {
    let mut b = Batch::new();
    b.replace_table(table);
    b.add_set(table, &Set::map("to", &[Type::Ipv4, Type::Protocol, Type::Port], &[Type::Ipv4, Type::Port]));
    b.add_chain(table, &Chain::base("out", ChainKind::Nat, Hook::Output, -100));
    let rule = Rule::new().destination(0).protocol(1).destination_port(2);
    let rule = rule.expr(Expr::Map { map: "to".into(), key: 0, to: 3 }).expr(Expr::Dnat { address: 3, port: Some(4) });
    b.add_rule(table, "out", &rule);
    b.add_elements(table, "to", elements);
    b
}

#[test]
fn a_map_with_concatenated_keys_redirects_connections() {
    namespace()
        .run(|| {
            let server = TcpListener::bind("127.0.0.1:0").unwrap();
            let vip = Ipv4Addr::new(127, 9, 9, 9);
            let table = Table("t".into());
            let mut nft = NftSocket::open().unwrap();
            let element =
                Element { key: service_key(vip, 80), data: Data::Bytes(endpoint(server.local_addr().unwrap())) };
            nft.commit(redirecting(&table, vec![element.clone()])).unwrap();
            let mut client = TcpStream::connect((vip, 80)).unwrap();
            client.write_all(b"x").unwrap();
            let mut got = [0];
            server.accept().unwrap().0.read_exact(&mut got).unwrap();

            let mut b = Batch::new();
            b.delete_elements(&table, "to", [Element::key(element.key)]);
            nft.commit(b).unwrap();
            let refused = TcpStream::connect((vip, 80)).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        })
        .unwrap();
}

#[test]
fn a_batch_that_fails_says_where_and_changes_nothing() {
    namespace()
        .run(|| {
            let mut nft = NftSocket::open().unwrap();
            let table = Table("t".into());
            let mut b = Batch::new();
            b.add_table(&table);
            b.add_elements(&table, "missing", [Element::key(vec![0; 4])]);
            b.add_chain(&table, &Chain::regular("c"));
            let error = nft.commit(b).unwrap_err();
            assert_eq!(error.to_string(), "nftables refused to add elements to set missing of table t");
            assert_eq!(error.errno(), Some(libc::ENOENT));
            let mut b = Batch::new();
            b.delete_table(&table);
            assert_eq!(nft.commit(b).unwrap_err().errno(), Some(libc::ENOENT), "the table was not made");
            // The socket is in order after an error.
            let mut b = Batch::new();
            b.add_table(&table);
            nft.commit(b).unwrap();
            nft.commit(Batch::new()).unwrap();
        })
        .unwrap();
}

#[test]
fn a_batch_may_be_large() {
    namespace()
        .run(|| {
            let mut nft = NftSocket::open().unwrap();
            let table = Table("t".into());
            let keys = |n: u32| (0..n).map(|i| service_key(Ipv4Addr::from_bits(i), 1));
            let value = Data::Bytes(endpoint(([1, 2, 3, 4], 5).into()));
            let n = 100_000;
            nft.commit(redirecting(&table, keys(n).map(|key| Element { key, data: value.clone() }).collect())).unwrap();
            // Deleting what is not there is an error: so all of them are there.
            let mut b = Batch::new();
            b.delete_elements(&table, "to", keys(n).map(Element::key));
            nft.commit(b).unwrap();
            let mut b = Batch::new();
            b.delete_elements(&table, "to", keys(1).map(Element::key));
            assert_eq!(nft.commit(b).unwrap_err().errno(), Some(libc::ENOENT));
        })
        .unwrap();
}

#[test]
fn every_expression_is_taken_by_the_kernel() {
    namespace()
        .run(|| {
            let mut nft = NftSocket::open().unwrap();
            let t = Table("t".into());
            let mut b = Batch::new();
            b.replace_table(&t);
            b.add_chain(&t, &Chain::base("pre", ChainKind::Nat, Hook::Prerouting, -100));
            b.add_chain(&t, &Chain::base("post", ChainKind::Nat, Hook::Postrouting, 100));
            b.add_chain(&t, &Chain::base("fwd", ChainKind::Filter, Hook::Forward, 0));
            b.add_chain(&t, &Chain::regular("end"));
            b.add_set(&t, &Set::verdicts("v", &[Type::Ipv4, Type::Port]));
            let verdict = Element { key: vec![0; 8], data: Data::Verdict(Verdict::Goto("end".into())) };
            b.add_elements(&t, "v", [verdict]);
            let dynamic = Some((Duration::from_secs(9), 1000));
            b.add_set(&t, &Set { dynamic, ..Set::map("d", &[Type::Ipv4, Type::Number], &[Type::Ipv4, Type::Port]) });
            let set = Set::new("", &[Type::Protocol]);
            let protocols = b.add_anonymous_set(&t, &set, [6, 17].map(|p| Element::key(vec![p])));
            let numbers = Set::map("", &[Type::Number], &[Type::Ipv4]);
            let pick = |i: u32| Element { key: i.to_ne_bytes().to_vec(), data: Data::Bytes(vec![10, 0, 0, i as u8]) };
            let pick = b.add_anonymous_set(&t, &numbers, [0, 1].map(pick));
            let net = (Ipv4Addr::new(10, 0, 0, 0), 8);
            let pre = [
                Rule::new()
                    .protocol(0)
                    .expr(Expr::InSet { set: protocols, key: 0, invert: true })
                    .verdict(Verdict::Return),
                Rule::new().local(Fib::Destination).new_connection().mark(0x4000),
                Rule::new().source(0).network(0, net, true).network(0, net, false).verdict(Verdict::Jump("end".into())),
                Rule::new().destination(0).destination_port(1).expr(Expr::VerdictMap { map: "v".into(), key: 0 }),
                Rule::new()
                    .source(0)
                    .expr(Expr::Hash { from: 0, len: 4, modulus: 7, seed: 3, to: 1 })
                    .expr(Expr::Counter),
                Rule::new().expr(Expr::RoundRobin { modulus: 2, to: 0 }).differs(0, &[0; 4]),
                Rule::new()
                    .source(0)
                    .expr(Expr::Random { modulus: 2, offset: 0, to: 1 })
                    .destination(2)
                    .destination_port(3)
                    .expr(Expr::Update { set: "d".into(), key: 0, data: Some(2), timeout: Duration::from_secs(5) }),
                Rule::new()
                    .source(0)
                    .expr(Expr::Load { to: 1, value: vec![1, 0, 0, 0] })
                    .destination(2)
                    .destination_port(3)
                    .expr(Expr::Forget { set: "d".into(), key: 0, data: Some(2) }),
                Rule::new()
                    .expr(Expr::Random { modulus: 2, offset: 0, to: 0 })
                    .expr(Expr::Map { map: pick, key: 0, to: 1 })
                    .expr(Expr::Dnat { address: 1, port: None }),
                Rule::new()
                    .protocol(0)
                    .equals(0, &[6])
                    .expr(Expr::Load { to: 0, value: vec![0, 53] })
                    .expr(Expr::Redirect { port: 0 }),
            ];
            pre.iter().for_each(|r| b.add_rule(&t, "pre", r));
            let post =
                Rule::new().expr(Expr::Meta { key: Meta::Mark, to: 0 }).any_bit(0, 0x4000).expr(Expr::Masquerade);
            b.add_rule(&t, "post", &post);
            b.add_rule(
                &t,
                "post",
                &Rule::new().expr(Expr::Load { to: 0, value: vec![1, 1, 1, 1] }).expr(Expr::Snat { address: 0 }),
            );
            b.add_rule(&t, "fwd", &Rule::new().ct_bits(Ct::Status, 32).expr(Expr::RejectUnreachable));
            b.add_rule(&t, "fwd", &Rule::new().protocol(0).equals(0, &[6]).expr(Expr::RejectReset));
            nft.commit(b).unwrap();
            let mut b = Batch::new();
            b.delete_elements(&t, "v", [Element::key(vec![0; 8])]);
            b.flush_chain(&t, "pre");
            b.delete_set(&t, "v");
            b.delete_chain(&t, "end");
            nft.commit(b).unwrap();
        })
        .unwrap();
}

#[test]
fn a_veth_pair_joins_a_bridge_to_another_namespace() {
    let (node, pod) = (namespace(), namespace());
    let mut here = RouteSocket::open_in(&node).unwrap();
    let mac = [0x0a, 0x58, 10, 0, 0, 1];
    here.add_bridge(&Bridge { name: "br", mac, mtu: 1400 }).unwrap();
    let taken = here.add_bridge(&Bridge { name: "br", mac, mtu: 1400 }).unwrap_err();
    assert!(taken.is(libc::EEXIST) && taken.to_string().contains("create bridge br"), "{taken}");
    let bridge = here.link("br").unwrap().unwrap();
    assert_eq!((bridge.mtu, &bridge.mac[..], bridge.kind.as_str()), (1400, &mac[..], "bridge"));
    let gateway = Ipv4Addr::new(10, 0, 0, 1);
    here.add_address(bridge.index, gateway.into(), 24).unwrap();
    here.add_address(bridge.index, gateway.into(), 24).unwrap();
    here.set_up(bridge.index).unwrap();
    let peer_mac = [0x0a, 0x58, 10, 0, 0, 2];
    let peer_netns = std::os::fd::AsFd::as_fd(&pod);
    let veth = Veth { name: "v0", master: bridge.index, mtu: 1400, peer_name: "eth0", peer_mac, peer_netns };
    here.add_veth(&veth).unwrap();
    let port = here.link("v0").unwrap().unwrap();
    assert!(port.up && port.master == bridge.index && port.kind == "veth", "{port:?}");
    here.set_hairpin(port.index).unwrap();

    let mut there = RouteSocket::open_in(&pod).unwrap();
    let eth0 = there.link("eth0").unwrap().unwrap();
    assert!(!eth0.up && eth0.mtu == 1400 && eth0.mac == peer_mac, "{eth0:?}");
    there.set_up(eth0.index).unwrap();
    let ip = Ipv4Addr::new(10, 0, 0, 2);
    there.add_address(eth0.index, ip.into(), 32).unwrap();
    assert!(there.addresses().unwrap().contains(&Address { index: eth0.index, ip: ip.into(), prefix: 32, scope: 0 }));
    let on_link = Route { to: Some((gateway.into(), 32)), gateway: None, index: eth0.index, source: None };
    there.add_route(&on_link).unwrap();
    assert_eq!(there.default_route_link().unwrap(), None);
    there.add_route(&Route { to: None, gateway: Some(gateway.into()), ..on_link }).unwrap();
    assert_eq!(there.default_route_link().unwrap(), Some(eth0.index));

    let server = node.run(|| TcpListener::bind((gateway, 0)).unwrap()).unwrap();
    let port = server.local_addr().unwrap().port();
    let client = pod.run(|| TcpStream::connect((gateway, port)).unwrap()).unwrap();
    assert_eq!(client.local_addr().unwrap().ip(), ip);
    assert_eq!(server.accept().unwrap().1.ip(), ip);

    here.delete_link("v0").unwrap();
    here.delete_link("v0").unwrap();
    assert_eq!(there.link("eth0").unwrap(), None, "the peer went with it");
}

#[test]
fn sysctls_belong_to_the_namespace() {
    let (a, b) = (namespace(), namespace());
    a.run(|| set_sysctl("net/ipv4/ip_forward", "1").unwrap()).unwrap();
    let read = |ns: &NetNs| ns.run(|| read_sysctl("net/ipv4/ip_forward").unwrap()).unwrap();
    assert_eq!((read(&a).as_str(), read(&b).as_str()), ("1", "0"));
    let error = set_sysctl("net/no/such", "1").unwrap_err();
    assert_eq!(error.to_string(), "cannot read /proc/sys/net/no/such");
}

#[test]
fn stale_udp_entries_are_deleted_and_others_stay() {
    namespace()
        .run(|| {
            // Connection tracking starts with the first table that needs it.
            let table = Table("t".into());
            NftSocket::open().unwrap().commit(redirecting(&table, vec![])).unwrap();
            let server = UdpSocket::bind("127.0.0.1:0").unwrap();
            let to = server.local_addr().unwrap();
            let clients = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
            for c in &clients {
                c.send_to(b"x", to).unwrap();
            }
            let stale = clients[0].local_addr().unwrap();
            let count = |deletes: bool| {
                let mut seen = std::cell::RefCell::new(Vec::new());
                let n = conntrack::delete_udp(|f| {
                    if f.destination == to {
                        seen.borrow_mut().push(f.source);
                    }
                    deletes && f.source == stale && f.answered_by == to
                });
                (n.unwrap(), seen.get_mut().len())
            };
            assert_eq!(count(true), (1, 2));
            assert_eq!(count(false), (0, 1));
        })
        .unwrap();
}
