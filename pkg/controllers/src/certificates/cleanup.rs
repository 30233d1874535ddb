//! Deletes old requests for certificates: an hour after they were issued, denied or failed, a day after they came or were
//! approved and nothing followed, and when their certificate is over.
//!
//! Watches and deletes requests, each when its time has come.

use super::{APPROVED, DENIED, FAILED, conditions};
use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use isopod_client::Informer;
use isopod_client::queue::WorkQueue;
use isopod_client::views::CertificateSigningRequest;
use isopod_pki::signing::end_of_certificate;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

const DONE: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

struct Cleanup {
    context: Context,
    requests: Informer<CertificateSigningRequest>,
}

pub async fn run(context: Context) {
    let requests = context.informer::<CertificateSigningRequest>(CertificateSigningRequest::resource());
    requests.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&requests, &queue);
    let controller = Arc::new(Cleanup { context: context.clone(), requests });
    context.work(controller, queue, 1).await;
}

/// When the request is to go, as far as is known yet.
fn due(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let time = |text: &str| isopod_api::time::parse(text);
    let after = |since: Option<Timestamp>, age| since?.checked_add(age).ok();
    let at = |kind, age| conditions(csr, kind).filter_map(|c| after(time(c["lastUpdateTime"].as_str()?), age)).min();
    let is_issued = !csr.status.certificate.is_empty();
    let over = || {
        conditions(csr, APPROVED).next()?;
        let pem = BASE64.decode(&csr.status.certificate).ok()?;
        Timestamp::from_second(end_of_certificate(&String::from_utf8_lossy(&pem))?).ok()
    };
    let is_new = csr.status.conditions.is_empty();
    let times = [
        at(DENIED, DONE),
        at(FAILED, DONE),
        at(APPROVED, if is_issued { DONE } else { PENDING }),
        is_new.then(|| after(time(&csr.metadata.creation_timestamp), PENDING)).flatten(),
        over(),
    ];
    times.into_iter().flatten().min()
}

#[async_trait]
impl Controller for Cleanup {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(csr) = self.requests.get("", &key.name) else { return Ok(None) };
        let Some(due) = due(&csr) else { return Ok(None) };
        let now = self.context.clock.now();
        if due > now {
            return Ok(Some(due.duration_since(now).unsigned_abs()));
        }
        let m = &csr.metadata;
        let op = Op::delete(CertificateSigningRequest::resource(), "", &m.name).if_uid(&m.uid);
        self.context.apply(&op.if_unchanged(&m.resource_version)).await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn when_requests_go() {
        let at = |kind: &str, hour: u8| json!({"type": kind, "lastUpdateTime": format!("2026-01-01T{hour:02}:00:00Z")});
        let dir = tempfile::tempdir().unwrap();
        let authority = isopod_pki::CertAuthority::load_or_create(dir.path(), "ca").unwrap();
        let certificate = BASE64.encode(&authority.cert_pem);
        for (status, want) in [
            (json!({}), Some("2026-01-02T00:00:00Z")),
            (json!({"conditions": [at("Approved", 3)]}), Some("2026-01-02T03:00:00Z")),
            (json!({"conditions": [at("Approved", 3)], "certificate": certificate}), Some("2026-01-01T04:00:00Z")),
            (json!({"conditions": [at("Denied", 5)]}), Some("2026-01-01T06:00:00Z")),
            (json!({"conditions": [at("Approved", 3), at("Failed", 7)]}), Some("2026-01-01T08:00:00Z")),
            (json!({"conditions": [{"type": "Other"}]}), None),
        ] {
            let csr = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": status});
            let csr = serde_json::from_value(csr).unwrap();
            assert_eq!(due(&csr).map(isopod_api::time::format).as_deref(), want, "{status}");
        }
    }

    #[test]
    fn a_certificate_that_is_over_takes_its_request_along() {
        let csr = json!({"status": {"conditions": [{"type": "Approved"}], "certificate": BASE64.encode(include_str!("over.pem"))}});
        let csr = serde_json::from_value(csr).unwrap();
        assert_eq!(due(&csr).map(isopod_api::time::format).as_deref(), Some("2020-01-01T01:00:00Z"));
    }
}
