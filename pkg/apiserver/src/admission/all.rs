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

/// With what a plugin is asked about in the mutating and in the validating step.
fn row(plugin: impl Plugin + 'static, admits: &'static [Operation], validates: &'static [Operation]) -> Row {
    Row { plugin: Box::new(plugin), admits, validates, timings: Default::default() }
}

/// Policies and webhooks stand at the end: they see what the built-in plugins did. Quotas come after all of them, with
/// the write itself ([`super::resource_quota`]).
pub fn all() -> Vec<Row> {
    vec![
        row(namespace_lifecycle::NamespaceLifecycle, CHANGE, NONE),
        row(limit_ranger::LimitRanger, WRITE, WRITE),
        row(service_account::ServiceAccount, WRITE, NONE),
        row(node_restriction::NodeRestriction, CHANGE, NONE),
        row(taint_nodes_by_condition::TaintNodesByCondition, CREATE, NONE),
        row(pod_security::PodSecurity, NONE, WRITE),
        row(priority::Priority, WRITE, CHANGE),
        row(default_toleration_seconds::DefaultTolerationSeconds, WRITE, NONE),
        row(default_class::STORAGE, CREATE, NONE),
        row(storage_object_in_use_protection::StorageObjectInUseProtection, CREATE, NONE),
        row(claim_resize::PersistentVolumeClaimResize, NONE, UPDATE),
        row(runtime_class::RuntimeClass, CREATE, CREATE),
        row(certificates::CertificateApproval, NONE, UPDATE),
        row(certificates::CertificateSigning, NONE, UPDATE),
        row(certificates::ClusterTrustBundleAttest, NONE, WRITE),
        row(certificates::CertificateSubjectRestriction, NONE, CREATE),
        row(default_class::INGRESS, CREATE, NONE),
        row(rbac_escalation::RbacEscalation, NONE, WRITE),
        row(policy::MutatingPolicies::new(), MAKE, NONE),
        row(webhook::MutatingWebhooks::new(), EVERY, NONE),
        row(policy::ValidatingPolicies::new(), NONE, EVERY),
        row(webhook::ValidatingWebhooks::new(), NONE, EVERY),
    ]
}
