//! The deepest values that may be, through every engine that walks one, on half of the stack that threads have for them.

#![allow(clippy::unwrap_used)]

use isopod_schema::json::{self, depth};
use isopod_schema::managed::{FieldManager, Filter, Versions, atomics, compare, merge, remove, to_set, validate};
use isopod_schema::patch::{Opened, json_patch, merge_patch, patched_text, strategic_merge};
use isopod_schema::types::Object;
use isopod_schema::{default, managed, structural};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct OneVersion(Arc<Object>);

impl Versions for OneVersion {
    fn schema(&self, _: &str) -> Option<Arc<Object>> {
        Some(self.0.clone())
    }
    fn convert(&self, value: &Value, _: &str, _: &str) -> Value {
        value.clone()
    }
}

fn nested(open: &str, inside: &str, close: &str, levels: usize) -> String {
    format!("{}{inside}{}", open.repeat(levels), close.repeat(levels))
}

fn object(spec: &str) -> Value {
    let text = format!(r#"{{"apiVersion":"e.com/v1","kind":"E","metadata":{{"name":"a"}},"spec":{spec}}}"#);
    json::parse(text.as_bytes()).unwrap()
}

fn anything() -> Arc<Object> {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    Arc::new(structural::resource(&schema))
}

/// What a write does to an object of which a client has sent `deep` where it was `shallow`.
fn written(shallow: &Value, deep: &Value) {
    let schema = anything();
    let text = json::encode(deep);
    let decoded = json::decode(&text, &schema).unwrap();
    assert!(decoded.value == *deep && decoded.strict.is_empty());
    let mut value = decoded.value;
    json::canonicalize(&mut value, &schema);
    default::apply(&mut value, &schema);
    assert_eq!(json::texts(&text, &["kind"]).unwrap(), json!({"kind": "E"}));
    assert!(json::read(&text).unwrap() == value && json::doubled_fields(&text).is_empty());
    assert!(json::go_text(&value).starts_with("map[") && json::indented(&json!({"a": 1})).len() > 4);

    let ty = managed::Type::of(&schema);
    let (set, change) = (to_set(&value, ty), compare(shallow, &value, ty));
    assert!(!change.added.is_empty() || !change.modified.is_empty());
    assert_eq!(managed::Set::from_json(&set.to_json()).unwrap(), set);
    assert_eq!(set.union(&change.added).intersection(&set).difference(&set), managed::Set::default());
    assert!(depth::of(&merge(shallow, &value, ty).unwrap()) == depth::of(&value));
    assert!(!remove(&value, &set, ty).is_array() && validate(&value, ty, true).is_ok());
    drop(atomics(&value, ty));

    let versions = OneVersion(schema.clone());
    let manager = FieldManager {
        schema: &schema,
        api_version: "e.com/v1".into(),
        kind: "E",
        subresource: "",
        manager: "tester",
        now: "2024-01-01T00:00:00Z".into(),
        filter: &Filter::All,
        versions: &versions,
    };
    let entries = manager.update(None, shallow, None).unwrap();
    let mut live = shallow.clone();
    live["metadata"]["managedFields"] = entries;
    assert!(manager.update(Some(&live), &value, None).is_some());
    assert!(manager.apply(Some(&live), &value, true).unwrap().object.is_some());

    assert!(depth::of(&merge_patch(shallow, &json!({"spec": value["spec"]}))) == depth::of(&value));
    let patch = json!([{"op": "replace", "path": "/spec", "value": value["spec"]}, {"op": "test", "path": "/spec", "value": 1}]);
    assert!(json_patch(shallow, &patch).is_err());
    assert!(patched_text(&value, &schema, &Opened::by_merge(&value)).contains("spec"));
    let secret = isopod_schema::facts::builtin().object_of(&isopod_api::Gvk::new("", "v1", "Secret")).unwrap();
    assert!(strategic_merge(shallow, &json!({"x": value["spec"]}), &secret).unwrap()["x"] == value["spec"]);
}

fn everything() {
    depth::allow_deepest();
    let levels = depth::DEEPEST - 1;
    let shallow = object(r#"{"b":1}"#);
    for (open, inside, close) in [("[", "", "]"), ("{\"a\":", "1", "}"), ("[{\"a\":", "{}", "}]")] {
        let levels = levels / open.matches(['[', '{']).count() - usize::from(inside == "{}");
        let deep = object(&nested(open, inside, close, levels));
        assert!(depth::of(&deep) >= depth::DEEPEST - 3);
        written(&shallow, &deep);
    }
    let too_deep = nested("[", "", "]", depth::DEEPEST + 1);
    assert_eq!(json::parse(too_deep.as_bytes()).unwrap_err().to_string(), "invalid character '[' exceeded max depth");
}

/// A deep value that is wide at its end takes no more time than others of its size, at any place where it is looked at.
fn wide() {
    depth::allow_deepest();
    let fields = |first: &str| (0..20_000).map(|i| format!(r#""f{i}":{first}"#)).collect::<Vec<_>>().join(",");
    let levels = depth::DEEPEST - 3;
    let of = |inside: &str| object(&nested("{\"a\":", &format!("{{{inside}}}"), "}", levels));
    let start = Instant::now();
    written(&of(&fields("1")), &of(&fields("2")));
    let twice = nested("{\"a\":", &format!("{{{}}}", vec![r#""x":1"#; 100_000].join(",")), "}", levels);
    assert_eq!(json::doubled_fields(twice.as_bytes()).len(), 1);
    assert_eq!(json::decode(format!(r#"{{"spec":{twice}}}"#).as_bytes(), &anything()).unwrap().duplicate.len(), 1);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
}

fn on_a_stack(work: fn()) {
    let size = std::env::var("DEEPEST_STACK").ok().and_then(|s| s.parse().ok()).unwrap_or(depth::STACK / 2);
    std::thread::Builder::new().stack_size(size).spawn(work).unwrap().join().unwrap();
}

#[test]
fn deep_values_fit_on_the_stack() {
    on_a_stack(everything);
}

#[test]
fn deep_and_wide_values_take_no_longer() {
    on_a_stack(wide);
}
