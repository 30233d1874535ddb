//! The endpoints of the service `kubernetes` are the API servers that live.

#![allow(clippy::unwrap_used)]

use isopod_base::clock::Clock;
use isopod_store::memory::MemoryStore;
use isopod_store::{Options, Store};
use isopod_testkit::TestServer;
use std::sync::Arc;
use std::time::Duration;

async fn server(store: &Arc<dyn Store>, clock: &Clock, last: u8) -> TestServer {
    let clock = clock.clone();
    TestServer::start_on(store.clone(), |config| {
        config.advertise_address = [192, 0, 2, last].into();
        (config.clock, config.shared_store) = (clock, true);
    })
    .await
}

/// The addresses of Endpoints and slice, which are the same.
async fn endpoints(s: &TestServer) -> Vec<String> {
    let of = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let old = s.get("/api/v1/namespaces/default/endpoints/kubernetes").await.json;
    let slice = s.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await.json;
    let sliced: Vec<String> = slice["endpoints"].as_array().unwrap().iter().map(|e| of(&e["addresses"][0])).collect();
    let listed = old["subsets"][0]["addresses"].as_array().unwrap().iter().map(|a| of(&a["ip"])).collect::<Vec<_>>();
    // They are written one after the other.
    if listed == sliced { listed } else { Vec::new() }
}

/// Lets time go by until the endpoints are these.
async fn until(s: &TestServer, clock: &Clock, wanted: &[&str]) {
    for _ in 0..200 {
        if endpoints(s).await == wanted {
            return;
        }
        clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?} and not {wanted:?}", endpoints(s).await);
}

#[tokio::test]
async fn a_server_that_is_gone_is_no_endpoint() {
    let clock = Clock::fake(jiff::Timestamp::UNIX_EPOCH);
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Options { clock: clock.clone(), ..Options::default() }));
    let a = server(&store, &clock, 1).await;
    assert_eq!(endpoints(&a).await, ["192.0.2.1"]);
    let b = server(&store, &clock, 2).await;
    until(&a, &clock, &["192.0.2.1", "192.0.2.2"]).await;
    // It stays so while both live.
    for _ in 0..60 {
        clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(endpoints(&b).await, ["192.0.2.1", "192.0.2.2"]);
    }
    b.server.stop();
    until(&a, &clock, &["192.0.2.1"]).await;
    // One that dies says nothing.
    let c = server(&store, &clock, 3).await;
    until(&a, &clock, &["192.0.2.1", "192.0.2.3"]).await;
    drop(c);
    until(&a, &clock, &["192.0.2.1"]).await;
}
