//! One small file for each kind, or family of kinds, that is more than its schema.

pub mod autoscaling;
pub mod event;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod service;
mod workload;

use crate::access;
use crate::strategy::{PLAIN, STATELESS, Strategy};
use isopod_api::Gvk;
use serde_json::json;

/// The strategy of a built-in kind.
pub fn strategy(gvk: &Gvk) -> Strategy {
    let kind = gvk.kind.as_str();
    match gvk.group.as_str() {
        "" => core(kind),
        "apps" => workload::apps(kind),
        "batch" => workload::batch(kind),
        "autoscaling" => autoscaling::strategy(&gvk.version),
        "events.k8s.io" => event::NEW,
        "policy" => Strategy { unconditional_update: false, ..PLAIN },
        "rbac.authorization.k8s.io" => Strategy { create_on_update: true, ..STATELESS },
        "coordination.k8s.io" => Strategy { create_on_update: true, unconditional_update: false, ..STATELESS },
        "admissionregistration.k8s.io" => Strategy { unconditional_update: false, ..PLAIN },
        "networking.k8s.io" => match kind {
            "IPAddress" => STATELESS,
            "ServiceCIDR" => Strategy { generation: false, ..PLAIN },
            _ => PLAIN,
        },
        "storage.k8s.io" => storage(kind),
        "node.k8s.io" => Strategy { create_on_update: true, unconditional_update: false, ..STATELESS },
        "certificates.k8s.io" => certificates(kind),
        "resource.k8s.io" => resource(kind),
        "scheduling.k8s.io" => match kind {
            "PriorityClass" => PLAIN,
            _ => Strategy { generation: false, unconditional_update: false, ..PLAIN },
        },
        "internal.apiserver.k8s.io" | "storagemigration.k8s.io" => {
            Strategy { generation: false, unconditional_update: false, ..PLAIN }
        }
        "apiextensions.k8s.io" => Strategy { unconditional_update: false, ..PLAIN },
        "apiregistration.k8s.io" => Strategy { generation: false, unconditional_update: false, ..PLAIN },
        _ => PLAIN,
    }
}

fn core(kind: &str) -> Strategy {
    match kind {
        "Pod" => pod::STRATEGY,
        "Service" => service::STRATEGY,
        "Namespace" => namespace::STRATEGY,
        "Node" => node::STRATEGY,
        "Event" => event::CORE,
        "ReplicationController" => workload::REPLICATION_CONTROLLER,
        "PodTemplate" => Strategy { resets_status: false, ..PLAIN },
        "Endpoints" | "LimitRange" => Strategy { create_on_update: true, ..STATELESS },
        "Secret" => Strategy { fields: &["type"], ..STATELESS },
        "PersistentVolume" => Strategy {
            prepare_create: |ctx, new| {
                let at = isopod_api::time::format(ctx.now);
                access::set(new, "status", json!({"phase": "Pending", "lastPhaseTransitionTime": at}));
            },
            ..STATELESS
        },
        "PersistentVolumeClaim" => {
            Strategy { prepare_create: |_, new| access::set(new, "status", json!({"phase": "Pending"})), ..STATELESS }
        }
        "ResourceQuota" => Strategy { generation: false, ..PLAIN },
        _ => STATELESS,
    }
}

fn storage(kind: &str) -> Strategy {
    match kind {
        "CSIDriver" => Strategy { unconditional_update: false, ..PLAIN },
        "VolumeAttachment" => Strategy { unconditional_update: false, ..PLAIN },
        "CSINode" | "CSIStorageCapacity" => Strategy { unconditional_update: false, ..STATELESS },
        _ => STATELESS,
    }
}

fn certificates(kind: &str) -> Strategy {
    match kind {
        "CertificateSigningRequest" => Strategy { fields: &["spec.signerName"], generation: false, ..PLAIN },
        "ClusterTrustBundle" => Strategy { fields: &["spec.signerName"], unconditional_update: false, ..STATELESS },
        _ => Strategy {
            fields: &["spec.signerName", "spec.podName", "spec.nodeName"],
            generation: false,
            unconditional_update: false,
            ..PLAIN
        },
    }
}

fn resource(kind: &str) -> Strategy {
    match kind {
        "ResourceSlice" => Strategy { fields: &["spec.nodeName", "spec.driver", "spec.pool.name"], ..PLAIN },
        "ResourceClaim" => Strategy { generation: false, ..PLAIN },
        "ResourceClaimTemplate" => STATELESS,
        _ => PLAIN,
    }
}
