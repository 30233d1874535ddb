//! Protects volumes that are bound to a claim (`kubernetes.io/pv-protection`).

use super::{Need, add, need, remove};
use crate::controller::{Context, Controller, Error, Key};
use async_trait::async_trait;
use isopod_client::Informer;
use isopod_client::queue::WorkQueue;
use isopod_client::views::PersistentVolume;
use std::sync::Arc;
use std::time::Duration;

const FINALIZER: &str = "kubernetes.io/pv-protection";

struct Volumes {
    context: Context,
    volumes: Informer<PersistentVolume>,
}

pub async fn run(context: Context) {
    let volumes = context.informer::<PersistentVolume>(PersistentVolume::resource());
    volumes.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&volumes, &queue);
    let controller = Arc::new(Volumes { context: context.clone(), volumes });
    context.work(controller, queue, 1).await;
}

#[async_trait]
impl Controller for Volumes {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(volume) = self.volumes.get("", &key.name) else { return Ok(None) };
        let op = match need(&volume.metadata, FINALIZER) {
            Need::Add => add(PersistentVolume::resource(), &volume.metadata, FINALIZER),
            Need::RemoveIfUnused if volume.status.phase != "Bound" => {
                remove(PersistentVolume::resource(), &volume.metadata, FINALIZER)
            }
            _ => return Ok(None),
        };
        self.context.apply(&op).await?;
        Ok(None)
    }
}
