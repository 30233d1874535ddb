//! Repair of what services hold: addresses and node ports. Here they are written together with their service, so what is wrong
//! was made by others: objects of addresses that people deleted or changed, a backup of another server, keys that were edited.
//!
//! Invariants:
//! - What to do is computed from one state of the store (`addresses`, `ports`), and done only where it still holds.
//! - While nothing changes that services hold, nothing is read.

mod addresses;
mod events;
mod plan;
mod ports;
mod state;

use super::service;
use crate::cache::store_status;
use crate::options::DeleteOptions;
use crate::pipeline;
use crate::stages::Stage;
use crate::{ApiServer, deletion};
use events::Teller;
use futures::StreamExt;
use futures::stream::{self, FuturesUnordered};
use isopod_api::Status;
use isopod_store::{Compare, Op, Txn, Watch, WatchMessage};
use plan::{Mend, Plan};
use serde_json::json;
use state::State;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// After a look the next one waits so long, whatever happens.
const PAUSE: Duration = Duration::from_secs(20);
/// What cannot be mended is told so often.
const REMINDER: Duration = Duration::from_secs(3 * 60);
const AGAIN: Duration = Duration::from_secs(1);
/// So many repairs share a commit of the store.
const AT_ONCE: usize = 64;
/// A repair may show what else is to be repaired.
const ROUNDS: usize = 4;

/// Repairs what is wrong at the start, then whatever becomes so until the server stops.
pub async fn start(server: &Arc<ApiServer>) {
    let mut teller = Teller::default();
    let watches = state::watches(server).await;
    let first = run(server, &mut teller).await;
    match &first {
        Ok(_) => server.stages.done(Stage::ServiceRepair),
        Err(e) => tracing::warn!(error = %e, "cannot look at what services hold: trying again"),
    }
    let looked = watches.ok().zip(first.ok());
    tokio::spawn(keep(Arc::downgrade(server), teller, looked));
}

/// `looked`: watches since before the last look, and when it wants another one; `None`: it failed.
async fn keep(weak: Weak<ApiServer>, mut teller: Teller, mut looked: Option<(Vec<Watch>, Option<Duration>)>) {
    loop {
        let Some(server) = weak.upgrade() else { return };
        let (clock, stop) = (server.config.clock.clone(), server.stop.clone());
        drop(server);
        let waited = async {
            let Some((watches, next)) = looked.take() else { return clock.sleep(AGAIN).await };
            let due = async {
                match next {
                    Some(wait) => clock.sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            let began = clock.now();
            tokio::select! {
                () = changed(watches) => {}
                () = due => {}
            }
            clock.sleep_until(began + PAUSE).await;
        };
        if stop.run_until_cancelled(waited).await.is_none() {
            return;
        }
        let Some(server) = weak.upgrade() else { return };
        looked = look(&server, &mut teller).await;
        if looked.is_some() {
            server.stages.done(Stage::ServiceRepair);
        }
    }
}

async fn look(server: &ApiServer, teller: &mut Teller) -> Option<(Vec<Watch>, Option<Duration>)> {
    // The watches begin before the look: nothing is missed between the two.
    let watches = state::watches(server).await.ok()?;
    match run(server, teller).await {
        Ok(next) => Some((watches, next)),
        Err(e) => {
            server.metrics.allocations.look_failed();
            tracing::debug!(error = %e, "cannot look at what services hold: trying again");
            None
        }
    }
}

/// Returns when something has changed, or cannot be watched any more.
async fn changed(watches: Vec<Watch>) {
    let first = |mut watch: Watch| async move {
        while let Some(Ok(WatchMessage::Progress(_))) = watch.receiver.recv().await {}
    };
    watches.into_iter().map(first).collect::<FuturesUnordered<_>>().next().await;
}

/// Repairs until nothing is left to do, and tells what was found. The answer: when to look again.
async fn run(server: &ApiServer, teller: &mut Teller) -> Result<Option<Duration>, Status> {
    let mut found = BTreeMap::new();
    let mut next = None;
    for _ in 0..ROUNDS {
        let state = State::read(server).await?;
        let mut plan: Plan = addresses::plan(&state, server.config.clock.now());
        plan.join(ports::plan(&state));
        count(server, &plan);
        found.extend(plan.findings.into_iter().map(|finding| (finding.key(), finding)));
        next = plan.next;
        if plan.mends.is_empty() {
            break;
        }
        // What is freed may be what is given next.
        let (freed, given): (Vec<Mend>, Vec<Mend>) =
            plan.mends.into_iter().partition(|m| matches!(m, Mend::Free { .. }));
        for mends in [freed, given] {
            let applied = stream::iter(mends.into_iter().map(|mend| apply(server, &state, mend)));
            let failed =
                applied.buffer_unordered(AT_ONCE).filter_map(async |done| done.err()).collect::<Vec<_>>().await;
            // Somebody may be against it, such as a webhook: nothing else is to wait for that.
            if let Some(e) = failed.first() {
                tracing::warn!(failed = failed.len(), error = %e, "cannot repair all that services hold");
                next = Some(next.map_or(REMINDER, |next: Duration| next.min(REMINDER)));
            }
        }
    }
    if !found.is_empty() {
        next = Some(next.map_or(REMINDER, |next: Duration| next.min(REMINDER)));
    }
    teller.tell(server, found).await;
    Ok(next)
}

/// What is wrong with node ports. Upstream counts nothing of addresses since these are objects.
fn count(server: &ApiServer, plan: &Plan) {
    let leaked = plan.mends.iter().filter(|m| matches!(m, Mend::Release { .. })).map(|_| "leak");
    let found = plan.findings.iter().filter_map(|f| match f.reason {
        "PortNotAllocated" => Some("repair"),
        "PortAlreadyAllocated" => Some("duplicate"),
        "PortOutOfRange" => Some("outOfRange"),
        _ => None,
    });
    found.chain(leaked).for_each(|kind| server.metrics.allocations.port_fault(kind));
}

/// What does not hold any more is left to the next look.
async fn apply(server: &ApiServer, state: &State, mend: Mend) -> Result<(), Status> {
    match mend {
        Mend::Allocate { address, namespace, service } => allocate(server, address, &namespace, &service).await,
        Mend::Free { address, uid } => free(server, &address, &uid).await,
        Mend::Claim { port, namespace, service } => {
            let Some(service) = state.services.get(&(namespace, service)) else { return Ok(()) };
            let (key, owner) = state::claim(port, service);
            let seen = state.ports.get(&port).map_or(0, |p| p.revision);
            let holds = Compare::mod_revision(state::service_key(service), service.revision);
            let compare = vec![Compare::mod_revision(key.clone(), seen), holds];
            commit(server, Txn { compare, success: vec![Op::put(key, owner)], ..Txn::default() }).await
        }
        Mend::Release { port } => {
            let seen = state.ports.get(&port).map_or(0, |p| p.revision);
            tracing::info!(port, "giving back a node port that no service has");
            let key = format!("{}{port}", service::PORTS);
            let compare = vec![Compare::mod_revision(key.clone(), seen)];
            commit(server, Txn { compare, success: vec![Op::delete(key)], ..Txn::default() }).await
        }
    }
}

async fn commit(server: &ApiServer, txn: Txn) -> Result<(), Status> {
    server.config.store.txn(txn).await.map(drop).map_err(store_status)
}

async fn allocate(server: &ApiServer, address: IpAddr, namespace: &str, name: &str) -> Result<(), Status> {
    let service = json!({"metadata": {"namespace": namespace, "name": name}});
    let object = service::address_object(namespace, &service, address, server.config.clock.now());
    let Some(intent) = server.own_intent(&object) else { return Ok(()) };
    match pipeline::create(server, &intent, &object).await {
        Err(e) if e.reason != "AlreadyExists" => Err(e),
        _ => Ok(()),
    }
}

async fn free(server: &ApiServer, address: &str, uid: &str) -> Result<(), Status> {
    let Some(kind) = server.registry.load().resource("networking.k8s.io", "ipaddresses").cloned() else {
        return Ok(());
    };
    let options = DeleteOptions { uid: Some(uid.to_owned()), ..DeleteOptions::default() };
    match deletion::delete(server, &server.intent(&kind, "", address), &options).await {
        Err(e) if e.code != 404 && e.reason != "Conflict" => Err(e),
        _ => Ok(()),
    }
}
