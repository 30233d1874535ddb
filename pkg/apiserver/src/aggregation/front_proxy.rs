//! Proxies in front of this server: who shows a certificate of their CA may say in headers whom they speak for (upstream's
//! request-header authenticator).
//!
//! Invariant: the TLS listener lets in certificates of both CAs, so which of them signed one is told apart once for each
//! connection ([`FrontProxy::tell_apart`]), and only one that the CA of clients signed is a client's own identity.

use crate::authn::{Authenticator, PeerCertificates, Refused};
use crate::request::percent_decode;
use http::HeaderMap;
use http::request::Parts;
use isopod_api::UserInfo;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use std::sync::Arc;

/// What front proxies say, and who they are.
#[derive(Clone, Debug)]
pub struct RequestHeaders {
    /// Their CA.
    pub ca_pem: String,
    /// Their common names; empty: all that the CA signed.
    pub allowed_names: Vec<String>,
    /// Headers in which the user's name may stand; the first that does counts.
    pub username: Vec<String>,
    pub uid: Vec<String>,
    pub group: Vec<String>,
    pub extra_prefixes: Vec<String>,
}

impl Default for RequestHeaders {
    fn default() -> Self {
        let one = |name: &str| vec![name.to_owned()];
        RequestHeaders {
            ca_pem: String::new(),
            allowed_names: Vec::new(),
            username: one("X-Remote-User"),
            uid: one("X-Remote-Uid"),
            group: one("X-Remote-Group"),
            extra_prefixes: one("X-Remote-Extra-"),
        }
    }
}

/// The certificate of a front proxy, verified, leaf first.
#[derive(Clone, Debug)]
pub struct ProxyCertificates(pub Vec<CertificateDer<'static>>);

/// See the module.
pub struct FrontProxy {
    pub headers: RequestHeaders,
    /// Knows certificates of clients alone.
    pub clients: Arc<dyn ClientCertVerifier>,
    /// Knows those of front proxies alone.
    pub proxies: Arc<dyn ClientCertVerifier>,
}

impl FrontProxy {
    /// What the certificate of a connection is good for.
    pub(crate) fn tell_apart(
        &self,
        chain: Vec<CertificateDer<'static>>,
    ) -> (PeerCertificates, Option<ProxyCertificates>) {
        let Some((leaf, others)) = chain.split_first() else { return (PeerCertificates::default(), None) };
        let signed = |by: &dyn ClientCertVerifier| by.verify_client_cert(leaf, others, UnixTime::now()).is_ok();
        let proxy = signed(&*self.proxies).then(|| ProxyCertificates(chain.clone()));
        let client = signed(&*self.clients);
        (if client { PeerCertificates::new(chain) } else { PeerCertificates::default() }, proxy)
    }

    fn user(&self, headers: &HeaderMap) -> Option<UserInfo> {
        let texts = |names: &[String]| -> Vec<String> {
            let values = names.iter().flat_map(|name| headers.get_all(name.as_str()));
            values.filter_map(|v| v.to_str().ok()).filter(|v| !v.is_empty()).map(str::to_owned).collect()
        };
        let name = texts(&self.headers.username).into_iter().next()?;
        let uid = texts(&self.headers.uid).into_iter().next().unwrap_or_default();
        let mut user = UserInfo { name, uid, groups: texts(&self.headers.group), ..Default::default() };
        for prefix in &self.headers.extra_prefixes {
            let prefix = prefix.to_ascii_lowercase();
            for (name, value) in headers {
                let (Some(key), Ok(value)) = (name.as_str().strip_prefix(&prefix), value.to_str()) else { continue };
                user.extra.entry(percent_decode(key)).or_default().push(value.to_owned());
            }
        }
        Some(user)
    }
}

impl Authenticator for FrontProxy {
    fn authenticate(&self, request: &Parts, _: &PeerCertificates) -> Option<Result<UserInfo, Refused>> {
        let proxy = request.extensions.get::<ProxyCertificates>()?;
        let user = self.user(&request.headers)?;
        let common_name = proxy.0.first().and_then(|leaf| isopod_auth::certificate::identity(leaf).ok().flatten());
        let common_name = common_name.map(|u| u.name).unwrap_or_default();
        if !self.headers.allowed_names.is_empty() && !self.headers.allowed_names.contains(&common_name) {
            return Some(Err(Refused(format!("x509: subject with cn={common_name} is not in the allowed list"))));
        }
        Some(Ok(user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use isopod_pki::{CertAuthority, Leaf, Usage, tls};
    use rustls::pki_types::pem::PemObject;

    struct Made {
        front_proxy: FrontProxy,
        clients: CertAuthority,
        proxies: CertAuthority,
    }

    fn made(allowed: &[&str]) -> Made {
        let dir = tempfile::tempdir().unwrap();
        let clients = CertAuthority::load_or_create(dir.path(), "client-ca").unwrap();
        let proxies = CertAuthority::load_or_create(dir.path(), "request-header-ca").unwrap();
        let allowed_names = allowed.iter().map(|n| (*n).to_owned()).collect();
        let front_proxy = FrontProxy {
            headers: RequestHeaders { allowed_names, ..RequestHeaders::default() },
            clients: tls::client_verifier("clients", &clients.cert_pem).unwrap(),
            proxies: tls::client_verifier("proxies", &proxies.cert_pem).unwrap(),
        };
        Made { front_proxy, clients, proxies }
    }

    fn certificate(ca: &CertAuthority, name: &str) -> Vec<CertificateDer<'static>> {
        let leaf = Leaf { common_name: name, organizations: &[], dns_names: vec![], ips: vec![], usage: Usage::Client };
        let pem = ca.issue(&leaf).unwrap().cert_pem;
        CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
    }

    fn ask(made: &Made, chain: Vec<CertificateDer<'static>>) -> Option<Result<UserInfo, Refused>> {
        let request = Request::get("/")
            .header("x-remote-user", "jane")
            .header("x-remote-group", "dev")
            .header("x-remote-group", "ops")
            .header("x-remote-extra-example.com%2fkey", "v")
            .body(())
            .unwrap();
        let (peer, proxy) = made.front_proxy.tell_apart(chain);
        let (mut parts, ()) = request.into_parts();
        proxy.map(|p| parts.extensions.insert(p));
        made.front_proxy.authenticate(&parts, &peer)
    }

    #[test]
    fn only_front_proxies_speak_for_others() {
        let made = made(&["front"]);
        let user = ask(&made, certificate(&made.proxies, "front")).unwrap().unwrap();
        assert_eq!((user.name.as_str(), &user.groups[..]), ("jane", &["dev".to_owned(), "ops".to_owned()][..]));
        assert_eq!(user.extra["example.com/key"], ["v"]);
        assert!(ask(&made, certificate(&made.proxies, "other")).unwrap().is_err());
        // A client's certificate with the right name is no proxy's.
        assert!(ask(&made, certificate(&made.clients, "front")).is_none());
        assert!(ask(&made, Vec::new()).is_none());
    }

    #[test]
    fn a_front_proxy_is_no_client() {
        let made = made(&[]);
        let proxy = certificate(&made.proxies, "system:admin");
        let (peer, told) = made.front_proxy.tell_apart(proxy);
        assert!(peer.leaf().is_none() && told.is_some());
        let (peer, told) = made.front_proxy.tell_apart(certificate(&made.clients, "system:admin"));
        assert!(peer.leaf().is_some() && told.is_none());
    }
}
