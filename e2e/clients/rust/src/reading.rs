//! What is there, in pages, as events, and as a store that follows it.

use crate::{World, ensure};
use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::{WatchStreamExt, reflector as reflect, watcher};
use kube::{Api, ResourceExt};
use std::collections::BTreeMap;
use std::time::Duration;

/// The objects of the step that follows one.
const MANY: usize = 30;

pub fn config_map(name: &str, label: &str, data: &[(&str, &str)]) -> ConfigMap {
    let texts = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let mut map = ConfigMap { data: Some(texts(data)), ..ConfigMap::default() };
    map.metadata.name = Some(name.to_owned());
    map.metadata.labels = Some(texts(&[("made-by", label)]));
    map
}

/// Every resource that can be listed is listed without a type of its own.
pub async fn discovery(world: &World) -> Result<()> {
    let version = world.client.apiserver_version().await?;
    ensure(version.minor.starts_with("37"), || format!("the server is {version:?}"))?;
    let found = Discovery::new(world.client.clone()).run_aggregated().await?;
    let mut listed = 0;
    for group in found.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            if !capabilities.supports_operation(verbs::LIST) {
                continue;
            }
            let api: Api<DynamicObject> = match capabilities.scope {
                Scope::Cluster => Api::all_with(world.client.clone(), &resource),
                Scope::Namespaced => Api::namespaced_with(world.client.clone(), &world.namespace, &resource),
            };
            api.list(&ListParams::default().limit(2)).await.with_context(|| resource.plural.clone())?;
            listed += 1;
        }
    }
    ensure(listed > 50, || format!("{listed} resources can be listed"))
}

/// Pages are consistent; what is missing, taken or wrong is told by code and reason.
pub async fn pages(world: &World) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), &world.namespace);
    for i in 0..5 {
        maps.create(&PostParams::default(), &config_map(&format!("page-{i}"), "pages", &[])).await?;
    }
    let mut wanted = ListParams::default().labels("made-by=pages").limit(2);
    let mut names = Vec::new();
    loop {
        let page = maps.list(&wanted).await?;
        names.extend(page.items.iter().map(ResourceExt::name_any));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => wanted = wanted.continue_token(&token),
            None => break,
        }
    }
    ensure(names == ["page-0", "page-1", "page-2", "page-3", "page-4"], || format!("the pages hold {names:?}"))?;
    let partial: PartialObjectMeta<ConfigMap> = maps.get_metadata("page-0").await?;
    ensure(partial.metadata.uid.is_some(), || format!("its metadata is {:?}", partial.metadata))?;

    ensure(maps.get_opt("nothing").await?.is_none(), || "nothing is there".to_owned())?;
    let reason = |result: kube::Result<ConfigMap>| match result {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone()),
        other => (0, format!("{other:?}")),
    };
    let taken = reason(maps.create(&PostParams::default(), &config_map("page-0", "pages", &[])).await);
    ensure(taken == (409, "AlreadyExists".to_owned()), || format!("a name that is taken: {taken:?}"))?;
    let wrong = reason(maps.create(&PostParams::default(), &config_map("Not a name", "pages", &[])).await);
    ensure(wrong == (422, "Invalid".to_owned()), || format!("a name that is none: {wrong:?}"))?;
    let dry = PostParams { dry_run: true, field_manager: Some("dry".into()) };
    let made = maps.create(&dry, &config_map("dry", "pages", &[])).await?;
    ensure(made.uid().is_some() && maps.get_opt("dry").await?.is_none(), || "a dry run leaves something".to_owned())?;
    maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("made-by=pages")).await?;
    ensure(maps.list(&ListParams::default().labels("made-by=pages")).await?.items.is_empty(), || {
        "some are left".to_owned()
    })
}

/// A store that starts with a streaming list (KEP-3157) has what there is, and follows it; a plain watch tells each change.
pub async fn reflector(world: &World) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), &world.namespace);
    for i in 0..MANY {
        maps.create(&PostParams::default(), &config_map(&format!("m-{i:02}"), "reflector", &[])).await?;
    }
    let (store, writer) = reflect::store::<ConfigMap>();
    let config = watcher::Config::default().labels("made-by=reflector").streaming_lists();
    let followed = reflect(writer, watcher(maps.clone(), config)).default_backoff().touched_objects();
    let following = tokio::spawn(followed.try_for_each(|_| async { Ok(()) }));
    store.wait_until_ready().await?;
    ensure(store.len() == MANY, || format!("the store has {} objects when it is ready", store.len()))?;

    let newest = maps.list(&ListParams::default()).await?.metadata.resource_version.context("a list has a revision")?;
    maps.delete("m-00", &DeleteParams::default()).await?;
    maps.create(&PostParams::default(), &config_map("m-99", "reflector", &[("late", "yes")])).await?;
    until("the store follows", || {
        let names: Vec<String> = store.state().iter().map(|m| m.name_any()).collect();
        names.len() == MANY && names.contains(&"m-99".to_owned()) && !names.contains(&"m-00".to_owned())
    })
    .await?;
    following.abort();

    let events = maps.watch(&WatchParams::default().labels("made-by=reflector").timeout(20), &newest).await?;
    let told: Vec<String> = events
        .take(2)
        .map_ok(|event| match event {
            WatchEvent::Added(m) => format!("added {}", m.name_any()),
            WatchEvent::Deleted(m) => format!("deleted {}", m.name_any()),
            other => format!("{other:?}"),
        })
        .try_collect()
        .await?;
    ensure(told == ["deleted m-00", "added m-99"], || format!("the watch tells {told:?}"))?;

    // Metadata alone, of kinds without namespace and with.
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let all = namespaces.list_metadata(&ListParams::default()).await?;
    ensure(all.items.iter().any(|n| n.name_any() == world.namespace), || "the namespace is not listed".to_owned())?;
    let pods: Api<Pod> = Api::all(world.client.clone());
    pods.list_metadata(&ListParams::default().fields("spec.nodeName=nowhere")).await?;
    Ok(())
}

/// Waits for what somebody else does.
pub async fn until(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    for _ in 0..400 {
        if holds() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("waited for this: {what}")
}
