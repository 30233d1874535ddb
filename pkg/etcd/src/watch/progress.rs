//! Progress of a whole stream: said once, when every watch on it has delivered all up to some revision.
//!
//! Invariant: each watch puts its events into the queue before it gives its share, so the one that gives the last share may
//! say the smallest revision of all.

use super::{NO_WATCH, Out};
use crate::pb::etcdserverpb as pb;
use crate::service::Service;
use isopod_store::Revision;
use parking_lot::Mutex;
use std::sync::Arc;

pub(super) struct Round(Mutex<State>);

struct State {
    missing: usize,
    /// The smallest that was given.
    revision: Option<Revision>,
}

impl Round {
    pub fn new(watches: usize) -> Arc<Self> {
        Arc::new(Round(Mutex::new(State { missing: watches, revision: None })))
    }
}

/// One watch's part in a round.
pub(super) struct Share(Arc<Round>);

impl Share {
    pub fn new(round: &Arc<Round>) -> Self {
        Share(Arc::clone(round))
    }

    /// All up to and with `revision` has been delivered.
    pub async fn give(self, revision: Revision, service: &Service, out: &Out) {
        self.count(Some(revision), service, out).await;
    }

    /// The watch has ended: the others decide.
    pub async fn leave(self, service: &Service, out: &Out) {
        self.count(None, service, out).await;
    }

    async fn count(self, given: Option<Revision>, service: &Service, out: &Out) {
        let last = {
            let mut state = self.0.0.lock();
            state.missing -= 1;
            state.revision = [state.revision, given].into_iter().flatten().min();
            state.revision.filter(|_| state.missing == 0)
        };
        if let Some(revision) = last {
            let header = Some(service.header(revision));
            let answer = pb::WatchResponse { header, watch_id: NO_WATCH, ..Default::default() };
            let _ = out.send(Ok(answer)).await;
        }
    }
}
