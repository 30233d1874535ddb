//! Calls to the HTTPS servers that webhooks name, by URL or by service (`WebhookClientConfig`): one JSON object there, one back.
//!
//! A service is reached through the tunnel of the node on which an endpoint of it runs, so neither the nodes' network nor the
//! service table is needed here.

mod pool;
mod trust;
mod watched;

pub use pool::Pool;
pub use trust::{roots, trusting};
pub use watched::{AGGREGATED, Faults, WEBHOOKS, watched};

use crate::ApiServer;
use crate::services;
use crate::tunnel::Io;
use base64::Engine;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use isopod_api::Status;
use pool::{Sender, Unanswered};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// More of an answer is not read. A conversion answers with as many objects as it was asked about.
const MAX_ANSWER: usize = 64 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Url { host: String, port: u16 },
    Service { namespace: String, name: String, port: i64 },
}

/// Where a webhook's calls go, and whom they trust there.
pub struct Callout {
    place: Place,
    /// What certificate and `Host` header name.
    host: String,
    port: u16,
    /// With its query.
    path: String,
    tls: Arc<ClientConfig>,
    /// Whose waiting connections its calls may use.
    server: (String, [u8; 32]),
}

impl Callout {
    /// From a `clientConfig`. The error says what is wrong with it.
    pub fn new(config: &Value) -> Result<Self, String> {
        let bundle = config["caBundle"].as_str().unwrap_or_default();
        let pem = base64::engine::general_purpose::STANDARD.decode(bundle).map_err(|e| format!("caBundle: {e}"))?;
        let digest: [u8; 32] = Sha256::digest(&pem).into();
        let mut tls = trust::client(&pem)?;
        if let Some(service) = config["service"].as_object() {
            let text = |key: &str| service.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (namespace, name) = (text("namespace"), text("name"));
            let port = service.get("port").and_then(Value::as_i64).unwrap_or(443);
            let path = format!("/{}", text("path").trim_start_matches('/'));
            let host = format!("{name}.{namespace}.svc");
            // One connection of HTTP/2 would bring all calls to one of its pods (kubernetes#75791).
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            let server = (format!("{host}:{port}"), digest);
            let place = Place::Service { namespace, name, port };
            return Ok(Callout { host, port: port as u16, path, tls: Arc::new(tls), place, server });
        }
        let url = config["url"].as_str().unwrap_or_default();
        let uri: Uri = url.parse().map_err(|e| format!("url {url:?}: {e}"))?;
        let host = uri.host().ok_or_else(|| format!("url {url:?} names no host"))?.to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let server = (format!("url {host}:{port}"), digest);
        Ok(Callout { place: Place::Url { host: host.clone(), port }, host, port, path, tls: Arc::new(tls), server })
    }

    fn url(&self, timeout: Duration) -> (String, String) {
        let mark = if self.path.contains('?') { '&' } else { '?' };
        let path = format!("{}{mark}timeout={}s", self.path, timeout.as_secs());
        let authority = match (&self.place, self.port) {
            (Place::Url { .. }, 443) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        };
        (authority, path)
    }

    /// Sends `body` and returns the object that comes back. The error is worded as Go's client words it.
    pub async fn post(&self, server: &ApiServer, body: &Value, timeout: Duration) -> Result<Value, String> {
        let (authority, path) = self.url(timeout);
        let url = format!("https://{authority}{path}");
        let call = self.send(server, &authority, &path, body);
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok((200..=299, bytes))) => isopod_schema::json::read(&bytes)
                .map_err(|e| format!("couldn't get version/kind; json parse error: {e}")),
            Ok(Ok((404, _))) => Err("the server could not find the requested resource".into()),
            Ok(Ok((code, bytes))) => {
                let text = String::from_utf8_lossy(&bytes);
                let why = format!("an error on the server ({:?})", text.trim());
                Err(if code >= 500 {
                    format!("{why} has prevented the request from succeeding")
                } else {
                    format!("the server rejected our request: {code}: {}", text.trim())
                })
            }
            Ok(Err(e)) => Err(format!("Post {url:?}: {e}")),
            Err(_) => Err(format!("Post {url:?}: context deadline exceeded")),
        }
    }

    async fn send(
        &self,
        server: &ApiServer,
        authority: &str,
        path: &str,
        body: &Value,
    ) -> Result<(u16, Bytes), String> {
        let body = Bytes::from(body.to_string());
        loop {
            let waiting = server.callouts.take(&self.server);
            let is_new = waiting.is_none();
            let mut sender = match waiting {
                Some(sender) => sender,
                None => self.open(server).await?,
            };
            let answer = match sender.post(authority, path, question(&body)).await {
                Ok(answer) => answer,
                // Closed while it waited: the request has not left.
                Err(Unanswered::Unsent) if !is_new => continue,
                Err(Unanswered::Unsent) => return Err("EOF".to_owned()),
                Err(Unanswered::Failed(why)) => return Err(why),
            };
            let code = answer.status().as_u16();
            let bytes = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
            server.callouts.give(&self.server, sender);
            return Ok((code, bytes.to_bytes()));
        }
    }

    /// A new connection.
    async fn open(&self, server: &ApiServer) -> Result<Sender, String> {
        let stream = self.connect(server).await?;
        let name = ServerName::try_from(self.host.clone()).map_err(|e| format!("name of the server: {e}"))?;
        let tls = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, stream).await;
        let tls = tls.map_err(|e| format!("tls: {e}"))?;
        let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        Sender::new(tls, http2).await
    }

    async fn connect(&self, server: &ApiServer) -> Result<Box<dyn Io>, String> {
        let dial = |e: io::Error| format!("dial tcp: {e}");
        match &self.place {
            Place::Url { host, port } => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let stream = tokio::net::TcpStream::connect((host, *port)).await.map_err(dial)?;
                Ok(Box::new(stream))
            }
            Place::Service { namespace, name, port } => {
                let told = |s: Status| s.message;
                let service = server.read("", "services", namespace, name).await.map_err(told)?;
                let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
                let port = services::port_name(&service, *port);
                let port = port.ok_or_else(|| format!("no service port {} found for service {name:?}", self.port))?;
                let endpoint = services::endpoint(server, namespace, name, &port).await.map_err(told)?;
                let endpoint = endpoint.ok_or_else(|| format!("no endpoints available for service {name:?}"))?;
                endpoint.dial(server).await.map_err(dial)
            }
        }
    }
}

/// The request, but for where it goes.
fn question(body: &Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body.clone()));
    *request.method_mut() = Method::POST;
    for (name, value) in [
        (header::CONTENT_TYPE, "application/json"),
        (header::ACCEPT, "application/json, */*"),
        (header::USER_AGENT, "kube-apiserver-admission"),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn places_and_urls() {
        let second = Duration::from_secs(10);
        let url = |config: Value| {
            let callout = Callout::new(&config).unwrap();
            let (authority, path) = callout.url(second);
            format!("{authority}{path}")
        };
        let service = json!({"service": {"namespace": "n", "name": "s", "path": "/a"}});
        assert_eq!(url(service), "s.n.svc:443/a?timeout=10s");
        assert_eq!(url(json!({"service": {"namespace": "n", "name": "s", "port": 8443}})), "s.n.svc:8443/?timeout=10s");
        assert_eq!(url(json!({"url": "https://a.example/b?c=d"})), "a.example/b?c=d&timeout=10s");
        assert_eq!(url(json!({"url": "https://a.example:444"})), "a.example:444/?timeout=10s");
        for bad in [json!({"url": "/x"}), json!({"url": "https://a", "caBundle": "%"})] {
            assert!(Callout::new(&bad).is_err(), "{bad}");
        }
    }
}
