//! Two servers of one database that somebody makes trouble for, with their clients and watchers. Time is real there.

use super::CLIENTS;
use super::recorder::Recorder;
use super::watchers::{self, Watching};
use crate::*;
use isopod_base::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

pub(crate) struct Pair {
    pub recorder: Arc<Recorder>,
    stores: [Arc<dyn Store>; 2],
    watching: [Watching; 2],
    clients: Vec<JoinHandle<()>>,
    goes_on: Arc<AtomicBool>,
    ttl: u64,
}

impl Pair {
    pub fn start(stores: [Arc<dyn Store>; 2], seed: u64, ttl: u64) -> Self {
        let recorder = Arc::new(Recorder::new(seed, Clock::system().steady(), ttl));
        let watching = [0, 1].map(|n| watchers::start(&stores[n], &recorder, seed << 1 | n as u64));
        let goes_on = Arc::new(AtomicBool::new(true));
        let clients = (0..CLIENTS).map(|n| {
            let (store, recorder) = (Arc::clone(&stores[n as usize % 2]), Arc::clone(&recorder));
            let goes_on = Arc::clone(&goes_on);
            tokio::spawn(
                async move { recorder.client(&*store, n, usize::MAX, || goes_on.load(Ordering::SeqCst)).await },
            )
        });
        let clients = clients.collect();
        Pair { recorder, stores, watching, clients, goes_on, ttl }
    }

    pub async fn work(&self, milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    /// Until so much has been written that a history without a fault says something.
    pub async fn work_until_it_tells(&self) {
        let enough = self.recorder.newest() + 60;
        let written = async {
            while self.recorder.newest() < enough {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), written).await.expect("the clients cannot write");
    }

    pub async fn end(self) -> isopod_history::History {
        self.goes_on.store(false, Ordering::SeqCst);
        for client in self.clients {
            client.await.unwrap();
        }
        leases_end(&*self.stores[1], self.ttl).await;
        self.recorder.last_writes(&*self.stores[0]).await;
        for (store, watching) in self.stores.iter().zip(self.watching) {
            watching.end(&**store, true).await.unwrap();
        }
        self.recorder.take()
    }
}

/// None outlives its time by much: who has just come to know of a lease gives it its whole time once more.
async fn leases_end(store: &dyn Store, ttl: u64) {
    let patience = Duration::from_secs(2 * ttl + 10);
    let ended = async {
        while !store.leases().await.is_ok_and(|left| left.is_empty()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(patience, ended).await.expect("a lease lives on that nobody keeps alive");
}
