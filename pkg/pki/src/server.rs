//! Everything that one server needs, under `<data-dir>/server/tls`.

use crate::{CertAuthority, Identity, Leaf, PkiError, Usage, files};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

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

/// The server's CAs and identities.
pub struct ServerPki {
    dir: PathBuf,
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
        let front_proxy = request_header_ca.load_or_issue(dir, "client-auth-proxy", &client(FRONT_PROXY, &[]))?;
        let serving = server_ca.load_or_issue(dir, "serving-kube-apiserver", &serving_leaf(names))?;
        let admin = client_ca.load_or_issue(dir, "client-admin", &client("system:admin", &["system:masters"]))?;
        let kubelet_client = client_ca.load_or_issue(
            dir,
            "client-kube-apiserver",
            &client("kube-apiserver-kubelet-client", &["system:masters"]),
        )?;
        let (service_account_key_pem, service_account_public_pem) = signing_key(&dir.join("service.key"))?;
        Ok(ServerPki {
            dir: dir.to_owned(),
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
        let name = format!("system:node:{node}");
        let mut ips = ips;
        ips.push([127, 0, 0, 1].into());
        let leaf = Leaf {
            common_name: &name,
            organizations: &["system:nodes"],
            dns_names: vec![node.to_owned(), "localhost".into()],
            ips,
            usage: Usage::Server,
        };
        self.server_ca.load_or_issue(&self.dir, "serving-kubelet", &leaf)
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
