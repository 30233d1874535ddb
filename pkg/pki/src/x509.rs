//! What certificates and public keys say, for those who check them, and the blocks of PEM texts.

use crate::signing::Names;
use aws_lc_rs::signature as by;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

const ED25519: &str = "1.3.101.112";
const CURVES: [(&str, &str); 4] =
    [("1.3.132.0.33", "P-224"), ("1.2.840.10045.3.1.7", "P-256"), ("1.3.132.0.34", "P-384"), ("1.3.132.0.35", "P-521")];

/// A block of a PEM text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub label: String,
    /// It begins with headers (RFC 1421).
    pub has_headers: bool,
    pub der: Vec<u8>,
}

/// The blocks of a PEM text; what is none is passed over.
pub fn blocks(pem: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = pem.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|l| l.strip_suffix("-----")) else { continue };
        let end = format!("-----END {label}-----");
        let (mut text, mut has_headers, mut rest) = (String::new(), false, lines.clone());
        let closed = rest.by_ref().any(|line| {
            match line.contains(':') {
                true => has_headers = true,
                false if line != end => text.push_str(line),
                false => {}
            }
            line == end
        });
        // One that is not whole may hide others behind its beginning.
        if let (true, Ok(der)) = (closed, STANDARD.decode(&text)) {
            found.push(Block { label: label.to_owned(), has_headers, der });
            lines = rest;
        }
    }
    found
}

/// A certificate, as far as it is looked at.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub is_ca: bool,
    pub names: Names,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
}

impl Certificate {
    /// `None`: it is none.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        let mut names = Names::default();
        for extension in certificate.extensions() {
            if let ParsedExtension::SubjectAlternativeName(all) = extension.parsed_extension() {
                all.general_names.iter().try_for_each(|name| names.add(name)).ok()?;
            }
        }
        rest.is_empty().then(|| Certificate {
            is_ca: certificate.is_ca(),
            names,
            public_key: certificate.public_key().raw.to_vec(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }
}

/// What sort of key a public key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Ed25519,
    /// The curve's name, if it has a known one.
    Elliptic(Option<&'static str>),
    /// Bits of the modulus.
    Rsa(usize),
    Other,
}

impl Key {
    /// `spki`: SubjectPublicKeyInfo, DER. `None`: it cannot be read.
    pub fn of(spki: &[u8]) -> Option<Self> {
        let (rest, info) = SubjectPublicKeyInfo::from_der(spki).ok()?;
        if !rest.is_empty() {
            return None;
        }
        Some(match info.parsed().ok()? {
            PublicKey::RSA(key) => Key::Rsa(key.key_size()),
            PublicKey::EC(_) => {
                let oid = info.algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string();
                Key::Elliptic(CURVES.iter().find(|(of, _)| *of == oid).map(|(_, name)| *name))
            }
            _ if info.algorithm.algorithm.to_id_string() == ED25519 => Key::Ed25519,
            _ => Key::Other,
        })
    }
}

/// Whether `signature` is of the key and about `message`: plain for Ed25519; ECDSA and RSA-PSS with SHA-256.
pub fn is_signed(spki: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let algorithm: &'static dyn by::VerificationAlgorithm = match Key::of(spki) {
        Some(Key::Ed25519) => &by::ED25519,
        Some(Key::Elliptic(Some("P-256"))) => &by::ECDSA_P256_SHA256_ASN1,
        Some(Key::Elliptic(Some("P-384"))) => &by::ECDSA_P384_SHA256_ASN1,
        Some(Key::Elliptic(Some("P-521"))) => &by::ECDSA_P521_SHA256_ASN1,
        Some(Key::Rsa(_)) => &by::RSA_PSS_2048_8192_SHA256,
        _ => return false,
    };
    let Ok((_, info)) = SubjectPublicKeyInfo::from_der(spki) else { return false };
    by::UnparsedPublicKey::new(algorithm, &info.subject_public_key.data).verify(message, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::key_and_request;
    use crate::signing::CertificateRequest;

    #[test]
    fn keys_are_told_apart() {
        for (kind, want) in [
            ("ED25519", Key::Ed25519),
            ("ECDSAP256", Key::Elliptic(Some("P-256"))),
            ("ECDSAP521", Key::Elliptic(Some("P-521"))),
            ("RSA3072", Key::Rsa(3072)),
        ] {
            let request = CertificateRequest::from_der(&key_and_request(kind).unwrap().request).unwrap();
            assert_eq!(Key::of(request.public_key()), Some(want), "{kind}");
        }
        assert_eq!(Key::of(b"none"), None);
    }

    #[test]
    fn who_signed_has_the_key() {
        use rcgen::{PublicKeyData, SigningKey};
        for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P256_SHA256] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let (spki, signature) = (key.subject_public_key_info(), key.sign(b"words").unwrap());
            assert!(is_signed(&spki, b"words", &signature) && !is_signed(&spki, b"other", &signature));
        }
    }

    #[test]
    fn blocks_of_pem() {
        let text = "words\n-----BEGIN A-----\nAAAA\n-----END A-----\n-----BEGIN B-----\nx: y\n\nAAAA\n-----END B-----\n\
            -----BEGIN C-----\n-----BEGIN D-----\nAQ==\n-----END D-----\n";
        let found: Vec<_> = blocks(text).into_iter().map(|b| (b.label, b.has_headers, b.der.len())).collect();
        assert_eq!(found, [("A".to_owned(), false, 3), ("B".to_owned(), true, 3), ("D".to_owned(), false, 1)]);
    }
}
