//! What a resize means for a running container and what it says in the pod's status (KEP-1287). Pure.

use crate::resources;
use crate::state::annotation;
use crate::status::time;
use isopod_runtime::{ContainerStatus, Resources};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodStatus, ResourceRequirements};
use serde_json::{Value, json};

pub const PENDING: &str = "PodResizePending";
pub const IN_PROGRESS: &str = "PodResizeInProgress";

/// What becomes of a running container whose granted resources changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    None,
    /// Its control group gets other limits.
    Update,
    /// Its resize policy wants it started anew.
    Restart,
}

/// The resources that a container runs with; `None` when it was made by a kubelet that did not write them down.
pub fn actuated(status: &ContainerStatus) -> Option<ResourceRequirements> {
    serde_json::from_str(status.config.annotations.get(annotation::RESOURCES)?).ok()
}

/// How a container writes down the resources that it runs with.
pub fn record(c: &Container) -> String {
    json!(c.resources.clone().unwrap_or_default()).to_string()
}

pub fn change(c: &Container, status: &ContainerStatus) -> Change {
    let Some(running) = actuated(status) else { return Change::None };
    let running = Container { resources: Some(running), ..Default::default() };
    let mut change = Change::None;
    for resource in ["cpu", "memory"] {
        if resources::of(c, resource) == resources::of(&running, resource) {
            continue;
        }
        let policy = c.resize_policy.iter().flatten().find(|p| p.resource_name == resource);
        if policy.is_some_and(|p| p.restart_policy == "RestartContainer") {
            return Change::Restart;
        }
        change = Change::Update;
    }
    change
}

/// A limit that may be larger than either of two; `None` and what is not positive is no limit.
fn larger(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    let limit = |l: Option<i64>| l.filter(|l| *l > 0);
    Some(limit(a).zip(limit(b)).map_or(-1, |(a, b)| a.max(b)))
}

/// Limits of the pod under which its containers fit before and after the resize.
pub fn roomy(old: &Resources, new: &Resources) -> Resources {
    Resources {
        cpu_shares: old.cpu_shares.max(new.cpu_shares),
        cpu_quota: larger(old.cpu_quota, new.cpu_quota),
        memory_limit: larger(old.memory_limit, new.memory_limit),
        ..new.clone()
    }
}

/// Limits that a group may have had are taken away where they are not named.
pub fn explicit(resources: Resources) -> Resources {
    Resources {
        cpu_quota: Some(resources.cpu_quota.unwrap_or(-1)),
        memory_limit: Some(resources.memory_limit.unwrap_or(-1)),
        ..resources
    }
}

/// Why a resize of a pod is not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub message: String,
    pub generation: Option<i64>,
}

/// A resize that was granted and is not over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InProgress {
    /// Empty, or why the last try failed.
    pub error: String,
    pub generation: Option<i64>,
}

/// Where the resizes of a pod stand.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub pending: Option<Pending>,
    pub in_progress: Option<InProgress>,
}

impl Progress {
    /// The conditions that say it.
    pub fn conditions(&self, old: &PodStatus, now: Timestamp) -> Vec<PodCondition> {
        let one = |kind: &str, reason: &str, message: &str, generation: Option<i64>| {
            let known = old.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True");
            let text = |t: &str| (!t.is_empty()).then(|| t.to_owned());
            PodCondition {
                type_: kind.to_owned(),
                status: "True".to_owned(),
                reason: text(reason),
                message: text(message),
                observed_generation: generation,
                last_transition_time: known.map_or_else(|| Some(time(now)), |c| c.last_transition_time.clone()),
                last_probe_time: None,
            }
        };
        let pending = self.pending.iter().map(|p| one(PENDING, "Deferred", &p.message, p.generation));
        let running = self.in_progress.iter().map(|p| {
            let reason = if p.error.is_empty() { "" } else { "Error" };
            one(IN_PROGRESS, reason, &p.error, p.generation)
        });
        pending.chain(running).collect()
    }
}

/// The text of an event about a resize: what is wanted, by container.
pub fn event(prefix: &str, pod: &Pod, error: &str) -> String {
    let list = |containers: &[Container]| -> Vec<Value> {
        containers
            .iter()
            .map(|c| json!({"name": c.name, "resources": c.resources.clone().unwrap_or_default()}))
            .collect()
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let mut summary = serde_json::Map::new();
    let init = list(spec.init_containers.as_deref().unwrap_or_default());
    if !init.is_empty() {
        summary.insert("initContainers".into(), init.into());
    }
    summary.insert("containers".into(), list(&spec.containers).into());
    summary.insert("generation".into(), pod.metadata.generation.unwrap_or(0).into());
    if !error.is_empty() {
        summary.insert("error".into(), error.into());
    }
    format!("{prefix}: {}", Value::Object(summary))
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_runtime::{ContainerConfig, ContainerState};

    fn container(resources: Value, policies: Value) -> Container {
        serde_json::from_value(json!({"name": "c", "resources": resources, "resizePolicy": policies})).unwrap()
    }

    fn running(annotations: &[(&str, String)]) -> ContainerStatus {
        let config = ContainerConfig {
            annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
            ..Default::default()
        };
        let nothing = json!({"id": "", "sandbox_id": "", "config": config, "state": "Running", "created_at": 0, "started_at": 0,
            "finished_at": 0, "exit_code": 0, "signal": null, "reason": "", "message": "", "pid": 0, "uid": 0, "log_path": "",
            "mounts": []});
        let status: ContainerStatus = serde_json::from_value(nothing).unwrap();
        assert_eq!(status.state, ContainerState::Running);
        status
    }

    #[test]
    fn policies_say_what_a_change_means() {
        let restart = |what: &str| json!([{"resourceName": what, "restartPolicy": "RestartContainer"}]);
        let requests = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}});
        let status = running(&[(annotation::RESOURCES, requests("1", "1Gi").to_string())]);
        for (resources, policies, want) in [
            (requests("1000m", "1024Mi"), json!([]), Change::None),
            (requests("2", "1Gi"), json!([]), Change::Update),
            (requests("2", "1Gi"), restart("memory"), Change::Update),
            (requests("2", "1Gi"), restart("cpu"), Change::Restart),
            (requests("2", "2Gi"), restart("memory"), Change::Restart),
        ] {
            assert_eq!(
                change(&container(resources.clone(), policies.clone()), &status),
                want,
                "{resources} {policies}"
            );
        }
        assert_eq!(change(&container(requests("2", "2Gi"), json!([])), &running(&[])), Change::None);
    }

    #[test]
    fn a_pod_has_room_for_both_ends_of_a_resize() {
        let limits = |quota, memory| Resources { cpu_quota: quota, memory_limit: memory, ..Default::default() };
        for (old, new, want) in [
            (limits(Some(5), Some(9)), limits(Some(7), Some(3)), limits(Some(7), Some(9))),
            (limits(None, Some(-1)), limits(Some(7), Some(3)), limits(Some(-1), Some(-1))),
        ] {
            assert_eq!(roomy(&old, &new), want);
        }
    }

    #[test]
    fn events_name_what_is_wanted() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"generation": 3}, "spec": {
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}]}}))
        .unwrap();
        let want =
            r#"Pod resize started: {"containers":[{"name":"c","resources":{"limits":{"cpu":"1"}}}],"generation":3}"#;
        assert_eq!(event("Pod resize started", &pod, ""), want);
    }
}
