//! How often the standards were asked about, and what they said, under upstream's names (`pod-security-admission/metrics`).

use super::policy::Standard;
use crate::admission::{Operation, Request};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EvaluationLabels {
    decision: &'static str,
    policy_level: &'static str,
    policy_version: String,
    mode: &'static str,
    request_operation: &'static str,
    resource: &'static str,
    subresource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    fatal: &'static str,
    request_operation: &'static str,
    resource: &'static str,
    subresource: String,
}

pub struct PodSecurityMetrics {
    evaluations: Family<EvaluationLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
}

fn operation(request: &Request<'_>) -> &'static str {
    if request.operation == Operation::Update { "update" } else { "create" }
}

fn resource(request: &Request<'_>) -> &'static str {
    match request.intent.kind.gvr().qualified().as_str() {
        "pods" => "pod",
        "namespaces" => "namespace",
        _ => "controller",
    }
}

impl PodSecurityMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let made = PodSecurityMetrics { evaluations: Family::default(), errors: Family::default() };
        let help = "[ALPHA] Number of policy evaluations that occurred, not counting ignored or exempt requests";
        registry.register("pod_security_evaluations", help, made.evaluations.clone());
        let help = "[ALPHA] Number of errors preventing normal evaluation. Non-fatal errors may result in the latest restricted \
                    profile being used for evaluation";
        registry.register("pod_security_errors", help, made.errors.clone());
        made
    }

    /// `mode`: `enforce`, `audit` or `warn`.
    pub fn evaluated(&self, request: &Request<'_>, mode: &'static str, standard: Standard, allowed: bool) {
        let labels = EvaluationLabels {
            decision: if allowed { "allow" } else { "deny" },
            policy_level: standard.level.name(),
            policy_version: standard.version_counted(),
            mode,
            request_operation: operation(request),
            resource: resource(request),
            subresource: request.intent.subresource.clone(),
        };
        self.evaluations.get_or_create(&labels).inc();
    }

    /// `fatal`: nothing could be said.
    pub fn failed(&self, request: &Request<'_>, fatal: bool) {
        let labels = ErrorLabels {
            fatal: if fatal { "true" } else { "false" },
            request_operation: operation(request),
            resource: resource(request),
            subresource: request.intent.subresource.clone(),
        };
        self.errors.get_or_create(&labels).inc();
    }
}
