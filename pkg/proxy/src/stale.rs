//! Which tracked UDP flows still follow a decision that no longer holds.
//!
//! A UDP "connection" lives as long as its packets keep coming, with the endpoint (or the lack of one) that its first
//! packet met. When endpoints change, such flows must be forgotten, or a client that keeps its port talks to nobody.

use crate::state::{Front, Key, Protocol, State, Value};
use isopod_sys::conntrack::Flow;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

/// UDP fronts that this change touched, with those that are gone. Empty: there is nothing to clean.
pub(crate) fn touched(changes: &[(Key, Option<Value>, Option<Value>)]) -> Option<BTreeSet<Front>> {
    let udp = changes.iter().any(
        |(key, ..)| matches!(key, Key::Service(f) | Key::Inside(f) | Key::Refused(f) if f.protocol == Protocol::Udp),
    );
    let gone = changes.iter().filter_map(|(key, _, after)| match key {
        Key::Service(f) | Key::Inside(f) if after.is_none() && f.protocol == Protocol::Udp => Some(*f),
        _ => None,
    });
    udp.then(|| gone.collect())
}

/// Whether the flow goes where it would not go today. `node` are this node's addresses.
pub(crate) fn is_stale(state: &State, gone: &BTreeSet<Front>, node: &[Ipv4Addr], flow: &Flow) -> bool {
    let (IpAddr::V4(ip), IpAddr::V4(answers)) = (flow.destination.ip(), flow.answered_by.ip()) else { return false };
    let answered_by = SocketAddrV4::new(answers, flow.answered_by.port());
    let front = |ip| Front { ip, protocol: Protocol::Udp, port: flow.destination.port() };
    let mut fronts = vec![front(ip)];
    if node.contains(&ip) {
        fronts.push(front(Ipv4Addr::UNSPECIFIED));
    }
    let mut known = false;
    for front in &fronts {
        for key in [Key::Service(*front), Key::Inside(*front)] {
            if let Some(target) = state.target(&key) {
                known = true;
                if target.endpoints.iter().any(|e| e.address == answered_by) {
                    return false;
                }
            }
        }
    }
    // A front without endpoints, or that is gone: what was translated goes to an endpoint that is no longer one.
    let translated = flow.answered_by != flow.destination;
    known || (translated && fronts.iter().any(|f| gone.contains(f)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Changes, Class, Endpoint, Masquerade, Target};

    #[test]
    fn flows_are_stale_when_their_front_would_send_them_elsewhere() {
        let mut state = State::default();
        let vip = Front { ip: Ipv4Addr::new(10, 43, 0, 1), protocol: Protocol::Udp, port: 53 };
        let node_port = Front { ip: Ipv4Addr::UNSPECIFIED, protocol: Protocol::Udp, port: 30053 };
        let class = Class { masquerade: Masquerade::All, endpoints: 1, affinity: 0, any_address: false, inside: false };
        let endpoints = [Endpoint { address: "10.42.0.2:53".parse().unwrap(), number: 0 }].into();
        let target = Value::Target(Target { class, endpoints });
        let rows = vec![(Key::Service(vip), target.clone()), (Key::Service(node_port), target)];
        let mut changes = Changes::default();
        state.set("a", rows, &mut changes);
        assert_eq!(touched(&changes.against(&state)), Some(BTreeSet::new()));
        let removed = Front { port: 99, ..vip };
        let gone = BTreeSet::from([removed]);
        let node = [Ipv4Addr::new(192, 0, 2, 1)];
        for (destination, answered_by, stale) in [
            ("10.43.0.1:53", "10.42.0.2:53", false),
            ("10.43.0.1:53", "10.42.0.3:53", true),
            ("10.43.0.1:53", "10.43.0.1:53", true),
            ("192.0.2.1:30053", "10.42.0.9:53", true),
            ("192.0.2.1:30053", "10.42.0.2:53", false),
            ("198.51.100.1:30053", "198.51.100.1:30053", false),
            ("10.43.0.1:99", "10.42.0.2:53", true),
            ("10.43.0.1:99", "10.43.0.1:99", false),
            ("1.1.1.1:53", "1.1.1.1:53", false),
        ] {
            let flow = Flow {
                source: "10.42.0.7:1000".parse().unwrap(),
                destination: destination.parse().unwrap(),
                answered_by: answered_by.parse().unwrap(),
            };
            assert_eq!(is_stale(&state, &gone, &node, &flow), stale, "{destination} {answered_by}");
        }
    }
}
