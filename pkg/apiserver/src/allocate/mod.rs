//! Addresses and ports of Services. They are claimed in the same transaction as the Service's write and given back in the
//! one that takes it away, so that none is ever lost or given twice.

pub mod cidr;
pub mod kubernetes_service;
pub mod peers;
pub mod repair;
pub mod service;

use crate::ApiServer;
use crate::pipeline::Intent;
use isopod_api::Status;
use isopod_store::{Compare, Op};
use serde_json::Value;

/// What must hold and what must be written together with an object.
#[derive(Default)]
pub struct Allocation {
    pub compare: Vec<Compare>,
    pub ops: Vec<Op>,
}

impl Allocation {
    pub fn join(&mut self, other: &Allocation) {
        self.compare.extend(other.compare.iter().cloned());
        self.ops.extend(other.ops.iter().cloned());
    }
}

fn is_service(intent: &Intent) -> bool {
    intent.kind.gvk.group.is_empty() && intent.kind.resource == "services" && intent.subresource.is_empty()
}

pub async fn on_create(server: &ApiServer, intent: &Intent, new: &mut Value) -> Result<Allocation, Status> {
    if is_service(intent) { service::create(server, intent, new).await } else { Ok(Allocation::default()) }
}

pub async fn on_update(
    server: &ApiServer,
    intent: &Intent,
    new: &mut Value,
    old: &Value,
) -> Result<Allocation, Status> {
    if is_service(intent) { service::update(server, intent, new, old).await } else { Ok(Allocation::default()) }
}

/// When the object goes.
pub async fn on_delete(server: &ApiServer, intent: &Intent, old: &Value) -> Result<Allocation, Status> {
    let service = intent.kind.gvk.group.is_empty() && intent.kind.resource == "services";
    if service { service::delete(server, intent, old).await } else { Ok(Allocation::default()) }
}
