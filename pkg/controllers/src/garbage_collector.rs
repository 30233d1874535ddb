//! Deletes objects whose owners are gone, and carries out foreground and orphaning deletion.
//!
//! Watches the metadata of every resource that can be listed, watched and deleted; deletes dependents, and patches
//! `metadata.ownerReferences` and the finalizers `orphan` and `foregroundDeletion`. Invariants: nothing is deleted before the
//! server itself has been asked for the object and for each owner that the graph does not know; a delete names the uid and
//! the revision that were looked at; no finalizer is removed before every resource has been listed once.

mod decide;
mod graph;

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use async_trait::async_trait;
use decide::{Decision, Owners};
use graph::{Graph, Linked, Object};
use isopod_base::errors::Chain;
use isopod_client::discovery::{self, Discovered};
use isopod_client::queue::WorkQueue;
use isopod_client::views::OwnerReference;
use isopod_client::{Change, Informer, Informers, ListScope, Patch, Resource, View, decode};
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const DEFINITIONS: &str = "customresourcedefinitions";
const API_SERVICES: &str = "apiservices";
/// How long the first look at a resource may take.
const SYNC: Duration = Duration::from_secs(30);
/// How long new definitions may take until their resources are served.
const SETTLE: Duration = Duration::from_secs(1);

struct GarbageCollector {
    context: Context,
    informers: Informers,
    graph: Arc<Mutex<Graph>>,
    queue: WorkQueue<Key>,
    /// By `apiVersion/kind`'s group and kind.
    kinds: RwLock<HashMap<(String, String), Resource>>,
    watched: Mutex<HashMap<Resource, Informer<Linked>>>,
}

/// Keys are uids. One more key asks for discovery.
fn discover() -> Key {
    Key::new("discovery", "")
}

pub async fn run(context: Context) {
    let queue = WorkQueue::new(context.clock.clone());
    let collector = Arc::new(GarbageCollector {
        informers: Informers::with_clock(context.client.clone(), context.clock.clone()),
        graph: Arc::default(),
        queue: queue.clone(),
        kinds: RwLock::default(),
        watched: Mutex::default(),
        context: context.clone(),
    });
    let stop = context.stop.clone();
    if stop.run_until_cancelled(collector.start()).await.is_none() {
        return;
    }
    context.work(collector, queue, 8).await;
}

impl GarbageCollector {
    /// Discovers the resources and waits until each is in the graph.
    async fn start(&self) {
        let mut wait = Duration::from_millis(50);
        while let Err(e) = self.discover().await {
            tracing::debug!(error = %Chain(&e), "cannot discover resources yet");
            self.context.clock.sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(10));
        }
        let all: Vec<Informer<Linked>> = self.watched.lock().values().cloned().collect();
        for informer in all {
            // A server elsewhere that does not answer holds nobody up.
            if tokio::time::timeout(SYNC, informer.synced()).await.is_err() {
                tracing::warn!("the garbage collector cannot list every resource yet");
            }
        }
    }

    async fn discover(&self) -> Result<(), Error> {
        let found = discovery::preferred(&self.context.client).await?;
        let mut kinds = HashMap::new();
        for d in &found {
            kinds.entry((d.resource.gvr.group.clone(), d.kind.clone())).or_insert_with(|| d.resource.clone());
        }
        *self.kinds.write() = kinds;
        let is_collectable = |d: &&Discovered| {
            // Events are many, short-lived and owned by nobody.
            d.resource.gvr.resource != "events" && ["list", "watch", "delete"].iter().all(|v| d.can(v))
        };
        for d in found.iter().filter(is_collectable) {
            self.watch(&d.resource);
        }
        Ok(())
    }

    fn watch(&self, resource: &Resource) {
        let mut watched = self.watched.lock();
        if watched.contains_key(resource) {
            return;
        }
        let informer = self.informers.get::<Linked>(resource.clone(), ListScope::all());
        watched.insert(resource.clone(), informer.clone());
        let (graph, queue) = (self.graph.clone(), self.queue.clone());
        let resource = Arc::new(resource.clone());
        let defines_kinds = matches!(&*resource.gvr.resource, DEFINITIONS | API_SERVICES);
        self.context.feed(&informer, move |change| {
            if defines_kinds && !matches!(change, Change::Resync) {
                queue.add_after(discover(), SETTLE);
            }
            let wake = match change {
                Change::Applied { old, new } => {
                    let mut graph = graph.lock();
                    let remade = old.filter(|o| o.uid() != new.uid());
                    let mut wake = remade.map(|o| graph.remove(o.uid())).unwrap_or_default();
                    wake.extend(graph.insert(Object::new(&resource, &new)));
                    wake
                }
                Change::Deleted(old) => graph.lock().remove(old.uid()),
                Change::Resync => Vec::new(),
            };
            wake.into_iter().for_each(|uid| queue.add(Key::new("", &uid)));
        });
    }

    fn resource_of(&self, owner: &OwnerReference) -> Option<Resource> {
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
        self.kinds.read().get(&(group.to_owned(), owner.kind.clone())).cloned()
    }

    /// The object as the server has it; `None` when it is gone or another one has its name.
    async fn fresh(&self, resource: &Resource, namespace: &str, name: &str, uid: &str) -> Result<Option<Value>, Error> {
        let calls = self.context.calls(resource.clone());
        let object: Option<Value> = calls.find(namespace, name).await?;
        Ok(object.filter(|o| o["metadata"]["uid"] == uid))
    }

    /// Sorts the owners of an object into those that hold it, those that are gone and those that wait for it to go.
    async fn classify(&self, object: &Object, references: &[OwnerReference]) -> Result<Owners, Error> {
        let mut owners = Owners::default();
        for reference in references {
            let known = self.graph.lock().get(&reference.uid).map(|o| o.deletes_dependents());
            let waits = match known {
                Some(waits) => Some(waits),
                None => {
                    let Some(resource) = self.resource_of(reference) else {
                        // A kind that is not served (yet): whether the owner exists cannot be known.
                        owners.solid.push(reference.uid.clone());
                        continue;
                    };
                    if resource.namespaced && object.namespace.is_empty() {
                        // A cluster object cannot be owned by a namespaced one: no lookup can settle it.
                        owners.solid.push(reference.uid.clone());
                        continue;
                    }
                    let namespace = if resource.namespaced { &object.namespace } else { "" };
                    let fresh = self.fresh(&resource, namespace, &reference.name, &reference.uid).await?;
                    fresh.map(|o| {
                        let has =
                            |f: &str| o["metadata"]["finalizers"].as_array().is_some_and(|l| l.iter().any(|x| x == f));
                        !o["metadata"]["deletionTimestamp"].is_null() && has(FOREGROUND)
                    })
                }
            };
            match waits {
                None => owners.dangling.push(reference.uid.clone()),
                Some(true) => owners.waiting.push(reference.uid.clone()),
                Some(false) => owners.solid.push(reference.uid.clone()),
            }
        }
        Ok(owners)
    }

    /// Deletes the object if its owners are gone, or lets go of those of several that are.
    async fn attempt_delete(&self, object: &Object) -> Result<(), Error> {
        let Some(fresh) = self.fresh(&object.resource, &object.namespace, &object.name, &object.uid).await? else {
            // The cache will say so too.
            return Ok(());
        };
        let references: Vec<OwnerReference> =
            decode::from_value(&fresh["metadata"]["ownerReferences"]).unwrap_or_default();
        if references.is_empty() || !fresh["metadata"]["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let owners = self.classify(object, &references).await?;
        let (has_dependents, in_a_circle) = {
            let graph = self.graph.lock();
            let dependents = graph.dependents(&object.uid);
            (!dependents.is_empty(), dependents.iter().any(|d| d.deletes_dependents()))
        };
        let decision = decide::decide(&owners, has_dependents, &finalizers(&fresh));
        self.context.apply_all(&steps(object, &fresh, decision, in_a_circle)).await
    }

    /// Takes `owner` out of its dependents' owners, then lets it go.
    async fn orphan_dependents(&self, owner: &Object) -> Result<(), Error> {
        let dependents: Vec<Object> = self.graph.lock().dependents(&owner.uid).into_iter().cloned().collect();
        for d in dependents {
            if let Some(fresh) = self.fresh(&d.resource, &d.namespace, &d.name, &d.uid).await? {
                let gone = [owner.uid.clone()];
                self.context.apply_all(&release(&d, &fresh, &gone)).await?;
            }
        }
        self.remove_finalizer(owner, ORPHAN).await
    }

    /// Waits for the dependents that block the deletion of `owner`; without any, lets it go.
    async fn delete_dependents(&self, owner: &Object) -> Result<(), Error> {
        let blocking: Vec<Object> = self.graph.lock().blocking(&owner.uid).into_iter().cloned().collect();
        if blocking.is_empty() {
            return self.remove_finalizer(owner, FOREGROUND).await;
        }
        blocking.iter().filter(|d| !d.deletes_dependents()).for_each(|d| self.queue.add(Key::new("", &d.uid)));
        Ok(())
    }

    async fn remove_finalizer(&self, object: &Object, finalizer: &str) -> Result<(), Error> {
        let Some(fresh) = self.fresh(&object.resource, &object.namespace, &object.name, &object.uid).await? else {
            return Ok(());
        };
        let before = finalizers(&fresh);
        if !before.iter().any(|f| f == finalizer) {
            return Ok(());
        }
        let after: Vec<&String> = before.iter().filter(|f| *f != finalizer).collect();
        self.context.apply(&patch(object, &fresh, json!({"finalizers": after}))).await.map(drop)
    }
}

fn finalizers(object: &Value) -> Vec<String> {
    serde_json::from_value(object["metadata"]["finalizers"].clone()).unwrap_or_default()
}

/// A patch of metadata that fails when the object has changed since it was looked at.
fn patch(object: &Object, fresh: &Value, metadata: Value) -> Op {
    let revision = fresh["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let patch = Patch::Merge(json!({"metadata": metadata}));
    Op::patch((*object.resource).clone(), &object.namespace, &object.name, patch)
        .if_uid(&object.uid)
        .if_unchanged(revision)
}

/// Removes owners from an object.
fn release(object: &Object, fresh: &Value, gone: &[String]) -> Vec<Op> {
    let before = fresh["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
    let stays = |r: &&Value| !gone.iter().any(|uid| r["uid"] == uid.as_str());
    let after: Vec<&Value> = before.iter().filter(stays).collect();
    if after.len() == before.len() {
        return Vec::new();
    }
    vec![patch(object, fresh, json!({"ownerReferences": after}))]
}

fn steps(object: &Object, fresh: &Value, decision: Decision, in_a_circle: bool) -> Vec<Op> {
    let revision = fresh["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let how = match decision {
        Decision::Keep => return Vec::new(),
        Decision::Release(gone) => return release(object, fresh, &gone),
        Decision::Delete(how) => how,
        Decision::DeleteInForeground if in_a_circle => {
            // Owners that wait for one another would wait for ever: this one no longer blocks its owners.
            let mut references = fresh["metadata"]["ownerReferences"].clone();
            for r in references.as_array_mut().into_iter().flatten() {
                r["blockOwnerDeletion"] = json!(false);
            }
            let unblock = patch(object, fresh, json!({"ownerReferences": references}));
            let delete = Op::delete((*object.resource).clone(), &object.namespace, &object.name).if_uid(&object.uid);
            return vec![unblock, delete.propagate(isopod_client::Propagation::Foreground)];
        }
        Decision::DeleteInForeground => isopod_client::Propagation::Foreground,
    };
    let delete = Op::delete((*object.resource).clone(), &object.namespace, &object.name);
    vec![delete.if_uid(&object.uid).if_unchanged(revision).propagate(how)]
}

#[async_trait]
impl Controller for GarbageCollector {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        if *key == discover() {
            return self.discover().await.map(|()| None);
        }
        let Some(object) = self.graph.lock().get(&key.name).cloned() else { return Ok(None) };
        if !object.deleting {
            self.attempt_delete(&object).await?;
        } else if object.has_orphan_finalizer {
            self.orphan_dependents(&object).await?;
        } else if object.has_foreground_finalizer {
            self.delete_dependents(&object).await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_client::Propagation;

    fn object() -> Object {
        let linked: Linked =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}})).unwrap();
        Object::new(&Arc::new(Resource::namespaced("", "v1", "pods")), &linked)
    }

    #[test]
    fn steps_name_the_revision_that_was_looked_at() {
        let fresh =
            json!({"metadata": {"uid": "u", "resourceVersion": "9", "ownerReferences": [{"uid": "a"}, {"uid": "b"}]}});
        let [Op::Delete { options, .. }] =
            &steps(&object(), &fresh, Decision::Delete(Propagation::Background), false)[..]
        else {
            panic!()
        };
        assert_eq!(options.preconditions.resource_version.as_deref(), Some("9"));
        assert_eq!(options.preconditions.uid.as_deref(), Some("u"));
        let shown = |d, circle| steps(&object(), &fresh, d, circle).iter().map(Op::to_string).collect::<Vec<_>>();
        assert_eq!(
            shown(Decision::Release(vec!["a".into()]), false),
            [r#"patch pods ns/p {"metadata":{"ownerReferences":[{"uid":"b"}]}}"#]
        );
        assert_eq!(shown(Decision::DeleteInForeground, true).len(), 2);
        assert_eq!(shown(Decision::DeleteInForeground, false), ["delete pods ns/p Foreground"]);
        assert!(shown(Decision::Keep, false).is_empty());
    }
}
