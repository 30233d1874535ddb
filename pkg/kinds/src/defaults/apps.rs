//! Defaults of workloads: apps, batch, autoscaling.

use super::{Overlay, set_pointer, set_struct, set_text};
use crate::access::{Access, list_mut, set};
use serde_json::{Value, json};

pub(super) fn overlay(group: &str, def: &str) -> Option<Overlay> {
    Some(match (group, def) {
        ("apps", "v1.DeploymentSpec") => deployment,
        ("apps", "v1.ReplicaSetSpec") => |v| set_pointer(v, "replicas", 1),
        ("apps", "v1.DaemonSetSpec") => daemon_set,
        ("apps", "v1.StatefulSetSpec") => stateful_set,
        ("batch", "v1.Job") => job,
        ("batch", "v1.JobSpec") => |_| {},
        ("batch", "v1.CronJobSpec") => cron_job,
        ("batch", "v1.PodFailurePolicyOnPodConditionsPattern") => |v| set_text(v, "status", "True"),
        ("autoscaling", "v1.HorizontalPodAutoscalerSpec") => |v| set_pointer(v, "minReplicas", 1),
        ("autoscaling", "v2.HorizontalPodAutoscalerSpec") => autoscaler,
        _ => return None,
    })
}

fn deployment(v: &mut Value) {
    set_pointer(v, "replicas", 1);
    set_text(v, "strategy.type", "RollingUpdate");
    if v.text("strategy.type") == "RollingUpdate" {
        set_pointer(v, "strategy.rollingUpdate.maxUnavailable", "25%");
        set_pointer(v, "strategy.rollingUpdate.maxSurge", "25%");
    }
    set_pointer(v, "revisionHistoryLimit", 10);
    set_pointer(v, "progressDeadlineSeconds", 600);
}

fn daemon_set(v: &mut Value) {
    set_text(v, "updateStrategy.type", "RollingUpdate");
    if v.text("updateStrategy.type") == "RollingUpdate" {
        set_pointer(v, "updateStrategy.rollingUpdate.maxUnavailable", 1);
        set_pointer(v, "updateStrategy.rollingUpdate.maxSurge", 0);
    }
    set_pointer(v, "revisionHistoryLimit", 10);
}

fn stateful_set(v: &mut Value) {
    set_text(v, "podManagementPolicy", "OrderedReady");
    if v.is_empty_at("updateStrategy.type") {
        set(v, "updateStrategy.type", "RollingUpdate");
        set_struct(v, "updateStrategy.rollingUpdate");
    }
    if v.text("updateStrategy.type") == "RollingUpdate" && v.has("updateStrategy.rollingUpdate") {
        set_pointer(v, "updateStrategy.rollingUpdate.partition", 0);
        set_pointer(v, "updateStrategy.rollingUpdate.maxUnavailable", 1);
    }
    set_text(v, "persistentVolumeClaimRetentionPolicy.whenDeleted", "Retain");
    set_text(v, "persistentVolumeClaimRetentionPolicy.whenScaled", "Retain");
    set_pointer(v, "replicas", 1);
    set_pointer(v, "revisionHistoryLimit", 10);
    for claim in list_mut(v, "volumeClaimTemplates") {
        set(claim, "apiVersion", "v1");
        set(claim, "kind", "PersistentVolumeClaim");
    }
}

fn job(v: &mut Value) {
    if !v.has("spec.completions") && !v.has("spec.parallelism") {
        set(v, "spec.completions", 1);
    }
    set_pointer(v, "spec.parallelism", 1);
    let backoff = if v.has("spec.backoffLimitPerIndex") { i32::MAX } else { 6 };
    set_pointer(v, "spec.backoffLimit", backoff);
    let labels = v.at("spec.template.metadata.labels").clone();
    if labels.is_object() && v.is_empty_at("metadata.labels") {
        set(v, "metadata.labels", labels);
    }
    set_pointer(v, "spec.completionMode", "NonIndexed");
    set_pointer(v, "spec.suspend", false);
    let replacement = if v.has("spec.podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    set_pointer(v, "spec.podReplacementPolicy", replacement);
    set_pointer(v, "spec.manualSelector", false);
}

fn cron_job(v: &mut Value) {
    set_text(v, "concurrencyPolicy", "Allow");
    set_pointer(v, "suspend", false);
    set_pointer(v, "successfulJobsHistoryLimit", 3);
    set_pointer(v, "failedJobsHistoryLimit", 1);
}

fn autoscaler(v: &mut Value) {
    set_pointer(v, "minReplicas", 1);
    if v.list("metrics").is_empty() {
        let target = json!({"type": "Utilization", "averageUtilization": 80});
        set(v, "metrics", json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]));
    }
    if v.has("behavior") {
        let up = json!([
            {"type": "Pods", "value": 4, "periodSeconds": 15},
            {"type": "Percent", "value": 100, "periodSeconds": 15},
        ]);
        set_pointer(v, "behavior.scaleUp.stabilizationWindowSeconds", 0);
        set_pointer(v, "behavior.scaleUp.selectPolicy", "Max");
        set_pointer(v, "behavior.scaleUp.policies", up);
        set_pointer(v, "behavior.scaleDown.selectPolicy", "Max");
        let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
        set_pointer(v, "behavior.scaleDown.policies", down);
    }
}
