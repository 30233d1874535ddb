//! Two servers on one Postgres that is restarted, gives way to a replica which has everything and to one that lacks commits,
//! and whose clock is set.

#[path = "../../../tests/conformance/postgres/server.rs"]
mod server;

use super::fork::{Failover, first_told, split, without_refusals};
use super::pair::Pair;
use super::recorder::judge;
use crate::postgres::PostgresStore;
use crate::*;
use isopod_history::Epoch;
use server::{Cluster, SETTABLE_CLOCK, set_clock};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const SCHEMA: &str = "live";
/// Seconds of a lease's life.
const TTL: u64 = 1;

async fn open(cluster: &Cluster) -> Arc<dyn Store> {
    let options = Options { watch_buffer: 1 << 16, ..Options::default() };
    Arc::new(PostgresStore::open(cluster.options(SCHEMA), options).await.unwrap())
}

async fn start(cluster: &Cluster, seed: u64) -> Pair {
    Pair::start([open(cluster).await, open(cluster).await], seed, TTL)
}

/// The last revision before the only epoch, and the one that it goes on after.
async fn epoch(cluster: &Cluster) -> (Revision, Revision) {
    for _ in 0..600 {
        if let Ok(mut conn) = PgConnection::connect(&cluster.url()).await {
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
    let pair = start(&cluster, 1).await;
    for _ in 0..3 {
        pair.work(500).await;
        tokio::task::block_in_place(|| cluster.restart());
    }
    pair.work_until_it_tells().await;
    let summary = judge("restarts", 1, &pair.end().await);
    assert!(summary.transactions > 20 && summary.events > 20, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_through_a_switchover_that_loses_nothing() {
    let primary = Cluster::start("wal_level = replica\nmax_wal_senders = 4\nwal_keep_size = 512MB");
    let pair = start(&primary, 2).await;
    pair.work_until_it_tells().await;
    let replica = tokio::task::block_in_place(|| primary.replica());
    pair.work(700).await;
    tokio::task::block_in_place(|| {
        primary.stop();
        replica.take_log_of(&primary);
        replica.up();
        replica.promote();
    });
    let (base, first) = epoch(&primary).await;
    pair.recorder.heard(first);
    pair.work_until_it_tells().await;
    let failover = Failover { base, first, began: 0, ended: 0 };
    let mut history = without_refusals(pair.end().await, &failover);
    // Strict: of all that was acknowledged nothing may be missing, and no watch may have ended for it.
    let at = first_told(&history, first).unwrap();
    history.epochs.push(Epoch { at, revision: first, clean: false, prefixes: Vec::new(), left: Vec::new() });
    let summary = judge("a switchover", 2, &history);
    assert!(summary.transactions > 20 && summary.events > 20, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_through_a_failover_that_loses_commits() {
    let primary = Cluster::start("wal_level = replica\nmax_wal_senders = 4");
    let pair = start(&primary, 3).await;
    pair.work_until_it_tells().await;
    // The witnesses go on from what is left: it must be there.
    pair.recorder.may_compact.store(false, Ordering::SeqCst);
    let replica = tokio::task::block_in_place(|| primary.replica());
    pair.work(700).await;
    let began = pair.recorder.now();
    tokio::task::block_in_place(|| primary.down());
    let ended = pair.recorder.now();
    tokio::task::block_in_place(|| {
        replica.up();
        replica.promote();
    });
    let (base, first) = epoch(&primary).await;
    pair.recorder.lose(base, first);
    pair.recorder.heard(first);
    pair.work_until_it_tells().await;
    let (before, after) = split(pair.end().await, Failover { base, first, began, ended });
    let (before, after) = (judge("before the failover", 3, &before), judge("after the failover", 3, &after));
    assert!(before.transactions > 20 && after.transactions > 20, "{before:?} {after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_while_the_clock_of_postgres_is_set() {
    const HOUR: i64 = 3600;
    let cluster = Cluster::start("");
    let mut clock = PgConnection::connect(&cluster.url()).await.unwrap();
    clock.execute(SETTABLE_CLOCK).await.unwrap();
    let pair = start(&cluster, 4).await;
    // Forth by hours, back by minutes and by seconds, and to before 1970.
    for ahead in [5 * HOUR, -2, 2 * HOUR, -60 * 365 * 24 * HOUR, 7, 0, 3, -HOUR] {
        pair.work(500).await;
        clock.execute(AssertSqlSafe(set_clock(ahead))).await.unwrap();
    }
    pair.work_until_it_tells().await;
    let summary = judge("a clock that is set", 4, &pair.end().await);
    assert!(summary.transactions > 20 && summary.events > 20, "{summary:?}");
}
