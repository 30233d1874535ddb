//! Whether who made a request has the key that it is about: its signature.

use super::request::CertificateRequest;
use crate::PkiError;
use aws_lc_rs::signature as by;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::signature_algorithm::SignatureAlgorithm;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const P521: &str = "1.3.132.0.35";

impl CertificateRequest {
    /// Whether it is signed with the key that it is about.
    pub fn prove(&self) -> Result<(), PkiError> {
        let (_, request) =
            X509CertificationRequest::from_der(&self.der).map_err(|e| PkiError::Request(e.to_string()))?;
        let info = &request.certification_request_info;
        let algorithm = algorithm(&request.signature_algorithm, &info.subject_pki).ok_or_else(|| {
            PkiError::Request(format!("signatures of kind {} are not known", request.signature_algorithm.algorithm))
        })?;
        by::UnparsedPublicKey::new(algorithm, &info.subject_pki.subject_public_key.data)
            .verify(info.raw, &request.signature_value.data)
            .map_err(|_| PkiError::Proof)
    }
}

fn algorithm(
    signature: &AlgorithmIdentifier<'_>,
    key: &SubjectPublicKeyInfo<'_>,
) -> Option<&'static dyn by::VerificationAlgorithm> {
    let curve = || Some(key.algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string());
    Some(match signature.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.5" => &by::RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY,
        // Upstream takes keys from 1024 bits on. Who signs a certificate for one has been asked to.
        "1.2.840.113549.1.1.11" => &by::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
        "1.2.840.113549.1.1.12" => &by::RSA_PKCS1_2048_8192_SHA384,
        "1.2.840.113549.1.1.13" => &by::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
        "1.2.840.113549.1.1.10" => of_salted_rsa(signature)?,
        "1.2.840.10045.4.3.2" => match curve()?.as_str() {
            P256 => &by::ECDSA_P256_SHA256_ASN1,
            P384 => &by::ECDSA_P384_SHA256_ASN1,
            P521 => &by::ECDSA_P521_SHA256_ASN1,
            _ => return None,
        },
        "1.2.840.10045.4.3.3" => match curve()?.as_str() {
            P256 => &by::ECDSA_P256_SHA384_ASN1,
            P384 => &by::ECDSA_P384_SHA384_ASN1,
            P521 => &by::ECDSA_P521_SHA384_ASN1,
            _ => return None,
        },
        "1.2.840.10045.4.3.4" => match curve()?.as_str() {
            P256 => &by::ECDSA_P256_SHA512_ASN1,
            P384 => &by::ECDSA_P384_SHA512_ASN1,
            P521 => &by::ECDSA_P521_SHA512_ASN1,
            _ => return None,
        },
        "1.3.101.112" => &by::ED25519,
        _ => return None,
    })
}

fn of_salted_rsa(signature: &AlgorithmIdentifier<'_>) -> Option<&'static dyn by::VerificationAlgorithm> {
    let SignatureAlgorithm::RSASSA_PSS(salted) = SignatureAlgorithm::try_from(signature).ok()? else { return None };
    Some(match salted.hash_algorithm_oid().to_id_string().as_str() {
        "2.16.840.1.101.3.4.2.1" => &by::RSA_PSS_2048_8192_SHA256,
        "2.16.840.1.101.3.4.2.2" => &by::RSA_PSS_2048_8192_SHA384,
        "2.16.840.1.101.3.4.2.3" => &by::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}
