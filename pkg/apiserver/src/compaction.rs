//! Keeps the store's history short, as upstream's API server does: what was the newest revision one interval ago is compacted.
//!
//! Invariant: nothing is compacted while nothing changes, and what was changed less than one interval ago stays readable.

use crate::ApiServer;
use isopod_base::errors::Chain;
use isopod_store::{Revision, StoreError};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// `--etcd-compaction-interval`.
const INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Runs until the server stops or is dropped.
pub fn start(server: &Arc<ApiServer>) {
    let (clock, stop) = (server.config.clock.clone(), server.stop.clone());
    let server = Arc::downgrade(server);
    tokio::spawn(async move {
        let mut before: Revision = 0;
        loop {
            tokio::select! {
                () = clock.sleep(INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            match compact(&server, before).await {
                Some(newest) => before = newest,
                None => return,
            }
        }
    });
}

/// Compacts `before` and returns the newest revision. `None`: there is no server or no store any more.
async fn compact(server: &Weak<ApiServer>, before: Revision) -> Option<Revision> {
    let store = server.upgrade()?.config.store.clone();
    let (newest, oldest) = match store.revisions().await {
        Ok(revisions) => revisions,
        Err(StoreError::Closed) => return None,
        // It is away: what was newest one interval ago was so still longer ago when it is back.
        Err(_) => return Some(before),
    };
    if before > oldest && newest > before {
        match store.compact(before).await {
            Ok(()) => tracing::debug!(revision = before, "compacted the datastore"),
            // Another server was quicker.
            Err(StoreError::Compacted { .. }) => {}
            Err(StoreError::Closed) => return None,
            Err(e) => tracing::warn!(error = %Chain(&e), "cannot compact the datastore"),
        }
    }
    Some(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use isopod_base::clock::Clock;
    use isopod_store::memory::MemoryStore;
    use isopod_store::{Op, Options, Store, Txn};

    #[tokio::test]
    async fn the_history_of_one_interval_stays() {
        let clock = Clock::fake(jiff::Timestamp::UNIX_EPOCH);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Options::default()));
        let mut config = Config::new(store.clone(), Vec::new(), crate::Access::new().authorizer());
        config.clock = clock.clone();
        let server = ApiServer::new(config).await.unwrap();
        start(&server);
        let put = async || {
            let txn = Txn { success: vec![Op::put("a", "b")], ..Default::default() };
            store.txn(txn).await.unwrap().revision
        };
        let first = put().await;
        let (mut last, mut intervals) = (first, 0);
        while store.revisions().await.unwrap().1 < first {
            last = put().await;
            clock.advance(INTERVAL);
            tokio::task::yield_now().await;
            intervals += 1;
            assert!(intervals < 1000, "nothing is compacted");
        }
        assert!(store.revisions().await.unwrap().1 < last, "the newest interval stays");
        server.stop();
    }
}
