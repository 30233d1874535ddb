//! Says in the status of a ValidatingAdmissionPolicy which of its expressions do not fit the kinds that it matches.
//!
//! Watches policies; reads discovery and OpenAPI documents, once for each change of a policy; applies `status`. Invariant: a
//! kind of which the server tells no schema is left out, and the policy counts as looked at.

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use async_trait::async_trait;
use isopod_api::{GroupVersion, Gvk, Gvr};
use isopod_client::discovery::{self, Discovered};
use isopod_client::queue::WorkQueue;
use isopod_client::views::ValidatingAdmissionPolicy;
use isopod_client::{Informer, Patch};
use isopod_kinds::policy_types::{MOST_KINDS, Typed, resources, warnings};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const MANAGER: &str = "validatingadmissionpolicy-status";

struct PolicyStatus {
    context: Context,
    policies: Informer<ValidatingAdmissionPolicy>,
}

pub async fn run(context: Context) {
    let policies = context.informer::<ValidatingAdmissionPolicy>(ValidatingAdmissionPolicy::resource());
    policies.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&policies, &queue);
    let controller = Arc::new(PolicyStatus { context: context.clone(), policies });
    context.work(controller, queue, 1).await;
}

/// The kinds of what the rules name, by group, version and kind; not all of a policy with many.
fn kinds(rules: &[Vec<Gvr>], served: &[Discovered]) -> BTreeSet<(String, String, String)> {
    let mut kinds = BTreeSet::new();
    for rule in rules {
        let named = rule.iter().flat_map(|named| served.iter().filter(|s| is_named(s, named)));
        let mut left = MOST_KINDS;
        for found in named {
            let gvr = &found.resource.gvr;
            kinds.insert((gvr.group.clone(), gvr.version.clone(), found.kind.clone()));
            left -= 1;
            if left == 0 {
                return kinds;
            }
        }
    }
    kinds
}

/// As upstream's REST mapper finds resources: without a group, in any.
fn is_named(served: &Discovered, named: &Gvr) -> bool {
    let gvr = &served.resource.gvr;
    let resource = named.resource.to_ascii_lowercase();
    (named.group.is_empty() || named.group == gvr.group)
        && named.version == gvr.version
        && (resource == gvr.resource || resource == served.singular)
}

fn params_kind(spec: &Value) -> Option<Gvk> {
    let kind = &spec["paramKind"];
    let version = GroupVersion::parse(kind["apiVersion"].as_str()?)?;
    Some(Gvk::new(version.group, version.version, kind["kind"].as_str()?))
}

/// The documents that were read for one policy.
struct Documents<'a> {
    client: &'a kube::Client,
    read: BTreeMap<String, Option<Value>>,
}

impl Documents<'_> {
    async fn typed(&mut self, kind: &Gvk) -> Result<Option<Typed>, Error> {
        let version = kind.group_version();
        let name = version.to_string();
        if !self.read.contains_key(&name) {
            let document = discovery::openapi(self.client, &version).await?;
            self.read.insert(name.clone(), document);
        }
        Ok(self.read[&name].as_ref().and_then(|document| Typed::of(document, kind)))
    }
}

impl PolicyStatus {
    async fn warnings(&self, spec: &Value) -> Result<Vec<Value>, Error> {
        let client = &self.context.client;
        let rules = resources(spec);
        let mut documents = Documents { client, read: BTreeMap::new() };
        let mut typed = Vec::new();
        if rules.iter().any(|rule| !rule.is_empty()) {
            let (served, _) = discovery::every_version(client).await?;
            for (group, version, kind) in kinds(&rules, &served) {
                typed.extend(documents.typed(&Gvk::new(group, version, kind)).await?);
            }
        }
        let params = match params_kind(spec) {
            Some(kind) => documents.typed(&kind).await?,
            None => None,
        };
        Ok(warnings(spec, &typed, params.as_ref()))
    }
}

#[async_trait]
impl Controller for PolicyStatus {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let is_new = |p: &Arc<ValidatingAdmissionPolicy>| p.metadata.generation > p.status.observed_generation;
        let Some(policy) = self.policies.get("", &key.name).filter(is_new) else { return Ok(None) };
        let warnings = self.warnings(&policy.spec).await?;
        let checked = if warnings.is_empty() { json!({}) } else { json!({ "expressionWarnings": warnings }) };
        let m = &policy.metadata;
        let object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": m.name},
            "status": {"observedGeneration": m.generation, "typeChecking": checked},
        });
        let apply = Patch::Apply { manager: MANAGER, object };
        let op = Op::patch(ValidatingAdmissionPolicy::resource(), "", &m.name, apply)
            .on_subresource("status")
            .if_uid(&m.uid);
        self.context.apply(&op).await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_client::Resource;

    #[test]
    fn kinds_are_found_by_what_rules_name() {
        let served = |group: &str, resource: &str, kind: &str| Discovered {
            resource: Resource::namespaced(group, "v1", resource),
            singular: kind.to_ascii_lowercase(),
            kind: kind.to_owned(),
            verbs: Vec::new(),
        };
        let all = [
            served("", "events", "Event"),
            served("events.k8s.io", "events", "Event"),
            served("apps", "deployments", "Deployment"),
        ];
        let named = |group: &str, version: &str, resource: &str| {
            let found = kinds(&[vec![Gvr::new(group, version, resource)]], &all);
            found.into_iter().map(|(group, _, kind)| format!("{kind}.{group}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(named("apps", "v1", "deployments"), "Deployment.apps");
        assert_eq!(named("apps", "v1", "Deployment"), "Deployment.apps");
        assert_eq!(named("", "v1", "events"), "Event. Event.events.k8s.io");
        assert_eq!(named("events.k8s.io", "v1", "events"), "Event.events.k8s.io");
        assert_eq!(named("apps", "v2", "deployments"), "");
        let many: Vec<Discovered> = (0..20).map(|n| served("x", "many", &format!("K{n:02}"))).collect();
        assert_eq!(kinds(&[vec![Gvr::new("x", "v1", "many")]], &many).len(), MOST_KINDS);
    }
}
