//! One suite over every backend, and over a real etcd as its referee: a case that etcd fails is a wrong case.
//!
//! `ISOPOD_TEST_ETCD=skip` deselects the referee; without etcd on the machine its test fails and says what to install.

#![allow(clippy::unwrap_used)]

mod crash;
mod ephemeral;
mod etcd;
mod model;
mod suite;

use isopod_base::clock::Clock;
use isopod_store::memory::MemoryStore;
use isopod_store::sqlite::SqliteStore;
use isopod_store::*;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// What a case runs on.
pub struct Subject {
    pub store: Arc<dyn Store>,
    /// `None`: real time.
    pub clock: Option<Clock>,
    pub buffer: usize,
}

impl Subject {
    pub async fn advance(&self, by: Duration) {
        match &self.clock {
            Some(clock) => clock.advance(by),
            None => tokio::time::sleep(by).await,
        }
    }

    pub fn is_etcd(&self) -> bool {
        self.clock.is_none()
    }
}

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
        case(Subject { store, clock: Some(clock), buffer: BUFFER }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms() {
    for (name, case) in suite::cases() {
        let dir = tempfile::tempdir().unwrap();
        let (options, clock) = options();
        println!("sqlite: {name}");
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.path(), options).unwrap());
        case(Subject { store: Arc::clone(&store), clock: Some(clock), buffer: BUFFER }).await;
        store.close().await.unwrap();
        assert!(matches!(store.range(RangeRequest::new(KeyRange::key("a"))).await, Err(StoreError::Closed)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_conforms() {
    if std::env::var("ISOPOD_TEST_ETCD").is_ok_and(|v| v == "skip") {
        println!("etcd: deselected by ISOPOD_TEST_ETCD=skip");
        return;
    }
    let server = etcd::Server::start();
    for (name, case) in suite::cases() {
        println!("etcd: {name}");
        let store: Arc<dyn Store> = Arc::new(server.store());
        case(Subject { store, clock: None, buffer: BUFFER }).await;
    }
}
