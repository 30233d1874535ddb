//! Patches of all four kinds, and who owns which field after them.

use crate::decoders::written;
use crate::parts;
use isopod_api::Gvk;
use isopod_schema::managed::{ApplyError, FieldManager, Filter, Managers, Versions};
use isopod_schema::types::Object;
use isopod_schema::{default, facts, json, patch};
use serde_json::Value;
use std::sync::{Arc, LazyLock};

static POD: LazyLock<Arc<Object>> = LazyLock::new(|| schema("", "Pod"));
static DEPLOYMENT: LazyLock<Arc<Object>> = LazyLock::new(|| schema("apps", "Deployment"));

fn schema(group: &str, kind: &str) -> Arc<Object> {
    facts::builtin().object_of(&Gvk::new(group, "v1", kind)).expect("it is built in")
}

/// Two values: an object and what is to change in it.
fn pair(data: &[u8]) -> Option<(Value, Value)> {
    let [object, change] = parts(data)[..] else { return None };
    Some((json::parse(object).ok()?, json::parse(change).ok()?))
}

/// An object as it is read from a client and kept.
fn decoded(value: &Value, schema: &Object) -> Option<Value> {
    let mut value = json::decode(&json::encode(value), schema).ok()?.value;
    default::apply(&mut value, schema);
    json::canonicalize(&mut value, schema);
    value.is_object().then_some(value)
}

/// A patched value is a value, no larger than what was there, what was sent, and what a patch may copy.
pub fn json_patch(data: &[u8]) {
    let Some((object, change)) = pair(data) else { return };
    let Ok(patched) = patch::json_patch(&object, &change) else { return };
    let text = json::encode(&patched);
    assert!(text.len() <= data.len() * 8 + patch::MAX_COPIED, "{} bytes of {}", text.len(), data.len());
    let opened = patch::Opened::by_operations(&change);
    let shown = patch::patched_text(&patched, &POD, &opened);
    assert_eq!(written(shown.as_bytes()), written(&text));
    if let Ok(decoded) = json::decode(&text, &POD) {
        crate::decoders::survives(decoded.value, &POD);
    }
}

/// A merge says the same the second time, but for nulls in a list that replaces an object, which upstream keeps once.
pub fn merge_patch(data: &[u8]) {
    let Some((object, change)) = pair(data) else { return };
    let once = patch::merge_patch(&object, &change);
    let twice = patch::merge_patch(&once, &change);
    assert_eq!(patch::merge_patch(&twice, &change), twice);
    if !json::encode(&change).windows(4).any(|w| w == b"null") {
        assert_eq!(twice, once);
    }
    let opened = patch::Opened::by_merge(&change);
    let shown = patch::patched_text(&once, &POD, &opened);
    assert_eq!(written(shown.as_bytes()), written(&json::encode(&once)));
}

/// A strategic merge of a pod can be decoded, or says why not, and settles.
pub fn strategic_merge(data: &[u8]) {
    let Some((object, change)) = pair(data) else { return };
    let Some(object) = decoded(&object, &POD).filter(|_| change.is_object()) else { return };
    let merge = |object: &Value| patch::strategic_merge(object, &change, &POD).ok().and_then(|v| decoded(&v, &POD));
    let Some(once) = merge(&object) else { return };
    crate::decoders::survives(once.clone(), &POD);
    let Some(twice) = merge(&once) else { return };
    assert_eq!(merge(&twice).as_ref(), Some(&twice));
}

/// `apps/v1` alone.
struct One;

impl Versions for One {
    fn schema(&self, api_version: &str) -> Option<Arc<Object>> {
        (api_version == "apps/v1").then(|| DEPLOYMENT.clone())
    }

    fn convert(&self, value: &Value, _from: &str, to: &str) -> Value {
        let mut value = value.clone();
        value["apiVersion"] = to.into();
        value
    }
}

/// Who applies twice changes nothing the second time and has no conflict with anybody.
pub fn apply(data: &[u8]) {
    let Some((object, config)) = pair(data) else { return };
    let Some(live) = decoded(&object, &DEPLOYMENT).filter(|_| config.is_object()) else { return };
    let filter = Filter::All;
    let manager = FieldManager {
        schema: &DEPLOYMENT,
        api_version: "apps/v1".to_owned(),
        kind: "Deployment",
        subresource: "",
        manager: "fuzz",
        now: "2026-01-01T00:00:00Z".to_owned(),
        filter: &filter,
        versions: &One,
    };
    let after = |live: &Value, force: bool| -> Result<Option<Value>, ApplyError> {
        let applied = manager.apply(Some(live), &config, force)?;
        let Some(mut object) = decoded(&applied.object.unwrap_or_else(|| live.clone()), &DEPLOYMENT) else {
            return Ok(None);
        };
        object["metadata"]["managedFields"] = applied.entries.unwrap_or(Value::Null);
        Ok(decoded(&object, &DEPLOYMENT))
    };
    let _ = manager.apply(None, &config, false);
    let Ok(Some(once)) = after(&live, true) else { return };
    entries(&once["metadata"]["managedFields"]);
    match after(&once, false) {
        Ok(twice) => assert_eq!(twice.as_ref(), Some(&once)),
        Err(e) => panic!("the same again: {e}"),
    }
    let mut changed = once.clone();
    changed["spec"]["replicas"] = 7.into();
    let _ = manager.update(Some(&live), &changed, None);
}

/// Entries that can be read are written so that they are read as the same.
pub fn managed_fields(data: &[u8]) {
    let Ok(value) = json::parse(data) else { return };
    entries(&value);
}

fn entries(value: &Value) {
    let Ok(managers) = Managers::from_json(value) else { return };
    let Some(written) = managers.to_json() else { return };
    let again = Managers::from_json(&written).unwrap_or_else(|e| panic!("{written}: {e}"));
    assert_eq!(again, managers);
    assert_eq!(again.to_json().as_ref(), Some(&written));
}
