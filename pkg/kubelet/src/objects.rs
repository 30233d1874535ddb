//! The config maps and secrets that pods of this node use: each watched once while a pod needs it.
//!
//! Invariant: what is read is at least as new as the moment the pod asked for it (a GET until the watch has listed).

use isopod_base::clock::Clock;
use isopod_client::{Calls, Change, Error, Informer, Informers, ListScope, Resource, View};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// One watched object.
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
}

struct Shelf<T: View> {
    resource: Resource,
    watched: Mutex<HashMap<(String, String), Weak<Watched<T>>>>,
}

impl<T: View> Shelf<T> {
    fn new(resource: &str) -> Self {
        Shelf { resource: Resource::namespaced("", "v1", resource), watched: Mutex::default() }
    }

    fn watch(&self, client: &Client, clock: &Clock, namespace: &str, name: &str) -> Arc<Watched<T>> {
        let mut watched = self.watched.lock();
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(found) = watched.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        watched.retain(|_, w| w.strong_count() > 0);
        let informers = Informers::with_clock(client.clone(), clock.clone());
        let mut scope = ListScope::namespace(namespace);
        scope.field_selector = format!("metadata.name={name}");
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
}

impl ObjectStore {
    pub fn new(client: Client, clock: Clock) -> Arc<Self> {
        Arc::new(ObjectStore { client, clock, config_maps: Shelf::new("configmaps"), secrets: Shelf::new("secrets") })
    }

    /// One pod's view of them; `wake` is notified when one changes.
    pub fn of_pod(self: &Arc<Self>, namespace: &str, wake: Arc<Notify>) -> PodObjects {
        PodObjects {
            store: self.clone(),
            namespace: namespace.to_owned(),
            wake,
            config_maps: HashMap::new(),
            secrets: HashMap::new(),
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
}
