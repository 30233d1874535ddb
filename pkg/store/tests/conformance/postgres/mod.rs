//! The store on a real Postgres: the suite, and what is true only of a database that several servers share and that goes away.

pub mod server;

use crate::BUFFER;
use crate::suite::{self, Subject};
use isopod_store::postgres::PostgresStore;
use isopod_store::*;
use server::Cluster;
use std::sync::Arc;

pub async fn open(cluster: &Cluster, schema: &str) -> Arc<PostgresStore> {
    let options = Options { watch_buffer: BUFFER, ..Options::default() };
    Arc::new(PostgresStore::open(cluster.options(schema), options).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_conforms() {
    let cluster = Cluster::start("");
    for (name, case) in suite::cases() {
        println!("postgres: {name}");
        let began = std::time::Instant::now();
        let store = open(&cluster, name).await;
        case(Subject { store: store.clone(), clock: None, buffer: BUFFER, remote: false }).await;
        store.close().await.unwrap();
        assert!(matches!(store.range(RangeRequest::new(KeyRange::key("a"))).await, Err(StoreError::Closed)));
        println!("  {:?}", began.elapsed());
    }
}
