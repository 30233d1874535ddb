//! Workloads: ReplicaSet, Deployment, StatefulSet, DaemonSet, ReplicationController, Job, CronJob.

use crate::access::{Access, keep, map_mut, same, set};
use crate::kind::Ctx;
use crate::ownership;
use crate::strategy::{PLAIN, STATELESS, ScalePaths, Strategy};
use crate::validation::{job, pod, pod_warnings, workload};
use isopod_api::Path;
use isopod_api::selector::LabelSelector;
use serde_json::{Value, json};

const SELECTOR: Option<ScalePaths> = Some(ScalePaths { selector: selector_text });

/// The selector of a workload as text, what `Scale.status.selector` holds.
fn selector_text(obj: &Value) -> String {
    let selector = obj.at("spec.selector");
    LabelSelector::from_object(Some(selector)).map_or_else(|_| String::new(), |s| s.to_string())
}

const WITH_TEMPLATE: Strategy = Strategy { warnings: pod_warnings::named_workload, ..PLAIN };

const REPLICAS: &[&str] = &["spec.replicas"];

const DEPLOYMENT: Strategy = Strategy {
    owned: ownership::deployment,
    scale: SELECTOR,
    zeros: REPLICAS,
    prepare_update: update_deployment,
    create: workload::deployment,
    update: workload::deployment_update,
    update_status: workload::deployment_status,
    ..WITH_TEMPLATE
};

const REPLICA_SET: Strategy = Strategy {
    scale: SELECTOR,
    zeros: REPLICAS,
    create: workload::replica_set,
    update: workload::replica_set_update,
    update_status: workload::replica_set_status,
    ..WITH_TEMPLATE
};

pub const REPLICATION_CONTROLLER: Strategy = Strategy {
    scale: Some(ScalePaths { selector: map_selector_text }),
    zeros: &[],
    create: workload::replication_controller,
    update: |new, _| workload::replication_controller(new),
    fields: &["status.replicas"],
    select: |o, p| o.int_or(p, 0).to_string(),
    ..REPLICA_SET
};

pub const POD_TEMPLATE: Strategy = Strategy {
    resets_status: false,
    warnings: pod_warnings::pod_template,
    create: |new| pod::template(new.at("template"), &Path::new("template")),
    update: |new, _| pod::template(new.at("template"), &Path::new("template")),
    ..PLAIN
};

fn map_selector_text(obj: &Value) -> String {
    obj.at("spec.selector").as_object().map_or_else(String::new, |m| LabelSelector::from_map(m).to_string())
}

pub fn apps(kind: &str) -> Strategy {
    match kind {
        "Deployment" => DEPLOYMENT,
        "ReplicaSet" => REPLICA_SET,
        "StatefulSet" => Strategy {
            warnings: pod_warnings::stateful_set,
            scale: SELECTOR,
            zeros: REPLICAS,
            create: workload::stateful_set,
            update: workload::stateful_set_update,
            update_status: workload::stateful_set_status,
            ..WITH_TEMPLATE
        },
        "DaemonSet" => Strategy {
            warnings: pod_warnings::workload,
            internal_annotations: &[TEMPLATE_GENERATION],
            prepare_create: daemon_set_create,
            prepare_update: daemon_set_update,
            create: workload::daemon_set,
            update: workload::daemon_set_update,
            update_status: workload::daemon_set_status,
            ..WITH_TEMPLATE
        },
        "ControllerRevision" => Strategy { create: workload::revision, update: workload::revision_update, ..STATELESS },
        _ => STATELESS,
    }
}

pub fn batch(kind: &str) -> Strategy {
    match kind {
        "Job" => Strategy {
            warnings: pod_warnings::job,
            fields: &["status.successful"],
            select: |o, p| match p {
                "status.successful" => o.int_or("status.succeeded", 0).to_string(),
                _ => crate::strategy::text_at(o, p),
            },
            orphaning: "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning",
            prepare_create: job_create,
            create: job::create,
            update: job::update,
            update_status: job::status,
            ..WITH_TEMPLATE
        },
        _ => {
            Strategy { warnings: pod_warnings::cron_job, create: job::cron_create, update: job::cron, ..WITH_TEMPLATE }
        }
    }
}

/// A change of a deployment's annotations is a new generation too: they are copied to its replica sets.
fn update_deployment(ctx: &Ctx, new: &mut Value, old: &Value) {
    if ctx.subresource == "status" {
        return keep(new, old, "metadata.labels");
    }
    let changed =
        !same(new.at("metadata.annotations"), old.at("metadata.annotations")) || !same(new.at("spec"), old.at("spec"));
    if changed {
        set(new, "metadata.generation", old.int_or("metadata.generation", 0) + 1);
    }
}

/// Only extensions/v1beta1 showed it as a field; apps/v1 keeps it in an annotation.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn daemon_set_create(_: &Ctx, new: &mut Value) {
    if new.int_or("spec.templateGeneration", 0) < 1 {
        map_mut(new, "metadata.annotations").insert(TEMPLATE_GENERATION.into(), "1".into());
    }
}

fn daemon_set_update(ctx: &Ctx, new: &mut Value, old: &Value) {
    let before: i64 = old.entry_text("metadata.annotations", TEMPLATE_GENERATION).parse().unwrap_or(0);
    let changed = ctx.subresource != "status" && !same(new.at("spec.template"), old.at("spec.template"));
    let now = if changed { before + 1 } else { before };
    map_mut(new, "metadata.annotations").insert(TEMPLATE_GENERATION.into(), now.to_string().into());
}

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const OLD_UID_LABEL: &str = "controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";
const OLD_NAME_LABEL: &str = "job-name";

/// A job selects its pods by its own uid, unless its user brings a selector.
fn job_create(_: &Ctx, new: &mut Value) {
    if new.flag("spec.manualSelector") {
        return;
    }
    let uid = new.text("metadata.uid").to_owned();
    let name = new.text("metadata.name").to_owned();
    let labels = map_mut(new, "spec.template.metadata.labels");
    for (key, value) in [(NAME_LABEL, &name), (OLD_NAME_LABEL, &name), (UID_LABEL, &uid), (OLD_UID_LABEL, &uid)] {
        labels.entry(key).or_insert_with(|| json!(value));
    }
    let selector = map_mut(new, "spec.selector.matchLabels");
    if !selector.contains_key(UID_LABEL) {
        selector.insert(UID_LABEL.into(), uid.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Hooks;
    use isopod_api::UserInfo;

    #[test]
    fn scale_selectors() {
        let obj = json!({"metadata": {"name": "a"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b", "c": "d"}}}});
        assert_eq!(DEPLOYMENT.to_scale(&obj).unwrap().text("status.selector"), "a=b,c=d");
        let obj = json!({"metadata": {"name": "a"}, "spec": {"replicas": 1, "selector": {"a": "b"}}});
        assert_eq!(REPLICATION_CONTROLLER.to_scale(&obj).unwrap().text("status.selector"), "a=b");
        assert_eq!(REPLICATION_CONTROLLER.selectable(&obj), ["0"]);
    }

    #[test]
    fn a_job_selects_its_pods() {
        let user = UserInfo::default();
        let ctx = Ctx { now: jiff::Timestamp::UNIX_EPOCH, user: &user, subresource: "", dry_run: false };
        let mut job = json!({"metadata": {"name": "j", "uid": "u1"}, "spec": {"template": {}}});
        batch("Job").prepare_create(&ctx, &mut job);
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {UID_LABEL: "u1"}}));
        assert_eq!(job["spec"]["template"]["metadata"]["labels"][NAME_LABEL], "j");
        let mut new = json!({"metadata": {"annotations": {"a": "b"}, "generation": 3}, "spec": {}});
        DEPLOYMENT.prepare_update(&ctx, &mut new, &json!({"metadata": {"generation": 3}, "spec": {}}));
        assert_eq!(new.int("metadata.generation"), Some(4));
        assert_eq!((DEPLOYMENT.warnings)(&json!({"metadata": {"name": "a.b"}}), None).len(), 1);
    }
}
