//! Requests for certificates (CertificateSigningRequest): those of kubelets are approved by themselves ([`approval`]), approved
//! ones are signed ([`signing`]), and old ones are cleared away ([`cleanup`]).
//!
//! Invariant: a condition or a certificate is written only over the revision that it was decided from.

pub mod approval;
pub mod cleanup;
mod rules;
pub mod signing;

use crate::op::Op;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use isopod_client::views::CertificateSigningRequest;
use isopod_pki::PkiError;
use isopod_pki::signing::CertificateRequest;
use serde_json::Value;

const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";

/// Signs certificates of the API server's clients.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signs certificates of kubelets as clients of the API server.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs what kubelets show on their HTTPS ports.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Signs whatever was approved. Requests to it are from before `certificates.k8s.io/v1`.
pub const LEGACY: &str = "kubernetes.io/legacy-unknown";

fn conditions<'a>(csr: &'a CertificateSigningRequest, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    csr.status.conditions.iter().filter(move |c| c["type"] == kind)
}

fn has(csr: &CertificateSigningRequest, kind: &str) -> bool {
    conditions(csr, kind).next().is_some()
}

fn parsed(csr: &CertificateSigningRequest) -> Result<CertificateRequest, PkiError> {
    CertificateRequest::from_pem(&BASE64.decode(&csr.spec.request).unwrap_or_default())
}

/// Writes `change` into the status, by a subresource.
fn change(csr: &CertificateSigningRequest, subresource: &'static str, change: Value) -> Op {
    let m = &csr.metadata;
    Op::modify(CertificateSigningRequest::resource(), "", &m.name, change)
        .on_subresource(subresource)
        .if_uid(&m.uid)
        .if_unchanged(&m.resource_version)
}

fn with_condition(csr: &CertificateSigningRequest, condition: Value) -> Vec<Value> {
    csr.status.conditions.iter().cloned().chain([condition]).collect()
}
