//! What the webhook configurations say, ready for use. It is made anew when they change, not for each request.

use super::rules::Rule;
use crate::ApiServer;
use crate::cache::entry::Entry;
use crate::callout::Callout;
use isopod_api::Status;
use isopod_api::selector::LabelSelector;
use isopod_kinds::access::Access;
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// One webhook of a configuration.
pub struct Hook {
    /// Unique among all: configuration, name, and which of that name.
    pub id: String,
    pub name: String,
    pub rules: Vec<Rule>,
    /// `matchPolicy: Equivalent`: other versions of what the rules name count too.
    pub equivalent: bool,
    pub namespaces: LabelSelector,
    pub objects: LabelSelector,
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
    fn new(configuration: &str, index: usize, hook: &Value) -> Self {
        let text = |key: &str| hook.text(key);
        let selector =
            |key: &str| LabelSelector::from_object(hook.get(key)).unwrap_or_else(|_| LabelSelector::nothing());
        Hook {
            id: format!("{configuration}/{}/{index}", text("name")),
            name: text("name").to_owned(),
            rules: hook.list("rules").iter().map(Rule::new).collect(),
            equivalent: text("matchPolicy") != "Exact",
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
            dry_run: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(10)),
            ignores_failure: text("failurePolicy") == "Ignore",
            review_versions: hook
                .list("admissionReviewVersions")
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            reinvocable: text("reinvocationPolicy") == "IfNeeded",
            callout: Callout::new(&hook["clientConfig"]),
        }
    }
}

/// The webhooks of one kind of configuration, in the order in which they are called.
pub struct Configurations {
    resource: &'static str,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// From these objects …
    entries: Vec<Arc<Entry>>,
    /// … came these webhooks.
    hooks: Arc<Vec<Hook>>,
}

impl Configurations {
    pub fn new(resource: &'static str) -> Self {
        Configurations { resource, known: Mutex::default() }
    }

    /// As they are committed by now.
    pub async fn hooks(&self, server: &ApiServer) -> Result<Arc<Vec<Hook>>, Status> {
        let kind = server.registry.load().resource("admissionregistration.k8s.io", self.resource).cloned();
        let Some(kind) = kind else { return Ok(Arc::default()) };
        let cache = server.hub.cache(&kind).await?;
        server.hub.fresh().await?;
        let snapshot = cache.snapshot();
        let mut known = self.known.lock();
        let same = snapshot.entries.len() == known.entries.len()
            && snapshot.entries.values().zip(&known.entries).all(|(a, b)| Arc::ptr_eq(a, b));
        if !same {
            let entries: Vec<Arc<Entry>> = snapshot.entries.values().cloned().collect();
            known.hooks = Arc::new(entries.iter().flat_map(|e| hooks_of(&e.value())).collect());
            known.entries = entries;
        }
        Ok(known.hooks.clone())
    }
}

fn hooks_of(configuration: &Value) -> Vec<Hook> {
    let name = configuration.text("metadata.name");
    let hooks = configuration.list("webhooks").iter().enumerate();
    hooks.map(|(i, hook)| Hook::new(name, i, hook)).collect()
}
