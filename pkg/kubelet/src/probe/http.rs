//! One HTTP request as probes and hooks make it: no proxy, no certificate check, a time limit, redirects on the same host.

use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// What of an answer's body is kept (upstream's `maxRespBodyLength`).
const MAX_BODY: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub https: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Target {
    /// `port` is the action's, resolved; `pod_ip` the host when the action names none.
    pub fn new(action: &HTTPGetAction, port: u16, pod_ip: &str, agent: &str) -> Self {
        let mut headers: Vec<(String, String)> =
            action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
        let has = |name: &str, headers: &[(String, String)]| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        if !has("User-Agent", &headers) {
            headers.push(("User-Agent".into(), agent.to_owned()));
        }
        if !has("Accept", &headers) {
            headers.push(("Accept".into(), "*/*".into()));
        }
        // An empty value means: do not send it.
        headers.retain(|(n, v)| {
            !(v.is_empty() && (n.eq_ignore_ascii_case("accept") || n.eq_ignore_ascii_case("user-agent")))
        });
        let path = action.path.as_deref().unwrap_or_default();
        Target {
            https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
            host: action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip).to_owned(),
            port,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            headers,
        }
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub fn url(&self) -> String {
        format!("{}://{}{}", if self.https { "https" } else { "http" }, self.authority(), self.path)
    }

    /// Where a redirect leads; `None` when to another host.
    fn redirected(&self, location: &str) -> Option<Target> {
        let uri: Uri = location.parse().ok()?;
        let mut next = self.clone();
        if let Some(host) = uri.host() {
            if host.trim_matches(['[', ']']) != self.host {
                return None;
            }
            next.https = uri.scheme_str() == Some("https");
            next.port = uri.port_u16().unwrap_or(if next.https { 443 } else { 80 });
        }
        next.path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        Some(next)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("dial tcp {0}: {1}")]
    Connect(String, String),
    #[error("context deadline exceeded (Client.Timeout exceeded while awaiting headers)")]
    Timeout,
    #[error("{0}")]
    Request(String),
}

/// As Go words the commonest connection errors.
pub fn dial_error(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        _ => e.to_string(),
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

pub async fn get(target: &Target, timeout: Duration) -> Result<Answer, HttpError> {
    tokio::time::timeout(timeout, follow(target)).await.unwrap_or(Err(HttpError::Timeout))
}

async fn follow(first: &Target) -> Result<Answer, HttpError> {
    let mut target = first.clone();
    for _ in 0..=MAX_REDIRECTS {
        let (answer, location) = once(&target).await?;
        let next = location.filter(|_| (300..400).contains(&answer.status)).and_then(|l| target.redirected(&l));
        match next {
            Some(next) => target = next,
            None => return Ok(answer),
        }
    }
    Err(HttpError::Request("stopped after 10 redirects".into()))
}

async fn once(target: &Target) -> Result<(Answer, Option<String>), HttpError> {
    let authority = target.authority();
    let connect = |e: std::io::Error| HttpError::Connect(authority.clone(), dial_error(&e));
    let tcp = TcpStream::connect(&authority).await.map_err(connect)?;
    if target.https {
        let name = rustls::pki_types::ServerName::try_from(target.host.clone());
        let name = name.map_err(|e| HttpError::Request(e.to_string()))?;
        let tls = tokio_rustls::TlsConnector::from(no_verify()).connect(name, tcp).await;
        send(tls.map_err(|e| HttpError::Request(e.to_string()))?, target, &authority).await
    } else {
        send(tcp, target, &authority).await
    }
}

async fn send<IO>(io: IO, target: &Target, authority: &str) -> Result<(Answer, Option<String>), HttpError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let bad = |e: &dyn std::fmt::Display| HttpError::Request(e.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| bad(&e))?;
    let driver = tokio::spawn(connection);
    let mut request = Request::get(&target.path).body(Empty::<bytes::Bytes>::new()).map_err(|e| bad(&e))?;
    let headers = request.headers_mut();
    for (name, value) in &target.headers {
        let (Ok(n), Ok(v)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) else {
            continue;
        };
        headers.append(n, v);
    }
    if !headers.contains_key(http::header::HOST) {
        headers.insert(http::header::HOST, HeaderValue::from_str(authority).map_err(|e| bad(&e))?);
    }
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    let response = sender.send_request(request).await.map_err(|e| bad(&e))?;
    let status = response.status().as_u16();
    let location = response.headers().get(http::header::LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
    // A longer body is no failure: what was read until then is not needed whole.
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    driver.abort();
    Ok((Answer { status, body: String::from_utf8_lossy(&body).into_owned() }, location))
}

/// Probes ask whether a server answers, not who it is.
fn no_verify() -> Arc<rustls::ClientConfig> {
    static CONFIG: std::sync::OnceLock<Arc<rustls::ClientConfig>> = std::sync::OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let provider = isopod_pki::tls::provider();
            let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .expect("the provider supports the default protocol versions");
            let verifier = Arc::new(AnyCertificate(provider));
            Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
        })
        .clone()
}

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Answers each connection with the next text; gives back what was asked.
    async fn server(answers: Vec<&'static str>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut s, _) = listener.accept().await.unwrap();
                let mut buf = vec![0; 4096];
                let n = s.read(&mut buf).await.unwrap();
                asked.push(String::from_utf8_lossy(&buf[..n]).into_owned());
                s.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (port, asked)
    }

    fn target(port: u16) -> Target {
        let action = HTTPGetAction { path: Some("/healthz".into()), ..Default::default() };
        Target::new(&action, port, "127.0.0.1", "kube-probe/1.37")
    }

    #[tokio::test]
    async fn follows_redirects_on_the_same_host_only() {
        let (port, asked) = server(vec![
            "HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 503 No\r\nContent-Length: 3\r\n\r\nbad",
        ])
        .await;
        let answer = get(&target(port), Duration::from_secs(5)).await.unwrap();
        assert_eq!(answer, Answer { status: 503, body: "bad".into() });
        let asked = asked.await.unwrap();
        assert!(
            asked[0].starts_with("GET /healthz HTTP/1.1\r\n")
                && asked[0].to_lowercase().contains("user-agent: kube-probe/1.37")
        );
        assert!(asked[1].starts_with("GET /other "));
        let (port, _) =
            server(vec!["HTTP/1.1 302 Found\r\nLocation: http://other.example/\r\nContent-Length: 0\r\n\r\n"]).await;
        assert_eq!(get(&target(port), Duration::from_secs(5)).await.unwrap().status, 302);
    }

    #[tokio::test]
    async fn errors_read_as_upstreams() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let late = get(&target(port), Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(late, HttpError::Timeout));
        drop(listener);
        let refused = get(&target(port), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(refused.to_string(), format!("dial tcp 127.0.0.1:{port}: connect: connection refused"));
    }
}
