//! What authorizers decide and what webhooks cost, under upstream's names (`apiserver/pkg/authorization/{metrics,cel}`,
//! `apiserver/plugin/pkg/authorizer/webhook/metrics`).

use isopod_auth::Decision;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::OnceLock;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    r#type: &'static str,
    name: String,
    decision: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AuthorizerLabels {
    r#type: &'static str,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    name: String,
    result: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Go's default buckets.
const CALL_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const CONDITION_BUCKETS: [f64; 7] = [0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25];

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    Success,
    Error,
    Timeout,
    /// Nobody waits for the answer any more.
    Canceled,
}

impl CallResult {
    fn name(self) -> &'static str {
        match self {
            CallResult::Success => "success",
            CallResult::Error => "error",
            CallResult::Timeout => "timeout",
            CallResult::Canceled => "canceled",
        }
    }
}

/// Cheap to clone: all clones count into the same metrics.
#[derive(Clone)]
pub struct AuthorizationMetrics {
    decisions: Family<DecisionLabels, Counter>,
    calls: Family<CallLabels, Counter>,
    durations: Histograms<CallLabels>,
    fail_open: Family<CallLabels, Counter>,
    condition_errors: Family<AuthorizerLabels, Counter>,
    exclusions: Family<AuthorizerLabels, Counter>,
    condition_seconds: Histograms<AuthorizerLabels>,
}

impl Default for AuthorizationMetrics {
    fn default() -> Self {
        AuthorizationMetrics {
            decisions: Family::default(),
            calls: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(CALL_BUCKETS)),
            fail_open: Family::default(),
            condition_errors: Family::default(),
            exclusions: Family::default(),
            condition_seconds: Family::new_with_constructor(|| Histogram::new(CONDITION_BUCKETS)),
        }
    }
}

/// What one authorizer decides.
pub struct Decisions {
    metrics: AuthorizationMetrics,
    kind: &'static str,
    name: String,
    allowed: OnceLock<Counter>,
    denied: OnceLock<Counter>,
}

impl Decisions {
    pub fn count(&self, decision: &Decision) {
        let (counter, decision) = match decision {
            Decision::NoOpinion(_) => return,
            Decision::Allow(_) => (&self.allowed, "allowed"),
            Decision::Deny(_) => (&self.denied, "denied"),
        };
        let made = || {
            let labels = DecisionLabels { r#type: self.kind, name: self.name.clone(), decision };
            self.metrics.decisions.get_or_create(&labels).clone()
        };
        counter.get_or_init(made).inc();
    }
}

impl AuthorizationMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let prefixed = registry.sub_registry_with_prefix("apiserver_authorization");
        let help =
            "Total number of terminal decisions made by an authorizer split by authorizer type, name, and decision";
        prefixed.register("decisions", help, self.decisions.clone());
        prefixed.register("webhook_evaluations", "Round-trips to authorization webhooks", self.calls.clone());
        prefixed.register("webhook_duration_seconds", "Request latency in seconds", self.durations.clone());
        let help = "NoOpinion results due to webhook timeout or error";
        prefixed.register("webhook_evaluations_fail_open", help, self.fail_open.clone());
        let help = "Total number of errors when an authorization webhook encounters a match condition error \
                    split by authorizer type and name";
        prefixed.register("match_condition_evaluation_errors", help, self.condition_errors.clone());
        let help = "Total number of exclusions when an authorization webhook is skipped because match conditions \
                    exclude it";
        prefixed.register("match_condition_exclusions", help, self.exclusions.clone());
        let help = "Authorization match condition evaluation time in seconds, split by authorizer type and name";
        prefixed.register("match_condition_evaluation_seconds", help, self.condition_seconds.clone());
    }

    pub fn decisions(&self, kind: &'static str, name: &str) -> Decisions {
        let (allowed, denied) = (OnceLock::new(), OnceLock::new());
        Decisions { metrics: self.clone(), kind, name: name.to_owned(), allowed, denied }
    }

    /// A webhook was called, or could not be.
    pub fn called(&self, name: &str, result: CallResult, took: Duration) {
        let labels = CallLabels { name: name.to_owned(), result: result.name() };
        self.calls.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A webhook that could not be asked was passed over.
    pub fn failed_open(&self, name: &str, result: CallResult) {
        self.fail_open.get_or_create(&CallLabels { name: name.to_owned(), result: result.name() }).inc();
    }

    /// A webhook's conditions were looked at.
    pub fn conditions(&self, name: &str, held: &Result<bool, String>, took: Duration) {
        let labels = AuthorizerLabels { r#type: "Webhook", name: name.to_owned() };
        self.condition_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        match held {
            Ok(true) => {}
            Ok(false) => {
                self.exclusions.get_or_create(&labels).inc();
            }
            Err(_) => {
                self.condition_errors.get_or_create(&labels).inc();
            }
        }
    }
}
