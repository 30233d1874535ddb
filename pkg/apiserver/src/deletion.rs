//! Deleting one object: preconditions, grace, finalizers and propagation, then removal (`apiserver/pkg/registry/rest/delete.go`
//! and `registry/generic/registry/store.go`). The only path on which objects go, besides an update that takes the last
//! finalizer away.

use crate::ApiServer;
use crate::admission::{self, Operation};
use crate::allocate;
use crate::audit::Layer;
use crate::metadata;
use crate::objects::{self, Change, Current};
use crate::options::{DeleteOptions, Propagation};
use crate::pipeline::{self, Done, Intent};
use isopod_api::{Status, time};
use isopod_kinds::Kind;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

const ATTEMPTS: usize = 32;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a delete comes to.
#[derive(Debug, PartialEq)]
enum Plan {
    /// The object goes now.
    Remove,
    /// It is marked and goes when its kubelet or its finalizers let it.
    Mark(Value),
    /// It is marked first, which watchers see, and goes then: a graceful deletion that nobody needs to wait for.
    MarkAndRemove(Value),
    /// It is marked well enough already.
    Pending,
}

/// Deletes an object, or marks it as being deleted.
pub async fn delete(server: &ApiServer, intent: &Intent, options: &DeleteOptions) -> Result<Done, Status> {
    for _ in 0..ATTEMPTS {
        intent.moment.renew();
        let current = pipeline::load(server, intent).await?;
        let old = current.value(&intent.kind);
        check(intent, &old, options)?;
        admission::validate(server, intent, Operation::Delete, None, Some(&old)).await?;
        let plan = plan(intent, &old, options);
        let (new, last) = match plan {
            Plan::Pending => return Ok(Done { entry: current.entry, created: false, removed: false }),
            Plan::Remove => (None, true),
            Plan::Mark(new) => (Some(new), false),
            Plan::MarkAndRemove(new) => (Some(new), true),
        };
        if intent.dry_run {
            let entry = match &new {
                Some(new) => pipeline::entry_of(server, intent, &intent.name, new, current.revision).await?,
                None => current.entry,
            };
            return Ok(Done { entry, created: false, removed: last });
        }
        let marks = new.is_some();
        let Some(done) = store(server, intent, &current, &old, new).await? else { continue };
        return if marks && last { remove_marked(server, intent, &old, done).await } else { Ok(done) };
    }
    Err(Status::outdated(&intent.kind.gvr(), &intent.name))
}

/// The second half of a delete whose first has marked the object. Whoever removes it meanwhile, such as a write that finds it
/// marked, does what this delete wants.
async fn remove_marked(server: &ApiServer, intent: &Intent, old: &Value, marked: Done) -> Result<Done, Status> {
    for _ in 0..ATTEMPTS {
        intent.moment.renew();
        let Some(current) = server.current(&intent.kind, &intent.namespace, &intent.name).await? else {
            return Ok(Done { removed: true, ..marked });
        };
        let value = current.value(&intent.kind);
        if metadata::uid(&value) != metadata::uid(old) {
            return Ok(Done { removed: true, ..marked });
        }
        if let Some(done) = store(server, intent, &current, &value, None).await? {
            return Ok(done);
        }
    }
    Err(Status::outdated(&intent.kind.gvr(), &intent.name))
}

async fn store(
    server: &ApiServer,
    intent: &Intent,
    current: &Current,
    old: &Value,
    new: Option<Value>,
) -> Result<Option<Done>, Status> {
    let removed = new.is_none();
    let value = match new {
        Some(new) => Some(pipeline::stored_bytes(server, intent, &new).await?),
        None => None,
    };
    let allocation = if removed { allocate::on_delete(server, intent, old).await? } else { Default::default() };
    let change = Change {
        key: objects::key(&intent.kind, &intent.namespace, &intent.name),
        expected: current.revision,
        value: value.clone(),
        durability: server.durability(&intent.kind, &intent.namespace, &intent.name),
        lease: server.lease(&intent.kind).await?,
        also_if: allocation.compare,
        also: allocation.ops,
    };
    let committed = intent.trail.timed(Layer::Storage, server.commit(&intent.kind, change)).await?;
    let Some(revision) = committed else { return Ok(None) };
    let stored = value.as_ref().unwrap_or(&current.stored);
    let entry = server.entry(&intent.kind, &intent.namespace, &intent.name, stored, None, revision).await?;
    Ok(Some(Done { entry, created: false, removed }))
}

/// Whether the preconditions hold.
pub fn check(intent: &Intent, old: &Value, options: &DeleteOptions) -> Result<(), Status> {
    // Upstream names the kind here, not the resource, and that of the stored group: events of either are the core group's.
    let gvk = &intent.kind.storage.gvk;
    // Definitions are deleted by code of their own, which has words of its own.
    let definition = gvk.kind == "CustomResourceDefinition";
    let named = match definition {
        true => intent.kind.gvr(),
        false => isopod_api::Gvr::new(&gvk.group, &gvk.version, &gvk.kind),
    };
    let conflict = |why: String| Err(Status::conflict(&named, &intent.name, why));
    let uid = metadata::uid(old).unwrap_or_default();
    if let Some(want) = options.uid.as_deref().filter(|w| *w != uid) {
        if definition {
            return conflict(format!("precondition failed: UID in precondition: {want}, UID in object meta: {uid}"));
        }
        return conflict(format!(
            "the UID in the precondition ({want}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        ));
    }
    let version = old["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if let Some(want) = options.resource_version.as_deref().filter(|w| *w != version) {
        if definition {
            return conflict(format!(
                "precondition failed: ResourceVersion in precondition: {want}, ResourceVersion in object meta: {version}"
            ));
        }
        return conflict(format!(
            "the ResourceVersion in the precondition ({want}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        ));
    }
    Ok(())
}

fn is_namespace(kind: &Kind) -> bool {
    kind.gvk.group.is_empty() && kind.resource == "namespaces"
}

/// What is to happen. Pure.
fn plan(intent: &Intent, stored: &Value, options: &DeleteOptions) -> Plan {
    let (kind, now) = (&intent.kind, intent.now);
    let mut prepared = stored.clone();
    kind.hooks.prepare_delete(&intent.ctx(), &mut prepared);
    let old = &prepared;
    let asked = options.grace_period_seconds.map(|s| if s < 0 { 1 } else { s });
    let deleted = old["metadata"]["deletionTimestamp"].as_str().and_then(time::parse);
    let before = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let mut new = old.clone();
    let finalizers = finalizers(kind, old, options);
    let same_finalizers = finalizers == texts(&old["metadata"]["finalizers"]);
    set_finalizers(&mut new, &finalizers);
    if is_namespace(kind) {
        return namespace_plan(new, old, deleted.is_none(), now);
    }
    // The grace period that this delete gives, where the kind knows any.
    let graceful = match (deleted, kind.hooks.graceful_delete(old, asked)) {
        (Some(at), Some(_)) if before > 0 => match asked {
            Some(wanted) if wanted < before => Some(shorten(&mut new, at, before, wanted, now)),
            _ => return Plan::Pending,
        },
        (None, Some(grace)) => {
            mark(&mut new, now, grace);
            Some(grace)
        }
        _ => None,
    };
    match graceful {
        Some(0) if finalizers.is_empty() => Plan::MarkAndRemove(new),
        Some(_) => Plan::Mark(new),
        None if finalizers.is_empty() => Plan::Remove,
        None => {
            if deleted.is_none() {
                mark(&mut new, now, 0);
            }
            if new == *stored && same_finalizers { Plan::Pending } else { Plan::Mark(new) }
        }
    }
}

/// A namespace is marked by the first delete, whatever holds it; its controller takes the finalizers away and deletes again.
fn namespace_plan(mut new: Value, old: &Value, first: bool, now: Timestamp) -> Plan {
    if first {
        new["metadata"]["deletionTimestamp"] = time::format(now).into();
    }
    new["status"]["phase"] = "Terminating".into();
    let held = !texts(&new["metadata"]["finalizers"]).is_empty() || !texts(&new["spec"]["finalizers"]).is_empty();
    match (held, new == *old) {
        (false, _) if !first => Plan::Remove,
        (true, true) => Plan::Pending,
        _ => Plan::Mark(new),
    }
}

/// Brings the end of a graceful deletion nearer, not into the past. Returns the new grace period.
fn shorten(new: &mut Value, at: Timestamp, before: i64, wanted: i64, now: Timestamp) -> i64 {
    let mut grace = wanted;
    let mut end = at - SignedDuration::from_secs(before) + SignedDuration::from_secs(wanted);
    if end < now {
        end = now;
        if wanted != 0 {
            grace = 1;
        }
    }
    new["metadata"]["deletionTimestamp"] = time::format(end).into();
    new["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    grace
}

fn mark(new: &mut Value, now: Timestamp, grace: i64) {
    let meta = &mut new["metadata"];
    meta["deletionTimestamp"] = time::format(now + SignedDuration::from_secs(grace)).into();
    meta["deletionGracePeriodSeconds"] = grace.into();
    if let Some(generation) = meta["generation"].as_i64().filter(|g| *g > 0) {
        meta["generation"] = (generation + 1).into();
    }
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    if let Some(meta) = object["metadata"].as_object_mut() {
        if finalizers.is_empty() {
            meta.remove("finalizers");
        } else {
            meta.insert("finalizers".into(), json!(finalizers));
        }
    }
}

/// Kinds whose dependents are left alone unless the client says otherwise, for compatibility.
fn orphans_by_default(kind: &Kind) -> bool {
    matches!((kind.gvk.group.as_str(), kind.resource.as_str()), ("", "replicationcontrollers") | ("batch", "jobs"))
}

/// The finalizers that the garbage collector acts on follow from the propagation that the client wants.
fn finalizers(kind: &Kind, old: &Value, options: &DeleteOptions) -> Vec<String> {
    let mut list = texts(&old["metadata"]["finalizers"]);
    let has = |name: &str| list.iter().any(|f| f == name);
    let (orphan, foreground) = match (options.orphan_dependents, options.propagation) {
        (Some(orphan), _) => (orphan, false),
        (None, Some(p)) => (p == Propagation::Orphan, p == Propagation::Foreground),
        (None, None) if has(ORPHAN) => (true, false),
        (None, None) if has(FOREGROUND) => (false, true),
        (None, None) => (orphans_by_default(kind), false),
    };
    list.retain(|f| f != ORPHAN && f != FOREGROUND);
    if orphan {
        list.push(ORPHAN.into());
    }
    if foreground {
        list.push(FOREGROUND.into());
    }
    list
}
