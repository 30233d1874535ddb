//! Defaults of pods: their spec, containers, probes and volumes.

use super::{Overlay, set_nonzero, set_pointer, set_struct, set_text};
use crate::access::{Access, list_mut, map_mut, set, unset};
use isopod_api::quantity::Quantity;
use regex::Regex;
use serde_json::{Value, json};
use std::sync::LazyLock;

pub(super) fn overlay(def: &str) -> Option<Overlay> {
    Some(match def {
        "Pod" => pod,
        "PodSpec" => pod_spec,
        "PodStatus" => pod_status,
        "Container" | "EphemeralContainer" => container,
        "ContainerPort" => |v| set_text(v, "protocol", "TCP"),
        "Probe" => probe,
        "HTTPGetAction" => http_get,
        "GRPCAction" => |v| set_pointer(v, "service", ""),
        "ObjectFieldSelector" => |v| set_text(v, "apiVersion", "v1"),
        "FileKeySelector" => |v| set_pointer(v, "optional", false),
        "ResourceRequirements" | "VolumeResourceRequirements" => resources,
        "Volume" => volume,
        "SecretVolumeSource" | "ConfigMapVolumeSource" | "DownwardAPIVolumeSource" | "ProjectedVolumeSource" => {
            |v| set_pointer(v, "defaultMode", 0o644)
        }
        "ServiceAccountTokenProjection" => |v| set_pointer(v, "expirationSeconds", 3600),
        "HostPathVolumeSource" => |v| set_pointer(v, "type", ""),
        "ISCSIVolumeSource" | "ISCSIPersistentVolumeSource" => |v| set_text(v, "iscsiInterface", "default"),
        "RBDVolumeSource" | "RBDPersistentVolumeSource" => rbd,
        "AzureDiskVolumeSource" => azure_disk,
        "ScaleIOVolumeSource" | "ScaleIOPersistentVolumeSource" => scale_io,
        _ => return None,
    })
}

fn pod(v: &mut Value) {
    if v.int("spec.terminationGracePeriodSeconds").is_some_and(|s| s < 0) {
        set(v, "spec.terminationGracePeriodSeconds", 1);
    }
    for list in ["spec.containers", "spec.initContainers"] {
        for c in list_mut(v, list) {
            requests_from_limits(c);
        }
    }
    set_pointer(v, "spec.enableServiceLinks", true);
    if v.flag("spec.hostNetwork") {
        for list in ["spec.containers", "spec.initContainers"] {
            for c in list_mut(v, list) {
                for port in list_mut(c, "ports") {
                    let n = port.int_or("containerPort", 0);
                    set_nonzero(port, "hostPort", n);
                }
            }
        }
    }
}

fn requests_from_limits(container: &mut Value) {
    let limits = container.at("resources.limits").clone();
    if let Value::Object(limits) = limits {
        let requests = map_mut(container, "resources.requests");
        for (k, q) in limits {
            requests.entry(k).or_insert(q);
        }
    }
}

fn pod_spec(v: &mut Value) {
    if v.is_empty_at("serviceAccountName") && !v.is_empty_at("serviceAccount") {
        let name = v.at("serviceAccount").clone();
        set(v, "serviceAccountName", name);
    }
    match v.text("serviceAccountName").to_owned() {
        name if name.is_empty() => unset(v, "serviceAccount"),
        name => set(v, "serviceAccount", name),
    }
    set_text(v, "dnsPolicy", "ClusterFirst");
    set_text(v, "restartPolicy", "Always");
    set_struct(v, "securityContext");
    set_pointer(v, "terminationGracePeriodSeconds", 30);
    set_text(v, "schedulerName", "default-scheduler");
}

fn pod_status(v: &mut Value) {
    let ip = v.text("podIP").to_owned();
    let first = v.list("podIPs").first().map(|i| i.text("ip").to_owned());
    match (ip.is_empty(), first) {
        (true, Some(first)) => set(v, "podIP", first),
        (false, first) if first.as_deref() != Some(&ip) => set(v, "podIPs", json!([{"ip": ip}])),
        _ => {}
    }
}

/// An image reference: an optional host, a path, an optional tag, an optional digest.
static IMAGE: LazyLock<Regex> = LazyLock::new(|| {
    const HOST: &str = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?";
    const PART: &str = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*";
    const DIGEST: &str = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}";
    let whole = format!(r"^(?:{HOST}/)?{PART}(?:/{PART})*(?::([0-9A-Za-z_][0-9A-Za-z_.-]{{0,127}}))?(@{DIGEST})?$");
    Regex::new(&whole).expect("the pattern is constant")
});

/// The tag of an image reference: `latest` where it has neither tag nor digest, empty where it has only a digest or is
/// no reference at all.
fn image_tag(image: &str) -> &str {
    let Some(parts) = IMAGE.captures(image) else { return "" };
    match (parts.get(1), parts.get(2)) {
        (Some(tag), _) => &image[tag.range()],
        (None, None) => "latest",
        (None, Some(_)) => "",
    }
}

fn pull_policy(image: &str) -> &'static str {
    if image_tag(image) == "latest" { "Always" } else { "IfNotPresent" }
}

fn container(v: &mut Value) {
    let policy = pull_policy(v.text("image"));
    set_text(v, "imagePullPolicy", policy);
    set_text(v, "terminationMessagePath", "/dev/termination-log");
    set_text(v, "terminationMessagePolicy", "File");
}

fn probe(v: &mut Value) {
    set_nonzero(v, "timeoutSeconds", 1);
    set_nonzero(v, "periodSeconds", 10);
    set_nonzero(v, "successThreshold", 1);
    set_nonzero(v, "failureThreshold", 3);
}

fn http_get(v: &mut Value) {
    set_text(v, "path", "/");
    set_text(v, "scheme", "HTTP");
}

/// Amounts are kept to a thousandth.
pub(super) fn round_to_milli(list: &mut Value) {
    let Value::Object(map) = list else { return };
    for q in map.values_mut() {
        if let Some(mut n) = q.as_str().and_then(|s| Quantity::parse(s).ok())
            && !n.round_up(-3)
        {
            *q = n.to_string().into();
        }
    }
}

fn resources(v: &mut Value) {
    for f in ["limits", "requests"] {
        if let Some(list) = v.get_mut(f) {
            round_to_milli(list);
        }
    }
}

fn volume(v: &mut Value) {
    if v.entries("").iter().all(|(k, source)| *k == "name" || source.is_null()) {
        set(v, "emptyDir", json!({}));
    }
    if v.has("image") {
        let policy = pull_policy(v.text("image.reference"));
        set_text(v, "image.pullPolicy", policy);
    }
}

fn rbd(v: &mut Value) {
    set_text(v, "pool", "rbd");
    set_text(v, "user", "admin");
    set_text(v, "keyring", "/etc/ceph/keyring");
}

fn azure_disk(v: &mut Value) {
    set_pointer(v, "cachingMode", "ReadWrite");
    set_pointer(v, "fsType", "ext4");
    set_pointer(v, "readOnly", false);
    set_pointer(v, "kind", "Shared");
}

fn scale_io(v: &mut Value) {
    set_text(v, "storageMode", "ThinProvisioned");
    set_text(v, "fsType", "xfs");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        for (image, tag) in [
            ("nginx", "latest"),
            ("nginx:1.2", "1.2"),
            ("host:5000/nginx", "latest"),
            ("host:5000/nginx:x", "x"),
            (&format!("nginx@sha256:{}", "a".repeat(64)), ""),
            (&format!("nginx:latest@sha256:{}", "a".repeat(64)), "latest"),
            ("Not Valid!", ""),
            ("", ""),
        ] {
            assert_eq!(image_tag(image), tag, "{image}");
        }
    }

    #[test]
    fn pod_ips_agree() {
        for (before, after) in [
            (json!({"podIP": "1.1.1.1"}), json!({"podIP": "1.1.1.1", "podIPs": [{"ip": "1.1.1.1"}]})),
            (json!({"podIPs": [{"ip": "1.1.1.1"}]}), json!({"podIP": "1.1.1.1", "podIPs": [{"ip": "1.1.1.1"}]})),
            (json!({}), json!({})),
        ] {
            let mut v = before;
            pod_status(&mut v);
            assert_eq!(v, after);
        }
    }
}
