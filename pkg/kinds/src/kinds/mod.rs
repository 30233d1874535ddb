//! One small file for each kind, or family of kinds, that is more than its schema.

mod admission;
pub mod autoscaling;
mod certificates;
pub mod config;
pub(crate) mod definition;
pub mod endpoints;
pub mod event;
mod expressions;
mod flowcontrol;
pub mod lease;
mod migration;
pub mod namespace;
pub mod networking;
pub mod node;
pub mod pod;
mod pod_certificates;
pub mod policy;
pub mod quota;
pub mod rbac;
mod resource;
pub mod service;
mod storage;
mod volume;
mod workload;

use crate::ownership;
use crate::strategy::{PLAIN, STATELESS, Strategy};
use crate::validation::warnings;
use isopod_api::Gvk;

/// The strategy of a built-in kind.
pub fn strategy(gvk: &Gvk) -> Strategy {
    let kind = gvk.kind.as_str();
    match gvk.group.as_str() {
        "" => core(kind),
        "apps" => workload::apps(kind),
        "batch" => workload::batch(kind),
        "autoscaling" => autoscaling::strategy(&gvk.version),
        "events.k8s.io" => event::NEW,
        "policy" => policy::DISRUPTION_BUDGET,
        "rbac.authorization.k8s.io" => rbac::strategy(kind),
        "discovery.k8s.io" => endpoints::SLICE,
        "coordination.k8s.io" => {
            if kind == "Lease" {
                lease::LEASE
            } else {
                lease::CANDIDATE
            }
        }
        "admissionregistration.k8s.io" => admission::strategy(kind),
        "networking.k8s.io" => networking::strategy(kind),
        "storage.k8s.io" => storage::strategy(kind),
        "node.k8s.io" => policy::RUNTIME_CLASS,
        "certificates.k8s.io" => certificates::strategy(kind),
        "resource.k8s.io" => resource::strategy(kind),
        "scheduling.k8s.io" => match kind {
            "PriorityClass" => policy::PRIORITY_CLASS,
            _ => Strategy { generation: false, unconditional_update: false, ..PLAIN },
        },
        "internal.apiserver.k8s.io" => {
            Strategy { owned: ownership::status_alone, generation: false, unconditional_update: false, ..PLAIN }
        }
        "storagemigration.k8s.io" => migration::STRATEGY,
        "flowcontrol.apiserver.k8s.io" => flowcontrol::strategy(kind),
        "apiextensions.k8s.io" => definition::STRATEGY,
        "apiregistration.k8s.io" => admission::API_SERVICE,
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
        "PodTemplate" => workload::POD_TEMPLATE,
        "Endpoints" => endpoints::ENDPOINTS,
        "LimitRange" => quota::LIMIT_RANGE,
        "ConfigMap" => config::CONFIG_MAP,
        "Secret" => config::SECRET,
        "PersistentVolume" => volume::VOLUME,
        "PersistentVolumeClaim" => volume::CLAIM,
        "ResourceQuota" => quota::QUOTA,
        "ServiceAccount" => Strategy { warnings: warnings::service_account, ..STATELESS },
        _ => STATELESS,
    }
}
