//! The server under load: its address and credentials, from a kubeconfig with a client certificate; connections to it.

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use isopod_pki::{Identity, tls};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub struct Target {
    host: String,
    port: u16,
    http1: TlsConnector,
    http2: TlsConnector,
}

impl Target {
    pub fn read(kubeconfig: &Path) -> anyhow::Result<Self> {
        let config: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(kubeconfig)?)?;
        let text = |v: &Value| -> anyhow::Result<String> {
            Ok(String::from_utf8(STANDARD.decode(v.as_str().context("a field of the kubeconfig is missing")?)?)?)
        };
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let identity =
            Identity { cert_pem: text(&user["client-certificate-data"])?, key_pem: text(&user["client-key-data"])? };
        let ca = text(&cluster["certificate-authority-data"])?;
        let server = cluster["server"].as_str().and_then(|s| s.strip_prefix("https://")).context("no https server")?;
        let (host, port) = server.rsplit_once(':').context("no port in the server's address")?;
        let connector = |protocol| -> anyhow::Result<TlsConnector> {
            Ok(Arc::new(tls::client("load", Some(&identity), &ca, &[protocol])?).into())
        };
        let (http1, http2) = (connector("http/1.1")?, connector("h2")?);
        Ok(Target { host: host.into(), port: port.trim_end_matches('/').parse()?, http1, http2 })
    }

    async fn stream(&self, tls: &TlsConnector) -> anyhow::Result<TokioIo<TlsStream<TcpStream>>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let name = rustls::pki_types::ServerName::try_from(self.host.clone())?;
        Ok(TokioIo::new(tls.connect(name, tcp).await?))
    }

    /// One request at a time.
    pub async fn connect(&self) -> anyhow::Result<http1::SendRequest<Full<Bytes>>> {
        let (sender, connection) = http1::handshake(self.stream(&self.http1).await?).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Many streams at once; the sender can be cloned.
    pub async fn connect_shared(&self) -> anyhow::Result<http2::SendRequest<Full<Bytes>>> {
        let stream = self.stream(&self.http2).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// `Null` is no body.
    pub fn request(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        accept: &str,
        body: &Value,
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let uri = format!("https://{}:{}{path}", self.host, self.port);
        let request = Request::builder().method(method).uri(uri).header("Host", &self.host);
        Ok(request.header("Accept", accept).header("Content-Type", kind).body(Full::new(bytes))?)
    }
}
