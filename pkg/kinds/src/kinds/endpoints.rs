//! Endpoints and EndpointSlices.

use crate::access::{Access, same, set};
use crate::metadata::immutable;
use crate::strategy::{PLAIN, STATELESS, Strategy};
use crate::validation::check::{
    dns_label, dns_subdomain, invalid_each, one_of, port_number, qualified_name, supported,
};
use crate::validation::service::endpoint_ip;
use crate::validation::warnings;
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub const ENDPOINTS: Strategy = Strategy {
    create_on_update: true,
    warnings: warnings::endpoints,
    create: subsets,
    update: |new, old| if same(new.at("subsets"), old.at("subsets")) { Vec::new() } else { subsets(new) },
    ..STATELESS
};

pub const SLICE: Strategy = Strategy {
    resets_status: false,
    // The slices of a service: what leads to it looks for them.
    indexed_label: Some("kubernetes.io/service-name"),
    warnings: warnings::slice,
    // Its labels count as content.
    prepare_update: |_, new, old| {
        if !same(new.at("metadata.labels"), old.at("metadata.labels")) {
            set(new, "metadata.generation", old.int_or("metadata.generation", 0) + 1);
        }
    },
    create: |new| slice(new, None),
    update: |new, old| {
        let mut errs = slice(new, Some(old));
        // The rule is declared for the type, and shows no value.
        errs.extend(immutable(new, old, "addressType", &Path::root()).into_iter().map(|mut e| {
            e.shown = Some("null".into());
            e
        }));
        errs
    },
    ..PLAIN
};

fn subsets(e: &Value) -> FieldErrors {
    let mut errs = Vec::new();
    for (i, s) in e.list("subsets").iter().enumerate() {
        let p = Path::new("subsets").index(i);
        if s.list("addresses").is_empty() && s.list("notReadyAddresses").is_empty() {
            errs.push(FieldError::required(&p, "must specify `addresses` or `notReadyAddresses`"));
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (j, a) in s.list(list).iter().enumerate() {
                errs.extend(address(a, &p.child(list).index(j)));
            }
        }
        let ports = s.list("ports");
        for (j, port) in ports.iter().enumerate() {
            let p = p.child("ports").index(j);
            match port.text("name") {
                "" if ports.len() > 1 => errs.push(FieldError::required(&p.child("name"), "")),
                "" => {}
                name => errs.extend(dns_label(name, &p.child("name"))),
            }
            errs.extend(port_number(port, "port", &p));
            errs.extend(one_of(port, "protocol", &PROTOCOLS, &p));
            errs.extend(app_protocol(port, &p));
        }
    }
    errs
}

fn app_protocol(port: &Value, path: &Path) -> FieldErrors {
    match port.at("appProtocol").as_str() {
        Some(app) => qualified_name(app, &path.child("appProtocol")),
        None => Vec::new(),
    }
}

fn address(a: &Value, path: &Path) -> FieldErrors {
    let mut errs = names::ip_legacy(&path.child("ip"), a.text("ip"), &[]);
    if !a.text("hostname").is_empty() {
        errs.extend(dns_label(a.text("hostname"), &path.child("hostname")));
    }
    if let Some(node) = a.at("nodeName").as_str() {
        errs.extend(dns_subdomain(node, &path.child("nodeName")));
    }
    errs.extend(endpoint_ip(a.text("ip"), &path.child("ip")));
    errs
}

fn slice(s: &Value, old: Option<&Value>) -> FieldErrors {
    let mut errs = one_of(s, "addressType", &["FQDN", "IPv4", "IPv6"], &Path::root());
    errs.extend(slice_ports(s.list("ports")));
    if !old.is_some_and(|o| same(o.at("endpoints"), s.at("endpoints"))) {
        errs.extend(endpoints(s.list("endpoints"), s.text("addressType")));
    }
    errs
}

fn slice_ports(list: &[Value]) -> FieldErrors {
    let path = Path::new("ports");
    if list.len() > 20000 {
        return vec![FieldError::too_many(&path, list.len(), 20000)];
    }
    let mut errs = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for (i, port) in list.iter().enumerate() {
        let (p, name) = (path.index(i), port.text("name"));
        if !name.is_empty() {
            errs.extend(dns_label(name, &p.child("name")));
        }
        if !seen.insert(name) {
            errs.push(FieldError::duplicate(&p.child("name"), name));
        }
        let protocol = p.child("protocol");
        match port.at("protocol").as_str() {
            None => errs.push(FieldError::required(&protocol, "")),
            Some(given) => errs.extend(supported(given, &PROTOCOLS, &protocol)),
        }
        errs.extend(app_protocol(port, &p));
    }
    errs
}

fn endpoints(list: &[Value], kind: &str) -> FieldErrors {
    let path = Path::new("endpoints");
    if list.len() > 1000 {
        return vec![FieldError::too_many(&path, list.len(), 1000)];
    }
    let mut errs = Vec::new();
    for (i, e) in list.iter().enumerate() {
        let (p, all) = (path.index(i), e.texts("addresses"));
        let ap = p.child("addresses");
        if all.is_empty() {
            errs.push(FieldError::required(&ap, "").declared());
        } else if all.len() > 100 {
            errs.push(FieldError::too_many(&ap, all.len(), 100).declared());
        }
        errs.extend(all.iter().enumerate().flat_map(|(j, a)| slice_address(a, kind, &ap, j)));
        if let Some(node) = e.at("nodeName").as_str() {
            errs.extend(dns_subdomain(node, &p.child("nodeName")));
        }
        errs.extend(crate::metadata::labels(e.at("deprecatedTopology"), &p.child("deprecatedTopology")));
        if let Some(host) = e.at("hostname").as_str() {
            errs.extend(dns_label(host, &p.child("hostname")));
        }
        errs.extend(hints(e.at("hints"), &p.child("hints")));
    }
    errs
}

fn slice_address(a: &str, kind: &str, path: &Path, i: usize) -> FieldErrors {
    let p = path.index(i);
    let (mut errs, wrong) = match kind {
        "IPv4" => (names::ip_legacy(&p, a, &[]), a.contains(':')),
        "IPv6" => (names::ip(&p, a), !a.contains(':')),
        "FQDN" => return fully_qualified(a, &p),
        _ => return Vec::new(),
    };
    if errs.is_empty() {
        if wrong {
            errs.push(FieldError::invalid(path, a, format!("must be an {kind} address")));
        }
        errs.extend(endpoint_ip(a, &p));
    }
    errs
}

fn fully_qualified(name: &str, path: &Path) -> FieldErrors {
    if name.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let msgs = names::dns1123_subdomain(name);
    if !msgs.is_empty() {
        return vec![FieldError::invalid(path, name, msgs.join(","))];
    }
    if !name.contains('.') {
        let m = "should be a domain with at least two segments separated by dots";
        return vec![FieldError::invalid(path, name, m)];
    }
    let long = name.split('.').find(|l| !names::dns1123_label(l).is_empty());
    long.map(|l| FieldError::invalid(path, l, names::dns1123_label(l).join(","))).into_iter().collect()
}

fn hints(h: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (list, rule) in
        [("forZones", names::label_value as fn(&str) -> Vec<String>), ("forNodes", names::dns1123_subdomain)]
    {
        let (all, p) = (h.list(list), path.child(list));
        if all.len() > 8 {
            errs.push(FieldError::too_many(&p, all.len(), 8));
            return errs;
        }
        for (i, z) in all.iter().enumerate() {
            let (name, p) = (z.text("name"), p.index(i).child("name"));
            if all[..i].iter().any(|o| o.text("name") == name) {
                errs.push(FieldError::duplicate(&p, name));
            }
            errs.extend(invalid_each(&p, name, rule(name)));
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
    fn slices() {
        let ok = json!({"addressType": "IPv4", "ports": [{"name": "", "protocol": "TCP", "port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n", "hints": {"forZones": [{"name": "a"}]}}]});
        assert_eq!(say(slice(&ok, None)), [""; 0]);
        assert_eq!(
            say(slice(&json!({"addressType": "IPv4", "endpoints": [{"addresses": []}, {"addresses": ["::1"]}]}), None)),
            [
                "endpoints[0].addresses: Required value",
                "endpoints[1].addresses: Invalid value: \"::1\": must be an IPv4 address",
                "endpoints[1].addresses[0]: Invalid value: \"::1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"
            ]
        );
        assert_eq!(
            say(slice(&json!({"addressType": "X"}), None)),
            ["addressType: Unsupported value: \"X\": supported values: \"FQDN\", \"IPv4\", \"IPv6\""]
        );
        assert_eq!(
            say(subsets(&json!({"subsets": [{}]}))),
            ["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"]
        );
    }
}
