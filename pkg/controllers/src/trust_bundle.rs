//! Publishes the authority of the API server's certificate as a ClusterTrustBundle of the signer
//! `kubernetes.io/kube-apiserver-serving`, named after its content.
//!
//! Watches, writes and deletes that signer's bundles. Invariant: there is always one with the present authority, and none of
//! another.

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use async_trait::async_trait;
use isopod_client::queue::WorkQueue;
use isopod_client::views::ClusterTrustBundle;
use isopod_client::{Informer, ListScope};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";
/// Bytes of the digest in the name.
const DIGEST: usize = 12;

struct TrustBundle {
    context: Context,
    bundles: Informer<ClusterTrustBundle>,
}

/// The only key is the signer.
pub async fn run(context: Context) {
    if context.options.root_ca_pem.is_empty() {
        context.stop.cancelled().await;
        return;
    }
    let scope = ListScope::fields(format!("spec.signerName={SIGNER}"));
    let bundles = context.informers.get::<ClusterTrustBundle>(ClusterTrustBundle::resource(), scope);
    bundles.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    queue.add(Key::new("", SIGNER));
    let again = queue.clone();
    context.feed(&bundles, move |_| again.add(Key::new("", SIGNER)));
    let controller = Arc::new(TrustBundle { context: context.clone(), bundles });
    context.work(controller, queue, 1).await;
}

fn name(pem: &str) -> String {
    let digest: String = Sha256::digest(pem).iter().take(DIGEST).map(|b| format!("{b:02x}")).collect();
    format!("{}:{digest}", SIGNER.replace('/', ":"))
}

fn plan(bundles: &[Arc<ClusterTrustBundle>], pem: &str) -> Vec<Op> {
    let name = name(pem);
    let spec = json!({"signerName": SIGNER, "trustBundle": pem});
    let object = |metadata| json!({"apiVersion": "certificates.k8s.io/v1", "kind": "ClusterTrustBundle", "metadata": metadata, "spec": spec});
    let mut ops = Vec::new();
    match bundles.iter().find(|b| b.metadata.name == name) {
        None => ops.push(Op::create(ClusterTrustBundle::resource(), "", object(json!({"name": name})))),
        Some(bundle) if bundle.spec.trust_bundle != pem => {
            let m = &bundle.metadata;
            let metadata = json!({"name": name, "labels": m.labels, "annotations": m.annotations,
                "finalizers": m.finalizers, "resourceVersion": m.resource_version});
            ops.push(Op::replace(ClusterTrustBundle::resource(), "", object(metadata)));
        }
        Some(_) => {}
    }
    let others = bundles.iter().map(|b| &b.metadata).filter(|m| m.name != name);
    ops.extend(others.map(|m| Op::delete(ClusterTrustBundle::resource(), "", &m.name).if_uid(&m.uid)));
    ops
}

#[async_trait]
impl Controller for TrustBundle {
    async fn reconcile(&self, _: &Key) -> Result<Option<Duration>, Error> {
        self.context.apply_all(&plan(&self.bundles.list(), &self.context.options.root_ca_pem)).await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bundle_is_there() {
        let bundle = |name: &str, pem: &str| -> Arc<ClusterTrustBundle> {
            let bundle = json!({"metadata": {"name": name, "labels": {"a": "b"}, "resourceVersion": "7"}, "spec": {"trustBundle": pem}});
            Arc::new(serde_json::from_value(bundle).unwrap())
        };
        let mine = "kubernetes.io:kube-apiserver-serving:ba7816bf8f01cfea414140de";
        let check = |bundles: &[Arc<ClusterTrustBundle>]| -> Vec<String> {
            plan(bundles, "abc").iter().map(|op| op.what()).collect()
        };
        let of = |verb: &str, name: &str| format!("{verb} clustertrustbundles.certificates.k8s.io {name}");
        assert_eq!(check(&[]), [of("create", mine)]);
        assert_eq!(check(&[bundle(mine, "abc")]), Vec::<String>::new());
        assert_eq!(check(&[bundle(mine, "forged"), bundle("x", "old")]), [of("replace", mine), of("delete", "x")]);
        let Op::Replace { object, .. } = &plan(&[bundle(mine, "forged")], "abc")[0] else { panic!("no replacement") };
        let meta = &object["metadata"];
        assert_eq!((&meta["labels"]["a"], &meta["resourceVersion"]), (&json!("b"), &json!("7")));
        assert_eq!(object["spec"]["trustBundle"], "abc");
    }
}
