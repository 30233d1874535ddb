//! `PodSecurity`: a namespace's labels say which Pod Security Standard its pods must keep (`enforce`) and which one is warned
//! about (`warn`). Workloads are created whatever their template says, with a warning (KEP-2579). What is
//! found of `audit` goes to the audit log.

mod checks;
mod metrics;
mod policy;
mod rules;

use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use isopod_api::Status;
use isopod_kinds::access::Access;
pub use metrics::PodSecurityMetrics;
use policy::{Level, Policy, Standard};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// So many existing pods are looked at when a namespace's level changes.
const MAX_PODS: usize = 3000;

pub struct PodSecurity;

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        let Some(new) = new else { return Ok(()) };
        let subresource = request.intent.subresource.as_str();
        match request.intent.kind.gvr().qualified().as_str() {
            "namespaces" if subresource.is_empty() => namespace(request, new).await,
            "pods" if matches!(subresource, "" | "ephemeralcontainers" | "resize") => pod(request, new).await,
            resource if subresource.is_empty() => match template(resource) {
                Some(path) => workload(request, new.at(path)).await,
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// Where a kind that makes pods has their template.
fn template(resource: &str) -> Option<&'static str> {
    Some(match resource {
        "podtemplates" => "template",
        "replicationcontrollers"
        | "replicasets.apps"
        | "deployments.apps"
        | "statefulsets.apps"
        | "daemonsets.apps"
        | "jobs.batch" => "spec.template",
        "cronjobs.batch" => "spec.jobTemplate.spec.template",
        _ => return None,
    })
}

async fn namespace(request: &Request<'_>, new: &Value) -> Result<(), Status> {
    let (policy, errors) = Policy::of(new);
    let (before, known) = request.old.map(Policy::of).unwrap_or_default();
    if !errors.is_empty() && errors != known {
        return Err(Status::invalid(&request.intent.kind.gvk, new.text("metadata.name"), &errors));
    }
    let (wanted, had) = (policy.enforce, before.enforce);
    let no_stricter = wanted.version == had.version && wanted.level <= had.level;
    if request.operation == Operation::Update && wanted.level != Level::Privileged && wanted != had && !no_stricter {
        let name = new.text("metadata.name");
        let pods = request.read_all("", "pods", name).await?;
        request.intent.warn(warnings_about(name, pods, wanted));
    }
    Ok(())
}

/// What is wrong with the pods that are there already. Of pods with one controller the first is looked at first.
fn warnings_about(namespace: &str, pods: Vec<Arc<Value>>, standard: Standard) -> Vec<String> {
    let mut controllers = BTreeSet::new();
    let (mut first, more): (Vec<Arc<Value>>, Vec<Arc<Value>>) = pods.into_iter().partition(|pod| {
        let owner = pod.list("metadata.ownerReferences").iter().find(|o| o.flag("controller"));
        owner.is_none_or(|o| controllers.insert(o.text("uid").to_owned()))
    });
    first.extend(more);
    let total = first.len();
    first.truncate(MAX_PODS);
    let mut found: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for pod in &first {
        let faults = rules::faults(standard, pod);
        if !faults.is_empty() {
            let reasons: Vec<&str> = faults.iter().map(|f| f.reason.as_str()).collect();
            found.entry(reasons.join(", ")).or_default().insert(pod.text("metadata.name"));
        }
    }
    let mut out = Vec::new();
    if first.len() < total {
        let checked = first.len();
        out.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
        ));
    }
    if !found.is_empty() {
        let standard = standard.to_string();
        out.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {standard:?}"
        ));
    }
    let mut lines: Vec<String> = found.iter().map(|(why, of)| about(of, why)).collect();
    lines.sort_unstable();
    out.extend(lines);
    out
}

fn about(pods: &BTreeSet<&str>, why: &str) -> String {
    let first = pods.first().copied().unwrap_or_default();
    match pods.len() {
        1 => format!("{first}: {why}"),
        2 => format!("{first} (and 1 other pod): {why}"),
        n => format!("{first} (and {} other pods): {why}", n - 1),
    }
}

/// The policy, and whether all of it could be read.
async fn policy_of_namespace(request: &Request<'_>) -> Result<Option<(Policy, bool)>, Status> {
    let name = &request.intent.namespace;
    let found = request.read("", "namespaces", "", name).await?;
    if found.is_none() {
        counters(request).failed(request, true);
    }
    Ok(found.map(|namespace| Policy::of(&namespace)).map(|(policy, errors)| (policy, errors.is_empty())))
}

fn counters<'a>(request: &Request<'a>) -> &'a PodSecurityMetrics {
    &request.server.metrics.pod_security
}

async fn pod(request: &Request<'_>, new: &Value) -> Result<(), Status> {
    let Some((policy, whole)) = policy_of_namespace(request).await? else {
        return Err(Status::internal(format!("failed to lookup namespace {:?}", request.intent.namespace)));
    };
    if whole && policy.is_free() {
        counters(request).evaluated(request, "enforce", policy.enforce, true);
    }
    if request.old.is_some_and(|old| !is_significant(new, old)) {
        return Ok(());
    }
    if !whole {
        counters(request).failed(request, false);
    }
    request.intent.trail.annotate("pod-security.kubernetes.io/enforce-policy", policy.enforce.to_string());
    let faults = rules::faults(policy.enforce, new);
    if !whole || !policy.is_free() {
        counters(request).evaluated(request, "enforce", policy.enforce, faults.is_empty());
    }
    note(request, policy.audit, new);
    if !faults.is_empty() {
        let standard = policy.enforce.to_string();
        let why = format!("violates PodSecurity {standard:?}: {}", rules::text(&faults));
        return Err(request.forbidden(Some(new), why));
    }
    warn(request, policy.warn, new);
    Ok(())
}

async fn workload(request: &Request<'_>, template: &Value) -> Result<(), Status> {
    if template.is_object()
        && let Some((policy, whole)) = policy_of_namespace(request).await?
    {
        if !whole {
            counters(request).failed(request, false);
        }
        note(request, policy.audit, template);
        warn(request, policy.warn, template);
    }
    Ok(())
}

fn warn(request: &Request<'_>, standard: Standard, pod: &Value) {
    let found = violation(standard, pod);
    if found.is_some() {
        counters(request).evaluated(request, "warn", standard, false);
    }
    request.intent.warn(found);
}

/// Tells the audit log.
fn note(request: &Request<'_>, standard: Standard, pod: &Value) {
    if let Some(why) = violation(standard, pod) {
        counters(request).evaluated(request, "audit", standard, false);
        request.intent.trail.annotate("pod-security.kubernetes.io/audit-violations", why);
    }
}

fn violation(standard: Standard, pod: &Value) -> Option<String> {
    let faults = rules::faults(standard, pod);
    let standard = standard.to_string();
    (!faults.is_empty()).then(|| format!("would violate PodSecurity {standard:?}: {}", rules::text(&faults)))
}

/// Whether an update of a pod changes what the standards are about: other changes do not make a pod worse.
fn is_significant(new: &Value, old: &Value) -> bool {
    let lists = ["spec.containers", "spec.initContainers"];
    let changed = lists.iter().any(|l| {
        let (new, old) = (new.list(l), old.list(l));
        new.len() != old.len() || new.iter().zip(old).any(|(n, o)| n.text("image") != o.text("image"))
    });
    changed
        || new.list("spec.ephemeralContainers").iter().any(|c| {
            let before = old.list("spec.ephemeralContainers").iter().find(|o| o.text("name") == c.text("name"));
            before.is_none_or(|o| o.text("image") != c.text("image"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn existing_pods_are_summed_up() {
        let pod = |name: &str, owner: Option<&str>| {
            let owners: Vec<Value> = owner.iter().map(|o| json!({"uid": o, "controller": true})).collect();
            json!({"metadata": {"name": name, "ownerReferences": owners}, "spec": {"hostNetwork": true, "containers": []}})
        };
        let standard =
            Policy::of(&json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}})).0;
        let pods = [pod("b", Some("u")), pod("c", Some("u")), pod("a", None)].map(Arc::new).into();
        let want = [
            "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "a (and 2 other pods): host namespaces",
        ];
        assert_eq!(warnings_about("n", pods, standard.enforce), want);
        assert!(warnings_about("n", vec![Arc::new(json!({"spec": {}}))], standard.enforce).is_empty());
    }

    #[test]
    fn significant_updates() {
        let pod = |image: &str, debug: Value| json!({"spec": {"containers": [{"image": image}], "ephemeralContainers": debug}});
        let debugger = json!([{"name": "d", "image": "x"}]);
        for (new, old, want) in [
            (pod("a", Value::Null), pod("a", Value::Null), false),
            (pod("b", Value::Null), pod("a", Value::Null), true),
            (pod("a", debugger.clone()), pod("a", Value::Null), true),
            (pod("a", debugger.clone()), pod("a", debugger), false),
        ] {
            assert_eq!(is_significant(&new, &old), want, "{new} {old}");
        }
    }
}
