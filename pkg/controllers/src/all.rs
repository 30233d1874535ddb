//! The list of controllers. A new one is its file and its row.

use crate::controller::Context;
use futures::future::BoxFuture;

/// One controller.
pub struct Row {
    /// Its name in flags and logs (`kube-controller-manager --controllers`).
    pub name: &'static str,
    /// Its service account in `kube-system`; empty: it acts as the manager.
    pub account: &'static str,
    pub run: fn(Context) -> BoxFuture<'static, ()>,
}

macro_rules! rows {
    ($($name:literal, $account:literal, $($module:ident)::+;)*) => {
        &[$(Row { name: $name, account: $account, run: |c| Box::pin(crate::$($module)::+::run(c)) }),*]
    };
}

pub const ALL: &[Row] = rows! {
    "namespace-controller", "namespace-controller", namespace;
    "deployment-controller", "deployment-controller", deployment;
    "replicaset-controller", "replicaset-controller", replica_set;
    "daemonset-controller", "daemon-set-controller", daemon_set;
    "statefulset-controller", "statefulset-controller", stateful_set;
    "job-controller", "job-controller", job;
    "cronjob-controller", "cronjob-controller", cron_job;
    "ttl-after-finished-controller", "ttl-after-finished-controller", ttl_after_finished;
    "disruption-controller", "disruption-controller", disruption_budget;
    "replicationcontroller-controller", "replication-controller", replica_set::replication;
    "endpoints-controller", "endpoint-controller", endpoints;
    "endpointslice-controller", "endpointslice-controller", endpoint_slice;
    "endpointslice-mirroring-controller", "endpointslicemirroring-controller", endpoint_slice_mirroring;
    "serviceaccount-controller", "service-account-controller", service_account;
    "serviceaccount-token-controller", "", service_account_tokens;
    "legacy-serviceaccount-token-cleaner-controller", "legacy-service-account-token-cleaner", legacy_token_cleaner;
    "node-lifecycle-controller", "node-controller", node_lifecycle;
    "taint-eviction-controller", "node-controller", taint_eviction;
    "node-ipam-controller", "node-controller", node_ipam;
    "garbage-collector-controller", "generic-garbage-collector", garbage_collector;
    "pod-garbage-collector-controller", "pod-garbage-collector", pod_gc;
    "clusterrole-aggregation-controller", "clusterrole-aggregation-controller", cluster_role_aggregation;
    "resourcequota-controller", "resourcequota-controller", resource_quota;
    "root-ca-certificate-publisher-controller", "root-ca-cert-publisher", root_ca;
    "kube-apiserver-serving-clustertrustbundle-publisher-controller",
        "kube-apiserver-serving-clustertrustbundle-publisher", trust_bundle;
    "certificatesigningrequest-approving-controller", "certificate-controller", certificates::approval;
    "certificatesigningrequest-signing-controller", "certificate-controller", certificates::signing;
    "certificatesigningrequest-cleaner-controller", "certificate-controller", certificates::cleanup;
    "podcertificaterequest-cleaner-controller", "podcertificaterequestcleaner", pod_certificate_cleaner;
    "persistentvolumeclaim-protection-controller", "pvc-protection-controller", protection::claims;
    "persistentvolume-protection-controller", "pv-protection-controller", protection::volumes;
    "storage-version-migrator-controller", "storage-version-migrator-controller", storage_version_migrator;
    "validatingadmissionpolicy-status-controller", "validatingadmissionpolicy-status-controller", policy_status;
    "volumeattributesclass-protection-controller", "volumeattributesclass-protection-controller", protection::classes;
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ALL.iter().map(|r| r.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
