//! The agent's end of the tunnel: nodes dial the server, and the server's connections to a node run back through it.
//!
//! The agent asks `GET /v1/isopod/connect` with `Upgrade: isopod-tunnel`. After 101 the roles swap: the server is an HTTP/2
//! client on that connection and the agent answers. Each `CONNECT host:port` is one byte stream that the agent joins to a
//! connection of its own.
//!
//! Invariant: the agent connects only where its [`Dial`] allows.

use crate::Error;
use crate::informer::Backoff;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use isopod_base::errors::Chain;
use kube::Client;
use kube::client::Body;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

pub const PATH: &str = "/v1/isopod/connect";
pub const PROTOCOL: &str = "isopod-tunnel";
/// Names the node that dials.
pub const NODE_HEADER: &str = "x-isopod-node";

const COPY_BUFFER: usize = 16 * 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// A dead server is noticed after [`KEEP_ALIVE`] and this.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM_WINDOW: u32 = 256 * 1024;
const MAX_STREAMS: u32 = 4096;

/// A byte stream both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Connects to `host:port` on the agent's side. An error of kind `PermissionDenied` is answered 403, others 502.
pub trait Dial: Send + Sync + 'static {
    fn dial(&self, authority: &str) -> Dialing;
}

impl<F: Fn(&str) -> Dialing + Send + Sync + 'static> Dial for F {
    fn dial(&self, authority: &str) -> Dialing {
        self(authority)
    }
}

/// Dials TCP to any IP address and port that `allowed` grants. Names are refused: the server resolves them.
pub struct TcpDial<A>(pub A);

impl<A: Fn(std::net::SocketAddr) -> bool + Send + Sync + 'static> Dial for TcpDial<A> {
    fn dial(&self, authority: &str) -> Dialing {
        let address = authority.parse::<std::net::SocketAddr>();
        let allowed = address.as_ref().is_ok_and(|a| (self.0)(*a));
        Box::pin(async move {
            let address = address.map_err(|e| io::Error::new(io::ErrorKind::PermissionDenied, e))?;
            if !allowed {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            let stream = tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(address)).await??;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// Asks the server for a tunnel and returns the connection, ready for [`serve`].
pub async fn open(client: &Client, node: &str) -> Result<TokioIo<Upgraded>, Error> {
    let request = Request::builder()
        .method(Method::GET)
        .uri(PATH)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .header(NODE_HEADER, node)
        .body(Body::empty())
        .map_err(|source| Error::Request { path: PATH.to_owned(), source })?;
    let response = client.send(request).await.map_err(Error::Transport)?;
    let code = response.status();
    if code != StatusCode::SWITCHING_PROTOCOLS {
        let body = response.into_body().collect_bytes().await.map_err(Error::Transport)?;
        let reason = crate::calls::status_of(code, &body).message;
        return Err(Error::TunnelRefused { code: code.as_u16(), reason });
    }
    hyper::upgrade::on(response).await.map(TokioIo::new).map_err(Error::Tunnel)
}

/// Keeps a tunnel open until `stop`: dials, serves, and dials again with a backoff.
pub async fn run(client: Client, node: String, dial: Arc<dyn Dial>, stop: CancellationToken) {
    let mut backoff = Backoff::new();
    let keep_open = async {
        loop {
            let ended = match open(&client, &node).await {
                Ok(io) => {
                    tracing::debug!(node, "tunnel to the server is open");
                    backoff.reset();
                    serve(io, dial.clone()).await
                }
                Err(e) => Err(e),
            };
            match ended {
                Ok(()) => tracing::debug!(node, "the server closed the tunnel"),
                Err(e) => tracing::warn!(node, error = %Chain(&e), "tunnel to the server broke; dialing again"),
            }
            tokio::time::sleep(backoff.next()).await;
        }
    };
    stop.run_until_cancelled(keep_open).await;
}

/// Answers the server's `CONNECT` requests on `io` until the server closes it.
pub async fn serve<IO>(io: IO, dial: Arc<dyn Dial>) -> Result<(), Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| answer(request, dial.clone()));
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(4 * STREAM_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .serve_connection(TokioIo::new(io), service)
        .await
        .map_err(Error::Tunnel)
}

async fn answer(request: Request<Incoming>, dial: Arc<dyn Dial>) -> Result<Response<Full<Bytes>>, Infallible> {
    let authority = match request.uri().authority() {
        Some(a) if request.method() == Method::CONNECT => a.as_str().to_owned(),
        _ => return Ok(refusal(StatusCode::METHOD_NOT_ALLOWED, "only CONNECT host:port is answered here")),
    };
    let mut target = match dial.dial(&authority).await {
        Ok(t) => t,
        Err(e) => {
            let denied = e.kind() == io::ErrorKind::PermissionDenied;
            let code = if denied { StatusCode::FORBIDDEN } else { StatusCode::BAD_GATEWAY };
            return Ok(refusal(code, &format!("cannot connect to {authority}: {e}")));
        }
    };
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut upgraded = TokioIo::new(upgraded);
        // Either side may just go away: that is how most streams end.
        let _ = copy_bidirectional_with_sizes(&mut upgraded, &mut target, COPY_BUFFER, COPY_BUFFER).await;
    });
    Ok(Response::new(Full::default()))
}

fn refusal(code: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(why.to_owned()));
    *response.status_mut() = code;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Empty};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server's end over a pipe, as the API server has it.
    async fn tunnel(dial: Arc<dyn Dial>) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(theirs, dial));
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(ours)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    fn connect(to: &str) -> Request<Empty<Bytes>> {
        Request::connect(to).body(Empty::new()).unwrap()
    }

    #[tokio::test]
    async fn a_connect_is_one_byte_stream_to_the_target() {
        let echo: Arc<dyn Dial> = Arc::new(|authority: &str| -> Dialing {
            assert_eq!(authority, "10.42.0.7:80");
            let (near, mut far) = tokio::io::duplex(1024);
            tokio::spawn(async move {
                let mut buf = [0; 5];
                far.read_exact(&mut buf).await.unwrap();
                far.write_all(&buf).await.unwrap();
            });
            Box::pin(async move { Ok(Box::new(near) as Box<dyn Stream>) })
        });
        let mut server = tunnel(echo).await;
        let response = server.send_request(connect("10.42.0.7:80")).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        stream.write_all(b"hello").await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"hello");
    }

    #[tokio::test]
    async fn what_may_not_or_cannot_be_dialed_is_refused_with_the_reason() {
        let mut server = tunnel(Arc::new(TcpDial(|a: std::net::SocketAddr| a.ip().is_loopback()))).await;
        for (to, want) in [("192.0.2.1:80", 403), ("example.org:80", 403), ("127.0.0.1:1", 502)] {
            let response = server.send_request(connect(to)).await.unwrap();
            assert_eq!(response.status(), want, "{to}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(String::from_utf8_lossy(&body).contains(to), "{body:?}");
        }
    }
}
