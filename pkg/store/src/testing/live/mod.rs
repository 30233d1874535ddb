//! Many clients and watchers at once, on real threads, over a whole store: what they saw is recorded, and judged by
//! `isopod-history`. What the simulation cannot interleave happens here: the writer's thread, readers, checkpoints and a
//! disk that fails under all of them. A seed decides what is asked for and what fails, not how the threads meet.

mod disk;
mod fork;
mod postgres;
mod recorder;
mod watchers;

use crate::memory::MemoryStore;
use crate::*;
use isopod_base::clock::Clock;
use jiff::Timestamp;
use recorder::Recorder;
use std::sync::Arc;

/// Keys below it are ephemeral.
const EPHEMERAL: &str = "e/";
const DURABLE: &str = "d/";
const CLIENTS: u32 = 5;
const WATCHERS: u32 = 4;

fn options(clock: &Clock) -> Options {
    Options { ephemeral: vec![EPHEMERAL.into()], clock: clock.clone(), watch_buffer: 4096, ..Options::default() }
}

/// Panics with what the checker found.
fn judge(what: &str, seed: u64, history: &isopod_history::History) -> isopod_history::Summary {
    match isopod_history::check(history) {
        Ok(summary) => summary,
        Err(violation) => panic!("{what}: seed {seed}\n{}", isopod_history::report(history, &violation)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_in_memory() {
    for seed in 0..10 {
        let clock = Clock::fake(Timestamp::UNIX_EPOCH);
        let recorder = Arc::new(Recorder::new(seed, clock.clone()));
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(options(&clock)));
        let watching = watchers::start(&store, &recorder, seed);
        let clients = (0..CLIENTS).map(|n| {
            let (store, recorder) = (Arc::clone(&store), Arc::clone(&recorder));
            tokio::spawn(async move { recorder.client(&*store, n, 120, || true).await })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
        recorder.last_writes(&*store).await;
        watching.end(&*store, true).await.unwrap();
        let summary = judge("memory", seed, &recorder.take());
        assert!(summary.transactions > 50 && summary.events > 50, "{summary:?}");
    }
}
