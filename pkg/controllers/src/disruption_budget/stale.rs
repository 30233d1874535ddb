//! Takes back the mark of a disruption that did not happen (KEP-3329): the pod is not being deleted two minutes later.

use crate::controller::{Context, Controller, Error, Key};
use crate::disruption::set_condition;
use async_trait::async_trait;
use isopod_api::time;
use isopod_client::queue::WorkQueue;
use isopod_client::views::Pod;
use isopod_client::{Change, Informer};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

const TARGET: &str = "DisruptionTarget";
/// A kubelet may take its time.
const BY_KUBELET: &str = "TerminationByKubelet";
const STALE_AFTER: SignedDuration = SignedDuration::from_mins(2);

struct Marks {
    context: Context,
    pods: Informer<Pod>,
}

pub async fn run(context: Context, pods: Informer<Pod>) {
    let queue = WorkQueue::new(context.clock.clone());
    let again = queue.clone();
    context.feed(&pods, move |change| {
        if let Change::Applied { new, .. } = change
            && stale_at(&new).is_some()
        {
            again.add(Key::of(&new.metadata));
        }
    });
    let controller = Arc::new(Marks { context: context.clone(), pods });
    context.work(controller, queue, 1).await;
}

/// From when on the mark on the pod means nothing.
fn stale_at(pod: &Pod) -> Option<Timestamp> {
    if pod.metadata.is_being_deleted() || pod.is_terminal() {
        return None;
    }
    let mark = pod.condition(TARGET).filter(|c| c.status == "True" && c.reason != BY_KUBELET)?;
    Some(time::parse(mark.last_transition_time.as_deref()?)? + STALE_AFTER)
}

#[async_trait]
impl Controller for Marks {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(None) };
        let now = self.context.clock.now();
        let Some(at) = stale_at(&pod) else { return Ok(None) };
        if at > now {
            return Ok(Some(at.duration_since(now).unsigned_abs()));
        }
        self.context.apply(&set_condition(&pod, TARGET, "False", "", "", now)).await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn which_marks_are_stale() {
        for (phase, status, reason, want) in [
            ("Running", "True", "EvictionByEvictionAPI", Some("2026-01-01T00:02:00Z")),
            ("Running", "True", BY_KUBELET, None),
            ("Running", "False", "", None),
            ("Failed", "True", "EvictionByEvictionAPI", None),
        ] {
            let mark = json!({"type": TARGET, "status": status, "reason": reason, "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let pod = json!({"status": {"phase": phase, "conditions": [mark]}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(stale_at(&pod).map(time::format).as_deref(), want, "{phase} {status} {reason}");
        }
    }
}
