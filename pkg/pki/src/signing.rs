//! Certificates for those who ask for one with a request of their own (PKCS#10), as kube-controller-manager's signers make
//! them: subject, names and public key are the request's, uses and life are the signer's; nothing else is taken over.
//!
//! Invariants: nothing is signed for who has not proved to have the key, by an authority that is over, or beyond its end.

mod encode;
mod proof;
mod request;
mod usages;

pub use request::{COMMON_NAME, CertificateRequest, Names, ORGANIZATION, Subject};

use crate::{PkiError, files, request::certificates};
use encode::{Algorithm, Certificate};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use std::path::{Path, PathBuf};
use std::time::Duration;
use usages::Usages;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Certificates are valid since a little earlier: clocks differ.
const BACKDATE: i64 = 5 * 60;
/// Shorter lives are not cut by what they begin earlier.
const SHORT: i64 = 8 * 3600;

/// Where an authority that signs requests lies, PEM. The files are read for each certificate, so that they may be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What a signer grants.
#[derive(Clone, Copy, Debug)]
pub struct Grant<'a> {
    /// As in `spec.usages` of a CertificateSigningRequest.
    pub usages: &'a [String],
    pub lifetime: Duration,
    /// Seconds since 1970.
    pub now: i64,
}

/// An authority, ready to sign.
pub struct Signer {
    key: KeyPair,
    algorithm: Algorithm,
    /// Its subject, DER.
    subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    /// Seconds since 1970.
    not_after: i64,
}

impl AuthorityFiles {
    /// Reads both files and sees whether they belong together.
    pub fn load(&self) -> Result<Signer, PkiError> {
        let read = |path: &Path| {
            let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
            let absent = || PkiError::File { verb: "read", path: path.to_owned(), source: missing() };
            files::read(path)?.ok_or_else(absent)
        };
        let unfit = |path: &Path, why: String| PkiError::Authority { path: path.to_owned(), why };
        let found = certificates(&read(&self.certificate)?);
        let [der] = found.as_slice() else {
            return Err(unfit(&self.certificate, format!("expected 1 certificate, found {}", found.len())));
        };
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| unfit(&self.certificate, "it cannot be read".to_owned()))?;
        let key = PrivateKeyDer::from_pem_slice(read(&self.key)?.as_bytes())
            .ok()
            .and_then(|key| KeyPair::try_from(&key).ok())
            .ok_or_else(|| unfit(&self.key, "it holds no private key of a known kind".to_owned()))?;
        if key.der_bytes() != &*certificate.public_key().subject_public_key.data {
            let why = format!("it is not the key of {}", self.certificate.display());
            return Err(unfit(&self.key, why));
        }
        let algorithm = Algorithm::of(&key)
            .ok_or_else(|| unfit(&self.key, "keys of its kind cannot sign certificates".to_owned()))?;
        let key_id = certificate.iter_extensions().find_map(|e| match e.parsed_extension() {
            x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Ok(Signer {
            algorithm,
            subject: certificate.subject().as_raw().to_vec(),
            key_id,
            not_after: certificate.validity().not_after.timestamp(),
            key,
        })
    }
}

impl Signer {
    /// The certificate, PEM.
    pub fn sign(&self, request: &CertificateRequest, grant: Grant<'_>) -> Result<String, PkiError> {
        request.prove()?;
        let (not_before, not_after) = self.validity(grant)?;
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| PkiError::Random)?;
        let certificate = Certificate {
            serial,
            algorithm: self.algorithm,
            issuer: &self.subject,
            not_before,
            not_after,
            subject: &request.subject,
            public_key: &request.public_key,
            usages: &Usages::of(grant.usages)?,
            authority_key_id: self.key_id.as_deref(),
            names: &request.names,
        };
        let body = certificate.encode();
        let failed = |source| PkiError::Sign { name: request.subject.common_name().to_owned(), source };
        let signature = self.key.sign(&body).map_err(failed)?;
        Ok(crate::request::certificate_pem(&encode::signed(&body, self.algorithm, &signature)))
    }

    fn validity(&self, grant: Grant<'_>) -> Result<(i64, i64), PkiError> {
        let Grant { now, lifetime, .. } = grant;
        if now >= self.not_after {
            return Err(PkiError::Expired);
        }
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        let cut = if lifetime < SHORT { 0 } else { BACKDATE };
        Ok((now - BACKDATE, now.saturating_add(lifetime - cut).min(self.not_after)))
    }
}

/// When the first certificate of a PEM text ends, in seconds since 1970.
pub fn end_of_certificate(pem: &str) -> Option<i64> {
    let first = certificates(pem).into_iter().next()?;
    let (_, certificate) = X509Certificate::from_der(&first).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests;
