//! Approves the requests of kubelets for their client certificates, where their sender may do `create` on
//! `certificatesigningrequests/selfnodeclient` (a node for itself) or `…/nodeclient` (for any node: who joins one).
//!
//! Watches requests; asks SubjectAccessReviews; writes conditions. Invariants: only requests that the kubelets' signer signs are
//! approved; what has a verdict is left alone; who is not allowed is asked about again, later and later.

use super::{APPROVED, DENIED, KUBELET_CLIENT, change, has, parsed, rules, with_condition};
use crate::controller::{Context, Controller, Error, Key};
use async_trait::async_trait;
use isopod_base::errors::Chain;
use isopod_client::queue::WorkQueue;
use isopod_client::views::CertificateSigningRequest;
use isopod_client::{Informer, Resource};
use isopod_pki::signing::{Names, Subject};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;

struct Approval {
    context: Context,
    requests: Informer<CertificateSigningRequest>,
}

pub async fn run(context: Context) {
    let requests = context.informer::<CertificateSigningRequest>(CertificateSigningRequest::resource());
    requests.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&requests, &queue);
    let controller = Arc::new(Approval { context: context.clone(), requests });
    context.work(controller, queue, WORKERS).await;
}

/// What a sender has to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    OwnNode,
    AnyNode,
}

impl Right {
    fn subresource(self) -> &'static str {
        match self {
            Right::OwnNode => "selfnodeclient",
            Right::AnyNode => "nodeclient",
        }
    }

    fn message(self) -> &'static str {
        match self {
            Right::OwnNode => "Auto approving self kubelet client certificate after SubjectAccessReview.",
            Right::AnyNode => "Auto approving kubelet client certificate after SubjectAccessReview.",
        }
    }

    fn review(self, csr: &CertificateSigningRequest) -> Value {
        let spec = &csr.spec;
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
            "resourceAttributes": {"group": "certificates.k8s.io", "version": "*", "resource": "certificatesigningrequests",
                "subresource": self.subresource(), "verb": "create"}}})
    }
}

fn is_pending(csr: &CertificateSigningRequest) -> bool {
    csr.status.certificate.is_empty() && !has(csr, APPROVED) && !has(csr, DENIED)
}

/// The rights of which one is enough.
fn rights(csr: &CertificateSigningRequest, subject: &Subject, names: &Names) -> &'static [Right] {
    if csr.spec.signer_name != KUBELET_CLIENT || rules::kubelet_client(subject, names, &csr.spec.usages).is_err() {
        return &[];
    }
    if csr.spec.username == subject.common_name() {
        return &[Right::OwnNode, Right::AnyNode];
    }
    &[Right::AnyNode]
}

fn approval(right: Right) -> Value {
    json!({"type": APPROVED, "status": "True", "reason": "AutoApproved", "message": right.message()})
}

impl Approval {
    async fn is_allowed(&self, csr: &CertificateSigningRequest, right: Right) -> Result<bool, Error> {
        let reviews = self.context.calls(Resource::cluster("authorization.k8s.io", "v1", "subjectaccessreviews"));
        let answer: Value = reviews.create("", &right.review(csr)).await?;
        Ok(answer["status"]["allowed"] == true)
    }
}

#[async_trait]
impl Controller for Approval {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(csr) = self.requests.get("", &key.name).filter(|csr| is_pending(csr)) else { return Ok(None) };
        let request = match parsed(&csr) {
            Ok(request) => request,
            Err(e) => {
                tracing::debug!(request = %key, error = %Chain(&e), "no request of a kubelet");
                return Ok(None);
            }
        };
        let rights = rights(&csr, &request.subject, &request.names);
        for right in rights {
            if self.is_allowed(&csr, *right).await? {
                let conditions = with_condition(&csr, approval(*right));
                let op = change(&csr, "approval", json!({"status": {"conditions": conditions}}));
                self.context.apply(&op).await?;
                return Ok(None);
            }
        }
        match rights.is_empty() {
            true => Ok(None),
            false => Err(Error::NotAllowed(csr.spec.username.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_pki::signing::{COMMON_NAME, ORGANIZATION};

    #[test]
    fn whose_requests_are_whose() {
        let csr = |signer: &str, user: &str| -> CertificateSigningRequest {
            let usages = ["client auth", "digital signature"];
            let csr = json!({"spec": {"signerName": signer, "username": user, "usages": usages}});
            serde_json::from_value(csr).unwrap()
        };
        let of = |name: &str| -> Subject {
            let attributes = [(COMMON_NAME, name), (ORGANIZATION, "system:nodes")];
            attributes.into_iter().map(|(kind, text)| (kind, text.to_owned())).collect()
        };
        let both: &[Right] = &[Right::OwnNode, Right::AnyNode];
        for (signer, user, name, want) in [
            (KUBELET_CLIENT, "system:node:a", "system:node:a", both),
            (KUBELET_CLIENT, "system:bootstrap:abcdef", "system:node:a", &[Right::AnyNode]),
            (KUBELET_CLIENT, "jane", "jane", &[]),
            (super::super::CLIENT, "system:node:a", "system:node:a", &[]),
        ] {
            assert_eq!(rights(&csr(signer, user), &of(name), &Names::default()), want, "{signer} {user} {name}");
        }
    }

    #[test]
    fn verdicts_stay() {
        for (status, want) in [
            (json!({}), true),
            (json!({"conditions": [{"type": "Approved"}]}), false),
            (json!({"conditions": [{"type": "Denied"}]}), false),
            (json!({"certificate": "QQ=="}), false),
        ] {
            let csr = serde_json::from_value(json!({"status": status})).unwrap();
            assert_eq!(is_pending(&csr), want, "{status}");
        }
    }
}
