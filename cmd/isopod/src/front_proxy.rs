//! Front proxies: the API server is one to the extension API servers behind APIServices, and others may stand in front of it.
//!
//! Invariant: whom extension API servers are told to trust has always signed what this server shows to them.

use anyhow::{Context, bail};
use clap::Args;
use isopod_apiserver::{AggregationSettings, FrontProxy, RequestHeaders};
use isopod_pki::{FRONT_PROXY, FromFiles, Own, ServerPki, tls};
use rustls::client::ResolvesClientCert;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The names are kube-apiserver's.
#[derive(Args)]
pub struct FrontProxyArgs {
    /// CA of proxies in front of the API server, PEM: they may say in headers whom they speak for
    #[arg(long, value_name = "FILE", help_heading = "Front proxies")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names that their certificates may have [default: any that the CA signed]
    #[arg(
        long,
        value_delimiter = ',',
        requires = "requestheader_client_ca_file",
        value_name = "NAME",
        help_heading = "Front proxies"
    )]
    pub requestheader_allowed_names: Vec<String>,
    /// Headers that name the user
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "X-Remote-User",
        value_name = "NAME",
        help_heading = "Front proxies"
    )]
    pub requestheader_username_headers: Vec<String>,
    /// Headers with the user's uid
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "X-Remote-Uid",
        value_name = "NAME",
        help_heading = "Front proxies"
    )]
    pub requestheader_uid_headers: Vec<String>,
    /// Headers with the user's groups
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "X-Remote-Group",
        value_name = "NAME",
        help_heading = "Front proxies"
    )]
    pub requestheader_group_headers: Vec<String>,
    /// How headers with the user's other attributes begin
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "X-Remote-Extra-",
        value_name = "PREFIX",
        help_heading = "Front proxies"
    )]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// Certificate to show to extension API servers, PEM [default: one of the cluster's own]
    #[arg(
        long,
        requires = "proxy_client_key_file",
        requires = "requestheader_client_ca_file",
        value_name = "FILE",
        help_heading = "Front proxies"
    )]
    pub proxy_client_cert_file: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, requires = "proxy_client_cert_file", value_name = "FILE", help_heading = "Front proxies")]
    pub proxy_client_key_file: Option<PathBuf>,
}

/// Who is trusted as a front proxy, and as whom this server shows itself.
pub struct FrontProxyTrust {
    identity: Arc<dyn ResolvesClientCert>,
    headers: RequestHeaders,
}

impl FrontProxyTrust {
    pub fn new(args: &FrontProxyArgs, pki: &ServerPki) -> anyhow::Result<Self> {
        let identity = match (&args.proxy_client_cert_file, &args.proxy_client_key_file) {
            (Some(cert), Some(key)) => Some(FromFiles::open(cert, key)?),
            _ => None,
        };
        let given = args.requestheader_client_ca_file.as_deref().map(read).transpose()?;
        let mut ca_pem = String::new();
        let mut allowed_names = args.requestheader_allowed_names.clone();
        if identity.is_none() {
            ca_pem.push_str(&pki.request_header_ca.cert_pem);
            // Without names, every certificate of the given CA is good.
            if given.is_none() || !allowed_names.is_empty() {
                allowed_names.push(FRONT_PROXY.to_owned());
            }
        }
        ca_pem.push_str(&given.unwrap_or_default());
        if args.requestheader_username_headers.iter().all(|h| h.trim().is_empty()) {
            bail!("--requestheader-username-headers names no header: leave it out for X-Remote-User");
        }
        let headers = RequestHeaders {
            ca_pem,
            allowed_names,
            username: args.requestheader_username_headers.clone(),
            uid: args.requestheader_uid_headers.clone(),
            group: args.requestheader_group_headers.clone(),
            extra_prefixes: args.requestheader_extra_headers_prefix.clone(),
        };
        let identity: Arc<dyn ResolvesClientCert> = match identity {
            Some(given) => Arc::new(given),
            None => pki.shown(Own::FrontProxy)?,
        };
        Ok(FrontProxyTrust { identity, headers })
    }

    /// For the servers behind APIServices.
    pub fn aggregation(&self, pki: &ServerPki) -> AggregationSettings {
        AggregationSettings {
            identity: Some(self.identity.clone()),
            client_ca_pem: pki.client_ca.cert_pem.clone(),
            request_headers: Some(self.headers.clone()),
        }
    }

    /// For proxies in front of this server.
    pub fn authenticator(&self, pki: &ServerPki) -> anyhow::Result<FrontProxy> {
        Ok(FrontProxy {
            headers: self.headers.clone(),
            clients: tls::client_verifier("client-ca", &pki.client_ca.cert_pem)?,
            proxies: tls::client_verifier("--requestheader-client-ca-file", &self.headers.ca_pem)?,
        })
    }

    /// The CAs of all who may show a certificate to the listener.
    pub fn listener(&self, pki: &ServerPki) -> String {
        format!("{}{}", pki.client_ca.cert_pem, self.headers.ca_pem)
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
