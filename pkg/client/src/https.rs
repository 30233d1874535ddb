//! The HTTPS connection to an API server: HTTP/2, so that all watches of a process share one, and HTTP/1.1 for requests that
//! upgrade to another protocol (the tunnel, exec), which HTTP/2 cannot.

use crate::Error;
use http::{Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{self, Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::Config;
use kube::client::{Body, ConfigExt};
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tower::Service;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// A server that is gone is noticed after these two: watches are silent for minutes.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_CONNECTION: Duration = Duration::from_secs(90);
const STREAM_WINDOW: u32 = 256 * 1024;

/// Sends each request over the connection that fits it.
#[derive(Clone)]
pub(crate) struct Https {
    any: Client<Connector, Body>,
    http1: Client<Connector, Body>,
}

impl Https {
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        install_provider();
        let tls = config.rustls_client_config().map_err(Error::Client)?;
        let connector = |protocols: &[&[u8]]| {
            let mut tls = tls.clone();
            tls.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
            Connector { tls: TlsConnector::from(Arc::new(tls)), server_name: config.tls_server_name.clone() }
        };
        let client = |connector| {
            legacy::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_CONNECTION)
                .http2_keep_alive_interval(PING_INTERVAL)
                .http2_keep_alive_timeout(PING_TIMEOUT)
                .http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(8 * STREAM_WINDOW)
                .build(connector)
        };
        Ok(Https { any: client(connector(&[b"h2", b"http/1.1"])), http1: client(connector(&[b"http/1.1"])) })
    }
}

/// One TLS provider for the whole process.
fn install_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been faster, with the same one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}

impl Service<Request<Body>> for Https {
    type Response = Response<Incoming>;
    type Error = legacy::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let upgrades = request.headers().contains_key(header::UPGRADE);
        if upgrades { self.http1.request(request) } else { self.any.request(request) }
    }
}

#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    /// The name to ask for and to verify, when it is not the URL's host.
    server_name: Option<String>,
}

impl Connector {
    async fn connect(self, uri: Uri) -> io::Result<TokioIo<Io>> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = uri.scheme_str() != Some("http");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        tcp.set_nodelay(true)?;
        if !secure {
            return Ok(TokioIo::new(Io(Either::Left(tcp))));
        }
        let name = ServerName::try_from(self.server_name.unwrap_or(host)).map_err(io::Error::other)?;
        let tls = self.tls.connect(name, tcp).await?;
        Ok(TokioIo::new(Io(Either::Right(Box::new(tls)))))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Io>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Io>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connect = self.clone().connect(uri);
        Box::pin(async move { tokio::time::timeout(CONNECT_TIMEOUT, connect).await? })
    }
}

/// A connection, with or without TLS.
struct Io(Either<TcpStream, Box<TlsStream<TcpStream>>>);

impl Connection for Io {
    fn connected(&self) -> Connected {
        match &self.0 {
            Either::Right(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2") => Connected::new().negotiated_h2(),
            _ => Connected::new(),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
