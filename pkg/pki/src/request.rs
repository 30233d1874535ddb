//! New keys with the requests that prove their possession (PKCS#10), and certificates as PEM texts.

use crate::PkiError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// What of PEM's base64 stands on one line (RFC 7468, section 2).
const LINE: usize = 64;

/// A private key in PEM (PKCS#8), and a DER request for a certificate that names nobody: the signer knows whom it is for.
pub struct KeyRequest {
    pub key_pem: String,
    pub request: Vec<u8>,
}

/// Makes a key of one of KEP-4317's kinds (`ECDSAP256`, `RSA3072` …). A large RSA key takes seconds.
pub fn key_and_request(kind: &str) -> Result<KeyRequest, PkiError> {
    let sign = |source| PkiError::Sign { name: format!("a {kind} key"), source };
    let key = match kind {
        "RSA3072" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072),
        "RSA4096" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_4096),
        "ECDSAP256" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        "ECDSAP384" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        "ECDSAP521" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
        "ED25519" => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        _ => return Err(PkiError::KeyType(kind.to_owned())),
    };
    let key = key.map_err(sign)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(sign)?;
    Ok(KeyRequest { key_pem: key.serialize_pem(), request: request.der().to_vec() })
}

/// The certificates of a PEM text, DER, without what stands between them.
pub fn certificates(pem: &str) -> Vec<Vec<u8>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).map(|c| c.to_vec()).collect()
}

pub fn certificate_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, X509CertificationRequest};

    #[test]
    fn requests_prove_possession_of_their_keys() {
        for kind in ["ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072"] {
            let made = key_and_request(kind).unwrap();
            assert!(made.key_pem.starts_with("-----BEGIN PRIVATE KEY-----"), "{kind}");
            let (_, request) = X509CertificationRequest::from_der(&made.request).unwrap();
            assert_eq!(request.certification_request_info.subject.iter().count(), 0, "{kind}");
            let key = KeyPair::from_pem(&made.key_pem).unwrap();
            use rcgen::PublicKeyData;
            assert_eq!(request.certification_request_info.subject_pki.raw, key.subject_public_key_info(), "{kind}");
        }
        assert!(key_and_request("DSA").is_err());
    }

    #[test]
    fn certificates_come_out_alone() {
        let key = KeyPair::generate().unwrap();
        let made = CertificateParams::default().self_signed(&key).unwrap();
        let text = format!("words\n{}more\n{}", made.pem().replace('\n', "\r\n"), made.pem());
        let found = certificates(&text);
        assert_eq!(found, [made.der().to_vec(), made.der().to_vec()]);
        assert_eq!(certificates(&certificate_pem(&found[0])), found[..1]);
        assert!(certificate_pem(&found[0]).lines().all(|l| l.len() <= LINE));
    }
}
