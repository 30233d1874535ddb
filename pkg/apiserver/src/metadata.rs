//! What the server does with `metadata`, for every kind alike.

use crate::objects;
use crate::options::parse_uint_error;
use crate::pipeline::Intent;
use isopod_api::{Status, time};
use serde_json::{Map, Value, json};

/// The part of a name that may stay before five random characters: 63 bytes in all.
const MAX_GENERATED: usize = 58;
/// No vowels and no look-alikes, as upstream.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Fields that only the server sets.
const SYSTEM: [&str; 6] =
    ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"];

fn meta(object: &mut Value) -> &mut Map<String, Value> {
    if !object.get("metadata").is_some_and(Value::is_object) {
        object["metadata"] = json!({});
    }
    object["metadata"].as_object_mut().expect("it was made an object above")
}

/// Takes the revision away, which is the store's to say.
pub fn without_revision(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("resourceVersion");
    }
}

pub fn uid(object: &Value) -> Option<&str> {
    object["metadata"]["uid"].as_str().filter(|s| !s.is_empty())
}

/// The object's namespace must be the request's; an empty one is filled in.
fn namespace(intent: &Intent, object: &mut Value) -> Result<(), Status> {
    let meta = meta(object);
    let given = meta.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if !intent.kind.namespaced {
        // A namespace in a cluster-wide object is nonsense that is dropped on the way in.
        meta.remove("namespace");
        return Ok(());
    }
    if !given.is_empty() && given != intent.namespace {
        let m = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(m));
    }
    meta.insert("namespace".into(), intent.namespace.clone().into());
    Ok(())
}

/// A new object: what a client may not say is dropped, uid and creation time are set.
pub fn on_create(intent: &Intent, new: &mut Value) -> Result<(), Status> {
    namespace(intent, new)?;
    let meta = meta(new);
    // A generation that the kind does not keep is the client's to write.
    for field in SYSTEM.into_iter().filter(|f| *f != "generation" || intent.kind.hooks.generation()) {
        meta.remove(field);
    }
    // A dry run does not get as far as the storage that refuses it.
    if !intent.dry_run && meta.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty()) {
        return Err(Status::internal("resourceVersion should not be set on objects to be created"));
    }
    if !intent.dry_run {
        meta.remove("resourceVersion");
    }
    meta.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    meta.insert("creationTimestamp".into(), time::format(intent.now).into());
    unique_owners(meta);
    if !intent.name.is_empty() {
        let given = meta.get("name").and_then(Value::as_str).unwrap_or_default();
        if !given.is_empty() && given != intent.name {
            return Err(name_mismatch(given, &intent.name));
        }
        meta.insert("name".into(), intent.name.clone().into());
    }
    Ok(())
}

/// Generates a name where only `generateName` is given. True: it was generated.
pub fn name(intent: &Intent, new: &mut Value) -> Result<bool, Status> {
    let meta = meta(new);
    let has = |key: &str| meta.get(key).and_then(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned);
    if has("name").is_some() {
        return Ok(false);
    }
    let Some(base) = has("generateName") else { return Ok(false) };
    let name = if intent.kind.hooks.random_suffix() { generate(&base) } else { base };
    meta.insert("name".into(), name.into());
    Ok(true)
}

/// `base` and five random characters.
pub fn generate(base: &str) -> String {
    use rand::Rng;
    let mut end = base.len().min(MAX_GENERATED);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut rng = rand::rng();
    let suffix: String = (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
    format!("{}{suffix}", &base[..end])
}

/// The object of a PUT must have the name of the URL.
pub fn check_name(object: &Value, url: &str) -> Result<(), Status> {
    match object["metadata"]["name"].as_str().unwrap_or_default() {
        "" => Err(Status::bad_request(format!(
            "the name of the object ({url} based on URL) was undeterminable: name must be provided"
        ))),
        name if name != url => Err(name_mismatch(name, url)),
        _ => Ok(()),
    }
}

pub fn name_mismatch(object: &str, url: &str) -> Status {
    Status::bad_request(format!("the name of the object ({object}) does not match the name on the URL ({url})"))
}

/// A new state of an object: identity and times stay, an outdated revision is a conflict. `put`: the uid of the new state is
/// a precondition; elsewhere it is a field that may not change.
pub fn on_update(intent: &Intent, new: &mut Value, old: &Value, put: bool) -> Result<(), Status> {
    namespace(intent, new)?;
    let old_meta = old["metadata"].as_object().cloned().unwrap_or_default();
    let gvr = intent.kind.gvr();
    let meta = meta(new);
    let text = |key: &str| meta.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let given = text("name");
    if !given.is_empty() && given != intent.name {
        return Err(name_mismatch(&given, &intent.name));
    }
    let (version, uid) = (text("resourceVersion"), text("uid"));
    let old_uid = old_meta.get("uid").and_then(Value::as_str).unwrap_or_default();
    let other_uid = !uid.is_empty() && uid != old_uid;
    if other_uid && put {
        return Err(precondition(intent, "UID", &uid, old_uid));
    }
    let old_version = old_meta.get("resourceVersion").and_then(Value::as_str).unwrap_or_default();
    if version.is_empty() && !intent.kind.hooks.unconditional_update() {
        let path = isopod_api::Path::new("metadata").child("resourceVersion");
        let error = isopod_api::FieldError::invalid(&path, 0, "must be specified for an update");
        // Upstream names the resource here, not the kind.
        let named = isopod_api::Gvk::new(&gvr.group, &gvr.version, &gvr.resource);
        return Err(Status::invalid(&named, &intent.name, &[error]));
    }
    if let Err(e) = version.parse::<u64>()
        && !version.is_empty()
    {
        return Err(Status::new(500, "", parse_uint_error(&version, &e)));
    }
    if !version.is_empty() && version != "0" && version != old_version {
        return Err(Status::outdated(&gvr, &intent.name));
    }
    if other_uid {
        let path = isopod_api::Path::new("metadata").child("uid");
        let error = isopod_api::FieldError::invalid(&path, uid, "field is immutable");
        return Err(Status::invalid(&intent.kind.gvk, &intent.name, &[error]));
    }
    // What an update may not set is taken from what is stored; a deletion that has not begun is for validation to refuse.
    let deletion = ["deletionTimestamp", "deletionGracePeriodSeconds"];
    let kept = |f: &&str| !deletion.contains(f) || old_meta.contains_key(*f);
    for field in SYSTEM.into_iter().filter(kept).chain(["name", "generateName"]) {
        match old_meta.get(field) {
            Some(v) => meta.insert(field.to_owned(), v.clone()),
            None => meta.remove(field),
        };
    }
    meta.insert("resourceVersion".into(), old_version.into());
    unique_owners(meta);
    Ok(())
}

/// 409 of a precondition that the storage checks, whose error names the key. `what`: `UID` or `ResourceVersion`.
pub fn precondition(intent: &Intent, what: &str, wanted: &str, found: &str) -> Status {
    let key = objects::key(&intent.kind, &intent.namespace, &intent.name);
    let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
    let why =
        format!("StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: {why}");
    Status::conflict(&intent.kind.gvr(), &intent.name, why)
}

/// One more when anything but metadata and status changed, or status too where it `counts`.
pub fn bump_generation(new: &mut Value, old: &Value, counts: bool) {
    let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
    let differs = |a: &Value, b: &Value| {
        let keys = a.as_object().into_iter().flat_map(|o| o.keys());
        keys.filter(|k| !matches!(k.as_str(), "metadata" | "apiVersion" | "kind") && (counts || *k != "status"))
            .any(|k| a.get(k) != b.get(k))
    };
    let changed = differs(new, old) || differs(old, new);
    // A kind's own rules may have counted a change already.
    let counted = new["metadata"]["generation"].as_i64().unwrap_or(0);
    let generation = (before + i64::from(changed)).max(counted);
    if generation > 0 {
        new["metadata"]["generation"] = generation.into();
    }
}

/// Owners that stand twice, word for word, stand once.
fn unique_owners(meta: &mut Map<String, Value>) {
    if let Some(owners) = meta.get_mut("ownerReferences").and_then(Value::as_array_mut) {
        let mut seen: Vec<Value> = Vec::new();
        owners.retain(|o| {
            let new = !seen.contains(o);
            if new {
                seen.push(o.clone());
            }
            new
        });
    }
}
