//! The entries of one object through one write: what upstream's chain of field managers does, as two functions.

use super::compare::compare;
use super::entries::{ManagerId, Managers, Operation, Owner, is_reset};
use super::path::{PathElement, go_json, text};
use super::set::{Filter, Set};
use super::typed::{Type, to_set};
use super::update::{Conflict, Failure, Typed, Updater, Versions};
use super::validate::validate;
use crate::json::{self, canonicalize};
use crate::types::Object;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The manager whose applies keep the annotation of client-side apply up to date, and take over from it.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The bytes that annotations may have in all.
const MAX_ANNOTATIONS: usize = 256 << 10;
/// Nobody owns these.
static STRIPPED: LazyLock<Set> = LazyLock::new(|| {
    let metadata = [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ];
    let mut set = Set::of(&[&["apiVersion"], &["kind"], &["metadata"]]);
    metadata.iter().for_each(|field| set.insert(["metadata", field].map(PathElement::field)));
    set
});

/// One request's view of a kind.
pub struct FieldManager<'a> {
    pub schema: &'a Arc<Object>,
    pub api_version: String,
    pub kind: &'a str,
    pub subresource: &'a str,
    /// Who writes; empty is `unknown`.
    pub manager: &'a str,
    /// RFC 3339.
    pub now: String,
    pub filter: &'a Filter,
    pub versions: &'a dyn Versions,
}

/// What an apply makes.
#[derive(Debug)]
pub struct Applied {
    /// Without `managedFields`, and not canonical. `None`: as it was.
    pub object: Option<Value>,
    /// The new `managedFields`.
    pub entries: Option<Value>,
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
    #[error("failed to create typed patch object ({object}): {why}")]
    Type { object: String, why: String },
    #[error("failed to merge config: {0}")]
    Merge(String),
    #[error("failed to decode managed fields: {0}")]
    Entries(String),
}

impl FieldManager<'_> {
    fn id(&self, manager: &str, operation: Operation) -> ManagerId {
        let manager = if manager.is_empty() { "unknown" } else { manager };
        ManagerId::new(manager, operation, &self.api_version, self.subresource)
    }

    fn typed<'v>(&self, value: &'v Value) -> Typed<'v> {
        Typed { value: Cow::Borrowed(value), schema: self.schema.clone(), api_version: self.api_version.clone() }
    }

    fn updater(&self) -> Updater<'_> {
        Updater { versions: self.versions, filter: self.filter }
    }

    /// An object of the kind with nothing said.
    fn empty(&self) -> Value {
        let mut value = json!({"apiVersion": self.api_version, "kind": self.kind});
        canonicalize(&mut value, self.schema);
        value
    }

    /// After a create (`live` is `None`) or any update but an apply: the new `managedFields` of `new`, which has none now.
    /// `given` are those that the request brought.
    pub fn update(&self, live: Option<&Value>, new: &Value, given: Option<&Value>) -> Option<Value> {
        let of_live = || live.and_then(|l| l["metadata"].get("managedFields")).unwrap_or(&Value::Null);
        let decode = |entries: &Value| Managers::from_json(entries).unwrap_or_default();
        let mut managers = match given.filter(|_| self.subresource.is_empty()) {
            None => decode(of_live()),
            Some(given) if is_reset(given) => Managers::default(),
            Some(given) => match Managers::from_json(given) {
                Ok(managers) if !managers.0.is_empty() => managers,
                _ => decode(of_live()),
            },
        };
        // An object that is not tracked stays so until it is applied.
        if managers.0.is_empty() && live.is_some() {
            return None;
        }
        let empty;
        let live = match live {
            Some(live) => live,
            None => {
                empty = self.empty();
                &empty
            }
        };
        self.record(live, new, &mut managers, self.manager);
        managers.to_json()
    }

    /// Moves what `new` changes to `manager`.
    fn record(&self, live: &Value, new: &Value, managers: &mut Managers, manager: &str) {
        // Under a name of its own first: only what this request changed counts as a change.
        let current = self.id("current-operation", Operation::Update);
        self.updater().update(&self.typed(live), &self.typed(new), managers, &current);
        if let Some(owner) = managers.0.remove(&current) {
            let mut owner = Owner { time: Some(self.now.clone()), ..owner };
            owner.set.subtract(&STRIPPED, false);
            if !owner.set.is_empty() {
                managers.union_into(self.id(manager, Operation::Update), owner);
            }
        }
        managers.cap();
    }

    /// Server-side apply of `config`. `live` is `None` when the object does not exist.
    pub fn apply(&self, live: Option<&Value>, config: &Value, force: bool) -> Result<Applied, ApplyError> {
        if config["metadata"].get("managedFields").is_some_and(|m| !m.is_null()) {
            return Err(ApplyError::ManagedFields);
        }
        validate(config, Type::of(self.schema), false)
            .map_err(|why| ApplyError::Type { object: self.shown(config), why })?;
        let empty = self.empty();
        let exists = live.is_some();
        let live = live.unwrap_or(&empty);
        let entries = live["metadata"].get("managedFields").unwrap_or(&Value::Null);
        let mut managers = Managers::from_json(entries).map_err(ApplyError::Entries)?;
        if managers.0.is_empty() && exists {
            self.record(&empty, live, &mut managers, BEFORE_FIRST_APPLY);
        }
        let id = self.id(self.manager, Operation::Apply);
        let attempt = |force: bool| {
            let mut managers = managers.clone();
            let object = self.updater().apply(&self.typed(live), &self.typed(config), &mut managers, &id, force)?;
            Ok((object, managers))
        };
        let (object, mut managers) = match attempt(force) {
            Err(Failure::Conflicts(conflicts)) => {
                let left = self.beyond_client_side(live, conflicts);
                if !left.is_empty() {
                    return Err(ApplyError::Conflicts(left));
                }
                attempt(true)
            }
            other => other,
        }
        .map_err(|e| match e {
            Failure::Conflicts(conflicts) => ApplyError::Conflicts(conflicts),
            Failure::Merge(why) => ApplyError::Merge(why),
        })?;
        if let Some(mut owner) = managers.0.remove(&id) {
            owner.set.subtract(&STRIPPED, false);
            if object.is_some() {
                owner.time = Some(self.now.clone());
            }
            if !owner.set.is_empty() {
                managers.0.insert(id, owner);
            }
        }
        let object = self.sync_last_applied(object, live, config);
        Ok(Applied { object, entries: managers.to_json() })
    }

    /// `namespace/name; group/version, Kind=kind`.
    fn shown(&self, config: &Value) -> String {
        let text = |key: &str| config["metadata"][key].as_str().unwrap_or_default();
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", &self.api_version));
        format!("{}/{}; {group}/{version}, Kind={}", text("namespace"), text("name"), self.kind)
    }

    /// The conflicts that remain when kubectl takes over what it applied itself on the client's side.
    fn beyond_client_side(&self, live: &Value, conflicts: Vec<Conflict>) -> Vec<Conflict> {
        let allowed = (self.manager == KUBECTL).then(|| self.client_side(live)).flatten();
        let Some(allowed) = allowed else { return conflicts };
        conflicts.into_iter().filter(|c| !allowed.has(&c.path)).collect()
    }

    /// What client-side apply set and is still as it set it.
    fn client_side(&self, live: &Value) -> Option<Set> {
        let text = live["metadata"]["annotations"].get(LAST_APPLIED)?.as_str()?;
        let last = json::read(text.as_bytes()).ok()?;
        let ty = Type::of(self.schema);
        if last["apiVersion"] != self.api_version.as_str() || validate(&last, ty, false).is_err() {
            return None;
        }
        let changes = compare(&last, live, ty);
        let set = to_set(&last, ty);
        Some(set.difference(&changes.modified).difference(&changes.added).difference(&changes.removed))
    }

    /// The annotation of client-side apply, where there is one, says what kubectl applied.
    fn sync_last_applied(&self, object: Option<Value>, live: &Value, config: &Value) -> Option<Value> {
        let annotations = |o: &Value| o["metadata"]["annotations"].as_object().cloned();
        let Some(mut now) = annotations(object.as_ref().unwrap_or(live)) else { return object };
        let has = now.get(LAST_APPLIED).and_then(Value::as_str).is_some_and(|s| !s.is_empty());
        if self.manager != KUBECTL || !has {
            return object;
        }
        let mut applied = config.clone();
        if let Some(annotations) = applied["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
        now.insert(LAST_APPLIED.into(), format!("{}\n", go_json(&applied)).into());
        let size: usize = now.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
        if size > MAX_ANNOTATIONS {
            now.remove(LAST_APPLIED);
        }
        let mut object = object.unwrap_or_else(|| live.clone());
        object["metadata"]["annotations"] = Value::Object(now);
        Some(object)
    }
}

/// Upstream's text of a conflict.
fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager.shown(), text(&one.path));
    }
    let mut lines = Vec::new();
    let mut last = None;
    for conflict in conflicts {
        if last != Some(&conflict.manager) {
            lines.push(format!("conflicts with {}:", conflict.manager.shown()));
            last = Some(&conflict.manager);
        }
        lines.push(format!("- {}", text(&conflict.path)));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

impl Conflict {
    /// `.spec.replicas`.
    pub fn field(&self) -> String {
        text(&self.path)
    }
}
