//! Single objects in the store: keys, reads, and the one compare-and-swap that every write ends in.

use crate::ApiServer;
use crate::cache::entry::Entry;
use crate::cache::{Moment, store_status, write_status};
use crate::encode::served;
use crate::pipeline::Intent;
use bytes::Bytes;
use isopod_api::Status;
use isopod_base::errors::Chain;
use isopod_kinds::Kind;
use isopod_store::{Compare, Durability, KeyRange, LeaseId, Op, RangeRequest, Revision, StoreError, Txn};
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;

/// The key of an object: `/registry/pods/default/web`.
pub fn key(kind: &Kind, namespace: &str, name: &str) -> String {
    let keys = &kind.storage.keys;
    if kind.namespaced { [keys, namespace, "/", name].concat() } else { [keys, name].concat() }
}

/// The key of an object below that of its kind.
fn path_of(kind: &Kind, namespace: &str, name: &str) -> String {
    if kind.namespaced { [namespace, "/", name].concat() } else { name.to_owned() }
}

/// What a client may look for: keys of segments that are no dots, and of names that a path can have
/// (`registry/generic/registry/store.go`, `storage/etcd3/store.go`).
pub fn check_key(kind: &Kind, namespace: &str, name: &str) -> Result<(), Status> {
    if kind.namespaced && namespace.is_empty() {
        return Err(Status::bad_request("Namespace parameter required."));
    }
    if let Some(why) = bad_segment(name) {
        return Err(Status::bad_request(format!("Name parameter invalid: {name:?}: {why}")));
    }
    check_namespace(kind, namespace, &format!("/{name}"))
}

/// The failure of a storage whose keys cannot have such a namespace. `rest`: what of the key is behind it.
pub fn check_namespace(kind: &Kind, namespace: &str, rest: &str) -> Result<(), Status> {
    if !kind.namespaced || !matches!(namespace, "." | "..") {
        return Ok(());
    }
    let key = format!("/{}/{namespace}{rest}", kind.storage.prefix);
    Err(Status::new(500, "", format!("invalid key: {key:?}")))
}

/// Why a text cannot be a segment of a path.
pub fn bad_segment(text: &str) -> Option<&'static str> {
    match text {
        "." => Some("may not be '.'"),
        ".." => Some("may not be '..'"),
        _ if text.contains('/') => Some("may not contain '/'"),
        _ if text.contains('%') => Some("may not contain '%'"),
        _ => None,
    }
}

/// The newest committed state of one object.
pub struct Current {
    pub revision: Revision,
    /// As stored: without `resourceVersion`.
    pub stored: Bytes,
    pub entry: Arc<Entry>,
}

impl Current {
    pub fn value(&self, kind: &Kind) -> Value {
        served(kind, &self.entry.body)
    }
}

/// A write of one object, and what must happen with it in the same transaction.
pub struct Change {
    pub key: String,
    /// The revision that the key must be at; 0: it must not exist.
    pub expected: Revision,
    /// `None` deletes.
    pub value: Option<Bytes>,
    pub durability: Durability,
    pub lease: LeaseId,
    pub also_if: Vec<Compare>,
    pub also: Vec<Op>,
}

/// The lease that objects with a lifetime share: one for all objects of a minute, as upstream does.
#[derive(Default)]
pub struct SharedLease(Mutex<Option<(LeaseId, i64, jiff::Timestamp)>>);

impl ApiServer {
    /// Reads one object from the store itself.
    pub(crate) async fn current(
        &self,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Current>, Status> {
        let read = self.config.store.range(RangeRequest::new(KeyRange::key(key(kind, namespace, name))));
        let read = self.hub.datastore.asked("get", kind, read).await.map_err(store_status)?;
        let Some(kv) = read.kvs.into_iter().next() else { return Ok(None) };
        let entry = self.entry(kind, namespace, name, &kv.value, None, kv.mod_revision).await?;
        Ok(Some(Current { revision: kv.mod_revision, stored: kv.value, entry }))
    }

    /// The entry of what the store has at a revision, in the version of `kind`. `object`: what the bytes were made of, if that is at hand.
    pub(crate) async fn entry(
        &self,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        stored: &[u8],
        object: Option<&Value>,
        revision: Revision,
    ) -> Result<Arc<Entry>, Status> {
        // What was read or converted for others is not read again; of a write, the cache has mostly heard already. A cache that began
        // before the kind changed has the older form.
        let stored_kind = self.registry.load().stored(kind);
        let cache = self.hub.running(&stored_kind).filter(|c| Arc::ptr_eq(&c.kind, &stored_kind));
        let cached = cache.and_then(|c| c.get(&path_of(kind, namespace, name)));
        match cached.filter(|e| e.revision() == revision) {
            Some(entry) => self.view(kind, &entry).await,
            None => self.unstored_entry(kind, namespace, name, stored, object, revision).await,
        }
    }

    /// An entry of bytes in the stored form that the store need not have, such as a dry run's, in the version of `kind`.
    pub(crate) async fn unstored_entry(
        &self,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        bytes: &[u8],
        object: Option<&Value>,
        revision: Revision,
    ) -> Result<Arc<Entry>, Status> {
        let (stored_kind, path) = (self.registry.load().stored(kind), path_of(kind, namespace, name));
        // Of another version, or of a definition that may have changed meanwhile, the bytes alone tell.
        let entry = match object.filter(|_| kind.gvk == stored_kind.gvk && !kind.schema.custom) {
            Some(object) => Entry::of_object(&stored_kind, &path, bytes, object, revision),
            None => Entry::new(&stored_kind, &path, bytes, revision),
        };
        self.view(kind, &Arc::new(entry.map_err(|e| Status::internal(Chain(&e)))?)).await
    }

    /// Reads an object freshly, from the cache if one runs.
    pub(crate) async fn get_entry(
        &self,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Entry>>, Status> {
        let stored_kind = self.registry.load().stored(kind);
        if self.hub.running(&stored_kind).is_none() {
            return Ok(self.current(kind, namespace, name).await?.map(|c| c.entry));
        }
        let cache = self.hub.cache_at(&stored_kind, &Moment::default()).await?;
        self.view_of(kind, cache.get(&path_of(kind, namespace, name))).await
    }

    async fn view_of(&self, kind: &Arc<Kind>, entry: Option<Arc<Entry>>) -> Result<Option<Arc<Entry>>, Status> {
        match entry {
            Some(entry) => self.view(kind, &entry).await.map(Some),
            None => Ok(None),
        }
    }

    /// Reads an object as it is at hand in the cache, if one runs, else from the store.
    pub(crate) async fn get_cached(
        &self,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Entry>>, Status> {
        match self.hub.running(&self.registry.load().stored(kind)) {
            Some(cache) => self.view_of(kind, cache.get(&path_of(kind, namespace, name))).await,
            None => Ok(self.current(kind, namespace, name).await?.map(|c| c.entry)),
        }
    }

    /// An object by resource, for the server's own use.
    pub async fn read(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, Status> {
        let Some(kind) = self.registry.load().resource(group, resource).cloned() else { return Ok(None) };
        let entry = self.get_entry(&kind, namespace, name).await?;
        Ok(entry.map(|e| self.parsed_value(&kind, &e)))
    }

    /// As [`Self::read`], as it was at this moment or later: of what every write asks for, always from a cache.
    pub(crate) async fn read_at(
        &self,
        moment: &Moment,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, Status> {
        let Some(kind) = self.registry.load().resource(group, resource).cloned() else { return Ok(None) };
        let stored_kind = self.registry.load().stored(&kind);
        let cache = self.hub.cache_at(&stored_kind, moment).await?;
        let entry = self.view_of(&kind, cache.get(&path_of(&kind, namespace, name))).await?;
        Ok(entry.map(|e| self.parsed_value(&kind, &e)))
    }

    /// The entry's object in the version that `kind` serves, for looking at it.
    fn parsed_value(&self, kind: &Kind, entry: &Entry) -> Arc<Value> {
        // Definitions change what the same bytes are.
        if kind.schema.custom {
            return Arc::new(served(kind, &entry.body));
        }
        let key = [&*kind.gvk.version, &*kind.storage.keys, &*entry.key].concat();
        self.parsed.get(key, &entry.body, || served(kind, &entry.body))
    }

    /// All objects of a resource (in one namespace, or in all if it is empty), for the server's own use.
    pub async fn read_all(&self, group: &str, resource: &str, namespace: &str) -> Result<Vec<Arc<Value>>, Status> {
        self.read_all_at(&Moment::default(), group, resource, namespace).await
    }

    /// As [`Self::read_all`], as they were at this moment or later.
    pub(crate) async fn read_all_at(
        &self,
        moment: &Moment,
        group: &str,
        resource: &str,
        namespace: &str,
    ) -> Result<Vec<Arc<Value>>, Status> {
        let Some(kind) = self.registry.load().resource(group, resource).cloned() else { return Ok(Vec::new()) };
        let stored_kind = self.registry.load().stored(&kind);
        let cache = self.hub.cache_at(&stored_kind, moment).await?;
        let snapshot = cache.snapshot();
        let wanted = |e: &&Arc<Entry>| namespace.is_empty() || e.namespace() == namespace;
        let entries = self.views(&kind, snapshot.entries.values().filter(wanted).cloned().collect()).await?;
        Ok(entries.iter().map(|e| self.parsed_value(&kind, e)).collect())
    }

    /// The objects of a built-in resource in a namespace whose indexed label has this value.
    pub(crate) async fn labelled(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        value: &str,
    ) -> Result<Vec<Arc<Entry>>, Status> {
        let Some(kind) = self.registry.load().resource(group, resource).cloned() else { return Ok(Vec::new()) };
        let (cache, _) = self.hub.fresh_cache(&self.registry.load().stored(&kind)).await?;
        Ok(cache.labelled(namespace, value))
    }

    /// Would what is stored be encrypted otherwise today? Then writing the same again is how it gets the new key.
    pub(crate) async fn is_stale(&self, intent: &Intent) -> Result<bool, Status> {
        let Some(sealed) = &self.config.sealed else { return Ok(false) };
        sealed.is_stale(&key(&intent.kind, &intent.namespace, &intent.name)).await.map_err(store_status)
    }

    /// The one write of an object of this kind. `Ok(None)`: a compare failed.
    pub(crate) async fn commit(&self, kind: &Kind, change: Change) -> Result<Option<Revision>, Status> {
        let operation = match (&change.value, change.expected) {
            (None, _) => "delete",
            (Some(_), 0) => "create",
            (Some(_), _) => "update",
        };
        let mut compare = vec![Compare::mod_revision(change.key.clone(), change.expected)];
        compare.extend(change.also_if);
        let first = match change.value {
            Some(value) => Op::Put {
                key: change.key.into(),
                value,
                lease: change.lease,
                prev_kv: false,
                ignore_value: false,
                ignore_lease: false,
            },
            None => Op::delete(change.key),
        };
        let mut success = vec![first];
        success.extend(change.also);
        let txn = Txn { compare, success, failure: Vec::new(), durability: change.durability };
        let answer =
            self.hub.datastore.asked(operation, kind, self.config.store.txn(txn)).await.map_err(write_status)?;
        Ok(answer.succeeded.then_some(answer.revision))
    }

    pub(crate) fn durability(&self, kind: &Kind, namespace: &str, name: &str) -> Durability {
        let storage = &kind.storage;
        let below = |begin: &&str| path_of(kind, namespace, name).starts_with(*begin);
        let ephemeral = storage.ephemeral || storage.ephemeral_below.iter().any(below);
        if ephemeral { Durability::Ephemeral } else { Durability::Durable }
    }

    /// A lease for an object that goes by itself after a time; 0 for the others.
    pub(crate) async fn lease(&self, kind: &Kind) -> Result<LeaseId, Status> {
        let ttl = kind.storage.ttl_seconds;
        if ttl <= 0 {
            return Ok(0);
        }
        let now = self.config.clock.now();
        let fresh = |at: jiff::Timestamp| now.duration_since(at).as_secs() < 60;
        if let Some((id, _, _)) = self.lease.0.lock().filter(|(_, t, at)| *t == ttl && fresh(*at)) {
            return Ok(id);
        }
        // A minute more: an object that is written last lives as long as it should.
        let granted = self.config.store.lease_grant_ephemeral(0, ttl + 60).await;
        let id = granted.map_err(|e: StoreError| store_status(e))?.id;
        *self.lease.0.lock() = Some((id, ttl, now));
        Ok(id)
    }
}
