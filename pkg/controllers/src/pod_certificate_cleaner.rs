//! Deletes PodCertificateRequests a quarter of an hour after they were made: a kubelet has its certificate by then, or has given
//! up.
//!
//! Watches and deletes these requests.

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use async_trait::async_trait;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Meta, MetaOnly};
use isopod_client::{Informer, Resource};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

const AGE: SignedDuration = SignedDuration::from_mins(15);

struct Cleaner {
    context: Context,
    requests: Informer<MetaOnly>,
}

fn resource() -> Resource {
    Resource::namespaced("certificates.k8s.io", "v1", "podcertificaterequests")
}

pub async fn run(context: Context) {
    let requests = context.informer::<MetaOnly>(resource());
    requests.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&requests, &queue);
    let controller = Arc::new(Cleaner { context: context.clone(), requests });
    context.work(controller, queue, 1).await;
}

fn due(request: &Meta) -> Option<Timestamp> {
    isopod_api::time::parse(&request.creation_timestamp)?.checked_add(AGE).ok()
}

#[async_trait]
impl Controller for Cleaner {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(request) = self.requests.get(&key.namespace, &key.name) else { return Ok(None) };
        let (m, now) = (&request.metadata, self.context.clock.now());
        let Some(due) = due(m) else { return Ok(None) };
        if due > now {
            return Ok(Some(due.duration_since(now).unsigned_abs()));
        }
        self.context.apply(&Op::delete(resource(), &m.namespace, &m.name).if_uid(&m.uid)).await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_live_a_quarter_of_an_hour() {
        let at = |creation_timestamp: &str| Meta { creation_timestamp: creation_timestamp.into(), ..Meta::default() };
        let due = |m: Meta| due(&m).map(isopod_api::time::format);
        assert_eq!(due(at("2026-01-01T00:50:00Z")).as_deref(), Some("2026-01-01T01:05:00Z"));
        assert_eq!(due(at("")), None);
    }
}
