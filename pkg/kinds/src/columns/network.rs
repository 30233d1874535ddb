//! Columns of services, endpoints and the networking group.

use super::{AGE, NAME, field, map_text, or, selector_text, text, wide, with_more};
use crate::access::Access;
use crate::kind::Column;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeSet;

pub(super) fn columns(group: &str, kind: &str) -> Option<Vec<Column>> {
    Some(match (group, kind) {
        ("", "Service") => vec![
            NAME,
            text("Type", field!(text "spec.type")),
            text("Cluster-IP", |o, _| or(o.texts("spec.clusterIPs").first().copied().unwrap_or(""), "<none>").into()),
            text("External-IP", |o, _| external_ip(o).into()),
            text("Port(s)", |o, _| or(&service_ports(o), "<none>").into()),
            AGE,
            wide("Selector", |o, _| map_text(o.at("spec.selector")).into()),
        ],
        ("", "Endpoints") => vec![NAME, text("Endpoints", endpoints), AGE],
        ("discovery.k8s.io", "EndpointSlice") => vec![
            NAME,
            text("AddressType", field!(text "addressType")),
            text("Ports", slice_ports),
            text("Endpoints", |o, _| {
                let all: Vec<String> =
                    o.list("endpoints").iter().flat_map(|e| e.texts("addresses")).map(str::to_owned).collect();
                with_more(&all, 3).into()
            }),
            AGE,
        ],
        ("networking.k8s.io", "Ingress") => vec![
            NAME,
            text("Class", field!(text "spec.ingressClassName" or "<none>")),
            text("Hosts", |o, _| hosts(o).into()),
            text("Address", |o, _| load_balancer(o).into()),
            text("Ports", |o, _| if o.list("spec.tls").is_empty() { "80".into() } else { "80, 443".into() }),
            AGE,
        ],
        ("networking.k8s.io", "IngressClass") => vec![
            Column { cell: ingress_class_name, ..NAME },
            text("Controller", field!(text "spec.controller")),
            text("Parameters", parameters),
            AGE,
        ],
        ("networking.k8s.io", "NetworkPolicy") => {
            vec![NAME, text("Pod-Selector", |o, _| selector_text(o.at("spec.podSelector")).into()), AGE]
        }
        ("networking.k8s.io", "ServiceCIDR") => {
            vec![NAME, text("CIDRs", |o, _| o.texts("spec.cidrs").join(",").into()), AGE]
        }
        ("networking.k8s.io", "IPAddress") => vec![NAME, text("ParentRef", parent_ref)],
        _ => return None,
    })
}

/// Addresses of a load balancer, sorted.
fn load_balancer(o: &Value) -> String {
    let ingress = o.list("status.loadBalancer.ingress").iter();
    let all: BTreeSet<&str> = ingress.map(|i| or(i.text("ip"), i.text("hostname"))).filter(|s| !s.is_empty()).collect();
    all.into_iter().collect::<Vec<_>>().join(",")
}

fn external_ip(o: &Value) -> String {
    let external = o.texts("spec.externalIPs").join(",");
    match o.text("spec.type") {
        "ClusterIP" | "NodePort" => or(&external, "<none>").to_owned(),
        "LoadBalancer" => {
            let all = [load_balancer(o), external].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(",");
            or(&all, "<pending>").to_owned()
        }
        "ExternalName" => o.text("spec.externalName").to_owned(),
        _ => "<unknown>".into(),
    }
}

fn service_ports(o: &Value) -> String {
    let port = |p: &Value| match (p.int_or("port", 0), p.int_or("nodePort", 0), p.text("protocol")) {
        (n, 0, proto) => format!("{n}/{proto}"),
        (n, node, proto) => format!("{n}:{node}/{proto}"),
    };
    o.list("spec.ports").iter().map(port).collect::<Vec<_>>().join(",")
}

fn endpoints(o: &Value, _: Timestamp) -> Value {
    let subsets = o.list("subsets");
    if subsets.is_empty() {
        return "<none>".into();
    }
    let mut all = Vec::new();
    for s in subsets {
        let addresses = || s.list("addresses").iter().map(|a| a.text("ip"));
        if s.list("ports").is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for p in s.list("ports") {
            let n = p.int_or("port", 0);
            all.extend(
                addresses().map(|ip| if ip.contains(':') { format!("[{ip}]:{n}") } else { format!("{ip}:{n}") }),
            );
        }
    }
    if all.is_empty() { "".into() } else { with_more(&all, 3).into() }
}

fn slice_ports(o: &Value, _: Timestamp) -> Value {
    let port = |p: &Value| match (p.int("port"), p.at("name").as_str()) {
        (Some(n), _) => n.to_string(),
        (None, Some(name)) => name.to_owned(),
        _ => "*".into(),
    };
    with_more(&o.list("ports").iter().map(port).collect::<Vec<_>>(), 3).into()
}

fn hosts(o: &Value) -> String {
    let rules = o.list("spec.rules");
    let mut shown: Vec<&str> = Vec::new();
    let mut more = false;
    for r in rules {
        more |= shown.len() == 3;
        if !more && !r.text("host").is_empty() {
            shown.push(r.text("host"));
        }
    }
    match (shown.is_empty(), more) {
        (true, _) => "*".into(),
        (_, true) => format!("{} + {} more...", shown.join(","), rules.len() - 3),
        _ => shown.join(","),
    }
}

fn ingress_class_name(o: &Value, _: Timestamp) -> Value {
    let default = o.entry_text("metadata.annotations", "ingressclass.kubernetes.io/is-default-class") == "true";
    let name = o.text("metadata.name");
    if default { format!("{name} (default)").into() } else { name.into() }
}

fn parameters(o: &Value, _: Timestamp) -> Value {
    let p = o.at("spec.parameters");
    match p.at("apiGroup").as_str() {
        _ if p.is_null() => "<none>".into(),
        Some(group) => format!("{}.{group}/{}", p.text("kind"), p.text("name")).into(),
        None => format!("{}/{}", p.text("kind"), p.text("name")).into(),
    }
}

fn parent_ref(o: &Value, _: Timestamp) -> Value {
    let p = o.at("spec.parentRef");
    if p.is_null() {
        return "<none>".into();
    }
    let resource = [p.text("resource"), p.text("group")].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>();
    let resource = resource.join(".").to_lowercase();
    [resource.as_str(), p.text("namespace"), p.text("name")]
        .into_iter()
        .filter(|s| !s.is_empty())
        .collect::<Vec<_>>()
        .join("/")
        .into()
}
