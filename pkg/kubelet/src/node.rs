//! The node's life in the API: registration, status, heartbeats.

use crate::machine;
use crate::node_status::{self, Observed, Resources};
use crate::pressure::{Left, Pressure, Pressures};
use crate::shared::Shared;
use isopod_base::errors::Chain;
use isopod_client::lease::Holder;
use isopod_client::views::Node;
use isopod_client::{Calls, Error, Patch, Preconditions};
use isopod_runtime::RuntimeError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const RETRY: Duration = Duration::from_secs(1);
/// How long a node that has its range of addresses may take to open its pod network and to write its service table before
/// it is reported not ready.
const SETTLING: Duration = Duration::from_secs(10);

pub struct NodeKeeper {
    shared: Arc<Shared>,
    resources: Resources,
    calls: Calls,
    /// The status that was last written, or read.
    last: Value,
    pressures: Pressures,
    /// What the log has told of them.
    told: Pressure,
}

impl NodeKeeper {
    pub fn new(shared: Arc<Shared>, resources: Resources) -> Self {
        let calls = Calls::new(shared.client.clone(), Node::resource());
        NodeKeeper {
            shared,
            resources,
            calls,
            last: Value::Null,
            pressures: Pressures::default(),
            told: Pressure::default(),
        }
    }

    /// Registers the node, trying until it succeeds; then keeps its status and its lease.
    pub async fn run(mut self, stop: CancellationToken) {
        let clock = self.shared.clock.clone();
        let node = loop {
            match self.register().await {
                Ok(node) => break node,
                Err(e) => tracing::warn!(error = %Chain(&e), "cannot register the node; trying again"),
            }
            tokio::select! {
                () = clock.sleep(RETRY) => {}
                () = stop.cancelled() => return,
            }
        };
        let lease = Holder::node(self.shared.client.clone(), clock.clone(), &node.metadata);
        let beats = {
            let (clock, wait, stop) = (clock.clone(), self.shared.cfg.lease_renew, stop.clone());
            tokio::spawn(async move {
                loop {
                    let failed = match lease.renew().await {
                        Ok(()) => false,
                        Err(e) => {
                            tracing::warn!(error = %Chain(&e), "cannot renew the node's lease");
                            true
                        }
                    };
                    tokio::select! {
                        () = clock.sleep(if failed { RETRY } else { wait }) => {}
                        () = stop.cancelled() => return,
                    }
                }
            })
        };
        let mut network = self.shared.runtime.network_ready();
        let mut services = self.shared.cfg.services.clone();
        if !node.spec.pod_cidr.is_empty() {
            // They are coming up: a restart must not make a ready node unready for a moment.
            tokio::select! {
                () = settled(&mut network, &mut services) => {}
                () = clock.sleep(SETTLING) => {}
                () = stop.cancelled() => {}
            }
        }
        loop {
            match self.report().await {
                Ok(()) => drop(self.shared.reported.send_replace(true)),
                Err(e) => tracing::warn!(error = %Chain(&e), "cannot write the node's status"),
            }
            tokio::select! {
                () = clock.sleep(self.shared.cfg.status_update) => {}
                // An error says that it will not change any more.
                Ok(()) = network.changed() => {}
                Ok(()) = services.changed() => {}
                () = stop.cancelled() => break,
            }
        }
        let _ = beats.await;
    }

    async fn observe(&mut self) -> Value {
        let shared = &self.shared;
        let mut not_ready = Vec::new();
        not_ready.extend(shared.cfg.services.borrow().clone());
        let images = match shared.runtime.images().await {
            Ok(images) => images,
            Err(e) => {
                not_ready.push(format!("container runtime is down: {}", Chain(&e)));
                Vec::new()
            }
        };
        if !*shared.runtime.network_ready().borrow() {
            not_ready
                .push("container runtime network not ready: the node has no pod network yet (spec.podCIDR)".into());
        }
        let disk = isopod_sys::mount::usage(&shared.cfg.root_dir).map_or(u64::MAX, |([_, available, _], _)| available);
        let (now, left) = (shared.clock.now(), Left { memory: machine::available_memory(), disk });
        let pressure = self.pressures.see(&shared.cfg, &shared.machine, left, now);
        tell(&mut self.told, pressure, shared, left);
        let observed = Observed {
            runtime_version: &shared.runtime.version(),
            images: &images,
            not_ready,
            pressure,
            now,
            old: &self.last,
        };
        node_status::status(&shared.cfg, &shared.machine, &self.resources, &observed)
    }

    /// Makes the node's object, or takes the one that is there and gives it our labels.
    async fn register(&mut self) -> Result<Node, Error> {
        let name = self.shared.cfg.node_name.clone();
        let status = self.observe().await;
        if self.shared.cfg.register {
            let object = node_status::node(&self.shared.cfg, &self.shared.machine, status.clone());
            match self.calls.create::<Value>("", &object).await {
                Ok(made) => {
                    self.last = made["status"].clone();
                    return decode(made);
                }
                Err(e) if e.is_already_exists() => {}
                Err(e) => return Err(e),
            }
        }
        let found: Value = self.calls.get("", &name).await?;
        self.last = found["status"].clone();
        let labels = node_status::labels(&self.shared.cfg, &self.shared.machine);
        let missing: serde_json::Map<String, Value> = labels
            .into_iter()
            .filter(|(k, v)| found["metadata"]["labels"][k] != json!(v))
            .map(|(k, v)| (k, json!(v)))
            .collect();
        if self.shared.cfg.register && !missing.is_empty() {
            let patch = Patch::Strategic(json!({"metadata": {"labels": missing}}));
            self.calls.patch::<Value>("", &name, None, patch, &Preconditions::default()).await?;
        }
        decode(found)
    }

    /// Writes the status when it says something new: the lease is the heartbeat.
    async fn report(&mut self) -> Result<(), Error> {
        let status = self.observe().await;
        if node_status::same(&self.last, &status) {
            return Ok(());
        }
        let mut body = status.clone();
        // Addresses merge by type: those that went away must go.
        if let Some(list) = body["addresses"].as_array_mut() {
            list.insert(0, json!({"$patch": "replace"}));
        }
        let name = &self.shared.cfg.node_name;
        let patch = Patch::Strategic(json!({"status": body}));
        self.calls.patch::<Value>("", name, Some("status"), patch, &Preconditions::default()).await?;
        self.last = status;
        Ok(())
    }
}

/// Tells of a change of pressure in the log: whoever sees only the console learns there why no pod starts.
fn tell(told: &mut Pressure, now: Pressure, shared: &Shared, left: Left) {
    let (limits, machine) = (&shared.cfg.eviction_hard, &shared.machine);
    for (what, before, after, free, wanted) in [
        ("memory", told.memory, now.memory, left.memory, limits.memory.of(machine.memory)),
        ("disk", told.disk, now.disk, left.disk, limits.disk(machine.disk)),
    ] {
        let (free, wanted) = (free >> 20, wanted >> 20);
        match (before, after) {
            (false, true) => tracing::warn!(
                "{what} pressure: {free} MiB are left where --eviction-hard wants {wanted} MiB; the node takes no more pods"
            ),
            (true, false) => tracing::info!("{what} pressure is over: {free} MiB are left"),
            _ => {}
        }
    }
    *told = now;
}

/// Returns when pods can have a network and services work. One that ends has said its last word.
async fn settled(network: &mut watch::Receiver<bool>, services: &mut watch::Receiver<Option<String>>) {
    let _ = network.wait_for(|ready| *ready).await;
    let _ = services.wait_for(Option::is_none).await;
}

fn decode(node: Value) -> Result<Node, Error> {
    isopod_client::decode::from_value(&node).map_err(|source| Error::Decode { what: "the node".into(), source })
}

/// Whether the image store is so full that images go: how many bytes to free.
pub async fn bytes_to_free(shared: &Shared) -> Result<u64, RuntimeError> {
    let fs = shared.runtime.image_fs().await?;
    if fs.capacity == 0 {
        return Ok(0);
    }
    let used = 100 - (fs.available * 100 / fs.capacity).min(100);
    if used < shared.cfg.image_gc_high {
        return Ok(0);
    }
    let keep_free = fs.capacity / 100 * (100 - shared.cfg.image_gc_low);
    Ok(keep_free.saturating_sub(fs.available))
}
