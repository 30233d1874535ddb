//! How far a server's start has come. Upstream starts its parts in hooks, each with a check of its own; here one start goes
//! through them in order and says what is done, so that the same checks tell the same.

use std::sync::atomic::{AtomicU32, Ordering};

/// What a start does, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The datastore was read; caches and admission follow it.
    Caches,
    /// What definitions define is served.
    Definitions,
    /// Requests are sorted into flows, or limits are kept without them.
    Fairness,
    /// Who else serves from this datastore is told that this server does, and the other way round.
    Peers,
    Namespaces,
    /// Priority classes, the range of service addresses, and whatever else a cluster begins with.
    Founding,
    /// Roles and their bindings, and who decides by them has seen them.
    Rights,
    /// Flow schemas and priority levels.
    Flows,
    /// The service `kubernetes`.
    Service,
    /// APIServices of what is served here, and what follows those of other servers.
    ApiServices,
    /// What extension API servers may trust is published.
    Trust,
    /// The lease that says that this server lives.
    Identity,
    /// Since when the last use of tokens in secrets is recorded.
    TokenTracking,
    /// What services hold, and what is allocated to them, is the same.
    ServiceRepair,
}

/// The stages that are done.
#[derive(Default)]
pub struct Stages(AtomicU32);

impl Stages {
    pub fn done(&self, stage: Stage) {
        self.0.fetch_or(1 << stage as u32, Ordering::AcqRel);
    }

    pub fn is_done(&self, stage: Stage) -> bool {
        self.0.load(Ordering::Acquire) & (1 << stage as u32) != 0
    }
}

/// Upstream's hooks in the order in which its checks show them.
pub const HOOKS: &[(&str, Stage)] = &[
    ("poststarthook/start-apiserver-admission-initializer", Stage::Caches),
    ("poststarthook/generic-apiserver-start-informers", Stage::Caches),
    ("poststarthook/priority-and-fairness-config-consumer", Stage::Fairness),
    ("poststarthook/priority-and-fairness-filter", Stage::Fairness),
    ("poststarthook/storage-object-count-tracker-hook", Stage::Caches),
    ("poststarthook/start-apiextensions-informers", Stage::Caches),
    ("poststarthook/start-apiextensions-controllers", Stage::Definitions),
    ("poststarthook/crd-informer-synced", Stage::Definitions),
    ("poststarthook/start-system-namespaces-controller", Stage::Namespaces),
    ("poststarthook/peer-endpoint-reconciler-controller", Stage::Peers),
    ("poststarthook/start-cluster-authentication-info-controller", Stage::Trust),
    ("poststarthook/start-kube-apiserver-identity-lease-controller", Stage::Identity),
    ("poststarthook/start-kube-apiserver-identity-lease-garbage-collector", Stage::Identity),
    ("poststarthook/storage-readiness", Stage::Caches),
    ("poststarthook/start-legacy-token-tracking-controller", Stage::TokenTracking),
    ("poststarthook/start-service-ip-repair-controllers", Stage::ServiceRepair),
    ("poststarthook/rbac/bootstrap-roles", Stage::Rights),
    ("poststarthook/scheduling/bootstrap-system-priority-classes", Stage::Founding),
    ("poststarthook/priority-and-fairness-config-producer", Stage::Flows),
    ("poststarthook/bootstrap-controller", Stage::Service),
    ("poststarthook/start-kubernetes-service-cidr-controller", Stage::Founding),
    ("poststarthook/start-kube-aggregator-informers", Stage::ApiServices),
    ("poststarthook/apiservice-status-local-available-controller", Stage::ApiServices),
    ("poststarthook/apiservice-status-remote-available-controller", Stage::ApiServices),
    ("poststarthook/apiservice-registration-controller", Stage::ApiServices),
    ("poststarthook/apiservice-discovery-controller", Stage::ApiServices),
    ("poststarthook/kube-apiserver-autoregistration", Stage::ApiServices),
    ("autoregister-completion", Stage::ApiServices),
    ("poststarthook/apiservice-openapi-controller", Stage::ApiServices),
    ("poststarthook/apiservice-openapiv3-controller", Stage::ApiServices),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_is_done_by_itself() {
        let stages = Stages::default();
        stages.done(Stage::Namespaces);
        assert!(stages.is_done(Stage::Namespaces));
        let others = HOOKS.iter().filter(|(_, stage)| *stage != Stage::Namespaces);
        assert!(others.clone().all(|(_, stage)| !stages.is_done(*stage)));
        others.for_each(|(_, stage)| stages.done(*stage));
        assert!(HOOKS.iter().all(|(_, stage)| stages.is_done(*stage)));
    }
}
