//! Which endpoints of a service port this node uses (KEP-1669 for terminating ones, KEP-2433 and KEP-3015 for hints).

use crate::state::Protocol;
use isopod_client::views::EndpointSlice;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

/// What the node is, to the choice of endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub name: String,
    /// The label `topology.kubernetes.io/zone`, empty without.
    pub zone: String,
}

/// One endpoint of a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// On this node.
    pub local: bool,
    pub hinted_node: Hint,
    pub hinted_zone: Hint,
}

/// Whether a hint names us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hint {
    #[default]
    Missing,
    Elsewhere,
    Here,
}

/// The endpoints to use, in a stable order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// For traffic that may go to any node.
    pub cluster: Vec<SocketAddrV4>,
    /// For traffic that must stay on this node.
    pub local: Vec<SocketAddrV4>,
    /// Some node has an endpoint that serves.
    pub any: bool,
    /// Those of the above that are on this node.
    pub hairpin: Vec<Ipv4Addr>,
}

/// The IPv4 endpoints that the slices give the port.
pub fn candidates(
    slices: &[Arc<EndpointSlice>],
    port_name: &str,
    protocol: Protocol,
    node: &NodeFacts,
) -> BTreeMap<SocketAddrV4, Candidate> {
    let mut all = BTreeMap::new();
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let ports = slice.ports.iter().filter(|p| {
            p.name.as_deref().unwrap_or_default() == port_name
                && Protocol::parse(p.protocol.as_deref().unwrap_or_default()) == Some(protocol)
        });
        for port in ports.filter_map(|p| u16::try_from(p.port?).ok()) {
            for e in &slice.endpoints {
                // "Consumers should use the first address" (EndpointSlice's API).
                let Some(ip) = e.addresses.first().and_then(|a| a.parse::<Ipv4Addr>().ok()) else { continue };
                let hint = |names: &[isopod_client::views::NamedRef], own: &str| match names {
                    [] => Hint::Missing,
                    all if all.iter().any(|n| n.name == own) => Hint::Here,
                    _ => Hint::Elsewhere,
                };
                let hints = e.hints.clone().unwrap_or_default();
                let candidate = Candidate {
                    ready: e.conditions.is_ready(),
                    serving: e.conditions.is_serving(),
                    terminating: e.conditions.is_terminating(),
                    local: e.node_name.as_deref() == Some(node.name.as_str()),
                    hinted_node: hint(&hints.for_nodes, &node.name),
                    hinted_zone: hint(&hints.for_zones, &node.zone),
                };
                // An endpoint that moves between slices is in both for a moment: the ready one counts.
                let entry = all.entry(SocketAddrV4::new(ip, port)).or_insert_with(|| candidate.clone());
                if candidate.ready && !entry.ready {
                    *entry = candidate;
                }
            }
        }
    }
    all
}

/// Chooses. Ready endpoints count; where there are none, those that still serve while they terminate.
pub fn select(all: &BTreeMap<SocketAddrV4, Candidate>) -> Selected {
    let fallback = |c: &Candidate| c.serving && c.terminating;
    let pick = |wanted: &dyn Fn(&Candidate) -> bool| -> Vec<SocketAddrV4> {
        all.iter().filter(|(_, c)| wanted(c)).map(|(a, _)| *a).collect()
    };
    let near = hinted(all);
    let mut cluster = pick(&|c| c.ready && near(c));
    if cluster.is_empty() {
        cluster = pick(&fallback);
    }
    let mut local = pick(&|c| c.ready && c.local);
    if local.is_empty() {
        local = pick(&|c| c.local && fallback(c));
    }
    let any = all.values().any(|c| c.ready || fallback(c));
    let on_node = |a: &&SocketAddrV4| all.get(a).is_some_and(|c| c.local);
    let mut hairpin: Vec<Ipv4Addr> = cluster.iter().chain(&local).filter(on_node).map(|a| *a.ip()).collect();
    hairpin.sort_unstable();
    hairpin.dedup();
    Selected { cluster, local, any, hairpin }
}

/// Hints count when every ready endpoint has one and one of them names us: the node's before the zone's.
fn hinted(all: &BTreeMap<SocketAddrV4, Candidate>) -> fn(&Candidate) -> bool {
    let ready = || all.values().filter(|c| c.ready);
    let usable = |hint: fn(&Candidate) -> Hint| {
        ready().all(|c| hint(c) != Hint::Missing) && ready().any(|c| hint(c) == Hint::Here)
    };
    if usable(|c| c.hinted_node) {
        |c| c.hinted_node == Hint::Here
    } else if usable(|c| c.hinted_zone) {
        |c| c.hinted_zone == Hint::Here
    } else {
        |_| true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `r` ready, `t` terminating and serving, `d` terminating and not serving, `n` not ready; `l` local;
    /// `N`/`n'`, `Z`/`z` hint here/elsewhere for node and zone.
    fn candidate(spec: &str) -> Candidate {
        let has = |c| spec.contains(c);
        let hint = |here, elsewhere| match (has(here), has(elsewhere)) {
            (true, _) => Hint::Here,
            (_, true) => Hint::Elsewhere,
            _ => Hint::Missing,
        };
        Candidate {
            ready: has('r'),
            serving: has('r') || has('t'),
            terminating: has('t') || has('d'),
            local: has('l'),
            hinted_node: hint('N', 'o'),
            hinted_zone: hint('Z', 'z'),
        }
    }

    #[test]
    fn which_endpoints_are_used() {
        // endpoints → (cluster, local, any): digits are indexes.
        for (endpoints, cluster, local, any) in [
            (&[][..], "", "", false),
            (&["r", "rl", "n"], "01", "1", true),
            (&["r", "t", "tl"], "0", "2", true),
            (&["n", "t", "d"], "1", "", true),
            (&["tl", "dl"], "0", "0", true),
            (&["d", "n"], "", "", false),
            (&["r", "rl", "tl"], "01", "1", true),
            (&["rZ", "rz"], "0", "", true),
            (&["rz", "rz"], "01", "", true),
            (&["rZ", "r"], "01", "", true),
            (&["rZN", "rZo", "rzo"], "0", "", true),
            (&["rZ", "rzN"], "0", "", true),
            (&["rZl", "rzl"], "0", "01", true),
            (&["tz", "tZ"], "01", "", true),
        ] {
            let address = |i: usize| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, i as u8), 80);
            let all = endpoints.iter().enumerate().map(|(i, e)| (address(i), candidate(e))).collect();
            let got = select(&all);
            let show = |list: &[SocketAddrV4]| list.iter().map(|a| a.ip().octets()[3].to_string()).collect::<String>();
            assert_eq!(
                (show(&got.cluster).as_str(), show(&got.local).as_str(), got.any),
                (cluster, local, any),
                "{endpoints:?}"
            );
        }
    }

    #[test]
    fn slices_give_candidates_by_port_name_and_family() {
        let slice = |family: &str, port: &str, ready: bool| -> Arc<EndpointSlice> {
            let v = serde_json::json!({
                "metadata": {"name": "s"}, "addressType": family,
                "ports": [{"name": port, "port": 8080, "protocol": "TCP"}, {"name": "all"}],
                "endpoints": [{"addresses": ["10.0.0.1", "10.9.9.9"], "nodeName": "me", "conditions": {"ready": ready}}],
            });
            Arc::new(serde_json::from_value(v).unwrap())
        };
        let node = NodeFacts { name: "me".into(), zone: String::new() };
        let get = |slices: &[Arc<EndpointSlice>]| candidates(slices, "http", Protocol::Tcp, &node);
        assert!(get(&[slice("IPv6", "http", true), slice("IPv4", "other", true)]).is_empty());
        let both = get(&[slice("IPv4", "http", false), slice("IPv4", "http", true)]);
        assert_eq!(both.len(), 1);
        assert!(both.values().all(|c| c.ready && c.local));
        assert!(candidates(&[slice("IPv4", "http", true)], "http", Protocol::Udp, &node).is_empty());
    }
}
