//! Follows the CustomResourceDefinitions: what they define is served as the built-in kinds are.
//!
//! Invariants:
//! - Which kinds are served is a function of the definitions in the cache, made anew when these change. Requests for what may be
//!   a custom resource, and for discovery, see every definition that was acknowledged before them ([`fresh`]).
//! - A definition is served as soon as its names are accepted, whether its status says so already or not: writing the status,
//!   and cleaning up after a definition that is deleted, is the work of one task, which takes no hint but the definitions.

mod cleanup;

use crate::ApiServer;
use crate::cache::Moment;
use crate::cache::entry::{Entry, Filter};
use crate::cache::resource::Entries;
use crate::candidate::update::Edit;
use crate::encode::served;
use crate::pipeline::{self, Intent};
use crate::registry::Registry;
use isopod_api::{Status, time};
use isopod_kinds::access::{Access, set};
use isopod_kinds::custom::{self, status};
use isopod_kinds::{CRD, Kind};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// When to write a status again that could not be written.
const AGAIN: Duration = Duration::from_secs(1);

/// What is known of the definitions.
#[derive(Default)]
pub struct Definitions(Mutex<State>);

#[derive(Default)]
struct State {
    seen: Entries,
    /// By name.
    known: BTreeMap<Arc<str>, Known>,
    /// Uids of those whose objects are being deleted.
    cleaning: BTreeSet<String>,
}

#[derive(Clone)]
struct Known {
    entry: Arc<Entry>,
    /// With the status that it should have.
    object: Value,
    kinds: Vec<Arc<Kind>>,
}

/// Takes in what is stored, then follows it until the server stops.
pub async fn start(server: &Arc<ApiServer>) -> Result<(), Status> {
    fresh(server).await?;
    tokio::spawn(follow(Arc::downgrade(server)));
    Ok(())
}

/// Everything that is committed now is served when this returns.
pub async fn fresh(server: &ApiServer) -> Result<(), Status> {
    let Some(kind) = definition_kind(server) else { return Ok(()) };
    let (cache, _) = server.hub.fresh_cache(&kind).await?;
    take_in(server, &kind, &cache.snapshot().entries);
    Ok(())
}

fn definition_kind(server: &ApiServer) -> Option<Arc<Kind>> {
    server.registry.load().resource(CRD.0, CRD.1).cloned()
}

/// Makes the registry anew if the definitions have changed.
fn take_in(server: &ApiServer, kind: &Kind, entries: &Entries) {
    let mut state = server.definitions.0.lock();
    if state.seen.ptr_eq(entries) {
        return;
    }
    let mut old = std::mem::take(&mut state.known);
    let mut known: BTreeMap<Arc<str>, Known> = BTreeMap::new();
    for (name, entry) in entries {
        let same = old.get(name).filter(|k| Arc::ptr_eq(&k.entry, entry)).cloned();
        let read = || Known { entry: entry.clone(), object: served(kind, &entry.body), kinds: Vec::new() };
        known.insert(name.clone(), same.unwrap_or_else(read));
    }
    settle(&mut known, &time::format(server.config.clock.now()));
    let mut changed = known.len() != old.len();
    for (name, now) in &mut known {
        let before = old.remove(name);
        if let Some(before) = before.as_ref().filter(|b| defines(&b.object) == defines(&now.object)) {
            now.kinds.clone_from(&before.kinds);
            continue;
        }
        changed = true;
        now.kinds = if status::is_served(&now.object) { custom::kinds(&now.object) } else { Vec::new() };
        // What was cached has the form of the older schema.
        match now.kinds.iter().find(|k| k.gvk == k.storage.gvk) {
            Some(stored) => server.hub.define(stored),
            None => before.iter().flat_map(|b| b.kinds.first()).for_each(|k| server.hub.forget(k)),
        }
    }
    old.values().flat_map(|gone| gone.kinds.first()).for_each(|k| server.hub.forget(k));
    if changed {
        let all: Vec<Arc<Kind>> = known.values().flat_map(|k| k.kinds.iter().cloned()).collect();
        server.conversions.retain(&all);
        server.registry.store(Arc::new(Registry::new(server.config.kinds.iter().cloned().chain(all))));
        server.aggregation.registry_changed.notify_one();
    }
    state.known = known;
    state.seen = entries.clone();
}

/// What of a definition its kinds are made of.
fn defines(object: &Value) -> (&Value, &Value, &Value, bool, bool) {
    let names = object.at("status.acceptedNames");
    (object.at("metadata.uid"), object.at("spec"), names, status::is_served(object), custom::is_terminating(object))
}

/// Gives each definition the status that it should have. Older ones are asked first: a name belongs to whom it was granted.
fn settle(known: &mut BTreeMap<Arc<str>, Known>, now: &str) {
    let mut names: Vec<Arc<str>> = known.keys().cloned().collect();
    names.sort_by_key(|n| {
        let meta = &known[n].object["metadata"];
        // Times are whole seconds; of what has not been written since, the revision is that of its creation.
        (meta.text("creationTimestamp").to_owned(), meta.text("resourceVersion").parse::<i64>().unwrap_or_default())
    });
    for name in names {
        let Some(mut object) = known.get_mut(&name).map(|k| std::mem::take(&mut k.object)) else { continue };
        let group = object.text("spec.group").to_owned();
        let others = known.values().map(|k| &k.object).filter(|o| o.text("spec.group") == group);
        status::settle(&mut object, others, now);
        if let Some(k) = known.get_mut(&name) {
            k.object = object;
        }
    }
}

async fn follow(weak: Weak<ApiServer>) {
    loop {
        let Some(server) = weak.upgrade() else { return };
        let stop = server.stop.clone();
        let Some(kind) = definition_kind(&server) else { return };
        let Ok(cache) = server.hub.cache(&kind).await else {
            // The store is away.
            drop(server);
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => continue,
                () = stop.cancelled() => return,
            }
        };
        let (mut changes, snapshot) = cache.subscribe_with_snapshot(Filter::default());
        take_in(&server, &kind, &snapshot.entries);
        let mut behind = act(&server, &kind).await;
        drop(server);
        loop {
            // A status that could not be written is tried again, with or without news.
            let again = if behind { AGAIN } else { Duration::MAX };
            let news = tokio::select! {
                news = tokio::time::timeout(again, changes.recv()) => news,
                () = stop.cancelled() => return,
            };
            // The cache starts anew.
            if matches!(news, Ok(None)) {
                break;
            }
            while changes.try_recv().is_ok() {}
            let Some(server) = weak.upgrade() else { return };
            take_in(&server, &kind, &cache.snapshot().entries);
            behind = act(&server, &kind).await;
        }
    }
}

/// Writes every status that is not as it should be, and begins to clean up. True: something could not be written.
async fn act(server: &Arc<ApiServer>, kind: &Arc<Kind>) -> bool {
    let all: Vec<Known> = server.definitions.0.lock().known.values().cloned().collect();
    let mut behind = false;
    for known in all {
        let stored = served(kind, &known.entry.body);
        if stored.at("status") != known.object.at("status") {
            let wanted = &known.object;
            let written = write_status(server, kind, wanted, |object| take_status(object, wanted)).await;
            if let Err(e) = &written {
                tracing::warn!(definition = known.entry.name(), error = %e, "cannot write the status");
            }
            behind |= written.is_err();
        }
        let object = &known.object;
        if object.has("metadata.deletionTimestamp") && object.texts("metadata.finalizers").contains(&status::FINALIZER)
        {
            cleanup::start(server, kind, object, known.kinds.iter().find(|k| k.gvk == k.storage.gvk).cloned());
        }
    }
    behind
}

/// Changes a definition through its status subresource. One that is gone, or another one by now, is left alone.
async fn write_status(
    server: &ApiServer,
    kind: &Arc<Kind>,
    definition: &Value,
    change: impl Fn(&mut Value) + Send + Sync,
) -> Result<(), Status> {
    let mut intent = server.intent(kind, "", definition.text("metadata.name"));
    intent.subresource = "status".to_owned();
    let uid = definition["metadata"]["uid"].clone();
    let edit = Edit(|object: &mut Value| {
        if object["metadata"]["uid"] == uid {
            change(object);
        }
        Ok(())
    });
    match pipeline::update(server, &intent, &edit).await {
        Err(e) if e.code != 404 => Err(e),
        _ => Ok(()),
    }
}

/// The conditions that follow from the definition itself.
const OWN: [&str; 4] = ["NamesAccepted", "Established", "NonStructuralSchema", "KubernetesAPIApprovalPolicyConformant"];

/// Takes the names and conditions of `wanted`, unless it was made for other names.
fn take_status(object: &mut Value, wanted: &Value) {
    if object.at("spec.names") != wanted.at("spec.names") {
        return;
    }
    set(object, "status.acceptedNames", wanted.at("status.acceptedNames").clone());
    let own = |c: &&Value| OWN.contains(&c.text("type"));
    let mut conditions: Vec<Value> = wanted.list("status.conditions").iter().filter(own).cloned().collect();
    conditions.extend(object.list("status.conditions").iter().filter(|c| !own(c)).cloned());
    set(object, "status.conditions", conditions);
}

impl ApiServer {
    /// What the server itself does with an object.
    pub(crate) fn intent(&self, kind: &Arc<Kind>, namespace: &str, name: &str) -> Intent {
        Intent {
            kind: kind.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: String::new(),
            manager: crate::ownership::SERVER.to_owned(),
            user: isopod_api::UserInfo::new("system:apiserver", &[isopod_api::user::SYSTEM_MASTERS]),
            dry_run: false,
            options: Value::Null,
            webhooks_asked: false,
            warnings: Arc::default(),
            trail: Default::default(),
            now: self.config.clock.now(),
            moment: Moment::default(),
        }
    }
}
