//! Cluster addresses of services and the IPAddress objects that stand for them: each address has one object, which refers to its
//! service, and no object is left of a service that is gone (upstream's `ipallocator/controller/repairip.go`).

use super::plan::{Finding, Mend, Plan};
use super::state::{Address, Parent, Service, State};
use crate::allocate::service::{FAMILY_LABEL, MANAGED_BY_LABEL, MANAGER, family};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::net::IpAddr;

const CONTROLLER: &str = "ipallocator-repair-controller";
/// So long one of upstream's servers may take from an address's object to its service.
const CREATION: SignedDuration = SignedDuration::from_secs(60);
/// And to take the object back where there was such a service already.
const REVERT: SignedDuration = SignedDuration::from_secs(5);

/// What is wrong with an address of a service.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    OutOfRange,
    Unallocated,
    WrongReference,
    /// Another service has it, too, and the object is that one's.
    Taken,
    WrongLabels,
}

pub fn plan(state: &State, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    // Of several services with one address, the first gets it.
    let mut mended = BTreeSet::new();
    for service in state.services.values().filter(|s| has_addresses(s)) {
        for text in &service.spec.cluster_ips {
            let Ok(ip) = text.parse::<IpAddr>() else {
                // Upstream shows what it has made of it: nothing.
                let note = "Cluster IP <nil> is not a valid IP; please recreate Service".to_owned();
                plan.findings.push(about(service, "ClusterIPNotValid", "ClusterIPValidation", note));
                continue;
            };
            for fault in faults(state, service, ip) {
                plan.findings.extend(finding(service, ip, fault));
                if matches!(fault, Fault::OutOfRange | Fault::Taken) || !mended.insert(ip.to_string()) {
                    continue;
                }
                plan.mends.extend(state.addresses.get(&ip.to_string()).map(free));
                let (namespace, service) = (service.metadata.namespace.clone(), service.metadata.name.clone());
                plan.mends.push(Mend::Allocate { address: ip, namespace, service });
            }
        }
    }
    for address in state.addresses.values().filter(|a| is_ours(a) && !mended.contains(&a.metadata.name)) {
        left_over(state, address, now, &mut plan);
    }
    plan
}

fn has_addresses(service: &Service) -> bool {
    service.spec.cluster_ip != "None" && service.spec.kind != "ExternalName"
}

fn faults(state: &State, service: &Service, ip: IpAddr) -> Vec<Fault> {
    if !state.ranges.iter().any(|range| range.is_usable(ip)) {
        return vec![Fault::OutOfRange];
    }
    let Some(address) = state.addresses.get(&ip.to_string()) else { return vec![Fault::Unallocated] };
    let parent = &address.spec.parent_ref;
    if !is_service(parent) {
        return vec![Fault::WrongReference];
    }
    let mut all = Vec::new();
    if (&parent.namespace, &parent.name) != (&service.metadata.namespace, &service.metadata.name) {
        let Some(other) = referred(state, parent) else { return vec![Fault::WrongReference] };
        // The object of one that does not have it is left over, and goes as such.
        all.extend(holds(other, address).then_some(Fault::Taken));
    }
    let family_label = address.metadata.labels.get(FAMILY_LABEL).map(String::as_str);
    if family_label != Some(family(ip)) || !is_ours(address) {
        all.push(Fault::WrongLabels);
    }
    all
}

fn finding(service: &Service, ip: IpAddr, fault: Fault) -> Option<Finding> {
    let family = family(ip);
    let whose = format!("{}/{}", service.metadata.namespace, service.metadata.name);
    let (reason, note) = match fault {
        Fault::OutOfRange => {
            let why = "is not within any configured Service CIDR; please recreate service";
            ("ClusterIPOutOfRange", format!("Cluster IP [{family}]: {ip} {why}"))
        }
        Fault::Unallocated => {
            ("ClusterIPNotAllocated", format!("Cluster IP [{family}]: {ip} is not allocated; repairing"))
        }
        Fault::WrongReference => {
            let why = format!("for Service {whose} has a wrong reference; repairing");
            ("ClusterIPNotAllocated", format!("the ClusterIP [{family}]: {ip} {why}"))
        }
        Fault::Taken => {
            let why = "was assigned to multiple services; please recreate service";
            ("ClusterIPAlreadyAllocated", format!("Cluster IP [{family}]:{ip} {why}"))
        }
        Fault::WrongLabels => return None,
    };
    Some(about(service, reason, "ClusterIPAllocation", note))
}

fn about(service: &Service, reason: &'static str, action: &'static str, note: String) -> Finding {
    Finding { regarding: service.regarding(), controller: CONTROLLER, reason, action, note }
}

/// An object that this allocator made, and that may be nobody's.
fn left_over(state: &State, address: &Address, now: Timestamp, plan: &mut Plan) {
    let (name, parent) = (&address.metadata.name, &address.spec.parent_ref);
    let made = address.metadata.made().unwrap_or(Timestamp::UNIX_EPOCH);
    let age = now.duration_since(made);
    let (reason, note) = if !is_service(parent) {
        let why = "appears to have been modified, not referencing a Service";
        ("IPAddressNotAllocated", format!("IPAddress {name} {why} {}: cleaning up", shown(parent)))
    } else {
        let whose = format!("IPAddress: {name} for Service {}/{}", parent.namespace, parent.name);
        match referred(state, parent) {
            None if age <= CREATION => return plan.look_again((CREATION - age).unsigned_abs()),
            None => ("IPAddressNotAllocated", format!("{whose} appears to have leaked: cleaning up")),
            Some(service) if holds(service, address) => return,
            Some(service) if service.spec.kind == "ExternalName" && age < CREATION => {
                return plan.look_again((CREATION - age).unsigned_abs());
            }
            Some(service) if service.metadata.made().is_some_and(|t| t < made) && age < REVERT => {
                return plan.look_again(REVERT.unsigned_abs());
            }
            Some(_) => ("IPAddressWrongReference", format!("{whose} has a wrong reference; cleaning up")),
        }
    };
    let regarding = address.regarding();
    plan.findings.push(Finding { regarding, controller: CONTROLLER, reason, action: "IPAddressAllocation", note });
    plan.mends.push(free(address));
}

fn is_service(parent: &Parent) -> bool {
    parent.group.is_empty() && parent.resource == "services"
}

fn referred<'a>(state: &'a State, parent: &Parent) -> Option<&'a Service> {
    state.services.get(&(parent.namespace.clone(), parent.name.clone()))
}

fn holds(service: &Service, address: &Address) -> bool {
    service.spec.cluster_ips.contains(&address.metadata.name)
}

fn is_ours(address: &Address) -> bool {
    address.metadata.labels.get(MANAGED_BY_LABEL).is_some_and(|by| by == MANAGER)
}

fn free(address: &Address) -> Mend {
    Mend::Free { address: address.metadata.name.clone(), uid: address.metadata.uid.clone() }
}

/// As Go shows it.
fn shown(Parent { group, resource, namespace, name }: &Parent) -> String {
    format!("&ParentReference{{Group:{group},Resource:{resource},Namespace:{namespace},Name:{name},}}")
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::state;
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-01-01T00:10:00Z";

    fn service(name: &str, ips: &[&str]) -> Value {
        json!({"metadata": {"namespace": "n", "name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"type": "ClusterIP", "clusterIP": ips.first().unwrap_or(&""), "clusterIPs": ips}})
    }

    fn address(ip: &str, parent: &str, made: &str) -> Value {
        json!({"metadata": {"name": ip, "uid": ip, "creationTimestamp": made, "labels": {
                FAMILY_LABEL: "IPv4", MANAGED_BY_LABEL: MANAGER}},
            "spec": {"parentRef": {"resource": "services", "namespace": "n", "name": parent}}})
    }

    const LONG_AGO: &str = "2026-01-01T00:00:00Z";

    /// Reasons and notes, and mends in short.
    fn planned(services: &[Value], addresses: &[Value]) -> (Vec<String>, Vec<String>, Option<u64>) {
        let plan = plan(&state(services, addresses, &[]), NOW.parse().unwrap());
        let findings = plan.findings.iter().map(|f| format!("{} {}", f.reason, f.note)).collect();
        let mends = plan.mends.iter().map(|mend| match mend {
            Mend::Allocate { address, service, .. } => format!("{address} to {service}"),
            Mend::Free { address, .. } => format!("free {address}"),
            other => format!("{other:?}"),
        });
        (findings, mends.collect(), plan.next.map(|d| d.as_secs()))
    }

    fn changed(mut object: Value, pointer: &str, value: Value) -> Value {
        *object.pointer_mut(pointer).unwrap() = value;
        object
    }

    #[test]
    fn what_is_right_stays() {
        let headless = service("h", &["None"]);
        let external = changed(service("e", &[]), "/spec/type", json!("ExternalName"));
        let foreign = changed(address("10.43.0.9", "gone", LONG_AGO), "/metadata/labels", json!({}));
        let (services, addresses) =
            ([service("a", &["10.43.0.7"]), headless, external], [address("10.43.0.7", "a", LONG_AGO), foreign]);
        assert_eq!(planned(&services, &addresses), (vec![], vec![], None));
    }

    #[test]
    fn services_get_what_they_lack() {
        let a = service("a", &["10.43.0.7"]);
        let right = address("10.43.0.7", "a", LONG_AGO);
        let (mend, fresh) = ("10.43.0.7 to a", vec!["free 10.43.0.7", "10.43.0.7 to a"]);
        let table = [
            (vec![], "ClusterIPNotAllocated Cluster IP [IPv4]: 10.43.0.7 is not allocated; repairing", vec![mend]),
            (
                vec![changed(right.clone(), "/spec/parentRef/resource", json!("gateways"))],
                "ClusterIPNotAllocated the ClusterIP [IPv4]: 10.43.0.7 for Service n/a has a wrong reference; repairing",
                fresh.clone(),
            ),
            (
                vec![changed(right.clone(), "/spec/parentRef/name", json!("gone"))],
                "ClusterIPNotAllocated the ClusterIP [IPv4]: 10.43.0.7 for Service n/a has a wrong reference; repairing",
                fresh.clone(),
            ),
            (vec![changed(right.clone(), "/metadata/labels", json!({}))], "", fresh.clone()),
        ];
        for (addresses, finding, mends) in table {
            let (found, mended, next) = planned(std::slice::from_ref(&a), &addresses);
            assert_eq!((found.join("; ").as_str(), next), (finding, None));
            assert_eq!(mended, mends, "{finding}");
        }
    }

    #[test]
    fn what_cannot_be_mended_is_told() {
        let (found, mended, _) = planned(&[service("a", &["10.99.0.7"]), service("b", &["x"])], &[]);
        let why = "is not within any configured Service CIDR; please recreate service";
        assert_eq!(
            found,
            [
                format!("ClusterIPOutOfRange Cluster IP [IPv4]: 10.99.0.7 {why}"),
                "ClusterIPNotValid Cluster IP <nil> is not a valid IP; please recreate Service".into()
            ]
        );
        assert!(mended.is_empty());
        let both = [service("a", &["10.43.0.7"]), service("b", &["10.43.0.7"])];
        let (found, mended, _) = planned(&both, &[address("10.43.0.7", "b", LONG_AGO)]);
        let note = "Cluster IP [IPv4]:10.43.0.7 was assigned to multiple services; please recreate service";
        assert_eq!(found, [format!("ClusterIPAlreadyAllocated {note}")]);
        assert!(mended.is_empty());
        let (found, mended, _) = planned(&both, &[]);
        assert_eq!((found.len(), mended), (2, vec!["10.43.0.7 to a".to_owned()]));
    }

    #[test]
    fn what_is_left_over_goes_in_time() {
        let whose = "for Service n/gone appears to have leaked: cleaning up";
        let (found, mended, next) = planned(&[], &[address("10.43.0.7", "gone", LONG_AGO)]);
        assert_eq!(
            (found, mended),
            (vec![format!("IPAddressNotAllocated IPAddress: 10.43.0.7 {whose}")], vec!["free 10.43.0.7".to_owned()])
        );
        assert_eq!(next, None);
        let (found, mended, next) = planned(&[], &[address("10.43.0.7", "gone", "2026-01-01T00:09:20Z")]);
        assert_eq!((found, mended, next), (vec![], vec![], Some(20)));
        let strange = changed(
            address("10.43.0.7", "g", LONG_AGO),
            "/spec/parentRef",
            json!({"group": "x", "resource": "y", "name": "z"}),
        );
        let (found, mended, _) = planned(&[], &[strange]);
        let why = "not referencing a Service &ParentReference{Group:x,Resource:y,Namespace:,Name:z,}: cleaning up";
        assert_eq!(found, [format!("IPAddressNotAllocated IPAddress 10.43.0.7 appears to have been modified, {why}")]);
        assert_eq!(mended, ["free 10.43.0.7"]);
        let a = [service("a", &["10.43.0.7"])];
        let right = address("10.43.0.7", "a", LONG_AGO);
        let (found, mended, _) = planned(&a, &[right.clone(), address("10.43.0.8", "a", LONG_AGO)]);
        let why = "IPAddress: 10.43.0.8 for Service n/a has a wrong reference; cleaning up";
        assert_eq!(
            (found, mended),
            (vec![format!("IPAddressWrongReference {why}")], vec!["free 10.43.0.8".to_owned()])
        );
        let (found, _, next) = planned(&a, &[right, address("10.43.0.8", "a", "2026-01-01T00:09:58Z")]);
        assert_eq!((found, next), (vec![], Some(5)));
    }
}
