//! Empties namespaces that are being deleted, then lets them go.
//!
//! Watches namespaces and pods; deletes everything in a terminating namespace (pods first, for as long as any is left),
//! writes the namespace's conditions and takes the finalizer `kubernetes` off `spec.finalizers`. Invariant: the finalizer
//! goes only after one pass in which every resource was listed and found empty.

use crate::controller::{Context, Controller, Error, Key};
use async_trait::async_trait;
use isopod_api::time;
use isopod_base::errors::Chain;
use isopod_client::discovery::{self, Discovered};
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Condition, MetaOnly, Namespace, Pod};
use isopod_client::{Change, Delete, Informer, ListScope, Preconditions, Propagation};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const FINALIZER: &str = "kubernetes";
/// When to look again at objects that wait for someone's finalizer.
const FINALIZER_WAIT: Duration = Duration::from_secs(5);

struct Namespaces {
    context: Context,
    namespaces: Informer<Namespace>,
}

pub async fn run(context: Context) {
    let namespaces = context.informer::<Namespace>(Namespace::resource());
    let pods = context.informer::<Pod>(Pod::resource());
    namespaces.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&namespaces, &queue);
    let (known, again) = (namespaces.clone(), queue.clone());
    context.feed(&pods, move |change| {
        if let Change::Deleted(pod) = change
            && known.get("", &pod.metadata.namespace).is_some_and(|n| n.metadata.is_being_deleted())
        {
            again.add(Key::new("", &pod.metadata.namespace));
        }
    });
    let controller = Arc::new(Namespaces { context: context.clone(), namespaces });
    context.work(controller, queue, 5).await;
}

/// What a pass over the content found.
#[derive(Debug, Default, PartialEq)]
struct Found {
    discovery_error: Option<String>,
    deletion_errors: Vec<String>,
    /// Objects left, by `resource.group`.
    remaining: BTreeMap<String, usize>,
    /// Objects left, by finalizer.
    finalizers: BTreeMap<String, usize>,
    /// Only pods were looked at: others wait until they are gone.
    pods_only: bool,
}

impl Found {
    fn is_clean(&self) -> bool {
        self.discovery_error.is_none() && self.deletion_errors.is_empty() && self.remaining.is_empty()
    }

    fn left(&self) -> usize {
        self.remaining.values().sum()
    }

    fn add(&mut self, what: &Discovered, left: &[MetaOnly]) {
        if left.is_empty() {
            return;
        }
        let gvr = &what.resource.gvr;
        self.remaining.insert(format!("{}.{}", gvr.resource, gvr.group), left.len());
        for finalizer in left.iter().flat_map(|o| &o.metadata.finalizers) {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }

    /// Type, reason and message of each condition that is true.
    fn true_conditions(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut all = Vec::new();
        if let Some(e) = &self.discovery_error {
            all.push(("NamespaceDeletionDiscoveryFailure", "DiscoveryFailed", e.clone()));
        }
        if !self.deletion_errors.is_empty() {
            let mut errors = self.deletion_errors.clone();
            errors.sort();
            let text =
                format!("Failed to delete all resource types, {} remaining: {}", errors.len(), errors.join(", "));
            all.push(("NamespaceDeletionContentFailure", "ContentDeletionFailed", text));
        }
        let list = |counts: &BTreeMap<String, usize>, verb: &str| {
            counts.iter().map(|(k, n)| format!("{k} {verb} {n} resource instances")).collect::<Vec<_>>().join(", ")
        };
        // While pods are left, upstream's first pass reports only failures.
        if !self.pods_only && !self.remaining.is_empty() {
            let text = format!("Some resources are remaining: {}", list(&self.remaining, "has"));
            all.push(("NamespaceContentRemaining", "SomeResourcesRemain", text));
        }
        if !self.pods_only && !self.finalizers.is_empty() {
            let text =
                format!("Some content in the namespace has finalizers remaining: {}", list(&self.finalizers, "in"));
            all.push(("NamespaceFinalizersRemaining", "SomeFinalizersRemain", text));
        }
        all
    }
}

/// Type, reason and message of each condition when nothing is wrong, in upstream's order.
const FALSE_CONDITIONS: [(&str, &str, &str); 5] = [
    ("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
    ("NamespaceDeletionGroupVersionParsingFailure", "ParsedGroupVersions", "All legacy kube types successfully parsed"),
    (
        "NamespaceDeletionContentFailure",
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    ),
    ("NamespaceContentRemaining", "ContentRemoved", "All content successfully removed"),
    ("NamespaceFinalizersRemaining", "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
];

/// The conditions after a pass; `None` when they are as before.
fn conditions(before: &[Condition], found: &Found, now: Timestamp) -> Option<Vec<Condition>> {
    let mut after = before.to_vec();
    let wrong = found.true_conditions();
    for (kind, reason, message) in FALSE_CONDITIONS {
        let (status, reason, message) = match wrong.iter().find(|(k, _, _)| *k == kind) {
            Some((_, reason, message)) => ("True", *reason, message.clone()),
            None => ("False", reason, message.to_owned()),
        };
        let changed_at = Some(time::format(now));
        match after.iter_mut().find(|c| c.kind == kind) {
            Some(c) => {
                if c.status != status {
                    c.last_transition_time = changed_at;
                }
                (c.status, c.reason, c.message) = (status.into(), reason.into(), message);
            }
            None => after.push(Condition {
                kind: kind.into(),
                status: status.into(),
                reason: reason.into(),
                message,
                last_transition_time: changed_at,
                ..Condition::default()
            }),
        }
    }
    (after != before).then_some(after)
}

#[async_trait]
impl Controller for Namespaces {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let calls = self.context.calls(Namespace::resource());
        match self.namespaces.get("", &key.name) {
            Some(n) if n.metadata.is_being_deleted() => {}
            _ => return Ok(None),
        }
        // A deletion is not decided on a stale copy.
        let Some(namespace) = calls.find::<Namespace>("", &key.name).await? else { return Ok(None) };
        if !namespace.metadata.is_being_deleted() || !namespace.spec.finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(None);
        }
        let guard = Preconditions::uid(&namespace.metadata.uid);
        if namespace.status.phase != "Terminating" {
            let change = json!({"status": {"phase": "Terminating"}});
            calls.modify("", &key.name, Some("status"), &change, &guard).await?;
        }
        let found = self.delete_content(&key.name).await;
        if let Some(after) = conditions(&namespace.status.conditions, &found, self.context.clock.now()) {
            let list: Vec<Value> = after.iter().map(condition_json).collect();
            let change = json!({"status": {"conditions": list}});
            calls.modify("", &key.name, Some("status"), &change, &guard).await?;
        }
        if found.is_clean() {
            return self.finalize(&namespace).await.map(|()| None);
        }
        // Pods wake us when they are gone. Others that wait for a finalizer are looked at now and then.
        if found.pods_only || !found.finalizers.is_empty() {
            return Ok(Some(FINALIZER_WAIT));
        }
        Err(Error::ContentLeft(found.left()))
    }
}

fn condition_json(c: &Condition) -> Value {
    json!({"type": c.kind, "status": c.status, "reason": c.reason, "message": c.message,
           "lastTransitionTime": c.last_transition_time})
}

/// Upstream's words for groups whose servers do not answer; `None`: all do. Their objects may be left, so the namespace stays.
fn stale_groups(stale: &[String]) -> Option<String> {
    let each: Vec<String> = stale.iter().map(|gv| format!("{gv}: stale GroupVersion discovery: {gv}")).collect();
    let told = each.join(", ");
    (!stale.is_empty()).then(|| {
        let n = stale.len();
        format!(
            "Discovery failed for some groups, {n} failing: unable to retrieve the complete list of server APIs: {told}"
        )
    })
}

impl Namespaces {
    async fn delete_content(&self, namespace: &str) -> Found {
        let mut found = Found::default();
        let mut resources = match discovery::discover(&self.context.client).await {
            Ok((all, stale)) => {
                found.discovery_error = stale_groups(&stale);
                all
            }
            Err(e) => {
                found.discovery_error = Some(Chain(&e).to_string());
                return found;
            }
        };
        resources.retain(|r| r.resource.namespaced && r.can("delete"));
        let is_pods = |r: &Discovered| r.resource == Pod::resource();
        if let Some(pods) = resources.iter().find(|r| is_pods(r)) {
            self.delete_all(pods, namespace, &mut found).await;
            if !found.remaining.is_empty() {
                found.pods_only = true;
                return found;
            }
        }
        for resource in resources.iter().filter(|r| !is_pods(r)) {
            self.delete_all(resource, namespace, &mut found).await;
        }
        found
    }

    /// Deletes all objects of one resource and counts those that are left.
    async fn delete_all(&self, what: &Discovered, namespace: &str, found: &mut Found) {
        match self.try_delete_all(what, namespace).await {
            Ok(left) => found.add(what, &left),
            // The resource was taken out of service meanwhile, or cannot be asked this.
            Err(e) if e.is_not_found() || e.status().is_some_and(|s| s.code == 405) => {}
            Err(e) => found.deletion_errors.push(Chain(&e).to_string()),
        }
    }

    async fn try_delete_all(&self, what: &Discovered, namespace: &str) -> Result<Vec<MetaOnly>, isopod_client::Error> {
        let calls = self.context.calls(what.resource.clone());
        let scope = ListScope::namespace(namespace);
        let options = Delete { propagation: Some(Propagation::Background), ..Delete::default() };
        if !what.can("list") {
            if what.can("deletecollection") {
                calls.delete_collection(&scope, &options).await?;
            }
            return Ok(Vec::new());
        }
        let present = calls.list_metadata(&scope).await?;
        if present.is_empty() {
            return Ok(present);
        }
        if what.can("deletecollection") {
            calls.delete_collection(&scope, &options).await?;
        } else {
            for object in &present {
                match calls.delete(namespace, &object.metadata.name, &options).await {
                    Err(e) if !e.is_not_found() => return Err(e),
                    _ => {}
                }
            }
        }
        calls.list_metadata(&scope).await
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), Error> {
        let calls = self.context.calls(Namespace::resource());
        let Some(mut object) = calls.find::<Value>("", &namespace.metadata.name).await? else { return Ok(()) };
        if object["metadata"]["uid"] != json!(namespace.metadata.uid) {
            return Ok(());
        }
        if let Some(finalizers) = object["spec"]["finalizers"].as_array_mut() {
            finalizers.retain(|f| f != FINALIZER);
        }
        match calls.update::<Value>("", &namespace.metadata.name, Some("finalize"), &object).await {
            Err(e) if !e.is_not_found() => Err(e.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_client::Resource;

    #[test]
    fn conditions_say_what_is_left() {
        let now = Timestamp::UNIX_EPOCH;
        let left: Vec<MetaOnly> =
            serde_json::from_value(json!([{"metadata": {"finalizers": ["x/y"]}}, {"metadata": {}}])).unwrap();
        let mut found = Found::default();
        let what = Discovered {
            resource: Resource::namespaced("apps", "v1", "deployments"),
            singular: "deployment".into(),
            kind: "Deployment".into(),
            verbs: vec![],
        };
        found.add(&what, &left);
        let after = conditions(&[], &found, now).unwrap();
        let shown: Vec<String> =
            after.iter().map(|c| format!("{}={} {}: {}", c.kind, c.status, c.reason, c.message)).collect();
        assert_eq!(
            shown[3..],
            [
                "NamespaceContentRemaining=True SomeResourcesRemain: Some resources are remaining: deployments.apps has 2 resource instances",
                "NamespaceFinalizersRemaining=True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: x/y in 1 resource instances",
            ]
        );
        assert_eq!(
            shown[0],
            "NamespaceDeletionDiscoveryFailure=False ResourcesDiscovered: All resources successfully discovered"
        );
        assert_eq!(conditions(&after, &found, now), None, "unchanged: not written");
        assert!(!found.is_clean() && Found::default().is_clean());
    }
}
