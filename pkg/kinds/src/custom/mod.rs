//! Kinds that a CustomResourceDefinition makes, one for each version: the same [`Kind`] as a built-in one, with hooks that read
//! the definition instead of code.
//!
//! Invariant: a definition that is served makes kinds that never fail; what it says wrongly counts as not said.

mod columns;
mod hooks;
mod jsonpath;
mod review;
pub(crate) mod rules;
pub mod status;
mod validation;
mod versions;

pub use columns::CustomColumn;
pub use review::{Failed, Fault, Webhook};
pub use versions::Versions;

use crate::access::Access;
use crate::kind::{Columns, Kind, Storage, Subresource};
use crate::table::version_priority;
use hooks::{Custom, ScaleFields};
use isopod_api::Gvk;
use serde_json::Value;
use std::sync::{Arc, OnceLock};

/// The kinds of a definition under its accepted names. The stored version is among them even when it is not served.
pub fn kinds(definition: &Value) -> Vec<Arc<Kind>> {
    let versions = definition.list("spec.versions");
    let Some(shared) = Versions::new(definition).map(Arc::new) else { return Vec::new() };
    let wanted = versions.iter().filter(|v| v.flag("served") || v.text("name") == shared.stored);
    wanted.map(|version| Arc::new(kind(definition, version, &shared))).collect()
}

fn kind(definition: &Value, version: &Value, versions: &Arc<Versions>) -> Kind {
    let name = version.text("name");
    let names = definition.at("status.acceptedNames");
    let gvk = |version: &str| Gvk::new(&versions.group, version, names.text("kind"));
    let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect::<Vec<String>>();
    let plural = names.text("plural");
    let selectable = version.list("selectableFields").iter().map(|f| f.text("jsonPath"));
    Kind {
        gvk: gvk(name),
        list_kind: names.text("listKind").to_owned(),
        resource: plural.to_owned(),
        singular: names.text("singular").to_owned(),
        short_names: owned(names.texts("shortNames")),
        categories: owned(names.texts("categories")),
        namespaced: definition.text("spec.scope") == "Namespaced",
        served: version.flag("served"),
        verbs: ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]
            .map(str::to_owned)
            .to_vec(),
        subresources: subresources(version),
        schema: versions.schema(name).cloned().unwrap_or_default(),
        storage: Storage::new(format!("{}/{plural}", versions.group), gvk(&versions.stored)),
        selectable: selectable.map(|p| p.trim_start_matches('.').to_owned()).collect(),
        hooks: Arc::new(Custom {
            version: name.to_owned(),
            kind: names.text("kind").to_owned(),
            has_status: version.has("subresources.status"),
            scale: ScaleFields::new(version.at("subresources.scale")),
            deprecation: deprecation(definition, version),
            terminating: is_terminating(definition),
            versions: versions.clone(),
            rules: OnceLock::new(),
        }),
        columns: Columns::Custom(columns::of(version.list("additionalPrinterColumns")).into()),
        version_priority: version_priority(name),
    }
}

fn subresources(version: &Value) -> Vec<Subresource> {
    let scale = Gvk::new("autoscaling", "v1", "Scale");
    let known = [("status", None), ("scale", Some(scale))];
    let stated = known.into_iter().filter(|(name, _)| version.has(&format!("subresources.{name}")));
    let verbs = || ["get", "patch", "update"].map(str::to_owned).to_vec();
    stated.map(|(name, gvk)| Subresource { name: name.to_owned(), gvk, verbs: verbs() }).collect()
}

/// Whether the definition is being deleted, so that nothing new may be created.
pub fn is_terminating(definition: &Value) -> bool {
    definition.has("metadata.deletionTimestamp") || status::is_true(definition, "Terminating")
}

/// What a `Warning` says about a deprecated version; empty: it is not deprecated.
fn deprecation(definition: &Value, version: &Value) -> String {
    if !version.flag("deprecated") {
        return String::new();
    }
    if version.has("deprecationWarning") {
        return version.text("deprecationWarning").to_owned();
    }
    let (group, kind) = (definition.text("spec.group"), definition.text("spec.names.kind"));
    let name = version.text("name");
    let newer = definition.list("spec.versions").iter().filter(|v| v.flag("served") && !v.flag("deprecated"));
    let priority = |v: &&Value| version_priority(v.text("name"));
    let newest = newer.filter(|v| priority(v) > version_priority(name)).max_by_key(priority);
    let instead = newest.map(|v| format!("; use {group}/{} {kind}", v.text("name"))).unwrap_or_default();
    format!("{group}/{name} {kind} is deprecated{instead}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn definition() -> Value {
        let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"replicas": {"type": "integer", "default": 3}, "color": {"type": "string"}}},
            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}}}}});
        json!({
            "spec": {
                "group": "example.com", "scope": "Namespaced", "names": {"kind": "Foo"},
                "versions": [
                    {"name": "v1beta1", "served": true, "storage": false, "deprecated": true, "schema": {"openAPIV3Schema": {
                        "type": "object", "properties": {"spec": {"type": "object", "properties": {"color": {"type": "string"}}}}}}},
                    {"name": "v1", "served": true, "storage": true, "schema": schema, "selectableFields": [{"jsonPath": ".spec.color"}],
                     "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}}},
                    {"name": "v2", "served": false, "storage": false, "schema": schema},
                ],
            },
            "status": {"acceptedNames": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"}},
        })
    }

    #[test]
    fn one_kind_for_each_version() {
        let made = kinds(&definition());
        let shown: Vec<(String, bool, String)> =
            made.iter().map(|k| (k.gvk.to_string(), k.served, k.hooks.deprecation().to_owned())).collect();
        let old = "example.com/v1beta1 Foo is deprecated; use example.com/v1 Foo";
        assert_eq!(
            shown,
            [
                ("example.com/v1beta1, Kind=Foo".to_owned(), true, old.to_owned()),
                ("example.com/v1, Kind=Foo".to_owned(), true, String::new()),
            ]
        );
        assert_eq!(made[1].subresources.len(), 2);
        assert_eq!((made[0].storage.prefix.as_str(), &made[0].storage), ("example.com/foos", &made[1].storage));
    }

    #[test]
    fn stored_bytes_are_defaulted_and_served_versions_pruned() {
        let made = kinds(&definition());
        let stored = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a", "generation": 1},
            "spec": {"color": "red", "gone": 1}});
        let mut read = made[1].hooks.on_read(stored.to_string().as_bytes()).expect("it is an object");
        assert_eq!(read["spec"], json!({"color": "red", "replicas": 3}));
        assert_eq!(made[1].hooks.selectable(&read), ["red"]);
        let versions = made[0].hooks.versions().expect("it is a custom kind");
        versions.rename(&mut read, "v1beta1");
        assert_eq!((&read["apiVersion"], &read["spec"]), (&json!("example.com/v1beta1"), &json!({"color": "red"})));
        // Bytes of an older version stay what they are: which version is wanted is asked later.
        let older = json!({"apiVersion": "example.com/v1beta1", "kind": "Foo", "metadata": {"name": "a"}, "spec": {"color": "x", "replicas": 3}});
        let read = made[1].hooks.on_read(older.to_string().as_bytes()).expect("it is an object");
        assert_eq!((versions.version_of(&read), &read["metadata"]["generation"]), ("v1beta1", &json!(1)));
        assert_eq!((&read["spec"], made[1].hooks.selectable(&read)), (&json!({"color": "x"}), vec![]));
    }

    #[test]
    fn a_scale_and_back() {
        let made = kinds(&definition());
        let mut object = json!({"metadata": {"name": "a"}, "spec": {"replicas": 2}, "status": {"replicas": 1}});
        let scale = made[1].hooks.to_scale(&object).expect("it scales");
        assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(2), &json!(1)));
        assert!(made[1].hooks.apply_scale(&mut object, &json!({"spec": {"replicas": 5}})).is_empty());
        assert_eq!(object["spec"]["replicas"], 5);
        assert!(made[0].hooks.to_scale(&object).is_none());
    }
}
