//! The keys behind the tokens: RSA (RS256) and the P-256 and P-384 curves (ES256, ES384), from PEM files.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the key file is no PEM")]
    Pem(#[source] x509_parser::error::PEMError),
    #[error("the key file has no key")]
    NoPublicKey,
    #[error("the certificate cannot be read")]
    Certificate(#[source] x509_parser::asn1_rs::Err<x509_parser::error::X509Error>),
    #[error("the public key cannot be read")]
    Malformed(#[source] x509_parser::asn1_rs::Err<x509_parser::error::X509Error>),
    #[error("the key is neither RSA nor on the curves P-256 and P-384")]
    Unsupported,
    #[error("the private key cannot be read")]
    Private(#[source] jsonwebtoken::errors::Error),
    #[error("none of the public keys belongs to the signing key: add its public half to the key files")]
    NoMatch,
}

/// A key that verifies.
pub struct PublicKey {
    /// Unpadded base64url of the SHA-256 of its DER form, as upstream derives it.
    pub id: String,
    pub algorithm: Algorithm,
    pub key: DecodingKey,
    /// RFC 7517.
    pub jwk: Value,
}

impl PublicKey {
    /// Every key of a PEM file: of private keys and certificates their public halves.
    pub fn from_pem(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        for block in x509_parser::pem::Pem::iter_from_buffer(pem) {
            let block = block.map_err(KeyError::Pem)?;
            match block.label.as_str() {
                "PUBLIC KEY" => keys.push(Self::from_der(&block.contents)?),
                "CERTIFICATE" => {
                    let certificate = block.parse_x509().map_err(KeyError::Certificate)?;
                    keys.push(Self::from_der(certificate.public_key().raw)?);
                }
                "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" => {
                    keys.push(Self::from_der(&public_half(&block.contents).ok_or(KeyError::Unsupported)?)?);
                }
                _ => {}
            }
        }
        if keys.is_empty() { Err(KeyError::NoPublicKey) } else { Ok(keys) }
    }

    /// From a SubjectPublicKeyInfo (RFC 5280).
    fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(der));
        let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(KeyError::Malformed)?;
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let unsupported = |_| KeyError::Unsupported;
        match info.parsed().map_err(|_| KeyError::Unsupported)? {
            Parsed::RSA(rsa) => {
                let bare = |b: &[u8]| b.iter().copied().skip_while(|x| *x == 0).collect::<Vec<u8>>();
                let (n, e) = (bare(rsa.modulus), bare(rsa.exponent));
                let key = DecodingKey::from_rsa_raw_components(&n, &e);
                let jwk = json!({ "use": "sig", "kty": "RSA", "kid": id, "alg": "RS256", "n": b64(&n), "e": b64(&e) });
                Ok(PublicKey { id, algorithm: Algorithm::RS256, key, jwk })
            }
            Parsed::EC(point) => {
                // An uncompressed point: 4, then both coordinates (SEC 1, 2.3.3).
                let data = point.data();
                let (algorithm, name, curve, size) = match data.len() {
                    65 => (Algorithm::ES256, "ES256", "P-256", 32),
                    97 => (Algorithm::ES384, "ES384", "P-384", 48),
                    _ => return Err(KeyError::Unsupported),
                };
                if data[0] != 4 {
                    return Err(KeyError::Unsupported);
                }
                let (x, y) = (b64(&data[1..=size]), b64(&data[1 + size..]));
                let key = DecodingKey::from_ec_components(&x, &y).map_err(unsupported)?;
                let jwk = json!({ "use": "sig", "kty": "EC", "kid": id, "crv": curve, "alg": name, "x": x, "y": y });
                Ok(PublicKey { id, algorithm, key, jwk })
            }
            _ => Err(KeyError::Unsupported),
        }
    }

    pub fn algorithm_name(&self) -> &str {
        self.jwk["alg"].as_str().unwrap_or_default()
    }
}

/// A private key on one of the curves, as PKCS#8 or SEC 1 has it.
fn elliptic(der: &[u8]) -> Option<EcdsaKeyPair> {
    let curves = [&ECDSA_P256_SHA256_FIXED_SIGNING, &ECDSA_P384_SHA384_FIXED_SIGNING];
    curves.into_iter().find_map(|curve| EcdsaKeyPair::from_private_key_der(curve, der).ok())
}

/// The SubjectPublicKeyInfo of a private key.
fn public_half(der: &[u8]) -> Option<Vec<u8>> {
    let info = |key: Result<PublicKeyX509Der<'_>, Unspecified>| key.ok().map(|info| info.as_ref().to_vec());
    if let Some(pair) = elliptic(der) {
        return info(pair.public_key().as_der());
    }
    let pair = RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der)).ok()?;
    info(pair.public_key().as_der())
}

/// The private key and which of the public keys is its own: found by signing something and verifying it.
pub(crate) fn signer<'a>(pem: &[u8], keys: &'a [PublicKey]) -> Result<(EncodingKey, &'a PublicKey), KeyError> {
    let block = x509_parser::pem::Pem::iter_from_buffer(pem).find_map(Result::ok);
    let pkcs8 = block.and_then(|b| elliptic(&b.contents)).and_then(|pair| pair.to_pkcs8v1().ok());
    let signer = match pkcs8 {
        Some(pkcs8) => EncodingKey::from_ec_der(pkcs8.as_ref()),
        None => EncodingKey::from_rsa_pem(pem).map_err(KeyError::Private)?,
    };
    let probe = b"whose key is this";
    for key in keys {
        if let Ok(signature) = jsonwebtoken::crypto::sign(probe, &signer, key.algorithm)
            && jsonwebtoken::crypto::verify(&signature, probe, &key.key, key.algorithm).unwrap_or(false)
        {
            return Ok((signer, key));
        }
    }
    Err(KeyError::NoMatch)
}
