//! rustls configurations from PEM. One provider, aws-lc-rs, is given explicitly everywhere.

use crate::{Identity, ListenerOptions, PkiError};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Makes the provider the process's default, for libraries that ask for one. Call it first in `main`.
pub fn install_provider() {
    // A second call finds the first one's provider: the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

pub(crate) fn certs(name: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        _ => Err(PkiError::Pem(name.to_owned())),
    }
}

pub(crate) fn key(name: &str, pem: &str) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| PkiError::Pem(name.to_owned()))
}

pub(crate) fn roots(name: &str, ca_pem: &str) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for cert in certs(name, ca_pem)? {
        roots.add(cert).map_err(|source| PkiError::Tls { name: name.to_owned(), source })?;
    }
    Ok(roots)
}

/// Tells whether a client's certificate is one of this CA's.
pub fn client_verifier(name: &str, ca_pem: &str) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
    let roots = Arc::new(roots(name, ca_pem)?);
    WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|e| PkiError::Tls { name: name.to_owned(), source: rustls::Error::General(e.to_string()) })
}

/// What a client shows to every server that asks for a certificate.
fn client_identity(name: &str, identity: &Identity) -> Result<Arc<dyn ResolvesClientCert>, PkiError> {
    Ok(Arc::new(SingleCertAndKey::from(certified(name, identity)?)))
}

pub(crate) fn certified(name: &str, identity: &Identity) -> Result<CertifiedKey, PkiError> {
    let tls = |source| PkiError::Tls { name: name.to_owned(), source };
    CertifiedKey::from_der(certs(name, &identity.cert_pem)?, key(name, &identity.key_pem)?, &provider()).map_err(tls)
}

/// A server that asks for a client certificate of `client_ca_pem` but also serves those who bring none (they may have a
/// token, or be anonymous).
pub fn server(name: &str, identity: &Identity, client_ca_pem: &str) -> Result<ServerConfig, PkiError> {
    server_showing(name, Arc::new(SingleCertAndKey::from(certified(name, identity)?)), client_ca_pem)
}

/// As [`server`], with what `identity` has at each handshake.
pub fn server_showing(
    name: &str,
    identity: Arc<dyn ResolvesServerCert>,
    client_ca_pem: &str,
) -> Result<ServerConfig, PkiError> {
    let tls = |source| PkiError::Tls { name: name.to_owned(), source };
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(name, client_ca_pem)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| tls(rustls::Error::General(e.to_string())))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(tls)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(identity);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A server that lets in who shows a certificate of `client_ca_pem`; with `None`, everybody.
pub fn listener(name: &str, identity: &Identity, client_ca_pem: Option<&str>) -> Result<ServerConfig, PkiError> {
    let options = ListenerOptions { client_ca_pem: client_ca_pem.map(str::to_owned), ..ListenerOptions::default() };
    options.config(name, identity)
}

/// A client that trusts `ca_pem` and shows `identity`. `alpn`: what it offers, `http/1.1` alone for upgrades.
pub fn client(name: &str, identity: Option<&Identity>, ca_pem: &str, alpn: &[&str]) -> Result<ClientConfig, PkiError> {
    let identity = identity.map(|identity| client_identity(name, identity)).transpose()?;
    client_config(name, identity, ca_pem, alpn)
}

/// As [`client`], with what `identity` has at each handshake.
pub fn client_showing(
    name: &str,
    identity: Arc<dyn ResolvesClientCert>,
    ca_pem: &str,
    alpn: &[&str],
) -> Result<ClientConfig, PkiError> {
    client_config(name, Some(identity), ca_pem, alpn)
}

fn client_config(
    name: &str,
    identity: Option<Arc<dyn ResolvesClientCert>>,
    ca_pem: &str,
    alpn: &[&str],
) -> Result<ClientConfig, PkiError> {
    let tls = |source| PkiError::Tls { name: name.to_owned(), source };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(tls)?
        .with_root_certificates(roots(name, ca_pem)?);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ServerNames, ServerPki};

    #[test]
    fn a_client_and_a_server_of_one_pki_shake_hands() {
        let dir = tempfile::tempdir().unwrap();
        let names = ServerNames { cluster_domain: "cluster.local".into(), ..Default::default() };
        let pki = ServerPki::load_or_create(dir.path(), &names).unwrap();
        let server = server("api", &pki.serving, &pki.client_ca.cert_pem).unwrap();
        let client = client("admin", Some(&pki.admin), &pki.server_ca.cert_pem, &["h2"]).unwrap();
        let mut c = rustls::ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap();
        let mut s = rustls::ServerConnection::new(Arc::new(server)).unwrap();
        while c.is_handshaking() || s.is_handshaking() {
            let mut buf = Vec::new();
            c.write_tls(&mut buf).unwrap();
            s.read_tls(&mut buf.as_slice()).unwrap();
            s.process_new_packets().unwrap();
            let mut buf = Vec::new();
            s.write_tls(&mut buf).unwrap();
            c.read_tls(&mut buf.as_slice()).unwrap();
            c.process_new_packets().unwrap();
        }
        assert_eq!(s.peer_certificates().map(<[_]>::len), Some(1));
        assert_eq!(c.alpn_protocol(), Some(&b"h2"[..]));
    }
}
