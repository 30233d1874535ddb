//! `golden` holds requests of openssl, and what Go's `x509.CreateCertificate`, called as kube-controller-manager calls it, makes
//! of them.

use super::*;
use crate::CertAuthority;
use rcgen::{CertificateParams, DnType};
use std::fs;

/// 2026-01-01T00:00:00Z
const NOW: i64 = 1_767_225_600;

fn request(name: &str) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap().into_bytes()
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|t| (*t).to_owned()).collect()
}

/// An authority that lives for ten years from today on.
fn authority(dir: &Path) -> AuthorityFiles {
    CertAuthority::load_or_create(dir, "ca").unwrap();
    AuthorityFiles { certificate: dir.join("ca.crt"), key: dir.join("ca.key") }
}

#[test]
fn short_keys_are_proven_as_upstream_does() {
    for csr in [include_str!("golden/short-sha256.csr"), include_str!("golden/short-sha512.csr")] {
        CertificateRequest::from_pem(csr.as_bytes()).unwrap().prove().unwrap();
    }
}

#[test]
fn certificates_are_those_of_upstream() {
    let all: Vec<String> = usages::PURPOSES.iter().map(|(name, _)| (*name).to_owned()).collect();
    let bits = ["digital signature", "content commitment", "key encipherment", "data encipherment", "key agreement"];
    let further = ["cert sign", "crl sign", "encipher only", "decipher only", "signing"];
    let every: Vec<String> = all.into_iter().chain(texts(&bits)).chain(texts(&further)).collect();
    let serving = texts(&["key encipherment", "server auth", "digital signature"]);
    let years = 30 * 365 * 86_400;
    for (csr, crt, usages, lifetime, key) in [
        (
            include_str!("golden/named.csr"),
            include_str!("golden/named.crt"),
            every,
            3600,
            &rcgen::PKCS_ECDSA_P256_SHA256,
        ),
        (
            include_str!("golden/unnamed.csr"),
            include_str!("golden/unnamed.crt"),
            serving,
            years,
            &rcgen::PKCS_RSA_SHA256,
        ),
    ] {
        let request = CertificateRequest::from_pem(csr.as_bytes()).unwrap();
        request.prove().unwrap();
        let der = certificates(crt).remove(0);
        let (_, wanted) = X509Certificate::from_der(&der).unwrap();
        let key = KeyPair::generate_for(key).unwrap();
        let signer = Signer {
            algorithm: Algorithm::of(&key).unwrap(),
            subject: wanted.issuer().as_raw().to_vec(),
            key_id: None,
            not_after: 4_102_444_800,
            key,
        };
        let grant = Grant { usages: &usages, lifetime: Duration::from_secs(lifetime), now: NOW };
        let (not_before, not_after) = signer.validity(grant).unwrap();
        let id = wanted.iter_extensions().find_map(|e| match e.parsed_extension() {
            x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref(),
            _ => None,
        });
        let mut serial = [0; 16];
        let raw = wanted.raw_serial();
        let raw = &raw[raw.len().saturating_sub(16)..];
        serial[16 - raw.len()..].copy_from_slice(raw);
        let made = Certificate {
            serial,
            algorithm: signer.algorithm,
            issuer: &signer.subject,
            not_before,
            not_after,
            subject: &request.subject,
            public_key: &request.public_key,
            usages: &Usages::of(&usages).unwrap(),
            authority_key_id: id.map(|id| id.0),
            names: &request.names,
        };
        let (made, wanted) = (made.encode(), wanted.tbs_certificate.as_ref());
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&made), hex(wanted));
    }
}

#[test]
fn what_was_signed_is_of_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let files = authority(dir.path());
    let request = CertificateRequest::from_pem(&request("jane")).unwrap();
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let usages = texts(&["client auth"]);
    let grant = Grant { usages: &usages, lifetime: Duration::from_secs(86_400), now };
    let pem = files.load().unwrap().sign(&request, grant).unwrap();
    let (ca, leaf) = (certificates(&fs::read_to_string(&files.certificate).unwrap()), certificates(&pem));
    let (_, ca) = X509Certificate::from_der(&ca[0]).unwrap();
    let (_, leaf) = X509Certificate::from_der(&leaf[0]).unwrap();
    assert_eq!(leaf.issuer(), ca.subject());
    let key = &ca.public_key().subject_public_key.data;
    aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1, key)
        .verify(leaf.tbs_certificate.as_ref(), &leaf.signature_value.data)
        .unwrap();
    assert_eq!(leaf.validity().not_before.timestamp(), now - 300);
    assert_eq!(end_of_certificate(&pem), Some(now + 86_400 - 300));
}

#[test]
fn nothing_outlives_its_authority() {
    let dir = tempfile::tempdir().unwrap();
    let files = authority(dir.path());
    let (signer, request) = (files.load().unwrap(), CertificateRequest::from_pem(&request("jane")).unwrap());
    let end = end_of_certificate(&fs::read_to_string(&files.certificate).unwrap()).unwrap();
    let usages = texts(&["client auth"]);
    let at = |now| Grant { usages: &usages, lifetime: Duration::from_secs(3600), now };
    assert_eq!(end_of_certificate(&signer.sign(&request, at(end - 60)).unwrap()), Some(end));
    assert!(matches!(signer.sign(&request, at(end)), Err(PkiError::Expired)));
}

#[test]
fn who_has_not_the_key_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let signer = authority(dir.path()).load().unwrap();
    let mut forged = CertificateRequest::from_pem(&request("jane")).unwrap();
    let at = forged.der.windows(4).position(|w| w == b"jane").unwrap();
    forged.der[at] = b'J';
    let usages = texts(&["client auth"]);
    let grant = Grant { usages: &usages, lifetime: Duration::from_secs(3600), now: NOW };
    assert!(matches!(signer.sign(&forged, grant), Err(PkiError::Proof)));
    let usages = texts(&["client auth", "magic"]);
    let request = CertificateRequest::from_pem(&request("jane")).unwrap();
    let said = signer.sign(&request, Grant { usages: &usages, ..grant }).unwrap_err().to_string();
    assert!(said.contains(r#"unrecognized usage values: ["magic"]"#), "{said}");
}

#[test]
fn requests_that_cannot_be_read() {
    let whole = String::from_utf8(request("jane")).unwrap();
    let block = |label: &str, text: &str| format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
    for (pem, want) in [
        (String::new(), "PEM block type must be CERTIFICATE REQUEST"),
        (whole.replace("CERTIFICATE REQUEST", "CERTIFICATE"), "PEM block type must be CERTIFICATE REQUEST"),
        (block("CERTIFICATE REQUEST", "AAAA"), "cannot be read"),
    ] {
        let said = CertificateRequest::from_pem(pem.as_bytes()).unwrap_err().to_string();
        assert!(said.contains(want), "{pem}: {said}");
    }
}

#[test]
fn files_that_cannot_sign_say_why() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = authority(dir.path());
    let foreign = AuthorityFiles { key: authority(other.path()).key, ..files.clone() };
    let absent = AuthorityFiles { key: dir.path().join("absent"), ..files.clone() };
    let twice = dir.path().join("twice.crt");
    fs::write(&twice, fs::read_to_string(&files.certificate).unwrap().repeat(2)).unwrap();
    let twice = AuthorityFiles { certificate: twice, ..files.clone() };
    let keyless = AuthorityFiles { key: files.certificate.clone(), ..files };
    for (files, want) in [
        (foreign, "it is not the key of"),
        (absent, "cannot read"),
        (twice, "expected 1 certificate, found 2"),
        (keyless, "it holds no private key of a known kind"),
    ] {
        let said = files.load().err().unwrap().to_string();
        assert!(said.contains(want), "{said}");
    }
}

/// As `openssl ecparam -genkey` and `openssl genrsa -traditional` write them.
#[test]
fn keys_of_older_forms_are_read() {
    for pem in [include_str!("golden/sec1.key"), include_str!("golden/pkcs1.key")] {
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert!(Algorithm::of(&KeyPair::try_from(&key).unwrap()).is_some(), "{pem}");
    }
}
