//! What the failure of a pod means for its job (KEP-3329), and when succeeded indexes suffice (KEP-3998).

use super::indexes::Indexes;
use isopod_client::views::{ContainerStatus, ExitCodes, Job, Pod, SuccessPolicy};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts towards the limits.
    Count,
    Ignore,
    FailIndex,
    /// The job fails, with this message.
    FailJob(String),
}

/// Failed, or being deleted before it has ended: unless the job waits for the end of such pods.
pub fn has_failed(pod: &Pod, job: &Job) -> bool {
    match pod.status.phase.as_str() {
        "Failed" => true,
        "Succeeded" => false,
        _ => pod.metadata.is_being_deleted() && !replaces_only_failed(job),
    }
}

pub fn replaces_only_failed(job: &Job) -> bool {
    job.spec.pod_replacement_policy == "Failed"
}

/// By the first rule that matches.
pub fn verdict(pod: &Pod, job: &Job) -> Verdict {
    let rules = job.spec.pod_failure_policy.iter().flat_map(|p| &p.rules).enumerate();
    for (at, rule) in rules {
        let why = match &rule.on_exit_codes {
            Some(codes) => exited(pod, codes).map(|(container, code)| {
                format!(
                    "Container {} for pod {}/{} failed with exit code {code} matching FailJob rule at index {at}",
                    container.name, pod.metadata.namespace, pod.metadata.name
                )
            }),
            None => condition(pod, rule).map(|kind| {
                format!(
                    "Pod {}/{} has condition {kind} matching FailJob rule at index {at}",
                    pod.metadata.namespace, pod.metadata.name
                )
            }),
        };
        match (why, rule.action.as_str()) {
            (None, _) => {}
            (Some(_), "Ignore") => return Verdict::Ignore,
            (Some(_), "FailIndex") => return Verdict::FailIndex,
            (Some(why), "FailJob") => return Verdict::FailJob(why),
            (Some(_), _) => return Verdict::Count,
        }
    }
    Verdict::Count
}

fn exited<'a>(pod: &'a Pod, codes: &ExitCodes) -> Option<(&'a ContainerStatus, i32)> {
    let all = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
    let named = all.filter(|c| codes.container_name.as_ref().is_none_or(|n| *n == c.name));
    let mut ended = named.filter_map(|c| Some((c, c.state.terminated.as_ref()?.exit_code)));
    ended.find(|(_, code)| {
        *code != 0
            && match codes.operator.as_str() {
                "In" => codes.values.contains(code),
                "NotIn" => !codes.values.contains(code),
                _ => false,
            }
    })
}

fn condition<'a>(pod: &'a Pod, rule: &isopod_client::views::PodFailureRule) -> Option<&'a str> {
    let matching = |c: &&isopod_client::views::Condition| {
        rule.on_pod_conditions.iter().any(|p| p.kind == c.kind && p.status == c.status)
    };
    pod.status.conditions.iter().find(matching).map(|c| c.kind.as_str())
}

/// The message of the first rule that is met.
pub fn success(policy: &SuccessPolicy, completions: i32, succeeded: &Indexes) -> Option<String> {
    if succeeded.total() == 0 {
        return None;
    }
    let is_met = |rule: &isopod_client::views::SuccessRule| match &rule.succeeded_indexes {
        Some(text) => {
            let wanted = Indexes::parse(text, completions);
            let common = wanted.common(succeeded);
            wanted.total() > 0 && (common == wanted.total() || rule.succeeded_count.is_some_and(|n| common >= n))
        }
        None => rule.succeeded_count.is_some_and(|n| succeeded.total() >= n),
    };
    policy.rules.iter().position(is_met).map(|at| format!("Matched rules at index {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(spec: Value) -> Job {
        serde_json::from_str(&json!({"metadata": {"name": "j"}, "spec": spec}).to_string()).unwrap()
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let job = job(json!({"podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"containerName": "main", "operator": "In", "values": [7]}},
            {"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [1]}},
        ]}}));
        for (container, code, disrupted, want) in [
            ("main", 42, "True", Verdict::Ignore),
            (
                "main",
                42,
                "False",
                Verdict::FailJob(
                    "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1".into(),
                ),
            ),
            ("main", 7, "False", Verdict::FailIndex),
            ("side", 7, "False", Verdict::Count),
            ("main", 1, "False", Verdict::Count),
            ("main", 0, "False", Verdict::Count),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "status": {
                "conditions": [{"type": "DisruptionTarget", "status": disrupted}],
                "containerStatuses": [{"name": container, "state": {"terminated": {"exitCode": code}}}]}}))
            .unwrap();
            assert_eq!(verdict(&pod, &job), want, "{container} {code}");
        }
    }

    #[test]
    fn success_by_indexes_or_by_count() {
        let met = |rules: Value, succeeded: &str| {
            let policy: SuccessPolicy = serde_json::from_value(json!({"rules": rules})).unwrap();
            success(&policy, 10, &Indexes::parse(succeeded, 10))
        };
        let message = |at: usize| Some(format!("Matched rules at index {at}"));
        assert_eq!(met(json!([{"succeededIndexes": "0,2-3"}]), "0,2"), None);
        assert_eq!(met(json!([{"succeededIndexes": "0,2-3"}]), "0,2-3"), message(0));
        assert_eq!(met(json!([{"succeededIndexes": "0-5", "succeededCount": 2}]), "1,4"), message(0));
        assert_eq!(met(json!([{"succeededIndexes": "9"}, {"succeededCount": 2}]), "1,4"), message(1));
        assert_eq!(met(json!([{"succeededCount": 1}]), ""), None);
    }
}
