//! One pass over a deployment, as pure computation: from what is to the writes that bring it on.

use super::rollout::Rollout;
use super::{revision, rollout, scale, status};
use crate::op::Op;
use isopod_client::views::{Deployment, ReplicaSet};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// What a pass looks at.
pub struct Observed<'a> {
    pub deployment: &'a Deployment,
    /// The replica sets that it controls.
    pub sets: &'a [Arc<ReplicaSet>],
    /// Uids of the sets that have pods which are not finished.
    pub with_pods: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub struct Plan {
    pub ops: Vec<Op>,
    /// When to look again if nothing happens.
    pub look_again: Option<Duration>,
}

/// The steps are to be done in order; after the first that fails the rest is void.
pub fn plan(observed: &Observed<'_>, now: Timestamp) -> Plan {
    let d = observed.deployment;
    let mut rollout = Rollout::new(d, observed.sets, now);
    if d.metadata.is_being_deleted() {
        rollout.status(status::calculate);
        return rollout.finish();
    }
    if let Some(condition) = status::paused(d, now) {
        rollout.set_condition(condition);
    }
    if d.spec.paused {
        rollout.sync_revision(false);
        rollout.scale();
        if revision::rollback_to(d).is_none() {
            rollout.clean_up();
        }
        rollout.status(status::calculate);
        return rollout.finish();
    }
    if let Some(to) = revision::rollback_to(d) {
        rollout.sync_revision(true);
        rollout.roll_back(to);
        return rollout.finish();
    }
    rollout.sync_revision(false);
    if rollout.is_scaling() {
        rollout.scale();
        rollout.status(status::calculate);
        return rollout.finish();
    }
    if scale::is_rolling(d) {
        rollout::rolling::roll(&mut rollout);
    } else {
        rollout::recreate::roll(&mut rollout, &observed.with_pods);
    }
    rollout.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn deployment(spec: Value) -> Deployment {
        let mut all = json!({"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 10, "template": template("v1"),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}});
        isopod_client::calls::merge(&mut all, &spec);
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1, "annotations": {"team": "a"}},
            "spec": all,
        }))
        .unwrap()
    }

    fn template(version: &str) -> Value {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": version}]}})
    }

    /// A set of the deployment: revision, template, size, pods that exist and are available.
    fn set(revision: i64, version: &str, size: i32, available: i32, desired: i32) -> Arc<ReplicaSet> {
        let max = desired + 1;
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": format!("web-{version}"), "namespace": "ns", "uid": version, "generation": 1,
                    "creationTimestamp": format!("2026-01-01T00:00:0{revision}Z"),
                    "annotations": {revision::REVISION: revision.to_string(), revision::DESIRED: desired.to_string(),
                        revision::MAX: max.to_string(), "team": "a"}},
                "spec": {"replicas": size, "template": template(version), "selector": {}},
                "status": {"replicas": size, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1},
            }))
            .unwrap(),
        )
    }

    /// The plan's steps without the status bodies.
    fn check(d: &Deployment, sets: &[Arc<ReplicaSet>], want: &[&str]) {
        let observed = Observed { deployment: d, sets, with_pods: BTreeSet::new() };
        let got: Vec<String> = plan(&observed, NOW.parse().unwrap())
            .ops
            .iter()
            .map(|op| {
                let text = op.to_string();
                match op {
                    Op::Event { message, .. } => message.clone(),
                    Op::Modify { subresource: Some(_), .. } => "status".to_owned(),
                    Op::Modify { resource, change, .. } if resource.gvr.resource == "replicasets" => {
                        format!("{}: {}", text.split(' ').nth(2).unwrap(), change["spec"])
                    }
                    Op::Create { object, .. } => format!("create size {}", object["spec"]["replicas"]),
                    _ => text,
                }
            })
            .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn a_new_deployment_makes_its_first_set() {
        let d = deployment(json!({}));
        let observed = Observed { deployment: &d, sets: &[], with_pods: BTreeSet::new() };
        let plan = plan(&observed, NOW.parse().unwrap());
        let Op::Create { object, .. } = &plan.ops[0] else { panic!("{:?}", plan.ops) };
        let hash = object["metadata"]["labels"]["pod-template-hash"].as_str().unwrap();
        assert_eq!(object["metadata"]["name"], format!("web-{hash}"));
        assert_eq!(object["spec"]["selector"]["matchLabels"], json!({"app": "web", "pod-template-hash": hash}));
        assert_eq!(object["spec"]["template"]["metadata"]["labels"]["pod-template-hash"], hash);
        assert_eq!(object["spec"]["replicas"], 3);
        assert_eq!(
            object["metadata"]["annotations"],
            json!({"team": "a", revision::REVISION: "1", revision::DESIRED: "3", revision::MAX: "4"})
        );
        let shown: Vec<String> = plan.ops[1..].iter().map(Op::to_string).collect();
        assert_eq!(shown[0], format!("event Normal ScalingReplicaSet: Scaled up replica set web-{hash} from 0 to 3"));
        assert_eq!(
            shown[1],
            r#"modify deployments.apps ns/web {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"1"}}}"#
        );
        assert!(
            shown[2].contains("NewReplicaSetCreated") && shown[2].contains("MinimumReplicasUnavailable"),
            "{}",
            shown[2]
        );
        assert_eq!(shown.len(), 3);
        assert!(plan.look_again.is_some());
    }

    #[test]
    fn a_rolling_update_goes_up_then_down_within_its_fenceposts() {
        let mut d = deployment(json!({"template": template("v2")}));
        d.metadata.annotations.insert(revision::REVISION.into(), "2".into());
        let progressing = status::condition(status::PROGRESSING, "True", "x", "", NOW.parse().unwrap());
        d.status.conditions.push(progressing);
        // Surge of one (25% of 3 rounds up), none unavailable.
        check(
            &d,
            &[set(1, "v1", 3, 3, 3), set(2, "v2", 0, 0, 3)],
            &["ns/web-v2: {\"replicas\":1}", "Scaled up replica set web-v2 from 0 to 1", "status"],
        );
        check(&d, &[set(1, "v1", 3, 3, 3), set(2, "v2", 1, 0, 3)], &["status"]);
        check(
            &d,
            &[set(1, "v1", 3, 3, 3), set(2, "v2", 1, 1, 3)],
            &["ns/web-v1: {\"replicas\":2}", "Scaled down replica set web-v1 from 3 to 2", "status"],
        );
        // Broken old pods go at once: nothing is lost by it.
        check(
            &d,
            &[set(1, "v1", 3, 1, 3), set(2, "v2", 1, 1, 3)],
            &["ns/web-v1: {\"replicas\":2}", "Scaled down replica set web-v1 from 3 to 2", "status"],
        );
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_is_proportional() {
        let mut d = deployment(json!({"replicas": 8, "template": template("v2")}));
        d.metadata.annotations.insert(revision::REVISION.into(), "2".into());
        d.status.conditions.push(status::condition(status::PROGRESSING, "True", "x", "", NOW.parse().unwrap()));
        // From 3 (+1) to 8 (+2): 4 pods become 10, in proportion; the larger takes what rounding leaves.
        check(
            &d,
            &[set(1, "v1", 3, 3, 3), set(2, "v2", 1, 1, 3)],
            &[
                "ns/web-v1: {\"replicas\":8}",
                "Scaled up replica set web-v1 from 3 to 8",
                "ns/web-v2: {\"replicas\":2}",
                "Scaled up replica set web-v2 from 1 to 2",
                "status",
            ],
        );
    }

    #[test]
    fn a_paused_deployment_is_scaled_but_not_rolled() {
        let d = deployment(json!({"paused": true, "replicas": 5, "template": template("v2")}));
        check(
            &d,
            &[set(1, "v1", 3, 3, 3)],
            &["status", "ns/web-v1: {\"replicas\":5}", "Scaled up replica set web-v1 from 3 to 5", "status"],
        );
    }

    #[test]
    fn recreate_brings_the_old_down_first() {
        let d =
            deployment(json!({"strategy": {"type": "Recreate", "rollingUpdate": null}, "template": template("v2")}));
        let old = set(1, "v1", 3, 3, 3);
        check(&d, &[old], &["ns/web-v1: {\"replicas\":0}", "Scaled down replica set web-v1 from 3 to 0", "status"]);
        let gone = set(1, "v1", 0, 0, 3);
        let with_pods = BTreeSet::from(["v1".to_owned()]);
        let sets = [gone.clone()];
        let plan = plan(&Observed { deployment: &d, sets: &sets, with_pods }, NOW.parse().unwrap());
        assert!(plan.ops.iter().all(|o| !matches!(o, Op::Create { .. })), "old pods still run");
        check(
            &d,
            &[gone],
            &["create size 3", "Scaled up replica set web-HASH from 0 to 3", "modify", "status"]
                .map(|s| s.replace("HASH", &crate::template::hash(&template("v2"), None)))
                .iter()
                .map(|s| if s == "modify" { r#"modify deployments.apps ns/web {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"2"}}}"# } else { s })
                .collect::<Vec<_>>(),
        );
    }

    #[test]
    fn a_finished_rollout_forgets_old_sets_past_the_limit() {
        let mut d = deployment(json!({"revisionHistoryLimit": 1, "template": template("v3")}));
        d.metadata.annotations.insert(revision::REVISION.into(), "3".into());
        let sets = [set(1, "v1", 0, 0, 3), set(2, "v2", 0, 0, 3), set(3, "v3", 3, 3, 3)];
        let all: Vec<ReplicaSet> = sets.iter().map(|s| (**s).clone()).collect();
        let now = NOW.parse().unwrap();
        d.status = status::of_rollout(&d, &all, Some(&all[2]), now);
        d.status.conditions.push(status::condition(status::PROGRESSING, "True", "NewReplicaSetAvailable", "", now));
        d.status.conditions.dedup_by(|a, b| a.kind == b.kind);
        check(&d, &sets, &["delete replicasets.apps ns/web-v1"]);
    }
}
