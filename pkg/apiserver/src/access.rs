//! What the RBAC and node authorizers know of the cluster. They are told of every change by the hub of the caches, whose watch
//! of the store is the only one: a write wakes nobody else.
//!
//! Invariants: the authorizers are filled before the first request is served; a change reaches them in the order of its
//! commit; when the history is gone they are filled anew and swapped as a whole, so that nobody loses rights in between.

use crate::authorization::AuthorizerChain;
use crate::cache::{Follower, Hub};
use crate::registry::Registry;
use isopod_auth::node::NodeAuthorizer;
use isopod_auth::{Authorizer, Rbac};
use isopod_base::errors::Chain;
use isopod_store::{Event, EventKind, KeyRange, RangeRequest, Revision, Store, StoreError};
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// How long a decision waits for what the authorizers have yet to learn.
const BEHIND: Duration = Duration::from_secs(10);
/// When to try again to read a store that is away.
const AGAIN: Duration = Duration::from_millis(500);

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
    source: OnceLock<Source>,
    /// While the authorizers are filled: the events that come meanwhile.
    aside: Mutex<Option<Vec<(Revision, Vec<Event>)>>>,
    /// Held while they are filled.
    filling: tokio::sync::Mutex<()>,
}

/// Where it learns from.
struct Source {
    store: Arc<dyn Store>,
    hub: Weak<Hub>,
    followed: Followed,
}

impl Default for Access {
    fn default() -> Self {
        Access {
            rbac: Arc::default(),
            nodes: Arc::default(),
            revision: watch::Sender::new(0),
            source: OnceLock::new(),
            aside: Mutex::default(),
            filling: Default::default(),
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

    /// Fills the authorizers, then follows the hub.
    pub(crate) async fn start(
        self: &Arc<Self>,
        store: Arc<dyn Store>,
        hub: &Arc<Hub>,
        registry: &Registry,
    ) -> Result<(), StoreError> {
        let prefix = |(group, resource, kind): (&str, &str, &'static str)| {
            Some((kind, registry.resource(group, resource)?.storage.keys.clone()))
        };
        let followed = FOLLOWED.into_iter().filter_map(prefix).collect();
        let source = self.source.get_or_init(|| Source { store, hub: Arc::downgrade(hub), followed });
        hub.follow(self.clone());
        self.fill(source).await
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
            if let Some(hub) = self.source.get().and_then(|source| source.hub.upgrade()) {
                hub.ask();
            }
            // Asked again: a watch that was just replaced has not heard it.
            let _ = tokio::time::timeout(Duration::from_secs(1), known.changed()).await;
        }
        true
    }

    /// Reads everything, and takes in what came meanwhile.
    async fn fill(&self, source: &Source) -> Result<(), StoreError> {
        let _alone = self.filling.lock().await;
        *self.aside.lock() = Some(Vec::new());
        let (mut oldest, mut objects) = (Revision::MAX, Vec::new());
        for (kind, prefix) in &source.followed {
            let read = source.store.range(RangeRequest::new(KeyRange::prefix(prefix.clone()))).await?;
            oldest = oldest.min(read.revision);
            objects.extend(read.kvs.iter().filter_map(|kv| Some((*kind, parse(&kv.value)?))));
        }
        let mut aside = self.aside.lock();
        self.rbac.replace(&objects);
        self.nodes.replace(&objects);
        self.revision.send_replace(oldest);
        // Some of it was read already: the last event of an object is its newest state all the same.
        for (revision, events) in aside.take().unwrap_or_default() {
            self.know(&source.followed, revision, &events);
        }
        Ok(())
    }

    fn know(&self, followed: &Followed, revision: Revision, events: &[Event]) {
        if revision > *self.revision.borrow() {
            events.iter().for_each(|e| self.apply(followed, e));
            self.revision.send_replace(revision);
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
    isopod_schema::json::read(stored).ok()
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

impl Follower for Access {
    fn take_in(&self, revision: Revision, events: &[Event]) {
        let Some(source) = self.source.get() else { return };
        let mut aside = self.aside.lock();
        match &mut *aside {
            Some(aside) => aside.push((revision, events.to_vec())),
            None => self.know(&source.followed, revision, events),
        }
    }

    fn begin_anew(self: Arc<Self>) {
        tokio::spawn(async move {
            // A server that is gone needs no authorizers.
            while let Some(source) = self.source.get().filter(|s| s.hub.strong_count() > 0) {
                match self.fill(source).await {
                    Ok(()) | Err(StoreError::Closed) => return,
                    Err(e) => {
                        tracing::error!(error = %Chain(&e), "the authorizers cannot read the datastore; trying again");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        });
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
