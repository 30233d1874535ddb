//! Signs approved requests in the name of the four signers of `kubernetes.io`, or says why not (condition `Failed`).
//!
//! Watches requests; reads the authorities' files; writes `status.certificate` and conditions. Invariants: nothing is signed
//! without `Approved`, with `Denied` or after `Failed`; a certificate lives no longer than its request, the flag and its
//! authority say.

use super::{APPROVED, DENIED, FAILED, change, conditions, has, parsed, rules, with_condition};
use crate::controller::{Context, Controller, Error, Key};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use isopod_base::errors::Chain;
use isopod_client::Informer;
use isopod_client::queue::WorkQueue;
use isopod_client::views::CertificateSigningRequest;
use isopod_pki::PkiError;
use isopod_pki::signing::{AuthorityFiles, CertificateRequest, Grant};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;
/// Shorter lives are not given: twice what certificates are backdated.
const SHORTEST: Duration = Duration::from_secs(600);

/// Who signs, and for how long.
#[derive(Clone, Debug)]
pub struct Signers {
    /// By the signers' names. Requests to others are left to others.
    pub authorities: BTreeMap<&'static str, AuthorityFiles>,
    /// The longest life of a certificate.
    pub duration: Duration,
}

impl Default for Signers {
    fn default() -> Self {
        Signers { authorities: BTreeMap::new(), duration: Duration::from_secs(8760 * 3600) }
    }
}

impl Signers {
    fn lifetime(&self, expiration_seconds: Option<i32>) -> Duration {
        let Some(seconds) = expiration_seconds else { return self.duration };
        let wanted = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        if wanted > self.duration { self.duration } else { wanted.max(SHORTEST) }
    }
}

struct Signing {
    context: Context,
    requests: Informer<CertificateSigningRequest>,
}

pub async fn run(context: Context) {
    if context.options.signers.authorities.is_empty() {
        context.stop.cancelled().await;
        return;
    }
    let requests = context.informer::<CertificateSigningRequest>(CertificateSigningRequest::resource());
    requests.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&requests, &queue);
    let controller = Arc::new(Signing { context: context.clone(), requests });
    context.work(controller, queue, WORKERS).await;
}

fn is_due(csr: &CertificateSigningRequest) -> bool {
    let failed = conditions(csr, FAILED).any(|c| c["status"].as_str().is_none_or(|s| matches!(s, "" | "True")));
    csr.status.certificate.is_empty() && has(csr, APPROVED) && !has(csr, DENIED) && !failed
}

fn failure(why: &str, now: &str) -> Value {
    json!({"type": FAILED, "status": "True", "reason": "SignerValidationFailure", "message": why, "lastUpdateTime": now})
}

impl Signing {
    async fn sign(
        &self,
        csr: &CertificateSigningRequest,
        authority: AuthorityFiles,
        request: CertificateRequest,
    ) -> Result<String, PkiError> {
        let lifetime = self.context.options.signers.lifetime(csr.spec.expiration_seconds);
        let (usages, now) = (csr.spec.usages.clone(), self.context.clock.now().as_second());
        let made = tokio::task::spawn_blocking(move || {
            authority.load()?.sign(&request, Grant { usages: &usages, lifetime, now })
        });
        match made.await {
            Ok(made) => made,
            Err(ended) => std::panic::resume_unwind(ended.into_panic()),
        }
    }
}

#[async_trait]
impl Controller for Signing {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(csr) = self.requests.get("", &key.name).filter(|csr| is_due(csr)) else { return Ok(None) };
        let signer = csr.spec.signer_name.as_str();
        let Some(authority) = self.context.options.signers.authorities.get(signer) else { return Ok(None) };
        // What a request says never changes: one that cannot be read or proved is not looked at again.
        let useless = |e: PkiError| {
            tracing::warn!(request = %key, error = %Chain(&e), "an approved request cannot be signed");
            Ok(None)
        };
        let request = match parsed(&csr) {
            Ok(request) => request,
            Err(e) => return useless(e),
        };
        if let Err(why) = rules::check(signer, &request.subject, &request.names, &csr.spec.usages) {
            let now = isopod_api::time::format(self.context.clock.now());
            let conditions = with_condition(&csr, failure(&why, &now));
            self.context.apply(&change(&csr, "status", json!({"status": {"conditions": conditions}}))).await?;
            return Ok(None);
        }
        let pem = match self.sign(&csr, authority.clone(), request).await {
            Ok(pem) => pem,
            Err(e @ (PkiError::Request(_) | PkiError::Proof)) => return useless(e),
            Err(e) => return Err(Error::Sign { signer: signer.to_owned(), source: e }),
        };
        self.context.apply(&change(&csr, "status", json!({"status": {"certificate": BASE64.encode(pem)}}))).await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed() {
        let approved = json!({"type": "Approved", "status": "True"});
        for (status, want) in [
            (json!({}), false),
            (json!({"conditions": [approved]}), true),
            (json!({"conditions": [approved, {"type": "Denied", "status": "True"}]}), false),
            (json!({"conditions": [approved, {"type": "Failed", "status": "True"}]}), false),
            (json!({"conditions": [approved, {"type": "Failed"}]}), false),
            (json!({"conditions": [approved, {"type": "Failed", "status": "False"}]}), true),
            (json!({"conditions": [approved], "certificate": "QQ=="}), false),
        ] {
            let csr = serde_json::from_value(json!({"status": status})).unwrap();
            assert_eq!(is_due(&csr), want, "{status}");
        }
    }

    #[test]
    fn lives() {
        let signers = Signers { duration: Duration::from_secs(3600), ..Signers::default() };
        for (wanted, want) in [(None, 3600), (Some(7200), 3600), (Some(1800), 1800), (Some(60), 600), (Some(-1), 600)] {
            assert_eq!(signers.lifetime(wanted).as_secs(), want, "{wanted:?}");
        }
    }
}
