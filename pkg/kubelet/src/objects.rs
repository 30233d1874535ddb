//! The config maps, secrets, trust bundles and certificate requests that pods of this node use: each watched once while a pod
//! needs it.
//!
//! Invariant: what is read is at least as new as the moment the pod asked for it (a GET until the watch has listed).

use isopod_base::clock::Clock;
use isopod_client::{Calls, Change, Error, Informer, Informers, ListScope, Resource, View};
use k8s_openapi::api::certificates::v1::{ClusterTrustBundle, PodCertificateRequest};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// How long a first look at a whole collection may take.
const LISTED: Duration = Duration::from_secs(10);

/// One watched object, or a watched collection.
pub struct Watched<T: View> {
    informer: Informer<T>,
    calls: Calls,
    namespace: String,
    name: String,
    /// Its own set: the watch ends when the last user is gone.
    _informers: Informers,
}

impl<T: View> Watched<T> {
    /// `None`: it does not exist.
    pub async fn get(&self) -> Result<Option<Arc<T>>, Error> {
        if self.informer.has_synced() {
            return Ok(self.informer.get(&self.namespace, &self.name));
        }
        Ok(self.calls.find::<T>(&self.namespace, &self.name).await?.map(Arc::new))
    }

    /// The whole collection; `None`: it was not read yet.
    async fn all(&self) -> Option<&Informer<T>> {
        tokio::time::timeout(LISTED, self.informer.synced()).await.ok()?;
        Some(&self.informer)
    }
}

struct Shelf<T: View> {
    resource: Resource,
    watched: Mutex<HashMap<(String, String), Weak<Watched<T>>>>,
}

impl<T: View> Shelf<T> {
    fn new(resource: Resource) -> Self {
        Shelf { resource, watched: Mutex::default() }
    }

    fn watch(&self, client: &Client, clock: &Clock, namespace: &str, name: &str) -> Arc<Watched<T>> {
        let mut scope = ListScope::namespace(namespace);
        scope.field_selector = format!("metadata.name={name}");
        self.watch_scope(client, clock, (namespace, name), scope)
    }

    fn watch_scope(
        &self,
        client: &Client,
        clock: &Clock,
        (namespace, name): (&str, &str),
        scope: ListScope,
    ) -> Arc<Watched<T>> {
        let mut watched = self.watched.lock();
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(found) = watched.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        watched.retain(|_, w| w.strong_count() > 0);
        let informers = Informers::with_clock(client.clone(), clock.clone());
        let one = Arc::new(Watched {
            informer: informers.get::<T>(self.resource.clone(), scope),
            calls: Calls::new(client.clone(), self.resource.clone()),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            _informers: informers,
        });
        watched.insert(key, Arc::downgrade(&one));
        one
    }
}

/// The node's shared objects.
pub struct ObjectStore {
    client: Client,
    clock: Clock,
    config_maps: Shelf<ConfigMap>,
    secrets: Shelf<Secret>,
    trust_bundles: Shelf<ClusterTrustBundle>,
    certificate_requests: Shelf<PodCertificateRequest>,
    node: String,
}

impl ObjectStore {
    pub fn new(client: Client, clock: Clock, node: &str) -> Arc<Self> {
        let core = |resource| Resource::namespaced("", "v1", resource);
        let group = "certificates.k8s.io";
        Arc::new(ObjectStore {
            client,
            clock,
            config_maps: Shelf::new(core("configmaps")),
            secrets: Shelf::new(core("secrets")),
            trust_bundles: Shelf::new(Resource::cluster(group, "v1", "clustertrustbundles")),
            certificate_requests: Shelf::new(Resource::namespaced(group, "v1", "podcertificaterequests")),
            node: node.to_owned(),
        })
    }

    /// One pod's view of them; `wake` is notified when one changes.
    pub fn of_pod(self: &Arc<Self>, namespace: &str, wake: Arc<Notify>) -> PodObjects {
        PodObjects {
            store: self.clone(),
            namespace: namespace.to_owned(),
            wake,
            config_maps: HashMap::new(),
            secrets: HashMap::new(),
            trust_bundles: None,
            certificate_requests: None,
        }
    }
}

struct Held<T: View> {
    watched: Arc<Watched<T>>,
    forward: AbortHandle,
}

impl<T: View> Drop for Held<T> {
    fn drop(&mut self) {
        self.forward.abort();
    }
}

fn hold<T: View>(watched: Arc<Watched<T>>, wake: Arc<Notify>) -> Held<T> {
    let mut changes = watched.informer.subscribe();
    let forward = tokio::spawn(async move {
        while let Some(change) = changes.recv().await {
            if !matches!(change, Change::Resync) {
                wake.notify_one();
            }
        }
    });
    Held { watched, forward: forward.abort_handle() }
}

/// The objects that one pod has asked for.
pub struct PodObjects {
    store: Arc<ObjectStore>,
    namespace: String,
    wake: Arc<Notify>,
    config_maps: HashMap<String, Held<ConfigMap>>,
    secrets: HashMap<String, Held<Secret>>,
    trust_bundles: Option<Held<ClusterTrustBundle>>,
    certificate_requests: Option<Held<PodCertificateRequest>>,
}

impl PodObjects {
    pub async fn config_map(&mut self, name: &str) -> Result<Option<Arc<ConfigMap>>, Error> {
        if !self.config_maps.contains_key(name) {
            let w = self.store.config_maps.watch(&self.store.client, &self.store.clock, &self.namespace, name);
            self.config_maps.insert(name.to_owned(), hold(w, self.wake.clone()));
        }
        self.config_maps[name].watched.clone().get().await
    }

    pub async fn secret(&mut self, name: &str) -> Result<Option<Arc<Secret>>, Error> {
        if !self.secrets.contains_key(name) {
            let w = self.store.secrets.watch(&self.store.client, &self.store.clock, &self.namespace, name);
            self.secrets.insert(name.to_owned(), hold(w, self.wake.clone()));
        }
        self.secrets[name].watched.clone().get().await
    }

    /// The cluster's trust bundles; `None`: they were not read yet.
    pub async fn trust_bundles(&mut self) -> Option<Vec<Arc<ClusterTrustBundle>>> {
        let store = &self.store;
        let held = self.trust_bundles.get_or_insert_with(|| {
            let w = store.trust_bundles.watch_scope(&store.client, &store.clock, ("", ""), ListScope::all());
            hold(w, self.wake.clone())
        });
        Some(held.watched.all().await?.list())
    }

    /// A request of this node for a pod's certificate. The outer `None`: they were not read yet.
    pub async fn certificate_request(&mut self, name: &str) -> Option<Option<Arc<PodCertificateRequest>>> {
        let store = &self.store;
        let held = self.certificate_requests.get_or_insert_with(|| {
            let scope = ListScope::fields(format!("spec.nodeName={}", store.node));
            let w = store.certificate_requests.watch_scope(&store.client, &store.clock, ("", ""), scope);
            hold(w, self.wake.clone())
        });
        Some(held.watched.all().await?.get(&self.namespace, name))
    }
}
