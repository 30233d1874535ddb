//! The plugins that run, in upstream's order.

use super::{
    Plugin, default_toleration_seconds, namespace_lifecycle, node_restriction, priority, rbac_escalation,
    runtime_class, service_account, storage_object_in_use_protection, taint_nodes_by_condition,
};

/// Webhooks and policies will stand at the end: they see what the built-in plugins did.
pub fn all() -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(namespace_lifecycle::NamespaceLifecycle),
        Box::new(service_account::ServiceAccount),
        Box::new(node_restriction::NodeRestriction),
        Box::new(taint_nodes_by_condition::TaintNodesByCondition),
        Box::new(priority::Priority),
        Box::new(default_toleration_seconds::DefaultTolerationSeconds),
        Box::new(storage_object_in_use_protection::StorageObjectInUseProtection),
        Box::new(runtime_class::RuntimeClass),
        Box::new(rbac_escalation::RbacEscalation),
    ]
}
