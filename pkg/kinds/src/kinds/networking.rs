//! The networking group: IPAddress, ServiceCIDR, Ingress, IngressClass, NetworkPolicy.

use crate::access::Access;
use crate::metadata::{IMMUTABLE, fixed, immutable, label_selector};
use crate::ownership;
use crate::strategy::{PLAIN, STATELESS, Strategy};
use crate::validation::check::{
    at_most_one_of_each_family, child, dns_label, dns_subdomain, invalid_each, port_number, supported,
};
use crate::validation::service::load_balancer_ingress;
use crate::validation::warnings;
use isopod_api::names::{self, parse_cidr_sloppy};
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;

pub fn strategy(kind: &str) -> Strategy {
    match kind {
        "IPAddress" => Strategy { random_suffix: false, create: ip_address, update: ip_address_update, ..STATELESS },
        "ServiceCIDR" => Strategy {
            owned: ownership::status_alone,
            generation: false,
            create: service_cidr,
            update: service_cidr_update,
            ..PLAIN
        },
        "Ingress" => Strategy {
            warnings: warnings::ingress,
            create: |new| ingress(new, true),
            update: |new, _| ingress(new, false),
            update_status: |new, old| {
                let list = "status.loadBalancer.ingress";
                let p = child(&Path::new("status"), "loadBalancer.ingress");
                load_balancer_ingress(new.list(list), old.list(list), false, &p)
            },
            ..PLAIN
        },
        "IngressClass" => Strategy { create: class, update: class_update, ..PLAIN },
        "NetworkPolicy" => Strategy {
            warnings: warnings::network_policy,
            create: |new| policy(new, &Value::Null),
            update: policy,
            ..PLAIN
        },
        _ => PLAIN,
    }
}

fn segment(parent: &Value, field: &str, needed: bool, path: &Path) -> FieldErrors {
    let p = path.child(field);
    match parent.text(field) {
        "" if needed => vec![FieldError::required(&p, "")],
        "" => Vec::new(),
        v => invalid_each(&p, v, names::path_segment_name(v)),
    }
}

fn ip_address(o: &Value) -> FieldErrors {
    let (r, p) = (o.at("spec.parentRef"), Path::new("spec").child("parentRef"));
    if r.is_null() {
        return vec![FieldError::required(&p, "")];
    }
    let mut errs = Vec::new();
    if !r.text("group").is_empty() {
        errs.extend(dns_subdomain(r.text("group"), &p.child("group")));
    }
    for (f, needed) in [("resource", true), ("name", true), ("namespace", false)] {
        errs.extend(segment(r, f, needed, &p));
    }
    errs
}

fn ip_address_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = ip_address(new);
    errs.extend(fixed(new.at("spec"), old.at("spec"), "parentRef", &Path::new("spec")));
    errs
}

fn service_cidr(o: &Value) -> FieldErrors {
    let (cidrs, p) = (o.texts("spec.cidrs"), Path::new("spec").child("cidrs"));
    match cidrs.len() {
        0 => return vec![FieldError::required(&p, "at least one CIDR required")],
        1 | 2 => {}
        // Upstream shows the whole spec, in Go's names.
        _ => {
            let spec = serde_json::json!({"CIDRs": cidrs});
            return vec![FieldError::invalid(&p, spec, "may only hold up to 2 values")];
        }
    }
    let mut errs: FieldErrors = cidrs.iter().enumerate().flat_map(|(i, c)| names::cidr(&p.index(i), c)).collect();
    if errs.is_empty() && !at_most_one_of_each_family(&cidrs) {
        let m = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errs.push(FieldError::invalid(&p, o.at("spec.cidrs").clone(), m));
    }
    errs
}

fn service_cidr_update(new: &Value, old: &Value) -> FieldErrors {
    let (n, o, p) = (new.texts("spec.cidrs"), old.texts("spec.cidrs"), Path::new("spec").child("cidrs"));
    let changed = |i: usize| FieldError::invalid(&p.index(i), n[i], IMMUTABLE);
    if n.len() == o.len() {
        return (0..n.len()).filter(|i| n[*i] != o[*i]).map(changed).collect();
    }
    if o.len() == 1 && n.len() == 2 {
        let mut errs: FieldErrors = (n[0] != o[0]).then(|| changed(0)).into_iter().collect();
        errs.extend(service_cidr(new));
        return errs;
    }
    vec![FieldError::invalid(&p, new.at("spec.cidrs").clone(), IMMUTABLE)]
}

fn ingress(o: &Value, is_new: bool) -> FieldErrors {
    let (spec, p) = (o.at("spec"), Path::new("spec"));
    let mut errs = Vec::new();
    let rules = spec.list("rules");
    if rules.is_empty() && !spec.has("defaultBackend") {
        let m = "either `defaultBackend` or `rules` must be specified";
        errs.push(FieldError::invalid(&p, spec.at("rules").clone(), m).showing(&p.child("rules")));
    }
    if spec.has("defaultBackend") {
        errs.extend(backend(spec.at("defaultBackend"), &p.child("defaultBackend")));
    }
    for (i, r) in rules.iter().enumerate() {
        errs.extend(rule(r, &p.child("rules").index(i)));
    }
    for (i, t) in spec.list("tls").iter().enumerate() {
        let p = p.child("tls").index(i);
        for (j, host) in t.texts("hosts").iter().enumerate() {
            errs.extend(host_name(host, &p.child("hosts").index(j)));
        }
        if !t.text("secretName").is_empty() {
            errs.extend(dns_subdomain(t.text("secretName"), &p.child("secretName")));
        }
    }
    if let Some(class) = spec.at("ingressClassName").as_str() {
        errs.extend(dns_subdomain(class, &p.child("ingressClassName")));
        const OLD: &str = "kubernetes.io/ingress.class";
        let note = o.at("metadata.annotations").get(OLD).and_then(Value::as_str);
        if let Some(v) = note.filter(|v| is_new && *v != class) {
            let m = "must match `ingressClassName` when both are specified";
            errs.push(FieldError::invalid(&Path::new("annotations").child(OLD), v, m));
        }
    }
    errs
}

fn host_name(host: &str, path: &Path) -> FieldErrors {
    if host.contains('*') {
        return invalid_each(path, host, names::wildcard_dns1123_subdomain(host));
    }
    dns_subdomain(host, path)
}

fn rule(r: &Value, path: &Path) -> FieldErrors {
    let (host, p) = (r.text("host"), path.child("host"));
    let mut errs = Vec::new();
    if !host.is_empty() {
        if names::parse_ip_sloppy(host).is_some() {
            errs.push(FieldError::invalid(&p, host, "must be a DNS name, not an IP address"));
        }
        errs.extend(host_name(host, &p));
    }
    if r.has("http") {
        let (paths, p) = (r.list("http.paths"), child(path, "http.paths"));
        if paths.is_empty() {
            errs.push(FieldError::required(&p, ""));
        }
        errs.extend(paths.iter().enumerate().flat_map(|(i, v)| http_path(v, &p.index(i))));
    }
    errs
}

fn http_path(v: &Value, path: &Path) -> FieldErrors {
    let (text, p) = (v.text("path"), path.child("path"));
    let mut errs = Vec::new();
    match v.at("pathType").as_str() {
        None => return vec![FieldError::required(&path.child("pathType"), "pathType must be specified")],
        Some("Exact" | "Prefix") => {
            if !text.starts_with('/') {
                errs.push(FieldError::invalid(&p, text, "must be an absolute path"));
            }
            for s in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.contains(s) {
                    errs.push(FieldError::invalid(&p, text, format!("must not contain '{s}'")));
                }
            }
            for s in ["/..", "/."] {
                if text.ends_with(s) {
                    errs.push(FieldError::invalid(&p, text, format!("cannot end with '{s}'")));
                }
            }
        }
        Some("ImplementationSpecific") => {
            if !text.is_empty() && !text.starts_with('/') {
                errs.push(FieldError::invalid(&p, text, "must be an absolute path"));
            }
        }
        Some(other) => {
            let known = ["Exact", "ImplementationSpecific", "Prefix"];
            errs.push(FieldError::not_supported(&path.child("pathType"), other, &known));
        }
    }
    errs.extend(backend(v.at("backend"), &path.child("backend")));
    errs
}

fn backend(b: &Value, path: &Path) -> FieldErrors {
    match (b.has("resource"), b.has("service")) {
        (true, true) => vec![FieldError::invalid(path, "", "cannot set both resource and service backends")],
        (true, false) => typed_reference(b.at("resource"), &path.child("resource")),
        (false, false) => vec![FieldError::invalid(path, "", "resource or service backend is required")],
        (false, true) => {
            let (name, p) = (b.text("service.name"), child(path, "service.name"));
            let mut errs = match name {
                "" => vec![FieldError::required(&p, "")],
                name => dns_label(name, &p),
            };
            let (port, number) = (b.text("service.port.name"), b.int_or("service.port.number", 0));
            match (port, number) {
                ("", 0) => errs.push(FieldError::required(path, "port name or number is required")),
                ("", _) => errs.extend(port_number(b, "service.port.number", path)),
                (name, 0) => errs.extend(invalid_each(&child(path, "service.port.name"), name, names::port_name(name))),
                _ => errs.push(FieldError::invalid(path, "", "cannot set both port name & port number")),
            }
            errs
        }
    }
}

fn typed_reference(r: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if let Some(group) = r.at("apiGroup").as_str() {
        errs.extend(dns_subdomain(group, &path.child("apiGroup")));
    }
    errs.extend(segment(r, "kind", true, path));
    errs.extend(segment(r, "name", true, path));
    errs
}

fn class(o: &Value) -> FieldErrors {
    let (spec, p) = (o.at("spec"), Path::new("spec"));
    let controller = spec.text("controller");
    let mut errs = Vec::new();
    if controller.len() > 250 {
        errs.push(FieldError::too_long(&p.child("controller"), 250));
    }
    errs.extend(names::domain_prefixed_path(&p.child("controller"), controller));
    let (r, p) = (spec.at("parameters"), p.child("parameters"));
    if r.is_null() {
        return errs;
    }
    errs.extend(typed_reference(r, &p));
    let ns = p.child("namespace");
    match (r.at("scope").as_str(), r.at("namespace").as_str()) {
        (None, _) => errs.push(FieldError::required(&p.child("scope"), "")),
        (Some("Namespace"), None) => {
            errs.push(FieldError::required(&ns, "`parameters.scope` is set to 'Namespace'"));
        }
        (Some("Namespace"), Some(n)) => errs.extend(dns_label(n, &ns)),
        (Some("Cluster"), Some(_)) => {
            errs.push(FieldError::forbidden(&ns, "`parameters.scope` is set to 'Cluster'"));
        }
        (Some("Cluster"), None) => {}
        (Some(s), _) => errs.extend(supported(s, &["Cluster", "Namespace"], &p.child("scope"))),
    }
    errs
}

fn class_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = immutable(new.at("spec"), old.at("spec"), "controller", &Path::new("spec"));
    errs.extend(class(new));
    errs
}

/// The ranges that a policy names already: they stay allowed, however they are written.
fn named_ranges(policy: &Value) -> Vec<&str> {
    let rules = policy.list("spec.ingress").iter().map(|r| r.list("from"));
    let rules = rules.chain(policy.list("spec.egress").iter().map(|r| r.list("to")));
    let blocks = rules.flatten().map(|peer| peer.at("ipBlock")).filter(|b| !b.is_null());
    blocks.flat_map(|b| std::iter::once(b.text("cidr")).chain(b.texts("except"))).collect()
}

fn policy(new: &Value, old: &Value) -> FieldErrors {
    let (spec, p) = (new.at("spec"), Path::new("spec"));
    let had = named_ranges(old);
    let mut errs = label_selector(spec.at("podSelector"), &p.child("podSelector"));
    for (side, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, r) in spec.list(side).iter().enumerate() {
            let p = p.child(side).index(i);
            for (j, port) in r.list("ports").iter().enumerate() {
                errs.extend(policy_port(port, &p.child("ports").index(j)));
            }
            for (j, peer) in r.list(peers).iter().enumerate() {
                errs.extend(policy_peer(peer, &had, &p.child(peers).index(j)));
            }
        }
    }
    let (types, p) = (spec.texts("policyTypes"), p.child("policyTypes"));
    if types.len() > 2 {
        let m = "may not specify more than two policyTypes";
        errs.push(FieldError::invalid(&p, spec.at("policyTypes").clone(), m));
        return errs;
    }
    errs.extend(types.iter().enumerate().flat_map(|(i, t)| supported(t, &["Ingress", "Egress"], &p.index(i))));
    errs
}

fn policy_port(port: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if let Some(proto) = port.at("protocol").as_str() {
        errs.extend(supported(proto, &["TCP", "UDP", "SCTP"], &path.child("protocol")));
    }
    let (end, p) = (port.int("endPort"), path.child("endPort"));
    match port.at("port") {
        Value::Null => {
            let m = "may not be specified when `port` is not specified";
            errs.extend(end.map(|e| FieldError::invalid(&p, e, m)));
        }
        Value::String(name) => {
            let m = "may not be specified when `port` is non-numeric";
            errs.extend(end.map(|e| FieldError::invalid(&p, e, m)));
            errs.extend(invalid_each(&path.child("port"), name, names::port_name(name)));
        }
        _ => {
            errs.extend(port_number(port, "port", path));
            if let Some(e) = end {
                if e < port.int_or("port", 0) {
                    errs.push(FieldError::invalid(&p, e, "must be greater than or equal to `port`"));
                }
                errs.extend(port_number(port, "endPort", path));
            }
        }
    }
    errs
}

fn policy_peer(peer: &Value, had: &[&str], path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut count = 0;
    for f in ["podSelector", "namespaceSelector"] {
        if peer.has(f) {
            count += 1;
            errs.extend(label_selector(peer.at(f), &path.child(f)));
        }
    }
    if peer.has("ipBlock") {
        count += 1;
        errs.extend(ip_block(peer.at("ipBlock"), had, &path.child("ipBlock")));
    }
    if count == 0 {
        errs.push(FieldError::required(path, "must specify a peer"));
    } else if count > 1 && peer.has("ipBlock") {
        errs.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
    }
    errs
}

fn ip_block(b: &Value, had: &[&str], path: &Path) -> FieldErrors {
    let (cidr, p) = (b.text("cidr"), path.child("cidr"));
    if cidr.is_empty() {
        return vec![FieldError::required(&p, "")];
    }
    let mut errs = names::cidr_legacy(&p, cidr, had);
    let Some((net, len)) = parse_cidr_sloppy(cidr) else { return errs };
    for (i, except) in b.texts("except").iter().enumerate() {
        let p = path.child("except").index(i);
        errs.extend(names::cidr_legacy(&p, except, had));
        let Some((ip, elen)) = parse_cidr_sloppy(except) else { continue };
        let inside = ip.is_ipv4() == net.is_ipv4() && names::masked(ip, len) == names::masked(net, len);
        if !inside || len >= elen {
            errs.push(FieldError::invalid(&p, *except, "must be a strict subset of `cidr`"));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn say(errs: FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_and_addresses() {
        let cidrs = |c: Value| json!({"spec": {"cidrs": c}});
        assert_eq!(say(service_cidr(&cidrs(json!(["10.0.0.0/16"])))), [""; 0]);
        assert_eq!(say(service_cidr(&cidrs(json!([])))), ["spec.cidrs: Required value: at least one CIDR required"]);
        assert_eq!(
            say(service_cidr_update(&cidrs(json!(["10.1.0.0/16"])), &cidrs(json!(["10.0.0.0/16"])))),
            ["spec.cidrs[0]: Invalid value: \"10.1.0.0/16\": field is immutable"]
        );
        assert_eq!(
            say(service_cidr_update(&cidrs(json!(["10.0.0.0/16", "fd00::/108"])), &cidrs(json!(["10.0.0.0/16"])))),
            [""; 0]
        );
        assert_eq!(say(ip_address(&json!({"spec": {}}))), ["spec.parentRef: Required value"]);
        assert_eq!(
            say(ip_address(&json!({"spec": {"parentRef": {"resource": "services", "name": "a", "namespace": "b"}}}))),
            [""; 0]
        );
    }

    #[test]
    fn ingresses() {
        let ok = json!({"spec": {"rules": [{"host": "a.b", "http": {"paths": [{"path": "/", "pathType": "Prefix",
            "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}});
        assert_eq!(say(ingress(&ok, true)), [""; 0]);
        assert_eq!(
            say(ingress(&json!({"spec": {}}), true)),
            ["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"]
        );
        assert_eq!(
            say(ingress(&json!({"spec": {"defaultBackend": {"service": {"name": "s"}}}}), true)),
            ["spec.defaultBackend: Required value: port name or number is required"]
        );
        assert_eq!(say(class(&json!({"spec": {"controller": "x"}}))).len(), 1);
    }

    #[test]
    fn policies() {
        let p = json!({"spec": {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/16"]}}, {}],
            "ports": [{"port": 80, "endPort": 70}]}]}});
        assert_eq!(
            say(policy(&p, &Value::Null)),
            [
                "spec.ingress[0].ports[0].endPort: Invalid value: 70: must be greater than or equal to `port`",
                "spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
                "spec.ingress[0].from[1]: Required value: must specify a peer"
            ]
        );
    }
}
