//! Who owns which field of an object: `metadata.managedFields` through the pipeline (KEP-555). What ownership means is in
//! `isopod_schema::managed`; here it meets kinds, their versions and requests.

use crate::ApiServer;
use crate::pipeline::Intent;
use crate::registry::Registry;
use isopod_api::{Cause, Status, time};
use isopod_kinds::{Kind, custom};
use isopod_schema::json;
use isopod_schema::managed::{ApplyError, FieldManager, Filter, Versions};
use isopod_schema::types::Object;
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;

/// The manager of what the server itself writes.
pub const SERVER: &str = "kube-apiserver";
/// Bytes of a manager's name.
const MAX_NAME: usize = 128;

/// The name of a client's program, from its `User-Agent`: what stands before the first `/`, as far as it can be printed.
pub fn program(agent: &str) -> String {
    let name = agent.split('/').next().unwrap_or_default();
    let mut out = String::new();
    for c in name.chars().filter(|c| *c == ' ' || !(c.is_control() || c.is_whitespace())) {
        if out.len() + c.len_utf8() > MAX_NAME {
            break;
        }
        out.push(c);
    }
    out
}

/// The versions in which the objects of a kind are served.
pub struct Served {
    registry: Arc<Registry>,
    kind: Arc<Kind>,
    asked: Mutex<Asked>,
}

/// Conversions that only a webhook can make: those that were made, and those that somebody has asked for since.
#[derive(Default)]
struct Asked {
    made: Vec<(Question, Value)>,
    missing: Vec<Question>,
}

/// An object, and the `apiVersion` that it is wanted in.
type Question = (Value, String);

impl Served {
    pub fn new(server: &ApiServer, kind: &Arc<Kind>) -> Self {
        Served { registry: server.registry(), kind: kind.clone(), asked: Mutex::default() }
    }

    fn version(&self, api_version: &str) -> Option<&Arc<Kind>> {
        if self.kind.gvk.api_version() == api_version {
            return Some(&self.kind);
        }
        let same = |k: &&Arc<Kind>| k.storage == self.kind.storage && k.gvk.api_version() == api_version;
        self.registry.all().iter().find(same)
    }

    pub fn has(&self, api_version: &str) -> bool {
        self.version(api_version).is_some()
    }

    /// Whether conversions are asked of a webhook.
    pub fn asks(&self) -> bool {
        self.kind.hooks.versions().is_some_and(|v| v.several() && v.webhook.is_some())
    }

    /// Asks for what conversions have lacked. False: they have lacked nothing, so what they made is true.
    pub async fn get_missing(&self, server: &ApiServer) -> Result<bool, Status> {
        let missing = std::mem::take(&mut self.asked.lock().missing);
        for (object, to) in &missing {
            let version = to.rsplit('/').next().unwrap_or_default();
            let made = server.convert(&self.kind, object.clone(), version).await?;
            self.asked.lock().made.push(((object.clone(), to.clone()), made));
        }
        Ok(!missing.is_empty())
    }

    /// The object as a webhook has made it; where it was not asked yet, it will be.
    fn answered(&self, object: Value, to: &str) -> Value {
        let mut asked = self.asked.lock();
        if let Some((_, made)) = asked.made.iter().find(|((o, t), _)| *o == object && t == to) {
            return made.clone();
        }
        asked.missing.push((object.clone(), to.to_owned()));
        object
    }

    fn convert_custom(&self, versions: &custom::Versions, mut value: Value, to: &str) -> Value {
        crate::metadata::without_revision(&mut value);
        if self.asks() {
            return self.answered(value, to);
        }
        versions.rename(&mut value, to.rsplit('/').next().unwrap_or_default());
        value
    }
}

impl Versions for Served {
    fn schema(&self, api_version: &str) -> Option<Arc<Object>> {
        self.version(api_version).map(|k| k.schema.clone())
    }

    fn convert(&self, value: &Value, from: &str, to: &str) -> Value {
        let mut value = value.clone();
        if let Some(versions) = self.kind.hooks.versions() {
            let revision = value["metadata"].get("resourceVersion").cloned();
            value = self.convert_custom(versions, value, to);
            if let Some(revision) = revision {
                value["metadata"]["resourceVersion"] = revision;
            }
            if let Some(kind) = self.version(to) {
                json::canonicalize(&mut value, &kind.schema);
            }
            return value;
        }
        if let Some(kind) = self.version(from).filter(|k| k.gvk != k.storage.gvk) {
            kind.hooks.to_storage(&mut value);
        }
        if let Some(kind) = self.version(to) {
            if kind.gvk != kind.storage.gvk {
                kind.hooks.from_storage(&mut value);
            }
            value["apiVersion"] = kind.gvk.api_version().into();
            value["kind"] = kind.gvk.kind.clone().into();
            json::canonicalize(&mut value, &kind.schema);
        }
        value
    }
}

/// The field manager of a request.
pub fn manager<'a>(intent: &'a Intent, filter: &'a Filter, versions: &'a dyn Versions) -> FieldManager<'a> {
    FieldManager {
        schema: &intent.kind.schema,
        api_version: intent.kind.gvk.api_version(),
        kind: &intent.kind.gvk.kind,
        subresource: &intent.subresource,
        manager: &intent.manager,
        now: time::format(intent.now),
        filter,
        versions,
    }
}

/// Records that the request's manager owns what it changes from `old` (`None`: all of a new object).
pub async fn record(server: &ApiServer, intent: &Intent, new: &mut Value, old: Option<&Value>) {
    let given = new["metadata"].as_object_mut().and_then(|m| m.remove("managedFields"));
    json::canonicalize(new, &intent.kind.schema);
    let (filter, versions) = (intent.kind.hooks.owned(&intent.subresource), Served::new(server, &intent.kind));
    let entries = loop {
        let entries = manager(intent, &filter, &versions).update(old, new, given.as_ref());
        match versions.get_missing(server).await {
            Ok(true) => {}
            Ok(false) => break entries,
            Err(e) => {
                // As upstream does: a write does not fail because of this.
                tracing::error!(error = %e, "cannot tell who owns what: the object loses its managedFields");
                break None;
            }
        }
    };
    set(new, entries);
}

/// Sets `metadata.managedFields`. Those that nobody could read are left out, as upstream leaves out what it cannot write: a
/// deep object's are deeper still.
pub fn set(object: &mut Value, entries: Option<Value>) {
    let entries = entries.filter(|e| !json::depth::exceeds(e, json::depth::limit() - 2));
    let Some(meta) = object["metadata"].as_object_mut() else { return };
    match entries {
        Some(entries) => meta.insert("managedFields".into(), entries),
        None => meta.remove("managedFields"),
    };
}

/// Takes the old times back when nothing but times of entries changed, so that nothing is written.
pub fn settle(new: &mut Value, old: &Value) {
    let (now, before) = (&new["metadata"]["managedFields"], &old["metadata"]["managedFields"]);
    let (Some(a), Some(b)) = (now.as_array(), before.as_array()) else { return };
    if a == b || a.len() != b.len() || !a.iter().zip(b).all(|(a, b)| same_but_time(a, b)) {
        return;
    }
    let differs = |a: &Value, b: &Value, but: &str| {
        let (a, b) = (a.as_object().into_iter().flatten(), b.as_object().into_iter().flatten());
        a.filter(|(k, _)| *k != but).ne(b.filter(|(k, _)| *k != but))
    };
    if !differs(new, old, "metadata") && !differs(&new["metadata"], &old["metadata"], "managedFields") {
        let before = before.clone();
        set(new, Some(before));
    }
}

fn same_but_time(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return false };
    let rest = |o: &serde_json::Map<String, Value>| o.iter().filter(|(k, _)| *k != "time").count();
    rest(a) == rest(b) && a.iter().filter(|(k, _)| *k != "time").all(|(k, v)| b.get(k) == Some(v))
}

/// An apply's error as upstream answers it.
pub fn refusal(error: ApplyError) -> Status {
    let message = error.to_string();
    match error {
        ApplyError::Conflicts(conflicts) => {
            let cause = |c: &isopod_schema::managed::Conflict| Cause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {}", c.manager.shown()),
                field: c.field(),
            };
            let mut status = Status::new(409, "Conflict", message);
            status.details.get_or_insert_default().causes = conflicts.iter().map(cause).collect();
            status
        }
        ApplyError::ManagedFields => Status::bad_request(message),
        ApplyError::Type { .. } | ApplyError::Merge(_) | ApplyError::Entries(_) => {
            // Upstream's errors here are no `Status`: 500 without a reason.
            let mut status = Status::new(500, "", message);
            status.details = None;
            status
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_programs() {
        let long = "x".repeat(200);
        for (agent, want) in [
            ("kubectl/v1.37.0 (linux/amd64) kubernetes/abc", "kubectl"),
            ("Mozilla 5", "Mozilla 5"),
            ("a\tb\u{7f}/1", "ab"),
            ("", ""),
            (&long, &long[..128]),
        ] {
            assert_eq!(program(agent), want);
        }
    }

    #[test]
    fn times_alone_are_no_change() {
        let object = |time: &str, data: &str| json!({"metadata": {"name": "a", "managedFields": [{"manager": "m", "time": time, "fieldsV1": {}}]}, "data": data});
        let old = object("1", "x");
        let mut same = object("2", "x");
        settle(&mut same, &old);
        assert_eq!(same, old);
        let mut other = object("2", "y");
        settle(&mut other, &old);
        assert_eq!(other, object("2", "y"));
    }
}
