//! One suite over every backend. `pkg/etcd` runs the same suite through gRPC, and over a real etcd as its referee: a case
//! that etcd fails is a wrong case.

#![allow(clippy::unwrap_used)]

mod crash;
mod ephemeral;
mod model;
mod postgres;
mod suite;

use isopod_base::clock::Clock;
use isopod_store::memory::MemoryStore;
use isopod_store::sqlite::SqliteStore;
use isopod_store::*;
use jiff::Timestamp;
use std::sync::Arc;
use suite::Subject;

const BUFFER: usize = 64;

fn options() -> (Options, Clock) {
    let clock = Clock::fake(Timestamp::UNIX_EPOCH);
    (Options { clock: clock.clone(), watch_buffer: BUFFER, ..Options::default() }, clock)
}

#[tokio::test]
async fn memory_conforms() {
    for (name, case) in suite::cases() {
        let (options, clock) = options();
        println!("memory: {name}");
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(options));
        case(Subject { store, clock: Some(clock), buffer: BUFFER, remote: false }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms() {
    for (name, case) in suite::cases() {
        let dir = tempfile::tempdir().unwrap();
        let (options, clock) = options();
        println!("sqlite: {name}");
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.path(), options).unwrap());
        case(Subject { store: Arc::clone(&store), clock: Some(clock), buffer: BUFFER, remote: false }).await;
        store.close().await.unwrap();
        assert!(matches!(store.range(RangeRequest::new(KeyRange::key("a"))).await, Err(StoreError::Closed)));
    }
}
