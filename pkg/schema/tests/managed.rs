//! Server-side apply: tables of what compare, merge and remove make of values, and the laws that ownership obeys.

#![allow(clippy::unwrap_used)]

use isopod_api::Gvk;
use isopod_schema::managed::{
    ApplyError, FieldManager, Filter, Scale, Set, Type, Versions, compare, ensure_named, merge, remove, to_set,
    validate,
};
use isopod_schema::{facts, json, types};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

fn schema(api_version: &str, kind: &str) -> Arc<types::Object> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    facts::builtin().object_of(&Gvk::new(group, version, kind)).unwrap()
}

fn yaml(text: &str) -> Value {
    serde_yaml_ng::from_str(text).unwrap()
}

/// One row: a pod spec before, one after or on top, and what comes out.
fn pod(spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "spec": spec})
}

#[test]
fn what_a_value_mentions() {
    let pod_schema = schema("v1", "Pod");
    for (spec, want) in [
        ("{hostNetwork: true}", "{f:hostNetwork: {}}"),
        // Atomic: a list without a type, a selector, a reference.
        ("{tolerations: [{key: a}], nodeSelector: {a: b}}", "{f:tolerations: {}, f:nodeSelector: {}}"),
        // Map lists by key, with the default of a key that is left out.
        (
            "{containers: [{name: c, ports: [{containerPort: 80}]}]}",
            "{f:containers: {'k:{\"name\":\"c\"}': {.: {}, f:name: {}, f:ports: {'k:{\"containerPort\":80,\"protocol\":\"TCP\"}': {.: {}, f:containerPort: {}}}}}}",
        ),
        // Items that stand twice are owned as a whole.
        ("{containers: [{name: c, image: a}, {name: c, image: b}]}", "{f:containers: {'k:{\"name\":\"c\"}': {}}}"),
        // An empty struct is a leaf, an empty list is nothing.
        ("{securityContext: {}, containers: []}", "{f:securityContext: {}}"),
        // Keys of maps are members, fields of structs are not.
        (
            "{overhead: {cpu: 1m}, securityContext: {seLinuxOptions: {user: u}}}",
            "{f:overhead: {f:cpu: {}}, f:securityContext: {f:seLinuxOptions: {f:user: {}}}}",
        ),
    ] {
        let set = to_set(&pod(&yaml(spec)), Type::of(&pod_schema));
        let want = json!({"f:apiVersion": {}, "f:kind": {}, "f:spec": yaml(want)});
        assert_eq!(set.to_json(), want, "{spec}");
    }
}

#[test]
fn what_differs() {
    let schema = schema("v1", "Pod");
    for (old, new, removed, modified, added) in [
        ("{a: 1}", "{a: 1}", "", "", ""),
        ("{hostname: a}", "{hostname: b, subdomain: c}", "", ".spec.hostname", ".spec.subdomain"),
        ("{tolerations: [{key: a}]}", "{tolerations: [{key: b}]}", "", ".spec.tolerations", ""),
        (
            "{containers: [{name: a, image: x}, {name: b}]}",
            "{containers: [{name: c}, {name: a, image: y}]}",
            ".spec.containers[name=\"b\"]\n.spec.containers[name=\"b\"].name",
            ".spec.containers[name=\"a\"].image",
            ".spec.containers[name=\"c\"]\n.spec.containers[name=\"c\"].name",
        ),
        // Absent and empty differ; null is there and empty.
        ("{}", "{volumes: []}", "", "", ".spec.volumes"),
        (
            "{containers: null}",
            "{containers: [{name: a}]}",
            "",
            "",
            ".spec.containers[name=\"a\"]\n.spec.containers[name=\"a\"].name",
        ),
        ("{priority: 1}", "{priority: 1.0}", "", "", ""),
        (
            "{containers: [{name: a, image: x}]}",
            "{containers: [{name: a, image: x}, {name: a, image: y}]}",
            ".spec.containers[name=\"a\"]\n.spec.containers[name=\"a\"].image\n.spec.containers[name=\"a\"].name",
            "",
            ".spec.containers[name=\"a\"]",
        ),
    ] {
        let changes = compare(&pod(&yaml(old)), &pod(&yaml(new)), Type::of(&schema));
        let got = (changes.removed.to_string(), changes.modified.to_string(), changes.added.to_string());
        assert_eq!(got, (removed.to_owned(), modified.to_owned(), added.to_owned()), "{old} → {new}");
    }
}

#[test]
fn lists_merge_in_order() {
    let schema = schema("v1", "Pod");
    let names = |text: &str| -> Value {
        let items = text.split_whitespace().map(|n| match n.split_once('=') {
            Some((name, image)) => json!({"name": name, "image": image}),
            None => json!({"name": n}),
        });
        pod(&json!({"containers": items.collect::<Vec<_>>()}))
    };
    for (live, config, want) in [
        ("a b c", "b", "a b c"),
        ("a b c", "c a", "b c a"),
        ("a b c", "d", "a b c d"),
        ("a b c", "d b", "a d b c"),
        ("a b c", "c d", "a b c d"),
        ("a=1 b=2", "b=3 a", "b=3 a=1"),
        ("1 2 3", "3 x 1 y", "2 3 x 1 y"),
        ("1 2 3 4", "x 4 1 y", "2 3 x 4 1 y"),
        ("", "a", "a"),
    ] {
        let merged = merge(&names(live), &names(config), Type::of(&schema)).unwrap();
        assert_eq!(merged, names(want), "{live} + {config}");
    }
    let twice = merge(&names("a"), &names("b b"), Type::of(&schema));
    assert_eq!(twice.unwrap_err(), "duplicate entries for key [name=\"b\"]");
}

#[test]
fn what_merges_and_what_replaces() {
    let schema = schema("v1", "Pod");
    for (live, config, want) in [
        ("{overhead: {a: 1, b: 2}}", "{overhead: {b: 3}}", "{overhead: {a: 1, b: 3}}"),
        ("{nodeSelector: {a: x, b: y}}", "{nodeSelector: {b: z}}", "{nodeSelector: {b: z}}"),
        ("{tolerations: [{key: a}]}", "{tolerations: [{key: b}]}", "{tolerations: [{key: b}]}"),
        ("{volumes: [{name: a}]}", "{volumes: null}", "{volumes: [{name: a}]}"),
        ("{hostname: a}", "{hostname: null}", "{hostname: null}"),
        ("{securityContext: {}}", "{securityContext: {runAsUser: 1}}", "{securityContext: {runAsUser: 1}}"),
    ] {
        let merged = merge(&pod(&yaml(live)), &pod(&yaml(config)), Type::of(&schema)).unwrap();
        assert_eq!(merged, pod(&yaml(want)), "{live} + {config}");
    }
}

#[test]
fn what_is_taken_out() {
    let schema = schema("v1", "Pod");
    let ty = Type::of(&schema);
    let live = pod(&yaml(
        "{hostname: h, containers: [{name: a, image: x, args: [y]}, {name: b}], overhead: {cpu: 1}, tolerations: [{key: k}]}",
    ));
    for (set, want) in [
        (
            "{f:hostname: {}}",
            "{containers: [{name: a, image: x, args: [y]}, {name: b}], overhead: {cpu: 1}, tolerations: [{key: k}]}",
        ),
        (
            "{f:containers: {'k:{\"name\":\"a\"}': {f:image: {}}, 'k:{\"name\":\"b\"}': {}}, f:overhead: {f:cpu: {}}, f:tolerations: {}}",
            "{hostname: h, containers: [{name: a, args: [y]}], overhead: null}",
        ),
        (
            "{f:containers: {'k:{\"name\":\"a\"}': {.: {}}, 'k:{\"name\":\"b\"}': {}}}",
            "{hostname: h, containers: null, overhead: {cpu: 1}, tolerations: [{key: k}]}",
        ),
    ] {
        let set = Set::from_json(&json!({"f:spec": yaml(set)})).unwrap();
        assert_eq!(remove(&live, &set, ty), pod(&yaml(want)), "{set}");
    }
    let named = ensure_named(
        &Set::from_json(&json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {"f:image": {}}}}})).unwrap(),
        ty,
    );
    assert_eq!(named.to_string(), ".spec\n.spec.containers\n.spec.containers[name=\"a\"].image");
}

#[test]
fn what_does_not_fit() {
    for (kind, config, why) in [
        ("ConfigMap", "{data: {a: 5}}", ".data.a: expected string, got &value.valueUnstructured{Value:5}"),
        ("ConfigMap", "{data: {a: b}, x: 1}", ".x: field not declared in schema"),
        (
            "ConfigMap",
            "{data: [a], immutable: \"yes\"}",
            "errors:\n  .data: expected map, got &{[a]}\n  .immutable: expected boolean, got &{yes}",
        ),
        (
            "Service",
            "{spec: {ports: [{port: x}]}}",
            ".spec.ports[port=\"x\",protocol=\"TCP\"].port: expected numeric (int or float), got string",
        ),
        (
            "Service",
            "{spec: {ports: [{port: 1}, {port: 1, protocol: TCP}]}}",
            ".spec.ports: duplicate entries for key [port=1,protocol=\"TCP\"]",
        ),
        (
            "Service",
            "{spec: {ports: [1]}}",
            ".spec.ports: element 0: associative list with keys may not have non-map elements",
        ),
        ("Service", "{spec: {ports: {}}}", ".spec.ports: expected list, got &{map[]}"),
    ] {
        let schema = schema("v1", kind);
        assert_eq!(validate(&yaml(config), Type::of(&schema), false).unwrap_err(), why, "{config}");
    }
    let service = schema("v1", "Service");
    assert!(validate(&yaml("{spec: {ports: [{port: 1}, {port: 1}], type: null}}"), Type::of(&service), true).is_ok());
}

/// A kind of one version.
struct One(&'static str, Arc<types::Object>);

impl Versions for One {
    fn schema(&self, api_version: &str) -> Option<Arc<types::Object>> {
        (api_version == self.0).then(|| self.1.clone())
    }
    fn convert(&self, value: &Value, _from: &str, _to: &str) -> Value {
        value.clone()
    }
}

/// An object through a sequence of writes.
struct Live {
    versions: One,
    object: Option<Value>,
    second: u32,
}

impl Live {
    fn config_map() -> Self {
        Live { versions: One("v1", schema("v1", "ConfigMap")), object: None, second: 0 }
    }

    fn manager<'a>(&'a self, manager: &'a str, filter: &'a Filter) -> FieldManager<'a> {
        FieldManager {
            schema: &self.versions.1,
            api_version: "v1".into(),
            kind: "ConfigMap",
            subresource: "",
            manager,
            now: format!("2026-01-01T00:00:{:02}Z", self.second),
            filter,
            versions: &self.versions,
        }
    }

    fn set(&mut self, mut object: Value, entries: Option<Value>) {
        json::canonicalize(&mut object, &self.versions.1);
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("managedFields");
            meta.extend(entries.map(|e| ("managedFields".to_owned(), e)));
        }
        self.object = Some(object);
        self.second += 1;
    }

    fn apply(&mut self, manager: &str, data: &BTreeMap<String, String>, force: bool) -> Result<bool, ApplyError> {
        let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
        let applied = self.manager(manager, &Filter::All).apply(self.object.as_ref(), &config, force)?;
        let changed = applied.object.is_some();
        let object = applied.object.or_else(|| self.object.clone()).unwrap_or(config);
        self.set(object, applied.entries);
        Ok(changed)
    }

    fn update(&mut self, manager: &str, data: &BTreeMap<String, String>) {
        let mut new = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
        json::canonicalize(&mut new, &self.versions.1);
        let entries = self.manager(manager, &Filter::All).update(self.object.as_ref(), &new, None);
        self.set(new, entries);
    }

    fn data(&self) -> BTreeMap<String, String> {
        let data = self.object.as_ref().unwrap()["data"].clone();
        serde_json::from_value(data).unwrap_or_default()
    }

    fn owners(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let entries = self.object.as_ref().unwrap()["metadata"]["managedFields"].as_array().cloned();
        for entry in entries.into_iter().flatten() {
            let owner = format!("{}:{}", entry["operation"].as_str().unwrap(), entry["manager"].as_str().unwrap());
            let fields = entry["fieldsV1"]["f:data"].as_object().cloned().unwrap_or_default();
            for key in fields.keys().filter_map(|k| k.strip_prefix("f:")) {
                owners.entry(key.to_owned()).or_default().insert(owner.clone());
            }
        }
        owners
    }
}

#[derive(Clone, Debug)]
enum Write {
    Apply(&'static str, BTreeMap<String, String>),
    Update(&'static str, BTreeMap<String, String>),
}

fn data() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[a-d]", "[xy]", 0..4)
}

fn some_data() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[a-d]", "[xy]", 1..4)
}

fn write() -> impl Strategy<Value = Write> {
    let manager = || prop::sample::select(vec!["m", "n", "o"]);
    prop_oneof![
        3 => (manager(), data()).prop_map(|(m, d)| Write::Apply(m, d)),
        1 => (manager(), data()).prop_map(|(m, d)| Write::Update(m, d)),
    ]
}

/// A set of a few paths of fields and keys.
fn set() -> impl Strategy<Value = Set> {
    let step = prop_oneof![
        "[a-c]".prop_map(|n| format!("f:{n}")),
        (0..3i64).prop_map(|n| format!("k:{{\"port\":{n}}}")),
        "[a-c]".prop_map(|v| format!("v:{:?}", v)),
    ];
    prop::collection::vec(prop::collection::vec(step, 1..4), 0..8).prop_map(|paths| {
        let one = |path: Vec<String>| {
            let fields = path.into_iter().rev().fold(json!({}), |below, step| json!({ (step): below }));
            Set::from_json(&fields).unwrap()
        };
        paths.into_iter().map(one).fold(Set::default(), |a, b| a.union(&b))
    })
}

proptest! {
    #[test]
    fn sets_are_sets(a in set(), b in set(), c in set()) {
        prop_assert_eq!(&a.union(&a), &a);
        prop_assert_eq!(a.union(&b), b.union(&a));
        prop_assert_eq!(a.union(&b).union(&c), a.union(&b.union(&c)));
        prop_assert_eq!(a.intersection(&b), b.intersection(&a));
        prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
        prop_assert!(a.difference(&a).is_empty());
        let members: BTreeSet<_> = a.paths().into_iter().chain(b.paths()).collect();
        prop_assert_eq!(a.union(&b).paths().into_iter().collect::<BTreeSet<_>>(), members);
        prop_assert!(a.recursive_difference(&b).difference(&a).is_empty());
    }

    #[test]
    fn fields_v1_comes_back(a in set()) {
        prop_assert_eq!(Set::from_json(&a.to_json()), Ok(a));
    }

    /// Who owns a key and what it holds, against a model of one sentence a case.
    #[test]
    fn ownership_follows_the_model(writes in prop::collection::vec(write(), 1..8)) {
        let mut live = Live::config_map();
        let (mut data, mut owners): (BTreeMap<String, String>, BTreeMap<String, BTreeSet<String>>) = Default::default();
        let mut tracked = false;
        for write in writes {
            match &write {
                Write::Apply(manager, config) => {
                    let me = format!("Apply:{manager}");
                    for (key, value) in config {
                        // Another value: the others lose it.
                        if data.insert(key.clone(), value.clone()).as_ref() != Some(value) {
                            owners.remove(key);
                        }
                        owners.entry(key.clone()).or_default().insert(me.clone());
                    }
                    for key in data.clone().into_keys().filter(|k| !config.contains_key(k)) {
                        let of = owners.entry(key.clone()).or_default();
                        // Given up, and nobody else's: gone.
                        if of.remove(&me) && of.is_empty() {
                            data.remove(&key);
                        }
                    }
                    live.apply(manager, config, true).unwrap();
                    tracked = true;
                }
                Write::Update(manager, new) => {
                    let me = format!("Update:{manager}");
                    if live.object.is_some() && !tracked {
                        continue;
                    }
                    owners.retain(|key, _| new.contains_key(key));
                    for (key, value) in new {
                        if data.get(key) != Some(value) {
                            owners.insert(key.clone(), BTreeSet::from([me.clone()]));
                        }
                    }
                    data = new.clone();
                    live.update(manager, new);
                    tracked = live.object.as_ref().unwrap()["metadata"]["managedFields"].is_array();
                }
            }
            owners.retain(|key, of| data.contains_key(key) && !of.is_empty());
            prop_assert_eq!(live.data(), data.clone(), "{:?}", &write);
            // An object of which nobody owns anything is one that is not tracked: its next applier finds owners again.
            if live.object.as_ref().unwrap()["metadata"]["managedFields"].is_null() {
                break;
            }
            prop_assert_eq!(live.owners(), owners.clone(), "{:?}", &write);
        }
    }

    #[test]
    fn applying_twice_changes_nothing(first in some_data(), config in some_data()) {
        let mut live = Live::config_map();
        live.apply("m", &first, false).unwrap();
        live.apply("n", &config, true).unwrap();
        let before = live.object.clone();
        prop_assert!(!live.apply("n", &config, false).unwrap());
        prop_assert_eq!(live.object, before);
    }
}

#[test]
fn a_scale_is_owned_with_its_object() {
    let entry = |manager: &str, fields: Value| {
        json!({"manager": manager, "operation": "Apply", "apiVersion": "apps/v1", "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": fields})
    };
    let parent = json!([
        entry("a", json!({"f:spec": {"f:paused": {}, "f:replicas": {}}})),
        entry("b", json!({"f:spec": {"f:paused": {}}}))
    ]);
    let known = |v: &str| v == "apps/v1";
    let scale = Scale::new(&parent, "apps/v1", &["spec", "replicas"]).unwrap();
    let mut seen = scale.entries(&known).unwrap();
    assert_eq!(seen[0]["apiVersion"], "autoscaling/v1");
    assert_eq!(
        (seen[0]["manager"].clone(), seen[0]["fieldsV1"].clone()),
        (json!("a"), json!({"f:spec": {"f:replicas": {}}}))
    );
    assert_eq!(seen.as_array().unwrap().len(), 1);
    assert_eq!(scale.to_parent(&seen, &known).unwrap(), Some(parent));
    // Taken through the scale.
    seen[0]["manager"] = json!("c");
    seen[0]["subresource"] = json!("scale");
    let after = scale.to_parent(&seen, &known).unwrap().unwrap();
    let owned: Vec<Value> = after
        .as_array()
        .unwrap()
        .iter()
        .map(|e| json!([e["manager"], e["apiVersion"], e["fieldsV1"]["f:spec"]]))
        .collect();
    let paused = json!({"f:paused": {}});
    assert_eq!(
        json!(owned),
        json!([["c", "apps/v1", {"f:replicas": {}}], ["a", "apps/v1", paused], ["b", "apps/v1", paused]])
    );
}
