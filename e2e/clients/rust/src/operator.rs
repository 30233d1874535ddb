//! An operator with a kind of its own: what it owns is made, follows and goes with it, its finalizer's work is done before.

use crate::reading::until;
use crate::{World, ensure};
use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, Object};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::finalizer::{Event as Life, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const DEFINITION: &str = "towers.kube.example.com";
const FINALIZER: &str = "kube.example.com/levels";

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Spec {
    levels: i64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Status {
    built: i64,
}

type Tower = Object<Spec, Status>;

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the server refuses")]
    Server(#[from] kube::Error),
    #[error("the finalizer fails")]
    Finalizer(#[source] Box<kube::runtime::finalizer::Error<Failure>>),
}

struct Shared {
    client: Client,
    resource: ApiResource,
    cleaned: AtomicUsize,
}

impl Shared {
    fn towers(&self, namespace: &str) -> Api<Tower> {
        Api::namespaced_with(self.client.clone(), namespace, &self.resource)
    }
}

fn definition() -> Result<CustomResourceDefinition> {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["levels"], "properties": {"levels": {"type": "integer", "minimum": 1}}},
        "status": {"type": "object", "properties": {"built": {"type": "integer"}}}}});
    Ok(serde_json::from_value(json!({"metadata": {"name": DEFINITION}, "spec": {
        "group": "kube.example.com", "scope": "Namespaced",
        "names": {"plural": "towers", "singular": "tower", "kind": "Tower"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}}}]}}))?)
}

async fn reconcile(tower: Arc<Tower>, context: Arc<Shared>) -> Result<Action, Failure> {
    let namespace = tower.namespace().unwrap_or_default();
    let towers = context.towers(&namespace);
    let done = finalizer(&towers, FINALIZER, tower, |event| async {
        match event {
            Life::Apply(tower) => build(&tower, &context, &namespace).await,
            Life::Cleanup(_) => {
                context.cleaned.fetch_add(1, Ordering::SeqCst);
                Ok(Action::await_change())
            }
        }
    });
    done.await.map_err(|e| Failure::Finalizer(Box::new(e)))
}

/// Makes what belongs to a tower, and says so.
async fn build(tower: &Tower, context: &Shared, namespace: &str) -> Result<Action, Failure> {
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let name = format!("{}-levels", tower.name_any());
    let owner = tower.controller_owner_ref(&context.resource);
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": [owner]},
        "data": {"levels": tower.spec.levels.to_string()}});
    maps.patch(&name, &PatchParams::apply("towers").force(), &Patch::Apply(&map)).await?;
    let status = json!({"status": {"built": tower.spec.levels}});
    let towers = context.towers(namespace);
    towers.patch_status(&tower.name_any(), &PatchParams::default(), &Patch::Merge(&status)).await?;
    let recorder = Recorder::new(context.client.clone(), Reporter::from("towers"));
    let event = Event {
        type_: EventType::Normal,
        reason: "Built".into(),
        note: Some(format!("{} levels", tower.spec.levels)),
        action: "Build".into(),
        secondary: None,
    };
    recorder.publish(&event, &tower.object_ref(&context.resource)).await?;
    Ok(Action::requeue(Duration::from_secs(300)))
}

pub async fn operator(world: &World) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    definitions.create(&PostParams::default(), &definition()?).await?;
    let served = await_condition(definitions.clone(), DEFINITION, conditions::is_crd_established());
    tokio::time::timeout(Duration::from_secs(20), served).await.context("the definition is not established")??;

    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("kube.example.com", "v1", "Tower"), "towers");
    let context =
        Arc::new(Shared { client: world.client.clone(), resource: resource.clone(), cleaned: AtomicUsize::new(0) });
    let towers = context.towers(&world.namespace);
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), &world.namespace);
    let controller = Controller::new_with(towers.clone(), watcher::Config::default(), resource.clone())
        .owns(maps.clone(), watcher::Config::default())
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_millis(200)), context.clone());
    let running = tokio::spawn(controller.for_each(|_| async {}));

    let tower: Tower = serde_json::from_value(json!({"apiVersion": "kube.example.com/v1", "kind": "Tower",
        "metadata": {"name": "a"}, "spec": {"levels": 3}}))?;
    towers.create(&PostParams::default(), &tower).await?;
    built(&towers, &maps, 3).await?;
    towers.patch("a", &PatchParams::default(), &Patch::Merge(json!({"spec": {"levels": 4}}))).await?;
    built(&towers, &maps, 4).await?;
    // What it owns is made again, from the event about it.
    maps.delete("a-levels", &DeleteParams::default()).await?;
    built(&towers, &maps, 4).await?;
    let refused = towers.patch("a", &PatchParams::default(), &Patch::Merge(json!({"spec": {"levels": 0}}))).await;
    ensure(matches!(&refused, Err(kube::Error::Api(s)) if s.code == 422), || {
        format!("a tower of nothing: {refused:?}")
    })?;

    let uid = towers.get("a").await?.uid().context("it has a uid")?;
    towers.delete("a", &DeleteParams::foreground()).await?;
    let gone = await_condition(towers.clone(), "a", conditions::is_deleted(&uid));
    tokio::time::timeout(Duration::from_secs(30), gone).await.context("it is not deleted")??;
    until("the finalizer's work", || context.cleaned.load(Ordering::SeqCst) > 0).await?;
    // What it owned does not block its deletion: the garbage collector comes later.
    let mut left = maps.get_opt("a-levels").await?;
    for _ in 0..400 {
        if left.is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        left = maps.get_opt("a-levels").await?;
    }
    ensure(left.is_none(), || format!("what it owned is still there: {left:?}"))?;
    running.abort();
    definitions.delete(DEFINITION, &DeleteParams::default()).await?;
    Ok(())
}

/// Waits until status and owned object say what the spec says.
async fn built(towers: &Api<Tower>, maps: &Api<ConfigMap>, levels: i64) -> Result<()> {
    let mut seen = Value::Null;
    for _ in 0..400 {
        let tower = towers.get("a").await?;
        let map = maps.get_opt("a-levels").await?;
        let said = map.as_ref().and_then(|m| m.data.as_ref()?.get("levels").cloned());
        seen = json!({"status": tower.status.as_ref().map(|s| s.built), "levels": said,
            "owner": map.as_ref().and_then(|m| m.owner_references().first().map(|o| o.uid.clone())), "finalizers": tower.finalizers()});
        if seen
            == json!({"status": levels, "levels": levels.to_string(), "owner": tower.uid(), "finalizers": [FINALIZER]})
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("waited for a tower of {levels} levels, saw {seen}")
}
