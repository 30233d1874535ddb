//! What a person sees who asks `nft`: the stock program lists our table whole, and takes its own listing back. Needs root.

#![allow(clippy::unwrap_used)]

mod lab;

use isopod_client::views::{EndpointSlice, Service};
use isopod_proxy::plan::{HOST_PORTS, desired, host_port_rows};
use isopod_proxy::state::{Changes, Protocol, State};
use isopod_proxy::{HostPort, LocalOverride};
use isopod_sys::netlink::NetNs;
use lab::*;
use serde_json::{Value as Json, json};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Runs `nft` in the namespace with this input; what it printed.
fn nft(ns: &NetNs, args: &[&str], input: &str) -> String {
    let run = || {
        let mut nft = Command::new("nft").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        nft.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        nft.wait_with_output().unwrap()
    };
    let output = ns.run(run).unwrap();
    assert!(output.status.success(), "nft {args:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A service of this name with everything that a table can have: see [`service_json`] for the rest.
fn service(name: &str, ip: &str, more: Json) -> Arc<Service> {
    let mut service = service_json(json!({"clusterIP": ip, "clusterIPs": [ip]}));
    service["metadata"]["name"] = json!(name);
    service["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Arc::new(serde_json::from_value(service).unwrap())
}

fn slice(name: &str, endpoints: &[(Ipv4Addr, &str)]) -> Arc<EndpointSlice> {
    let mut slice = slice_json(endpoints, "TCP");
    slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!(name);
    Arc::new(serde_json::from_value(slice).unwrap())
}

/// Every kind of row, and chains of every class: fronts by name and at every address, with and without affinity, inside
/// and outside, refused and dropped, host ports, UDP.
fn everything() -> State {
    let external = |policy: &str, affinity: &str, node_port: u16| {
        json!({"type": "LoadBalancer", "externalIPs": [format!("203.0.113.{}", node_port % 100)],
            "externalTrafficPolicy": policy, "sessionAffinity": affinity,
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "ports": [{"name": "http", "port": 80, "nodePort": node_port}]})
    };
    let services = [
        service("web", &VIP.to_string(), json!({})),
        service("global", "10.43.0.11", external("Cluster", "None", 30011)),
        service("local", "10.43.0.12", external("Local", "None", 30012)),
        service("sticky", "10.43.0.13", external("Cluster", "ClientIP", 30013)),
        service("sticky-local", "10.43.0.14", external("Local", "ClientIP", 30014)),
        service("nobody", "10.43.0.15", external("Cluster", "None", 30015)),
        service("elsewhere", "10.43.0.16", external("Local", "None", 30016)),
        service("dns", "10.43.0.17", json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]})),
    ];
    let both = [(pod_ip(2), "rl"), (pod_ip(3), "rl")];
    let mut slices = ["web", "global", "local", "sticky", "sticky-local"].map(|name| slice(name, &both)).to_vec();
    slices.push(slice("elsewhere", &[(Ipv4Addr::new(10, 42, 1, 2), "r")]));
    let target = SocketAddrV4::new(pod_ip(2), 53);
    let dns = LocalOverride { namespace: "ns".into(), name: "dns".into(), port: 53, target };
    let node = isopod_proxy::plan::Node { local_overrides: vec![dns], ..facts() };
    let mut state = desired(&services, &slices, &node);
    let pod = SocketAddrV4::new(pod_ip(2), 8080);
    let port = |host_ip, host_port| HostPort { protocol: Protocol::Tcp, host_ip, host_port, pod };
    let rows = host_port_rows(&[port(None, 8000), port(Some(NODE_IP), 8001)]);
    state.set(HOST_PORTS, rows, &mut Changes::default());
    state
}

/// Everything that the state above promises, asked by real clients.
fn check_traffic(lab: &Lab, client: &NetNs, when: &str) {
    const BOTH: [&str; 2] = ["three", "two"];
    for (ns, ip, port) in [
        (client, VIP, 80),
        (&lab.node, VIP, 80),
        (&lab.outside, Ipv4Addr::new(203, 0, 113, 11), 80),
        (&lab.outside, NODE_IP, 30011),
        (&lab.outside, NODE_IP, 30012),
        (client, NODE_IP, 30012),
    ] {
        assert_eq!(answering(ns, ip, port, 30), BOTH, "{ip}:{port} {when}");
    }
    let sticky = [
        (client, Ipv4Addr::new(10, 43, 0, 13), 80),
        (&lab.outside, NODE_IP, 30013),
        (&lab.outside, NODE_IP, 30014),
        (client, NODE_IP, 30014),
    ];
    for (ns, ip, port) in sticky {
        assert_eq!(answering(ns, ip, port, 8).len(), 1, "{ip}:{port} {when}");
    }
    assert_eq!(ask(client, Ipv4Addr::new(10, 43, 0, 15), 80), "ConnectionRefused", "{when}");
    assert_eq!(ask(&lab.outside, NODE_IP, 30015), "ConnectionRefused", "{when}");
    assert!(ask(&lab.outside, NODE_IP, 8000).starts_with("two "), "{when}");
}

#[test]
fn nft_lists_the_table_and_takes_its_listing_back() {
    let mut lab = Lab::new();
    let (two, three, client) = (lab.pod(2), lab.pod(3), lab.pod(9));
    serve(&two, "two", 8080);
    serve(&three, "three", 8080);
    lab.replace(everything());

    let listing = nft(&lab.node, &["list", "ruleset"], "");
    for part in [
        "goto cluster-2",
        "10.43.0.10 . tcp . 80 . 0 : 10.42.0.2 . 8080",
        "10.43.0.10 . tcp . 80 . 1 : 10.42.0.3 . 8080",
        "203.0.113.11 . tcp . 80 . 1 : 10.42.0.3 . 8080",
        "tcp . 30011 . 0 : 10.42.0.2 . 8080",
        "tcp . 8000 . 0 : 10.42.0.2 . 8080",
        "10.43.0.15 . tcp . 80 : goto refuse",
        "203.0.113.16 . tcp . 80 : drop",
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints",
    ] {
        assert!(listing.contains(part), "{part:?} in {listing}");
    }
    check_traffic(&lab, &client, "as we wrote it");

    // A firewall's "save" and "restore": the same rules, the same elements, the same traffic.
    let other = NetNs::create().unwrap();
    nft(&other, &["-f", "-"], &listing);
    assert_eq!(nft(&other, &["list", "ruleset"], ""), listing);
    nft(&lab.node, &["flush", "ruleset"], "");
    assert_eq!(nft(&lab.node, &["list", "ruleset"], ""), "");
    nft(&lab.node, &["-f", "-"], &listing);
    check_traffic(&lab, &client, "as nft wrote it");
    assert!(nft(&lab.node, &["list", "ruleset"], "").contains("timeout 1m"), "with clients' choices in it");
}

#[test]
fn nft_lists_the_table_as_json() {
    let mut lab = Lab::new();
    lab.replace(everything());
    let listing: Json = serde_json::from_str(&nft(&lab.node, &["-j", "list", "ruleset"], "")).unwrap();
    let objects = listing["nftables"].as_array().unwrap();
    let map = |name: &str| -> &[Json] {
        let map = objects.iter().map(|o| &o["map"]).find(|m| m["name"] == name);
        map.and_then(|m| m["elem"].as_array()).unwrap_or_else(|| panic!("no {name}"))
    };
    let endpoint = json!([{"concat": ["10.43.0.10", "tcp", 80, 1]}, {"concat": ["10.42.0.3", 8080]}]);
    assert!(map("endpoints").contains(&endpoint), "{:?}", map("endpoints"));
    let service = json!([{"concat": ["10.43.0.10", "tcp", 80]}, {"goto": {"target": "cluster-2"}}]);
    assert!(map("services").contains(&service), "{:?}", map("services"));
    let chains = objects.iter().filter_map(|o| o["chain"]["name"].as_str());
    assert!(chains.filter(|c| c.contains("-sticky-60")).count() >= 4);
}
