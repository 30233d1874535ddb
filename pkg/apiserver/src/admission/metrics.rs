//! What admission takes and how it ends, under upstream's names (`apiserver/pkg/admission/metrics`,
//! `plugin/policy/{validating,mutating}/metrics`).

mod summary;
mod times;

pub use times::Timings;

use super::{Operation, Step};
use crate::ApiServer;
use crate::exposition::Page;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;
use summary::Summaries;

const WEBHOOK_BOUNDS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
const CONDITION_BOUNDS: [f64; 7] = [0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25];
const POLICY_BOUNDS: [f64; 5] = [0.0000005, 0.001, 0.01, 0.1, 1.0];
/// Larger codes, which only broken webhooks answer with, are counted as this one.
const MAX_CODE: u16 = 600;

/// Values by labels.
struct Table<T>(Mutex<BTreeMap<Vec<String>, T>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(Mutex::default())
    }
}

impl<T: Default> Table<T> {
    fn change(&self, labels: &[&str], change: impl FnOnce(&mut T)) {
        let mut rows = self.0.lock();
        change(rows.entry(labels.iter().map(|l| (*l).to_owned()).collect()).or_default());
    }
}

impl Table<u64> {
    fn count(&self, labels: &[&str]) {
        self.change(labels, |n| *n += 1);
    }
}

#[derive(Default)]
struct Distribution {
    /// One for each bound, and one for what is above.
    counts: Vec<u64>,
    sum: f64,
}

impl Table<Distribution> {
    fn observe(&self, labels: &[&str], bounds: &[f64], took: Duration) {
        self.change(labels, |d| {
            d.counts.resize(bounds.len() + 1, 0);
            let seconds = took.as_secs_f64();
            d.counts[bounds.partition_point(|b| *b < seconds)] += 1;
            d.sum += seconds;
        });
    }
}

/// How asking a webhook ended.
pub struct Asked<'a> {
    pub webhook: &'a str,
    pub step: &'static str,
    pub operation: Operation,
    pub took: Duration,
    /// The HTTP status that it comes to; 0: this server made a mistake.
    pub code: u16,
    /// The request is refused, for this (`error_type`).
    pub refused: Option<&'static str>,
}

/// Whose `matchConditions`.
#[derive(Clone, Debug)]
pub struct Owner {
    pub name: String,
    /// `webhook`, `policy`
    pub kind: &'static str,
    /// `admit`, `validating`, `validate`
    pub step: &'static str,
}

#[derive(Default)]
pub struct AdmissionMetrics {
    steps: Timings,
    summaries: Summaries,
    pub quotas: Timings,
    webhooks: Table<Distribution>,
    webhook_requests: Table<u64>,
    webhook_rejections: Table<u64>,
    webhooks_passed_over: Table<u64>,
    conditions: Table<Distribution>,
    condition_errors: Table<u64>,
    condition_exclusions: Table<u64>,
    validating_policies: Table<Distribution>,
    mutating_policies: Table<Distribution>,
}

impl AdmissionMetrics {
    /// A step with all its plugins is done.
    pub fn step(&self, step: Step, operation: Operation, refused: bool, took: Duration) {
        self.steps.observe(step, operation, refused, took);
        self.summaries.observe(step, operation, refused, took);
    }

    pub fn webhook(&self, asked: &Asked<'_>) {
        let (name, operation, step) = (asked.webhook, asked.operation.name(), asked.step);
        let code = asked.code.min(MAX_CODE).to_string();
        if let Some(error_type) = asked.refused {
            self.webhook_rejections.count(&[error_type, name, operation, &code, step]);
        }
        let rejected = if asked.refused.is_some() { "true" } else { "false" };
        self.webhook_requests.count(&[&code, name, operation, rejected, step]);
        self.webhooks.observe(&[name, operation, rejected, step], &WEBHOOK_BOUNDS, asked.took);
    }

    /// A webhook failed and its policy lets the request pass.
    pub fn webhook_passed_over(&self, webhook: &str, step: &str) {
        self.webhooks_passed_over.count(&[webhook, step]);
    }

    /// Match conditions kept their owner from being asked.
    pub fn conditions(&self, owner: &Owner, operation: Operation, took: Duration) {
        let labels = [owner.kind, &owner.name, operation.name(), owner.step];
        self.conditions.observe(&labels, &CONDITION_BOUNDS, took);
    }

    pub fn condition_failed(&self, owner: &Owner, operation: Operation) {
        self.condition_errors.count(&[owner.kind, &owner.name, operation.name(), owner.step]);
    }

    /// A webhook is not asked, as a condition of it does not hold.
    pub fn condition_excluded(&self, owner: &Owner, operation: Operation) {
        self.condition_exclusions.count(&[owner.kind, &owner.name, operation.name(), owner.step]);
    }

    /// A validation did not hold, or failed; `action` is what was done about it.
    pub fn validating_policy(&self, [policy, binding]: [&str; 2], action: &str, message: &str, took: Duration) {
        let labels = [action, error_type(message), policy, binding];
        self.validating_policies.observe(&labels, &POLICY_BOUNDS, took);
    }

    /// A policy changed what it had to, or failed to.
    pub fn mutating_policy(&self, [policy, binding]: [&str; 2], failure: Option<&str>, took: Duration) {
        let labels = [failure.map_or("no_error", error_type), policy, binding];
        self.mutating_policies.observe(&labels, &POLICY_BOUNDS, took);
    }
}

/// Upstream goes by the message too.
fn error_type(message: &str) -> &'static str {
    if message.starts_with("compilation") {
        "compile_error"
    } else if message.starts_with("validation failed due to running out of cost budget") {
        "out_of_budget"
    } else {
        "invalid_error"
    }
}

/// The metrics' part of the page.
pub fn write(server: &ApiServer, page: &mut Page) {
    let metrics = &server.metrics.admission;
    let name = "apiserver_admission_step_admission_duration_seconds";
    let broken_out = "broken out for each operation and API resource and";
    let help = format!(
        "[STABLE] Admission sub-step latency histogram in seconds, {broken_out} step type (validate or admit)."
    );
    metrics.steps.write(&mut page.family(name, &help, "histogram"), &[]);
    let help =
        format!("[ALPHA] Admission sub-step latency summary in seconds, {broken_out} step type (validate or admit).");
    metrics.summaries.write(&mut page.family(&format!("{name}_summary"), &help, "summary"));
    let name = "apiserver_admission_controller_admission_duration_seconds";
    let help = format!(
        "[STABLE] Admission controller latency histogram in seconds, identified by name and {broken_out} type (validate or admit)."
    );
    let mut family = page.family(name, &help, "histogram");
    for row in &server.admission {
        row.timings.write(&mut family, &[("name", row.plugin.name())]);
    }
    metrics.quotas.write(&mut family, &[("name", "ResourceQuota")]);
    write_webhooks(metrics, page);
    write_conditions(metrics, page);
    write_policies(metrics, page);
}

fn write_webhooks(metrics: &AdmissionMetrics, page: &mut Page) {
    let broken_out = "identified by name and broken out for each";
    let name = "apiserver_admission_webhook_admission_duration_seconds";
    let help = format!(
        "[STABLE] Admission webhook latency histogram in seconds, {broken_out} operation and API resource and type (validate or admit)."
    );
    histograms(page, (name, &help), ["name", "operation", "rejected", "type"], &metrics.webhooks, &WEBHOOK_BOUNDS);
    let name = "apiserver_admission_webhook_rejection_count";
    let help = format!(
        "[ALPHA] Admission webhook rejection count, {broken_out} admission type (validating or admit) and operation. Additional labels specify an error type (calling_webhook_error or apiserver_internal_error if an error occurred; no_error otherwise) and optionally a non-zero rejection code if the webhook rejects the request with an HTTP status code (honored by the apiserver when the code is greater or equal to 400). Codes greater than 600 are truncated to 600, to keep the metrics cardinality bounded."
    );
    let labels = ["error_type", "name", "operation", "rejection_code", "type"];
    counters(page, (name, &help), labels, &metrics.webhook_rejections);
    let name = "apiserver_admission_webhook_fail_open_count";
    let help = format!("[ALPHA] Admission webhook fail open count, {broken_out} admission type (validating or admit).");
    counters(page, (name, &help), ["name", "type"], &metrics.webhooks_passed_over);
    let name = "apiserver_admission_webhook_request_total";
    let help = format!(
        "[ALPHA] Admission webhook request total, {broken_out} admission type (validating or admit) and operation. Additional labels specify whether the request was rejected or not and an HTTP status code. Codes greater than 600 are truncated to 600, to keep the metrics cardinality bounded."
    );
    counters(page, (name, &help), ["code", "name", "operation", "rejected", "type"], &metrics.webhook_requests);
}

fn write_conditions(metrics: &AdmissionMetrics, page: &mut Page) {
    let labels = ["kind", "name", "operation", "type"];
    let each = "each kind containing matchConditions (webhook or policy), operation and";
    let of_resource = format!(
        "identified by name of resource containing the match condition and broken out for {each} admission type (validate or admit)."
    );
    let name = "apiserver_admission_match_condition_evaluation_errors_total";
    let help = format!("[ALPHA] Admission match condition evaluation errors count, {of_resource}");
    counters(page, (name, &help), labels, &metrics.condition_errors);
    let name = "apiserver_admission_match_condition_exclusions_total";
    let help = format!("[ALPHA] Admission match condition evaluation exclusions count, {of_resource}");
    counters(page, (name, &help), labels, &metrics.condition_exclusions);
    let name = "apiserver_admission_match_condition_evaluation_seconds";
    let help = format!(
        "[ALPHA] Admission match condition evaluation time in seconds, identified by name and broken out for {each} type (validate or admit)."
    );
    histograms(page, (name, &help), labels, &metrics.conditions, &CONDITION_BOUNDS);
}

fn write_policies(metrics: &AdmissionMetrics, page: &mut Page) {
    let name = "apiserver_validating_admission_policy_check";
    let labels = ["enforcement_action", "error_type", "policy", "policy_binding"];
    let help = "[BETA] Validation admission policy check total, labeled by policy and further identified by binding and enforcement action taken.";
    totals(page, (&format!("{name}_total"), help), labels, &metrics.validating_policies);
    let help = "[BETA] Validation admission latency for individual validation expressions in seconds, labeled by policy and further including binding and enforcement action taken.";
    let seconds = format!("{name}_duration_seconds");
    histograms(page, (&seconds, help), labels, &metrics.validating_policies, &POLICY_BOUNDS);
    let name = "apiserver_mutating_admission_policy_check";
    let labels = ["error_type", "policy", "policy_binding"];
    let help = "[ALPHA] Mutation admission policy check total, labeled by policy and further identified by binding.";
    totals(page, (&format!("{name}_total"), help), labels, &metrics.mutating_policies);
    let help = "[ALPHA] Mutation admission latency for individual mutation expressions in seconds, labeled by policy and binding.";
    let seconds = format!("{name}_duration_seconds");
    histograms(page, (&seconds, help), labels, &metrics.mutating_policies, &POLICY_BOUNDS);
}

fn with<'a, const N: usize>(names: [&'a str; N], values: &'a [String]) -> Vec<(&'a str, &'a str)> {
    names.into_iter().zip(values.iter().map(String::as_str)).collect()
}

/// A metric of which nothing was observed yet is left out, as upstream does.
fn counters<const N: usize>(page: &mut Page, (name, help): (&str, &str), labels: [&str; N], table: &Table<u64>) {
    let rows = table.0.lock();
    if rows.is_empty() {
        return;
    }
    let mut family = page.family(name, help, "counter");
    rows.iter().for_each(|(values, count)| family.value(&with(labels, values), *count as f64));
}

/// How often something was observed.
fn totals<const N: usize>(page: &mut Page, (name, help): (&str, &str), labels: [&str; N], table: &Table<Distribution>) {
    let rows = table.0.lock();
    if rows.is_empty() {
        return;
    }
    let mut family = page.family(name, help, "counter");
    for (values, row) in rows.iter() {
        family.value(&with(labels, values), row.counts.iter().sum::<u64>() as f64);
    }
}

fn histograms<const N: usize>(
    page: &mut Page,
    (name, help): (&str, &str),
    labels: [&str; N],
    table: &Table<Distribution>,
    bounds: &[f64],
) {
    let rows = table.0.lock();
    if rows.is_empty() {
        return;
    }
    let mut family = page.family(name, help, "histogram");
    rows.iter().for_each(|(values, row)| family.histogram(&with(labels, values), bounds, &row.counts, row.sum));
}

/// What the steps' own labels are called, after a name.
fn step_labels<'a>(
    first: &[(&'a str, &'a str)],
    (step, operation, refused): (Step, Operation, bool),
) -> Vec<(&'a str, &'a str)> {
    let rejected = if refused { "true" } else { "false" };
    let own = [("operation", operation.name()), ("rejected", rejected), ("type", step.name())];
    first.iter().copied().chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn webhooks() {
        let metrics = AdmissionMetrics::default();
        let asked = |code, refused| Asked {
            webhook: "w",
            step: "admit",
            operation: Operation::Create,
            took: 20 * MS,
            code,
            refused,
        };
        metrics.webhook(&asked(200, None));
        metrics.webhook(&asked(999, Some("no_error")));
        metrics.webhook_passed_over("w", "validating");
        let mut page = Page::default();
        write_webhooks(&metrics, &mut page);
        let page = page.finish();
        for line in [
            r#"apiserver_admission_webhook_admission_duration_seconds_bucket{name="w",operation="CREATE",rejected="false",type="admit",le="0.025"} 1"#,
            r#"apiserver_admission_webhook_admission_duration_seconds_bucket{name="w",operation="CREATE",rejected="false",type="admit",le="0.005"} 0"#,
            r#"apiserver_admission_webhook_rejection_count{error_type="no_error",name="w",operation="CREATE",rejection_code="600",type="admit"} 1"#,
            r#"apiserver_admission_webhook_fail_open_count{name="w",type="validating"} 1"#,
            r#"apiserver_admission_webhook_request_total{code="200",name="w",operation="CREATE",rejected="false",type="admit"} 1"#,
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }

    #[test]
    fn policies_and_conditions() {
        let metrics = AdmissionMetrics::default();
        let owner = Owner { name: "o".to_owned(), kind: "webhook", step: "validating" };
        metrics.conditions(&owner, Operation::Update, 2 * MS);
        metrics.condition_failed(&owner, Operation::Update);
        metrics.validating_policy(["p", "b"], "deny", "compilation failed: x", MS / 2);
        metrics.mutating_policy(["p", "b"], None, MS / 2);
        let mut page = Page::default();
        write_conditions(&metrics, &mut page);
        write_policies(&metrics, &mut page);
        let page = page.finish();
        for line in [
            r#"apiserver_admission_match_condition_evaluation_errors_total{kind="webhook",name="o",operation="UPDATE",type="validating"} 1"#,
            r#"apiserver_admission_match_condition_evaluation_seconds_bucket{kind="webhook",name="o",operation="UPDATE",type="validating",le="0.005"} 1"#,
            r#"apiserver_validating_admission_policy_check_total{enforcement_action="deny",error_type="compile_error",policy="p",policy_binding="b"} 1"#,
            r#"apiserver_mutating_admission_policy_check_duration_seconds_count{error_type="no_error",policy="p",policy_binding="b"} 1"#,
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        assert!(!page.contains("exclusions"), "nothing was excluded\n{page}");
    }
}
