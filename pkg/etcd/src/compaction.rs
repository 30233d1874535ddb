//! Compaction by the server itself, for clients that never ask for it. Off by default, as in etcd.

use isopod_base::errors::Chain;
use isopod_store::{Revision, Store, StoreError};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How much history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    Off,
    /// That of so long.
    Periodic(Duration),
    /// So many revisions.
    Revision(i64),
}

/// How often the number of revisions is looked at.
const LOOK: Duration = Duration::from_secs(300);
/// How many times in a period the revision is noted.
const NOTES: u32 = 10;

/// Runs until `stop`.
pub async fn run(store: Arc<dyn Store>, mode: AutoCompaction, stop: CancellationToken) {
    let (wait, keep) = match mode {
        AutoCompaction::Off => return,
        AutoCompaction::Periodic(period) => ((period / NOTES).max(Duration::from_secs(1)), 0),
        AutoCompaction::Revision(n) => (LOOK, n),
    };
    let mut notes: VecDeque<Revision> = VecDeque::new();
    while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        let newest = match store.revisions().await {
            Ok((newest, _)) => newest,
            Err(_) => return,
        };
        let target = match mode {
            AutoCompaction::Periodic(_) => {
                notes.push_back(newest);
                if notes.len() <= NOTES as usize { None } else { notes.pop_front() }
            }
            _ => Some(newest - keep),
        };
        if let Some(target) = target.filter(|t| *t > 0) {
            compact(&*store, target).await;
        }
    }
}

async fn compact(store: &dyn Store, target: Revision) {
    match store.compact(target).await {
        // Nothing was written since the last time, or a client was faster.
        Ok(()) | Err(StoreError::Compacted { .. } | StoreError::Closed) => {}
        Err(e) => tracing::warn!(error = %Chain(&e), "cannot compact the history"),
    }
}
