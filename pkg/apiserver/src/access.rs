//! What the RBAC and node authorizers know of the cluster, followed from the store.
//!
//! Invariants: the authorizers are filled before the first request is served; a change reaches them in the order of its
//! commit; when the history is gone they are filled anew and swapped as a whole, so that nobody loses rights in between.

use crate::authorization::AuthorizerChain;
use crate::cache::prefix_of;
use crate::registry::Registry;
use isopod_auth::node::NodeAuthorizer;
use isopod_auth::{Authorizer, Rbac};
use isopod_base::errors::Chain;
use isopod_store::{
    Event, EventKind, KeyRange, RangeRequest, Revision, Store, StoreError, Watch, WatchMessage, WatchRequest,
};
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// How long a decision waits for what the authorizers have yet to learn.
const BEHIND: Duration = Duration::from_secs(10);

/// Group, resource and kind of what the authorizers look at.
const FOLLOWED: [(&str, &str, &str); 8] = [
    ("rbac.authorization.k8s.io", "clusterroles", "ClusterRole"),
    ("rbac.authorization.k8s.io", "clusterrolebindings", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "roles", "Role"),
    ("rbac.authorization.k8s.io", "rolebindings", "RoleBinding"),
    ("", "pods", "Pod"),
    ("", "persistentvolumes", "PersistentVolume"),
    ("storage.k8s.io", "volumeattachments", "VolumeAttachment"),
    ("resource.k8s.io", "resourceslices", "ResourceSlice"),
];

/// See the module. Give it to [`crate::Config`] together with its authorizer.
pub struct Access {
    pub rbac: Arc<Rbac>,
    pub nodes: Arc<NodeAuthorizer>,
    /// Everything up to and with this revision is known.
    revision: watch::Sender<Revision>,
    request_progress: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl Default for Access {
    fn default() -> Self {
        Access {
            rbac: Arc::default(),
            nodes: Arc::default(),
            revision: watch::Sender::new(0),
            request_progress: Mutex::new(None),
        }
    }
}

/// Kind and key prefix.
type Followed = Vec<(&'static str, String)>;

impl Access {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// `--authorization-mode=Node,RBAC`.
    pub fn authorizer(&self) -> Arc<AuthorizerChain> {
        AuthorizerChain::of([("node", self.nodes.clone() as Arc<dyn Authorizer>), ("rbac", self.rbac.clone())])
    }

    /// Fills the authorizers, then follows the store until it is closed.
    pub(crate) async fn start(self: &Arc<Self>, store: Arc<dyn Store>, registry: &Registry) -> Result<(), StoreError> {
        let prefix = |(group, resource, kind): (&str, &str, &'static str)| {
            Some((kind, prefix_of(registry.resource(group, resource)?)))
        };
        let followed: Followed = FOLLOWED.into_iter().filter_map(prefix).collect();
        let watch = self.fill(&*store, &followed).await?;
        tokio::spawn(follow(Arc::downgrade(self), store, followed, watch));
        Ok(())
    }

    /// Waits until everything that is committed at `revision` is known, but not without end. True: there was something to wait
    /// for.
    pub(crate) async fn wait(&self, revision: Revision) -> bool {
        tokio::time::timeout(BEHIND, self.reach(revision)).await.unwrap_or(true)
    }

    async fn reach(&self, revision: Revision) -> bool {
        let mut known = self.revision.subscribe();
        if *known.borrow_and_update() >= revision {
            return false;
        }
        while *known.borrow_and_update() < revision {
            let ask = self.request_progress.lock().clone();
            if let Some(ask) = ask {
                ask();
            }
            // Asked again: a watch that was just replaced has not heard it.
            let _ = tokio::time::timeout(Duration::from_secs(1), known.changed()).await;
        }
        true
    }

    /// Reads everything and opens a watch on what follows.
    async fn fill(&self, store: &dyn Store, followed: &Followed) -> Result<Watch, StoreError> {
        loop {
            let (mut oldest, mut objects) = (Revision::MAX, Vec::new());
            for (kind, prefix) in followed {
                let read = store.range(RangeRequest::new(KeyRange::prefix(prefix.clone()))).await?;
                oldest = oldest.min(read.revision);
                objects.extend(read.kvs.iter().filter_map(|kv| Some((*kind, parse(&kv.value)?))));
            }
            self.rbac.replace(&objects);
            self.nodes.replace(&objects);
            let everything = KeyRange { start: b"/".as_slice().into(), end: b"\0".as_slice().into() };
            match store.watch(WatchRequest { range: everything, start: oldest.saturating_add(1) }).await {
                // It was compacted just now: read again.
                Err(StoreError::Compacted { .. }) => {}
                Err(e) => return Err(e),
                Ok(watch) => {
                    *self.request_progress.lock() = Some(watch.request_progress.clone());
                    self.revision.send_replace(oldest);
                    return Ok(watch);
                }
            }
        }
    }

    fn apply(&self, followed: &Followed, event: &Event) {
        let key = &event.kv.key;
        let Some((kind, prefix)) = followed.iter().find(|(_, p)| key.starts_with(p.as_bytes())) else { return };
        if event.kind == EventKind::Put && !(*kind == "Pod" && is_nowhere(&event.kv.value)) {
            if *kind == "Pod" && event.prev.as_ref().is_some_and(|prev| same_needs(&prev.value, &event.kv.value)) {
                return;
            }
            let Some(object) = parse(&event.kv.value) else { return };
            self.rbac.apply_kind(kind, &object);
            self.nodes.apply(kind, &object);
            return;
        }
        let path = String::from_utf8_lossy(&key[prefix.len()..]);
        let (namespace, name) = path.split_once('/').unwrap_or(("", &path));
        self.rbac.remove(kind, namespace, name);
        self.nodes.remove(kind, namespace, name);
    }
}

fn parse(stored: &[u8]) -> Option<Value> {
    serde_json::from_slice(stored).ok()
}

/// Whether a stored pod is on no node: then no node may read anything for it, as if it were not there.
fn is_nowhere(pod: &[u8]) -> bool {
    sonic_rs::get(pod, ["spec", "nodeName"]).map_or(true, |node| node.as_raw_str() == "\"\"")
}

/// A pod's status changes often, and what its node may read hangs on its spec: compare that as bytes, without parsing.
fn same_needs(before: &[u8], after: &[u8]) -> bool {
    let part = |bytes, path: &[&str]| sonic_rs::get(bytes, path).ok().map(|v| v.as_raw_str().to_owned());
    let same = |path: &[&str]| part(before, path) == part(after, path);
    same(&["spec"]) && same(&["status", "resourceClaimStatuses"])
}

async fn follow(access: Weak<Access>, store: Arc<dyn Store>, followed: Followed, mut watch: Watch) {
    loop {
        let message = watch.receiver.recv().await;
        let Some(access) = access.upgrade() else { return };
        match message {
            Some(Ok(WatchMessage::Events(revision, events))) => {
                events.iter().for_each(|e| access.apply(&followed, e));
                access.revision.send_replace(revision);
            }
            Some(Ok(WatchMessage::Progress(revision))) => {
                access.revision.send_if_modified(|r| {
                    let newer = revision > *r;
                    *r = revision.max(*r);
                    newer
                });
            }
            Some(Err(StoreError::Closed)) => return,
            ended => {
                if let Some(Err(e)) = &ended {
                    tracing::warn!(error = %Chain(e), "the authorizers lost track of the datastore; reading it again");
                }
                match refill(&access, &*store, &followed).await {
                    Some(new) => watch = new,
                    None => return,
                }
            }
        }
    }
}

async fn refill(access: &Access, store: &dyn Store, followed: &Followed) -> Option<Watch> {
    loop {
        match access.fill(store, followed).await {
            Ok(watch) => return Some(watch),
            Err(StoreError::Closed) => return None,
            Err(e) => {
                tracing::error!(error = %Chain(&e), "the authorizers cannot read the datastore; trying again");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_without_a_node() {
        for (spec, nowhere) in
            [(json!({}), true), (json!({"nodeName": ""}), true), (json!({"nodeName": "n"}), false), (json!(null), true)]
        {
            assert_eq!(is_nowhere(json!({"metadata": {}, "spec": spec}).to_string().as_bytes()), nowhere, "{spec}");
        }
    }
}
