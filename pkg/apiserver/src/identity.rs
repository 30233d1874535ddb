//! Which API servers there are, for everybody to see: each holds a Lease in `kube-system` (KEP-1965), named after a hash of its
//! host's name, and renews it. Whoever finds one that ended long ago deletes it.
//!
//! Invariant: a renewal does not reach the disk. These leases are of the store's ephemeral class, as those of nodes are.

use crate::cache::store_status;
use crate::candidate::update::Edit;
use crate::encode::served;
use crate::options::DeleteOptions;
use crate::pipeline::{self, Intent};
use crate::stages::Stage;
use crate::{ApiServer, deletion, objects};
use isopod_api::{Status, time};
use isopod_store::{KeyRange, RangeRequest};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::{Arc, Weak};
use std::time::Duration;

const NAMESPACE: &str = "kube-system";
/// Tells these leases from others.
const LABEL: &str = "apiserver.kubernetes.io/identity";
const COMPONENT: &str = "kube-apiserver";
/// Upstream's periods.
const LEASE_SECONDS: i64 = 3600;
const RENEWAL: Duration = Duration::from_secs(10);
const COLLECTION: Duration = Duration::from_secs(3600);

/// The lease of this start of this server.
struct Identity {
    name: String,
    holder: String,
    hostname: String,
    /// Where other API servers reach this one.
    address: String,
}

impl Identity {
    fn of(server: &ApiServer) -> Self {
        let config = &server.config;
        let name = name(&config.hostname);
        Identity {
            holder: format!("{name}_{}", uuid::Uuid::new_v4()),
            name,
            hostname: config.hostname.clone(),
            address: std::net::SocketAddr::new(config.advertise_address, config.port).to_string(),
        }
    }

    fn lease(&self, now: Timestamp) -> Value {
        let mut lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.name, "namespace": NAMESPACE},
            "spec": {"holderIdentity": self.holder},
        });
        self.renew(&mut lease, now);
        lease
    }

    /// What a renewal sets; the rest is left to whoever has set it.
    fn renew(&self, lease: &mut Value, now: Timestamp) {
        lease["spec"]["leaseDurationSeconds"] = LEASE_SECONDS.into();
        lease["spec"]["renewTime"] = time::format_micro(now).into();
        lease["metadata"]["labels"][LABEL] = COMPONENT.into();
        lease["metadata"]["labels"]["kubernetes.io/hostname"] = self.hostname.as_str().into();
        lease["metadata"]["annotations"]["kubernetes.io/peer-advertise-address"] = self.address.as_str().into();
    }
}

/// `apiserver-` and 128 bits of a hash of the host's name and the component's, each behind its length.
fn name(hostname: &str) -> String {
    let mut hash = Sha256::new();
    for part in [hostname, COMPONENT] {
        hash.update((part.len() as u16).to_be_bytes());
        hash.update(part);
    }
    format!("apiserver-{}", base32(&hash.finalize()[..16]))
}

/// RFC 4648, in lower case and without padding.
fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bit = |i: usize| bytes.get(i / 8).is_some_and(|b| b & (0x80 >> (i % 8)) != 0);
    let digit = |at: usize| (at..at + 5).fold(0, |value, i| value << 1 | usize::from(bit(i)));
    (0..bytes.len() * 8).step_by(5).map(|at| char::from(DIGITS[digit(at)])).collect()
}

/// Takes this server's lease, and keeps it until the server stops.
pub async fn start(server: &Arc<ApiServer>) {
    let identity = Identity::of(server);
    // Who held it before is gone: nobody is to speak to a server that is not there.
    if let Err(e) = give_up(server, &identity).await {
        tracing::warn!(error = %e, "cannot delete the lease of this API server's last start");
    }
    if let Err(e) = hold(server, &identity).await {
        tracing::warn!(error = %e, "cannot create this API server's lease: trying again");
    }
    server.farewells.spawn(keep(Arc::downgrade(server), identity));
    tokio::spawn(collect(Arc::downgrade(server)));
    server.stages.done(Stage::Identity);
}

/// Runs until the server stops or is dropped.
async fn keep(weak: Weak<ApiServer>, identity: Identity) {
    while let Some(server) = weak.upgrade() {
        let (clock, stop) = (server.config.clock.clone(), server.stop.clone());
        drop(server);
        let slept = stop.run_until_cancelled(clock.sleep(RENEWAL)).await;
        let Some(server) = weak.upgrade() else { return };
        if slept.is_none() {
            if let Err(e) = give_up(&server, &identity).await {
                tracing::debug!(error = %e, "cannot delete this API server's lease");
            }
            return;
        }
        if let Err(e) = hold(&server, &identity).await {
            tracing::debug!(error = %e, "cannot renew this API server's lease");
        }
    }
}

fn intent(server: &ApiServer, name: &str) -> Option<Intent> {
    let kind = server.registry.load().resource("coordination.k8s.io", "leases").cloned()?;
    Some(server.intent(&kind, NAMESPACE, name))
}

/// Renews the lease, or takes it.
async fn hold(server: &ApiServer, identity: &Identity) -> Result<(), Status> {
    let Some(intent) = intent(server, &identity.name) else { return Ok(()) };
    let renewal = Edit(|lease: &mut Value| {
        identity.renew(lease, intent.now);
        Ok(())
    });
    match pipeline::update(server, &intent, &renewal).await {
        Err(e) if e.code == 404 => {}
        other => return other.map(drop),
    }
    pipeline::create(server, &intent, &identity.lease(intent.now)).await.map(drop)
}

async fn give_up(server: &ApiServer, identity: &Identity) -> Result<(), Status> {
    delete(server, &identity.name, DeleteOptions::default()).await
}

/// Deletes a lease, unless it is gone.
async fn delete(server: &ApiServer, name: &str, options: DeleteOptions) -> Result<(), Status> {
    let Some(intent) = intent(server, name) else { return Ok(()) };
    match deletion::delete(server, &intent, &options).await {
        Err(e) if e.code != 404 => Err(e),
        _ => Ok(()),
    }
}

/// Deletes the leases of servers that ended without a word, until this one stops.
async fn collect(weak: Weak<ApiServer>) {
    while let Some(server) = weak.upgrade() {
        if let Err(e) = collect_once(&server).await {
            tracing::warn!(error = %e, "cannot look for the leases of API servers that are gone");
        }
        let (clock, stop) = (server.config.clock.clone(), server.stop.clone());
        drop(server);
        if stop.run_until_cancelled(clock.sleep(COLLECTION)).await.is_none() {
            return;
        }
    }
}

async fn collect_once(server: &ApiServer) -> Result<(), Status> {
    let Some(intent) = intent(server, "") else { return Ok(()) };
    let begin = objects::key(&intent.kind, NAMESPACE, "");
    let read = server.config.store.range(RangeRequest::new(KeyRange::prefix(begin.clone()))).await;
    for kv in read.map_err(store_status)?.kvs {
        let name = String::from_utf8_lossy(&kv.key[begin.len()..]).into_owned();
        let entry = server.entry(&intent.kind, NAMESPACE, &name, &kv.value, None, kv.mod_revision).await?;
        let lease = served(&intent.kind, &entry.body);
        if lease["metadata"]["labels"][LABEL] != COMPONENT || !is_over(&lease, intent.now) {
            continue;
        }
        tracing::info!(lease = name, "deleting the lease of an API server that is gone");
        // One that was renewed meanwhile stays.
        let seen = Some(kv.mod_revision.to_string());
        match delete(server, &name, DeleteOptions { resource_version: seen, ..Default::default() }).await {
            Err(e) if e.reason != "Conflict" => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a lease has ended. One that does not say when it ends is none of an API server.
fn is_over(lease: &Value, now: Timestamp) -> bool {
    let renewed = lease["spec"]["renewTime"].as_str().and_then(time::parse);
    let seconds = lease["spec"]["leaseDurationSeconds"].as_i64();
    let (Some(renewed), Some(seconds)) = (renewed, seconds) else { return true };
    renewed.checked_add(SignedDuration::from_secs(seconds)).is_ok_and(|end| end < now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_upstream_gives() {
        for (hostname, lease) in [
            ("localhost", "apiserver-l2yubf4cvcl5c7a3wrubrwqdve"),
            ("node-1", "apiserver-lgabes5ywnaqeagh5dny4zlzs4"),
            ("a.example.com", "apiserver-bvtyaxn235zrskxno6hycxnx24"),
        ] {
            assert_eq!(name(hostname), lease);
        }
        assert_eq!(base32(b"foobar"), "mzxw6ytboi");
    }

    #[test]
    fn leases_end_after_their_time() {
        let at = |text: &str| time::parse(text).unwrap();
        let lease =
            |renewed: &str, seconds: Value| json!({"spec": {"renewTime": renewed, "leaseDurationSeconds": seconds}});
        let kept = lease("2026-01-01T00:00:00.000000Z", json!(3600));
        assert!(!is_over(&kept, at("2026-01-01T01:00:00Z")));
        assert!(is_over(&kept, at("2026-01-01T01:00:01Z")));
        let now = at("2026-01-01T00:00:00Z");
        assert!(is_over(&lease("2026-01-01T00:00:00.000000Z", Value::Null), now));
        assert!(is_over(&lease("", json!(3600)), now));
    }
}
