//! Publishes the authority of the API server's certificate in every active namespace: config map `kube-root-ca.crt`.
//!
//! Watches namespaces and those config maps; writes config maps. Invariant: whoever edits or deletes the map, it is put
//! back.

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use async_trait::async_trait;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{ConfigMap, Labels, Namespace};
use isopod_client::{Change, Informer, ListScope};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "kube-root-ca.crt";
const DATA_KEY: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
Kubernetes clusters.";

struct RootCa {
    context: Context,
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
}

/// Keys are namespaces.
pub async fn run(context: Context) {
    let namespaces = context.informer::<Namespace>(Namespace::resource());
    let scope = ListScope::fields(format!("metadata.name={NAME}"));
    let maps = context.informers.get::<ConfigMap>(ConfigMap::resource(), scope);
    namespaces.synced().await;
    maps.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&namespaces, &queue);
    let again = queue.clone();
    context.feed(&maps, move |change| match change {
        Change::Applied { new: m, .. } | Change::Deleted(m) => again.add(Key::new("", &m.metadata.namespace)),
        Change::Resync => {}
    });
    let controller = Arc::new(RootCa { context: context.clone(), namespaces, maps });
    context.work(controller, queue, 1).await;
}

fn plan(namespace: &Namespace, map: Option<&ConfigMap>, pem: &str) -> Vec<Op> {
    if namespace.metadata.is_being_deleted() || namespace.status.phase == "Terminating" {
        return Vec::new();
    }
    let ns = &namespace.metadata.name;
    let object = |labels: &Labels, annotations: Labels, resource_version: Option<&str>| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {DATA_KEY: pem},
            "metadata": {"name": NAME, "namespace": ns, "labels": labels, "annotations": annotations,
                         "resourceVersion": resource_version},
        })
    };
    let described = || (DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned());
    let Some(map) = map else {
        return vec![Op::create(ConfigMap::resource(), ns, object(&Labels::new(), [described()].into(), None))];
    };
    let mut annotations = map.metadata.annotations.clone();
    annotations.extend([described()]);
    let wanted = BTreeMap::from([(DATA_KEY.to_owned(), pem.to_owned())]);
    if map.data == wanted && map.metadata.annotations == annotations {
        return Vec::new();
    }
    let whole = object(&map.metadata.labels, annotations, Some(&map.metadata.resource_version));
    vec![Op::replace(ConfigMap::resource(), ns, whole)]
}

#[async_trait]
impl Controller for RootCa {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(namespace) = self.namespaces.get("", &key.name) else { return Ok(None) };
        let map = self.maps.get(&key.name, NAME);
        let ops = plan(&namespace, map.as_deref(), &self.context.options.root_ca_pem);
        match self.context.apply_all(&ops).await {
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
        let namespace = serde_json::from_str(r#"{"metadata":{"name":"a"},"status":{"phase":"Active"}}"#).unwrap();
        let created = plan(&namespace, None, "PEM");
        let [Op::Create { object, .. }] = &created[..] else { panic!("{created:?}") };
        assert_eq!(object["data"], json!({"ca.crt": "PEM"}));
        let mut map: ConfigMap = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(plan(&namespace, Some(&map), "PEM"), []);
        map.data.insert("x".into(), "y".into());
        let [Op::Replace { object, .. }] = &plan(&namespace, Some(&map), "NEW")[..] else { panic!() };
        assert_eq!(object["data"], json!({"ca.crt": "NEW"}));
    }
}
