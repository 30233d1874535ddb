//! What an administrator may ask of a listener's TLS beyond a certificate: who may connect, with which versions and ciphers.

use crate::tls::{certified, provider, roots};
use crate::{Identity, PkiError};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// By default: everybody, TLS 1.2 and 1.3, every cipher that is safe.
#[derive(Clone, Debug, Default)]
pub struct ListenerOptions {
    /// Clients show a certificate of this CA.
    pub client_ca_pem: Option<String>,
    /// And none that stands in this file: a revocation list, PEM or DER. What is in it at each handshake counts.
    pub revoked: Option<PathBuf>,
    /// And one that is valid for one of these names, where there are any.
    pub client_names: Vec<String>,
    /// `TLS1.2` or `TLS1.3`.
    pub min_version: Option<String>,
    pub max_version: Option<String>,
    /// Names as IANA has them; they choose among those of TLS 1.2, as in Go.
    pub cipher_suites: Vec<String>,
}

impl ListenerOptions {
    pub fn config(&self, name: &str, identity: &Identity) -> Result<ServerConfig, PkiError> {
        self.config_showing(name, Arc::new(SingleCertAndKey::from(certified(name, identity)?)))
    }

    /// As [`Self::config`], with what `identity` has at each handshake.
    pub fn config_showing(&self, name: &str, identity: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, PkiError> {
        let tls = |source| PkiError::Tls { name: name.to_owned(), source };
        let mut provider = rustls::crypto::CryptoProvider::clone(&provider());
        self.choose_ciphers(&mut provider.cipher_suites)?;
        let versions = self.versions()?;
        let builder =
            ServerConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&versions).map_err(tls)?;
        let builder = match &self.client_ca_pem {
            Some(pem) => builder.with_client_cert_verifier(self.verifier(name, pem)?),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(identity);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    fn verifier(&self, name: &str, ca_pem: &str) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
        let tls = |source| PkiError::Tls { name: name.to_owned(), source };
        let roots = Arc::new(roots(name, ca_pem)?);
        let verifier: Arc<dyn ClientCertVerifier> = match &self.revoked {
            Some(file) => Arc::new(Revocable::open(roots, file.clone()).map_err(tls)?),
            None => verifier(roots, None).map_err(tls)?,
        };
        if self.client_names.is_empty() {
            return Ok(verifier);
        }
        let wrong = |n: &String| PkiError::Option(format!("{n} is no name that a certificate could be valid for"));
        let names = self
            .client_names
            .iter()
            .map(|n| ServerName::try_from(n.clone()).map_err(|_| wrong(n)))
            .collect::<Result<_, _>>()?;
        Ok(Arc::new(NamedClients { verifier, names }))
    }

    fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>, PkiError> {
        let number = |text: &Option<String>, default: usize| match text.as_deref() {
            None | Some("") => Ok(default),
            Some("TLS1.2") => Ok(0),
            Some("TLS1.3") => Ok(1),
            Some(other) => Err(PkiError::Option(format!("{other} is no version of TLS here: write TLS1.2 or TLS1.3"))),
        };
        let (min, max) = (number(&self.min_version, 0)?, number(&self.max_version, 1)?);
        if min > max {
            return Err(PkiError::Option("the lowest version of TLS is above the highest".into()));
        }
        Ok([&TLS12, &TLS13][min..=max].to_vec())
    }

    fn choose_ciphers(&self, suites: &mut Vec<SupportedCipherSuite>) -> Result<(), PkiError> {
        if self.cipher_suites.is_empty() {
            return Ok(());
        }
        let named = |s: &SupportedCipherSuite| format!("{:?}", s.suite());
        let choice: Vec<String> = suites.iter().filter(|s| is_tls12(s)).map(named).collect();
        if let Some(unknown) = self.cipher_suites.iter().find(|n| !choice.contains(n)) {
            let choice = choice.join(", ");
            return Err(PkiError::Option(format!("{unknown} is no cipher suite here: choose among {choice}")));
        }
        suites.retain(|s| !is_tls12(s) || self.cipher_suites.contains(&named(s)));
        Ok(())
    }
}

fn is_tls12(suite: &SupportedCipherSuite) -> bool {
    matches!(suite, SupportedCipherSuite::Tls12(_))
}

fn revocation_list(bytes: &[u8]) -> CertificateRevocationListDer<'static> {
    CertificateRevocationListDer::from_pem_slice(bytes).unwrap_or_else(|_| bytes.to_vec().into())
}

fn verifier(roots: Arc<RootCertStore>, revoked: Option<&[u8]>) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    if let Some(bytes) = revoked {
        // Of a certificate whose issuer is not in the list nothing is said: it counts.
        builder = builder
            .with_crls([revocation_list(bytes)])
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status();
    }
    builder.build().map_err(|e| rustls::Error::General(e.to_string()))
}

/// Lets in clients whose certificate is good and not in a file, as that is now. While the file cannot be read nobody is let in, as
/// by etcd.
#[derive(Debug)]
struct Revocable {
    roots: Arc<RootCertStore>,
    file: PathBuf,
    read: RwLock<Read>,
    /// It knows the roots, and no list: what it says of all clients alike.
    plain: Arc<dyn ClientCertVerifier>,
}

/// What was in the file, and who goes by it.
#[derive(Debug)]
struct Read {
    bytes: Vec<u8>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Revocable {
    fn open(roots: Arc<RootCertStore>, file: PathBuf) -> Result<Self, rustls::Error> {
        let bytes = revocation_file(&file)?;
        let read = Read { verifier: verifier(Arc::clone(&roots), Some(&bytes))?, bytes };
        let plain = verifier(Arc::clone(&roots), None)?;
        Ok(Revocable { roots, file, read: RwLock::new(read), plain })
    }

    fn newest(&self) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
        let bytes = revocation_file(&self.file)?;
        {
            let read = self.read.read().unwrap_or_else(PoisonError::into_inner);
            if read.bytes == bytes {
                return Ok(Arc::clone(&read.verifier));
            }
        }
        let verifier = verifier(Arc::clone(&self.roots), Some(&bytes))?;
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = Read { bytes, verifier: Arc::clone(&verifier) };
        Ok(verifier)
    }
}

fn revocation_file(path: &Path) -> Result<Vec<u8>, rustls::Error> {
    let cannot = |e| rustls::Error::General(format!("cannot read the revocation list {}: {e}", path.display()));
    std::fs::read(path).map_err(cannot)
}

impl ClientCertVerifier for Revocable {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.plain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.newest()?.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.plain.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.plain.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.plain.supported_verify_schemes()
    }
}

/// Lets in clients whose certificate is good and names one of these.
#[derive(Debug)]
struct NamedClients {
    verifier: Arc<dyn ClientCertVerifier>,
    names: Vec<ServerName<'static>>,
}

impl ClientCertVerifier for NamedClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if self.names.iter().any(|n| verify_server_name(&certificate, n).is_ok()) {
            return Ok(verified);
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ServerNames, ServerPki};
    use rcgen::{
        CertificateParams, CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams,
        SerialNumber,
    };
    use rustls::{ClientConnection, ServerConnection};

    fn pki() -> (tempfile::TempDir, ServerPki) {
        let dir = tempfile::tempdir().unwrap();
        let names = ServerNames { cluster_domain: "cluster.local".into(), ..Default::default() };
        let pki = ServerPki::load_or_create(dir.path(), &names).unwrap();
        (dir, pki)
    }

    fn shake_hands(server: ServerConfig, client: rustls::ClientConfig) -> Result<ServerConnection, rustls::Error> {
        let mut c = ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap();
        let mut s = ServerConnection::new(Arc::new(server)).unwrap();
        while c.is_handshaking() || s.is_handshaking() {
            let mut buf = Vec::new();
            c.write_tls(&mut buf).unwrap();
            s.read_tls(&mut buf.as_slice()).unwrap();
            s.process_new_packets()?;
            let mut buf = Vec::new();
            s.write_tls(&mut buf).unwrap();
            c.read_tls(&mut buf.as_slice()).unwrap();
            c.process_new_packets()?;
        }
        Ok(s)
    }

    fn client(pki: &ServerPki, identity: &Identity) -> rustls::ClientConfig {
        crate::tls::client("test", Some(identity), &pki.server_ca.cert_pem, &["h2"]).unwrap()
    }

    #[test]
    fn versions_and_ciphers_are_chosen() {
        let (_dir, pki) = pki();
        let old = ListenerOptions { max_version: Some("TLS1.2".into()), ..Default::default() };
        let one = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
        let ciphers = ListenerOptions { cipher_suites: vec![one.into()], ..old.clone() };
        for (options, wanted) in [(old, None), (ciphers, Some(one))] {
            let config = options.config("test", &pki.serving).unwrap();
            let done = shake_hands(config, client(&pki, &pki.admin)).unwrap();
            assert_eq!(done.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_2));
            let suite = format!("{:?}", done.negotiated_cipher_suite().unwrap().suite());
            assert!(wanted.is_none_or(|w| w == suite), "{suite}");
        }
        let backwards = ListenerOptions {
            min_version: Some("TLS1.3".into()),
            max_version: Some("TLS1.2".into()),
            ..Default::default()
        };
        assert!(backwards.config("test", &pki.serving).is_err());
        let weak = ListenerOptions { cipher_suites: vec!["TLS_RSA_WITH_RC4_128_SHA".into()], ..Default::default() };
        let refused = weak.config("test", &pki.serving).unwrap_err().to_string();
        assert!(refused.contains(one), "{refused}");
    }

    #[test]
    fn clients_are_chosen_by_name_and_revocation() {
        let (dir, pki) = pki();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca_params = CertificateParams::new(Vec::new()).unwrap();
        ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = ca_params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca_params, ca_key);
        let leaf = |serial: u64, name: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.serial_number = Some(SerialNumber::from(serial));
            let cert = params.signed_by(&key, &issuer).unwrap();
            Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() }
        };
        let (good, revoked, other) = (leaf(1, "db.example"), leaf(2, "db.example"), leaf(3, "web.example"));
        let now = time::OffsetDateTime::now_utc();
        let crl = |serials: &[u64]| {
            let revoked = |serial: &u64| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            };
            let list = CertificateRevocationListParams {
                this_update: now,
                next_update: now + time::Duration::days(1),
                crl_number: SerialNumber::from(1u64),
                issuing_distribution_point: None,
                revoked_certs: serials.iter().map(revoked).collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            list.signed_by(&issuer).unwrap()
        };
        let base = ListenerOptions { client_ca_pem: Some(ca.pem()), ..Default::default() };
        let try_all = |options: &ListenerOptions| {
            [&good, &revoked, &other].map(|identity| {
                shake_hands(options.config("test", &pki.serving).unwrap(), client(&pki, identity)).is_ok()
            })
        };
        assert_eq!(try_all(&base), [true, true, true]);
        let file = dir.path().join("revoked");
        let options = ListenerOptions { revoked: Some(file.clone()), ..base.clone() };
        let missing = options.config("test", &pki.serving).unwrap_err();
        assert!(format!("{missing:?}").contains("revocation list"), "{missing:?}");
        for bytes in [crl(&[2]).pem().unwrap().into_bytes(), crl(&[2]).der().to_vec()] {
            std::fs::write(&file, bytes).unwrap();
            assert_eq!(try_all(&options), [true, false, true]);
        }
        // A running listener goes by what is in the file now.
        let running = options.config("test", &pki.serving).unwrap();
        let let_in = |content: Option<Vec<u8>>| {
            match content {
                Some(bytes) => std::fs::write(&file, bytes).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            [&good, &revoked, &other].map(|identity| shake_hands(running.clone(), client(&pki, identity)).is_ok())
        };
        assert_eq!(let_in(Some(crl(&[1, 3]).der().to_vec())), [false, true, false]);
        assert_eq!(let_in(Some(b"half a li".to_vec())), [false; 3]);
        assert_eq!(let_in(Some(crl(&[]).pem().unwrap().into_bytes())), [true; 3]);
        assert_eq!(let_in(None), [false; 3]);
        let named = ListenerOptions { client_names: vec!["nobody".into(), "db.example".into()], ..base };
        assert_eq!(try_all(&named), [true, true, false]);
        assert!(shake_hands(named.config("test", &pki.serving).unwrap(), client(&pki, &pki.admin)).is_err());
    }
}
