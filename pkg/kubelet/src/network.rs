//! A pod's names and name service: host name, hosts file, resolv.conf. Pure.

use crate::pod::PodExt;
use isopod_runtime::DnsConfig;
use k8s_openapi::api::core::v1::Pod;
use std::net::IpAddr;

/// What libc takes (`pkg/apis/core/validation`).
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
/// Linux' limit of a host name.
const MAX_HOSTNAME: usize = 63;

/// (host name, domain): the domain is empty without a subdomain.
pub fn hostname_and_domain(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = pod.spec();
    if let Some(own) = spec.hostname_override.as_deref().filter(|h| !h.is_empty()) {
        return (own.to_owned(), String::new());
    }
    let name = spec.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod.pod_name());
    let mut name: String = name.chars().take(MAX_HOSTNAME).collect();
    // What was cut may end in a character that a host name cannot end in.
    name.truncate(name.trim_end_matches(['-', '.']).len());
    let domain = match spec.subdomain.as_deref() {
        Some(sub) if !sub.is_empty() => format!("{sub}.{}.svc.{cluster_domain}", pod.ns()),
        _ => String::new(),
    };
    (name, domain)
}

/// What the sandbox's UTS name is: the node's on the host network.
pub fn sandbox_hostname(pod: &Pod, cluster_domain: &str) -> String {
    if pod.host_network() && pod.spec().hostname_override.is_none() {
        return String::new();
    }
    let (name, domain) = hostname_and_domain(pod, cluster_domain);
    let fqdn = format!("{name}.{domain}");
    if pod.spec().set_hostname_as_fqdn == Some(true) && !domain.is_empty() && fqdn.len() <= MAX_HOSTNAME {
        return fqdn;
    }
    name
}

/// The text of `/etc/hosts`. `host_file`: the node's own, for pods on the host network.
pub fn hosts_file(pod: &Pod, ips: &[IpAddr], cluster_domain: &str, host_file: Option<&str>) -> String {
    let mut out = String::new();
    match host_file {
        Some(text) => {
            out.push_str("# Kubernetes-managed hosts file (host network).\n");
            out.push_str(text);
        }
        None => {
            out.push_str(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            let (name, domain) = hostname_and_domain(pod, cluster_domain);
            for ip in ips {
                if domain.is_empty() {
                    out.push_str(&format!("{ip}\t{name}\n"));
                } else {
                    out.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n"));
                }
            }
        }
    }
    let mut aliases = pod.spec().host_aliases.iter().flatten().peekable();
    if aliases.peek().is_some() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            out.push_str(&format!(
                "{}\t{}\n",
                alias.ip,
                alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
            ));
        }
    }
    out
}

/// Parses a resolv.conf (resolv.conf(5)): the last `search` line counts.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => {
                let names = words.map(|w| if w == "." { "." } else { w.trim_end_matches('.') });
                dns.searches = names.map(str::to_owned).collect();
            }
            Some("options") => dns.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

pub fn resolv_conf(dns: &DnsConfig) -> String {
    let mut out = String::new();
    if !dns.searches.is_empty() {
        out.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for s in &dns.servers {
        out.push_str(&format!("nameserver {s}\n"));
    }
    if !dns.options.is_empty() {
        out.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    out
}

/// The name service of a pod by its DNS policy, and what had to be cut (upstream's `DNSConfigForming` event).
pub fn dns(pod: &Pod, host: &DnsConfig, cluster_dns: &[IpAddr], cluster_domain: &str) -> (DnsConfig, Option<String>) {
    let spec = pod.spec();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !pod.host_network(),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut dns = if policy == "None" {
        DnsConfig::default()
    } else if cluster && !cluster_dns.is_empty() {
        let mut searches = Vec::new();
        if !cluster_domain.is_empty() {
            searches = vec![
                format!("{}.svc.{cluster_domain}", pod.ns()),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_owned(),
            ];
        }
        searches.extend(host.searches.iter().cloned());
        DnsConfig {
            servers: cluster_dns.iter().map(IpAddr::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        host.clone()
    };
    if let Some(own) = &spec.dns_config {
        dns.servers.extend(own.nameservers.iter().flatten().cloned());
        dns.searches.extend(own.searches.iter().flatten().cloned());
        for o in own.options.iter().flatten() {
            let Some(name) = o.name.as_deref() else { continue };
            dns.options.retain(|have| have.split(':').next() != Some(name));
            dns.options.push(match o.value.as_deref() {
                Some(v) if !v.is_empty() => format!("{name}:{v}"),
                _ => name.to_owned(),
            });
        }
    }
    let cut = limit(&mut dns);
    (dns, cut)
}

fn limit(dns: &mut DnsConfig) -> Option<String> {
    let mut seen = std::collections::HashSet::new();
    dns.servers.retain(|s| seen.insert(s.clone()));
    seen.clear();
    dns.searches.retain(|s| seen.insert(s.clone()));
    if dns.servers.len() > MAX_SERVERS {
        dns.servers.truncate(MAX_SERVERS);
        return Some(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            dns.servers.join(" ")
        ));
    }
    let mut chars = 0;
    let fits = dns.searches.iter().take(MAX_SEARCHES).take_while(|s| {
        chars += s.len() + 1;
        chars <= MAX_SEARCH_CHARS + 1
    });
    let fits = fits.count();
    if fits < dns.searches.len() {
        dns.searches.truncate(fits);
        return Some(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            dns.searches.join(" ")
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    fn host() -> DnsConfig {
        parse_resolv_conf("# x\nnameserver 1.1.1.1\nsearch corp.example.\noptions timeout:1\n")
    }

    #[test]
    fn dns_policies() {
        let cluster = ["10.43.0.10".parse().unwrap()];
        let run = |spec: Value| resolv_conf(&dns(&pod(spec), &host(), &cluster, "cluster.local").0);
        let first = "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.43.0.10\noptions ndots:5\n";
        let default = "search corp.example\nnameserver 1.1.1.1\noptions timeout:1\n";
        assert_eq!(run(json!({})), first);
        assert_eq!(run(json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true})), default);
        assert_eq!(run(json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true})), first);
        assert_eq!(run(json!({"dnsPolicy": "Default"})), default);
        let own = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["a.b"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}});
        assert_eq!(run(own), "search a.b\nnameserver 9.9.9.9\noptions ndots:2 edns0\n");
        let merged = json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}});
        assert!(run(merged).ends_with("options ndots:1\n"));
        let many = pod(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"]}}),
        );
        assert!(
            dns(&many, &host(), &cluster, "cluster.local").1.unwrap().starts_with("Nameserver limits were exceeded")
        );
    }

    #[test]
    fn names() {
        let domain = "cluster.local";
        assert_eq!(hostname_and_domain(&pod(json!({})), domain), ("web-0".into(), String::new()));
        let p = pod(json!({"hostname": "h", "subdomain": "sub"}));
        assert_eq!(hostname_and_domain(&p, domain), ("h".into(), "sub.ns.svc.cluster.local".into()));
        let p = pod(json!({"hostname": "h", "subdomain": "sub", "setHostnameAsFQDN": true}));
        assert_eq!(sandbox_hostname(&p, domain), "h.sub.ns.svc.cluster.local");
        assert_eq!(sandbox_hostname(&pod(json!({"hostNetwork": true})), domain), "");
        let long = pod(json!({"hostname": format!("{}-{}", "a".repeat(62), "b")}));
        assert_eq!(hostname_and_domain(&long, domain).0, "a".repeat(62));
    }

    #[test]
    fn hosts_files() {
        let p = pod(json!({"subdomain": "sub", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x", "y"]}]}));
        let text = hosts_file(&p, &["10.42.0.5".parse().unwrap()], "cluster.local", None);
        assert!(text.contains("10.42.0.5\tweb-0.sub.ns.svc.cluster.local\tweb-0\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\tx\ty\n"));
        let text = hosts_file(&pod(json!({"hostNetwork": true})), &[], "cluster.local", Some("127.0.0.1 node\n"));
        assert_eq!(text, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 node\n");
    }
}
