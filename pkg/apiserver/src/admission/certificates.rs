//! Who may approve, sign and attest in a signer's name: `CertificateApproval`, `CertificateSigning`,
//! `ClusterTrustBundleAttest`. The right is `approve`, `sign` or `attest` on `signers`, by the signer's whole name or by its
//! domain and `/*`. And `CertificateSubjectRestriction`: the signer of clients makes no `system:masters`.

use super::{Operation, Plugin, Request};
use crate::chain;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use isopod_api::{FieldError, Path, Status};
use isopod_auth::Attributes;
use isopod_auth::certificate::requested_groups;
use isopod_base::errors::Chain;
use isopod_kinds::access::{Access, same};
use serde_json::Value;

const REQUESTS: &str = "certificatesigningrequests.certificates.k8s.io";
const POD_REQUESTS: &str = "podcertificaterequests.certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub struct CertificateApproval;
pub struct CertificateSigning;
pub struct ClusterTrustBundleAttest;
pub struct CertificateSubjectRestriction;

/// Whether the user may do `verb` for the signer.
async fn may(request: &Request<'_>, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let attributes = Attributes {
            user: request.intent.user.clone(),
            verb: verb.into(),
            is_resource: true,
            group: "certificates.k8s.io".into(),
            version: "*".into(),
            resource: "signers".into(),
            name,
            ..Attributes::default()
        };
        if chain::decide(request.server, &attributes).await.is_allowed() {
            return true;
        }
    }
    false
}

fn is_request(request: &Request<'_>, subresource: &str) -> bool {
    request.intent.subresource == subresource && request.intent.kind.is(REQUESTS)
}

#[async_trait]
impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        let (true, Some(old)) = (is_request(request, "approval"), request.old) else { return Ok(()) };
        let signer = old.text("spec.signerName");
        if may(request, "approve", signer).await {
            return Ok(());
        }
        Err(request.forbidden(new, format!("user not permitted to approve requests with signerName {signer:?}")))
    }
}

#[async_trait]
impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        if let (true, Some(new), Some(old)) = (is_status_of(request, POD_REQUESTS), new, request.old) {
            return pod_certificate(request, new, old).await;
        }
        let (true, Some(new), Some(old)) = (is_request(request, "status"), new, request.old) else { return Ok(()) };
        if ["status.certificate", "status.conditions"].iter().all(|f| same(new.at(f), old.at(f))) {
            return Ok(());
        }
        let signer = old.text("spec.signerName");
        if may(request, "sign", signer).await {
            return Ok(());
        }
        Err(request.forbidden(Some(new), format!("user not permitted to sign requests with signerName {signer:?}")))
    }
}

fn is_status_of(request: &Request<'_>, qualified: &str) -> bool {
    request.intent.subresource == "status" && request.intent.kind.is(qualified)
}

/// Upstream asks this where it validates, so that it is told as a fault of the object.
async fn pod_certificate(request: &Request<'_>, new: &Value, old: &Value) -> Result<(), Status> {
    let signer = old.text("spec.signerName");
    if same(new.at("status"), old.at("status")) || may(request, "sign", signer).await {
        return Ok(());
    }
    let why = format!("User {:?} is not permitted to \"sign\" for signer {signer:?}", request.intent.user.name);
    let fault = FieldError::forbidden(&Path::new("spec").child("signerName"), why);
    Err(Status::invalid(&request.intent.kind.gvk, &request.intent.name, &[fault]))
}

#[async_trait]
impl Plugin for ClusterTrustBundleAttest {
    fn name(&self) -> &'static str {
        "ClusterTrustBundleAttest"
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        let Some(new) = new else { return Ok(()) };
        let signer = new.text("spec.signerName");
        if request.intent.kind.gvr().qualified() != "clustertrustbundles.certificates.k8s.io" || signer.is_empty() {
            return Ok(());
        }
        // The garbage collector may let go of a bundle that it could not attest.
        if request.old.is_some_and(|old| differs_for_collection_only(new, old)) || may(request, "attest", signer).await
        {
            return Ok(());
        }
        Err(request.forbidden(Some(new), format!("user not permitted to attest for signerName {signer:?}")))
    }
}

/// Whether nothing changes but owners and finalizers, and of these something does.
fn differs_for_collection_only(new: &Value, old: &Value) -> bool {
    let rest = |object: &Value| {
        let mut rest = object.clone();
        if let Some(meta) = rest["metadata"].as_object_mut() {
            for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion", "generation"] {
                meta.remove(field);
            }
        }
        rest
    };
    let changed = |f: &str| !same(new.at("metadata").at(f), old.at("metadata").at(f));
    same(&rest(new), &rest(old)) && (changed("ownerReferences") || changed("finalizers"))
}

#[async_trait]
impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        let Some(new) = new.filter(|_| request.operation == Operation::Create && is_request(request, "")) else {
            return Ok(());
        };
        if new.text("spec.signerName") != CLIENT_SIGNER {
            return Ok(());
        }
        let pem = BASE64.decode(new.text("spec.request")).unwrap_or_default();
        let groups = requested_groups(&pem)
            .map_err(|e| request.forbidden(Some(new), format!("failed to parse CSR: {}", Chain(&e))))?;
        if groups.iter().any(|g| g == "system:masters") {
            let why = format!("use of {CLIENT_SIGNER} signer with system:masters group is not allowed");
            return Err(request.forbidden(Some(new), why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn letting_go_is_not_attesting() {
        let bundle = |owners: Value, text: &str| json!({"metadata": {"name": "a", "ownerReferences": owners}, "spec": {"signerName": "x/y", "trustBundle": text}});
        let owner = json!([{"uid": "u"}]);
        for (new, old, want) in [
            (bundle(json!([]), "a"), bundle(owner.clone(), "a"), true),
            (bundle(json!([]), "b"), bundle(owner.clone(), "a"), false),
            (bundle(owner.clone(), "a"), bundle(owner, "a"), false),
        ] {
            assert_eq!(differs_for_collection_only(&new, &old), want, "{new} {old}");
        }
    }
}
