//! Two servers on one Postgres that is restarted, gives way to a replica which has everything, and to one that lacks commits.

#[path = "../../../tests/conformance/postgres/server.rs"]
mod server;

use super::fork::{Failover, first_told, split, without_refusals};
use super::recorder::Recorder;
use super::watchers::{self, Watching};
use super::{CLIENTS, judge};
use crate::postgres::PostgresStore;
use crate::*;
use isopod_base::clock::Clock;
use isopod_history::Epoch;
use server::Cluster;
use sqlx::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

const SCHEMA: &str = "live";

/// Two servers, their clients and their watchers.
struct Running {
    recorder: Arc<Recorder>,
    stores: [Arc<dyn Store>; 2],
    watching: [Watching; 2],
    clients: Vec<JoinHandle<()>>,
    goes_on: Arc<AtomicBool>,
}

async fn open(cluster: &Cluster) -> Arc<dyn Store> {
    let options = Options { watch_buffer: 1 << 16, ..Options::default() };
    Arc::new(PostgresStore::open(cluster.options(SCHEMA), options).await.unwrap())
}

impl Running {
    async fn start(cluster: &Cluster, seed: u64) -> Self {
        // Leases end by the database's clock: time is real here.
        let recorder = Arc::new(Recorder::new(seed, Clock::system().steady()));
        let stores = [open(cluster).await, open(cluster).await];
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
        Running { recorder, stores, watching, clients, goes_on }
    }

    async fn work(&self, milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    async fn end(self) -> isopod_history::History {
        self.goes_on.store(false, Ordering::SeqCst);
        for client in self.clients {
            client.await.unwrap();
        }
        self.recorder.last_writes(&*self.stores[0]).await;
        for (store, watching) in self.stores.iter().zip(self.watching) {
            watching.end(&**store, true).await.unwrap();
        }
        self.recorder.take()
    }
}

/// The last revision before the only epoch, and the one that it goes on after.
async fn epoch(cluster: &Cluster) -> (Revision, Revision) {
    for _ in 0..600 {
        if let Ok(mut conn) = sqlx::PgConnection::connect(&cluster.url()).await {
            let found = sqlx::query_as("SELECT base, first FROM live.epoch").fetch_optional(&mut conn).await;
            if let Ok(Some(found)) = found {
                return found;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no epoch is opened");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_of_two_servers_on_a_postgres_that_is_restarted() {
    let cluster = Cluster::start("");
    let running = Running::start(&cluster, 1).await;
    for _ in 0..3 {
        running.work(500).await;
        tokio::task::block_in_place(|| cluster.restart());
    }
    running.work(300).await;
    let summary = judge("restarts", 1, &running.end().await);
    assert!(summary.transactions > 20 && summary.events > 20, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_through_a_switchover_that_loses_nothing() {
    let primary = Cluster::start("wal_level = replica\nmax_wal_senders = 4\nwal_keep_size = 512MB");
    let running = Running::start(&primary, 2).await;
    running.work(500).await;
    let replica = tokio::task::block_in_place(|| primary.replica());
    running.work(700).await;
    tokio::task::block_in_place(|| {
        primary.stop();
        replica.take_log_of(&primary);
        replica.up();
        replica.promote();
    });
    let (base, first) = epoch(&primary).await;
    running.work(700).await;
    let failover = Failover { base, first, began: 0, ended: 0 };
    let mut history = without_refusals(running.end().await, &failover);
    // Strict: of all that was acknowledged nothing may be missing, and no watch may have ended for it.
    let at = first_told(&history, first).unwrap();
    history.epochs.push(Epoch { at, revision: first, clean: false, prefixes: Vec::new(), left: Vec::new() });
    let summary = judge("a switchover", 2, &history);
    assert!(summary.transactions > 20 && summary.events > 20, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_through_a_failover_that_loses_commits() {
    let primary = Cluster::start("wal_level = replica\nmax_wal_senders = 4");
    let running = Running::start(&primary, 3).await;
    running.work(500).await;
    // The witnesses go on from what is left: it must be there.
    running.recorder.may_compact.store(false, Ordering::SeqCst);
    let replica = tokio::task::block_in_place(|| primary.replica());
    running.work(700).await;
    let began = running.recorder.now();
    tokio::task::block_in_place(|| primary.down());
    let ended = running.recorder.now();
    tokio::task::block_in_place(|| {
        replica.up();
        replica.promote();
    });
    let (base, first) = epoch(&primary).await;
    for witnessed in &running.recorder.witnessed {
        witnessed.fetch_min(base + 1, Ordering::SeqCst);
    }
    running.work(1000).await;
    let (before, after) = split(running.end().await, Failover { base, first, began, ended });
    let (before, after) = (judge("before the failover", 3, &before), judge("after the failover", 3, &after));
    assert!(before.transactions > 20 && after.transactions > 20, "{before:?} {after:?}");
}
