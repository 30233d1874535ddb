//! What endpoints and endpoint slices have in common: the pods behind a service, their addresses and their ports.

use crate::controller::{Context, Key};
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Container, IntOrString, Labels, Pod, Service, ServicePort};
use isopod_client::{Change, Informer};

pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Whether endpoints of this service are made from pods.
pub fn selects(service: &Service) -> bool {
    service.spec.selector.as_ref().is_some_and(|s| !s.is_empty()) && service.spec.kind != "ExternalName"
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.cluster_ip.is_empty() || service.spec.cluster_ip == "None"
}

pub fn matches(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// The families of the service's addresses: `IPv4`, `IPv6`.
pub fn families(service: &Service) -> Vec<&'static str> {
    let named: Vec<_> = service.spec.ip_families.iter().map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    match named.is_empty() {
        false => named,
        true if service.spec.cluster_ip.contains(':') => vec!["IPv6"],
        true => vec!["IPv4"],
    }
}

pub fn addresses<'a>(pod: &'a Pod, family: &str) -> Vec<&'a str> {
    let of_family = |ip: &str| ip.contains(':') == (family == "IPv6");
    let all: Vec<&str> = if pod.status.pod_ips.is_empty() {
        std::iter::once(pod.status.pod_ip.as_str()).filter(|ip| !ip.is_empty()).collect()
    } else {
        pod.status.pod_ips.iter().map(|p| p.ip.as_str()).collect()
    };
    all.into_iter().filter(|ip| of_family(ip)).collect()
}

/// The name that the pod has within its headless service.
pub fn hostname<'a>(pod: &'a Pod, service: &Service) -> Option<&'a str> {
    let named = !pod.spec.hostname.is_empty() && pod.spec.subdomain == service.metadata.name;
    named.then_some(pod.spec.hostname.as_str())
}

/// A port of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    pub name: String,
    pub port: i32,
    pub protocol: String,
    pub app_protocol: Option<String>,
}

/// The service's ports as this pod has them, sorted; a port that the pod does not name is left out.
pub fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let mut found: Vec<Port> = service
        .spec
        .ports
        .iter()
        .filter_map(|p| {
            Some(Port {
                name: p.name.clone(),
                port: target(p, pod)?,
                protocol: protocol(&p.protocol).to_owned(),
                app_protocol: p.app_protocol.clone(),
            })
        })
        .collect();
    found.sort();
    found
}

fn protocol(p: &str) -> &str {
    if p.is_empty() { "TCP" } else { p }
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::Text(name)) => {
            // Init containers that restart always run beside the others.
            let sidecars = pod.spec.init_containers.iter().filter(|c: &&Container| c.restart_policy == "Always");
            pod.spec
                .containers
                .iter()
                .chain(sidecars)
                .flat_map(|c| &c.ports)
                .find(|p| p.name == *name && protocol(&p.protocol) == protocol(&port.protocol))
                .map(|p| p.container_port)
        }
    }
}

/// Wakes the services that a pod's change may concern.
pub fn feed_pods(context: &Context, services: &Informer<Service>, pods: &Informer<Pod>, queue: &WorkQueue<Key>) {
    let (services, queue) = (services.clone(), queue.clone());
    context.feed(pods, move |change| {
        let (old, new) = match &change {
            Change::Applied { old, new } => (old.as_deref(), Some(&**new)),
            Change::Deleted(old) => (Some(&**old), None),
            Change::Resync => return,
        };
        if let (Some(old), Some(new)) = (old, new)
            && looks_same(old, new)
        {
            return;
        }
        let Some(any) = new.or(old) else { return };
        for service in services.list_namespace(&any.metadata.namespace) {
            let Some(selector) = &service.spec.selector else { continue };
            if old.into_iter().chain(new).any(|p| matches(selector, &p.metadata.labels)) {
                queue.add(Key::of(&service.metadata));
            }
        }
    });
}

/// Whether nothing that endpoints are made of has changed.
fn looks_same(a: &Pod, b: &Pod) -> bool {
    a.metadata.uid == b.metadata.uid
        && a.metadata.labels == b.metadata.labels
        && a.metadata.deletion_timestamp.is_some() == b.metadata.deletion_timestamp.is_some()
        && a.status.pod_ip == b.status.pod_ip
        && a.status.pod_ips == b.status.pod_ips
        && a.is_ready() == b.is_ready()
        && a.is_terminal() == b.is_terminal()
        && a.spec.node_name == b.spec.node_name
        && a.spec.hostname == b.spec.hostname
        && a.spec.subdomain == b.spec.subdomain
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn named_ports_are_found_in_the_pod() {
        let service: Service = serde_json::from_value(json!({"spec": {"ports": [
            {"name": "a", "port": 80, "targetPort": "web"}, {"name": "b", "port": 81, "targetPort": 8081},
            {"name": "c", "port": 82}, {"name": "d", "port": 83, "targetPort": "none"},
            {"name": "e", "port": 84, "targetPort": "web", "protocol": "UDP"},
            {"name": "f", "port": 85, "targetPort": "side"}]}}))
        .unwrap();
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"ports": [{"name": "web", "containerPort": 8080, "protocol": "TCP"}]}],
            "initContainers": [{"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9}]}]}}))
        .unwrap();
        let found: Vec<(String, i32)> = ports(&service, &pod).into_iter().map(|p| (p.name, p.port)).collect();
        let want = [("a", 8080), ("b", 8081), ("c", 82), ("f", 9)].map(|(n, p)| (n.to_owned(), p));
        assert_eq!(found, want);
    }
}
