//! The store's conformance suite through gRPC, and what the API adds to it, over this server on each backend and over a real
//! etcd as the referee: a case that etcd fails is a wrong case.
//!
//! The referee is `ISOPOD_TEST_ETCD`, else one that was built into the cache, else `etcd` on the path; `ISOPOD_TEST_ETCD=skip`
//! deselects it. Without any its tests fail and say what to install.

#![allow(clippy::unwrap_used)]

mod api;
mod client;
mod differential;
mod etcdctl;
mod histories;
mod ours;
#[path = "../../../store/tests/conformance/postgres/server.rs"]
mod postgres;
mod raw;
mod referee;
mod remote;
mod script;
#[path = "../../../store/tests/conformance/suite.rs"]
mod suite;
mod target;
mod testing;
mod users;

use client::GrpcStore;
use isopod_base::clock::Clock;
use isopod_store::memory::MemoryStore;
use isopod_store::postgres::PostgresStore;
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
async fn postgres_conforms_through_grpc() {
    let cluster = postgres::Cluster::start("");
    for (name, case) in suite::cases() {
        println!("postgres: {name}");
        let options = Options { watch_buffer: BUFFER, ..Options::default() };
        let store = Arc::new(PostgresStore::open(cluster.options(name), options).await.unwrap());
        let target = Target::start(store.clone(), Settings::default()).await;
        let remote: Arc<dyn Store> = Arc::new(GrpcStore::connect(&target.url).await);
        case(Subject { store: remote, clock: None, buffer: BUFFER, remote: true }).await;
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
async fn postgres_serves_the_api() {
    let cluster = postgres::Cluster::start("");
    for (name, settings, case) in api::cases() {
        println!("postgres: {name}");
        let store = Arc::new(PostgresStore::open(cluster.options(name), hasty()).await.unwrap());
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

const JWT: &str =
    concat!("jwt,sign-method=HS256,ttl=5s,priv-key=", env!("CARGO_MANIFEST_DIR"), "/tests/conformance/token-key.txt");

/// What the servers must be told for each. Older etcds answer some requests otherwise.
fn scripts() -> Vec<(&'static str, Settings)> {
    let plain = Settings { since: (3, 7), ..Settings::default() };
    let mut all: Vec<_> = ["users", "permissions", "locks", "cluster", "watches"].map(|name| (name, plain)).into();
    all.push(("jwt", Settings { token: Some(JWT), ..plain }));
    all.push(("tokens", Settings { token_ttl: Some(3), ..plain }));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_are_answered_as_etcd_answers_them() {
    let mut different = Vec::new();
    for (name, settings) in scripts() {
        let memory = Target::start(Arc::new(MemoryStore::default()), settings).await;
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(dir.path(), Options::default()).unwrap());
        let sqlite = Target::start(store.clone(), settings).await;
        let etcd = async {
            match referee::start(settings).await {
                Some(etcd) => script::run(name, "etcd", &etcd.url).await,
                None => Vec::new(),
            }
        };
        let (memory, on_sqlite, etcd) =
            tokio::join!(script::run(name, "memory", &memory.url), script::run(name, "sqlite", &sqlite.url), etcd);
        different.extend([memory, on_sqlite, etcd].concat());
        sqlite.stop().await;
        store.close().await.unwrap();
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}
