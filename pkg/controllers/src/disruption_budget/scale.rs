//! How many pods there should be, by the scales of what controls the ones that are.

use crate::controller::Context;
use isopod_client::views::{Deployment, OwnerReference, Pod, ReplicaSet, ReplicationController, StatefulSet};
use isopod_client::{Informer, discovery};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

pub struct Scales {
    context: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    replication: Informer<ReplicationController>,
    stateful: Informer<StatefulSet>,
}

/// The sum of the scales of all controllers.
#[derive(Debug, Default)]
pub struct Sum {
    pub scale: i32,
    /// Whether there are pods that nothing controls.
    pub has_unmanaged: bool,
}

/// The uid of a controller, and its scale.
type Scale = (String, i32);

impl Scales {
    pub fn new(context: &Context) -> Self {
        Scales {
            context: context.clone(),
            deployments: context.informer(Deployment::resource()),
            sets: context.informer(ReplicaSet::resource()),
            replication: context.informer(ReplicationController::resource()),
            stateful: context.informer(StatefulSet::resource()),
        }
    }

    pub async fn synced(&self) {
        self.deployments.synced().await;
        self.sets.synced().await;
        self.replication.synced().await;
        self.stateful.synced().await;
    }

    /// Each controller counts once; one that has no scale is an error.
    pub async fn sum(&self, pods: &[Arc<Pod>]) -> Result<Sum, String> {
        // By the owner that the pods name, which for a deployment is its replica set.
        let mut by_owner: BTreeMap<&str, Scale> = BTreeMap::new();
        let mut has_unmanaged = false;
        for pod in pods {
            let Some(owner) = pod.metadata.controller() else {
                has_unmanaged = true;
                continue;
            };
            if by_owner.contains_key(owner.uid.as_str()) {
                continue;
            }
            let namespace = &pod.metadata.namespace;
            let found = match self.known(owner, namespace) {
                Some(scale) => Some(scale),
                None => self.asked(owner, namespace).await?,
            };
            let scale = found.ok_or_else(|| format!("found no controllers for pod {:?}", pod.metadata.name))?;
            by_owner.insert(&owner.uid, scale);
        }
        let by_controller: BTreeMap<String, i32> = by_owner.into_values().collect();
        Ok(Sum { scale: by_controller.values().sum(), has_unmanaged })
    }

    /// The scale of a controller of a built-in kind.
    fn known(&self, owner: &OwnerReference, namespace: &str) -> Option<Scale> {
        let is_apps = owner.api_version.starts_with("apps/") || owner.api_version.starts_with("extensions/");
        let (uid, replicas) = match owner.kind.as_str() {
            "ReplicationController" if owner.api_version == "v1" => {
                let found = self.replication.get(namespace, &owner.name)?;
                let set: &ReplicaSet = (*found).as_ref();
                (set.metadata.uid.clone(), set.spec.replicas)
            }
            "ReplicaSet" if is_apps => {
                let set = self.sets.get(namespace, &owner.name)?;
                if set.metadata.uid != owner.uid {
                    return None;
                }
                let above = set.metadata.controller().filter(|c| c.kind == "Deployment");
                let deployment =
                    above.and_then(|c| self.deployments.get(namespace, &c.name).filter(|d| d.metadata.uid == c.uid));
                return Some(match deployment {
                    Some(d) => (d.metadata.uid.clone(), d.spec.replicas.unwrap_or(1)),
                    None => (set.metadata.uid.clone(), set.spec.replicas.unwrap_or(1)),
                });
            }
            "StatefulSet" if is_apps => {
                let set = self.stateful.get(namespace, &owner.name)?;
                (set.metadata.uid.clone(), set.spec.replicas)
            }
            _ => return None,
        };
        (uid == owner.uid).then(|| (uid, replicas.unwrap_or(1)))
    }

    /// The scale of any other controller, by its subresource.
    async fn asked(&self, owner: &OwnerReference, namespace: &str) -> Result<Option<Scale>, String> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let client = &self.context.client;
        let all = discovery::preferred(client).await.map_err(|e| e.to_string())?;
        let Some(found) = all.into_iter().find(|d| d.kind == owner.kind && d.resource.gvr.group == group) else {
            return Ok(None);
        };
        let calls = self.context.calls(found.resource.clone());
        match calls.get_subresource::<Value>(namespace, &owner.name, "scale").await {
            Ok(scale) => {
                let uid = scale["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
                let replicas = scale["spec"]["replicas"].as_i64().unwrap_or_default() as i32;
                Ok((uid == owner.uid).then_some((uid, replicas)))
            }
            Err(e) if e.is_not_found() => {
                Err(format!("{} does not implement the scale subresource", found.resource.gvr.qualified()))
            }
            Err(e) => Err(e.to_string()),
        }
    }
}
