//! The only write path. [`create`] and [`update`] read as lists: each step is one thing that happens to an object, in
//! upstream's order. A lost compare-and-swap makes the candidate again from the newest object and runs the list again.

use crate::ApiServer;
use crate::admission::resource_quota::charge_quotas;
use crate::admission::{self, Operation};
use crate::allocate;
use crate::audit::{Layer, Trail};
use crate::cache::Moment;
use crate::cache::entry::Entry;
use crate::candidate::{Candidate, Creates};
use crate::encode::{splice, to_json};
use crate::objects::{self, Change, Current};
use crate::{chain, metadata, ownership};
use foldhash::quality::RandomState;
use isopod_api::{Status, UserInfo};
use isopod_auth::Attributes;
use isopod_kinds::{Ctx, Kind};
use isopod_schema::{default, json};
use isopod_store::Revision;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock};

/// How often a write is tried again when others write the same object.
const ATTEMPTS: usize = 32;
/// How often a generated name may be taken already.
const NAMES: usize = 8;
/// etcd's limit for a value, which clients rely on as a clear error.
const MAX_OBJECT: usize = 3 << 20;

/// What is to be written, and for whom.
#[derive(Clone)]
pub struct Intent {
    pub kind: Arc<Kind>,
    pub namespace: String,
    /// Empty: the object says, or has its name generated.
    pub name: String,
    /// `""`, or the subresource through which an update comes.
    pub subresource: String,
    pub user: UserInfo,
    /// Who owns the fields that are written.
    pub manager: String,
    pub dry_run: bool,
    /// The options of the request, as webhooks see them.
    pub options: Value,
    /// Webhooks were asked about a request of which this is a part.
    pub webhooks_asked: bool,
    /// Texts for `Warning` headers.
    pub warnings: Arc<Mutex<Vec<String>>>,
    /// For the audit log.
    pub trail: Trail,
    pub now: Timestamp,
    /// When this write looks at other objects.
    pub moment: Moment,
}

impl Intent {
    pub fn ctx(&self) -> Ctx<'_> {
        Ctx { now: self.now, user: &self.user, subresource: &self.subresource, dry_run: self.dry_run }
    }

    pub fn not_found(&self) -> Status {
        Status::not_found(&self.kind.gvr(), &self.name)
    }

    pub fn warn(&self, texts: impl IntoIterator<Item = String>) {
        let mut warnings = self.warnings.lock();
        for text in texts {
            if !warnings.contains(&text) {
                warnings.push(text);
            }
        }
    }

    /// `sent`: the object as the client sent it, asked for only where there are errors.
    fn invalid(
        &self,
        object: &Value,
        errors: isopod_api::FieldErrors,
        sent: impl FnOnce() -> Value,
    ) -> Result<(), Status> {
        if errors.is_empty() {
            return Ok(());
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let errors = isopod_kinds::golang::finish(errors, &self.kind.schema, &sent());
        // Upstream names the kind in its internal group: events of either group are the core group's.
        Err(Status::invalid(&self.kind.storage.gvk, name, &errors))
    }
}

/// What a write did.
pub struct Done {
    /// The object as it is now, or as it was last.
    pub entry: Arc<Entry>,
    pub created: bool,
    /// The write removed the object (its last finalizer went).
    pub removed: bool,
}

/// Creates an object.
pub async fn create(server: &ApiServer, intent: &Intent, body: &Value) -> Result<Done, Status> {
    create_as(server, intent, &|| body.clone(), false).await
}

/// Makes the object that is to be created, as its client sent it: for each attempt, and where there are errors.
pub type Sent<'a> = dyn Fn() -> Value + Sync + 'a;

/// Creates an object. `owned`: its `managedFields` say already who owns what.
pub async fn create_as(server: &ApiServer, intent: &Intent, sent: &Sent<'_>, owned: bool) -> Result<Done, Status> {
    for attempt in 1.. {
        intent.moment.renew();
        let mut new = sent();
        if intent.kind.hooks.is_terminating() {
            let why = "create not allowed while custom resource definition is terminating";
            let name = new["metadata"]["name"].as_str().unwrap_or_default();
            return Err(Status::forbidden(&intent.kind.gvr(), name, why));
        }
        metadata::on_create(intent, &mut new)?;
        apply_defaults(&intent.kind, &mut new);
        if !owned {
            ownership::record(server, intent, &mut new, None).await;
        }
        let changed = admit(server, intent, Operation::Create, &mut new, None).await?;
        // What its owners were recorded of is canonical.
        if changed || owned {
            json::canonicalize(&mut new, &intent.kind.schema);
        }
        let generated = metadata::name(intent, &mut new)?;
        prepare_create(intent, &mut new);
        let mut allocation = allocate::on_create(server, intent, &mut new).await?;
        json::canonicalize(&mut new, &intent.kind.schema);
        validate_create(intent, &new, sent)?;
        admission::validate(server, intent, Operation::Create, Some(&new), None).await?;
        // What upstream reads back from its store is defaulted once more, with what the server has set since.
        apply_defaults(&intent.kind, &mut new);
        let charge = charge_quotas(server, intent, &new, None).await?;
        let name = new["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if intent.dry_run {
            if server.current(&intent.kind, &intent.namespace, &name).await?.is_some() {
                return Err(Status::already_exists(&intent.kind.gvr(), &name));
            }
            let entry = entry_of(server, intent, &name, &new, 0).await?;
            return Ok(Done { entry, created: true, removed: false });
        }
        let stored = fitting_bytes(server, intent, &mut new, owned).await?;
        allocation.join(charge.allocation());
        let change = Change {
            key: objects::key(&intent.kind, &intent.namespace, &name),
            expected: 0,
            value: Some(stored.clone()),
            durability: server.durability(&intent.kind, &intent.namespace, &name),
            lease: server.lease(&intent.kind).await?,
            also_if: allocation.compare,
            also: allocation.ops,
        };
        if let Some(revision) = intent.trail.timed(Layer::Storage, server.commit(&intent.kind, change)).await? {
            let entry = server.entry(&intent.kind, &intent.namespace, &name, &stored, Some(&new), revision).await?;
            return Ok(Done { entry, created: true, removed: false });
        }
        let taken = server.current(&intent.kind, &intent.namespace, &name).await?.is_some();
        if taken && (!generated || attempt >= NAMES) {
            return Err(Status::already_exists(&intent.kind.gvr(), &name));
        }
        if attempt >= ATTEMPTS {
            break;
        }
    }
    Err(Status::timeout("the object could not be created: what it needs was taken again and again", 1))
}

/// Changes an object that exists, or creates it where a PUT may.
pub async fn update(server: &ApiServer, intent: &Intent, candidate: &dyn Candidate) -> Result<Done, Status> {
    objects::check_key(&intent.kind, &intent.namespace, &intent.name)?;
    for _ in 0..ATTEMPTS {
        intent.moment.renew();
        let Some(current) = server.current(&intent.kind, &intent.namespace, &intent.name).await? else {
            return create_by_update(server, intent, candidate).await;
        };
        let old = current.value(&intent.kind);
        candidate.prepare(Some(&old)).await?;
        let made = candidate.make(Some(&old))?;
        intent.warn(made.warnings);
        let (mut new, owned) = (made.object, made.owned);
        metadata::on_update(intent, &mut new, &old, candidate.creates() == Creates::IfAllowed)?;
        apply_defaults(&intent.kind, &mut new);
        if !owned {
            ownership::record(server, intent, &mut new, Some(&old)).await;
        }
        let changed = admit(server, intent, Operation::Update, &mut new, Some(&old)).await?;
        if changed || owned {
            json::canonicalize(&mut new, &intent.kind.schema);
        }
        prepare_update(intent, &mut new, &old);
        let mut allocation = allocate::on_update(server, intent, &mut new, &old).await?;
        json::canonicalize(&mut new, &intent.kind.schema);
        ownership::settle(&mut new, &old);
        validate_update(intent, &new, &old, candidate)?;
        admission::validate(server, intent, Operation::Update, Some(&new), Some(&old)).await?;
        let charge = charge_quotas(server, intent, &new, Some(&old)).await?;
        let removed = is_finished(intent, &new);
        let stored = fitting_bytes(server, intent, &mut new, owned).await?;
        if stored == current.stored && !removed && !server.is_stale(intent).await? {
            return Ok(Done { entry: current.entry, created: false, removed: false });
        }
        if intent.dry_run {
            let entry = entry_of(server, intent, &intent.name, &new, current.revision).await?;
            return Ok(Done { entry, created: false, removed });
        }
        match removed {
            true => allocation = allocate::on_delete(server, intent, &old).await?,
            false => allocation.join(charge.allocation()),
        }
        let change = Change {
            key: objects::key(&intent.kind, &intent.namespace, &intent.name),
            expected: current.revision,
            value: (!removed).then(|| stored.clone()),
            durability: server.durability(&intent.kind, &intent.namespace, &intent.name),
            lease: server.lease(&intent.kind).await?,
            also_if: allocation.compare,
            also: allocation.ops,
        };
        if let Some(revision) = intent.trail.timed(Layer::Storage, server.commit(&intent.kind, change)).await? {
            let entry =
                server.entry(&intent.kind, &intent.namespace, &intent.name, &stored, Some(&new), revision).await?;
            return Ok(Done { entry, created: false, removed });
        }
    }
    Err(Status::outdated(&intent.kind.gvr(), &intent.name))
}

/// A PUT, or an apply, to a name that is not there.
async fn create_by_update(server: &ApiServer, intent: &Intent, candidate: &dyn Candidate) -> Result<Done, Status> {
    let creates = match candidate.creates() {
        Creates::Never => false,
        Creates::IfAllowed => intent.kind.hooks.create_on_update(),
        Creates::Always => true,
    };
    if !creates || !intent.subresource.is_empty() {
        return Err(intent.not_found());
    }
    candidate.prepare(None).await?;
    let made = candidate.make(None)?;
    intent.warn(made.warnings);
    if let Some(uid) = metadata::uid(&made.object) {
        if candidate.creates() != Creates::Always {
            return Err(metadata::precondition(intent, "UID", uid, ""));
        }
        let why = format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
        return Err(Status::conflict(&intent.kind.gvr(), &intent.name, why));
    }
    chain::check(server, &may_create(intent)).await?;
    // Boxed: create and update would else make a future of unknown size.
    Box::pin(create_as(server, intent, &|| made.object.clone(), made.owned)).await
}

/// What a create of the object would have to be allowed.
fn may_create(intent: &Intent) -> Attributes {
    let gvr = intent.kind.gvr();
    Attributes {
        user: intent.user.clone(),
        verb: "create".into(),
        is_resource: true,
        group: gvr.group,
        version: gvr.version,
        resource: gvr.resource,
        namespace: intent.namespace.clone(),
        name: intent.name.clone(),
        ..Attributes::default()
    }
}

/// Lets the plugins change the object, and tells whether they did. What they add is defaulted, not what a client sent empty.
async fn admit(
    server: &ApiServer,
    intent: &Intent,
    operation: Operation,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<bool, Status> {
    let before = (!admission::changes(server, intent, operation)).then(|| sum(new));
    admission::mutate(server, intent, operation, new, old).await?;
    let changed = before.is_none_or(|before| sum(new) != before);
    if changed {
        apply_defaults(&intent.kind, new);
    }
    Ok(changed)
}

/// Tells whether an object changes, cheaper than a copy of it.
fn sum(object: &Value) -> u64 {
    static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::default);
    SEED.hash_one(object)
}

/// Defaults of the kind.
pub(crate) fn apply_defaults(kind: &Kind, object: &mut Value) {
    default::apply(object, &kind.schema);
    isopod_kinds::defaults::apply(object, &kind.schema);
    kind.hooks.default(object);
}

fn has_status(kind: &Kind) -> bool {
    kind.hooks.status_isolated() && kind.subresources.iter().any(|s| s.name == "status")
}

fn prepare_create(intent: &Intent, new: &mut Value) {
    let kind = &intent.kind;
    if has_status(kind)
        && kind.hooks.resets_status()
        && let Some(object) = new.as_object_mut()
    {
        object.remove("status");
    }
    if kind.hooks.generation() {
        new["metadata"]["generation"] = 1.into();
    }
    kind.hooks.prepare_create(&intent.ctx(), new);
}

fn prepare_update(intent: &Intent, new: &mut Value, old: &Value) {
    let kind = &intent.kind;
    match intent.subresource.as_str() {
        "" if has_status(kind) => keep(new, old, "status"),
        "status" => {
            // Only status and metadata come in through the status subresource.
            let keys: Vec<String> = [&*new, old]
                .iter()
                .filter_map(|o| o.as_object())
                .flat_map(|o| o.keys().cloned())
                .filter(|k| !matches!(k.as_str(), "apiVersion" | "kind" | "metadata" | "status"))
                .collect();
            keys.iter().for_each(|k| keep(new, old, k));
            keep_metadata(kind, new, old);
        }
        _ => {}
    }
    // A binding writes node name and condition past the strategy, which would keep them.
    if intent.subresource != "binding" {
        kind.hooks.prepare_update(&intent.ctx(), new, old);
    }
    if kind.hooks.generation() && intent.subresource != "binding" {
        metadata::bump_generation(new, old, kind.hooks.counts_status());
    }
}

/// Metadata that a write of the status cannot own stays.
fn keep_metadata(kind: &Kind, new: &mut Value, old: &Value) {
    let owned = kind.hooks.owned("status");
    for key in ["labels", "annotations", "finalizers", "ownerReferences"] {
        if owned.excludes(&["metadata", key]) {
            keep(&mut new["metadata"], &old["metadata"], key);
        }
    }
}

fn keep(new: &mut Value, old: &Value, key: &str) {
    let Some(object) = new.as_object_mut() else { return };
    match old.get(key) {
        Some(v) => object.insert(key.to_owned(), v.clone()),
        None => object.remove(key),
    };
}

fn validate_create(intent: &Intent, new: &Value, sent: &Sent) -> Result<(), Status> {
    let kind = &intent.kind;
    let errors = isopod_kinds::metadata::with_own_rules(kind, new, || kind.hooks.validate_create(&intent.ctx(), new));
    intent.invalid(new, errors, sent)?;
    intent.warn(kind.hooks.warnings(&intent.ctx(), new, None));
    Ok(())
}

fn validate_update(intent: &Intent, new: &Value, old: &Value, candidate: &dyn Candidate) -> Result<(), Status> {
    let kind = &intent.kind;
    let mut errors = isopod_kinds::metadata::validate_update(kind, new, old);
    let (own, kept) = kind.hooks.judge_update(&intent.ctx(), new, old);
    errors.extend(own);
    intent.warn(kept);
    // A candidate is made from the same object the same way again.
    intent.invalid(new, errors, || candidate.make(Some(old)).map_or(Value::Null, |made| made.object))?;
    intent.warn(kind.hooks.warnings(&intent.ctx(), new, Some(old)));
    Ok(())
}

/// Whether the object was waiting for nothing but this update to be removed.
fn is_finished(intent: &Intent, new: &Value) -> bool {
    let meta = &new["metadata"];
    let list_is_empty = |v: &Value| v.as_array().is_none_or(Vec::is_empty);
    meta["deletionTimestamp"].is_string()
        && list_is_empty(&meta["finalizers"])
        && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !(intent.kind.resource == "namespaces"
            && intent.kind.gvk.group.is_empty()
            && !list_is_empty(&new["spec"]["finalizers"]))
}

/// The bytes to store. An object that is too large loses its `managedFields`, unless it was applied.
async fn fitting_bytes(
    server: &ApiServer,
    intent: &Intent,
    object: &mut Value,
    applied: bool,
) -> Result<bytes::Bytes, Status> {
    match stored_bytes(server, intent, object).await {
        Err(e) if e.code == 413 && !applied => {
            ownership::set(object, None);
            stored_bytes(server, intent, object).await
        }
        other => other,
    }
}

/// The bytes to store, in the stored version.
pub async fn stored_bytes(server: &ApiServer, intent: &Intent, object: &Value) -> Result<bytes::Bytes, Status> {
    let (kind, stored) = (&intent.kind, &intent.kind.storage.gvk);
    let bytes = if kind.gvk == *stored {
        splice::stored(object)
    } else if kind.hooks.versions().is_some() {
        let mut object = object.clone();
        metadata::without_revision(&mut object);
        splice::stored(&server.convert(kind, object, &stored.version).await?)
    } else {
        let mut converted = object.clone();
        kind.hooks.to_storage(&mut converted);
        converted["apiVersion"] = stored.api_version().into();
        converted["kind"] = stored.kind.clone().into();
        splice::stored(&converted)
    };
    if bytes.len() > MAX_OBJECT {
        return Err(Status::request_entity_too_large(format!("limit is {MAX_OBJECT}")));
    }
    Ok(bytes)
}

/// An entry that is not in the store: a dry run's.
pub async fn entry_of(
    server: &ApiServer,
    intent: &Intent,
    name: &str,
    object: &Value,
    revision: Revision,
) -> Result<Arc<Entry>, Status> {
    let bytes = stored_bytes(server, intent, object).await?;
    let entry = server.unstored_entry(&intent.kind, &intent.namespace, name, &bytes, Some(object), revision).await?;
    if revision != 0 {
        return Ok(entry);
    }
    // An object that was never stored has no revision, but what its client says.
    let mut value = entry.value();
    if let Some(meta) = value["metadata"].as_object_mut() {
        match object["metadata"].get("resourceVersion") {
            Some(given) => meta.insert("resourceVersion".into(), given.clone()),
            None => meta.remove("resourceVersion"),
        };
    }
    Ok(Arc::new(Entry::unstored(&entry, to_json(&value))))
}

/// What a delete finds.
pub async fn load(server: &ApiServer, intent: &Intent) -> Result<Current, Status> {
    objects::check_key(&intent.kind, &intent.namespace, &intent.name)?;
    server.current(&intent.kind, &intent.namespace, &intent.name).await?.ok_or_else(|| intent.not_found())
}
