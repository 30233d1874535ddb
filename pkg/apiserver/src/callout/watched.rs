//! What certificates of other servers have that upstream counts: no name but the common one, and signatures with SHA-1. Neither
//! is trusted; who has such a server finds it here.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How often servers have shown such certificates.
#[derive(Debug, Default)]
pub struct Faults {
    pub missing_san: AtomicU64,
    pub insecure_sha1: AtomicU64,
}

/// Of webhooks, and of extension API servers. They are of the process, as upstream's are.
pub static WEBHOOKS: Faults = Faults { missing_san: AtomicU64::new(0), insecure_sha1: AtomicU64::new(0) };
pub static AGGREGATED: Faults = Faults { missing_san: AtomicU64::new(0), insecure_sha1: AtomicU64::new(0) };

impl Faults {
    fn look(&self, certificate: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) {
        let Ok((_, leaf)) = X509Certificate::from_der(certificate) else { return };
        if !matches!(leaf.subject_alternative_name(), Ok(Some(_))) {
            self.missing_san.fetch_add(1, Relaxed);
        }
        if is_sha1(&leaf) || intermediates.iter().any(|c| X509Certificate::from_der(c).is_ok_and(|(_, c)| is_sha1(&c)))
        {
            self.insecure_sha1.fetch_add(1, Relaxed);
        }
    }
}

/// Whether somebody else has signed it with SHA-1: nobody looks at a signature of one's own.
fn is_sha1(certificate: &X509Certificate<'_>) -> bool {
    const RSA: &str = "1.2.840.113549.1.1.5";
    const ECDSA: &str = "1.2.840.10045.4.1";
    let by = certificate.signature_algorithm.algorithm.to_id_string();
    [RSA, ECDSA].contains(&by.as_str()) && certificate.issuer() != certificate.subject()
}

/// Leaves the judgement to another one.
#[derive(Debug)]
struct Watched {
    judge: Arc<dyn ServerCertVerifier>,
    faults: &'static Faults,
}

/// Counts what `judge` is shown.
pub fn watched(judge: Arc<dyn ServerCertVerifier>, faults: &'static Faults) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Watched { judge, faults })
}

impl ServerCertVerifier for Watched {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.faults.look(certificate, intermediates);
        self.judge.verify_server_cert(certificate, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;

    #[test]
    fn certificates_without_names_and_with_sha1_are_counted() {
        isopod_pki::tls::install_provider();
        let named = rcgen::generate_simple_self_signed(["s.n.svc".to_owned()]).unwrap().cert.der().clone();
        let unnamed = rcgen::generate_simple_self_signed(Vec::new()).unwrap().cert.der().clone();
        // Of openssl, for two days of 2026: an authority has signed it with SHA-1.
        let sha1 = CertificateDer::from_pem_slice(include_bytes!("sha1.crt")).unwrap();
        static FAULTS: Faults = Faults { missing_san: AtomicU64::new(0), insecure_sha1: AtomicU64::new(0) };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(named.clone()).unwrap();
        let judge = rustls::client::WebPkiServerVerifier::builder(Arc::new(roots)).build().unwrap();
        let verifier = watched(judge, &FAULTS);
        let name = ServerName::try_from("s.n.svc").unwrap();
        for (certificate, missing, insecure) in [(&named, 0, 0), (&unnamed, 1, 0), (&sha1, 1, 1), (&unnamed, 2, 1)] {
            let _ = verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now());
            assert_eq!((FAULTS.missing_san.load(Relaxed), FAULTS.insecure_sha1.load(Relaxed)), (missing, insecure));
        }
        let _ = verifier.verify_server_cert(&named, &[sha1], &name, &[], UnixTime::now());
        assert_eq!((FAULTS.missing_san.load(Relaxed), FAULTS.insecure_sha1.load(Relaxed)), (2, 2));
    }
}
