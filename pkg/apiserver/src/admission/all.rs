//! The plugins that run, in upstream's order.

use super::{
    Plugin, certificates, claim_resize, default_class, default_toleration_seconds, limit_ranger, namespace_lifecycle,
    node_restriction, pod_security, policy, priority, rbac_escalation, runtime_class, service_account,
    storage_object_in_use_protection, taint_nodes_by_condition, webhook,
};

/// Policies and webhooks stand at the end: they see what the built-in plugins did. Quotas come after all of them, with
/// the write itself ([`super::resource_quota`]).
pub fn all() -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(namespace_lifecycle::NamespaceLifecycle),
        Box::new(limit_ranger::LimitRanger),
        Box::new(service_account::ServiceAccount),
        Box::new(node_restriction::NodeRestriction),
        Box::new(taint_nodes_by_condition::TaintNodesByCondition),
        Box::new(pod_security::PodSecurity),
        Box::new(priority::Priority),
        Box::new(default_toleration_seconds::DefaultTolerationSeconds),
        Box::new(default_class::STORAGE),
        Box::new(storage_object_in_use_protection::StorageObjectInUseProtection),
        Box::new(claim_resize::PersistentVolumeClaimResize),
        Box::new(runtime_class::RuntimeClass),
        Box::new(certificates::CertificateApproval),
        Box::new(certificates::CertificateSigning),
        Box::new(certificates::ClusterTrustBundleAttest),
        Box::new(certificates::CertificateSubjectRestriction),
        Box::new(default_class::INGRESS),
        Box::new(rbac_escalation::RbacEscalation),
        Box::new(policy::MutatingPolicies::new()),
        Box::new(webhook::MutatingWebhooks::new()),
        Box::new(policy::ValidatingPolicies::new()),
        Box::new(webhook::ValidatingWebhooks::new()),
    ]
}
