//! Everything that one server needs, under `<data-dir>/server/tls`.

use crate::shown::Shown;
use crate::{CertAuthority, Identity, Leaf, PkiError, Usage, files};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use time::OffsetDateTime;

/// The files that make a cluster the same one again elsewhere: every other one is signed anew when it is missing.
pub const LASTING: [&str; 5] = ["server-ca.crt", "server-ca.key", "client-ca.crt", "client-ca.key", "service.key"];

/// The common name of the API server as a front proxy.
pub const FRONT_PROXY: &str = "system:auth-proxy";

/// The names that the API server's certificate is valid for, besides the standard ones.
#[derive(Clone, Debug, Default)]
pub struct ServerNames {
    pub dns: Vec<String>,
    pub ips: Vec<IpAddr>,
    /// `cluster.local`
    pub cluster_domain: String,
}

/// A certificate of this server that it shows to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// Of the API server.
    Serving,
    /// Of the admin kubeconfig.
    Admin,
    /// Of the API server to kubelets.
    KubeletClient,
    /// Of the API server to extension API servers.
    FrontProxy,
    /// Of a node's kubelet.
    Kubelet { node: String, ips: Vec<IpAddr> },
}

/// The server's CAs and identities.
pub struct ServerPki {
    dir: PathBuf,
    names: ServerNames,
    /// What is in use, and renewed.
    shown: Mutex<Vec<(Own, Arc<Shown>)>>,
    /// Signs what servers show: the API server, kubelets.
    pub server_ca: CertAuthority,
    /// Signs what clients show: admin, components, kubelets as clients.
    pub client_ca: CertAuthority,
    /// Signs what front proxies show: who has one of its certificates is believed whom it speaks for.
    pub request_header_ca: CertAuthority,
    /// What the API server shows to extension API servers.
    pub front_proxy: Identity,
    /// What the API server shows.
    pub serving: Identity,
    /// `system:masters`, for the admin kubeconfig.
    pub admin: Identity,
    /// What the API server shows to kubelets.
    pub kubelet_client: Identity,
    /// Signs service-account tokens: P-256, PKCS#8 PEM, and its public half.
    pub service_account_key_pem: String,
    pub service_account_public_pem: String,
}

impl ServerPki {
    /// Loads what is there, makes and renews the rest.
    pub fn load_or_create(dir: &Path, names: &ServerNames) -> Result<Self, PkiError> {
        let server_ca = CertAuthority::load_or_create(dir, "server-ca")?;
        let client_ca = CertAuthority::load_or_create(dir, "client-ca")?;
        let request_header_ca = CertAuthority::load_or_create(dir, "request-header-ca")?;
        let now = OffsetDateTime::now_utc();
        let front_proxy = Own::FrontProxy.load_or_issue(&request_header_ca, dir, names, now)?;
        let serving = Own::Serving.load_or_issue(&server_ca, dir, names, now)?;
        let admin = Own::Admin.load_or_issue(&client_ca, dir, names, now)?;
        let kubelet_client = Own::KubeletClient.load_or_issue(&client_ca, dir, names, now)?;
        let (service_account_key_pem, service_account_public_pem) = signing_key(&dir.join("service.key"))?;
        Ok(ServerPki {
            dir: dir.to_owned(),
            names: names.clone(),
            shown: Mutex::default(),
            server_ca,
            client_ca,
            request_header_ca,
            front_proxy,
            serving,
            admin,
            kubelet_client,
            service_account_key_pem,
            service_account_public_pem,
        })
    }

    /// What a component shows to the API server, kept as `client-<file>.{crt,key}`.
    pub fn client(&self, file: &str, user: &str, groups: &[&str]) -> Result<Identity, PkiError> {
        self.client_ca.load_or_issue(&self.dir, &format!("client-{file}"), &client(user, groups))
    }

    /// What the kubelet of `node` shows on its HTTPS port.
    pub fn kubelet_serving(&self, node: &str, ips: Vec<IpAddr>) -> Result<Identity, PkiError> {
        self.load_or_issue(&Own::Kubelet { node: node.to_owned(), ips }, OffsetDateTime::now_utc())
    }

    /// A certificate to show: each handshake takes what [`Self::renew`] has made last.
    pub fn shown(&self, own: Own) -> Result<Arc<Shown>, PkiError> {
        let mut all = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, shown)) = all.iter().find(|(known, _)| *known == own) {
            return Ok(shown.clone());
        }
        let shown = Arc::new(Shown::new(own.file(), self.load_or_issue(&own, OffsetDateTime::now_utc())?)?);
        all.push((own, shown.clone()));
        Ok(shown)
    }

    /// Renews those that are shown and whose time comes to its end, seen from `now` (seconds of the Unix epoch). Answers which.
    pub fn renew(&self, now: i64) -> Result<Vec<Own>, PkiError> {
        let now = OffsetDateTime::from_unix_timestamp(now).unwrap_or_else(|_| OffsetDateTime::now_utc());
        let all = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut renewed = Vec::new();
        for (own, shown) in all {
            if shown.replace(self.load_or_issue(&own, now)?)? {
                renewed.push(own);
            }
        }
        Ok(renewed)
    }

    /// The authorities whose time is over before `time` (seconds of the Unix epoch). A start renews them long before.
    pub fn ending(&self, time: i64) -> Vec<&'static str> {
        let all = [
            ("server-ca", &self.server_ca),
            ("client-ca", &self.client_ca),
            ("request-header-ca", &self.request_header_ca),
        ];
        all.into_iter().filter(|(_, ca)| ca.expires().is_some_and(|at| at < time)).map(|(name, _)| name).collect()
    }

    /// When the next of those that are shown is to be renewed, in seconds of the Unix epoch.
    pub fn next_renewal(&self) -> Option<i64> {
        let all = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(_, shown)| shown.renewal()).min()
    }

    fn load_or_issue(&self, own: &Own, now: OffsetDateTime) -> Result<Identity, PkiError> {
        let ca = match own {
            Own::Serving | Own::Kubelet { .. } => &self.server_ca,
            Own::Admin | Own::KubeletClient => &self.client_ca,
            Own::FrontProxy => &self.request_header_ca,
        };
        own.load_or_issue(ca, &self.dir, &self.names, now)
    }
}

impl Own {
    /// The name of its files.
    fn file(&self) -> &'static str {
        match self {
            Own::Serving => "serving-kube-apiserver",
            Own::Admin => "client-admin",
            Own::KubeletClient => "client-kube-apiserver",
            Own::FrontProxy => "client-auth-proxy",
            Own::Kubelet { .. } => "serving-kubelet",
        }
    }

    fn load_or_issue(
        &self,
        ca: &CertAuthority,
        dir: &Path,
        names: &ServerNames,
        now: OffsetDateTime,
    ) -> Result<Identity, PkiError> {
        let user;
        let leaf = match self {
            Own::Serving => serving_leaf(names),
            Own::Admin => client("system:admin", &["system:masters"]),
            Own::KubeletClient => client("kube-apiserver-kubelet-client", &["system:masters"]),
            Own::FrontProxy => client(FRONT_PROXY, &[]),
            Own::Kubelet { node, ips } => {
                user = format!("system:node:{node}");
                let mut ips = ips.clone();
                ips.push([127, 0, 0, 1].into());
                Leaf {
                    common_name: &user,
                    organizations: &["system:nodes"],
                    dns_names: vec![node.clone(), "localhost".into()],
                    ips,
                    usage: Usage::Server,
                }
            }
        };
        ca.load_or_issue_at(dir, self.file(), &leaf, now)
    }
}

fn client<'a>(user: &'a str, groups: &'a [&'a str]) -> Leaf<'a> {
    Leaf { common_name: user, organizations: groups, dns_names: vec![], ips: vec![], usage: Usage::Client }
}

fn serving_leaf(names: &ServerNames) -> Leaf<'static> {
    let mut dns: Vec<String> = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
        .iter()
        .map(|s| (*s).to_owned())
        .collect();
    dns.push(format!("kubernetes.default.svc.{}", names.cluster_domain));
    dns.extend(names.dns.iter().cloned());
    dns.dedup();
    let mut ips = names.ips.clone();
    ips.push([127, 0, 0, 1].into());
    ips.push(std::net::Ipv6Addr::LOCALHOST.into());
    ips.sort();
    ips.dedup();
    Leaf { common_name: "kube-apiserver", organizations: &[], dns_names: dns, ips, usage: Usage::Server }
}

fn signing_key(path: &Path) -> Result<(String, String), PkiError> {
    let broken = || PkiError::Broken { path: path.to_owned(), what: "private key" };
    if let Some(pem) = files::read(path)? {
        let key = rcgen::KeyPair::from_pem(&pem).map_err(|_| broken())?;
        return Ok((pem, key.public_key_pem()));
    }
    let key = rcgen::KeyPair::generate()
        .map_err(|source| PkiError::Sign { name: "service-account key".to_owned(), source })?;
    let pem = key.serialize_pem();
    files::write_atomic(path, pem.as_bytes(), 0o600)?;
    Ok((pem, key.public_key_pem()))
}
