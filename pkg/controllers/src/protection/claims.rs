//! Protects claims that pods use (`kubernetes.io/pvc-protection`), and says on bound ones whether a pod uses them (the
//! condition `Unused`, KEP-5541).
//!
//! Invariant: a claim counts as unused only when the server itself lists no pod that uses it; the cache may be behind.

use super::{Need, add, need, remove};
use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use async_trait::async_trait;
use isopod_api::time;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Meta, PersistentVolumeClaim, Pod, VolumeRef};
use isopod_client::{Change, Informer, ListScope};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const FINALIZER: &str = "kubernetes.io/pvc-protection";
const UNUSED: &str = "Unused";
/// Index of pods by the claims that their volumes name, as `namespace/claim`.
const BY_CLAIM: &str = "claim";

struct Claims {
    context: Context,
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
}

pub async fn run(context: Context) {
    let claims = context.informer::<PersistentVolumeClaim>(PersistentVolumeClaim::resource());
    let pods = context.informer::<Pod>(Pod::resource());
    pods.add_index(BY_CLAIM, |p| claims_of(p).map(|c| Key::new(&p.metadata.namespace, &c).to_string()).collect());
    claims.synced().await;
    pods.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&claims, &queue);
    let again = queue.clone();
    context.feed(&pods, move |change| {
        let (old, new) = match change {
            Change::Applied { old, new } => (old, Some(new)),
            Change::Deleted(old) => (Some(old), None),
            Change::Resync => return,
        };
        for pod in old.iter().chain(&new) {
            claims_of(pod).for_each(|c| again.add(Key::new(&pod.metadata.namespace, &c)));
        }
    });
    let controller = Arc::new(Claims { context: context.clone(), claims, pods });
    context.work(controller, queue, 2).await;
}

/// The name of the claim that a volume mounts, or that is made for it.
fn claim_name(pod: &Pod, volume: &VolumeRef) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.metadata.name, volume.name)),
        (None, None) => None,
    }
}

fn claims_of(pod: &Pod) -> impl Iterator<Item = String> + '_ {
    pod.spec.volumes.iter().filter_map(|v| claim_name(pod, v))
}

/// Whether the claim stands in one of the pod's volumes; one that is made for a pod counts for that pod only.
fn mounts(pod: &Pod, claim: &Meta, count_ephemeral: bool) -> bool {
    pod.spec.volumes.iter().any(|v| {
        claim_name(pod, v).is_some_and(|n| n == claim.name)
            && (v.persistent_volume_claim.is_some()
                || (count_ephemeral && claim.controller().is_some_and(|c| c.uid == pod.metadata.uid)))
    })
}

/// Whether the pod keeps the claim from being deleted: no kubelet starts an unassigned pod whose claim is being deleted. A
/// pod that is shut down does not hold its own ephemeral claim, whose deletion it may wait for.
fn holds(pod: &Pod, claim: &Meta) -> bool {
    let is_shut_down = pod.metadata.is_being_deleted() && pod.metadata.deletion_grace_period_seconds == Some(0);
    !pod.spec.node_name.is_empty() && mounts(pod, claim, !is_shut_down)
}

/// Whether the pod counts as a user of the claim.
fn uses(pod: &Pod, claim: &Meta) -> bool {
    !pod.is_terminal() && mounts(pod, claim, true)
}

/// The write of the condition, when it says something else.
fn unused_condition(claim: &PersistentVolumeClaim, is_used: bool, now: Timestamp) -> Option<Op> {
    if says(claim, is_used) {
        return None;
    }
    let (status, reason, message) = if is_used {
        ("False", "PodUsingPVC", "A pod is currently referencing this PVC")
    } else {
        ("True", "NoPodsUsingPVC", "No pods are currently referencing this PVC")
    };
    let new = json!({"type": UNUSED, "status": status, "reason": reason, "message": message,
                     "lastTransitionTime": time::format(now)});
    let m = &claim.metadata;
    let others = claim.status.conditions.iter().filter(|c| c.kind != UNUSED).map(|c| {
        let fields = BTreeMap::from([
            ("type", Some(&c.kind)),
            ("status", Some(&c.status)),
            ("reason", Some(&c.reason).filter(|r| !r.is_empty())),
            ("message", Some(&c.message).filter(|m| !m.is_empty())),
            ("lastProbeTime", c.last_probe_time.as_ref()),
            ("lastTransitionTime", c.last_transition_time.as_ref()),
        ]);
        json!(fields)
    });
    let conditions: Vec<Value> = others.chain([new]).collect();
    let body = json!({"status": {"conditions": conditions}});
    let op = Op::status(PersistentVolumeClaim::resource(), &m.namespace, &m.name, body);
    Some(op.if_unchanged(&m.resource_version))
}

/// Whether the claim's condition says so already.
fn says(claim: &PersistentVolumeClaim, is_used: bool) -> bool {
    let status = claim.status.conditions.iter().find(|c| c.kind == UNUSED).map(|c| c.status.as_str());
    if is_used { status.is_some_and(|s| s != "True") } else { status == Some("True") }
}

#[async_trait]
impl Controller for Claims {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(claim) = self.claims.get(&key.namespace, &key.name) else { return Ok(None) };
        let op = match need(&claim.metadata, FINALIZER) {
            Need::Add => Some(add(PersistentVolumeClaim::resource(), &claim.metadata, FINALIZER)),
            Need::RemoveIfUnused if !self.has_pod(&claim.metadata, holds).await? => {
                Some(remove(PersistentVolumeClaim::resource(), &claim.metadata, FINALIZER))
            }
            Need::RemoveIfUnused => None,
            Need::Nothing => self.condition(&claim).await?,
        };
        if let Some(op) = op {
            self.context.apply(&op).await?;
        }
        Ok(None)
    }
}

impl Claims {
    async fn condition(&self, claim: &PersistentVolumeClaim) -> Result<Option<Op>, Error> {
        // A claim that is not bound yet is being written by who binds it.
        if claim.metadata.is_being_deleted() || claim.status.phase != "Bound" {
            return Ok(None);
        }
        let cached = self.cached(&claim.metadata, uses);
        if !cached && says(claim, false) {
            return Ok(None);
        }
        let is_used = cached || self.has_pod(&claim.metadata, uses).await?;
        Ok(unused_condition(claim, is_used, self.context.clock.now()))
    }

    fn cached(&self, claim: &Meta, uses: fn(&Pod, &Meta) -> bool) -> bool {
        self.pods.by_index(BY_CLAIM, &Key::of(claim).to_string()).iter().any(|p| uses(p, claim))
    }

    async fn has_pod(&self, claim: &Meta, uses: fn(&Pod, &Meta) -> bool) -> Result<bool, Error> {
        if self.cached(claim, uses) {
            return Ok(true);
        }
        let scope = ListScope { namespace: claim.namespace.clone(), ..ListScope::all() };
        let live: Vec<Pod> = self.context.calls(Pod::resource()).list(&scope).await?;
        Ok(live.iter().any(|p| uses(p, claim)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_claim() {
        let claim: Meta = serde_json::from_value(json!({"name": "p-data"})).unwrap();
        let own = json!({"name": "p-data", "ownerReferences": [{"uid": "p", "controller": true}]});
        let own: Meta = serde_json::from_value(own).unwrap();
        let mount = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "p-data"}}]);
        let ephemeral = json!([{"name": "data", "ephemeral": {"volumeClaimTemplate": {}}}]);
        for (volumes, node, phase, grace, claim, held, used) in [
            (&mount, "n1", "Running", None, &claim, true, true),
            (&mount, "", "Pending", None, &claim, false, true),
            (&mount, "n1", "Succeeded", None, &claim, true, false),
            (&ephemeral, "n1", "Running", None, &own, true, true),
            (&ephemeral, "n1", "Running", None, &claim, false, false),
            (&ephemeral, "n1", "Running", Some(0), &own, false, true),
            (&ephemeral, "n1", "Running", Some(30), &own, true, true),
        ] {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "p", "uid": "p", "deletionGracePeriodSeconds": grace,
                             "deletionTimestamp": grace.map(|_| "2026-01-01T00:00:00Z")},
                "spec": {"nodeName": node, "volumes": volumes}, "status": {"phase": phase},
            }))
            .unwrap();
            assert_eq!((holds(&pod, claim), uses(&pod, claim)), (held, used), "{pod:?}");
        }
    }

    #[test]
    fn the_condition_changes_only_when_use_does() {
        let now = Timestamp::UNIX_EPOCH;
        for (status, is_used, written) in [
            (None, true, Some("False")),
            (None, false, Some("True")),
            (Some("True"), true, Some("False")),
            (Some("True"), false, None),
            (Some("False"), true, None),
            (Some("False"), false, Some("True")),
        ] {
            let mut conditions = vec![json!({"type": "Resizing", "status": "True"})];
            conditions.extend(status.map(|s| json!({"type": UNUSED, "status": s})));
            let claim = json!({"metadata": {"name": "c", "namespace": "n"}, "status": {"conditions": conditions}});
            let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
            match (unused_condition(&claim, is_used, now), written) {
                (None, None) => {}
                (Some(op), Some(status)) => {
                    let text = op.to_string();
                    assert!(text.contains(&format!(r#""status":"{status}","type":"Unused""#)), "{text}");
                    assert!(text.contains("Resizing"), "{text}");
                }
                (op, _) => panic!("{status:?} {is_used}: {op:?}"),
            }
        }
    }
}
