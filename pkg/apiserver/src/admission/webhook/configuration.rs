//! One webhook of a configuration.

use crate::admission::expressions::Conditions;
use crate::admission::matching::Criteria;
use crate::admission::metrics::Owner;
use crate::callout::Callout;
use isopod_kinds::access::Access;
use serde_json::Value;
use std::time::Duration;

pub struct Hook {
    /// Unique among all: configuration, name, and which of that name.
    pub id: String,
    pub name: String,
    pub configuration: String,
    pub criteria: Criteria,
    pub conditions: Conditions,
    /// Is called for dry runs.
    pub dry_run: bool,
    pub timeout: Duration,
    /// `failurePolicy: Ignore`.
    pub ignores_failure: bool,
    pub review_versions: Vec<String>,
    /// `reinvocationPolicy: IfNeeded`.
    pub reinvocable: bool,
    pub callout: Result<Callout, String>,
}

impl Hook {
    fn new(configuration: &str, index: usize, hook: &Value, step: &'static str) -> Self {
        let text = |key: &str| hook.text(key);
        let ignores_failure = text("failurePolicy") == "Ignore";
        let owner = Owner { name: text("name").to_owned(), kind: "webhook", step };
        Hook {
            id: format!("{configuration}/{}/{index}", text("name")),
            name: text("name").to_owned(),
            configuration: configuration.to_owned(),
            criteria: Criteria::of_webhook(hook),
            conditions: Conditions::new(hook.list("matchConditions"), ignores_failure, owner),
            dry_run: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(10)),
            ignores_failure,
            review_versions: hook.texts("admissionReviewVersions").into_iter().map(str::to_owned).collect(),
            reinvocable: text("reinvocationPolicy") == "IfNeeded",
            callout: Callout::new(&hook["clientConfig"]),
        }
    }
}

/// `step`: what metrics call webhooks of the sort.
pub fn hooks(configuration: &Value, step: &'static str) -> Vec<Hook> {
    let name = configuration.text("metadata.name");
    let hooks = configuration.list("webhooks").iter().enumerate();
    hooks.map(|(i, hook)| Hook::new(name, i, hook, step)).collect()
}
