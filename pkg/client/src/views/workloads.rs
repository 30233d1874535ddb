//! Views of the kinds that make pods, beside replica sets and deployments.

use super::*;

/// A replication controller, read as the replica set that it amounts to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "ReplicationControllerForm")]
pub struct ReplicationController(ReplicaSet);

views! {
    DaemonSet { metadata: Meta, spec: DaemonSetSpec, status: DaemonSetStatus }
    DaemonSetSpec {
        selector: LabelSelector,
        template: Raw,
        update_strategy: UpdateStrategy,
        min_ready_seconds: i32,
        revision_history_limit: Option<i32>,
    }
    /// How pods of an old revision are replaced: `OnDelete` or `RollingUpdate`.
    UpdateStrategy {
        #[serde(rename = "type")]
        kind: String,
        rolling_update: Option<RollingUpdate>,
    }
    DaemonSetStatus {
        observed_generation: i64,
        current_number_scheduled: i32,
        number_misscheduled: i32,
        desired_number_scheduled: i32,
        number_ready: i32,
        updated_number_scheduled: i32,
        number_available: i32,
        number_unavailable: i32,
        collision_count: Option<i32>,
    }

    StatefulSet { metadata: Meta, spec: StatefulSetSpec, status: StatefulSetStatus }
    StatefulSetSpec {
        replicas: Option<i32>,
        selector: LabelSelector,
        template: Raw,
        volume_claim_templates: Vec<Value>,
        service_name: String,
        pod_management_policy: String,
        update_strategy: StatefulSetStrategy,
        revision_history_limit: Option<i32>,
        min_ready_seconds: i32,
        persistent_volume_claim_retention_policy: Option<ClaimRetention>,
        ordinals: Option<Ordinals>,
    }
    StatefulSetStrategy {
        #[serde(rename = "type")]
        kind: String,
        rolling_update: Option<StatefulSetRollingUpdate>,
    }
    StatefulSetRollingUpdate { partition: i32, max_unavailable: Option<IntOrString> }
    /// `Retain` or `Delete`.
    ClaimRetention { when_deleted: String, when_scaled: String }
    Ordinals { start: i32 }
    StatefulSetStatus {
        observed_generation: i64,
        replicas: i32,
        ready_replicas: i32,
        current_replicas: i32,
        updated_replicas: i32,
        available_replicas: i32,
        current_revision: String,
        update_revision: String,
        collision_count: Option<i32>,
    }

    /// A template that a daemon set or a stateful set once had.
    ControllerRevision { metadata: Meta, revision: i64, data: Raw }

    ReplicationControllerForm { metadata: Meta, spec: ReplicationControllerSpec, status: ReplicaSetStatus }
    ReplicationControllerSpec { replicas: Option<i32>, min_ready_seconds: i32, selector: Labels, template: Raw }
}

objects! {
    DaemonSet = namespaced("apps", "v1", "daemonsets");
    StatefulSet = namespaced("apps", "v1", "statefulsets");
    ControllerRevision = namespaced("apps", "v1", "controllerrevisions");
}

impl From<ReplicationControllerForm> for ReplicationController {
    fn from(form: ReplicationControllerForm) -> Self {
        let ReplicationControllerSpec { replicas, min_ready_seconds, selector, template } = form.spec;
        let selector = LabelSelector { match_labels: selector, match_expressions: Vec::new() };
        let spec = ReplicaSetSpec { replicas, min_ready_seconds, selector, template };
        ReplicationController(ReplicaSet { metadata: form.metadata, spec, status: form.status })
    }
}

impl AsRef<ReplicaSet> for ReplicationController {
    fn as_ref(&self) -> &ReplicaSet {
        &self.0
    }
}

impl AsRef<ReplicaSet> for ReplicaSet {
    fn as_ref(&self) -> &ReplicaSet {
        self
    }
}

impl View for ReplicationController {
    fn name(&self) -> &str {
        &self.0.metadata.name
    }
    fn namespace(&self) -> &str {
        &self.0.metadata.namespace
    }
    fn uid(&self) -> &str {
        &self.0.metadata.uid
    }
    fn resource_version(&self) -> &str {
        &self.0.metadata.resource_version
    }
}

impl ReplicationController {
    pub fn resource() -> Resource {
        Resource::namespaced("", "v1", "replicationcontrollers")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replication_controller_reads_as_a_replica_set() {
        let text = r#"{"metadata":{"name":"a"},"spec":{"replicas":2,"selector":{"app":"a"},"template":{"spec":{}}},
            "status":{"replicas":1}}"#;
        let set: ReplicationController = serde_json::from_str(text).unwrap();
        let set: &ReplicaSet = set.as_ref();
        assert_eq!((set.spec.replicas, set.status.replicas), (Some(2), 1));
        assert!(set.spec.selector.matches(&[("app".to_owned(), "a".to_owned())].into()));
        assert_eq!(set.spec.template.text(), r#"{"spec":{}}"#);
    }
}
