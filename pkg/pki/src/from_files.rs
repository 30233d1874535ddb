//! A certificate and its key in files that somebody else renews: each handshake shows what is in them.

use crate::tls::certified;
use crate::{Identity, PkiError, files};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// See the module. What cannot be read, or is no pair (one file was replaced before the other), leaves the last one in use.
pub struct FromFiles {
    cert: PathBuf,
    key: PathBuf,
    last: Mutex<Last>,
}

struct Last {
    identity: Identity,
    shown: Arc<CertifiedKey>,
    /// What was wrong at the last look, said once.
    wrong: Option<String>,
}

impl FromFiles {
    /// The files must hold a pair now.
    pub fn open(cert: &Path, key: &Path) -> Result<Self, PkiError> {
        let identity = read(cert, key)?;
        let shown = Arc::new(certified(&cert.display().to_string(), &identity)?);
        let last = Mutex::new(Last { identity, shown, wrong: None });
        Ok(FromFiles { cert: cert.to_owned(), key: key.to_owned(), last })
    }

    fn newest(&self) -> Arc<CertifiedKey> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let looked = read(&self.cert, &self.key).and_then(|identity| {
            let same = identity.cert_pem == last.identity.cert_pem && identity.key_pem == last.identity.key_pem;
            let shown = match same {
                true => last.shown.clone(),
                false => Arc::new(certified(&self.cert.display().to_string(), &identity)?),
            };
            Ok((identity, shown))
        });
        match looked {
            Ok((identity, shown)) => *last = Last { identity, shown, wrong: None },
            Err(e) => {
                let wrong = e.to_string();
                if last.wrong.as_ref() != Some(&wrong) {
                    tracing::error!(file = %self.cert.display(), error = wrong, "the certificate in use stays");
                }
                last.wrong = Some(wrong);
            }
        }
        last.shown.clone()
    }
}

fn read(cert: &Path, key: &Path) -> Result<Identity, PkiError> {
    let text = |path: &Path| {
        files::read(path)?.ok_or_else(|| PkiError::File {
            verb: "read",
            path: path.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        })
    };
    Ok(Identity { cert_pem: text(cert)?, key_pem: text(key)? })
}

impl fmt::Debug for FromFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFiles").field("cert", &self.cert).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for FromFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.newest())
    }
}

impl ResolvesClientCert for FromFiles {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.newest())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ServerNames, ServerPki};

    #[test]
    fn what_is_in_the_files_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let names = ServerNames { cluster_domain: "cluster.local".into(), ..Default::default() };
        let pki = ServerPki::load_or_create(&dir.path().join("pki"), &names).unwrap();
        let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        assert!(FromFiles::open(&cert, &key).is_err(), "they are not there");
        let put = |i: &Identity| {
            std::fs::write(&cert, &i.cert_pem).unwrap();
            std::fs::write(&key, &i.key_pem).unwrap();
        };
        put(&pki.serving);
        let files = FromFiles::open(&cert, &key).unwrap();
        let first = files.newest();
        assert!(Arc::ptr_eq(&first, &files.newest()), "nothing is made anew");
        // Half of a new pair is none.
        std::fs::write(&cert, &pki.admin.cert_pem).unwrap();
        assert!(Arc::ptr_eq(&first, &files.newest()));
        std::fs::write(&key, &pki.admin.key_pem).unwrap();
        let second = files.newest();
        assert_ne!(first.cert, second.cert);
        std::fs::remove_file(&key).unwrap();
        assert!(Arc::ptr_eq(&second, &files.newest()));
    }
}
