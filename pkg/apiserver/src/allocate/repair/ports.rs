//! Node ports of services and the keys that claim them (upstream's `portallocator/controller/repair.go`).

use super::plan::{Finding, Mend, Plan};
use super::state::{Service, State};
use std::collections::{BTreeMap, BTreeSet};

const CONTROLLER: &str = "portallocator-repair-controller";

pub fn plan(state: &State) -> Plan {
    let mut plan = Plan::default();
    let range = format!("{}-{}", state.node_ports.start(), state.node_ports.end());
    let mut holders: BTreeSet<u16> = BTreeSet::new();
    for service in state.services.values() {
        let Service { metadata, .. } = service;
        for port in node_ports(service) {
            let stored = state.ports.get(&port);
            let in_range = state.node_ports.contains(&port);
            let first = holders.insert(port);
            let (reason, note) = if !in_range {
                let why = format!("is not within the port range {range}; please recreate service");
                ("PortOutOfRange", format!("Port {port} {why}"))
            } else if !first {
                let why = "was assigned to multiple services; please recreate service";
                ("PortAlreadyAllocated", format!("Port {port} {why}"))
            } else if stored.is_none() {
                ("PortNotAllocated", format!("Port {port} is not allocated; repairing"))
            } else {
                ("", String::new())
            };
            let owner = format!("{}/{}", metadata.namespace, metadata.name);
            if in_range && first && stored.is_none_or(|s| s.owner != owner) {
                let (namespace, service) = (metadata.namespace.clone(), metadata.name.clone());
                plan.mends.push(Mend::Claim { port, namespace, service });
            }
            if !reason.is_empty() {
                let (regarding, action) = (service.regarding(), "PortAllocation");
                plan.findings.push(Finding { regarding, controller: CONTROLLER, reason, action, note });
            }
        }
    }
    // A port is claimed in the transaction that writes its service: what no service has was not given back.
    let leaked = state.ports.keys().filter(|port| !holders.contains(port));
    plan.mends.extend(leaked.map(|port| Mend::Release { port: *port }));
    plan
}

/// The ports of a service. One number may be there twice, with two protocols, and is one port then.
fn node_ports(service: &Service) -> Vec<u16> {
    let mut seen: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    let mut all = Vec::new();
    for port in service.spec.ports.iter().filter(|p| p.node_port != 0) {
        let protocols = seen.entry(port.node_port).or_default();
        if protocols.is_empty() || protocols.contains(&port.protocol.as_str()) {
            all.push(port.node_port);
        }
        protocols.push(&port.protocol);
    }
    let health = service.spec.health_check_node_port;
    if health != 0 && seen.get(&health).is_none_or(|protocols| protocols.contains(&"TCP")) {
        all.push(health);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::state;
    use super::*;
    use serde_json::{Value, json};

    fn service(name: &str, ports: &[(&str, u16)], health: u16) -> Value {
        let ports: Vec<Value> = ports.iter().map(|(p, n)| json!({"protocol": p, "nodePort": n})).collect();
        json!({"metadata": {"namespace": "n", "name": name}, "spec": {"ports": ports, "healthCheckNodePort": health}})
    }

    fn planned(services: &[Value], ports: &[(u16, &str)]) -> (Vec<String>, Vec<Mend>) {
        let plan = plan(&state(services, &[], ports));
        let told = |f: &Finding| format!("{} {}: {}", f.regarding["name"].as_str().unwrap(), f.reason, f.note);
        (plan.findings.iter().map(told).collect(), plan.mends)
    }

    fn claim(port: u16, service: &str) -> Mend {
        Mend::Claim { port, namespace: "n".into(), service: service.into() }
    }

    #[test]
    fn ports_are_their_services() {
        let a = service("a", &[("TCP", 30001), ("UDP", 30001)], 30002);
        assert_eq!(planned(std::slice::from_ref(&a), &[(30001, "n/a"), (30002, "n/a")]), (vec![], vec![]));
        let (found, mends) = planned(std::slice::from_ref(&a), &[(30001, "n/b"), (30009, "n/a")]);
        assert_eq!(found, ["a PortNotAllocated: Port 30002 is not allocated; repairing"]);
        assert_eq!(mends, [claim(30001, "a"), claim(30002, "a"), Mend::Release { port: 30009 }]);
    }

    #[test]
    fn what_cannot_be_mended_is_told() {
        let all = [service("a", &[("TCP", 30001), ("TCP", 29999)], 0), service("b", &[("TCP", 30001)], 0)];
        let (found, mends) = planned(&all, &[(30001, "n/a"), (29999, "n/a")]);
        let out = "is not within the port range 30000-32767; please recreate service";
        let twice = "was assigned to multiple services; please recreate service";
        assert_eq!(
            found,
            [format!("a PortOutOfRange: Port 29999 {out}"), format!("b PortAlreadyAllocated: Port 30001 {twice}")]
        );
        assert_eq!(mends, []);
    }
}
