//! The newest revision, read from the cluster itself. Callers that wait at the same time share a read.
//!
//! Invariant: a caller's answer comes from a read that began after it had asked, so that it covers everything that was
//! acknowledged before, by whichever server.

use super::cluster::{Cluster, Repeat, client};
use super::messages;
use crate::pb::etcdserverpb as pb;
use isopod_store::{Result, Revision, StoreError};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::oneshot;

#[derive(Default)]
struct State {
    reading: bool,
    waiting: Vec<oneshot::Sender<Result<Revision>>>,
}

#[derive(Default)]
pub(super) struct Revisions(Mutex<State>);

impl Revisions {
    pub async fn newest(self: &Arc<Self>, cluster: &Arc<Cluster>) -> Result<Revision> {
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut state = self.0.lock();
            state.waiting.push(answer);
            !std::mem::replace(&mut state.reading, true)
        };
        if begins {
            // A task: a caller that goes away takes nobody else's answer with it.
            tokio::spawn(serve(self.clone(), cluster.clone()));
        }
        answered.await.unwrap_or(Err(StoreError::Closed))
    }
}

async fn serve(revisions: Arc<Revisions>, cluster: Arc<Cluster>) {
    loop {
        let waiting = {
            let mut state = revisions.0.lock();
            let waiting = std::mem::take(&mut state.waiting);
            state.reading = !waiting.is_empty();
            waiting
        };
        if waiting.is_empty() {
            return;
        }
        let newest = read(&cluster).await;
        for answer in waiting {
            let _ = answer.send(newest.clone());
        }
    }
}

async fn read(cluster: &Cluster) -> Result<Revision> {
    let request = pb::RangeRequest { key: cluster.options.probe_key.clone(), count_only: true, ..Default::default() };
    let ask = |channel| {
        let request = request.clone();
        async move { client!(channel, kv_client::KvClient).range(request).await }
    };
    let answer = cluster.call("cannot read the newest revision", Repeat::Safe, ask).await?;
    Ok(messages::revision(&answer.header))
}
