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

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::{AsDer, EcPrivateKeyRfc5915Der, Pkcs8V1Der, PublicKeyX509Der};
    use aws_lc_rs::rsa::KeySize;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    fn pem(label: &str, der: &[u8]) -> Vec<u8> {
        let text = STANDARD.encode(der);
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")).into_bytes()
    }

    fn private(der: &[u8]) -> Vec<u8> {
        pem("PRIVATE KEY", der)
    }

    fn public(der: &PublicKeyX509Der<'_>) -> Vec<u8> {
        pem("PUBLIC KEY", der.as_ref())
    }

    /// Method, private key, public key.
    fn keys() -> Vec<(&'static str, Vec<u8>, Option<Vec<u8>>)> {
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let ed = Ed25519KeyPair::generate().unwrap();
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let old: EcPrivateKeyRfc5915Der<'_> = ec.private_key().as_der().unwrap();
        let rsa_private: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
        let rsa_public = public(&rsa.public_key().as_der().unwrap());
        let ec_public = public(&ec.public_key().as_der().unwrap());
        vec![
            ("ES256", private(ec.to_pkcs8v1().unwrap().as_ref()), Some(ec_public.clone())),
            ("ES256", pem("EC PRIVATE KEY", old.as_ref()), Some(ec_public)),
            ("ES384", private(p384.to_pkcs8v1().unwrap().as_ref()), Some(public(&p384.public_key().as_der().unwrap()))),
            ("EdDSA", private(ed.to_pkcs8v1().unwrap().as_ref()), Some(public(&ed.public_key().as_der().unwrap()))),
            ("RS256", private(rsa_private.as_ref()), Some(rsa_public.clone())),
            ("PS512", private(rsa_private.as_ref()), Some(rsa_public)),
            ("HS384", b"a secret of some length, as long as it takes".to_vec(), None),
        ]
    }

    fn read(method: &str, files: &[(&str, &std::path::Path)]) -> Result<Jwt, TokenError> {
        let mut options = HashMap::from([("sign-method", method)]);
        options.extend(files.iter().map(|(name, path)| (*name, path.to_str().unwrap())));
        JwtOptions::read(&options).map(Jwt::new)
    }

    #[test]
    fn every_kind_of_key_signs_and_checks() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let all = keys();
        for (method, private, public) in &all {
            std::fs::write(&a, private).unwrap();
            let alone = read(method, &[("priv-key", &a)]).unwrap();
            let token = alone.issue("alice", 7).unwrap();
            let who = alone.identify(&token).unwrap();
            assert_eq!((who.name.as_str(), who.revision), ("alice", 7), "{method}");
            let mut forged = token.clone().into_bytes();
            let at = token.rfind('.').unwrap() + 5;
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            assert!(alone.identify(std::str::from_utf8(&forged).unwrap()).is_none(), "{method}: forged");
            let Some(public) = public else { continue };
            std::fs::write(&b, public).unwrap();
            let checks = read(method, &[("pub-key", &b)]).unwrap();
            assert!(checks.issue("alice", 7).is_none(), "{method}: it has no key to sign with");
            assert!(checks.identify(&token).is_some(), "{method}");
            assert!(read(method, &[("priv-key", &a), ("pub-key", &b)]).is_ok(), "{method}");
        }
        // Keys that do not belong together, and none.
        std::fs::write(&a, &all[0].1).unwrap();
        std::fs::write(
            &b,
            public(&EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap().public_key().as_der().unwrap()),
        )
        .unwrap();
        assert!(matches!(read("ES256", &[("priv-key", &a), ("pub-key", &b)]), Err(TokenError::Mismatch)));
        assert!(matches!(read("RS256", &[("priv-key", &a)]), Err(TokenError::Key { .. })));
        assert!(matches!(read("RS256", &[]), Err(TokenError::MissingKey(_))));
        assert!(matches!(read("ES512", &[("priv-key", &a)]), Err(TokenError::Method(_))));
    }

    #[test]
    fn a_token_of_another_method_is_none() {
        // What was public becomes no secret: a token that says HS256 is not checked with an RSA key.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let rsa = keys().into_iter().find(|(m, ..)| *m == "RS256").unwrap();
        let public_key = rsa.2.unwrap();
        std::fs::write(&path, &public_key).unwrap();
        let server = read("RS256", &[("pub-key", &path)]).unwrap();
        let forger = read("HS256", &[("priv-key", &path)]).unwrap();
        assert!(server.identify(&forger.issue("root", 1_000).unwrap()).is_none());
    }
}
