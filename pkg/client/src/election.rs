//! Leader election by a `Lease`, as `k8s.io/client-go/tools/leaderelection` does it: of several processes one works.
//!
//! Invariants:
//! - Whoever works has renewed the lease less than [`Timing::renew_deadline`] ago, by its own monotonic clock; it stops by itself
//!   then, before the others may take the lease.
//! - Nobody trusts another one's clock: a lease has expired when it was not seen to change for its duration.

use crate::calls::Calls;
use crate::views::Lease;
use isopod_api::time;
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use kube::Client;
use serde_json::{Value, json};
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-system";

/// The default is upstream's.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A lease that does not change for so long is free.
    pub lease_duration: Duration,
    /// A leader that cannot renew for so long stops. Shorter than the duration.
    pub renew_deadline: Duration,
    /// How often the leader renews, and the others look.
    pub retry_period: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// One candidate for a lease in `kube-system`.
#[derive(Clone)]
pub struct Election {
    calls: Calls,
    clock: Clock,
    name: String,
    identity: String,
    timing: Timing,
}

/// What was last seen of the lease, and when it changed.
struct Observed {
    spec: Value,
    at: Instant,
}

impl Election {
    /// For the lease `name`, as a holder that nobody else is: `host` is for people to read.
    pub fn new(client: Client, clock: Clock, name: &str, host: &str, timing: Timing) -> Self {
        let identity = format!("{host}_{:016x}", rand::random::<u64>());
        Election { calls: Calls::new(client, Lease::resource()), clock, name: name.to_owned(), identity, timing }
    }

    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Runs `work` whenever this candidate leads, until `stop`. The token that it is given ends its turn; it has to stop then.
    pub async fn lead<F, Fut>(&self, stop: CancellationToken, work: F)
    where
        F: Fn(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        let mut observed = None;
        while !stop.is_cancelled() {
            let began = tokio::select! {
                began = self.acquire(&mut observed) => began,
                () = stop.cancelled() => return,
            };
            tracing::info!(lease = self.name, identity = self.identity, "leads");
            let turn = stop.child_token();
            let working = work(turn.clone());
            tokio::pin!(working);
            let lost = tokio::select! {
                () = &mut working => false,
                () = self.keep(&mut observed, began) => true,
            };
            turn.cancel();
            if lost {
                tracing::warn!(lease = self.name, identity = self.identity, "leads no longer");
                // What it has begun must end before another one begins.
                let rest = self.timing.lease_duration.saturating_sub(self.timing.renew_deadline);
                let _ = tokio::time::timeout(rest, working).await;
                continue;
            }
            self.release(&mut observed).await;
            if !stop.is_cancelled() {
                // It ended by itself: whoever runs this begins again.
                return;
            }
        }
    }

    /// Returns when the lease is this candidate's: the moment from which it counts.
    async fn acquire(&self, observed: &mut Option<Observed>) -> Instant {
        loop {
            let began = Instant::now();
            // A request that gets no answer is not waited for without end.
            let tried = tokio::time::timeout(self.timing.renew_deadline, self.attempt(observed)).await;
            if tried.unwrap_or(false) {
                return began;
            }
            // Candidates that began together do not stay together.
            let jitter = self.timing.retry_period.mul_f64(rand::random_range(0.0..0.2));
            tokio::time::sleep(self.timing.retry_period + jitter).await;
        }
    }

    /// Renews until that does not succeed for too long.
    async fn keep(&self, observed: &mut Option<Observed>, mut renewed: Instant) {
        loop {
            tokio::time::sleep(self.timing.retry_period).await;
            // The lease counts from when the request began.
            let began = Instant::now();
            let deadline = renewed + self.timing.renew_deadline;
            match tokio::time::timeout_at(deadline, self.attempt(observed)).await {
                Ok(true) => renewed = began,
                Ok(false) if self.is_others(observed) || Instant::now() >= deadline => return,
                Ok(false) => {}
                Err(_) => return,
            }
        }
    }

    fn is_others(&self, observed: &Option<Observed>) -> bool {
        let holder = observed.as_ref().map_or("", |o| o.spec["holderIdentity"].as_str().unwrap_or_default());
        !holder.is_empty() && holder != self.identity
    }

    /// Takes or renews the lease if that is this candidate's to do.
    async fn attempt(&self, observed: &mut Option<Observed>) -> bool {
        let outcome = match self.calls.find::<Value>(NAMESPACE, &self.name).await {
            Ok(None) => self.create().await.map(Some),
            Ok(Some(lease)) => {
                self.observe(observed, &lease["spec"]);
                if self.is_others(observed) && !self.has_expired(observed) {
                    return false;
                }
                self.take(lease).await.map(Some)
            }
            Err(e) => Err(e),
        };
        match outcome {
            Ok(Some(lease)) => {
                self.observe(observed, &lease["spec"]);
                true
            }
            Ok(None) => false,
            Err(e) => {
                // Somebody else was quicker, or the API server does not answer: the next try tells.
                tracing::debug!(lease = self.name, error = %Chain(&e), "cannot take the lease");
                false
            }
        }
    }

    fn observe(&self, observed: &mut Option<Observed>, spec: &Value) {
        if observed.as_ref().is_none_or(|o| o.spec != *spec) {
            *observed = Some(Observed { spec: spec.clone(), at: Instant::now() });
        }
    }

    fn has_expired(&self, observed: &Option<Observed>) -> bool {
        let Some(o) = observed else { return true };
        let said = o.spec["leaseDurationSeconds"].as_u64().map(Duration::from_secs);
        o.at.elapsed() >= said.unwrap_or(Duration::ZERO).max(self.timing.lease_duration)
    }

    async fn create(&self) -> Result<Value, crate::Error> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.name, "namespace": NAMESPACE},
            "spec": self.spec(&Value::Null),
        });
        self.calls.create(NAMESPACE, &lease).await
    }

    /// The lease's revision is in it: of two who take it one fails.
    async fn take(&self, mut lease: Value) -> Result<Value, crate::Error> {
        lease["spec"] = self.spec(&lease["spec"]);
        self.calls.update(NAMESPACE, &self.name, None, &lease).await
    }

    fn spec(&self, before: &Value) -> Value {
        let now = time::format_micro(self.clock.now());
        let holder = before["holderIdentity"].as_str().unwrap_or_default();
        let transitions = before["leaseTransitions"].as_i64().unwrap_or(0);
        let (acquired, transitions) = match holder {
            own if own == self.identity => (before["acquireTime"].clone(), transitions),
            _ if before.is_null() => (json!(now), 0),
            _ => (json!(now), transitions + 1),
        };
        json!({
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.timing.lease_duration.as_secs().max(1),
            "acquireTime": acquired, "renewTime": now, "leaseTransitions": transitions,
        })
    }

    /// Gives the lease back, so that the next one need not wait until it expires.
    async fn release(&self, observed: &mut Option<Observed>) {
        let giving = async {
            let Some(mut lease) = self.calls.find::<Value>(NAMESPACE, &self.name).await? else { return Ok(()) };
            self.observe(observed, &lease["spec"]);
            if self.is_others(observed) {
                return Ok(());
            }
            let spec = self.spec(&lease["spec"]);
            lease["spec"] = spec;
            lease["spec"]["holderIdentity"] = json!("");
            lease["spec"]["leaseDurationSeconds"] = json!(1);
            self.calls.update::<Value>(NAMESPACE, &self.name, None, &lease).await.map(drop)
        };
        match tokio::time::timeout(self.timing.retry_period, giving).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!(lease = self.name, error = %Chain(&e), "cannot give the lease back"),
            Err(_) => tracing::debug!(lease = self.name, "cannot give the lease back in time"),
        }
    }
}
