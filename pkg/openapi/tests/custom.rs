//! Documents of custom resources.

#![allow(clippy::unwrap_used)]

use isopod_api::Gvk;
use isopod_kinds::{Columns, Kind, NoHooks, Storage};
use isopod_schema::structural;
use serde_json::{Value, json};
use std::sync::Arc;

fn schema(spec: Value) -> Value {
    json!({"type": "object", "description": "A tab.", "properties": {"spec": {"type": "object", "required": ["cron", "replicas"], "properties": spec}}})
}

fn spec() -> Value {
    json!({
        "cron": {"type": "string", "pattern": "^x", "description": "When."},
        "replicas": {"type": "integer", "nullable": true, "default": 1},
        "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "any": {"type": "object", "additionalProperties": {"x-kubernetes-preserve-unknown-fields": true}},
        "port": {"x-kubernetes-int-or-string": true},
        "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
    })
}

fn cron_tab() -> Arc<Kind> {
    let gvk = Gvk::new("stable.example.com", "v1", "CronTab");
    Arc::new(Kind {
        gvk: gvk.clone(),
        list_kind: "CronTabs".into(),
        served: true,
        resource: "crontabs".into(),
        singular: "crontab".into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced: true,
        verbs: ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            .map(str::to_owned)
            .to_vec(),
        subresources: Vec::new(),
        schema: Arc::new(structural::resource(&schema(spec()))),
        storage: Storage::new("stable.example.com/crontabs".into(), gvk),
        hooks: Arc::new(NoHooks),
        columns: Columns::BuiltIn(Arc::new([])),
        selectable: vec!["spec.cron".into()],
        version_priority: 0,
    })
}

#[test]
fn both_versions() {
    let kinds = [cron_tab()];
    let v3 = isopod_openapi::v3(&kinds, "apis/stable.example.com/v1").expect("served");
    let schema = &v3["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(
        schema["x-kubernetes-group-version-kind"],
        json!([{"group": "stable.example.com", "version": "v1", "kind": "CronTab"}])
    );
    let shown = &schema["properties"]["spec"]["properties"];
    for (field, want) in [
        ("cron", json!({"type": "string", "pattern": "^x", "description": "When."})),
        ("replicas", json!({"type": "integer", "nullable": true, "default": 1})),
        ("tags", json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"})),
        ("port", json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]})),
    ] {
        assert_eq!(shown[field], want, "{field}");
    }
    assert_eq!(shown["pod"]["required"], json!(["kind", "apiVersion"]));
    assert!(shown["pod"]["properties"]["metadata"]["allOf"][0]["$ref"].is_string());
    assert_eq!(schema["description"], "A tab.");
    assert_eq!(schema["x-kubernetes-selectable-fields"], json!([{"fieldPath": "spec.cron"}]));
    assert_eq!(
        schema["properties"]["metadata"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    );
    let path = &v3["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}"];
    let patch = path["patch"]["requestBody"]["content"].as_object().expect("media types");
    assert!(
        !patch.contains_key("application/strategic-merge-patch+json")
            && patch.contains_key("application/apply-patch+yaml")
    );
    assert!(v3["components"]["schemas"].get("com.example.stable.v1.CronTabs").is_some());

    let v2 = isopod_openapi::v2(&kinds);
    let spec = &v2["definitions"]["com.example.stable.v1.CronTab"]["properties"]["spec"];
    assert_eq!(spec["required"], json!(["cron"]));
    assert_eq!(spec["properties"]["replicas"], json!({"default": 1}));
    assert_eq!(spec["properties"]["cron"]["pattern"], "^x");
    assert_eq!(spec["properties"]["port"], json!({"x-kubernetes-int-or-string": true}));
}

#[test]
fn hash_follows_the_schema() {
    let one = [cron_tab()];
    let mut changed = Kind::clone(&one[0]);
    changed.schema = Arc::new(structural::resource(&schema(json!({"other": {"type": "string"}}))));
    let two = [Arc::new(changed)];
    let path = "apis/stable.example.com/v1";
    assert_eq!(isopod_openapi::hash(&one, path), isopod_openapi::hash(&[cron_tab()], path));
    assert_ne!(isopod_openapi::hash(&one, path), isopod_openapi::hash(&two, path));
}
