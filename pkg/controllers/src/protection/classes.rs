//! Protects volume attributes classes that a claim or a volume names (`kubernetes.io/vac-protection`).

use super::{Need, add, need, remove};
use crate::controller::{Context, Controller, Error, Key};
use async_trait::async_trait;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{PersistentVolume, PersistentVolumeClaim, VolumeAttributesClass};
use isopod_client::{Change, Informer, View};
use std::sync::Arc;
use std::time::Duration;

const FINALIZER: &str = "kubernetes.io/vac-protection";
/// Index of claims and of volumes by the classes that they name.
const BY_CLASS: &str = "volume attributes class";

struct Classes {
    context: Context,
    classes: Informer<VolumeAttributesClass>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
}

pub async fn run(context: Context) {
    let classes = context.informer::<VolumeAttributesClass>(VolumeAttributesClass::resource());
    let claims = context.informer::<PersistentVolumeClaim>(PersistentVolumeClaim::resource());
    let volumes = context.informer::<PersistentVolume>(PersistentVolume::resource());
    claims.add_index(BY_CLASS, classes_of_claim);
    volumes.add_index(BY_CLASS, classes_of_volume);
    classes.synced().await;
    claims.synced().await;
    volumes.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&classes, &queue);
    feed_users(&context, &claims, classes_of_claim, &queue);
    feed_users(&context, &volumes, classes_of_volume, &queue);
    let controller = Arc::new(Classes { context: context.clone(), classes, claims, volumes });
    context.work(controller, queue, 1).await;
}

fn classes_of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let status = &claim.status;
    let target = status.modify_volume_status.as_ref().map(|m| &m.target_volume_attributes_class_name);
    let spec = claim.spec.volume_attributes_class_name.as_ref();
    let named = [spec, status.current_volume_attributes_class_name.as_ref(), target];
    named.into_iter().flatten().filter(|n| !n.is_empty()).cloned().collect()
}

fn classes_of_volume(volume: &PersistentVolume) -> Vec<String> {
    volume.spec.volume_attributes_class_name.iter().filter(|n| !n.is_empty()).cloned().collect()
}

/// Wakes the classes that an object names no more.
fn feed_users<T: View>(
    context: &Context,
    users: &Informer<T>,
    classes_of: fn(&T) -> Vec<String>,
    queue: &WorkQueue<Key>,
) {
    let queue = queue.clone();
    context.feed(users, move |change| {
        let (before, now) = match change {
            Change::Applied { old: Some(old), new } => (classes_of(&old), classes_of(&new)),
            Change::Deleted(old) => (classes_of(&old), Vec::new()),
            _ => return,
        };
        for name in before.iter().filter(|n| !now.contains(n)) {
            queue.add(Key::new("", name));
        }
    });
}

#[async_trait]
impl Controller for Classes {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(class) = self.classes.get("", &key.name) else { return Ok(None) };
        let is_used = || {
            !self.volumes.by_index(BY_CLASS, &key.name).is_empty()
                || !self.claims.by_index(BY_CLASS, &key.name).is_empty()
        };
        let op = match need(&class.metadata, FINALIZER) {
            Need::Add => add(VolumeAttributesClass::resource(), &class.metadata, FINALIZER),
            Need::RemoveIfUnused if !is_used() => remove(VolumeAttributesClass::resource(), &class.metadata, FINALIZER),
            _ => return Ok(None),
        };
        self.context.apply(&op).await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_names_the_classes_it_has_had_and_will_have() {
        let claim = serde_json::json!({
            "spec": {"volumeAttributesClassName": "wanted"},
            "status": {"currentVolumeAttributesClassName": "current",
                       "modifyVolumeStatus": {"targetVolumeAttributesClassName": "target", "status": "Pending"}},
        });
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
        assert_eq!(classes_of_claim(&claim), ["wanted", "current", "target"]);
        assert!(classes_of_claim(&PersistentVolumeClaim::default()).is_empty());
    }
}
