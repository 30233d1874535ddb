//! Columns of RBAC, disruption budgets, priority, certificates, admission, flow control and scheduling groups.

use super::storage::{WEBHOOKS, count_column, number_or_none};
use super::{AGE, CREATED_AT, NAME, boolean, condition, field, human_duration, integer, map_text, or, text, wide};
use crate::access::Access;
use crate::golang;
use crate::kind::Column;
use jiff::Timestamp;
use serde_json::Value;

pub(super) fn columns(group: &str, kind: &str) -> Option<Vec<Column>> {
    let short = group.strip_suffix(".k8s.io").unwrap_or(group);
    Some(match (short, kind) {
        ("policy", "PodDisruptionBudget") => vec![
            NAME,
            text("Min Available", |o, _| int_or_string(o, "spec.minAvailable")),
            text("Max Unavailable", |o, _| int_or_string(o, "spec.maxUnavailable")),
            integer("Allowed Disruptions", field!(int "status.disruptionsAllowed")),
            AGE,
        ],
        ("rbac.authorization", "RoleBinding" | "ClusterRoleBinding") => vec![
            NAME,
            text("Role", |o, _| format!("{}/{}", o.text("roleRef.kind"), o.text("roleRef.name")).into()),
            AGE,
            wide("Users", |o, _| subjects(o, "User")),
            wide("Groups", |o, _| subjects(o, "Group")),
            wide("ServiceAccounts", |o, _| subjects(o, "ServiceAccount")),
        ],
        ("scheduling", "PriorityClass") => vec![
            NAME,
            integer("Value", field!(int "value")),
            boolean("Global-Default", field!(flag "globalDefault")),
            AGE,
            text("PreemptionPolicy", field!(text "preemptionPolicy")),
        ],
        ("scheduling", "Workload") => vec![NAME, AGE],
        ("scheduling", "PodGroup") => vec![
            NAME,
            text("Policy", gang),
            text("Workload", field!(text "spec.workloadRef.workloadName" or "<none>")),
            text("Status", pod_group_status),
            AGE,
        ],
        ("scheduling", "CompositePodGroup") => vec![
            NAME,
            text("Policy", gang),
            text("Workload", field!(text "spec.workloadRef.workloadName" or "<none>")),
            AGE,
        ],
        ("apiextensions", "CustomResourceDefinition") => vec![
            NAME,
            text("Scope", field!(text "spec.scope")),
            text("Versions", served_versions),
            CREATED_AT,
            wide("Group", field!(text "spec.group")),
            wide("Kind", field!(text "spec.names.kind")),
            wide("ShortNames", |o, _| o.texts("spec.names.shortNames").join(",").into()),
            Column { priority: 1, ..boolean("Established", |o, _| condition_is_true(o, "Established").into()) },
        ],
        ("certificates", _) => return certificates(kind),
        ("admissionregistration", _) => return admission(kind),
        ("flowcontrol.apiserver", _) => return flow_control(kind),
        ("storagemigration", "StorageVersionMigration") => vec![
            Column { format: "", ..NAME },
            text("Resource", |o, _| {
                let parts = [o.text("spec.resource.resource"), o.text("spec.resource.group")];
                parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(".").into()
            }),
            text("Status", migration_status),
        ],
        _ => return None,
    })
}

fn int_or_string(o: &Value, path: &str) -> Value {
    match o.at(path) {
        Value::Null => "N/A".into(),
        Value::String(s) => s.as_str().into(),
        n => n.to_string().into(),
    }
}

fn subjects(o: &Value, kind: &str) -> Value {
    let of_kind = o.list("subjects").iter().filter(|s| s.text("kind") == kind);
    let shown = of_kind.map(|s| match kind {
        "ServiceAccount" => format!("{}/{}", s.text("namespace"), s.text("name")),
        _ => s.text("name").to_owned(),
    });
    shown.collect::<Vec<_>>().join(", ").into()
}

fn gang(o: &Value, _: Timestamp) -> Value {
    if o.has("spec.schedulingPolicy.gang") { "Gang".into() } else { "Basic".into() }
}

fn pod_group_status(o: &Value, _: Timestamp) -> Value {
    if let Some(c) = condition(o, "DisruptionTarget") {
        return c.text("reason").into();
    }
    match condition(o, "PodGroupInitiallyScheduled").map(|c| c.text("status")) {
        None => "Pending".into(),
        Some("True") => "Scheduled".into(),
        Some(_) => "Unschedulable".into(),
    }
}

fn migration_status(o: &Value, _: Timestamp) -> Value {
    let known = ["Running", "Failed", "Succeeded"];
    let all = o.list("status.conditions").iter().filter(|c| c.text("status") == "True").map(|c| c.text("type"));
    all.rev().find(|t| known.contains(t)).unwrap_or("Unknown").into()
}

fn certificates(kind: &str) -> Option<Vec<Column>> {
    let signer = text("SignerName", field!(text "spec.signerName" or "<none>"));
    Some(match kind {
        "CertificateSigningRequest" => vec![
            NAME,
            AGE,
            signer,
            text("Requestor", field!(text "spec.username")),
            text("RequestedDuration", |o, _| match o.int("spec.expirationSeconds") {
                Some(s) => human_duration(i128::from(s) * 1_000_000_000).into(),
                None => "<none>".into(),
            }),
            text("Condition", |o, _| csr_status(o).into()),
        ],
        "ClusterTrustBundle" => vec![NAME, signer],
        "PodCertificateRequest" => vec![
            NAME,
            text("PodName", field!(text "spec.podName")),
            text("ServiceAccountName", field!(text "spec.serviceAccountName")),
            text("NodeName", field!(text "spec.nodeName")),
            text("SignerName", field!(text "spec.signerName")),
            text("State", |o, _| {
                let all = o.list("status.conditions").iter().map(|c| c.text("type"));
                all.rev().find(|t| ["Issued", "Denied", "Failed"].contains(t)).unwrap_or("Pending").into()
            }),
            text("UnverifiedUserAnnotations", |o, _| map_text(o.at("spec.unverifiedUserAnnotations")).into()),
        ],
        _ => return None,
    })
}

fn csr_status(o: &Value) -> String {
    let mut s = if condition(o, "Denied").is_some() {
        "Denied"
    } else if condition(o, "Approved").is_some() {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if condition(o, "Failed").is_some() {
        s.push_str(",Failed");
    }
    if !o.text("status.certificate").is_empty() {
        s.push_str(",Issued");
    }
    s
}

fn admission(kind: &str) -> Option<Vec<Column>> {
    const PARAM_KIND: Column = text("ParamKind", |o, _| match o.at("spec.paramKind") {
        Value::Null => "<unset>".into(),
        p => format!("{}/{}", p.text("apiVersion"), p.text("kind")).into(),
    });
    Some(match kind {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => vec![NAME, WEBHOOKS, AGE],
        "ValidatingAdmissionPolicy" => {
            vec![NAME, integer("Validations", field!(count "spec.validations")), PARAM_KIND, AGE]
        }
        "MutatingAdmissionPolicy" => vec![NAME, integer("Mutations", field!(count "spec.mutations")), PARAM_KIND, AGE],
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => vec![
            NAME,
            text("PolicyName", field!(text "spec.policyName")),
            text("ParamRef", |o, _| {
                let p = o.at("spec.paramRef");
                match (p.text("name"), p.at("selector")) {
                    ("", Value::Null) => "<unset>".into(),
                    ("", selector) => golang::label_selector(selector).into(),
                    (name, _) => format!("{}/{name}", or(p.text("namespace"), "*")).into(),
                }
            }),
            AGE,
        ],
        _ => return None,
    })
}

fn flow_control(kind: &str) -> Option<Vec<Column>> {
    Some(match kind {
        "FlowSchema" => vec![
            NAME,
            text("PriorityLevel", field!(text "spec.priorityLevelConfiguration.name")),
            text("MatchingPrecedence", field!(int "spec.matchingPrecedence")),
            text("DistinguisherMethod", field!(text "spec.distinguisherMethod.type" or "<none>")),
            AGE,
            text("MissingPL", |o, _| condition(o, "Dangling").map_or("?", |c| c.text("status")).into()),
        ],
        "PriorityLevelConfiguration" => vec![
            NAME,
            text("Type", field!(text "spec.type")),
            count_column("NominalConcurrencyShares", |o, _| number_or_none(o, "spec.limited.nominalConcurrencyShares")),
            count_column("Queues", |o, _| number_or_none(o, "spec.limited.limitResponse.queuing.queues")),
            count_column("HandSize", |o, _| number_or_none(o, "spec.limited.limitResponse.queuing.handSize")),
            count_column("QueueLengthLimit", |o, _| {
                number_or_none(o, "spec.limited.limitResponse.queuing.queueLengthLimit")
            }),
            AGE,
        ],
        _ => return None,
    })
}
/// The served versions, sorted; the stored one says so.
fn served_versions(o: &Value, _: Timestamp) -> Value {
    let served = o.list("spec.versions").iter().filter(|v| v.flag("served"));
    let mut all: Vec<String> =
        served.map(|v| format!("{}{}", v.text("name"), if v.flag("storage") { "(storage)" } else { "" })).collect();
    all.sort();
    all.join(",").into()
}

fn condition_is_true(o: &Value, kind: &str) -> bool {
    o.list("status.conditions").iter().any(|c| c.text("type") == kind && c.text("status") == "True")
}
