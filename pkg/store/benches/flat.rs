//! What a put, a get and a list of 10,000 cost with few and with many keys, without the network around them.
//!
//! `cargo bench -p isopod-store --bench flat [keys…]`; 10,000 and 1,000,000 by default, 1 kB each, with room for some of their values
//! in memory and with room for all. CPU of the whole process.

#![allow(clippy::unwrap_used)]

use isopod_store::sqlite::SqliteStore;
use isopod_store::*;
use std::sync::Arc;
use std::time::Duration;

const CLIENTS: usize = 64;
const CACHES: [usize; 1] = [2 << 30];
const OPERATIONS: usize = 200_000;

/// User and system time of this process, in ticks of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<u64> = stat.rsplit(' ').rev().skip(13).take(2).map(|n| n.parse().unwrap()).collect();
    Duration::from_millis(10 * fields.iter().sum::<u64>())
}

fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|l| l.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
}

fn key(n: usize) -> String {
    format!("/registry/configmaps/namespace/{n:08}")
}

fn scattered(n: usize, keys: usize) -> usize {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % keys
}

async fn clients<F: Future<Output = ()> + Send + 'static>(
    each: impl Fn(usize) -> F + Clone + Send + 'static,
    all: usize,
) {
    let tasks = (0..CLIENTS).map(|c| {
        let each = each.clone();
        tokio::spawn(async move {
            for n in (c..all).step_by(CLIENTS) {
                each(n).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

async fn put(store: &SqliteStore, n: usize, turn: usize) {
    let success = vec![Op::put(key(n), format!("{turn:01024}"))];
    store.txn(Txn { success, ..Default::default() }).await.unwrap();
}

async fn measure(keys: usize, cache_bytes: usize) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let options = Options { cache_bytes, ..Options::default() };
    let store = Arc::new(SqliteStore::open(dir.path(), options).unwrap());
    let filled = Arc::clone(&store);
    clients(
        move |n| {
            let s = Arc::clone(&filled);
            async move { put(&s, n, n).await }
        },
        keys,
    )
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, disk) = (cpu(), written());
    let s = Arc::clone(&store);
    clients(
        move |n| {
            let s = Arc::clone(&s);
            async move { put(&s, scattered(n, keys), n).await }
        },
        OPERATIONS,
    )
    .await;
    let puts = (cpu() - before) / OPERATIONS as u32;
    let bytes = (written() - disk) / OPERATIONS as u64;
    let before = cpu();
    let s = Arc::clone(&store);
    clients(
        move |n| {
            let s = Arc::clone(&s);
            async move {
                s.range(RangeRequest::new(KeyRange::key(key(scattered(n, keys))))).await.unwrap();
            }
        },
        OPERATIONS,
    )
    .await;
    let gets = (cpu() - before) / OPERATIONS as u32;
    let before = cpu();
    for n in 0..100 {
        let start = n * 7919 % (keys - 10_000).max(1);
        let range = KeyRange { start: key(start).into(), end: key(start + 10_000).into() };
        assert_eq!(store.range(RangeRequest::new(range)).await.unwrap().kvs.len(), 10_000);
    }
    let lists = (cpu() - before) / 100;
    let room = cache_bytes >> 20;
    println!(
        "{keys} keys, {room} MiB for values: a put {puts:?} and {bytes} B, a get {gets:?}, a list of 10,000 {lists:?}"
    );
    store.close().await.unwrap();
}

fn main() {
    let mut keys: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    if keys.is_empty() {
        keys = vec![10_000, 1_000_000];
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for keys in keys {
        for room in CACHES {
            runtime.block_on(measure(keys, room));
        }
    }
}
