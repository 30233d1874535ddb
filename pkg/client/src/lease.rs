//! Leases (`coordination.k8s.io/v1`) that one identity keeps: a node's heartbeat.

use crate::Error;
use crate::calls::{Calls, Patch, Preconditions};
use crate::views::{Lease, Meta};
use isopod_api::time;
use isopod_base::clock::Clock;
use kube::Client;
use serde_json::{Value, json};
use std::time::Duration;

/// A lease that one identity keeps.
#[derive(Clone)]
pub struct Holder {
    calls: Calls,
    clock: Clock,
    pub namespace: String,
    pub name: String,
    pub identity: String,
    pub duration: Duration,
    /// `metadata.ownerReferences` of a lease that has to be made.
    pub owners: Value,
}

impl Holder {
    pub fn new(client: Client, clock: Clock, namespace: &str, name: &str, identity: &str, duration: Duration) -> Self {
        Holder {
            calls: Calls::new(client, Lease::resource()),
            clock,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            duration,
            owners: Value::Null,
        }
    }

    /// The lease of a node's heartbeat in `kube-node-lease`, 40 seconds, owned by the node.
    pub fn node(client: Client, clock: Clock, node: &Meta) -> Self {
        let mut holder = Self::new(client, clock, "kube-node-lease", &node.name, &node.name, Duration::from_secs(40));
        holder.owners = json!([{"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}]);
        holder
    }

    /// Writes now as the time of renewal, making the lease if it is not there.
    pub async fn renew(&self) -> Result<(), Error> {
        let patch = json!({"spec": {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.duration.as_secs(),
            "renewTime": time::format_micro(self.clock.now()),
        }});
        let none = Preconditions::default();
        match self.calls.patch::<Value>(&self.namespace, &self.name, None, Patch::Merge(patch), &none).await {
            Err(e) if e.is_not_found() => self.create().await.map(drop),
            other => other.map(drop),
        }
    }

    async fn create(&self) -> Result<Lease, Error> {
        let now = time::format_micro(self.clock.now());
        let mut lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "holderIdentity": self.identity, "leaseDurationSeconds": self.duration.as_secs(),
                "acquireTime": now, "renewTime": now, "leaseTransitions": 0,
            },
        });
        if !self.owners.is_null() {
            lease["metadata"]["ownerReferences"] = self.owners.clone();
        }
        self.calls.create(&self.namespace, &lease).await
    }
}
