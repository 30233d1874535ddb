//! What a state does to packets: what counts is where they go, not how the state spells it.

#![allow(clippy::unwrap_used)]

mod lab;

use isopod_client::views::Pod;
use isopod_proxy::plan::{HOST_PORTS, desired, host_port_rows, host_ports_of};
use isopod_proxy::state::{Changes, Front, Key, Masquerade, Protocol, Refusal, State, Target, Value};
use isopod_proxy::{LocalOverride, NodePortAddresses};
use lab::*;
use serde_json::{Value as Json, json};
use std::net::Ipv4Addr;
use std::sync::Arc;

const POD: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 99);
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Sends the first packet of a connection through the state: "endpoints[ masqueraded]", "reject", "drop" or "-".
fn send(state: &State, protocol: Protocol, from: Ipv4Addr, to: Ipv4Addr, port: u16) -> String {
    let node = [NODE_IP, LOOPBACK];
    let inside = from.octets()[..2] == [10, 42] || node.contains(&from);
    let mut fronts = vec![Front { ip: to, protocol, port }];
    if node.contains(&to) {
        fronts.push(Front { ip: Ipv4Addr::UNSPECIFIED, protocol, port });
    }
    for front in &fronts {
        let shortcut = inside.then(|| state.target(&Key::Inside(*front))).flatten();
        if let Some(Target { class, endpoints }) = shortcut.or_else(|| state.target(&Key::Service(*front))) {
            for e in endpoints.iter() {
                let kept = state.get(&Key::Kept(protocol, e.number));
                assert_eq!(kept, (class.affinity > 0).then_some(&Value::Address(e.address)), "clients may keep it");
            }
            let endpoints: Vec<String> = endpoints.iter().map(|e| e.address.ip().octets()[3].to_string()).collect();
            assert_eq!(endpoints.len(), class.endpoints as usize, "a class knows the number of endpoints");
            assert_eq!(class.any_address, front.ip.is_unspecified());
            let to_itself = endpoints == [from.octets()[3].to_string()] && state.get(&Key::Hairpin(from)).is_some();
            let masqueraded = to_itself
                || match class.masquerade {
                    Masquerade::All => true,
                    Masquerade::Nothing => false,
                    Masquerade::Outsiders => from.octets()[..2] != [10, 42],
                    Masquerade::Loopback => from.is_loopback(),
                };
            return endpoints.join(",") + if masqueraded { " masqueraded" } else { "" };
        }
    }
    match fronts.iter().find_map(|f| state.get(&Key::Refused(*f))) {
        Some(Value::Refusal(Refusal::Reject)) => "reject".into(),
        Some(Value::Refusal(Refusal::Drop)) => "drop".into(),
        _ => "-".into(),
    }
}

const A: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 2);
const B: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 3);

#[test]
fn where_packets_go() {
    let balancer = Ipv4Addr::new(203, 0, 113, 9);
    let external = json!({"type": "LoadBalancer", "externalIPs": [balancer.to_string()],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    let with = |more: Json| {
        let mut all = external.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let local = with(json!({"externalTrafficPolicy": "Local"}));
    let sticky = with(json!({"externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"}));
    let internal_local = json!({"internalTrafficPolicy": "Local"});
    let both = &[(A, "rl"), (B, "r")][..];
    let remote = &[(B, "r")][..];
    type Case<'a> = (&'a Json, &'a [(Ipv4Addr, &'a str)], &'a [(Ipv4Addr, Ipv4Addr, u16, &'a str)]);
    let plain = json!({});
    let cases: &[Case<'_>] = &[
        (
            &plain,
            both,
            &[
                (POD, VIP, 80, "2,3"),
                (A, VIP, 80, "2,3"),
                (NODE_IP, VIP, 80, "2,3 masqueraded"),
                (OUTSIDE_IP, VIP, 80, "2,3 masqueraded"),
                (POD, VIP, 81, "-"),
                (OUTSIDE_IP, NODE_IP, 30080, "-"),
            ],
        ),
        (&plain, &[(A, "rl")], &[(A, VIP, 80, "2 masqueraded"), (POD, VIP, 80, "2")]),
        (&plain, &[], &[(POD, VIP, 80, "reject"), (NODE_IP, VIP, 80, "reject")]),
        (&plain, &[(A, "n")], &[(POD, VIP, 80, "reject")]),
        (&plain, &[(A, "tl"), (B, "t")], &[(POD, VIP, 80, "2,3")]),
        (&plain, &[(A, "tl"), (B, "r")], &[(POD, VIP, 80, "3")]),
        (
            &external,
            both,
            &[
                (OUTSIDE_IP, NODE_IP, 30080, "2,3 masqueraded"),
                (NODE_IP, NODE_IP, 30080, "2,3 masqueraded"),
                (LOOPBACK, LOOPBACK, 30080, "2,3 masqueraded"),
                (POD, NODE_IP, 30080, "2,3 masqueraded"),
                (OUTSIDE_IP, balancer, 80, "2,3 masqueraded"),
                (OUTSIDE_IP, OUTSIDE_IP, 30080, "-"),
            ],
        ),
        (&external, &[], &[(OUTSIDE_IP, NODE_IP, 30080, "reject"), (OUTSIDE_IP, balancer, 80, "reject")]),
        (
            &local,
            both,
            &[
                (OUTSIDE_IP, NODE_IP, 30080, "2"),
                (OUTSIDE_IP, balancer, 80, "2"),
                (POD, balancer, 80, "2,3"),
                (NODE_IP, NODE_IP, 30080, "2,3 masqueraded"),
                (POD, VIP, 80, "2,3"),
            ],
        ),
        (
            &local,
            remote,
            &[
                (OUTSIDE_IP, NODE_IP, 30080, "drop"),
                (OUTSIDE_IP, balancer, 80, "drop"),
                (POD, NODE_IP, 30080, "3"),
                (POD, VIP, 80, "3"),
            ],
        ),
        (&local, &[(A, "tl"), (B, "r")], &[(OUTSIDE_IP, NODE_IP, 30080, "2"), (POD, VIP, 80, "3")]),
        (&local, &[], &[(OUTSIDE_IP, NODE_IP, 30080, "reject"), (POD, balancer, 80, "reject")]),
        (
            &sticky,
            both,
            &[
                (OUTSIDE_IP, NODE_IP, 30080, "2"),
                (POD, NODE_IP, 30080, "2,3"),
                (OUTSIDE_IP, balancer, 80, "2"),
                (NODE_IP, VIP, 80, "2,3 masqueraded"),
            ],
        ),
        (&internal_local, both, &[(POD, VIP, 80, "2"), (NODE_IP, VIP, 80, "2 masqueraded")]),
        (&internal_local, remote, &[(POD, VIP, 80, "drop")]),
        (&internal_local, &[], &[(POD, VIP, 80, "reject")]),
    ];
    for (spec, endpoints, packets) in cases {
        let state = state((*spec).clone(), endpoints);
        for (from, to, port, want) in *packets {
            let got = send(&state, Protocol::Tcp, *from, *to, *port);
            assert_eq!(got, *want, "{from} to {to}:{port}, endpoints {endpoints:?}, spec {spec}");
        }
    }
}

#[test]
fn services_that_are_not_ours_have_no_rows() {
    for more in [
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"clusterIP": "", "clusterIPs": []}),
        json!({"type": "ExternalName", "clusterIP": "", "clusterIPs": null}),
        json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}),
    ] {
        assert_eq!(state(more.clone(), &[(A, "r")]).rows().count(), 0, "{more}");
    }
    let mut labelled = service_json(json!({}));
    labelled["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    let labelled = Arc::new(serde_json::from_value(labelled).unwrap());
    assert_eq!(desired(&[labelled], &[slice(&[(A, "r")], "TCP")], &facts()).rows().count(), 0);
}

#[test]
fn node_ports_can_be_limited_to_addresses() {
    let spec = json!({"type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    let node = lab::facts();
    let node = isopod_proxy::plan::Node { node_port_addresses: NodePortAddresses::Only(vec![NODE_IP]), ..node };
    let state = desired(&[service(spec)], &[slice(&[(A, "r")], "TCP")], &node);
    assert_eq!(send(&state, Protocol::Tcp, OUTSIDE_IP, NODE_IP, 30080), "2 masqueraded");
    assert_eq!(send(&state, Protocol::Tcp, LOOPBACK, LOOPBACK, 30080), "-");
}

#[test]
fn the_dns_service_can_be_answered_by_this_node() {
    let target = "10.42.0.1:53".parse().unwrap();
    let dns = LocalOverride { namespace: "ns".into(), name: "web".into(), port: 53, target };
    let node = isopod_proxy::plan::Node { local_overrides: vec![dns], ..facts() };
    let ports = json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "http", "port": 80}]});
    let state = desired(&[service(ports)], &[slice(&[(A, "r")], "TCP")], &node);
    assert_eq!(send(&state, Protocol::Udp, POD, VIP, 53), "1", "without any endpoint");
    assert_eq!(send(&state, Protocol::Tcp, POD, VIP, 80), "2");
}

#[test]
fn host_ports_go_to_their_pods() {
    let pod = |ip: &str, phase: &str, ports: Json| -> Arc<Pod> {
        let pod = json!({"metadata": {"namespace": "ns", "name": ip}, "spec": {"containers": [{"name": "c", "ports": ports}]},
            "status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    };
    let port = |host_ip: &str| json!([{"containerPort": 8080, "hostPort": 80, "hostIP": host_ip}]);
    let pods = [
        pod("10.42.0.2", "Running", port("127.0.0.1")),
        pod("10.42.0.3", "Running", port(&NODE_IP.to_string())),
        pod("10.42.0.4", "Succeeded", port("")),
        pod(
            "10.42.0.5",
            "Running",
            json!([{"containerPort": 53, "hostPort": 53, "protocol": "UDP"}, {"containerPort": 9}]),
        ),
    ];
    let mut state = State::default();
    let rows = host_port_rows(&host_ports_of(&pods));
    state.set(HOST_PORTS, rows, &mut Changes::default());
    for (protocol, from, to, port, want) in [
        (Protocol::Tcp, LOOPBACK, LOOPBACK, 80, "2 masqueraded"),
        (Protocol::Tcp, OUTSIDE_IP, NODE_IP, 80, "3"),
        (Protocol::Udp, OUTSIDE_IP, NODE_IP, 53, "5"),
        (Protocol::Udp, LOOPBACK, LOOPBACK, 53, "5 masqueraded"),
        (Protocol::Tcp, OUTSIDE_IP, NODE_IP, 53, "-"),
    ] {
        assert_eq!(send(&state, protocol, from, to, port), want, "{from} to {to}:{port}");
    }
}
