//! Documents of custom resources.

#![allow(clippy::unwrap_used)]

use isopod_api::Gvk;
use isopod_kinds::{Kind, NoHooks, Storage};
use isopod_schema::types::{Field, List, Map, Node, Object, ObjectRef};
use serde_json::json;
use std::sync::Arc;

fn custom(fields: Vec<Field>) -> Object {
    Object { custom: true, fields, ..Object::default() }
}

fn cron_tab() -> Arc<Kind> {
    let spec = custom(vec![
        Field {
            required: true,
            constraints: Some(Arc::new(json!({"pattern": "^x", "description": "When."}))),
            ..Field::new("cron", Node::String)
        },
        Field { nullable: true, default: Some(json!(1)), ..Field::new("replicas", Node::Int64) },
        Field::new("tags", Node::List(Arc::new(List::of(Node::String)))),
        Field::new("any", Node::Map(Arc::new(Map::of(Node::Any)))),
    ]);
    let gvk = Gvk::new("stable.example.com", "v1", "CronTab");
    Arc::new(Kind {
        gvk: gvk.clone(),
        resource: "crontabs".into(),
        singular: "crontab".into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced: true,
        verbs: ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            .map(str::to_owned)
            .to_vec(),
        subresources: Vec::new(),
        schema: Arc::new(custom(vec![Field::new("spec", Node::Object(ObjectRef::new(Arc::new(spec))))])),
        storage: Storage {
            prefix: "stable.example.com/crontabs".into(),
            gvk,
            ephemeral_namespace: None,
            ephemeral: false,
            ttl_seconds: 0,
        },
        hooks: Arc::new(NoHooks),
        columns: Arc::new([]),
        selectable: Vec::new(),
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
    assert_eq!(
        schema["properties"]["spec"],
        json!({"type": "object", "required": ["cron"], "properties": {
            "cron": {"type": "string", "pattern": "^x", "description": "When."},
            "replicas": {"type": "integer", "format": "int64", "nullable": true, "default": 1},
            "tags": {"type": "array", "items": {"type": "string"}},
            "any": {"type": "object", "additionalProperties": {"x-kubernetes-preserve-unknown-fields": true}},
        }})
    );
    assert_eq!(
        schema["properties"]["metadata"]["$ref"],
        "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    );
    let path = &v3["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}"];
    let patch = path["patch"]["requestBody"]["content"].as_object().expect("media types");
    assert!(
        !patch.contains_key("application/strategic-merge-patch+json")
            && patch.contains_key("application/apply-patch+yaml")
    );
    assert!(v3["components"]["schemas"].get("com.example.stable.v1.CronTabList").is_some());

    let v2 = isopod_openapi::v2(&kinds);
    let spec = &v2["definitions"]["com.example.stable.v1.CronTab"]["properties"]["spec"]["properties"];
    assert_eq!(spec["replicas"], json!({}));
    assert_eq!(spec["cron"]["pattern"], "^x");
}

#[test]
fn hash_follows_the_schema() {
    let one = [cron_tab()];
    let mut changed = Kind::clone(&one[0]);
    changed.schema = Arc::new(custom(vec![Field::new("other", Node::String)]));
    let two = [Arc::new(changed)];
    let path = "apis/stable.example.com/v1";
    assert_eq!(isopod_openapi::hash(&one, path), isopod_openapi::hash(&[cron_tab()], path));
    assert_ne!(isopod_openapi::hash(&one, path), isopod_openapi::hash(&two, path));
}
