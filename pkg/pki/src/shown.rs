//! A certificate in use: what a server or a client shows at each handshake, which may be another one than at the last.
//!
//! Invariant: a handshake sees a whole pair of certificate and key; connections that are open keep what they began with.

use crate::ca::RENEW_DAYS;
use crate::tls::{certs, key, provider};
use crate::{Identity, PkiError};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// See the module.
pub struct Shown {
    name: &'static str,
    newest: RwLock<Newest>,
}

struct Newest {
    identity: Identity,
    key: Arc<CertifiedKey>,
    /// In seconds of the Unix epoch.
    expires: i64,
}

impl Shown {
    pub(crate) fn new(name: &'static str, identity: Identity) -> Result<Self, PkiError> {
        Ok(Shown { name, newest: RwLock::new(Newest::new(name, identity)?) })
    }

    /// Shows another from now on. False: it is the same.
    pub(crate) fn replace(&self, identity: Identity) -> Result<bool, PkiError> {
        if self.read(|newest| newest.identity.cert_pem == identity.cert_pem) {
            return Ok(false);
        }
        let newest = Newest::new(self.name, identity)?;
        *self.newest.write().unwrap_or_else(PoisonError::into_inner) = newest;
        Ok(true)
    }

    /// The pair that is shown now.
    pub fn identity(&self) -> Identity {
        self.read(|newest| newest.identity.clone())
    }

    /// When its time is over, in seconds of the Unix epoch.
    pub fn expires(&self) -> i64 {
        self.read(|newest| newest.expires)
    }

    pub(crate) fn renewal(&self) -> i64 {
        self.expires() - RENEW_DAYS * 86_400
    }

    fn read<T>(&self, look: impl FnOnce(&Newest) -> T) -> T {
        look(&self.newest.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Newest {
    fn new(name: &str, identity: Identity) -> Result<Self, PkiError> {
        let tls = |source| PkiError::Tls { name: name.to_owned(), source };
        let chain = certs(name, &identity.cert_pem)?;
        let expires = chain.first().and_then(|der| x509_parser::parse_x509_certificate(der).ok());
        let expires = expires.map(|(_, cert)| cert.validity().not_after.timestamp());
        let expires = expires.ok_or_else(|| PkiError::Pem(name.to_owned()))?;
        let key = CertifiedKey::from_der(chain, key(name, &identity.key_pem)?, &provider()).map_err(tls)?;
        Ok(Newest { identity, key: Arc::new(key), expires })
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.read(|newest| newest.key.clone()))
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.read(|newest| newest.key.clone()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::{Own, ServerNames, ServerPki, tls};
    use rustls::{ClientConnection, ServerConnection};
    use std::sync::Arc;
    use time::OffsetDateTime;

    const DAY: i64 = 86_400;

    /// The certificates that server and client have shown.
    fn shake_hands(server: rustls::ServerConfig, client: rustls::ClientConfig) -> [Vec<u8>; 2] {
        let mut c = ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap();
        let mut s = ServerConnection::new(Arc::new(server)).unwrap();
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
        [c.peer_certificates().unwrap()[0].to_vec(), s.peer_certificates().unwrap()[0].to_vec()]
    }

    #[test]
    fn what_is_shown_is_renewed_while_it_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let names = ServerNames { cluster_domain: "cluster.local".into(), ..Default::default() };
        let pki = ServerPki::load_or_create(dir.path(), &names).unwrap();
        let (serving, client) = (pki.shown(Own::Serving).unwrap(), pki.shown(Own::KubeletClient).unwrap());
        let server = tls::server_showing("api", serving.clone(), &pki.client_ca.cert_pem).unwrap();
        let mut client = tls::client_showing("kubelet", client, &pki.server_ca.cert_pem, &["h2"]).unwrap();
        // Each handshake is a whole one.
        client.resumption = rustls::client::Resumption::disabled();
        let first = shake_hands(server.clone(), client.clone());
        let start = OffsetDateTime::now_utc().unix_timestamp();
        assert_eq!(pki.renew(start + 270 * DAY).unwrap(), [], "more than 90 days are left");
        let due = pki.next_renewal().unwrap();
        assert!((due - start - 275 * DAY).abs() < 60, "{due}");
        let expired = serving.expires();
        assert_eq!(pki.renew(due + 60).unwrap(), [Own::Serving, Own::KubeletClient]);
        assert_eq!(serving.expires(), due + 60 + 365 * DAY);
        assert!(serving.expires() > expired);
        // Who reads the files sees the same. (Its time has not begun: nobody who trusts this machine's clock takes it yet.)
        let file = std::fs::read_to_string(dir.path().join("serving-kube-apiserver.crt")).unwrap();
        assert_eq!(file, serving.identity().cert_pem);
        assert_eq!(pki.renew(due + 60).unwrap(), [], "again");
        // Back in the present, the same configurations show other certificates than at first.
        std::fs::remove_file(dir.path().join("serving-kube-apiserver.crt")).unwrap();
        std::fs::remove_file(dir.path().join("client-kube-apiserver.crt")).unwrap();
        assert_eq!(pki.renew(start).unwrap(), [Own::Serving, Own::KubeletClient]);
        let second = shake_hands(server, client);
        assert_ne!(first[0], second[0]);
        assert_ne!(first[1], second[1]);
    }
}
