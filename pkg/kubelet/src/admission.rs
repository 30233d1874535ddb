//! Whether a pod may run on this node: what the scheduler checks too, and what only the node knows. Pure.

use crate::pod::{PodExt, init_containers, is_sidecar};
use crate::resources;
use crate::status::Verdict;
use isopod_api::quantity::Quantity;
use isopod_client::views::Node;
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Sysctls that need no permission (upstream's `SafeSysctlAllowlist`).
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

fn no(reason: impl Into<String>, message: impl std::fmt::Display) -> Result<(), Verdict> {
    Err(Verdict { reason: reason.into(), message: format!("Pod was rejected: {message}") })
}

/// `others` are the pods that run here already; `max_pods` counts them all.
pub fn admit(
    pod: &Pod,
    node: Option<&Node>,
    others: &[Arc<Pod>],
    allowed_sysctls: &[String],
    max_pods: u32,
) -> Result<(), Verdict> {
    sysctls(pod, allowed_sysctls)?;
    let Some(node) = node else { return Ok(()) };
    if !matches_node(pod, node) {
        return no("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector");
    }
    if others.len() as u32 + 1 > max_pods {
        let message = format!(
            "Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {max_pods}",
            others.len()
        );
        return no("OutOfpods", message);
    }
    let wanted = host_ports(pod);
    if others.iter().any(|o| host_ports(o).iter().any(|theirs| wanted.iter().any(|w| conflict(w, theirs)))) {
        return no(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        );
    }
    amounts(pod, node, others).or_else(|(name, message)| no(format!("OutOf{name}"), message))
}

/// Whether the node has what the pod asks for beside the others; the error says what is short.
pub fn fits(pod: &Pod, node: &Node, others: &[Arc<Pod>]) -> Result<(), String> {
    amounts(pod, node, others).map_err(|(_, message)| message)
}

/// The error: what there is not enough of, and a sentence.
fn amounts(pod: &Pod, node: &Node, others: &[Arc<Pod>]) -> Result<(), (String, String)> {
    for (name, allocatable) in &node.status.allocatable {
        if name == "pods" {
            continue;
        }
        let requested = resources::pod_amount(pod, name, false);
        let Some(capacity) = Quantity::parse(&allocatable.text()).ok().filter(|_| requested > 0) else { continue };
        let capacity = if name == "cpu" { capacity.milli_value() } else { capacity.value() };
        let used: i64 = others.iter().map(|o| resources::pod_amount(o, name, false)).sum();
        if requested + used > capacity {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            );
            return Err((name.clone(), message));
        }
    }
    Ok(())
}

fn sysctls(pod: &Pod, allowed: &[String]) -> Result<(), Verdict> {
    for s in pod.spec().security_context.iter().flat_map(|s| s.sysctls.iter().flatten()) {
        let name = s.name.replace('/', ".");
        let listed = |pattern: &str| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        };
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !allowed.iter().any(|a| listed(a)) {
            return no("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowlisted"));
        }
        if name.starts_with("net.") && pod.host_network() {
            return no("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowed with host net enabled"));
        }
    }
    Ok(())
}

type HostPort = (String, String, i32);

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let spec = pod.spec();
    let containers = init_containers(spec).iter().filter(|c| is_sidecar(c)).chain(&spec.containers);
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    let ports = ports.filter_map(|p| {
        let port = p.host_port.filter(|p| *p > 0)?;
        let ip = p.host_ip.clone().filter(|i| !i.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
        Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), ip, port))
    });
    ports.collect()
}

fn conflict(a: &HostPort, b: &HostPort) -> bool {
    let any = |ip: &str| matches!(ip, "0.0.0.0" | "::");
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || any(&a.1) || any(&b.1))
}

fn matches_node(pod: &Pod, node: &Node) -> bool {
    let spec = pod.spec();
    let labels = &node.metadata.labels;
    if !spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_matches(t, labels, &node.metadata.name)))
}

fn term_matches(t: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let (labelled, fields) = (t.match_expressions.iter().flatten(), t.match_fields.iter().flatten());
    // A term that asks for nothing matches nothing.
    if t.match_expressions.iter().flatten().next().is_none() && t.match_fields.iter().flatten().next().is_none() {
        return false;
    }
    labelled.into_iter().all(|r| requirement(r, labels.get(&r.key).map(String::as_str)))
        && fields.into_iter().all(|r| r.key == "metadata.name" && requirement(r, Some(name)))
}

fn requirement(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let among = |v: &str| r.values.iter().flatten().any(|w| w == v);
    let number = |t: Option<&str>| t.and_then(|t| t.parse::<i64>().ok());
    let bound = number(r.values.iter().flatten().next().map(String::as_str));
    match r.operator.as_str() {
        "In" => value.is_some_and(among),
        "NotIn" => !value.is_some_and(among),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => matches!((number(value), bound), (Some(v), Some(b)) if v > b),
        "Lt" => matches!((number(value), bound), (Some(v), Some(b)) if v < b),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn check(spec: Value, others: &[Value], want: Option<&str>) {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {"disk": "ssd", "gen": "7"}},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3"}}}))
            .unwrap();
        let others: Vec<Arc<Pod>> = others.iter().map(|o| Arc::new(pod(o.clone()))).collect();
        let got = admit(&pod(spec.clone()), Some(&node), &others, &["kernel.msg*".into()], 3);
        assert_eq!(got.as_ref().err().map(|v| v.reason.as_str()), want, "{spec}");
    }

    #[test]
    fn pods_are_admitted_or_told_why_not() {
        let c = |more: Value| json!({"containers": [more]});
        let cpu = |n: &str| c(json!({"name": "c", "resources": {"requests": {"cpu": n}}}));
        let port = |ip: &str| c(json!({"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}));
        let term = |r: Value| {
            json!({"containers": [], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [r]}}}})
        };
        check(cpu("1500m"), &[], None);
        check(cpu("1500m"), &[cpu("600m")], Some("OutOfcpu"));
        check(cpu("1"), &[cpu("0"), cpu("0"), cpu("0")], Some("OutOfpods"));
        check(port(""), &[port("10.0.0.1")], Some("NodePorts"));
        check(port("10.0.0.2"), &[port("10.0.0.1")], None);
        check(json!({"containers": [], "nodeSelector": {"disk": "ssd"}}), &[], None);
        check(json!({"containers": [], "nodeSelector": {"disk": "hdd"}}), &[], Some("NodeAffinity"));
        check(term(json!({"matchExpressions": [{"key": "gen", "operator": "Gt", "values": ["6"]}]})), &[], None);
        check(
            term(json!({"matchExpressions": [{"key": "gen", "operator": "DoesNotExist"}]})),
            &[],
            Some("NodeAffinity"),
        );
        check(term(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]})), &[], None);
        check(term(json!({})), &[], Some("NodeAffinity"));
        let sysctl =
            |name: &str| json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        check(sysctl("kernel.msgmax"), &[], None);
        check(sysctl("kernel.shm_rmid_forced"), &[], None);
        check(sysctl("vm.swappiness"), &[], Some("SysctlForbidden"));
    }
}
