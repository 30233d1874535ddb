//! The keys behind the tokens: RSA (RS256) and the P-256 and P-384 curves (ES256, ES384), from PEM files.

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
    #[error("the key file has no PUBLIC KEY block")]
    NoPublicKey,
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
    /// Every `PUBLIC KEY` block of a PEM file.
    pub fn from_pem(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        for block in x509_parser::pem::Pem::iter_from_buffer(pem) {
            let block = block.map_err(KeyError::Pem)?;
            if block.label == "PUBLIC KEY" {
                keys.push(Self::from_der(&block.contents)?);
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

/// The private key and which of the public keys is its own: found by signing something and verifying it.
pub(crate) fn signer<'a>(pem: &[u8], keys: &'a [PublicKey]) -> Result<(EncodingKey, &'a PublicKey), KeyError> {
    let elliptic = EncodingKey::from_ec_pem(pem);
    let signer = match elliptic {
        Ok(key) => key,
        Err(_) => EncodingKey::from_rsa_pem(pem).map_err(KeyError::Private)?,
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
