//! Slim views: the fields of built-in kinds that controllers, scheduler, proxy and DNS read, and nothing else.
//!
//! Invariant: a view is read-only. Writers send patches of the fields that they own, never a view.

use crate::decode;
use crate::informer::View;
use crate::resource::Resource;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// `null` reads as the default.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// Declares structs whose fields all may be missing or null.
macro_rules! views {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $ty:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name { $($(#[$fdoc])* #[serde(deserialize_with = "or_default")] pub $field: $ty),* }
    )*};
}

/// Makes structs with a `metadata: Meta` informer views, and names their resource.
macro_rules! objects {
    ($($name:ident = $scope:ident($group:literal, $version:literal, $resource:literal);)*) => {$(
        impl View for $name {
            fn name(&self) -> &str { &self.metadata.name }
            fn namespace(&self) -> &str { &self.metadata.namespace }
            fn uid(&self) -> &str { &self.metadata.uid }
            fn resource_version(&self) -> &str { &self.metadata.resource_version }
            fn decode(object: &[u8]) -> Result<Self, serde_json::Error> { decode::from_slice(object) }
        }
        impl $name {
            pub fn resource() -> Resource { Resource::$scope($group, $version, $resource) }
        }
    )*};
}

pub type Labels = BTreeMap<String, String>;

views! {
    /// The parts of `metadata` that readers need. Times stay text (RFC 3339).
    Meta {
        name: String,
        namespace: String,
        uid: String,
        resource_version: String,
        generation: i64,
        labels: Labels,
        annotations: Labels,
        owner_references: Vec<OwnerReference>,
        finalizers: Vec<String>,
        creation_timestamp: String,
        deletion_timestamp: Option<String>,
        deletion_grace_period_seconds: Option<i64>,
    }
    OwnerReference {
        api_version: String,
        kind: String,
        name: String,
        uid: String,
        controller: bool,
        block_owner_deletion: bool,
    }
    /// Any object, its metadata only.
    MetaOnly { api_version: String, kind: String, metadata: Meta }

    Pod { metadata: Meta, spec: PodSpec, status: PodStatus }
    PodSpec {
        node_name: String,
        node_selector: Labels,
        affinity: Option<Box<Affinity>>,
        tolerations: Vec<Toleration>,
        topology_spread_constraints: Vec<TopologySpreadConstraint>,
        scheduling_gates: Vec<NamedRef>,
        scheduler_name: String,
        priority: i32,
        preemption_policy: String,
        priority_class_name: String,
        restart_policy: String,
        service_account_name: String,
        hostname: String,
        subdomain: String,
        host_network: bool,
        termination_grace_period_seconds: Option<i64>,
        active_deadline_seconds: Option<i64>,
        overhead: BTreeMap<String, Quantity>,
        resources: Option<Resources>,
        containers: Vec<Container>,
        init_containers: Vec<Container>,
        volumes: Vec<VolumeRef>,
        readiness_gates: Vec<ReadinessGate>,
    }
    ReadinessGate { condition_type: String }
    NamedRef { name: String }
    Container {
        name: String,
        image: String,
        ports: Vec<ContainerPort>,
        resources: Resources,
        restart_policy: String,
    }
    ContainerPort {
        name: String,
        container_port: i32,
        host_port: i32,
        protocol: String,
        #[serde(rename = "hostIP")]
        host_ip: String,
    }
    Resources { requests: BTreeMap<String, Quantity>, limits: BTreeMap<String, Quantity> }
    /// A volume: its name and, when it is one, the claim that it mounts, or that is made for it.
    VolumeRef { name: String, persistent_volume_claim: Option<ClaimRef>, ephemeral: Option<EphemeralVolume> }
    ClaimRef { claim_name: String, read_only: bool }
    /// That there is one: its claim is named after pod and volume.
    EphemeralVolume {}

    Affinity {
        node_affinity: Option<NodeAffinity>,
        pod_affinity: Option<PodAffinity>,
        pod_anti_affinity: Option<PodAffinity>,
    }
    NodeAffinity {
        required_during_scheduling_ignored_during_execution: Option<NodeSelector>,
        preferred_during_scheduling_ignored_during_execution: Vec<PreferredNodeTerm>,
    }
    NodeSelector { node_selector_terms: Vec<NodeSelectorTerm> }
    NodeSelectorTerm { match_expressions: Vec<Requirement>, match_fields: Vec<Requirement> }
    PreferredNodeTerm { weight: i32, preference: NodeSelectorTerm }
    /// One requirement of a selector: `key operator values`.
    Requirement { key: String, operator: String, values: Vec<String> }
    PodAffinity {
        required_during_scheduling_ignored_during_execution: Vec<PodAffinityTerm>,
        preferred_during_scheduling_ignored_during_execution: Vec<WeightedPodTerm>,
    }
    WeightedPodTerm { weight: i32, pod_affinity_term: PodAffinityTerm }
    PodAffinityTerm {
        label_selector: Option<LabelSelector>,
        namespaces: Vec<String>,
        namespace_selector: Option<LabelSelector>,
        topology_key: String,
        match_label_keys: Vec<String>,
        mismatch_label_keys: Vec<String>,
    }
    Toleration { key: String, operator: String, value: String, effect: String, toleration_seconds: Option<i64> }
    TopologySpreadConstraint {
        max_skew: i32,
        topology_key: String,
        when_unsatisfiable: String,
        label_selector: Option<LabelSelector>,
        min_domains: Option<i32>,
        node_affinity_policy: Option<String>,
        node_taints_policy: Option<String>,
        match_label_keys: Vec<String>,
    }

    PodStatus {
        phase: String,
        reason: String,
        conditions: Vec<Condition>,
        #[serde(rename = "hostIP")]
        host_ip: String,
        #[serde(rename = "podIP")]
        pod_ip: String,
        #[serde(rename = "podIPs")]
        pod_ips: Vec<PodIp>,
        nominated_node_name: String,
        start_time: Option<String>,
        container_statuses: Vec<ContainerStatus>,
        init_container_statuses: Vec<ContainerStatus>,
    }
    PodIp { ip: String }
    ContainerStatus { name: String, ready: bool, restart_count: i32, state: ContainerState }
    ContainerState { terminated: Option<Terminated> }
    Terminated { exit_code: i32, finished_at: Option<String> }
    Condition {
        #[serde(rename = "type")]
        kind: String,
        status: String,
        reason: String,
        message: String,
        observed_generation: i64,
        last_transition_time: Option<String>,
        last_update_time: Option<String>,
        last_probe_time: Option<String>,
        last_heartbeat_time: Option<String>,
    }

    Node { metadata: Meta, spec: NodeSpec, status: NodeStatus }
    NodeSpec {
        #[serde(rename = "podCIDR")]
        pod_cidr: String,
        #[serde(rename = "podCIDRs")]
        pod_cidrs: Vec<String>,
        taints: Vec<Taint>,
        unschedulable: bool,
        #[serde(rename = "providerID")]
        provider_id: String,
    }
    NodeStatus {
        addresses: Vec<NodeAddress>,
        allocatable: BTreeMap<String, Quantity>,
        capacity: BTreeMap<String, Quantity>,
        conditions: Vec<Condition>,
        images: Vec<ContainerImage>,
    }
    NodeAddress {
        #[serde(rename = "type")]
        kind: String,
        address: String,
    }
    ContainerImage { names: Vec<String>, size_bytes: i64 }

    Service { metadata: Meta, spec: ServiceSpec, status: ServiceStatus }
    ServiceSpec {
        #[serde(rename = "type")]
        kind: String,
        selector: Option<Labels>,
        #[serde(rename = "clusterIP")]
        cluster_ip: String,
        #[serde(rename = "clusterIPs")]
        cluster_ips: Vec<String>,
        #[serde(rename = "externalIPs")]
        external_ips: Vec<String>,
        external_name: String,
        ip_families: Vec<String>,
        ip_family_policy: String,
        ports: Vec<ServicePort>,
        publish_not_ready_addresses: bool,
        session_affinity: String,
        session_affinity_config: Option<SessionAffinityConfig>,
        internal_traffic_policy: String,
        external_traffic_policy: String,
        health_check_node_port: i32,
        traffic_distribution: String,
        load_balancer_source_ranges: Vec<String>,
        load_balancer_class: String,
    }
    ServicePort {
        name: String,
        protocol: String,
        app_protocol: Option<String>,
        port: i32,
        node_port: i32,
        target_port: Option<IntOrString>,
    }
    SessionAffinityConfig {
        #[serde(rename = "clientIP")]
        client_ip: Option<ClientIpConfig>,
    }
    ClientIpConfig { timeout_seconds: Option<i32> }
    ServiceStatus { load_balancer: LoadBalancerStatus }
    LoadBalancerStatus { ingress: Vec<LoadBalancerIngress> }
    LoadBalancerIngress { ip: String, hostname: String, ip_mode: Option<String> }

    EndpointSlice { metadata: Meta, address_type: String, endpoints: Vec<Endpoint>, ports: Vec<EndpointPort> }
    Endpoint {
        addresses: Vec<String>,
        conditions: EndpointConditions,
        hostname: Option<String>,
        node_name: Option<String>,
        zone: Option<String>,
        target_ref: Option<TargetRef>,
        hints: Option<EndpointHints>,
        deprecated_topology: Option<Labels>,
    }
    /// Missing `ready` and `serving` mean true, missing `terminating` means false: see the methods.
    EndpointConditions { ready: Option<bool>, serving: Option<bool>, terminating: Option<bool> }
    EndpointHints { for_zones: Vec<NamedRef>, for_nodes: Vec<NamedRef> }
    TargetRef { kind: String, namespace: String, name: String, uid: String }
    EndpointPort { name: Option<String>, port: Option<i32>, protocol: Option<String>, app_protocol: Option<String> }

    Endpoints { metadata: Meta, subsets: Value }

    Namespace { metadata: Meta, spec: NamespaceSpec, status: NamespaceStatus }
    NamespaceSpec { finalizers: Vec<String> }
    NamespaceStatus { phase: String, conditions: Vec<Condition> }

    ServiceAccount { metadata: Meta }
    ConfigMap { metadata: Meta, data: BTreeMap<String, String> }
    ClusterRole { metadata: Meta, aggregation_rule: Option<AggregationRule>, rules: Vec<Value> }
    AggregationRule { cluster_role_selectors: Vec<LabelSelector> }

    /// `data` stays base64 text.
    Secret {
        metadata: Meta,
        #[serde(rename = "type")]
        kind: String,
        data: BTreeMap<String, String>,
    }

    ReplicaSet { metadata: Meta, spec: ReplicaSetSpec, status: ReplicaSetStatus }
    ReplicaSetSpec { replicas: Option<i32>, min_ready_seconds: i32, selector: LabelSelector, template: Raw }
    ReplicaSetStatus {
        replicas: i32,
        fully_labeled_replicas: i32,
        ready_replicas: i32,
        available_replicas: i32,
        terminating_replicas: Option<i32>,
        observed_generation: i64,
        conditions: Vec<Condition>,
    }

    Deployment { metadata: Meta, spec: DeploymentSpec, status: DeploymentStatus }
    DeploymentSpec {
        replicas: Option<i32>,
        selector: LabelSelector,
        template: Raw,
        strategy: DeploymentStrategy,
        min_ready_seconds: i32,
        revision_history_limit: Option<i32>,
        paused: bool,
        progress_deadline_seconds: Option<i32>,
    }
    DeploymentStrategy {
        #[serde(rename = "type")]
        kind: String,
        rolling_update: Option<RollingUpdate>,
    }
    RollingUpdate { max_unavailable: Option<IntOrString>, max_surge: Option<IntOrString> }
    DeploymentStatus {
        observed_generation: i64,
        replicas: i32,
        updated_replicas: i32,
        ready_replicas: i32,
        available_replicas: i32,
        unavailable_replicas: i32,
        terminating_replicas: Option<i32>,
        collision_count: Option<i32>,
        conditions: Vec<Condition>,
    }

    Lease { metadata: Meta, spec: LeaseSpec }
    LeaseSpec {
        holder_identity: String,
        lease_duration_seconds: i32,
        acquire_time: Option<String>,
        renew_time: Option<String>,
        lease_transitions: i32,
    }
}

objects! {
    Pod = namespaced("", "v1", "pods");
    Node = cluster("", "v1", "nodes");
    Service = namespaced("", "v1", "services");
    EndpointSlice = namespaced("discovery.k8s.io", "v1", "endpointslices");
    Endpoints = namespaced("", "v1", "endpoints");
    Namespace = cluster("", "v1", "namespaces");
    ServiceAccount = namespaced("", "v1", "serviceaccounts");
    ClusterRole = cluster("rbac.authorization.k8s.io", "v1", "clusterroles");
    ConfigMap = namespaced("", "v1", "configmaps");
    Secret = namespaced("", "v1", "secrets");
    ReplicaSet = namespaced("apps", "v1", "replicasets");
    Deployment = namespaced("apps", "v1", "deployments");
    Lease = namespaced("coordination.k8s.io", "v1", "leases");
}

mod certificates;
mod placement;
mod policies;
mod storage;
mod workloads;
pub use certificates::*;
pub use policies::*;
pub use storage::*;
pub use workloads::*;

impl View for MetaOnly {
    const METADATA_ONLY: bool = true;

    fn name(&self) -> &str {
        &self.metadata.name
    }
    fn namespace(&self) -> &str {
        &self.metadata.namespace
    }
    fn uid(&self) -> &str {
        &self.metadata.uid
    }
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint {
    #[serde(deserialize_with = "or_default")]
    pub key: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub value: String,
    #[serde(deserialize_with = "or_default")]
    pub effect: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_added: Option<String>,
}

/// A label selector as objects carry it. Empty selects everything; a missing one is the holder's business.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Labels::is_empty")]
    pub match_labels: Labels,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelRequirement>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelRequirement {
    pub key: String,
    pub operator: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

impl LabelSelector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
            && self.match_expressions.iter().all(|r| {
                let value = labels.get(&r.key);
                match r.operator.as_str() {
                    "In" => value.is_some_and(|v| r.values.contains(v)),
                    "NotIn" => value.is_none_or(|v| !r.values.contains(v)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

/// JSON that is passed on as it came: a pod template costs its text, not a parsed value.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Raw(Box<RawValue>);

impl Raw {
    pub fn text(&self) -> &str {
        self.0.get()
    }
    pub fn parse(&self) -> Value {
        serde_json::from_str(self.0.get()).unwrap_or_default()
    }
}

impl PartialEq for Raw {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

/// A quantity as it stands in JSON: text, or a number.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Quantity {
    Text(String),
    Number(serde_json::Number),
}

impl Quantity {
    pub fn text(&self) -> String {
        match self {
            Quantity::Text(s) => s.clone(),
            Quantity::Number(n) => n.to_string(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(i32),
    Text(String),
}

impl Meta {
    /// The owner that controls this object.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|o| o.controller)
    }
    pub fn is_being_deleted(&self) -> bool {
        self.deletion_timestamp.is_some()
    }
}

impl Pod {
    /// Neither finished nor being deleted.
    pub fn is_active(&self) -> bool {
        !self.is_terminal() && !self.metadata.is_being_deleted()
    }
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|c| c.kind == kind)
    }
    pub fn is_ready(&self) -> bool {
        self.condition("Ready").is_some_and(|c| c.status == "True")
    }
    /// `Succeeded` or `Failed`: its containers will not run again.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}

impl Node {
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|c| c.kind == kind)
    }
}

impl EndpointConditions {
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }
    pub fn is_serving(&self) -> bool {
        self.serving.unwrap_or_else(|| self.is_ready())
    }
    pub fn is_terminating(&self) -> bool {
        self.terminating.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_camel_case_would_get_wrong() {
        let pod: Pod = serde_json::from_str(
            r#"{"metadata":{"name":"a","labels":null},"spec":{"containers":[{"name":"c","ports":[{"containerPort":80,"hostIP":"127.0.0.1"}],
            "resources":{"requests":{"cpu":1,"memory":"5Mi"}}}],"affinity":null},
            "status":{"hostIP":"10.0.0.1","podIP":"10.42.0.2","podIPs":[{"ip":"10.42.0.2"}]}}"#,
        )
        .unwrap();
        assert_eq!(pod.spec.containers[0].ports[0].host_ip, "127.0.0.1");
        assert_eq!((pod.status.host_ip.as_str(), pod.status.pod_ip.as_str()), ("10.0.0.1", "10.42.0.2"));
        assert_eq!(pod.status.pod_ips[0].ip, "10.42.0.2");
        assert_eq!(pod.spec.containers[0].resources.requests["cpu"].text(), "1");
        let svc: Service = serde_json::from_str(
            r#"{"spec":{"clusterIP":"10.43.0.1","clusterIPs":["10.43.0.1"],"externalIPs":["1.2.3.4"],"ports":[{"port":80,"targetPort":"http"}],
            "sessionAffinityConfig":{"clientIP":{"timeoutSeconds":5}}}}"#,
        )
        .unwrap();
        assert_eq!(svc.spec.cluster_ip, "10.43.0.1");
        assert_eq!(svc.spec.external_ips, ["1.2.3.4"]);
        assert_eq!(svc.spec.ports[0].target_port, Some(IntOrString::Text("http".into())));
        let node: Node =
            serde_json::from_str(r#"{"spec":{"podCIDR":"10.42.0.0/24","podCIDRs":["10.42.0.0/24"]}}"#).unwrap();
        assert_eq!((node.spec.pod_cidr.as_str(), node.spec.pod_cidrs.len()), ("10.42.0.0/24", 1));
    }

    #[test]
    fn label_selectors() {
        let labels: Labels = [("app".to_owned(), "web".to_owned())].into();
        for (selector, want) in [
            (r#"{}"#, true),
            (r#"{"matchLabels":{"app":"web"}}"#, true),
            (r#"{"matchLabels":{"app":"db"}}"#, false),
            (r#"{"matchExpressions":[{"key":"app","operator":"In","values":["a","web"]}]}"#, true),
            (r#"{"matchExpressions":[{"key":"tier","operator":"NotIn","values":["x"]}]}"#, true),
            (r#"{"matchExpressions":[{"key":"tier","operator":"Exists"}]}"#, false),
            (r#"{"matchExpressions":[{"key":"tier","operator":"DoesNotExist"}]}"#, true),
        ] {
            let s: LabelSelector = serde_json::from_str(selector).unwrap();
            assert_eq!(s.matches(&labels), want, "{selector}");
        }
    }
}
