//! What every pod worker of a node shares.

use crate::config::KubeletConfig;
use crate::downward::Allocatable;
use crate::images::Puller;
use crate::machine::Machine;
use crate::objects::ObjectStore;
use crate::probe::Prober;
use crate::volumes::Mounter;
use isopod_base::clock::Clock;
use isopod_client::events::Recorder;
use isopod_client::views::{Node, Service};
use isopod_client::{Calls, Informer};
use isopod_runtime::Runtime;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

pub struct Shared {
    pub cfg: KubeletConfig,
    pub machine: Machine,
    pub allocatable: Allocatable,
    pub runtime: Arc<dyn Runtime>,
    pub client: Client,
    pub pods: Calls,
    pub recorder: Recorder,
    pub clock: Clock,
    pub objects: Arc<ObjectStore>,
    pub services: Informer<Service>,
    pub node: Informer<Node>,
    pub puller: Puller,
    pub prober: Prober,
    pub mounter: Arc<dyn Mounter>,
    /// The node's status in the API is what this kubelet found since its start.
    pub reported: watch::Sender<bool>,
    /// Pods that were admitted and have not ended, by uid.
    pub admitted: Mutex<BTreeMap<String, Arc<Pod>>>,
    /// Grows whenever a pod ended or became smaller: there may be room for what was refused.
    pub freed: watch::Sender<u64>,
}

impl Shared {
    /// What the pod was granted is free again.
    pub fn release(&self, uid: &str) {
        if self.admitted.lock().remove(uid).is_some() {
            self.freed.send_modify(|n| *n += 1);
        }
    }

    pub fn host_ips(&self) -> &[IpAddr] {
        &self.cfg.node_ips
    }
}
