//! Defaults of the core group besides pods.

use super::{Overlay, pod::round_to_milli, set_pointer, set_text};
use crate::access::{Access, list_mut, map_mut, set, unset};
use serde_json::{Value, json};

pub(super) fn overlay(def: &str) -> Option<Overlay> {
    Some(match def {
        "Service" => service,
        "Secret" => |v| set_text(v, "type", "Opaque"),
        "Namespace" => namespace,
        "NamespaceStatus" => |v| set_text(v, "phase", "Active"),
        "NodeStatus" => node_status,
        "ReplicationController" => replication_controller,
        "ReplicationControllerSpec" => |v| set_pointer(v, "replicas", 1),
        "EndpointPort" => |v| set_text(v, "protocol", "TCP"),
        "PersistentVolume" => persistent_volume,
        "PersistentVolumeSpec" => |v| round(v, &["capacity"]),
        "PersistentVolumeClaim" => |v| set_text(v, "status.phase", "Pending"),
        "PersistentVolumeClaimSpec" => |v| set_pointer(v, "volumeMode", "Filesystem"),
        "PersistentVolumeClaimStatus" => persistent_volume_claim_status,
        "LimitRangeItem" => limit_range_item,
        "ResourceQuotaSpec" => |v| round(v, &["hard"]),
        "ResourceQuotaStatus" => |v| round(v, &["hard", "used"]),
        _ => return None,
    })
}

fn round(v: &mut Value, fields: &[&str]) {
    for f in fields {
        if let Some(list) = v.get_mut(*f) {
            round_to_milli(list);
        }
    }
}

/// `LoadBalancer` and `NodePort` services, and `ClusterIP` ones with external addresses.
pub fn externally_accessible(service: &Value) -> bool {
    match service.text("spec.type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !service.list("spec.externalIPs").is_empty(),
        _ => false,
    }
}

fn service(v: &mut Value) {
    set_text(v, "spec.sessionAffinity", "None");
    match v.text("spec.sessionAffinity") {
        "None" => unset(v, "spec.sessionAffinityConfig"),
        "ClientIP" if !v.has("spec.sessionAffinityConfig.clientIP.timeoutSeconds") => {
            set(v, "spec.sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
        }
        _ => {}
    }
    set_text(v, "spec.type", "ClusterIP");
    for port in list_mut(v, "spec.ports") {
        set_text(port, "protocol", "TCP");
        let target = port.at("targetPort");
        if target.is_null() || *target == json!(0) || *target == json!("") {
            let n = port.int_or("port", 0);
            set(port, "targetPort", n);
        }
    }
    if externally_accessible(v) {
        set_text(v, "spec.externalTrafficPolicy", "Cluster");
    }
    let kind = v.text("spec.type").to_owned();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        set_pointer(v, "spec.internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set_pointer(v, "spec.allocateLoadBalancerNodePorts", true);
        for ingress in list_mut(v, "status.loadBalancer.ingress") {
            if !ingress.is_empty_at("ip") {
                set_pointer(ingress, "ipMode", "VIP");
            }
        }
    }
}

fn namespace(v: &mut Value) {
    let name = v.text("metadata.name").to_owned();
    if !name.is_empty() {
        map_mut(v, "metadata.labels").insert("kubernetes.io/metadata.name".into(), name.into());
    }
    // A struct without `omitempty`: upstream's defaults reach into it.
    set_text(v, "status.phase", "Active");
}

fn node_status(v: &mut Value) {
    if !v.has("allocatable") && v.has("capacity") {
        let capacity = v["capacity"].clone();
        set(v, "allocatable", capacity);
    }
    round(v, &["capacity", "allocatable"]);
}

fn replication_controller(v: &mut Value) {
    let labels = v.at("spec.template.metadata.labels").clone();
    if labels.is_object() {
        for f in ["spec.selector", "metadata.labels"] {
            if v.is_empty_at(f) {
                set(v, f, labels.clone());
            }
        }
    }
}

/// Not the spec's own defaults: one that stands inside a VolumeAttachment has none.
fn persistent_volume(v: &mut Value) {
    set_text(v, "status.phase", "Pending");
    set_text(v, "spec.persistentVolumeReclaimPolicy", "Retain");
    set_pointer(v, "spec.volumeMode", "Filesystem");
}

fn persistent_volume_claim_status(v: &mut Value) {
    round(v, &["capacity", "allocatedResources"]);
}

fn limit_range_item(v: &mut Value) {
    if v.text("type") == "Container" {
        for (into, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let source = v.at(from).clone();
            let target = map_mut(v, into);
            if let Value::Object(source) = source {
                for (k, q) in source {
                    target.entry(k).or_insert(q);
                }
            }
        }
        for f in ["default", "defaultRequest"] {
            if v.is_empty_at(f) {
                unset(v, f);
            }
        }
    }
    round(v, &["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"]);
}
