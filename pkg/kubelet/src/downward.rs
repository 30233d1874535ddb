//! The downward API: fields of the pod and resources of its containers as text, for environment and volumes.

use crate::pod::PodExt;
use crate::resources;
use isopod_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use std::collections::BTreeMap;
use std::net::IpAddr;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DownwardError {
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("unsupported container resource : {0}")]
    Resource(String),
    #[error("container {0} not found")]
    Container(String),
}

/// What the pod's own object does not say yet when its first container starts.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    pub pod_ips: Vec<IpAddr>,
    pub host_ips: Vec<IpAddr>,
}

fn joined(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// `key="value"` lines with Go's quoting, as a downward API file shows labels.
fn map_text(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The value of a `fieldRef`.
pub fn field(pod: &Pod, path: &str, at: &Addresses) -> Result<String, DownwardError> {
    let meta = &pod.metadata;
    for (prefix, map) in [("metadata.labels", &meta.labels), ("metadata.annotations", &meta.annotations)] {
        let Some(rest) = path.strip_prefix(prefix) else { continue };
        if rest.is_empty() {
            return Ok(map_text(map.as_ref()));
        }
        let key = rest.strip_prefix("['").and_then(|r| r.strip_suffix("']"));
        let key = key.ok_or_else(|| DownwardError::Field(path.to_owned()))?;
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    Ok(match path {
        "metadata.name" => pod.pod_name().to_owned(),
        "metadata.namespace" => pod.ns().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "spec.nodeName" => pod.spec().node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => pod.spec().service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&at.host_ips),
        "status.hostIPs" => joined(&at.host_ips),
        "status.podIP" => first(&at.pod_ips),
        "status.podIPs" => joined(&at.pod_ips),
        _ => return Err(DownwardError::Field(path.to_owned())),
    })
}

/// What the node has for pods: stands in for a limit that a container does not set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocatable {
    pub cpu_milli: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
}

/// The value of a `resourceFieldRef`; `own` is the container that it stands in.
pub fn resource(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    node: Allocatable,
) -> Result<String, DownwardError> {
    let named = match selector.container_name.as_deref() {
        Some(name) if !name.is_empty() => {
            Some(pod.container(name).ok_or_else(|| DownwardError::Container(name.to_owned()))?)
        }
        _ => None,
    };
    let c = named.as_ref().or(own).ok_or_else(|| DownwardError::Container(String::new()))?;
    let unsupported = || DownwardError::Resource(selector.resource.clone());
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let (request, limit) = resources::of(c, name);
    let of_node = match name {
        "cpu" => node.cpu_milli,
        "memory" => node.memory,
        "ephemeral-storage" => node.ephemeral_storage,
        n if n.starts_with("hugepages-") => 0,
        _ => return Err(unsupported()),
    };
    let value = match kind {
        "limits" => limit.filter(|l| *l > 0).unwrap_or(of_node),
        "requests" => request.or(limit).unwrap_or(0),
        _ => return Err(unsupported()),
    };
    let divisor = selector.divisor.as_ref().and_then(resources::parse).filter(|d| !d.is_zero());
    let divisor = divisor.unwrap_or_else(|| Quantity::new(1, isopod_api::quantity::Format::DecimalSi));
    let unit = if name == "cpu" { divisor.milli_value() } else { divisor.value() }.max(1);
    // Rounded up.
    Ok((value / unit + i64::from(value % unit != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "say \"hi\""}},
            "spec": {"nodeName": "w", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "100Mi"}}}]},
        }))
        .unwrap()
    }

    #[test]
    fn fields() {
        let at = Addresses { pod_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()], host_ips: vec![] };
        for (path, want) in [
            ("metadata.name", "p"),
            ("metadata.labels", "a=\"say \\\"hi\\\"\"\nb=\"2\""),
            ("metadata.labels['b']", "2"),
            ("metadata.annotations['none']", ""),
            ("status.podIP", "10.0.0.1"),
            ("status.podIPs", "10.0.0.1,fd00::1"),
            ("status.hostIP", ""),
        ] {
            assert_eq!(field(&pod(), path, &at).as_deref(), Ok(want), "{path}");
        }
        assert_eq!(field(&pod(), "spec.x", &at), Err(DownwardError::Field("spec.x".into())));
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let p = pod();
        let node = Allocatable { cpu_milli: 4000, memory: 1 << 30, ephemeral_storage: 0 };
        for (name, divisor, want) in [
            ("limits.cpu", "", "2"),
            ("limits.cpu", "1m", "1500"),
            ("requests.cpu", "1m", "1500"),
            ("requests.memory", "1Mi", "100"),
            ("limits.memory", "1Mi", "1024"),
        ] {
            let s: ResourceFieldSelector = serde_json::from_value(
                json!({"resource": name, "divisor": if divisor.is_empty() { "0" } else { divisor }}),
            )
            .unwrap();
            assert_eq!(resource(&p, p.spec().containers.first(), &s, node).as_deref(), Ok(want), "{name} {divisor}");
        }
    }
}
