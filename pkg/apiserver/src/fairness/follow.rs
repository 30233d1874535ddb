//! Follows the flow schemas and priority levels: takes them in, tells in their status whether their reference leads anywhere,
//! keeps those that every cluster has, and shares the seats out anew each period.

use super::digest::{Digest, PERIOD, dangling, rebalance};
use super::{Fairness, keep};
use crate::ApiServer;
use crate::cache::entry::Filter;
use crate::cache::resource::Cache;
use crate::cache::watcher::Delivery;
use crate::candidate::apply::{Apply, Configuration};
use crate::encode::served;
use crate::ownership::Served;
use crate::pipeline;
use isopod_api::{Status, time};
use isopod_kinds::access::Access;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Who owns the condition in the status.
const CONSUMER: &str = "api-priority-and-fairness-config-consumer-v1";
/// When to look again after what every cluster has was changed, or could not be written.
const ENSURE_AFTER: Duration = Duration::from_secs(10);
/// When to try again what failed.
const AGAIN: Duration = Duration::from_secs(1);
/// Servers of different opinions do not write the same status more often in a minute.
const MOST_STATUSES: usize = 6;
const MINUTE: Duration = Duration::from_secs(60);

/// Begins to follow the objects, if the server limits its requests by them.
pub fn start(server: &Arc<ApiServer>) {
    if server.fairness.is_some() {
        tokio::spawn(run(Arc::downgrade(server)));
    }
}

/// Creates what a new cluster has of them, and takes it in: from now on requests are sorted by it.
pub async fn ensure(server: &ApiServer) -> Result<(), Status> {
    let Some(fairness) = &server.fairness else { return Ok(()) };
    let stored = Stored::read(server).await?;
    keep::ensure(server, &stored.levels, &stored.schemas).await?;
    take_in(fairness, &Stored::read(server).await?);
    Ok(())
}

struct Stored {
    levels: Vec<Value>,
    schemas: Vec<Value>,
}

impl Stored {
    async fn read(server: &ApiServer) -> Result<Stored, Status> {
        let mut all = [Vec::new(), Vec::new()];
        for (objects, resource) in all.iter_mut().zip(["prioritylevelconfigurations", "flowschemas"]) {
            let kind = server.registry.load().resource(GROUP, resource).cloned();
            let Some(kind) = kind else { continue };
            let (cache, _) = server.hub.fresh_cache(&kind).await?;
            *objects = cache.snapshot().entries.values().map(|e| served(&kind, &e.body)).collect();
        }
        let [levels, schemas] = all;
        Ok(Stored { levels, schemas })
    }
}

fn take_in(fairness: &Fairness, stored: &Stored) {
    let digest = fairness.maker.digest(&fairness.digest.load(), &stored.levels, &stored.schemas);
    fairness.digest.store(Arc::new(digest));
}

/// How often which status was written of late.
#[derive(Default)]
struct Written(HashMap<String, Vec<Instant>>);

impl Written {
    fn may(&mut self, name: &str) -> bool {
        self.0.retain(|_, times| {
            times.retain(|t| t.elapsed() < MINUTE);
            !times.is_empty()
        });
        let times = self.0.entry(name.to_owned()).or_default();
        times.len() < MOST_STATUSES && {
            times.push(Instant::now());
            true
        }
    }
}

async fn run(weak: Weak<ApiServer>) {
    let mut written = Written::default();
    loop {
        let Some(server) = weak.upgrade() else { return };
        let stop = server.stop.clone();
        let Some(mut changes) = subscribe(&server).await else {
            drop(server);
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => continue,
                () = stop.cancelled() => return,
            }
        };
        drop(server);
        let mut times = Times { again: Some(Instant::now()), ensure: None, share: Instant::now() + PERIOD };
        loop {
            let Some(server) = weak.upgrade() else { return };
            let Some(fairness) = &server.fairness else { return };
            let idle = fairness.maker.idle.clone();
            times.work(&server, fairness, &mut written).await;
            drop(server);
            let [levels, schemas] = &mut changes;
            tokio::select! {
                change = levels.recv() => if change.is_none() { break },
                change = schemas.recv() => if change.is_none() { break },
                () = idle.notified() => {}
                () = tokio::time::sleep_until(times.next()) => continue,
                () = stop.cancelled() => return,
            }
            changes.iter_mut().for_each(|c| while c.try_recv().is_ok() {});
            times.again = Some(Instant::now());
            times.ensure.get_or_insert(Instant::now() + ENSURE_AFTER);
        }
    }
}

async fn subscribe(server: &ApiServer) -> Option<[mpsc::Receiver<Delivery>; 2]> {
    let cache = async |resource: &str| -> Option<Arc<Cache>> {
        let kind = server.registry.load().resource(GROUP, resource).cloned()?;
        server.hub.cache(&kind).await.ok()
    };
    let (levels, schemas) = (cache("prioritylevelconfigurations").await?, cache("flowschemas").await?);
    let of = |cache: &Cache| cache.subscribe_with_snapshot(Filter::default()).0;
    Some([of(&levels), of(&schemas)])
}

/// When to do what.
struct Times {
    /// The objects are taken in, and their statuses written.
    again: Option<Instant>,
    ensure: Option<Instant>,
    share: Instant,
}

impl Times {
    fn next(&self) -> Instant {
        [self.again, self.ensure].into_iter().flatten().fold(self.share, Instant::min)
    }

    async fn work(&mut self, server: &ApiServer, fairness: &Fairness, written: &mut Written) {
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.share <= now {
            self.share = now + PERIOD;
            let digest = fairness.digest.load_full();
            let fair = rebalance(&digest.levels, false);
            *digest.fair.lock() = fair;
        }
        if due(self.ensure) && server.bootstrapped.load(std::sync::atomic::Ordering::Acquire) {
            self.ensure = None;
            if let Err(e) = ensure(server).await {
                tracing::warn!(error = %e, "cannot keep the flow schemas and priority levels; trying again");
                self.ensure = Some(now + ENSURE_AFTER);
            }
        } else if due(self.ensure) {
            self.ensure = Some(now + AGAIN);
        }
        if due(self.again) {
            self.again = None;
            if !tell(server, fairness, written).await {
                self.again = Some(now + AGAIN);
            }
        }
    }
}

/// Takes the objects in and writes the statuses that are not as they should be. False: something could not be done.
async fn tell(server: &ApiServer, fairness: &Fairness, written: &mut Written) -> bool {
    let Ok(stored) = Stored::read(server).await else { return false };
    take_in(fairness, &stored);
    let mut done = true;
    for schema in &stored.schemas {
        let (status, reason, message) = dangling(schema, &stored.levels);
        let is = |c: &&Value| c.text("type") == "Dangling";
        let current = schema.list("status.conditions").iter().find(is);
        let says = |c: &Value| (c.text("status"), c.text("reason"), c.text("message")) == (status, reason, &message);
        let name = schema.text("metadata.name");
        if current.is_some_and(says) {
            continue;
        }
        if !written.may(name) {
            done = false;
            continue;
        }
        let condition = json!({
            "type": "Dangling", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": time::format(server.config.clock.now()),
        });
        if let Err(e) = write(server, schema, condition).await {
            tracing::warn!(schema = name, error = %e, "cannot write the status");
            done = false;
        }
    }
    done
}

async fn write(server: &ApiServer, schema: &Value, condition: Value) -> Result<(), Status> {
    let Some(mut intent) = server.own_intent(schema) else { return Ok(()) };
    intent.subresource = "status".to_owned();
    intent.manager = CONSUMER.to_owned();
    let config = json!({
        "apiVersion": schema["apiVersion"], "kind": schema["kind"], "metadata": {"name": schema["metadata"]["name"]},
        "status": {"conditions": [condition]},
    });
    let configuration = Configuration::new(config, true);
    let versions = Served::new(server, &intent.kind);
    match pipeline::update(server, &intent, &Apply { server, intent: &intent, configuration, versions }).await {
        Err(e) if e.code != 404 => Err(e),
        _ => Ok(()),
    }
}

impl Digest {
    /// What part of its target each level got when seats were shared out last.
    pub fn fair(&self) -> f64 {
        *self.fair.lock()
    }
}
