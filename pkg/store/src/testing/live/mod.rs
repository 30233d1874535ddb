//! Many clients and watchers at once, on real threads, over a whole store: what they saw is recorded, and judged by
//! `isopod-history`. What the simulation cannot interleave happens here: the writer's thread, readers, checkpoints and a
//! disk that fails under all of them. A seed decides what is asked for and what fails, not how the threads meet.

mod disk;
mod fork;
mod pair;
mod postgres;
mod recorder;
mod watchers;

use crate::memory::MemoryStore;
use crate::testing::clients::TTL;
use crate::*;
use isopod_base::clock::Clock;
use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use recorder::{Recorder, judge};
use std::sync::Arc;
use std::time::Duration;

/// Keys below it are ephemeral.
const EPHEMERAL: &str = "e/";
const DURABLE: &str = "d/";
const CLIENTS: u32 = 5;
const WATCHERS: u32 = 4;

fn options(clock: &Clock) -> Options {
    Options {
        ephemeral: vec![EPHEMERAL.into()],
        clock: clock.clone(),
        watch_buffer: 4096,
        index_rows: 50,
        ..Options::default()
    }
}

/// What a machine's clock is set to, again and again until this is dropped: forth and back, by moments and by hours, and to
/// years before the first lease.
struct Setting(tokio::task::JoinHandle<()>);

impl Setting {
    fn start(clock: &Clock, seed: u64) -> Self {
        let (clock, mut rng) = (clock.clone(), StdRng::seed_from_u64(seed));
        Setting(tokio::spawn(async move {
            loop {
                let most = [1, 60, 3600, 40 * 365 * 24 * 3600][rng.random_range(0..4)];
                clock.set(SignedDuration::from_secs(rng.random_range(-most..most)));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }))
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Time goes by, and every lease with it.
async fn leases_end(store: &dyn Store, clock: &Clock) {
    clock.advance(Duration::from_secs(TTL + 1));
    let ended = async {
        while !store.leases().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("a lease lives on that nobody keeps alive");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_in_memory() {
    in_memory("memory", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_in_memory_while_the_clock_is_set() {
    in_memory("memory and a clock that is set", true).await;
}

async fn in_memory(what: &str, set: bool) {
    for seed in 0..10 {
        let clock = Clock::fake(Timestamp::UNIX_EPOCH);
        let recorder = Arc::new(Recorder::new(seed, clock.clone(), TTL));
        let setting = set.then(|| Setting::start(&clock, seed));
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(options(&clock)));
        let watching = watchers::start(&store, &recorder, seed);
        let clients = (0..CLIENTS).map(|n| {
            let (store, recorder) = (Arc::clone(&store), Arc::clone(&recorder));
            tokio::spawn(async move { recorder.client(&*store, n, 120, || true).await })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
        leases_end(&*store, &clock).await;
        recorder.last_writes(&*store).await;
        watching.end(&*store, true).await.unwrap();
        drop(setting);
        let summary = judge(what, seed, &recorder.take());
        assert!(summary.transactions > 50 && summary.events > 50, "{summary:?}");
    }
}
