//! Views of the certificates API: requests for certificates, and what signers are to be trusted by.

use super::*;

views! {
    CertificateSigningRequest { metadata: Meta, spec: SigningRequestSpec, status: SigningRequestStatus }
    SigningRequestSpec {
        /// PEM in base64.
        request: String,
        signer_name: String,
        usages: Vec<String>,
        expiration_seconds: Option<i32>,
        username: String,
        uid: String,
        groups: Vec<String>,
        extra: BTreeMap<String, Vec<String>>,
    }
    SigningRequestStatus {
        /// Whole, so that one can be added.
        conditions: Vec<Value>,
        /// PEM in base64.
        certificate: String,
    }

    ClusterTrustBundle { metadata: Meta, spec: TrustBundleSpec }
    TrustBundleSpec { signer_name: String, trust_bundle: String }
}

objects! {
    CertificateSigningRequest = cluster("certificates.k8s.io", "v1", "certificatesigningrequests");
    ClusterTrustBundle = cluster("certificates.k8s.io", "v1", "clustertrustbundles");
}
