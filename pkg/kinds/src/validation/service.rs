//! Validation of services: ports, addresses and families, traffic policies, and what may change once set.

use super::check::{
    at_most_one_of_each_family, child, dns_label, dns_subdomain, one_of, port_number, port_or_name, qualified_name,
    supported,
};
use crate::access::Access;
use crate::kinds::service::{externally_accessible, needs_health_check_node_port};
use crate::metadata::labels;
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;

const RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

fn spec_path() -> Path {
    Path::new("spec")
}

fn headless(s: &Value) -> bool {
    s.texts("spec.clusterIPs") == ["None"]
}

pub fn create(new: &Value) -> FieldErrors {
    service(new, None)
}

pub fn update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = Vec::new();
    let external = |s: &Value| s.text("spec.type") == "ExternalName";
    if !external(new) && !external(old) {
        if !(headless(new) && headless(old)) {
            errs.extend(cluster_ip_changes(new, old));
        }
        if !headless(new) && !headless(old) {
            errs.extend(family_changes(new, old));
        }
    }
    let balancer = |s: &Value| s.text("spec.type") == "LoadBalancer";
    let class = |s: &Value| s.at("spec.loadBalancerClass").clone();
    if balancer(new) && balancer(old) && class(new) != class(old) {
        let p = spec_path().child("loadBalancerClass");
        errs.push(FieldError::invalid(&p, class(new), "may not change once set"));
    }
    errs.extend(load_balancer_class(new));
    let health = |s: &Value| s.int_or("spec.healthCheckNodePort", 0);
    if needs_health_check_node_port(new) && needs_health_check_node_port(old) && health(new) != health(old) {
        errs.push(FieldError::forbidden(&spec_path().child("healthCheckNodePort"), "field is immutable"));
    }
    errs.extend(service(new, Some(old)));
    errs
}

fn cluster_ip_changes(new: &Value, old: &Value) -> FieldErrors {
    let (n, o, p) = (new.texts("spec.clusterIPs"), old.texts("spec.clusterIPs"), spec_path().child("clusterIPs"));
    let all = new.at("spec.clusterIPs").clone();
    let moved = |i: usize| FieldError::invalid(&p.index(i), all.clone(), "may not change once set");
    let mut errs = Vec::new();
    if n.len() == o.len() {
        errs.extend((0..n.len()).filter(|i| n[*i] != o[*i]).map(moved));
    } else if o.len() > n.len() {
        if n.is_empty() {
            errs.push(FieldError::invalid(&p.index(0), all.clone(), "primary clusterIP can not be unset"));
        } else if n[0] != o[0] {
            errs.push(moved(0));
        }
        if n.len() == 1 && new.text("spec.ipFamilyPolicy") != "SingleStack" {
            let m = "must be set to 'SingleStack' when releasing the secondary clusterIP";
            let p = spec_path().child("ipFamilyPolicy");
            errs.push(FieldError::invalid(&p, new.at("spec.ipFamilyPolicy").clone(), m));
        }
    } else if !o.is_empty() && n[0] != o[0] {
        errs.push(moved(0));
    }
    errs
}

fn family_changes(new: &Value, old: &Value) -> FieldErrors {
    let (n, o, p) = (new.texts("spec.ipFamilies"), old.texts("spec.ipFamilies"), spec_path().child("ipFamilies"));
    let moved = |field: &str| FieldError::invalid(&p.index(0), new.at(field).clone(), "may not change once set");
    let mut errs = Vec::new();
    if n.len() == o.len() {
        errs.extend((0..n.len()).filter(|i| n[*i] != o[*i]).map(|_| moved("spec.ipFamilies")));
    } else if o.len() > n.len() {
        if new.list("spec.clusterIPs").is_empty() {
            let m = "primary ipFamily can not be unset";
            errs.push(FieldError::invalid(&p.index(0), new.at("spec.ipFamilies").clone(), m));
        }
        if !n.is_empty() && n[0] != o[0] {
            errs.push(moved("spec.clusterIPs"));
        }
        if n.len() == 1 && new.text("spec.ipFamilyPolicy") != "SingleStack" {
            let m = "must be set to 'SingleStack' when releasing the secondary ipFamily";
            let p = spec_path().child("ipFamilyPolicy");
            errs.push(FieldError::invalid(&p, new.at("spec.ipFamilyPolicy").clone(), m));
        }
    } else if !o.is_empty() && n[0] != o[0] {
        errs.push(moved("spec.clusterIPs"));
    }
    errs
}

fn service(s: &Value, old: Option<&Value>) -> FieldErrors {
    let (spec, path) = (s.at("spec"), spec_path());
    let mut errs = by_type(s, &path);
    errs.extend(ports(s, &path.child("ports")));
    errs.extend(labels(spec.at("selector"), &path.child("selector")));
    errs.extend(one_of(spec, "sessionAffinity", &["ClientIP", "None"], &path));
    errs.extend(affinity_config(spec, &path.child("sessionAffinityConfig")));
    errs.extend(cluster_ips(s, old));
    let had = old.map_or_else(Vec::new, |o| o.texts("spec.externalIPs"));
    for (i, ip) in spec.texts("externalIPs").iter().enumerate() {
        let p = path.child("externalIPs").index(i);
        let e = names::ip_legacy(&p, ip, &had);
        errs.extend(if e.is_empty() { endpoint_ip(ip, &p) } else { e });
    }
    errs.extend(one_of(spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &path));
    errs.extend(port_clashes(spec, &path.child("ports")));
    errs.extend(source_ranges(s, old, &path));
    let balancer = spec.text("type") == "LoadBalancer";
    match (spec.has("allocateLoadBalancerNodePorts"), balancer) {
        (true, false) => {
            let p = path.child("allocateLoadBalancerNodePorts");
            errs.push(FieldError::forbidden(&p, "may only be used when `type` is 'LoadBalancer'"));
        }
        (false, true) => errs.push(FieldError::required(&Path::new("allocateLoadBalancerNodePorts"), "")),
        _ => {}
    }
    errs.extend(load_balancer_class(s));
    errs.extend(traffic_policies(s, &path));
    errs
}

fn by_type(s: &Value, path: &Path) -> FieldErrors {
    let (spec, kind) = (s.at("spec"), s.text("spec.type"));
    let mut errs = Vec::new();
    if spec.list("ports").is_empty() && !headless(s) && kind != "ExternalName" {
        errs.push(FieldError::required(&path.child("ports"), ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless(s) => {
            let m = format!("may not be set to 'None' for {kind} services");
            errs.push(FieldError::invalid(&path.child("clusterIPs").index(0), "None", m));
        }
        "ExternalName" => {
            for f in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if !spec.is_empty_at(f) {
                    errs.push(FieldError::forbidden(&path.child(f), "may not be set for ExternalName services"));
                }
            }
            let p = path.child("externalName");
            match spec.text("externalName").trim_end_matches('.') {
                "" => errs.push(FieldError::required(&p, "")),
                name => errs.extend(dns_subdomain(name, &p)),
            }
        }
        _ => {}
    }
    errs
}

fn ports(s: &Value, path: &Path) -> FieldErrors {
    let list = s.list("spec.ports");
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, port) in list.iter().enumerate() {
        let (p, name) = (path.index(i), port.text("name"));
        if name.is_empty() {
            if list.len() > 1 {
                errs.push(FieldError::required(&p.child("name"), ""));
            }
        } else {
            errs.extend(dns_label(name, &p.child("name")));
            if !seen.insert(name) {
                errs.push(FieldError::duplicate(&p.child("name"), name));
            }
        }
        errs.extend(port_number(port, "port", &p));
        errs.extend(one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &p));
        errs.extend(port_or_name(port.at("targetPort"), &p.child("targetPort")));
        if let Some(app) = port.at("appProtocol").as_str() {
            errs.extend(qualified_name(app, &p.child("appProtocol")));
        }
    }
    errs
}

fn port_clashes(spec: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let list = spec.list("ports");
    if spec.text("type") == "ClusterIP" {
        for (i, _) in list.iter().enumerate().filter(|(_, p)| p.int_or("nodePort", 0) != 0) {
            let m = "may not be used when `type` is 'ClusterIP'";
            errs.push(FieldError::forbidden(&path.index(i).child("nodePort"), m));
        }
    }
    let (mut nodes, mut own) = (BTreeSet::new(), BTreeSet::new());
    for (i, p) in list.iter().enumerate() {
        let n = p.int_or("nodePort", 0);
        if n != 0 && !nodes.insert((p.text("protocol"), n)) {
            errs.push(FieldError::duplicate(&path.index(i).child("nodePort"), n));
        }
    }
    for (i, p) in list.iter().enumerate() {
        let (proto, n) = (p.text("protocol"), p.int_or("port", 0));
        if !own.insert((proto, n)) {
            // Upstream shows its internal struct.
            let mut e = FieldError::duplicate(&path.index(i), Value::Null);
            e.shown = Some(format!(
                "{{\"Name\":\"\",\"Protocol\":{proto:?},\"AppProtocol\":null,\"Port\":{n},\"TargetPort\":0,\"NodePort\":0}}"
            ));
            errs.push(e);
        }
    }
    errs
}

fn affinity_config(spec: &Value, path: &Path) -> FieldErrors {
    let c = spec.at("sessionAffinityConfig");
    const WHY: &str = "when session affinity type is ClientIP";
    match spec.text("sessionAffinity") {
        "ClientIP" => {
            let p = child(path, "clientIP.timeoutSeconds");
            match c.int("clientIP.timeoutSeconds") {
                _ if c.is_null() => vec![FieldError::required(path, WHY)],
                _ if !c.has("clientIP") => vec![FieldError::required(&path.child("clientIP"), WHY)],
                None => vec![FieldError::required(&p, WHY)],
                Some(n) if n <= 0 || n > 86400 => {
                    vec![FieldError::invalid(&p, n, "must be greater than 0 and less than 86400")]
                }
                _ => Vec::new(),
            }
        }
        "None" if !c.is_null() => {
            vec![FieldError::forbidden(path, "must not be set when session affinity is None")]
        }
        _ => Vec::new(),
    }
}

fn cluster_ips(s: &Value, old: Option<&Value>) -> FieldErrors {
    let spec = s.at("spec");
    if spec.text("type") == "ExternalName" {
        return Vec::new();
    }
    let (path, p) = (spec_path(), spec_path().child("clusterIPs"));
    let (one, ips, families) = (spec.text("clusterIP"), spec.texts("clusterIPs"), spec.texts("ipFamilies"));
    let all = || spec.at("clusterIPs").clone();
    let mut errs = Vec::new();
    if !one.is_empty() && ips.is_empty() {
        errs.push(FieldError::required(&p, ""));
    } else if !one.is_empty() && ips[0] != one {
        errs.push(FieldError::invalid(&p, all(), "first value must match `clusterIP`"));
    } else if one.is_empty() && !ips.is_empty() {
        errs.push(FieldError::invalid(&p, all(), "must be empty when `clusterIP` is not specified"));
    }
    for (i, f) in families.iter().enumerate() {
        let p = path.child("ipFamilies").index(i);
        errs.extend(supported(f, &["IPv4", "IPv6"], &p));
        if families[..i].contains(f) {
            errs.push(FieldError::duplicate(&p, *f));
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    errs.extend(super::check::one_of_if_set(spec, "ipFamilyPolicy", &policies, &path));
    let had = old.map_or_else(Vec::new, |o| o.texts("spec.clusterIPs"));
    let mut bad = false;
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && *ip == "None" {
            if ips.len() > 1 {
                bad = true;
                errs.push(FieldError::invalid(&p, all(), "'None' must be the first and only value"));
            }
            continue;
        }
        let e = names::ip_legacy(&p.index(i), ip, &had);
        bad |= !e.is_empty();
        errs.extend(e);
    }
    if ips.len() > 2 {
        errs.push(FieldError::invalid(&p, all(), "may only hold up to 2 values"));
    }
    if bad {
        return errs;
    }
    if ips.len() > 1 && !(ips.len() == 2 && at_most_one_of_each_family(&ips)) {
        errs.push(FieldError::invalid(&p, all(), "may specify no more than one IP for each IP family"));
    }
    if !headless(s) {
        for (i, (ip, family)) in ips.iter().zip(&families).enumerate() {
            let is_v6 = ip.contains(':');
            if (*family == "IPv4" && is_v6) || (*family == "IPv6" && !is_v6) {
                let m = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
                errs.push(FieldError::invalid(&p.index(i), *ip, m));
            }
        }
    }
    errs
}

/// An address that packets can be sent to.
pub fn endpoint_ip(text: &str, path: &Path) -> FieldErrors {
    let Some(ip) = names::parse_ip_sloppy(text).map(|ip| ip.to_canonical()) else {
        return vec![FieldError::invalid(path, text, "must be a valid IP address")];
    };
    let mut errs = Vec::new();
    let mut say = |m: String| errs.push(FieldError::invalid(path, text, m));
    if ip.is_unspecified() {
        say(format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        say("may not be in the loopback range (127.0.0.0/8, ::1/128)".into());
    }
    let (link_local, multicast) = match ip {
        IpAddr::V4(a) => (a.is_link_local(), a.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(a) => (a.is_unicast_link_local(), a.segments()[0] & 0xff0f == 0xff02),
    };
    if link_local {
        say("may not be in the link-local range (169.254.0.0/16, fe80::/10)".into());
    }
    if multicast {
        say("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into());
    }
    errs
}

fn source_ranges(s: &Value, old: Option<&Value>, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let balancer = s.text("spec.type") == "LoadBalancer";
    const WHY: &str = "may only be used when `type` is 'LoadBalancer'";
    let ranges = s.texts("spec.loadBalancerSourceRanges");
    let note = s.at("metadata.annotations").get(RANGES_ANNOTATION).and_then(Value::as_str);
    if !ranges.is_empty() {
        let p = path.child("LoadBalancerSourceRanges");
        if !balancer {
            errs.push(FieldError::forbidden(&p, WHY));
        }
        let had: Vec<&str> =
            old.map_or_else(Vec::new, |o| o.texts("spec.loadBalancerSourceRanges")).iter().map(|r| r.trim()).collect();
        for (i, r) in ranges.iter().enumerate() {
            errs.extend(names::cidr_legacy(&p.index(i), r.trim(), &had));
        }
    } else if let Some(v) = note {
        let p = child(&Path::new("metadata"), "annotations").key(RANGES_ANNOTATION);
        if !balancer {
            errs.push(FieldError::forbidden(&p, WHY));
        }
        let before = old.and_then(|o| o.at("metadata.annotations").get(RANGES_ANNOTATION)?.as_str());
        if before != Some(v) && !v.trim().is_empty() {
            errs.extend(v.split(',').flat_map(|r| names::cidr_legacy(&p, r.trim(), &[])));
        }
    }
    errs
}

fn load_balancer_class(s: &Value) -> FieldErrors {
    let Some(class) = s.at("spec.loadBalancerClass").as_str() else { return Vec::new() };
    let p = spec_path().child("loadBalancerClass");
    if s.text("spec.type") == "LoadBalancer" {
        return qualified_name(class, &p);
    }
    vec![FieldError::forbidden(&p, "may only be used when `type` is 'LoadBalancer'")]
}

fn traffic_policies(s: &Value, path: &Path) -> FieldErrors {
    let spec = s.at("spec");
    let mut errs = Vec::new();
    let (external, p) = (spec.text("externalTrafficPolicy"), path.child("externalTrafficPolicy"));
    if externally_accessible(s) {
        errs.extend(one_of(spec, "externalTrafficPolicy", &["Cluster", "Local"], path));
    } else if !external.is_empty() {
        errs.push(FieldError::invalid(&p, external, "may only be set for externally-accessible services"));
    }
    let (health, p) = (spec.int_or("healthCheckNodePort", 0), path.child("healthCheckNodePort"));
    match (needs_health_check_node_port(s), health) {
        (false, 0) => {}
        (false, n) => {
            let m = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errs.push(FieldError::invalid(&p, n, m));
        }
        (true, 0) => errs.push(FieldError::required(&p, "")),
        (true, _) => errs.extend(port_number(spec, "healthCheckNodePort", path)),
    }
    let p = path.child("internalTrafficPolicy");
    match spec.at("internalTrafficPolicy").as_str() {
        None if matches!(spec.text("type"), "NodePort" | "LoadBalancer" | "ClusterIP") => {
            errs.push(FieldError::required(&p, ""));
        }
        None => {}
        Some(v) => errs.extend(supported(v, &["Cluster", "Local"], &p)),
    }
    let distributions = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    errs.extend(super::check::one_of_if_set(spec, "trafficDistribution", &distributions, path));
    errs
}

pub fn status(new: &Value, old: &Value) -> FieldErrors {
    let p = child(&Path::new("status"), "loadBalancer.ingress");
    let list = new.list("status.loadBalancer.ingress");
    if new.text("spec.type") != "LoadBalancer" && !list.is_empty() {
        return vec![FieldError::forbidden(&p, "may only be used when `spec.type` is 'LoadBalancer'")];
    }
    load_balancer_ingress(list, old.list("status.loadBalancer.ingress"), true, &p)
}

/// Ingress points of services and of ingresses.
pub fn load_balancer_ingress(list: &[Value], old: &[Value], modes: bool, path: &Path) -> FieldErrors {
    let had: Vec<&str> = old.iter().map(|i| i.text("ip")).filter(|ip| !ip.is_empty()).collect();
    let mut errs = Vec::new();
    for (i, point) in list.iter().enumerate() {
        let (p, ip, host) = (path.index(i), point.text("ip"), point.text("hostname"));
        if !ip.is_empty() {
            errs.extend(names::ip_legacy(&p.child("ip"), ip, &had));
        }
        if modes {
            let mp = p.child("ipMode");
            match (point.at("ipMode").as_str(), ip.is_empty()) {
                (None, false) => errs.push(FieldError::required(&mp, "must be specified when `ip` is set")),
                (Some(_), true) => {
                    errs.push(FieldError::forbidden(&mp, "may not be specified when `ip` is not set"));
                }
                (Some(m), false) => errs.extend(supported(m, &["Proxy", "VIP"], &mp)),
                _ => {}
            }
        }
        if !host.is_empty() {
            errs.extend(dns_subdomain(host, &p.child("hostname")));
            if names::parse_ip_sloppy(host).is_some() {
                let m = "must be a DNS name, not an IP address";
                errs.push(FieldError::invalid(&p.child("hostname"), host, m));
            }
        }
    }
    errs
}

/// A spec with its defaults, for tests of the parts.
#[cfg(test)]
fn plain() -> Value {
    serde_json::json!({"metadata": {"name": "s"}, "spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(path: &str, v: Value) -> Value {
        let mut s = plain();
        crate::access::set(&mut s, path, v);
        s
    }

    fn say(errs: FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn services_say_what_upstream_says() {
        assert_eq!(say(create(&plain())), [""; 0]);
        let table = [
            ("spec.ports", json!([]), "spec.ports: Required value"),
            (
                "spec.type",
                json!("Odd"),
                "spec.type: Unsupported value: \"Odd\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ),
            (
                "spec.ports",
                json!([{"port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30000}]),
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            (
                "spec.ports",
                json!([{"port": 80, "protocol": "TCP", "targetPort": "Bad_Name"}]),
                "spec.ports[0].targetPort: Invalid value: \"Bad_Name\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
            ),
            (
                "spec.clusterIPs",
                json!(["10.0.0.2"]),
                "spec.clusterIPs: Invalid value: [\"10.0.0.2\"]: first value must match `clusterIP`",
            ),
            (
                "spec.externalIPs",
                json!(["127.0.0.1"]),
                "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ),
            (
                "spec.loadBalancerClass",
                json!("a/b"),
                "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
            ),
            (
                "spec.selector",
                json!({"a": "-"}),
                "spec.selector: Invalid value: \"-\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
        ];
        for (path, v, want) in table {
            let errs = say(create(&with(path, v.clone())));
            assert_eq!(errs.first().map(String::as_str), Some(want), "{path} {v}");
        }
    }

    #[test]
    fn a_cluster_ip_stays() {
        let old = plain();
        let mut new = with("spec.clusterIP", json!("10.0.0.2"));
        crate::access::set(&mut new, "spec.clusterIPs", json!(["10.0.0.2"]));
        assert_eq!(
            say(update(&new, &old)),
            ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"]
        );
        assert_eq!(say(update(&old, &old)), [""; 0]);
        let lb = json!({"spec": {"type": "ClusterIP"}, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}});
        assert_eq!(
            say(status(&lb, &lb)),
            ["status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"]
        );
    }
}
