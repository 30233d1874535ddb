//! Texts for `Warning` headers: what works today but is deprecated, ambiguous or likely a mistake.
//!
//! Invariant: texts are upstream's; nothing here refuses a request.

use super::resources::amount;
use crate::access::Access;
use isopod_api::{Path, names};
use serde_json::Value;
use std::net::IpAddr;

/// Old labels of nodes, and what to use instead.
const OLD_NODE_LABELS: [(&str, &str); 8] = [
    ("beta.kubernetes.io/arch", r#"deprecated since v1.14; use "kubernetes.io/arch" instead"#),
    ("beta.kubernetes.io/os", r#"deprecated since v1.14; use "kubernetes.io/os" instead"#),
    (
        "failure-domain.beta.kubernetes.io/region",
        r#"deprecated since v1.17; use "topology.kubernetes.io/region" instead"#,
    ),
    ("failure-domain.beta.kubernetes.io/zone", r#"deprecated since v1.17; use "topology.kubernetes.io/zone" instead"#),
    ("beta.kubernetes.io/instance-type", r#"deprecated since v1.17; use "node.kubernetes.io/instance-type" instead"#),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("scheduler.alpha.kubernetes.io/preferAvoidPods", "deprecated since v1.22; use Taints and Tolerations instead"),
    ("node-role.kubernetes.io/master", r#"use "node-role.kubernetes.io/control-plane" instead"#),
];

pub fn node_label(key: &str) -> Option<&'static str> {
    OLD_NODE_LABELS.iter().find(|(k, _)| *k == key).map(|(_, why)| *why)
}

/// A name that ends up in hostnames but is no DNS label. `used_in`: `the Pod's hostname`, `Pod names and hostnames`.
pub fn hostname(obj: &Value, used_in: &str) -> Option<String> {
    let msgs = names::dns1123_label(obj.text("metadata.name"));
    (!msgs.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in {used_in}, which can result in surprising behavior; a DNS label is recommended: [{}]",
            msgs.join(" ")
        )
    })
}

pub fn ip(path: &Path, s: &str) -> Option<String> {
    let sloppy = names::parse_ip_sloppy(s)?;
    match s.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_none() => (v6.to_string() != s).then(|| {
            format!("{path}: IPv6 address {s:?} should be in RFC 5952 canonical format ({:?})", v6.to_string())
        }),
        Ok(IpAddr::V4(_)) => None,
        _ => Some(format!("{path}: non-standard IP address {s:?} is invalid: use {:?}", names::canonical_ip(sloppy))),
    }
}

pub fn cidr(path: &Path, s: &str) -> Vec<String> {
    let Some((addr, len)) = names::parse_cidr_sloppy(s) else { return Vec::new() };
    let net = format!("{}/{len}", names::masked(addr, len));
    let mut all = Vec::new();
    if names::masked(addr, len) != addr {
        let single = format!("{addr}/{}", if addr.is_ipv4() { 32 } else { 128 });
        all.push(format!("{path}: CIDR value {s:?} is ambiguous in this context (should be {net:?} or {single:?}?)"));
    }
    let (text, bits) = s.split_once('/').unwrap_or((s, ""));
    let mapped = matches!(addr, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    if text.parse::<IpAddr>().is_err() || (bits.len() > 1 && bits.starts_with('0')) || mapped {
        all.push(format!("{path}: non-standard CIDR value {s:?} is invalid: use {net:?}"));
    } else if all.is_empty() && addr.is_ipv6() && net != s {
        all.push(format!("{path}: IPv6 CIDR value {s:?} should be in RFC 5952 canonical format ({net:?})"));
    }
    all
}

/// The addresses of a list of strings.
pub fn ips(obj: &Value, list: &str) -> Vec<String> {
    let path = Path::new(list);
    obj.texts(list).iter().enumerate().filter_map(|(i, s)| ip(&path.index(i), s)).collect()
}

pub fn cidrs(obj: &Value, list: &str) -> Vec<String> {
    let path = Path::new(list);
    obj.texts(list).iter().enumerate().flat_map(|(i, s)| cidr(&path.index(i), s)).collect()
}

/// The field `ip` of the items of a list.
pub fn item_ips(obj: &Value, list: &str, field: &str, path: &Path) -> Vec<String> {
    let items = obj.list(list).iter().enumerate();
    items.filter_map(|(i, item)| ip(&path.index(i).child(field), item.text(field))).collect()
}

/// A quantity of bytes that is no whole number.
pub fn fraction(list: &Value, name: &str, path: &Path) -> Option<String> {
    let v = list.get(name)?;
    let q = amount(v);
    (q.milli_value() % 1000 != 0).then(|| {
        format!("{}: fractional byte value {:?} is invalid, must be an integer", path.key(name), q.to_string())
    })
}

/// `spec` of a claim.
pub fn claim_spec(spec: &Value, path: &Path) -> Vec<String> {
    let part = |f: &str| fraction(spec.at(&format!("resources.{f}")), "storage", &path.child("resources").child(f));
    [part("requests"), part("limits")].into_iter().flatten().collect()
}

pub fn claim(new: &Value, _: Option<&Value>) -> Vec<String> {
    const OLD: &str = "volume.beta.kubernetes.io/storage-class";
    let mut all = Vec::new();
    if !new.entry("metadata.annotations", OLD).is_null() {
        all.push(format!(
            "metadata.annotations[{OLD}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
        ));
    }
    all.extend(claim_spec(new.at("spec"), &Path::new("spec")));
    all
}

/// Old keys in the terms of a node selector; with `values`, bad label values too.
pub fn node_selector_term(term: &Value, values: bool, path: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for (i, e) in term.list("matchExpressions").iter().enumerate() {
        let p = path.child("matchExpressions").index(i);
        if let Some(why) = node_label(e.text("key")) {
            all.push(format!("{}: {} is {why}", p.child("key"), e.text("key")));
        }
        for (j, v) in e.texts("values").iter().enumerate().filter(|_| values) {
            let p = p.child("values").index(j);
            all.extend(names::label_value(v).iter().map(|m| format!("{p}: {v} is invalid, {m}")));
        }
    }
    all
}

const OLD_VOLUMES: [(&str, &str); 6] = [
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

pub fn volume(new: &Value, _: Option<&Value>) -> Vec<String> {
    let old_annotations = [
        (
            "volume.beta.kubernetes.io/storage-class",
            "deprecated since v1.8; use \"storageClassName\" attribute instead",
        ),
        ("volume.beta.kubernetes.io/mount-options", "deprecated since v1.31; use \"mountOptions\" attribute instead"),
    ];
    let mut all = Vec::new();
    for (key, why) in old_annotations {
        if !new.entry("metadata.annotations", key).is_null() {
            all.push(format!("metadata.annotations[{key}]: {why}"));
        }
    }
    if new.text("spec.persistentVolumeReclaimPolicy") == "Recycle" {
        all.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".to_owned());
    }
    let terms = "spec.nodeAffinity.required.nodeSelectorTerms";
    for (i, t) in new.list(terms).iter().enumerate() {
        all.extend(node_selector_term(t, false, &Path::new(terms).index(i)));
    }
    for (field, why) in OLD_VOLUMES {
        if new.at("spec").has(field) {
            let shown = if field == "storageos" { "storageOS" } else { field };
            all.push(format!("spec.{shown}: {why}"));
        }
    }
    all
}

pub fn service(new: &Value, _: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    if !new.entry("metadata.annotations", "service.kubernetes.io/topology-aware-hints").is_null() {
        all.push("annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead".to_owned());
    }
    let kind = new.text("spec.type");
    let headless = kind == "ClusterIP" && new.text("spec.clusterIP") == "None";
    if !matches!(new.text("spec.clusterIP"), "" | "None") {
        all.extend(ips(new, "spec.clusterIPs"));
    }
    let external = !new.list("spec.externalIPs").is_empty();
    let mut say = |when: bool, what: &str| {
        if when {
            all.push(what.to_owned());
        }
    };
    if headless {
        say(!new.is_empty_at("spec.loadBalancerIP"), "spec.loadBalancerIP is ignored for headless services");
        say(external, "spec.externalIPs is ignored for headless services");
        say(new.text("spec.sessionAffinity") != "None", "spec.SessionAffinity is ignored for headless services");
    }
    all.extend(ips(new, "spec.externalIPs"));
    if external && !headless && kind != "ExternalName" {
        all.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned());
    }
    all.extend(ip(&Path::new("spec.loadBalancerIP"), new.text("spec.loadBalancerIP")));
    all.extend(cidrs(new, "spec.loadBalancerSourceRanges"));
    if kind == "ExternalName" && external {
        all.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if kind != "ExternalName" && !new.is_empty_at("spec.externalName") {
        all.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if new.text("spec.trafficDistribution") == "PreferClose" {
        all.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned());
    }
    all
}

pub fn endpoints(new: &Value, _: Option<&Value>) -> Vec<String> {
    if new.entry_text("metadata.labels", "endpoints.kubernetes.io/managed-by") == "endpoint-controller" {
        return Vec::new();
    }
    let mut all = Vec::new();
    for (i, s) in new.list("subsets").iter().enumerate() {
        for f in ["addresses", "notReadyAddresses"] {
            all.extend(item_ips(s, f, "ip", &Path::new("subsets").index(i).child(f)));
        }
    }
    all
}

pub fn slice(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    if old.is_none() && new.text("addressType") == "FQDN" {
        all.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
    }
    let by = new.entry_text("metadata.labels", "endpointslice.kubernetes.io/managed-by");
    if matches!(by, "endpointslice-controller.k8s.io" | "endpointslicemirroring-controller.k8s.io") {
        return all;
    }
    for (i, e) in new.list("endpoints").iter().enumerate() {
        let path = Path::new("endpoints").index(i).child("addresses");
        all.extend(e.texts("addresses").iter().enumerate().filter_map(|(j, s)| ip(&path.index(j), s)));
    }
    all
}

pub fn node(new: &Value, _: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    if new.has("spec.configSource") {
        all.push("spec.configSource: the feature is removed".to_owned());
    }
    if !new.is_empty_at("spec.externalID") {
        all.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
    }
    all.extend(cidrs(new, "spec.podCIDRs"));
    all
}

pub fn service_account(new: &Value, old: Option<&Value>) -> Vec<String> {
    const KEY: &str = "kubernetes.io/enforce-mountable-secrets";
    let set = |o: &Value| !o.entry("metadata.annotations", KEY).is_null();
    if !set(new) || old.is_some_and(set) {
        return Vec::new();
    }
    vec![format!(
        "metadata.annotations[{KEY}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
    )]
}

pub fn ingress(new: &Value, old: Option<&Value>) -> Vec<String> {
    const KEY: &str = "kubernetes.io/ingress.class";
    let warn = old.is_none() && !new.entry("metadata.annotations", KEY).is_null() && !new.has("spec.ingressClassName");
    Vec::from_iter(
        warn.then(|| format!("annotation {KEY:?} is deprecated, please use 'spec.ingressClassName' instead")),
    )
}

pub fn network_policy(new: &Value, _: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in new.list(&format!("spec.{rules}")).iter().enumerate() {
            for (j, peer) in rule.list(peers).iter().enumerate().filter(|(_, p)| p.has("ipBlock")) {
                let path = Path::new("spec").child(rules).index(i).child(peers).index(j).child("ipBlock");
                all.extend(cidr(&path.child("cidr"), peer.text("ipBlock.cidr")));
                let except = path.child("except");
                let blocks = peer.texts("ipBlock.except");
                all.extend(blocks.iter().enumerate().flat_map(|(k, s)| cidr(&except.index(k), s)));
            }
        }
    }
    all
}

pub fn runtime_class(new: &Value, _: Option<&Value>) -> Vec<String> {
    let keys = new.entries("scheduling.nodeSelector").into_iter();
    keys.filter_map(|(k, _)| node_label(k)).map(|why| format!("scheduling.nodeSelector: {why}")).collect()
}

pub fn storage_class(new: &Value, _: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    for (i, t) in new.list("allowedTopologies").iter().enumerate() {
        let path = Path::new("allowedTopologies").index(i).child("matchLabelExpressions");
        for (j, e) in t.list("matchLabelExpressions").iter().enumerate() {
            all.extend(node_label(e.text("key")).map(|why| format!("{}: {why}", path.index(j).child("key"))));
        }
    }
    all
}

pub fn csi_driver(new: &Value, old: Option<&Value>) -> Vec<String> {
    let tokens = new.at("spec.tokenRequests");
    let asked = !new.list("spec.tokenRequests").is_empty() && !new.has("spec.serviceAccountTokenInSecrets");
    if !asked || old.is_some_and(|o| crate::access::same(o.at("spec.tokenRequests"), tokens)) {
        return Vec::new();
    }
    vec!["spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes".to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_in_odd_forms() {
        let p = Path::new("p");
        assert_eq!(ip(&p, "10.0.0.1"), None);
        assert_eq!(ip(&p, "fd00::1"), None);
        let warned = ip(&p, "FD00:0::1").unwrap();
        assert_eq!(warned, "p: IPv6 address \"FD00:0::1\" should be in RFC 5952 canonical format (\"fd00::1\")");
        let warned = ip(&p, "010.0.0.1").unwrap();
        assert_eq!(warned, "p: non-standard IP address \"010.0.0.1\" is invalid: use \"10.0.0.1\"");
        assert!(cidr(&p, "10.0.0.0/8").is_empty());
        assert_eq!(
            cidr(&p, "10.1.0.0/8"),
            [
                "p: CIDR value \"10.1.0.0/8\" is ambiguous in this context (should be \"10.0.0.0/8\" or \"10.1.0.0/32\"?)"
            ]
        );
    }

    #[test]
    fn services_that_surprise() {
        let headless = json!({"spec": {"type": "ClusterIP", "clusterIP": "None", "sessionAffinity": "ClientIP",
            "loadBalancerIP": "1.2.3.4"}});
        assert_eq!(
            service(&headless, None),
            [
                "spec.loadBalancerIP is ignored for headless services",
                "spec.SessionAffinity is ignored for headless services"
            ]
        );
        let external = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "sessionAffinity": "None",
            "externalName": "a.b", "externalIPs": ["1.2.3.4"], "trafficDistribution": "PreferClose"}});
        assert_eq!(
            service(&external, None),
            [
                "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
                "spec.externalName is ignored when spec.type is not \"ExternalName\"",
                "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
            ]
        );
    }

    #[test]
    fn other_kinds() {
        let claim_obj = json!({"metadata": {}, "spec": {"resources": {"requests": {"storage": "1500m"}}}});
        assert_eq!(
            claim(&claim_obj, None),
            ["spec.resources.requests[storage]: fractional byte value \"1500m\" is invalid, must be an integer"]
        );
        let old = json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "x"}}, "spec": {}});
        assert_eq!(ingress(&old, None).len(), 1);
        assert!(ingress(&old, Some(&old)).is_empty());
        let rc = json!({"scheduling": {"nodeSelector": {"beta.kubernetes.io/os": "linux"}}});
        assert_eq!(runtime_class(&rc, None).len(), 1);
    }
}
