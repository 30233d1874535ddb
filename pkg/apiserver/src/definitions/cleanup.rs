//! Deletes the objects of a definition that is being deleted, then lets it go (`CRDFinalizer` upstream).

use super::write_status;
use crate::ApiServer;
use crate::cache::entry::{Entry, Filter};
use crate::deletion;
use crate::options::DeleteOptions;
use isopod_api::{Status, time};
use isopod_kinds::Kind;
use isopod_kinds::access::{Access, set};
use isopod_kinds::custom::status::{self, FINALIZER};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// When to try again what failed.
const AGAIN: Duration = Duration::from_secs(5);

/// Cleans up after a definition, once. `objects`: its stored kind; `None`: it was never served.
pub fn start(server: &Arc<ApiServer>, kind: &Arc<Kind>, definition: &Value, objects: Option<Arc<Kind>>) {
    let uid = definition.text("metadata.uid").to_owned();
    if !server.definitions.0.lock().cleaning.insert(uid.clone()) {
        return;
    }
    let (server, kind, definition) = (server.clone(), kind.clone(), definition.clone());
    tokio::spawn(async move {
        let stop = server.stop.clone();
        let work = async {
            while let Err(e) = clean(&server, &kind, &definition, objects.as_ref()).await {
                tracing::warn!(definition = definition.text("metadata.name"), error = %e, "cannot delete all objects yet");
                server.config.clock.sleep(AGAIN).await;
            }
        };
        let _ = stop.run_until_cancelled(work).await;
        server.definitions.0.lock().cleaning.remove(&uid);
    });
}

async fn clean(
    server: &ApiServer,
    kind: &Arc<Kind>,
    definition: &Value,
    objects: Option<&Arc<Kind>>,
) -> Result<(), Status> {
    let say = |object: &mut Value, status: &str, reason: &str, message: &str| {
        let now = time::format(server.config.clock.now());
        status::set_condition(object, "Terminating", status, reason, message, &now);
    };
    let begun = "CustomResource deletion is in progress";
    write_status(server, kind, definition, |o| say(o, "True", "InstanceDeletionInProgress", begun)).await?;
    let (reason, message) = match objects {
        Some(stored) => {
            delete_all(server, stored).await?;
            ("InstanceDeletionCompleted", "removed all instances")
        }
        None => ("NeverEstablished", "resource was never established"),
    };
    write_status(server, kind, definition, |o| {
        say(o, "False", reason, message);
        let mut left: Vec<String> = o.texts("metadata.finalizers").into_iter().map(str::to_owned).collect();
        left.retain(|f| f != FINALIZER);
        set(o, "metadata.finalizers", left);
    })
    .await
}

/// Deletes every object and waits until the last one is gone, whoever holds it.
async fn delete_all(server: &ApiServer, kind: &Arc<Kind>) -> Result<(), Status> {
    loop {
        let (cache, _) = server.hub.fresh_cache(kind).await?;
        let (mut changes, snapshot) = cache.subscribe_with_snapshot(Filter::default());
        if snapshot.entries.is_empty() {
            return Ok(());
        }
        for entry in snapshot.entries.values() {
            delete(server, kind, entry).await?;
        }
        while !cache.snapshot().entries.is_empty() {
            server.hub.fresh().await?;
            if cache.snapshot().entries.is_empty() {
                break;
            }
            // The cache was dropped: look again in a new one.
            if changes.recv().await.is_none() {
                break;
            }
        }
    }
}

async fn delete(server: &ApiServer, kind: &Arc<Kind>, entry: &Entry) -> Result<(), Status> {
    let intent = server.intent(kind, entry.namespace(), entry.name());
    match deletion::delete(server, &intent, &DeleteOptions::default()).await {
        Err(e) if e.code != 404 => Err(e),
        _ => Ok(()),
    }
}
