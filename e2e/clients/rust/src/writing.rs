//! Apply, patches of each kind, subresources.

use crate::reading::config_map;
use crate::{World, ensure};
use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

fn data(map: &ConfigMap) -> Value {
    json!(map.data.clone().unwrap_or_default())
}

/// Two managers of one field conflict until one of them insists; who no longer says a field gives it up.
pub async fn apply(world: &World) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), &world.namespace);
    let applied = |data: Value| {
        Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": data}))
    };
    maps.patch("applied", &PatchParams::apply("one"), &applied(json!({"a": "1", "b": "1"}))).await?;
    let conflict = maps.patch("applied", &PatchParams::apply("two"), &applied(json!({"b": "2"}))).await;
    let told =
        matches!(&conflict, Err(kube::Error::Api(s)) if s.code == 409 && s.message.contains("conflict with \"one\""));
    ensure(told, || format!("two managers of one field: {conflict:?}"))?;
    let live = maps.patch("applied", &PatchParams::apply("two").force(), &applied(json!({"b": "2"}))).await?;
    ensure(data(&live) == json!({"a": "1", "b": "2"}), || format!("after the second manager: {:?}", live.data))?;
    let live = maps.patch("applied", &PatchParams::apply("one"), &applied(json!({}))).await?;
    ensure(data(&live) == json!({"b": "2"}), || format!("after the first one's last word: {:?}", live.data))?;
    let strict =
        PatchParams { field_validation: Some(kube::api::ValidationDirective::Strict), ..PatchParams::apply("two") };
    let typo = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "dat": {}});
    let refused = maps.patch("applied", &strict, &Patch::Apply(typo)).await;
    ensure(matches!(&refused, Err(kube::Error::Api(_))), || format!("a field that is not known: {refused:?}"))
}

/// Typed and dynamic objects, by merges and by operations; a revision that is old is told.
pub async fn patches(world: &World) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), &world.namespace);
    let first = maps.create(&PostParams::default(), &config_map("patched", "patches", &[("a", "1")])).await?;
    let none = PatchParams::default();
    maps.patch("patched", &none, &Patch::Merge(json!({"data": {"b": "2"}}))).await?;
    maps.patch("patched", &none, &Patch::Strategic(json!({"data": {"c": "3", "a": null}}))).await?;
    let meta =
        maps.patch_metadata("patched", &none, &Patch::Merge(json!({"metadata": {"annotations": {"k": "v"}}}))).await?;
    ensure(meta.annotations().get("k").is_some_and(|v| v == "v"), || format!("{:?}", meta.metadata))?;
    let mut live = maps.get("patched").await?;
    ensure(data(&live) == json!({"b": "2", "c": "3"}), || format!("after all patches: {:?}", live.data))?;
    let old = maps.replace("patched", &PostParams::default(), &first).await;
    ensure(matches!(&old, Err(kube::Error::Api(s)) if s.code == 409 && s.reason == "Conflict"), || format!("{old:?}"))?;
    live.data = None;
    let live = maps.replace("patched", &PostParams::default(), &live).await?;
    ensure(live.data.is_none(), || format!("after the update: {:?}", live.data))?;

    let resource = kube::core::ApiResource::erase::<ConfigMap>(&());
    let untyped: Api<DynamicObject> = Api::namespaced_with(world.client.clone(), &world.namespace, &resource);
    let same = untyped.get("patched").await?;
    ensure(same.uid() == live.uid() && same.types.is_some(), || format!("without a type of its own: {same:?}"))
}

/// A scale, a status, and a token.
pub async fn subresources(world: &World) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(world.client.clone(), &world.namespace);
    let deployment: Deployment = serde_json::from_value(json!({"metadata": {"name": "scaled"}, "spec": {
        "replicas": 0, "paused": true, "selector": {"matchLabels": {"app": "scaled"}},
        "template": {"metadata": {"labels": {"app": "scaled"}}, "spec": {"containers": [{"name": "main", "image": world.image}]}}}}))?;
    deployments.create(&PostParams::default(), &deployment).await?;
    let scale = deployments
        .patch_scale("scaled", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 2}})))
        .await?;
    let selector = scale.status.and_then(|s| s.selector).unwrap_or_default();
    ensure(selector == "app=scaled", || format!("the selector of the scale is {selector:?}"))?;
    let replicas = deployments.get("scaled").await?.spec.replicas;
    ensure(replicas == Some(2), || format!("after the scale there are {replicas:?}"))?;
    deployments.get_status("scaled").await?;

    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), &world.namespace);
    let request = serde_json::from_value(json!({"spec": {"audiences": ["somebody"], "expirationSeconds": 600}}))?;
    let token = accounts.create_token_request("default", &PostParams::default(), &request).await?;
    let text = token.status.context("a token request is answered")?.token;
    ensure(text.unwrap_or_default().split('.').count() == 3, || "the token is none".to_owned())
}
