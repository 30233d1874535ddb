//! Whom calls trust. As Go's clients do, and many webhooks' owners rely on, a certificate that stands in the bundle itself is
//! trusted as a server's, even where it says that it is an authority's: `openssl req -x509` makes such.

use super::watched::{WEBHOOKS, watched};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::client::{WantsClientCert, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A client that trusts these certificates, or where there are none what the machine trusts.
pub fn client(pem: &[u8]) -> Result<ClientConfig, String> {
    trusting(pem).map(|builder| builder.with_no_client_auth()).map_err(|e| format!("caBundle: {e}"))
}

/// As [`client`], before it has said who it is itself.
pub fn trusting(pem: &[u8]) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
    let builder = ClientConfig::builder();
    let roots = authorities(pem)?;
    // Nobody is trusted.
    if roots.is_empty() {
        return Ok(builder.with_root_certificates(roots));
    }
    let provider = builder.crypto_provider().clone();
    let by_chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let by_chain = by_chain.map_err(|e| e.to_string())?;
    let bundle = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    let verifier = watched(Arc::new(Bundle { by_chain, bundle }), &WEBHOOKS);
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
}

/// These certificates, or where there are none what the machine trusts.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    authorities(pem).map_err(|e| format!("caBundle: {e}"))
}

fn authorities(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if pem.is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| e.to_string())?;
        roots.add(certificate).map_err(|e| e.to_string())?;
    }
    Ok(roots)
}

#[derive(Debug)]
struct Bundle {
    by_chain: Arc<WebPkiServerVerifier>,
    bundle: Vec<CertificateDer<'static>>,
}

impl Bundle {
    /// The certificate is one of the bundle's, is valid now, and names the server.
    fn verify_itself(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        if !self.bundle.iter().any(|c| c.as_ref() == certificate.as_ref()) {
            return Err(unknown());
        }
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unknown())?;
        let now = i64::try_from(now.as_secs()).map_err(|_| unknown())?;
        let validity = parsed.validity();
        if now < validity.not_before.timestamp() {
            return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
        }
        if now > validity.not_after.timestamp() {
            return Err(Error::InvalidCertificate(CertificateError::Expired));
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for Bundle {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let by_chain = self.by_chain.verify_server_cert(certificate, intermediates, name, ocsp, now);
        by_chain.or_else(|why| self.verify_itself(certificate, name, now).map_err(|_| why))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_chain.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(name: &str) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    fn pem(certificate: &CertificateDer<'_>) -> String {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn an_authority_that_serves_by_itself() {
        isopod_pki::tls::install_provider();
        let (own, other) = (authority("s.n.svc"), authority("s.n.svc"));
        assert!(client(pem(&own).as_bytes()).is_ok());
        let mut roots = RootCertStore::empty();
        roots.add(own.clone()).unwrap();
        let bundle = Bundle {
            by_chain: WebPkiServerVerifier::builder(Arc::new(roots)).build().unwrap(),
            bundle: vec![own.clone()],
        };
        let now = UnixTime::now();
        let late = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1 << 40));
        for (certificate, name, now, good) in [
            (&own, "s.n.svc", now, true),
            (&own, "t.n.svc", now, false),
            (&own, "s.n.svc", late, false),
            (&other, "s.n.svc", now, false),
        ] {
            let name = ServerName::try_from(name).unwrap();
            assert_eq!(bundle.verify_server_cert(certificate, &[], &name, &[], now).is_ok(), good, "{name:?} {now:?}");
        }
    }
}
