//! Who came, and who was let in (`apiserver/pkg/endpoints/filters/metrics.go`).

use crate::authorization::Verdict;
use isopod_auth::Decision;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UserLabels {
    username: &'static str,
}

/// From none to a year, in seconds.
const LIFETIMES: [f64; 14] = [
    0.0,
    1800.0,
    3600.0,
    7200.0,
    21600.0,
    43200.0,
    86400.0,
    172_800.0,
    345_600.0,
    604_800.0,
    2_592_000.0,
    7_776_000.0,
    15_552_000.0,
    31_104_000.0,
];

/// Each a double of the one before, from a millisecond.
fn doubles() -> Histogram {
    Histogram::new((0..15).map(|n| 0.001 * f64::from(1 << n)))
}

struct Attempts {
    counts: Family<ResultLabels, Counter>,
    durations: Family<ResultLabels, Histogram, fn() -> Histogram>,
}

impl Attempts {
    fn new() -> Self {
        Attempts { counts: Family::default(), durations: Family::new_with_constructor(doubles) }
    }

    fn count(&self, result: &'static str, took: Duration) {
        let labels = ResultLabels { result };
        self.counts.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

pub struct AttemptMetrics {
    users: Family<UserLabels, Counter>,
    authentication: Attempts,
    authorization: Attempts,
    certificates: Histogram,
}

/// What became of credentials.
pub enum Shown<'a> {
    Good { user: &'a str },
    Bad,
    None,
}

impl AttemptMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let made = AttemptMetrics {
            users: Family::default(),
            authentication: Attempts::new(),
            authorization: Attempts::new(),
            certificates: Histogram::new(LIFETIMES),
        };
        let help = "[ALPHA] Counter of authenticated requests broken out by username";
        registry.register("authenticated_user_requests", help, made.users.clone());
        let help = "[ALPHA] Counter of authenticated attempts";
        registry.register("authentication_attempts", help, made.authentication.counts.clone());
        let help = "[ALPHA] Authentication duration in seconds broken out by result";
        registry.register("authentication_duration_seconds", help, made.authentication.durations.clone());
        let help = "[ALPHA] Counter of authorization attempts broken down by result. It can be either 'allowed', \
                    'denied', 'no-opinion' or 'error'";
        registry.register("authorization_attempts", help, made.authorization.counts.clone());
        let help = "[ALPHA] Authorization duration in seconds broken out by result";
        registry.register("authorization_duration_seconds", help, made.authorization.durations.clone());
        let help = "[ALPHA] Distribution of the remaining lifetime on the certificate used to authenticate a request.";
        registry.register("apiserver_client_certificate_expiration_seconds", help, made.certificates.clone());
        made
    }

    /// A request was authenticated by a certificate that is good for so long.
    pub fn certificate(&self, remaining: f64) {
        self.certificates.observe(remaining);
    }

    pub fn authenticated(&self, shown: &Shown<'_>, took: Duration) {
        let result = match shown {
            Shown::Good { user } => {
                self.users.get_or_create(&UserLabels { username: kind_of_name(user) }).inc();
                "success"
            }
            Shown::Bad => "error",
            Shown::None => "failure",
        };
        self.authentication.count(result, took);
    }

    pub fn authorized(&self, verdict: &Verdict, took: Duration) {
        let result = match (&verdict.decision, verdict.error.is_empty()) {
            (Decision::Allow(_), _) => "allowed",
            (_, false) => "error",
            (Decision::Deny(_), _) => "denied",
            (Decision::NoOpinion(_), _) => "no-opinion",
        };
        self.authorization.count(result, took);
    }
}

/// Names are not for metrics, and there are too many.
fn kind_of_name(user: &str) -> &'static str {
    const KNOWN: [&str; 5] = ["admin", "client", "kube_proxy", "kubelet", "system:serviceaccount:kube-system:default"];
    let known = KNOWN.into_iter().find(|k| *k == user);
    known.unwrap_or(if user.contains('@') { "email_id" } else { "other" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_few() {
        for (user, kind) in [("kubelet", "kubelet"), ("a@b", "email_id"), ("system:node:x", "other")] {
            assert_eq!(kind_of_name(user), kind);
        }
    }
}
