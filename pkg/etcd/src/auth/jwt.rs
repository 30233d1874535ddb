//! Signed tokens, with etcd's claims: who, at which revision of users and roles, until when.

use super::Identity;
use super::tokens::TokenError;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;

/// Two servers whose clocks differ less than this are not known to etcd: none.
const LEEWAY: u64 = 0;
const TTL: Duration = Duration::from_secs(300);

#[derive(Clone)]
pub struct JwtOptions {
    algorithm: Algorithm,
    /// `None`: tokens are made elsewhere and only checked here.
    signer: Option<EncodingKey>,
    verifier: DecodingKey,
    ttl: Duration,
}

impl std::fmt::Debug for JwtOptions {
    /// Without keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtOptions").field("algorithm", &self.algorithm).field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

/// A key's file.
struct Source {
    file: String,
    method: String,
    bytes: Vec<u8>,
}

impl Source {
    fn read(options: &HashMap<&str, &str>, name: &str, method: &str) -> Result<Option<Self>, TokenError> {
        let Some(file) = options.get(name).filter(|f| !f.is_empty()) else { return Ok(None) };
        let file = (*file).to_owned();
        match std::fs::read(&file) {
            Ok(bytes) => Ok(Some(Source { file, method: method.to_owned(), bytes })),
            Err(source) => Err(TokenError::Read { file, source }),
        }
    }

    fn wrong(&self) -> TokenError {
        TokenError::Key { file: self.file.clone(), method: self.method.clone() }
    }
}

impl JwtOptions {
    pub(super) fn read(options: &HashMap<&str, &str>) -> Result<Self, TokenError> {
        for name in options.keys().filter(|n| !["sign-method", "pub-key", "priv-key", "ttl"].contains(*n)) {
            tracing::warn!(option = name, "--auth-token: the option is not known and does nothing");
        }
        let method = *options.get("sign-method").unwrap_or(&"");
        let algorithm: Algorithm = method.parse().map_err(|_| TokenError::Method(method.to_owned()))?;
        let ttl = match options.get("ttl").filter(|t| !t.is_empty()) {
            Some(text) => duration(text).ok_or_else(|| TokenError::Ttl((*text).to_owned()))?,
            None => TTL,
        };
        let private = Source::read(options, "priv-key", method)?;
        let public = Source::read(options, "pub-key", method)?;
        let missing = || TokenError::MissingKey(method.to_owned());
        let (signer, verifier) = match (algorithm, &private, &public) {
            (Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512, Some(key), _) => {
                (Some(EncodingKey::from_secret(&key.bytes)), DecodingKey::from_secret(&key.bytes))
            }
            (Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512, None, _) | (_, None, None) => {
                return Err(missing());
            }
            (_, None, Some(public)) => (None, verifier(algorithm, public)?),
            (_, Some(private), None) => {
                let (signer, verifier) = key_pair(algorithm, &private.bytes).ok_or_else(|| private.wrong())?;
                (Some(signer), verifier)
            }
            (_, Some(private), Some(public)) => {
                let (signer, _) = key_pair(algorithm, &private.bytes).ok_or_else(|| private.wrong())?;
                let verifier = verifier(algorithm, public)?;
                if !belong_together(algorithm, &signer, &verifier) {
                    return Err(TokenError::Mismatch);
                }
                (Some(signer), verifier)
            }
        };
        Ok(JwtOptions { algorithm, signer, verifier, ttl })
    }
}

/// As Go writes one: `1h30m`, `300s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let n: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let one = match &rest[..unit] {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return None,
        };
        total = total.checked_add(one.checked_mul(n)?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}

fn verifier(algorithm: Algorithm, public: &Source) -> Result<DecodingKey, TokenError> {
    let key = match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => DecodingKey::from_ec_pem(&public.bytes),
        Algorithm::EdDSA => DecodingKey::from_ed_pem(&public.bytes),
        _ => DecodingKey::from_rsa_pem(&public.bytes),
    };
    key.map_err(|_| public.wrong())
}

/// The private key and the public one that follows from it.
fn key_pair(algorithm: Algorithm, pem: &[u8]) -> Option<(EncodingKey, DecodingKey)> {
    let der = PrivateKeyDer::from_pem_slice(pem).ok()?;
    match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => {
            let curve = match algorithm {
                Algorithm::ES256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
                _ => &ECDSA_P384_SHA384_FIXED_SIGNING,
            };
            let pair = EcdsaKeyPair::from_private_key_der(curve, der.secret_der()).ok()?;
            let pkcs8 = pair.to_pkcs8v1().ok()?;
            let public = DecodingKey::from_ec_der(pair.public_key().as_ref());
            Some((EncodingKey::from_ec_der(pkcs8.as_ref()), public))
        }
        Algorithm::EdDSA => {
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_der()).ok()?;
            let public = DecodingKey::from_ed_der(pair.public_key().as_ref());
            Some((EncodingKey::from_ed_der(der.secret_der()), public))
        }
        _ => {
            let signer = EncodingKey::from_rsa_pem(pem).ok()?;
            let pair = RsaKeyPair::from_der(signer.as_bytes()).ok()?;
            let public = DecodingKey::from_rsa_der(pair.public_key().as_ref());
            Some((signer, public))
        }
    }
}

fn belong_together(algorithm: Algorithm, signer: &EncodingKey, verifier: &DecodingKey) -> bool {
    let probe = b"whose key is this";
    let signed = jsonwebtoken::crypto::sign(probe, signer, algorithm);
    signed.is_ok_and(|s| jsonwebtoken::crypto::verify(&s, probe, verifier, algorithm).unwrap_or(false))
}

#[derive(Serialize)]
struct Claims<'a> {
    username: &'a str,
    revision: u64,
    exp: u64,
}

#[derive(Deserialize)]
struct Shown {
    username: String,
    /// Any JSON number: who makes tokens elsewhere may write `3.0`.
    revision: f64,
}

pub(crate) struct Jwt {
    options: JwtOptions,
    validation: Validation,
}

impl Jwt {
    pub fn new(options: JwtOptions) -> Self {
        let mut validation = Validation::new(options.algorithm);
        validation.leeway = LEEWAY;
        // Whom else a token is for, and whether it ends, is the business of who made it; etcd asks for neither.
        validation.required_spec_claims.clear();
        validation.validate_aud = false;
        validation.validate_nbf = true;
        Jwt { options, validation }
    }

    pub fn issue(&self, user: &str, revision: u64) -> Option<String> {
        let signer = self.options.signer.as_ref()?;
        let exp = jsonwebtoken::get_current_timestamp() + self.options.ttl.as_secs();
        let claims = Claims { username: user, revision, exp };
        jsonwebtoken::encode(&Header::new(self.options.algorithm), &claims, signer).ok()
    }

    pub fn identify(&self, token: &str) -> Option<Identity> {
        let shown = jsonwebtoken::decode::<Shown>(token, &self.options.verifier, &self.validation).ok()?.claims;
        Some(Identity { name: shown.username, revision: shown.revision as u64 })
    }
}
