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

    Job { metadata: Meta, spec: JobSpec, status: JobStatus }
    JobSpec {
        parallelism: Option<i32>,
        completions: Option<i32>,
        active_deadline_seconds: Option<i64>,
        pod_failure_policy: Option<PodFailurePolicy>,
        success_policy: Option<SuccessPolicy>,
        backoff_limit: Option<i32>,
        backoff_limit_per_index: Option<i32>,
        max_failed_indexes: Option<i32>,
        selector: LabelSelector,
        template: Raw,
        ttl_seconds_after_finished: Option<i32>,
        completion_mode: String,
        suspend: bool,
        pod_replacement_policy: String,
        managed_by: Option<String>,
    }
    PodFailurePolicy { rules: Vec<PodFailureRule> }
    PodFailureRule {
        action: String,
        on_exit_codes: Option<ExitCodes>,
        on_pod_conditions: Vec<ConditionPattern>,
    }
    ExitCodes { container_name: Option<String>, operator: String, values: Vec<i32> }
    ConditionPattern {
        #[serde(rename = "type")]
        kind: String,
        status: String,
    }
    SuccessPolicy { rules: Vec<SuccessRule> }
    SuccessRule { succeeded_indexes: Option<String>, succeeded_count: Option<i32> }
    JobStatus {
        conditions: Vec<Condition>,
        start_time: Option<String>,
        completion_time: Option<String>,
        active: i32,
        succeeded: i32,
        failed: i32,
        terminating: Option<i32>,
        completed_indexes: String,
        failed_indexes: Option<String>,
        uncounted_terminated_pods: UncountedPods,
        ready: Option<i32>,
    }
    /// Uids of pods that have ended, whose finalizer has to go before they are counted.
    UncountedPods { succeeded: Vec<String>, failed: Vec<String> }

    CronJob { metadata: Meta, spec: CronJobSpec, status: CronJobStatus }
    CronJobSpec {
        schedule: String,
        time_zone: Option<String>,
        starting_deadline_seconds: Option<i64>,
        concurrency_policy: String,
        suspend: bool,
        job_template: Raw,
        successful_jobs_history_limit: Option<i32>,
        failed_jobs_history_limit: Option<i32>,
    }
    CronJobStatus {
        active: Vec<ActiveJob>,
        last_schedule_time: Option<String>,
        last_successful_time: Option<String>,
    }
    ActiveJob {
        kind: String,
        namespace: String,
        name: String,
        uid: String,
        api_version: String,
        resource_version: String,
    }

    PodDisruptionBudget { metadata: Meta, spec: PodDisruptionBudgetSpec, status: PodDisruptionBudgetStatus }
    PodDisruptionBudgetSpec {
        min_available: Option<IntOrString>,
        selector: Option<LabelSelector>,
        max_unavailable: Option<IntOrString>,
    }
    PodDisruptionBudgetStatus {
        observed_generation: i64,
        disrupted_pods: BTreeMap<String, String>,
        disruptions_allowed: i32,
        current_healthy: i32,
        desired_healthy: i32,
        expected_pods: i32,
        conditions: Vec<Condition>,
    }

    /// A template that a daemon set or a stateful set once had.
    ControllerRevision { metadata: Meta, revision: i64, data: Raw }

    ReplicationControllerForm { metadata: Meta, spec: ReplicationControllerSpec, status: ReplicaSetStatus }
    ReplicationControllerSpec { replicas: Option<i32>, min_ready_seconds: i32, selector: Labels, template: Raw }
}

objects! {
    DaemonSet = namespaced("apps", "v1", "daemonsets");
    StatefulSet = namespaced("apps", "v1", "statefulsets");
    Job = namespaced("batch", "v1", "jobs");
    CronJob = namespaced("batch", "v1", "cronjobs");
    PodDisruptionBudget = namespaced("policy", "v1", "poddisruptionbudgets");
    ControllerRevision = namespaced("apps", "v1", "controllerrevisions");
}

impl Job {
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|c| c.kind == kind && c.status == "True")
    }
    /// `Complete` or `Failed`.
    pub fn finished(&self) -> Option<&Condition> {
        self.condition("Complete").or_else(|| self.condition("Failed"))
    }
    pub fn is_indexed(&self) -> bool {
        self.spec.completion_mode == "Indexed"
    }
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
