//! HTTPS servers outside of the cluster that this one asks: webhooks that a kubeconfig names (audit, tokens, authorization),
//! and issuers of tokens. Connections are kept.

use crate::subresources::any_certificate;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use isopod_schema::yaml;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder};
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// No answer is longer.
const MAX_ANSWER: usize = 3 << 20;

#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error("cannot read {0:?}")]
    Read(PathBuf, #[source] io::Error),
    #[error("{0:?} is no kubeconfig: {1}")]
    Kubeconfig(PathBuf, String),
    #[error("a certificate or key is not PEM")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("a certificate or key cannot be used")]
    Tls(#[from] rustls::Error),
    #[error("the authority's certificate cannot be used: {0}")]
    Authority(String),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("no answer")]
    Connect(#[from] hyper_util::client::legacy::Error),
    #[error("the answer broke off: {0}")]
    Answer(String),
    #[error("context deadline exceeded")]
    Timeout,
}

impl RemoteError {
    /// The connection was closed meanwhile, by a server that is being replaced perhaps.
    pub fn is_reset(&self) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(e) = next {
            if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::ConnectionReset) {
                return true;
            }
            next = e.source();
        }
        false
    }
}

/// One server, and who this one is to it.
pub struct Remote {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    authorization: Authorization,
}

/// An answer, whatever its code.
pub struct Reply {
    pub code: u16,
    /// It is a text for people.
    is_text: bool,
    /// The server says when to ask again.
    pub retries: bool,
    pub body: Bytes,
}

impl Reply {
    /// What upstream's client makes of an answer that is none (`apimachinery/pkg/api/errors.NewGenericServerResponse`).
    pub fn refusal(&self) -> String {
        if let Ok(status) = serde_json::from_slice::<serde_json::Value>(&self.body)
            && status["kind"] == "Status"
        {
            return status["message"].as_str().unwrap_or_default().to_owned();
        }
        let said = if self.is_text { String::from_utf8_lossy(&self.body).trim().to_owned() } else { "unknown".into() };
        let unsaid = said.is_empty() || said == "unknown";
        let known = match self.code {
            400 => "the server rejected our request for an unknown reason",
            401 => "the server has asked for the client to provide credentials",
            403 => return said,
            404 => "the server could not find the requested resource",
            405 => "the server does not allow this method on the requested resource",
            406 if unsaid => "the server was unable to respond with a content type that the client supports",
            415 if unsaid => {
                "the body of the request was in an unknown format - accepted media types include: application/json"
            }
            406 | 415 => return said,
            409 => "the server reported a conflict",
            422 => "the server rejected our request due to an error in our request",
            429 => "the server has received too many requests and has asked us to try again later",
            503 => "the server is currently unable to handle the request",
            504 => {
                "the server was unable to return a response in the time allotted, but may still be processing the request"
            }
            500.. => return format!("an error on the server ({said:?}) has prevented the request from succeeding"),
            code => {
                return format!("the server responded with the status code {code} but did not return more information");
            }
        };
        known.to_owned()
    }
}

enum Authorization {
    None,
    Value(HeaderValue),
    /// Read for each request: such tokens are renewed.
    TokenFile(PathBuf),
}

impl Remote {
    /// The server of a kubeconfig's current context. Names of files in it are relative to it.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, RemoteError> {
        let text = std::fs::read_to_string(path).map_err(|e| RemoteError::Read(path.to_owned(), e))?;
        let wrong = |why: String| RemoteError::Kubeconfig(path.to_owned(), why);
        // Fields that are not known, or stand there twice, are no error in a kubeconfig.
        let config = yaml::parse(text.as_bytes()).map_err(|e| wrong(e.to_string()))?.value;
        let named = |list: &str, what: &str, name: &str| {
            let all = config[list].as_array().into_iter().flatten();
            let found = all.filter(|e| e["name"].as_str() == Some(name)).map(|e| e[what].clone()).next();
            found.ok_or_else(|| wrong(format!("it has no {what} {name:?}")))
        };
        let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
        let context = named("contexts", "context", config["current-context"].as_str().unwrap_or_default())?;
        let cluster = named("clusters", "cluster", &text(&context, "cluster"))?;
        let user = match text(&context, "user") {
            name if name.is_empty() => Value::Null,
            name => named("users", "user", &name)?,
        };
        let files = Files(path.parent().unwrap_or(Path::new("")));
        let url = text(&cluster, "server");
        let url: Uri = url.parse().map_err(|e| wrong(format!("server {url:?}: {e}")))?;
        if url.host().is_none() {
            return Err(wrong(format!("server {url}: it names no host")));
        }
        let tls = files.tls(&cluster, &user)?;
        let name = text(&cluster, "tls-server-name");
        let name = match name.is_empty() {
            true => None,
            false => Some(ServerName::try_from(name).map_err(|e| wrong(format!("tls-server-name: {e}")))?),
        };
        let header = |text: String| {
            let value = HeaderValue::from_str(&text).map_err(|_| wrong("its token is no header's value".into()));
            value.map(Authorization::Value)
        };
        let authorization = match (text(&user, "token"), text(&user, "tokenFile"), text(&user, "username")) {
            (_, file, _) if !file.is_empty() => Authorization::TokenFile(files.path(&file)),
            (token, ..) if !token.is_empty() => header(format!("Bearer {token}"))?,
            (.., name) if !name.is_empty() => {
                header(format!("Basic {}", STANDARD.encode(format!("{name}:{}", text(&user, "password")))))?
            }
            _ => Authorization::None,
        };
        Ok(Remote { client: client(tls, name), url, authorization })
    }

    /// Any server that these certificates vouch for; `None`: those that this machine trusts.
    pub fn trusting(url: Uri, pem: Option<&[u8]>) -> Result<Self, RemoteError> {
        let tls = trusting(pem)?.with_no_client_auth();
        Ok(Remote { client: client(tls, None), url, authorization: Authorization::None })
    }

    /// The same server with a parameter more in its URL.
    pub fn with_parameter(mut self, key: &str, value: &str) -> Result<Self, RemoteError> {
        let mut parts = self.url.into_parts();
        let path = parts.path_and_query.as_ref().map_or("/", |p| p.as_str());
        let mark = if path.contains('?') { '&' } else { '?' };
        let path = PathAndQuery::try_from(format!("{path}{mark}{key}={value}")).map_err(http::Error::from)?;
        parts.path_and_query = Some(path);
        self.url = Uri::from_parts(parts).map_err(http::Error::from)?;
        Ok(self)
    }

    /// Sends JSON to the server's own URL; code and body of the answer.
    pub async fn post(&self, body: Bytes, timeout: Duration) -> Result<(u16, Bytes), RemoteError> {
        self.ask(body, timeout).await.map(|reply| (reply.code, reply.body))
    }

    /// Sends JSON to the server's own URL.
    pub async fn ask(&self, body: Bytes, timeout: Duration) -> Result<Reply, RemoteError> {
        let mut request = Request::post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver");
        match &self.authorization {
            Authorization::None => {}
            Authorization::Value(value) => request = request.header(header::AUTHORIZATION, value),
            Authorization::TokenFile(path) => {
                let token = std::fs::read_to_string(path).map_err(|e| RemoteError::Read(path.clone(), e))?;
                request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
            }
        }
        self.send(request.body(Full::new(body))?, timeout).await
    }

    /// Reads what is at a URL.
    pub async fn get(&self, url: &Uri, timeout: Duration) -> Result<(u16, Bytes), RemoteError> {
        let request = Request::get(url.clone()).header(header::ACCEPT, "application/json, */*");
        self.send(request.body(Full::default())?, timeout).await.map(|reply| (reply.code, reply.body))
    }

    pub fn url(&self) -> &Uri {
        &self.url
    }

    async fn send(&self, request: Request<Full<Bytes>>, timeout: Duration) -> Result<Reply, RemoteError> {
        let answer = async {
            let answer = self.client.request(request).await?;
            let (code, headers) = (answer.status().as_u16(), answer.headers());
            let is_text = headers.get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"text/"));
            let retries = headers.contains_key(header::RETRY_AFTER);
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|e| RemoteError::Answer(e.to_string()))?.to_bytes();
            Ok(Reply { code, is_text, retries, body })
        };
        tokio::time::timeout(timeout, answer).await.unwrap_or(Err(RemoteError::Timeout))
    }
}

fn client(tls: ClientConfig, name: Option<ServerName<'static>>) -> Client<HttpsConnector<HttpConnector>, Full<Bytes>> {
    let mut builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if let Some(name) = name {
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    Client::builder(TokioExecutor::new()).build(builder.enable_http1().build())
}

/// A client that trusts these certificates, or what this machine trusts.
fn trusting(pem: Option<&[u8]>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, RemoteError> {
    crate::callout::trusting(pem.unwrap_or_default()).map_err(RemoteError::Authority)
}

/// Files beside a kubeconfig.
struct Files<'a>(&'a Path);

impl Files<'_> {
    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// `KEY-data`, else the file that `KEY` names.
    fn bytes(&self, of: &Value, key: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        if let Some(data) = of[format!("{key}-data").as_str()].as_str() {
            let wrong = |e: base64::DecodeError| RemoteError::Kubeconfig(self.0.to_owned(), format!("{key}-data: {e}"));
            return STANDARD.decode(data).map(Some).map_err(wrong);
        }
        let Some(file) = of[key].as_str().filter(|f| !f.is_empty()) else { return Ok(None) };
        let path = self.path(file);
        std::fs::read(&path).map(Some).map_err(|e| RemoteError::Read(path, e))
    }

    fn tls(&self, cluster: &Value, user: &Value) -> Result<ClientConfig, RemoteError> {
        if cluster["insecure-skip-tls-verify"].as_bool() == Some(true) {
            return Ok((*any_certificate::config()).clone());
        }
        let builder = trusting(self.bytes(cluster, "certificate-authority")?.as_deref())?;
        match (self.bytes(user, "client-certificate")?, self.bytes(user, "client-key")?) {
            (Some(chain), Some(key)) => {
                let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>()?;
                Ok(builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key)?)?)
            }
            _ => Ok(builder.with_no_client_auth()),
        }
    }
}
