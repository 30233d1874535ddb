//! Writes into a ClusterRole with an `aggregationRule` the rules of those that it selects. Authorizers see only what is written.
//!
//! Watches and writes cluster roles.

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use async_trait::async_trait;
use isopod_client::queue::WorkQueue;
use isopod_client::views::ClusterRole;
use isopod_client::{Change, Informer};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

struct Aggregation {
    context: Context,
    roles: Informer<ClusterRole>,
}

/// Keys are aggregated roles: any change of a role may be one of what they collect.
pub async fn run(context: Context) {
    let roles = context.informer::<ClusterRole>(ClusterRole::resource());
    roles.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    let (again, all) = (queue.clone(), roles.clone());
    context.feed(&roles, move |change| {
        if !matches!(change, Change::Resync) {
            let aggregated = all.list().into_iter().filter(|r| r.aggregation_rule.is_some());
            aggregated.for_each(|role| again.add(Key::of(&role.metadata)));
        }
    });
    let controller = Arc::new(Aggregation { context: context.clone(), roles });
    context.work(controller, queue, 1).await;
}

/// The rules of the roles that are selected: by selector, then by name, each once.
fn collect(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Vec<Value> {
    let mut rules = Vec::new();
    for selector in role.aggregation_rule.iter().flat_map(|rule| &rule.cluster_role_selectors) {
        let mut selected: Vec<_> = all
            .iter()
            .filter(|r| r.metadata.name != role.metadata.name && selector.matches(&r.metadata.labels))
            .collect();
        selected.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for rule in selected.into_iter().flat_map(|r| &r.rules) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    rules
}

#[async_trait]
impl Controller for Aggregation {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(role) = self.roles.get("", &key.name).filter(|r| r.aggregation_rule.is_some()) else {
            return Ok(None);
        };
        let rules = collect(&role, &self.roles.list());
        if rules != role.rules {
            let op = Op::modify(ClusterRole::resource(), "", &key.name, json!({ "rules": rules }));
            self.context.apply(&op.if_unchanged(&role.metadata.resource_version)).await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_collected_once_in_the_order_of_names() {
        let role = |name: &str, labels: Value, rules: Value| -> Arc<ClusterRole> {
            let role = json!({"metadata": {"name": name, "labels": labels}, "rules": rules});
            Arc::new(serde_json::from_value(role).unwrap())
        };
        let rule = |verb: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": ["pods"]});
        let all = [
            role("b", json!({"to": "view"}), json!([rule("list"), rule("get")])),
            role("a", json!({"to": "view"}), json!([rule("get")])),
            role("c", json!({"to": "edit"}), json!([rule("delete")])),
            role("view", json!({"to": "view"}), json!([rule("stale")])),
        ];
        let selectors = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]});
        let view = ClusterRole { aggregation_rule: serde_json::from_value(selectors).unwrap(), ..(*all[3]).clone() };
        assert_eq!(collect(&view, &all), [rule("get"), rule("list")]);
    }
}
