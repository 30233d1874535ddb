//! The plugins that run, in upstream's order.

use super::Operation::{Connect, Create, Delete, Update};
use super::{
    Operation, Plugin, Row, certificates, claim_resize, default_class, default_toleration_seconds, limit_ranger,
    namespace_lifecycle, node_restriction, pod_security, policy, priority, rbac_escalation, runtime_class,
    service_account, storage_object_in_use_protection, taint_nodes_by_condition, webhook,
};

const NONE: &[Operation] = &[];
const CREATE: &[Operation] = &[Create];
const UPDATE: &[Operation] = &[Update];
const WRITE: &[Operation] = &[Create, Update];
const CHANGE: &[Operation] = &[Create, Update, Delete];
const MAKE: &[Operation] = &[Create, Update, Connect];
const EVERY: &[Operation] = &[Create, Update, Delete, Connect];

const PODS: &[&str] = &["pods"];
const CLAIMS: &[&str] = &["persistentvolumeclaims"];
const VOLUMES: &[&str] = &["persistentvolumes", "persistentvolumeclaims", "volumeattributesclasses.storage.k8s.io"];
const REQUESTS: &[&str] =
    &["certificatesigningrequests.certificates.k8s.io", "podcertificaterequests.certificates.k8s.io"];
const RBAC: &[&str] = &[
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
    "clusterroles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
];

/// With the resources that a plugin has anything to do with, none: all of them, and what it is asked about in the mutating and
/// in the validating step.
fn row(
    plugin: impl Plugin + 'static,
    about: &'static [&'static str],
    admits: &'static [Operation],
    validates: &'static [Operation],
) -> Row {
    Row { plugin: Box::new(plugin), about, admits, validates, timings: Default::default() }
}

/// Policies and webhooks stand at the end: they see what the built-in plugins did. Quotas come after all of them, with
/// the write itself ([`super::resource_quota`]).
pub fn all() -> Vec<Row> {
    vec![
        row(namespace_lifecycle::NamespaceLifecycle, &[], CHANGE, NONE),
        row(limit_ranger::LimitRanger, &["pods", "persistentvolumeclaims"], WRITE, WRITE),
        row(service_account::ServiceAccount, PODS, WRITE, NONE),
        row(node_restriction::NodeRestriction, &[], CHANGE, NONE),
        row(taint_nodes_by_condition::TaintNodesByCondition, &["nodes"], CREATE, NONE),
        row(pod_security::PodSecurity, &[], NONE, WRITE),
        row(priority::Priority, &["pods", "priorityclasses.scheduling.k8s.io"], WRITE, CHANGE),
        row(default_toleration_seconds::DefaultTolerationSeconds, PODS, WRITE, NONE),
        row(default_class::STORAGE, CLAIMS, CREATE, NONE),
        row(storage_object_in_use_protection::StorageObjectInUseProtection, VOLUMES, CREATE, NONE),
        row(claim_resize::PersistentVolumeClaimResize, CLAIMS, NONE, UPDATE),
        row(runtime_class::RuntimeClass, PODS, CREATE, CREATE),
        row(certificates::CertificateApproval, REQUESTS, NONE, UPDATE),
        row(certificates::CertificateSigning, REQUESTS, NONE, UPDATE),
        row(certificates::ClusterTrustBundleAttest, &["clustertrustbundles.certificates.k8s.io"], NONE, WRITE),
        row(certificates::CertificateSubjectRestriction, REQUESTS, NONE, CREATE),
        row(default_class::INGRESS, &["ingresses.networking.k8s.io"], CREATE, NONE),
        row(rbac_escalation::RbacEscalation, RBAC, NONE, WRITE),
        row(policy::MutatingPolicies::new(), &[], MAKE, NONE),
        row(webhook::MutatingWebhooks::new(), &[], EVERY, NONE),
        row(policy::ValidatingPolicies::new(), &[], NONE, EVERY),
        row(webhook::ValidatingWebhooks::new(), &[], NONE, EVERY),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_about_resources_that_there_are() {
        let kinds = isopod_kinds::table::builtin();
        for row in all() {
            for resource in row.about {
                assert!(kinds.iter().any(|k| k.is(resource)), "{}: {resource}", row.plugin.name());
            }
        }
    }
}
