//! The store on a real Postgres: the suite, and what is true only of a database that several servers share and that goes away.

mod access;
mod away;
mod behind;
mod load;
mod network;
mod proxy;
pub mod server;
mod shared;

use crate::BUFFER;
use crate::suite::{self, Subject};
use isopod_store::postgres::PostgresStore;
use isopod_store::*;
use server::Cluster;
use std::sync::Arc;

pub async fn open(cluster: &Cluster, schema: &str) -> Arc<PostgresStore> {
    open_with(cluster, schema, BUFFER).await
}

pub async fn open_with(cluster: &Cluster, schema: &str, watch_buffer: usize) -> Arc<PostgresStore> {
    let options = Options { watch_buffer, ..Options::default() };
    Arc::new(PostgresStore::open(cluster.options(schema), options).await.unwrap())
}

/// A connection for what a test does behind the stores' backs.
pub async fn connect(cluster: &Cluster) -> sqlx::PgConnection {
    <sqlx::PgConnection as sqlx::Connection>::connect(&cluster.url()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_conforms() {
    let cluster = Cluster::start("");
    for (name, case) in suite::cases() {
        println!("postgres: {name}");
        let store = open(&cluster, name).await;
        case(Subject { store: store.clone(), clock: None, buffer: BUFFER, remote: false }).await;
        store.close().await.unwrap();
        assert!(matches!(store.range(RangeRequest::new(KeyRange::key("a"))).await, Err(StoreError::Closed)));
    }
}
