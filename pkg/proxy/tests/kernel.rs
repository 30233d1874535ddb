//! The table in the kernel, with real connections between namespaces. Needs root.

#![allow(clippy::unwrap_used)]

mod lab;

use isopod_proxy::plan::{HOST_PORTS, host_port_rows};
use isopod_proxy::state::{Changes, Protocol, State};
use isopod_proxy::{HostPort, Proxy};
use isopod_sys::netlink::NetNs;
use isopod_sys::nft::{Batch, NftSocket, Table};
use lab::*;
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

/// A lab with pods 2 and 3, serving on 8080 as `two` and `three`.
fn two_pods() -> (Lab, NetNs, NetNs) {
    let lab = Lab::new();
    let (two, three) = (lab.pod(2), lab.pod(3));
    serve(&two, "two", 8080);
    serve(&three, "three", 8080);
    (lab, two, three)
}

const BOTH: [&str; 2] = ["three", "two"];

#[test]
fn cluster_ip_from_pods_the_node_and_outside() {
    let (mut lab, two, _three) = two_pods();
    let client = lab.pod(9);
    let all = [(pod_ip(2), "rl"), (pod_ip(3), "rl")];
    lab.replace(state(json!({}), &all));
    for ns in [&client, &lab.node, &lab.outside, &two] {
        assert_eq!(answering(ns, VIP, 80, 30), BOTH);
    }
    assert!(ask(&client, VIP, 80).ends_with(" 10.42.0.9"), "pods keep their address");
    assert!(!ask(&lab.outside, VIP, 80).ends_with(" 192.0.2.2"), "outsiders are masqueraded");

    lab.update(state(json!({}), &[(pod_ip(2), "rl")]));
    assert_eq!(answering(&client, VIP, 80, 10), ["two"]);
    assert!(!ask(&two, VIP, 80).ends_with(" 10.42.0.2"), "a pod that reaches itself is masqueraded");

    lab.update(state(json!({}), &[]));
    assert_eq!(ask(&client, VIP, 80), "ConnectionRefused");
    assert_eq!(ask(&lab.node, VIP, 80), "ConnectionRefused");
    lab.update(state(json!({}), &all));
    assert_eq!(answering(&client, VIP, 80, 30), BOTH);
    assert_eq!(ask(&client, VIP, 81), "ConnectionRefused", "a port that the service does not have");
}

#[test]
fn node_ports_everywhere_and_the_local_policy() {
    let (mut lab, two, _three) = two_pods();
    let spec = |policy: &str| {
        json!({"type": "NodePort", "externalTrafficPolicy": policy,
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]})
    };
    let all = [(pod_ip(2), "rl"), (pod_ip(3), "r")];
    lab.replace(state(spec("Cluster"), &all));
    for (ns, ip) in [(&lab.outside, NODE_IP), (&lab.node, NODE_IP), (&lab.node, Ipv4Addr::LOCALHOST), (&two, NODE_IP)] {
        assert_eq!(answering(ns, ip, 30080, 30), BOTH, "{ip}");
    }
    lab.update(state(spec("Local"), &all));
    assert_eq!(answering(&lab.outside, NODE_IP, 30080, 20), ["two"]);
    assert_eq!(ask(&lab.outside, NODE_IP, 30080), "two 192.0.2.2", "the client's address is kept");
    assert_eq!(answering(&lab.node, NODE_IP, 30080, 30), BOTH, "the node itself reaches all");
    lab.update(state(spec("Local"), &[(pod_ip(3), "r")]));
    let short = Duration::from_millis(300);
    assert_eq!(ask_within(&lab.outside, NODE_IP, 30080, short), "TimedOut", "dropped, not refused");
    assert_eq!(answering(&two, NODE_IP, 30080, 5), ["three"]);
    lab.update(state(spec("Cluster"), &[]));
    assert_eq!(ask(&lab.outside, NODE_IP, 30080), "ConnectionRefused");
    assert_eq!(ask(&lab.node, Ipv4Addr::LOCALHOST, 30080), "ConnectionRefused");
}

#[test]
fn a_client_keeps_its_endpoint() {
    let (mut lab, _two, _three) = two_pods();
    let spec = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    let all = [(pod_ip(2), "rl"), (pod_ip(3), "rl")];
    lab.replace(state(spec.clone(), &all));
    let clients: Vec<NetNs> = (10..26).map(|n| lab.pod(n)).collect();
    let kept: Vec<Vec<String>> = clients.iter().map(|c| answering(c, VIP, 80, 8)).collect();
    assert!(kept.iter().all(|k| k.len() == 1), "{kept:?}");
    assert!(kept.iter().any(|k| k[0] == "two") && kept.iter().any(|k| k[0] == "three"), "{kept:?}");
    // The kernel shows what it was told, when it was told something else than the map's default.
    let look = || std::process::Command::new("nft").args(["list", "map", "ip", "isopod-proxy", "sticky"]).output();
    let shown = String::from_utf8(lab.node.run(look).unwrap().unwrap().stdout).unwrap();
    assert!(shown.contains("timeout 1m"), "{shown}");
    // When the endpoint goes, its clients get another, and keep that one though the first comes back.
    let lost = kept.iter().position(|k| k[0] == "two").unwrap();
    lab.plan(spec.clone(), &all[1..]);
    assert_eq!(answering(&clients[lost], VIP, 80, 4), ["three"]);
    lab.plan(spec, &all);
    assert_eq!(answering(&clients[lost], VIP, 80, 12), ["three"]);
}

#[test]
fn host_ports_reach_their_pod() {
    let (mut lab, _two, _three) = two_pods();
    let mut state = State::default();
    let pod = SocketAddrV4::new(pod_ip(2), 8080);
    let ports = [
        HostPort { protocol: Protocol::Tcp, host_ip: None, host_port: 8000, pod },
        HostPort { protocol: Protocol::Tcp, host_ip: Some(Ipv4Addr::LOCALHOST), host_port: 8001, pod },
    ];
    let rows = host_port_rows(&ports);
    state.set(HOST_PORTS, rows, &mut Changes::default());
    lab.replace(state);
    assert_eq!(ask(&lab.outside, NODE_IP, 8000), "two 192.0.2.2");
    assert!(ask(&lab.node, NODE_IP, 8000).starts_with("two "));
    assert!(ask(&lab.node, Ipv4Addr::LOCALHOST, 8000).starts_with("two "));
    assert!(ask(&lab.node, Ipv4Addr::LOCALHOST, 8001).starts_with("two "));
    assert_eq!(ask(&lab.outside, NODE_IP, 8001), "ConnectionRefused");
}

/// A rolling update: the old pod terminates and still serves until the new one is ready.
#[test]
fn no_connection_is_lost_while_endpoints_roll() {
    let (mut lab, _two, _three) = two_pods();
    let client = lab.pod(9);
    let steps = [
        &[(pod_ip(2), "rl")][..],
        &[(pod_ip(2), "rl"), (pod_ip(3), "n")],
        &[(pod_ip(2), "tl"), (pod_ip(3), "n")],
        &[(pod_ip(2), "tl"), (pod_ip(3), "rl")],
        &[(pod_ip(3), "rl")],
        &[(pod_ip(3), "tl")],
        &[(pod_ip(2), "rl"), (pod_ip(3), "tl")],
    ];
    lab.replace(state(json!({}), steps[0]));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let answers = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut answers = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                answers.push(ask(&client, VIP, 80));
            }
            answers
        });
        for step in steps.iter().cycle().take(70) {
            lab.update(state(json!({}), step));
            assert!(ask(&client, VIP, 80).ends_with(" 10.42.0.9"));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        asking.join().unwrap()
    });
    assert!(answers.len() > 20);
    assert!(answers.iter().all(|a| a.ends_with(" 10.42.0.9")), "{answers:?}");
}

#[test]
fn many_services_are_written_at_once_and_one_more_is_small() {
    let mut lab = Lab::new();
    let pod = lab.pod(2);
    serve(&pod, "two", 8080);
    let state_of = |n: u32| {
        let services: Vec<_> = (0..n)
            .map(|i| {
                let ip = Ipv4Addr::from_bits(VIP.to_bits() + i).to_string();
                let mut s = service_json(json!({"clusterIP": ip, "clusterIPs": [ip]}));
                s["metadata"]["name"] = json!(format!("web-{i}"));
                std::sync::Arc::new(serde_json::from_value(s).unwrap())
            })
            .collect();
        let slices: Vec<_> = (0..n)
            .map(|i| {
                let mut s = slice_json(&[(pod_ip(2), "rl"), (pod_ip(2), "rl")], "TCP");
                s["metadata"]["labels"]["kubernetes.io/service-name"] = json!(format!("web-{i}"));
                std::sync::Arc::new(serde_json::from_value(s).unwrap())
            })
            .collect();
        isopod_proxy::plan::desired(&services, &slices, &facts())
    };
    lab.replace(state_of(5000));
    let last = Ipv4Addr::from_bits(VIP.to_bits() + 5000);
    assert_eq!(ask_within(&lab.node, last, 80, Duration::from_millis(200)), "TimedOut", "no service has it: dropped");
    lab.update(state_of(5001));
    assert!(ask(&lab.node, last, 80).starts_with("two "));
}

#[test]
fn cleanup_removes_the_table() {
    let (mut lab, ..) = two_pods();
    lab.replace(state(json!({}), &[(pod_ip(2), "rl")]));
    lab.node
        .run(|| {
            Proxy::cleanup("isopod").unwrap();
            Proxy::cleanup("isopod").unwrap();
            let mut gone = Batch::new();
            gone.delete_table(&Table("isopod-proxy".into()));
            assert_eq!(NftSocket::open().unwrap().commit(gone).unwrap_err().errno(), Some(2));
        })
        .unwrap();
}
