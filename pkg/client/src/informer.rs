//! Shared informers: a local copy of a collection, kept current by list and watch.
//!
//! Invariants: there is one informer per (type, resource, scope) in a set; a subscriber gets every change once, in order,
//! beginning with what the cache holds when it subscribes; a change is visible in the cache before its subscribers hear of
//! it. After a gap (410) the collection is listed again and subscribers get the differences, so no deletion is ever missed.
//! Every list ends with [`Change::Resync`].
//!
//! The work is done on objects of any type (`Held`), so that it is compiled once; [`Informer`] and [`Receiver`] give the type back.

use crate::watch::{self, Event, Sink};
use crate::{Error, ListScope, Resource, decode};
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use kube::Client;
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use std::any::{Any, TypeId};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch as signal};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What an informer can hold: a type decoded from an object's JSON. Slim views keep only the fields their reader needs.
pub trait View: DeserializeOwned + Send + Sync + 'static {
    /// Whether the server need only send metadata (`PartialObjectMetadata`).
    const METADATA_ONLY: bool = false;
    fn name(&self) -> &str;
    /// Empty for cluster-scoped objects.
    fn namespace(&self) -> &str;
    fn uid(&self) -> &str;
    fn resource_version(&self) -> &str;
    /// Reads an object's JSON. A type's own method is compiled once, with the type, and not by each crate that uses it.
    fn decode(object: &[u8]) -> Result<Self, serde_json::Error> {
        decode::from_slice(object)
    }
}

impl<K> View for K
where
    K: k8s_openapi::Metadata<Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }
    fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }
    fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or_default()
    }
    fn resource_version(&self) -> &str {
        self.metadata().resource_version.as_deref().unwrap_or_default()
    }
}

/// A view's object, its type known to the informer's handles only.
trait Held: Any + Send + Sync {
    fn name(&self) -> &str;
    fn namespace(&self) -> &str;
    fn uid(&self) -> &str;
    fn resource_version(&self) -> &str;
}

impl<T: View> Held for T {
    fn name(&self) -> &str {
        View::name(self)
    }
    fn namespace(&self) -> &str {
        View::namespace(self)
    }
    fn uid(&self) -> &str {
        View::uid(self)
    }
    fn resource_version(&self) -> &str {
        View::resource_version(self)
    }
}

type Decode = fn(&[u8]) -> Result<Arc<dyn Held>, serde_json::Error>;

fn decode_view<T: View>(object: &[u8]) -> Result<Arc<dyn Held>, serde_json::Error> {
    Ok(Arc::new(T::decode(object)?))
}

fn typed<T: View>(object: Arc<dyn Held>) -> Arc<T> {
    let object: Arc<dyn Any + Send + Sync> = object;
    object.downcast().expect("a cache holds what its handles' type decoded")
}

/// One change of an informer's cache.
#[derive(Debug)]
pub enum Change<T: ?Sized> {
    /// The object is new (`old` is `None`) or has changed. An object that was deleted and made again under its name while
    /// the informer was away is one change, from the old uid to the new.
    Applied { old: Option<Arc<T>>, new: Arc<T> },
    /// The last state seen.
    Deleted(Arc<T>),
    /// The cache holds a complete list: after the first one, and after each gap.
    Resync,
}

impl<T: ?Sized> Clone for Change<T> {
    fn clone(&self) -> Self {
        match self {
            Change::Applied { old, new } => Change::Applied { old: old.clone(), new: new.clone() },
            Change::Deleted(old) => Change::Deleted(old.clone()),
            Change::Resync => Change::Resync,
        }
    }
}

impl Change<dyn Held> {
    fn typed<T: View>(self) -> Change<T> {
        match self {
            Change::Applied { old, new } => Change::Applied { old: old.map(typed), new: typed(new) },
            Change::Deleted(old) => Change::Deleted(typed(old)),
            Change::Resync => Change::Resync,
        }
    }
}

/// The receiving end of [`Informer::subscribe`].
pub struct Receiver<T> {
    changes: mpsc::UnboundedReceiver<Change<dyn Held>>,
    _of: PhantomData<fn() -> T>,
}

impl<T: View> Receiver<T> {
    /// The next change; `None` when the informer has ended. Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<Change<T>> {
        self.changes.recv().await.map(Change::typed)
    }

    /// A change that is there already.
    pub fn try_recv(&mut self) -> Result<Change<T>, mpsc::error::TryRecvError> {
        self.changes.try_recv().map(Change::typed)
    }

    /// Calls `react` with every change, in order, until the informer ends.
    pub fn each(self, mut react: impl FnMut(Change<T>) + Send + 'static) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(each(self.changes, Box::new(move |change| react(change.typed()))))
    }
}

async fn each(
    mut changes: mpsc::UnboundedReceiver<Change<dyn Held>>,
    mut react: Box<dyn FnMut(Change<dyn Held>) + Send>,
) {
    while let Some(change) = changes.recv().await {
        react(change);
    }
}

/// A set of informers over one client. They run until the last clone of the set and of its informers is gone.
#[derive(Clone)]
pub struct Informers(Arc<Set>);

struct Set {
    client: Client,
    clock: Clock,
    stop: CancellationToken,
    shared: Mutex<HashMap<(TypeId, Resource, ListScope), Arc<Cache>>>,
    _stop_when_dropped: DropGuard,
}

impl Informers {
    pub fn new(client: Client) -> Self {
        Self::with_clock(client, Clock::system())
    }

    /// `clock` times the waits between failed tries.
    pub fn with_clock(client: Client, clock: Clock) -> Self {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        Informers(Arc::new(Set { client, clock, stop, shared: Mutex::default(), _stop_when_dropped: guard }))
    }

    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// The informer of `scope` in `resource`, started if it does not run yet. Call it within a tokio runtime.
    pub fn get<T: View>(&self, resource: Resource, scope: ListScope) -> Informer<T> {
        let cache = self.cache(TypeId::of::<T>(), resource, scope, decode_view::<T>, T::METADATA_ONLY);
        Informer { cache, _set: self.0.clone(), _of: PhantomData }
    }

    fn cache(
        &self,
        view: TypeId,
        resource: Resource,
        scope: ListScope,
        decode: Decode,
        metadata_only: bool,
    ) -> Arc<Cache> {
        let set = &self.0;
        match set.shared.lock().entry((view, resource.clone(), scope.clone())) {
            Entry::Occupied(e) => e.get().clone(),
            Entry::Vacant(e) => {
                let cache = Arc::new(Cache::default());
                e.insert(cache.clone());
                let reflector = Reflector {
                    client: set.client.clone(),
                    clock: set.clock.clone(),
                    resource,
                    scope,
                    decode,
                    metadata_only,
                    cache: cache.clone(),
                };
                let stop = set.stop.clone();
                tokio::spawn(async move {
                    stop.run_until_cancelled(reflector.run()).await;
                });
                cache
            }
        }
    }
}

/// A handle to a shared cache. Cheap to clone.
pub struct Informer<T: View> {
    cache: Arc<Cache>,
    _set: Arc<Set>,
    _of: PhantomData<fn() -> T>,
}

impl<T: View> Clone for Informer<T> {
    fn clone(&self) -> Self {
        Informer { cache: self.cache.clone(), _set: self._set.clone(), _of: PhantomData }
    }
}

impl<T: View> Informer<T> {
    /// Returns when the first list is in the cache.
    pub async fn synced(&self) {
        // The sender lives in the cache that this handle holds.
        let _ = self.cache.synced.subscribe().wait_for(|s| *s).await;
    }

    pub fn has_synced(&self) -> bool {
        *self.cache.synced.borrow()
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.cache.get(namespace, name).map(typed)
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.cache.list().into_iter().map(typed).collect()
    }

    /// The objects of one namespace, by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        self.cache.list_namespace(namespace).into_iter().map(typed).collect()
    }

    pub fn len(&self) -> usize {
        self.cache.state.read().objects.values().map(BTreeMap::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an index: `keys` gives the values under which an object is found by [`Informer::by_index`]. Adding a name twice
    /// keeps the first.
    pub fn add_index(&self, name: &'static str, keys: fn(&T) -> Vec<String>) {
        let of_any = move |object: &dyn Held| {
            let object: &dyn Any = object;
            object.downcast_ref().map(keys).unwrap_or_default()
        };
        self.cache.state.write().add_index(name, Box::new(of_any));
    }

    /// The objects indexed under `value`; none when there is no such index.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<T>> {
        self.cache.by_index(name, value).into_iter().map(typed).collect()
    }

    /// A stream of changes: first the present objects, then (once synced) [`Change::Resync`], then what happens.
    pub fn subscribe(&self) -> Receiver<T> {
        Receiver { changes: self.cache.subscribe(), _of: PhantomData }
    }
}

struct Cache {
    state: RwLock<State>,
    synced: signal::Sender<bool>,
}

impl Default for Cache {
    fn default() -> Self {
        Cache { state: RwLock::default(), synced: signal::Sender::new(false) }
    }
}

impl Cache {
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<dyn Held>> {
        self.state.read().objects.get(namespace)?.get(name).cloned()
    }

    fn list(&self) -> Vec<Arc<dyn Held>> {
        self.state.read().objects.values().flat_map(|names| names.values().cloned()).collect()
    }

    fn list_namespace(&self, namespace: &str) -> Vec<Arc<dyn Held>> {
        let state = self.state.read();
        state.objects.get(namespace).map(|names| names.values().cloned().collect()).unwrap_or_default()
    }

    fn by_index(&self, name: &str, value: &str) -> Vec<Arc<dyn Held>> {
        let state = self.state.read();
        let Some(keys) = state.indexes.get(name).and_then(|i| i.entries.get(value)) else { return Vec::new() };
        keys.iter().filter_map(|(ns, name)| state.objects.get(ns)?.get(name).cloned()).collect()
    }

    fn subscribe(&self) -> mpsc::UnboundedReceiver<Change<dyn Held>> {
        let (tx, rx) = mpsc::unbounded_channel();
        let mut state = self.state.write();
        for new in state.objects.values().flat_map(BTreeMap::values) {
            let _ = tx.send(Change::Applied { old: None, new: new.clone() });
        }
        if *self.synced.borrow() {
            let _ = tx.send(Change::Resync);
        }
        state.subscribers.push(tx);
        rx
    }
}

#[derive(Default)]
struct State {
    /// By namespace, then name.
    objects: BTreeMap<String, BTreeMap<String, Arc<dyn Held>>>,
    indexes: HashMap<&'static str, Index>,
    subscribers: Vec<mpsc::UnboundedSender<Change<dyn Held>>>,
}

type Keys = Box<dyn Fn(&dyn Held) -> Vec<String> + Send + Sync>;

struct Index {
    keys: Keys,
    entries: HashMap<String, BTreeSet<(String, String)>>,
}

impl Index {
    fn insert(&mut self, object: &dyn Held) {
        for key in (self.keys)(object) {
            let object = (object.namespace().to_owned(), object.name().to_owned());
            self.entries.entry(key).or_default().insert(object);
        }
    }
    fn remove(&mut self, object: &dyn Held) {
        for key in (self.keys)(object) {
            if let Some(set) = self.entries.get_mut(&key) {
                set.remove(&(object.namespace().to_owned(), object.name().to_owned()));
                if set.is_empty() {
                    self.entries.remove(&key);
                }
            }
        }
    }
}

impl State {
    fn add_index(&mut self, name: &'static str, keys: Keys) {
        if self.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { keys, entries: HashMap::new() };
        for object in self.objects.values().flat_map(BTreeMap::values) {
            index.insert(&**object);
        }
        self.indexes.insert(name, index);
    }

    fn tell(&mut self, change: &Change<dyn Held>) {
        self.subscribers.retain(|s| s.send(change.clone()).is_ok());
    }

    fn apply(&mut self, new: Arc<dyn Held>) {
        let names = self.objects.entry(new.namespace().to_owned()).or_default();
        let old = names.insert(new.name().to_owned(), new.clone());
        for index in self.indexes.values_mut() {
            if let Some(old) = &old {
                index.remove(&**old);
            }
            index.insert(&*new);
        }
        self.tell(&Change::Applied { old, new });
    }

    fn delete(&mut self, last: Arc<dyn Held>) {
        if self.remove(last.namespace(), last.name()).is_some() {
            self.tell(&Change::Deleted(last));
        }
    }

    fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<dyn Held>> {
        let names = self.objects.get_mut(namespace)?;
        let old = names.remove(name)?;
        if names.is_empty() {
            self.objects.remove(namespace);
        }
        for index in self.indexes.values_mut() {
            index.remove(&*old);
        }
        Some(old)
    }

    /// Makes the cache equal to a new list and tells the differences.
    fn replace(&mut self, items: Vec<Arc<dyn Held>>) {
        let mut gone: BTreeSet<(String, String)> =
            self.objects.iter().flat_map(|(ns, names)| names.keys().map(|n| (ns.clone(), n.clone()))).collect();
        for item in items {
            gone.remove(&(item.namespace().to_owned(), item.name().to_owned()));
            let same = self
                .objects
                .get(item.namespace())
                .and_then(|names| names.get(item.name()))
                .is_some_and(|o| o.resource_version() == item.resource_version() && o.uid() == item.uid());
            if !same {
                self.apply(item);
            }
        }
        for (ns, name) in gone {
            if let Some(old) = self.remove(&ns, &name) {
                self.tell(&Change::Deleted(old));
            }
        }
    }
}

/// The objects of a list, decoded as they come.
struct Decoded {
    decode: Decode,
    items: Vec<Arc<dyn Held>>,
}

impl Sink for Decoded {
    fn add(&mut self, object: &[u8]) -> Result<(), serde_json::Error> {
        self.items.push((self.decode)(object)?);
        Ok(())
    }
    fn clear(&mut self) {
        self.items.clear();
    }
}

/// Keeps one cache current.
struct Reflector {
    client: Client,
    clock: Clock,
    resource: Resource,
    scope: ListScope,
    decode: Decode,
    metadata_only: bool,
    cache: Arc<Cache>,
}

/// A watch is ended by the server after 5 to 10 minutes, spread so that not all end together.
const WATCH_SECONDS: std::ops::Range<u64> = 300..600;
/// A watch that the server should have ended this long ago is dead.
const WATCH_GRACE: Duration = Duration::from_secs(30);

impl Reflector {
    async fn run(self) {
        let mut backoff = Backoff::new();
        let mut resource_version = String::new();
        loop {
            let started = self.clock.now();
            match self.list_and_watch(&mut resource_version).await {
                // Ended in order. One that lived hardly at all must not become a busy loop.
                Ok(()) if self.clock.now().duration_since(started).as_secs() >= 1 => backoff.reset(),
                Ok(()) => self.clock.sleep(backoff.next()).await,
                Err(e) => {
                    if e.is_expired() {
                        resource_version.clear();
                        tracing::debug!(resource = %self.resource.gvr, "watch expired; listing again");
                    } else {
                        tracing::warn!(resource = %self.resource.gvr, error = %Chain(&e), "cannot watch; trying again");
                    }
                    if self.clock.now().duration_since(started).as_secs() >= 60 {
                        backoff.reset();
                    }
                    let wait = backoff.next().max(e.retry_after().unwrap_or_default());
                    self.clock.sleep(wait).await;
                }
            }
        }
    }

    /// Lists unless `resource_version` says where to go on, then watches until the watch ends.
    async fn list_and_watch(&self, resource_version: &mut String) -> Result<(), Error> {
        if resource_version.is_empty() {
            let mut listed = Decoded { decode: self.decode, items: Vec::new() };
            let revision =
                watch::list(&self.client, &self.resource, &self.scope, self.metadata_only, &mut listed).await?;
            let mut state = self.cache.state.write();
            state.replace(listed.items);
            self.cache.synced.send_replace(true);
            state.tell(&Change::Resync);
            *resource_version = revision;
        }
        let seconds = rand::random_range(WATCH_SECONDS);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds) + WATCH_GRACE;
        let mut stream =
            watch::watch(&self.client, &self.resource, &self.scope, resource_version, seconds, self.metadata_only)
                .await?;
        loop {
            let Ok(event) = tokio::time::timeout_at(deadline, stream.next()).await else {
                tracing::debug!(resource = %self.resource.gvr, "watch outlived its deadline; opening it again");
                return Ok(());
            };
            match event? {
                None => return Ok(()),
                Some(Event::Bookmark(rv)) => *resource_version = rv,
                Some(Event::Applied(object)) => {
                    let object = self.decoded(&object, stream.what())?;
                    object.resource_version().clone_into(resource_version);
                    self.cache.state.write().apply(object);
                }
                Some(Event::Deleted(object)) => {
                    let object = self.decoded(&object, stream.what())?;
                    object.resource_version().clone_into(resource_version);
                    self.cache.state.write().delete(object);
                }
            }
        }
    }

    fn decoded(&self, object: &[u8], what: &str) -> Result<Arc<dyn Held>, Error> {
        (self.decode)(object).map_err(|source| Error::Decode { what: what.to_owned(), source })
    }
}

/// Waits that double from 50 ms to 30 s, each shortened at random by up to half.
pub(crate) struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(30);

    pub(crate) fn new() -> Self {
        Backoff(Self::FIRST)
    }
    pub(crate) fn reset(&mut self) {
        self.0 = Self::FIRST;
    }
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.0.mul_f64(rand::random_range(0.5..1.0));
        self.0 = (self.0 * 2).min(Self::MAX);
        wait
    }
}
