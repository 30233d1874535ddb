//! Takes the tracking finalizer from pods that no job will count: without a job, of one that is gone, or that has finished.

use super::{API_VERSION, KIND, is_ours, pod};
use crate::controller::{Context, Controller, Error, Key};
use async_trait::async_trait;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Job, Pod};
use isopod_client::{Change, Informer};
use std::sync::Arc;
use std::time::Duration;

struct Orphans {
    context: Context,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
}

pub async fn run(context: Context, jobs: Informer<Job>) {
    let pods = context.informer::<Pod>(Pod::resource());
    let queue = WorkQueue::new(context.clock.clone());
    let (known, again) = (jobs.clone(), queue.clone());
    context.feed(&pods, move |change| {
        if let Change::Applied { new, .. } = change
            && is_orphan(&new, &known)
        {
            again.add(Key::of(&new.metadata));
        }
    });
    let (all, again) = (pods.clone(), queue.clone());
    context.feed(&jobs, move |change| {
        let ended = match change {
            Change::Deleted(job) => job,
            Change::Applied { new, .. } if new.finished().is_some() => new,
            _ => return,
        };
        for pod in crate::pod_control::pods_of(&all, &ended.metadata.uid) {
            again.add(Key::of(&pod.metadata));
        }
    });
    let controller = Arc::new(Orphans { context: context.clone(), jobs, pods });
    context.work(controller, queue, 1).await;
}

fn is_orphan(pod: &Pod, jobs: &Informer<Job>) -> bool {
    if !pod::is_tracked(&pod.metadata) {
        return false;
    }
    let Some(owner) = pod.metadata.controller() else { return true };
    if owner.kind != KIND || owner.api_version != API_VERSION {
        return false;
    }
    let job = jobs.get(&pod.metadata.namespace, &owner.name).filter(|j| j.metadata.uid == owner.uid);
    job.is_none_or(|j| is_ours(&j) && j.finished().is_some())
}

#[async_trait]
impl Controller for Orphans {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(None) };
        if is_orphan(&pod, &self.jobs) {
            match self.context.apply(&pod::untrack(&pod.metadata)).await {
                Err(e) if !e.api().is_some_and(isopod_client::Error::is_not_found) => return Err(e),
                _ => {}
            }
        }
        Ok(None)
    }
}
