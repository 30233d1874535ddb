//! A server behind a service, to which an APIService leads: connections to it, kept where it speaks HTTP/2, and requests on them.
//!
//! It is reached as webhooks are, through the tunnel of the node on which an endpoint runs. It knows this server by its
//! front-proxy certificate, and users by headers (see [`identify`]).

use super::documents::Documents;
use crate::ApiServer;
use crate::callout::{AGGREGATED, roots, watched};
use crate::services::{self, Endpoint};
use crate::subresources::any_certificate;
use crate::tunnel::Io;
use axum::body::Body;
use base64::Engine;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use isopod_api::UserInfo;
use isopod_kinds::access::Access;
use parking_lot::Mutex;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// The port of a service that names none.
const PORT: i64 = 443;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The service leads nowhere.
    #[error("{0}")]
    Unresolved(String),
    /// Worded as Go's client words it.
    #[error("{0}")]
    Unreachable(String),
}

/// How a server behind a service is spoken to.
struct Tls {
    /// Offers HTTP/2.
    any: Arc<ClientConfig>,
    /// For upgrades, which HTTP/2 does not have.
    one: Arc<ClientConfig>,
}

/// See the module. It lives as long as the `spec` of its APIService stays as it is.
pub struct Remote {
    pub spec: Value,
    pub namespace: String,
    pub name: String,
    pub port: i64,
    pub group: String,
    pub version: String,
    /// What it said of itself.
    pub documents: Documents,
    host: String,
    tls: Result<Tls, String>,
    /// By endpoint.
    open: Mutex<HashMap<Endpoint, http2::SendRequest<Body>>>,
}

impl Remote {
    /// From the `spec` of an APIService; `None`: it is served here.
    pub fn new(spec: &Value, identity: Option<&Arc<dyn ResolvesClientCert>>) -> Option<Self> {
        let service = spec.get("service").filter(|s| s.is_object())?;
        let (namespace, name) = (service.text("namespace").to_owned(), service.text("name").to_owned());
        Some(Remote {
            spec: spec.clone(),
            host: format!("{name}.{namespace}.svc"),
            port: service.int_or("port", PORT),
            namespace,
            name,
            group: spec.text("group").to_owned(),
            version: spec.text("version").to_owned(),
            documents: Documents::default(),
            tls: tls(spec, identity),
            open: Mutex::default(),
        })
    }

    /// The path under which it serves: `/apis/<group>/<version>`.
    pub fn path(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// What its certificate must be valid for.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// What is wrong with the certificates that it should be asked for.
    pub fn wrong(&self) -> Option<&str> {
        self.tls.as_ref().err().map(String::as_str)
    }

    /// Sends a request whose URI is a path; `upgrade`: the connection is to be taken over.
    pub async fn send(
        &self,
        server: &ApiServer,
        mut request: Request<Body>,
        upgrade: bool,
    ) -> Result<Response<Incoming>, Failure> {
        let endpoint = self.endpoint(server).await?;
        let unreachable = |e: hyper::Error| Failure::Unreachable(client_error(&e));
        for name in HOP {
            request.headers_mut().remove(name);
        }
        if upgrade {
            *request.version_mut() = Version::HTTP_11;
            let mut sender = self.http1(server, &endpoint, false).await?;
            return sender.send_request(request).await.map_err(unreachable);
        }
        request.headers_mut().remove(header::CONNECTION);
        request.headers_mut().remove(header::UPGRADE);
        match self.connection(server, &endpoint).await? {
            Connection::Shared(mut sender) => {
                self.absolute(&mut request)?;
                sender.send_request(request).await.map_err(unreachable)
            }
            Connection::Own(mut sender) => {
                *request.version_mut() = Version::HTTP_11;
                sender.send_request(request).await.map_err(unreachable)
            }
        }
    }

    /// Over HTTP/2 the host is part of the URI.
    fn absolute(&self, request: &mut Request<Body>) -> Result<(), Failure> {
        let host = request.headers_mut().remove(header::HOST);
        let host = host.as_ref().and_then(|h| h.to_str().ok()).unwrap_or(&self.host);
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let uri: Result<Uri, _> = format!("https://{host}{path}").parse();
        *request.uri_mut() = uri.map_err(|e| Failure::Unreachable(e.to_string()))?;
        *request.version_mut() = Version::HTTP_2;
        Ok(())
    }

    /// Where the service leads now.
    async fn endpoint(&self, server: &ApiServer) -> Result<Endpoint, Failure> {
        let fail = |m: String| Err(Failure::Unresolved(m));
        let service = server.read("", "services", &self.namespace, &self.name).await;
        let service = match service.map_err(|e| Failure::Unresolved(e.message))? {
            Some(service) => service,
            None => return fail(format!("service {:?} not found", self.name)),
        };
        match service.text("spec.type") {
            "ClusterIP" | "NodePort" | "LoadBalancer" => {}
            "ExternalName" => {
                let ip = service.text("spec.externalName").to_owned();
                return Ok(Endpoint { node: None, ip, port: self.port as u64 });
            }
            other => return fail(format!("unsupported service type {other:?}")),
        }
        let Some(port) = services::port_name(&service, self.port) else {
            return fail(format!("no service port {} found for service {:?}", self.port, self.name));
        };
        match services::endpoint(server, &self.namespace, &self.name, &port).await {
            Ok(Some(endpoint)) => Ok(endpoint),
            Ok(None) => fail(format!("no endpoints available for service {:?}", self.name)),
            Err(e) => fail(e.message),
        }
    }

    async fn connection(&self, server: &ApiServer, endpoint: &Endpoint) -> Result<Connection, Failure> {
        let known = self.open.lock().get(endpoint).filter(|s| !s.is_closed()).cloned();
        if let Some(mut sender) = known
            && sender.ready().await.is_ok()
        {
            return Ok(Connection::Shared(sender));
        }
        let stream = self.dial(server, endpoint, true).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Ok(Connection::Own(shake_hands(stream).await?));
        }
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(15))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|e| Failure::Unreachable(client_error(&e)))?;
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "a connection to an extension API server ended");
            }
        });
        let mut open = self.open.lock();
        // Endpoints come and go.
        open.retain(|_, s| !s.is_closed());
        open.insert(endpoint.clone(), sender.clone());
        Ok(Connection::Shared(sender))
    }

    async fn http1(
        &self,
        server: &ApiServer,
        endpoint: &Endpoint,
        any: bool,
    ) -> Result<http1::SendRequest<Body>, Failure> {
        shake_hands(self.dial(server, endpoint, any).await?).await
    }

    async fn dial(&self, server: &ApiServer, endpoint: &Endpoint, any: bool) -> Result<Secured, Failure> {
        let tls = self.tls.as_ref().map_err(|e| Failure::Unreachable(e.clone()))?;
        let stream = endpoint.dial(server).await.map_err(|e| {
            let why = match e.kind() {
                io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
                _ => e.to_string(),
            };
            Failure::Unreachable(format!("dial tcp {}:{}: {why}", endpoint.ip, endpoint.port))
        })?;
        let name = ServerName::try_from(self.host.clone());
        let name = name.map_err(|e| Failure::Unreachable(format!("name of the server: {e}")))?;
        let config = if any { &tls.any } else { &tls.one };
        let connected = tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await;
        connected.map_err(|e| Failure::Unreachable(handshake_error(&e, &self.host)))
    }
}

type Secured = tokio_rustls::client::TlsStream<Box<dyn Io>>;

enum Connection {
    /// HTTP/2, with others.
    Shared(http2::SendRequest<Body>),
    Own(http1::SendRequest<Body>),
}

async fn shake_hands(stream: Secured) -> Result<http1::SendRequest<Body>, Failure> {
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|e| Failure::Unreachable(client_error(&e)))?;
    tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!(error = %e, "a connection to an extension API server ended");
        }
    });
    Ok(sender)
}

fn tls(spec: &Value, identity: Option<&Arc<dyn ResolvesClientCert>>) -> Result<Tls, String> {
    let bundle = base64::engine::general_purpose::STANDARD.decode(spec.text("caBundle"));
    let bundle = bundle.map_err(|e| format!("caBundle: {e}"))?;
    let roots = roots(&bundle)?;
    let judge: Option<Arc<dyn ServerCertVerifier>> = if spec.flag("insecureSkipTLSVerify") {
        Some(any_certificate::verifier(ClientConfig::builder().crypto_provider()))
    } else if roots.is_empty() {
        None
    } else {
        Some(WebPkiServerVerifier::builder(Arc::new(roots)).build().map_err(|e| format!("caBundle: {e}"))?)
    };
    let config = |alpn: &[&str]| {
        let builder = ClientConfig::builder();
        let builder = match &judge {
            Some(judge) => builder.dangerous().with_custom_certificate_verifier(watched(judge.clone(), &AGGREGATED)),
            None => builder.with_root_certificates(RootCertStore::empty()),
        };
        let mut config = match identity {
            Some(identity) => builder.with_client_cert_resolver(identity.clone()),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    };
    Ok(Tls { any: config(&["h2", "http/1.1"]), one: config(&["http/1.1"]) })
}

/// Go's words for a certificate that is not good.
fn handshake_error(e: &io::Error, host: &str) -> String {
    use rustls::CertificateError as C;
    let tls = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(why)) = tls else { return format!("tls: {e}") };
    let why = match why {
        // An issuer of that name is trusted, with another key.
        C::UnknownIssuer | C::BadSignature => "certificate signed by unknown authority".to_owned(),
        C::NotValidForName | C::NotValidForNameContext { .. } => format!("certificate is not valid for {host}"),
        C::Expired | C::ExpiredContext { .. } => "certificate has expired or is not yet valid".to_owned(),
        other => format!("{other:?}"),
    };
    format!("tls: failed to verify certificate: x509: {why}")
}

fn client_error(e: &hyper::Error) -> String {
    if e.is_incomplete_message() { "EOF".to_owned() } else { e.to_string() }
}

/// Headers that belong to one connection, not to the request.
pub const HOP: [HeaderName; 6] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::TRAILER,
];

/// The prefix of the headers that tell what else is known of a user.
const EXTRA: &str = "x-remote-extra-";

/// Says who asks, in the headers of a front proxy; what the client itself wrote there goes, and so do its credentials.
pub fn identify(headers: &mut HeaderMap, user: &UserInfo) {
    let told = |name: &HeaderName| {
        let name = name.as_str();
        matches!(name, "authorization" | "x-remote-user" | "x-remote-uid" | "x-remote-group")
            || name.starts_with(EXTRA)
            || name.starts_with("impersonate-")
    };
    let gone: Vec<HeaderName> = headers.keys().filter(|name| told(name)).cloned().collect();
    gone.iter().for_each(|name| drop(headers.remove(name)));
    let mut say = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    say("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        say("x-remote-uid", &user.uid);
    }
    user.groups.iter().for_each(|group| say("x-remote-group", group));
    for (key, values) in &user.extra {
        let name = format!("{EXTRA}{}", escape(key));
        values.iter().for_each(|value| say(&name, value));
    }
}

/// A key as part of a header's name: what may not stand there, and `%`, is written as `%41`.
fn escape(key: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&b);
    key.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_told_and_forgeries_go() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("x-remote-user", "root"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-a", "b"),
            ("impersonate-user", "other"),
            ("accept", "application/json"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let mut user = UserInfo::new("jane", &["dev"]);
        user.uid = "7".into();
        user.extra.insert("example.com/a b%".into(), vec!["1".into(), "2".into()]);
        identify(&mut headers, &user);
        let all: Vec<(String, String)> =
            headers.iter().map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned())).collect();
        let mut want = vec![
            ("accept", "application/json"),
            ("x-remote-extra-example.com%2fa%20b%25", "1"),
            ("x-remote-extra-example.com%2fa%20b%25", "2"),
            ("x-remote-group", "dev"),
            ("x-remote-group", "system:authenticated"),
            ("x-remote-uid", "7"),
            ("x-remote-user", "jane"),
        ];
        let mut all: Vec<(&str, &str)> = all.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        all.sort_unstable();
        want.sort_unstable();
        assert_eq!(all, want);
    }
}
