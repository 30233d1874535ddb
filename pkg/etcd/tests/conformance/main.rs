//! The store's conformance suite through gRPC, and what the API adds to it, over this server on each backend and over a real
//! etcd as the referee: a case that etcd fails is a wrong case.
//!
//! The referee is `ISOPOD_TEST_ETCD`, else one that was built into the cache, else `etcd` on the path; `ISOPOD_TEST_ETCD=skip`
//! deselects it. Without any its tests fail and say what to install.

#![allow(clippy::unwrap_used)]

mod api;
mod client;
mod ours;
mod referee;
mod remote;
#[path = "../../../store/tests/conformance/suite.rs"]
mod suite;
mod target;

use client::GrpcStore;
use isopod_base::clock::Clock;
use isopod_store::memory::MemoryStore;
use isopod_store::sqlite::SqliteStore;
use isopod_store::*;
use jiff::Timestamp;
use std::sync::Arc;
use suite::Subject;
use target::{Settings, Target};

const BUFFER: usize = 64;

fn options() -> (Options, Clock) {
    let clock = Clock::fake(Timestamp::UNIX_EPOCH);
    (Options { clock: clock.clone(), watch_buffer: BUFFER, ..Options::default() }, clock)
}

/// Slow watchers are ended at once: the server must begin them anew.
fn hasty() -> Options {
    Options { watch_buffer: 4, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms_through_grpc() {
    for (name, case) in suite::cases() {
        let (options, clock) = options();
        println!("memory: {name}");
        let target = Target::start(Arc::new(MemoryStore::new(options)), Settings::default()).await;
        let store: Arc<dyn Store> = Arc::new(GrpcStore::connect(&target.url).await);
        case(Subject { store, clock: Some(clock), buffer: BUFFER, remote: true }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms_through_grpc() {
    for (name, case) in suite::cases() {
        let dir = tempfile::tempdir().unwrap();
        let (options, clock) = options();
        println!("sqlite: {name}");
        let store = Arc::new(SqliteStore::open(dir.path(), options).unwrap());
        let target = Target::start(store.clone(), Settings::default()).await;
        let remote: Arc<dyn Store> = Arc::new(GrpcStore::connect(&target.url).await);
        case(Subject { store: remote, clock: Some(clock), buffer: BUFFER, remote: true }).await;
        target.stop().await;
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_conforms() {
    let Some(server) = referee::start(Settings::default()).await else { return };
    for (name, case) in suite::cases() {
        println!("etcd: {name}");
        let store: Arc<dyn Store> = Arc::new(GrpcStore::connect(&server.url).await);
        case(Subject { store, clock: None, buffer: BUFFER, remote: true }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_serves_the_api() {
    for (name, settings, case) in api::cases() {
        println!("memory: {name}");
        let target = Target::start(Arc::new(MemoryStore::new(hasty())), settings).await;
        case(target.url.clone()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_serves_the_api() {
    for (name, settings, case) in api::cases() {
        println!("sqlite: {name}");
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(dir.path(), hasty()).unwrap());
        let target = Target::start(store.clone(), settings).await;
        case(target.url.clone()).await;
        target.stop().await;
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_serves_the_api() {
    for (name, settings, case) in api::cases() {
        println!("etcd: {name}");
        if let Some(server) = referee::start(settings).await {
            case(server.url.clone()).await;
        }
    }
}
