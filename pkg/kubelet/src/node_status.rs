//! The node's object as the kubelet makes it, and the parts of its status that the kubelet keeps. Pure.

use crate::config::{ConfigError, KubeletConfig};
use crate::downward::Allocatable;
use crate::machine::Machine;
use crate::pressure::Pressure;
use isopod_api::quantity::{Format, Quantity};
use isopod_api::time;
use isopod_runtime::ImageStatus;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Images named in the status at most (`nodeStatusMaxImages`), and names of each.
const MAX_IMAGES: usize = 50;
const MAX_NAMES: usize = 5;

fn quantity(what: &str, amount: &str) -> Result<Quantity, ConfigError> {
    Quantity::parse(amount).map_err(|e| ConfigError::Quantity {
        resource: what.to_owned(),
        amount: amount.to_owned(),
        why: e.to_string(),
    })
}

/// Capacity and allocatable, as the API shows them.
pub struct Resources {
    pub capacity: BTreeMap<String, String>,
    pub allocatable: BTreeMap<String, String>,
    pub amounts: Allocatable,
}

pub fn resources(cfg: &KubeletConfig, machine: &Machine) -> Result<Resources, ConfigError> {
    let reserved = |name: &str, milli: bool| -> Result<i64, ConfigError> {
        let mut sum = 0;
        for list in [&cfg.system_reserved, &cfg.kube_reserved] {
            if let Some(amount) = list.get(name) {
                let q = quantity(name, amount)?;
                sum += if milli { q.milli_value() } else { q.value() };
            }
        }
        Ok(sum)
    };
    let eviction = cfg.eviction_hard.memory.of(machine.memory) as i64;
    let disk_kept = cfg.eviction_hard.disk(machine.disk) as i64;
    let huge: i64 = machine.hugepages.iter().map(|(_, b)| *b as i64).sum();
    let amounts = Allocatable {
        cpu_milli: (i64::from(machine.cpus) * 1000 - reserved("cpu", true)?).max(0),
        memory: (machine.memory as i64 - huge - eviction - reserved("memory", false)?).max(0),
        ephemeral_storage: (machine.disk as i64 - disk_kept - reserved("ephemeral-storage", false)?).max(0),
    };
    let kib = |bytes: i64| format!("{}Ki", bytes / 1024);
    let mut capacity = BTreeMap::from([
        ("cpu".to_owned(), machine.cpus.to_string()),
        ("memory".to_owned(), kib(machine.memory as i64)),
        ("ephemeral-storage".to_owned(), kib(machine.disk as i64)),
        ("pods".to_owned(), cfg.max_pods.to_string()),
    ]);
    let mut allocatable = BTreeMap::from([
        ("cpu".to_owned(), Quantity::from_milli(amounts.cpu_milli, Format::DecimalSi).to_string()),
        ("memory".to_owned(), kib(amounts.memory)),
        ("ephemeral-storage".to_owned(), amounts.ephemeral_storage.to_string()),
        ("pods".to_owned(), cfg.max_pods.to_string()),
    ]);
    for (size, bytes) in &machine.hugepages {
        let text = Quantity::new(*bytes as i64, Format::BinarySi).to_string();
        capacity.insert(format!("hugepages-{size}"), text.clone());
        allocatable.insert(format!("hugepages-{size}"), text);
    }
    Ok(Resources { capacity, allocatable, amounts })
}

/// The labels that the kubelet gives its node, before those of the configuration.
pub fn labels(cfg: &KubeletConfig, machine: &Machine) -> BTreeMap<String, String> {
    let mut out = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), cfg.node_name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), machine.arch.clone()),
        ("beta.kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("beta.kubernetes.io/arch".to_owned(), machine.arch.clone()),
    ]);
    if !cfg.instance_type.is_empty() {
        out.insert("node.kubernetes.io/instance-type".to_owned(), cfg.instance_type.clone());
        out.insert("beta.kubernetes.io/instance-type".to_owned(), cfg.instance_type.clone());
    }
    out.extend(cfg.labels.clone());
    out
}

/// The object to register.
pub fn node(cfg: &KubeletConfig, machine: &Machine, status: Value) -> Value {
    let taints: Vec<Value> = cfg
        .taints
        .iter()
        .map(|t| {
            let mut v = json!({"key": t.key, "effect": t.effect});
            if !t.value.is_empty() {
                v["value"] = json!(t.value);
            }
            v
        })
        .collect();
    let mut spec = Map::new();
    if !taints.is_empty() {
        spec.insert("taints".into(), taints.into());
    }
    if !cfg.provider_id.is_empty() {
        spec.insert("providerID".into(), json!(cfg.provider_id));
    }
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": cfg.node_name,
            "labels": labels(cfg, machine),
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
        },
        "spec": spec,
        "status": status,
    })
}

/// What changes from one status to the next.
pub struct Observed<'a> {
    pub runtime_version: &'a str,
    pub images: &'a [ImageStatus],
    /// Why the node is not ready; empty: it is.
    pub not_ready: Vec<String>,
    pub pressure: Pressure,
    pub now: Timestamp,
    /// The conditions in the API.
    pub old: &'a Value,
}

pub fn status(cfg: &KubeletConfig, machine: &Machine, r: &Resources, o: &Observed<'_>) -> Value {
    let mut addresses: Vec<Value> =
        cfg.node_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    addresses.extend(cfg.node_external_ips.iter().map(|ip| json!({"type": "ExternalIP", "address": ip.to_string()})));
    addresses.push(json!({"type": "Hostname", "address": cfg.node_name}));
    json!({
        "capacity": r.capacity,
        "allocatable": r.allocatable,
        "addresses": addresses,
        "conditions": conditions(o),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": cfg.listen.port()}},
        "nodeInfo": {
            "machineID": machine.machine_id,
            "systemUUID": machine.system_uuid,
            "bootID": machine.boot_id,
            "kernelVersion": machine.kernel,
            "osImage": machine.os_image,
            "containerRuntimeVersion": o.runtime_version,
            "kubeletVersion": cfg.version,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": machine.arch,
        },
        "images": images(o.images),
    })
}

fn images(list: &[ImageStatus]) -> Vec<Value> {
    let mut sorted: Vec<&ImageStatus> = list.iter().collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then(a.id.cmp(&b.id)));
    let one = |i: &&ImageStatus| {
        let names: Vec<&String> = i.repo_digests.iter().chain(&i.repo_tags).take(MAX_NAMES).collect();
        json!({"names": names, "sizeBytes": i.size})
    };
    sorted.iter().filter(|i| !i.repo_digests.is_empty() || !i.repo_tags.is_empty()).take(MAX_IMAGES).map(one).collect()
}

fn conditions(o: &Observed<'_>) -> Vec<Value> {
    let (ready, reason, message) = if o.not_ready.is_empty() {
        (true, "KubeletReady", "kubelet is posting ready status".to_owned())
    } else {
        (false, "KubeletNotReady", format!("[{}]", o.not_ready.join(", ")))
    };
    let pressure = |on: bool, yes: (&'static str, &'static str), no: (&'static str, &'static str)| {
        let (reason, message) = if on { yes } else { no };
        (on, reason, message.to_owned())
    };
    let list = [
        (
            "MemoryPressure",
            pressure(
                o.pressure.memory,
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ),
        ),
        (
            "DiskPressure",
            pressure(
                o.pressure.disk,
                ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ),
        ),
        (
            "PIDPressure",
            pressure(
                false,
                ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ),
        ),
        ("Ready", (ready, reason, message)),
    ];
    let now = time::format(o.now);
    let old = |kind: &str| o.old["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind);
    list.into_iter()
        .map(|(kind, (on, reason, message))| {
            let word = if on { "True" } else { "False" };
            let since = old(kind).filter(|c| c["status"] == word).and_then(|c| c["lastTransitionTime"].as_str());
            json!({
                "type": kind, "status": word, "reason": reason, "message": message,
                "lastHeartbeatTime": now, "lastTransitionTime": since.unwrap_or(&now),
            })
        })
        .collect()
}

/// Whether a status says anything new: times of heartbeats do not count.
pub fn same(a: &Value, b: &Value) -> bool {
    let bare = |v: &Value| {
        let mut v = v.clone();
        for c in v["conditions"].as_array_mut().into_iter().flatten() {
            if let Some(m) = c.as_object_mut() {
                m.remove("lastHeartbeatTime");
            }
        }
        v
    };
    let (a, b) = (bare(a), bare(b));
    // What others keep in the status is not ours to compare.
    b.as_object().is_some_and(|b| {
        b.iter().all(|(k, v)| a.get(k).unwrap_or(&Value::Null) == v || (v == &json!([]) && a[k].is_null()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine { cpus: 2, memory: 4 << 30, disk: 100 << 30, arch: "amd64".into(), ..Default::default() }
    }

    #[test]
    fn allocatable_is_what_is_not_reserved() {
        let cfg = KubeletConfig {
            system_reserved: [("cpu".to_owned(), "250m".to_owned()), ("memory".to_owned(), "1Gi".to_owned())].into(),
            ..Default::default()
        };
        let r = resources(&cfg, &machine()).unwrap();
        assert_eq!((r.capacity["cpu"].as_str(), r.allocatable["cpu"].as_str()), ("2", "1750m"));
        assert_eq!(r.allocatable["memory"], format!("{}Ki", (3 << 20) - 100 * 1024));
        let part = KubeletConfig { eviction_hard: "memory.available<25%".parse().unwrap(), ..Default::default() };
        assert_eq!(resources(&part, &machine()).unwrap().allocatable["memory"], format!("{}Ki", 3 << 20));
        let bad =
            KubeletConfig { kube_reserved: [("memory".to_owned(), "lots".to_owned())].into(), ..Default::default() };
        assert!(resources(&bad, &machine()).is_err());
    }

    #[test]
    fn heartbeats_alone_are_no_change() {
        let cfg = KubeletConfig { node_name: "n".into(), ..Default::default() };
        let r = resources(&cfg, &machine()).unwrap();
        let at = |second: i64, not_ready: Vec<String>, old: &Value| {
            let o = Observed {
                runtime_version: "isopod://1",
                images: &[],
                not_ready,
                pressure: Pressure::default(),
                now: Timestamp::from_second(second).unwrap(),
                old,
            };
            status(&cfg, &machine(), &r, &o)
        };
        let first = at(0, vec![], &json!({}));
        let second = at(60, vec![], &first);
        assert!(same(&first, &second));
        let third = at(120, vec!["network".into()], &second);
        assert!(!same(&second, &third));
        let ready = third["conditions"][3].clone();
        assert_eq!(
            (ready["status"].as_str(), ready["lastTransitionTime"].as_str()),
            (Some("False"), Some("1970-01-01T00:02:00Z"))
        );
        assert_eq!(third["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
    }
}
