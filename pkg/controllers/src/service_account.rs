//! Gives every active namespace the service account `default`.
//!
//! Watches namespaces and service accounts; writes service accounts. Invariant: never touches one that exists.

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use async_trait::async_trait;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{MetaOnly, Namespace, ServiceAccount};
use isopod_client::{Change, Informer};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "default";

struct ServiceAccounts {
    context: Context,
    namespaces: Informer<Namespace>,
    accounts: Informer<MetaOnly>,
}

/// Keys are namespaces.
pub async fn run(context: Context) {
    let namespaces = context.informer::<Namespace>(Namespace::resource());
    let accounts = context.informer::<MetaOnly>(ServiceAccount::resource());
    namespaces.synced().await;
    accounts.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&namespaces, &queue);
    let again = queue.clone();
    context.feed(&accounts, move |change| {
        if let Change::Deleted(a) = change
            && a.metadata.name == NAME
        {
            again.add(Key::new("", &a.metadata.namespace));
        }
    });
    let controller = Arc::new(ServiceAccounts { context: context.clone(), namespaces, accounts });
    context.work(controller, queue, 1).await;
}

fn plan(namespace: &Namespace, exists: bool) -> Vec<Op> {
    if exists || namespace.metadata.is_being_deleted() || namespace.status.phase == "Terminating" {
        return Vec::new();
    }
    let ns = &namespace.metadata.name;
    let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": ns}});
    vec![Op::create(ServiceAccount::resource(), ns, object)]
}

#[async_trait]
impl Controller for ServiceAccounts {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(namespace) = self.namespaces.get("", &key.name) else { return Ok(None) };
        let exists = self.accounts.get(&key.name, NAME).is_some();
        match self.context.apply_all(&plan(&namespace, exists)).await {
            Err(Error::Call { source, .. }) if source.is_already_exists() || source.is_namespace_terminating() => {
                Ok(None)
            }
            other => other.map(|()| None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans() {
        let create = r#"create serviceaccounts a/default {"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default","namespace":"a"}}"#;
        for (namespace, exists, want) in [
            (r#"{"metadata":{"name":"a"},"status":{"phase":"Active"}}"#, false, vec![create]),
            (r#"{"metadata":{"name":"a"},"status":{"phase":"Active"}}"#, true, vec![]),
            (r#"{"metadata":{"name":"a"},"status":{"phase":"Terminating"}}"#, false, vec![]),
        ] {
            let namespace = serde_json::from_str(namespace).unwrap();
            let got: Vec<String> = plan(&namespace, exists).iter().map(Op::to_string).collect();
            assert_eq!(got, want);
        }
    }
}
