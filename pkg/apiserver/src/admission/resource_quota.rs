//! `ResourceQuota`: what a namespace's quotas limit is charged in the transaction that writes the object, after all other
//! admission. So `status.used` never says less than there is, and no two writes can share the last of something.
//!
//! Invariant: writes that are charged to the quotas of one namespace are made one after another; only the quota controller's
//! recounts race with them, and the loser of such a race begins again.

use super::{Operation, Request, Step};
use crate::ApiServer;
use crate::allocate::Allocation;
use crate::cache::Moment;
use crate::encode::splice;
use crate::objects;
use crate::pipeline::Intent;
use isopod_api::Status;
use isopod_kinds::Kind;
use isopod_kinds::access::Access;
use isopod_kinds::quota::{Change, Evaluator, charge};
use isopod_store::{Compare, Durability, Op};
use serde_json::Value;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Namespaces share so many queues.
const QUEUES: usize = 64;

/// Where writes to namespaces with quotas wait for one another.
pub struct Turns([Arc<Mutex<()>>; QUEUES]);

impl Default for Turns {
    fn default() -> Self {
        Turns(std::array::from_fn(|_| Arc::default()))
    }
}

impl Turns {
    async fn of(&self, namespace: &str) -> OwnedMutexGuard<()> {
        let mut hasher = DefaultHasher::new();
        namespace.hash(&mut hasher);
        let queue = &self.0[hasher.finish() as usize % QUEUES];
        queue.clone().lock_owned().await
    }
}

/// What is to be written with the object. To be kept until that is done.
#[derive(Default)]
pub struct Charge {
    allocation: Allocation,
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Charge {
    pub fn allocation(&self) -> &Allocation {
        &self.allocation
    }
}

/// Charges the quotas of the namespace with the write, or says which of them forbids it.
pub async fn charge_quotas(
    server: &ApiServer,
    intent: &Intent,
    new: &Value,
    old: Option<&Value>,
) -> Result<Charge, Status> {
    let begun = Instant::now();
    let charge = charge_with(server, intent, new, old).await;
    let operation = if old.is_some() { Operation::Update } else { Operation::Create };
    server.metrics.admission.quotas.observe(Step::Validate, operation, charge.is_err(), begun.elapsed());
    charge
}

async fn charge_with(server: &ApiServer, intent: &Intent, new: &Value, old: Option<&Value>) -> Result<Charge, Status> {
    let resource = intent.kind.gvr().qualified();
    let Some(evaluator) = Evaluator::of(&resource).filter(|e| e.handles(&intent.subresource, new, old)) else {
        return Ok(Charge::default());
    };
    // What is kept in memory only cannot be written together with what is on disk; the controller still counts it.
    let durability = server.durability(&intent.kind, &intent.namespace, new.text("metadata.name"));
    let is_durable = durability == Durability::Durable;
    let kind = server.registry.load().resource("", "resourcequotas").cloned();
    let (true, Some(kind)) = (is_durable && !intent.namespace.is_empty(), kind) else { return Ok(Charge::default()) };
    if quotas(server, &kind, &intent.namespace, &intent.moment).await?.is_empty() {
        return Ok(Charge::default());
    }
    let turn = server.turns.of(&intent.namespace).await;
    let quotas = quotas(server, &kind, &intent.namespace, &Moment::default()).await?;
    let change = Change { new, old, subresource: &intent.subresource, now: intent.now };
    let charged = charge(&evaluator, &quotas, &change).map_err(|why| {
        let operation = if old.is_some() { Operation::Update } else { Operation::Create };
        Request::new(server, intent, operation, old, &Default::default()).forbidden(Some(new), why)
    })?;
    let mut allocation = Allocation::default();
    for (i, used) in charged.into_iter().filter(|_| !intent.dry_run) {
        let mut quota = quotas[i].clone();
        let key = objects::key(&kind, &intent.namespace, quota.text("metadata.name"));
        let revision = quota.text("metadata.resourceVersion").parse().unwrap_or_default();
        quota["status"]["used"] = used.to_json();
        allocation.compare.push(Compare::mod_revision(key.clone(), revision));
        allocation.ops.push(Op::put(key, splice::stored(&quota)));
    }
    Ok(Charge { allocation, _turn: Some(turn) })
}

/// The quotas of a namespace as they were at this moment or later.
async fn quotas(server: &ApiServer, kind: &Arc<Kind>, namespace: &str, moment: &Moment) -> Result<Vec<Value>, Status> {
    let cache = server.hub.cache_at(kind, moment).await?;
    let prefix = format!("{namespace}/");
    let snapshot = cache.snapshot();
    let all = snapshot.entries.range(Arc::<str>::from(prefix.as_str())..);
    Ok(all.take_while(|(key, _)| key.starts_with(&prefix)).map(|(_, entry)| entry.value()).collect())
}
