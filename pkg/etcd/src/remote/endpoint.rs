//! Where an etcd listens, and the connection to it.

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use isopod_base::errors::Chain;
use rustls::pki_types::ServerName;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::body::Body;

/// How long a connection may take to be made, handshake included.
const DIALING: Duration = Duration::from_secs(3);
/// A connection with open requests is asked so often whether it lives. etcd ends one that asks more often than every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(5);
/// What a stream may have on its way. A watch that nobody reads is given up before many of them fill the connection's.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// `http://HOST:PORT`, `https://HOST:PORT`, `unix:///PATH` or `unixs:///PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    place: Place,
    pub tls: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no endpoint of etcd: write http://HOST:PORT, https://HOST:PORT or unix:///PATH")]
pub struct InvalidEndpoint(String);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("no connection to {0}")]
    Connect(Endpoint, #[source] std::io::Error),
    #[error("no connection to {0} within {limit} s", limit = DIALING.as_secs())]
    Timeout(Endpoint),
    #[error("{0}: the TLS handshake failed")]
    Handshake(Endpoint, #[source] std::io::Error),
    #[error("{0} does not speak HTTP/2")]
    Http2(Endpoint, #[source] hyper::Error),
    #[error("{0}: its name cannot stand in a certificate")]
    Name(Endpoint),
    #[error("{0}: the CA of its certificate is not known")]
    NoTls(Endpoint),
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        // What stands before an @ may be a password.
        let invalid = || InvalidEndpoint(text.rsplit('@').next().unwrap_or_default().to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(invalid)?;
        let place = match scheme {
            "http" | "https" => {
                let uri: http::Uri = text.parse().map_err(|_| invalid())?;
                let plain = uri.path() == "/" && uri.query().is_none() && !rest.contains('@');
                let (Some(host), Some(port), true) = (uri.host(), uri.port_u16(), plain) else { return Err(invalid()) };
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                Place::Tcp { host, port }
            }
            "unix" | "unixs" if rest.starts_with('/') && rest.len() > 1 => Place::Unix(rest.into()),
            _ => return Err(invalid()),
        };
        Ok(Endpoint { place, tls: matches!(scheme, "https" | "unixs") })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.tls { "s" } else { "" };
        match &self.place {
            Place::Tcp { host, port } if host.contains(':') => write!(f, "http{s}://[{host}]:{port}"),
            Place::Tcp { host, port } => write!(f, "http{s}://{host}:{port}"),
            Place::Unix(path) => write!(f, "unix{s}://{}", path.display()),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Endpoint {
    /// Scheme and authority of requests.
    pub fn origin(&self) -> http::Uri {
        let scheme = if self.tls { "https" } else { "http" };
        let uri = match &self.place {
            Place::Tcp { .. } => self.to_string().parse(),
            Place::Unix(_) => format!("{scheme}://localhost").parse(),
        };
        uri.unwrap_or_else(|_| http::Uri::from_static("http://localhost"))
    }

    /// Connects, within a limit.
    pub async fn dial(&self, tls: Option<&Arc<rustls::ClientConfig>>) -> Result<SendRequest<Body>, DialError> {
        match tokio::time::timeout(DIALING, self.connect(tls)).await {
            Ok(connected) => connected,
            Err(_) => Err(DialError::Timeout(self.clone())),
        }
    }

    async fn connect(&self, tls: Option<&Arc<rustls::ClientConfig>>) -> Result<SendRequest<Body>, DialError> {
        let cannot = |e| DialError::Connect(self.clone(), e);
        let (stream, name): (Box<dyn Stream>, &str) = match &self.place {
            Place::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(cannot)?;
                let _ = stream.set_nodelay(true);
                (Box::new(stream), host)
            }
            Place::Unix(path) => (Box::new(UnixStream::connect(path).await.map_err(cannot)?), "localhost"),
        };
        if !self.tls {
            return self.http2(stream).await;
        }
        let tls = tls.ok_or_else(|| DialError::NoTls(self.clone()))?;
        let name = ServerName::try_from(name.to_owned()).map_err(|_| DialError::Name(self.clone()))?;
        let stream = TlsConnector::from(tls.clone()).connect(name, stream).await;
        self.http2(stream.map_err(|e| DialError::Handshake(self.clone(), e))?).await
    }

    async fn http2(&self, stream: impl Stream + 'static) -> Result<SendRequest<Body>, DialError> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_ANSWER)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let made = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(|e| DialError::Http2(self.clone(), e))?;
        let endpoint = self.clone();
        // It ends with its last sender.
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(%endpoint, error = %Chain(&e), "the connection to etcd ended");
            }
        });
        Ok(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for good in ["http://127.0.0.1:2379", "https://[::1]:2379", "https://etcd.example:1", "unix:///run/etcd.sock"] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        assert_eq!("http://a:1/".parse::<Endpoint>().unwrap().to_string(), "http://a:1");
        for bad in ["", "a:2379", "http://a", "http://a:1/path", "http://a:1?x", "ftp://a:1", "unix://x", "unix:///"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_not_repeated() {
        let error = "https://user:secret@host/x".parse::<Endpoint>().unwrap_err().to_string();
        assert!(error.contains("host/x") && !error.contains("secret"), "{error}");
    }
}
