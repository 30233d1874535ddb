//! Views of the kinds that make pods, beside replica sets and deployments.

use super::*;

/// A replication controller, read as the replica set that it amounts to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "ReplicationControllerForm")]
pub struct ReplicationController(ReplicaSet);

views! {
    ReplicationControllerForm { metadata: Meta, spec: ReplicationControllerSpec, status: ReplicaSetStatus }
    ReplicationControllerSpec { replicas: Option<i32>, min_ready_seconds: i32, selector: Labels, template: Raw }
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
