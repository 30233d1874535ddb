//! How long a put waits at most while the store does something large beside it: compacts a long history, gives the freed space
//! back, serves slow reads, defragments. The figures of `docs/datastore.md`.
//!
//! `cargo bench --profile ci -p isopod-store --bench stalls [revisions]`, 500,000 by default; needs about 1 kB of disk a revision.

#![allow(clippy::unwrap_used)]

use isopod_store::sqlite::SqliteStore;
use isopod_store::*;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const KEYS: usize = 10_000;
const VALUE: usize = 500;
const WRITERS: usize = 4;

async fn put(store: &SqliteStore, n: usize, len: usize) -> Revision {
    let success = vec![Op::put(format!("pods/{:06}", n % KEYS), vec![b'x'; len])];
    store.txn(Txn { success, ..Default::default() }).await.unwrap().revision
}

/// Puts go on while `work` does; tells how long they took, and how long the log and the file became.
async fn beside<T>(what: &str, store: &Arc<SqliteStore>, dir: &Path, work: impl Future<Output = T>) -> T {
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let (store, stop) = (Arc::clone(store), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut taken = Vec::new();
                for n in (w..).step_by(WRITERS) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let start = Instant::now();
                    put(&store, n * 7919, VALUE).await;
                    taken.push(start.elapsed());
                }
                taken
            })
        })
        .collect();
    let (wal, watched) = (dir.join("state.db-wal"), Arc::clone(&stop));
    let longest_log = tokio::spawn(async move {
        let mut longest = 0;
        while !watched.load(Ordering::Relaxed) {
            longest = longest.max(std::fs::metadata(&wal).map_or(0, |m| m.len()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        longest
    });
    let start = Instant::now();
    let result = work.await;
    let took = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for writer in writers {
        all.extend(writer.await.unwrap());
    }
    all.sort_unstable();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    println!(
        "{what}: {:.1} s; {} puts, median {:.2} ms, p99 {:.1} ms, longest {:.0} ms; log at most {} MB, file {} MB",
        took.as_secs_f64(),
        all.len(),
        ms(all[all.len() / 2]),
        ms(all[all.len() * 99 / 100]),
        ms(*all.last().unwrap()),
        longest_log.await.unwrap() >> 20,
        std::fs::metadata(dir.join("state.db")).unwrap().len() >> 20,
    );
    result
}

async fn fill(store: &Arc<SqliteStore>, revisions: usize) {
    for start in (0..revisions).step_by(1000) {
        let puts = (start..start + 1000).map(|n| {
            let store = Arc::clone(store);
            async move { put(&store, n, VALUE).await }
        });
        futures::future::join_all(puts).await;
    }
}

async fn slow_reads(store: &Arc<SqliteStore>, time: Duration) {
    let readers = (0..3).map(|_| {
        let store = Arc::clone(store);
        async move {
            let end = Instant::now() + time;
            while Instant::now() < end {
                store.range(RangeRequest::new(KeyRange::prefix("pods/"))).await.unwrap();
            }
        }
    });
    futures::future::join_all(readers).await;
}

#[tokio::main]
async fn main() {
    // cargo adds `--bench`.
    let revisions: usize = std::env::args().find_map(|a| a.parse().ok()).unwrap_or(500_000);
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(dir.path(), Options::default()).unwrap());
    let quarter = Duration::from_secs(8);
    fill(&store, revisions).await;
    beside("nothing else", &store, dir.path(), tokio::time::sleep(quarter)).await;
    beside("slow reads", &store, dir.path(), slow_reads(&store, quarter)).await;
    let (newest, _) = store.revisions().await.unwrap();
    beside("compaction", &store, dir.path(), async { store.compact_physically(newest).await.unwrap() }).await;
    beside("after the compaction", &store, dir.path(), tokio::time::sleep(quarter)).await;
    // Without writers: what is given back while nobody asks for anything.
    tokio::time::sleep(quarter).await;
    println!("idle since: file {} MB", std::fs::metadata(dir.path().join("state.db")).unwrap().len() >> 20);
    beside("defragmentation", &store, dir.path(), async { store.defragment().await.unwrap() }).await;
    store.close().await.unwrap();
}
