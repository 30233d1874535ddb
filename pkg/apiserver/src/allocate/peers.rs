//! Which API servers there are on one datastore: each keeps a key alive there, as upstream's lease reconciler does, and the
//! endpoints of the service `kubernetes` are those that live.

use super::kubernetes_service;
use crate::ApiServer;
use crate::cache::store_status;
use crate::stages::Stage;
use isopod_api::Status;
use isopod_store::{KeyRange, LeaseId, Op, RangeRequest, StoreError, Txn};
use serde_json::json;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

const PREFIX: &str = "/registry/masterleases/";
/// A server that is gone is an endpoint for so long.
const TTL_SECONDS: i64 = 15;
/// Upstream's period of both.
const PERIOD: Duration = Duration::from_secs(10);

fn key(address: IpAddr) -> String {
    format!("{PREFIX}{address}")
}

/// Runs until the server stops or is dropped. A server that has its datastore for itself has no peers.
pub fn start(server: &Arc<ApiServer>) {
    if !server.config.shared_store {
        // There is nobody to tell.
        server.stages.done(Stage::Peers);
        return;
    }
    let (clock, stop) = (server.config.clock.clone(), server.stop.clone());
    let farewells = server.farewells.clone();
    let server = Arc::downgrade(server);
    farewells.spawn(async move {
        let mut lease = 0;
        loop {
            lease = match turn(&server, lease).await {
                Some(lease) => lease,
                None => return,
            };
            tokio::select! {
                () = clock.sleep(PERIOD) => {}
                () = stop.cancelled() => return leave(&server, lease).await,
            }
        }
    });
}

/// Says that this server lives, and corrects the endpoints. `None`: there is no server any more.
async fn turn(server: &Weak<ApiServer>, lease: LeaseId) -> Option<LeaseId> {
    let server = server.upgrade()?;
    let lease = match announce(&server, lease).await {
        Ok(lease) => {
            server.stages.done(Stage::Peers);
            lease
        }
        Err(StoreError::Closed) => return None,
        Err(e) => {
            tracing::debug!(error = %isopod_base::errors::Chain(&e), "cannot say that this API server lives");
            return Some(0);
        }
    };
    // Before, the service itself may not be there.
    if server.bootstrapped.load(Ordering::Acquire)
        && let Err(e) = kubernetes_service::publish(&server).await
    {
        tracing::debug!(error = %e, "cannot correct the endpoints of the API servers");
    }
    Some(lease)
}

async fn announce(server: &ApiServer, lease: LeaseId) -> Result<LeaseId, StoreError> {
    let store = &server.config.store;
    if lease != 0 {
        match store.lease_keep_alive(lease).await {
            Ok(_) => return Ok(lease),
            Err(StoreError::LeaseNotFound(_)) => {}
            Err(e) => return Err(e),
        }
    }
    let lease = store.lease_grant(0, TTL_SECONDS).await?.id;
    let address = server.config.advertise_address;
    let value = json!({"kind": "Endpoints", "apiVersion": "v1", "subsets": [{"addresses": [{"ip": address}]}]});
    let put = Op::Put {
        key: key(address).into(),
        value: value.to_string().into(),
        lease,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    store.txn(Txn { success: vec![put], ..Txn::default() }).await?;
    Ok(lease)
}

/// The others need not wait until it expires.
async fn leave(server: &Weak<ApiServer>, lease: LeaseId) {
    let Some(server) = server.upgrade() else { return };
    if lease != 0
        && let Err(e) = server.config.store.lease_revoke(lease).await
    {
        tracing::debug!(error = %isopod_base::errors::Chain(&e), "cannot say that this API server ends");
    }
}

/// The addresses of the servers that live, this one's among them, in order. Of this one's family: a slice has one.
pub async fn addresses(server: &ApiServer) -> Result<Vec<IpAddr>, Status> {
    let own = server.config.advertise_address;
    if !server.config.shared_store {
        return Ok(vec![own]);
    }
    let read = server.config.store.range(RangeRequest::new(KeyRange::prefix(PREFIX))).await.map_err(store_status)?;
    let address = |key: &[u8]| std::str::from_utf8(key.get(PREFIX.len()..)?).ok()?.parse::<IpAddr>().ok();
    let mut all: Vec<IpAddr> = read.kvs.iter().filter_map(|kv| address(&kv.key)).collect();
    all.push(own);
    all.retain(|ip| ip.is_ipv4() == own.is_ipv4());
    all.sort_unstable();
    all.dedup();
    Ok(all)
}
