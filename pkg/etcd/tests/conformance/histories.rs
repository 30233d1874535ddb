//! What many clients and watchers of two API servers on one real etcd see while it is killed, stopped and cut off from them,
//! recorded and judged as it is for the backends of `pkg/store` (`pkg/store/src/testing/live`).

#[path = "../../../store/src/testing/live/pair.rs"]
mod pair;
#[path = "../../../store/src/testing/live/recorder.rs"]
#[allow(dead_code, reason = "what is about processes of the store and failovers")]
mod recorder;
#[path = "../../../store/src/testing/live/watchers.rs"]
mod watchers;

use crate::referee::{self, Referee};
use crate::remote::{reach, shaky, usable};
use isopod_etcd::remote::EtcdStore;
use isopod_store::Store;
use pair::Pair;
use recorder::judge;
use std::sync::Arc;
use std::time::Duration;

const EPHEMERAL: &str = "e/";
const DURABLE: &str = "d/";
const CLIENTS: u32 = 5;
const WATCHERS: u32 = 4;
/// Seconds of a lease's life: etcd grants no less.
const TTL: u64 = 2;

async fn open(url: &str) -> Arc<dyn Store> {
    let mut options = reach(&[url]);
    options.request_timeout = Duration::from_secs(4);
    Arc::new(EtcdStore::open(options).await.unwrap())
}

async fn start(etcd: &Referee, seed: u64) -> Pair {
    Pair::start([open(&etcd.url).await, open(&etcd.url).await], seed, TTL)
}

/// A history in which next to nothing happened would be right too.
async fn judge_end(what: &str, seed: u64, pair: Pair) {
    let summary = judge(what, seed, &pair.end().await);
    println!("{what}: {summary:?}");
    assert!(summary.transactions > 50 && summary.events > 50, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_on_an_etcd_that_is_killed() {
    let Some(mut etcd) = referee::start(usable()).await else { return };
    let pair = start(&etcd, 1).await;
    for pause in [500, 300, 700, 100] {
        pair.work(pause).await;
        etcd.kill();
        pair.work(pause / 2).await;
        etcd.start_again();
    }
    pair.work_until_it_tells().await;
    judge_end("kills", 1, pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_on_an_etcd_that_falls_silent() {
    let Some(etcd) = referee::start(usable()).await else { return };
    let pair = start(&etcd, 2).await;
    // The last one is longer than a request waits.
    for silence in [200, 1500, 50, 5000] {
        pair.work(500).await;
        etcd.signal("STOP");
        pair.work(silence).await;
        etcd.signal("CONT");
    }
    pair.work_until_it_tells().await;
    judge_end("silence", 2, pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_on_an_etcd_to_which_connections_break() {
    let Some(etcd) = referee::start(usable()).await else { return };
    let (url, calm) = shaky(etcd.url.trim_start_matches("http://").to_owned()).await;
    // One server is cut off again and again, the other one never is.
    let near = open(&etcd.url).await;
    let far = loop {
        if let Ok(store) = EtcdStore::open(reach(&[&url])).await {
            break Arc::new(store);
        }
    };
    let pair = Pair::start([near, far], 3, TTL);
    pair.work(4000).await;
    pair.work_until_it_tells().await;
    calm.cancel();
    judge_end("broken connections", 3, pair).await;
}
