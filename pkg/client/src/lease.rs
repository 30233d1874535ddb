//! Leases (`coordination.k8s.io/v1`): heartbeats, and the election of one leader among several.
//!
//! Invariants: an elected leader stops its work before another can hold the lease (it gives up after
//! [`RENEW_DEADLINE`], less than the lease's duration); who watches a lease trusts only its own clock, never the times in it.

use crate::Error;
use crate::calls::{Calls, Patch, Preconditions};
use crate::views::{Lease, Meta};
use isopod_api::time;
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a leader's lease lasts, how long it tries to renew it, and how often (kube-controller-manager's defaults).
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);

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

/// One candidate for a lease.
pub struct Election {
    holder: Holder,
    /// The lease as last seen to change, and when that was by our clock.
    seen: Option<(LeaseRecord, Timestamp)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct LeaseRecord {
    holder: String,
    renewed: Option<String>,
}

impl Election {
    pub fn new(holder: Holder) -> Self {
        Election { holder, seen: None }
    }

    /// Waits for the lease, runs `work` while holding it, and cancels the token it gave when the lease is lost. Returns
    /// when `work` has ended. Gives the lease back at an orderly end.
    pub async fn run<F, Fut>(mut self, stop: CancellationToken, work: F)
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        loop {
            match self.try_acquire().await {
                Ok(true) => break,
                Ok(false) => {}
                Err(e) => tracing::warn!(lease = self.holder.name, error = %Chain(&e), "cannot get the lease"),
            }
            tokio::select! {
                () = self.holder.clock.sleep(RETRY_PERIOD) => {}
                () = stop.cancelled() => return,
            }
        }
        let leading = stop.child_token();
        let work = work(leading.clone());
        tokio::pin!(work);
        tokio::select! {
            () = &mut work => {}
            () = self.keep() => {
                tracing::error!(lease = self.holder.name, "lost the lease");
                leading.cancel();
                work.await;
                return;
            }
        }
        self.release().await;
    }

    /// Renews until that has not worked for [`RENEW_DEADLINE`].
    async fn keep(&mut self) {
        let mut renewed = self.holder.clock.now();
        loop {
            self.holder.clock.sleep(RETRY_PERIOD).await;
            let attempt = tokio::time::timeout(RENEW_DEADLINE, self.try_acquire()).await;
            match attempt {
                Ok(Ok(true)) => renewed = self.holder.clock.now(),
                Ok(Ok(false)) => return,
                Ok(Err(e)) => tracing::warn!(lease = self.holder.name, error = %Chain(&e), "cannot renew the lease"),
                Err(_) => {}
            }
            if self.holder.clock.now().duration_since(renewed).unsigned_abs() >= RENEW_DEADLINE {
                return;
            }
        }
    }

    /// Takes the lease if it is free, expired or ours. `false`: another holds it.
    pub async fn try_acquire(&mut self) -> Result<bool, Error> {
        let h = &self.holder;
        let Some(lease) = h.calls.find::<Lease>(&h.namespace, &h.name).await? else {
            return match h.create().await {
                Ok(_) => Ok(true),
                Err(e) if e.is_already_exists() => Ok(false),
                Err(e) => Err(e),
            };
        };
        let now = h.clock.now();
        let record = LeaseRecord { holder: lease.spec.holder_identity.clone(), renewed: lease.spec.renew_time.clone() };
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != record) {
            self.seen = Some((record.clone(), now));
        }
        let ours = record.holder == h.identity;
        let since = self.seen.as_ref().map_or(now, |(_, at)| *at);
        let duration = Duration::from_secs(lease.spec.lease_duration_seconds.max(0) as u64);
        if !ours && !record.holder.is_empty() && now.duration_since(since).unsigned_abs() < duration {
            return Ok(false);
        }
        let text = time::format_micro(now);
        let mut spec = json!({
            "holderIdentity": h.identity, "leaseDurationSeconds": h.duration.as_secs(), "renewTime": text,
        });
        if !ours {
            spec["acquireTime"] = json!(text);
            spec["leaseTransitions"] = json!(lease.spec.lease_transitions + 1);
        }
        let guard = Preconditions { uid: None, resource_version: Some(lease.metadata.resource_version) };
        match h.calls.modify(&h.namespace, &h.name, None, &json!({"spec": spec}), &guard).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_conflict() => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn release(&self) {
        if let Err(e) = self.try_release().await {
            tracing::debug!(lease = self.holder.name, error = %Chain(&e), "cannot give the lease back");
        }
    }

    async fn try_release(&self) -> Result<(), Error> {
        let h = &self.holder;
        let lease: Lease = h.calls.get(&h.namespace, &h.name).await?;
        if lease.spec.holder_identity == h.identity {
            let free = json!({"spec": {"holderIdentity": "", "leaseDurationSeconds": 1}});
            let guard = Preconditions { uid: None, resource_version: Some(lease.metadata.resource_version) };
            h.calls.modify(&h.namespace, &h.name, None, &free, &guard).await?;
        }
        Ok(())
    }
}
