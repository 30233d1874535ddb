//! One client's connection: TLS, HTTP/1 or 2 on it, and when it ends. Nobody keeps one without using it, however far it got.
//! A client that does not take its answer in time loses it: its stream over HTTP/2 (`streams`), its connection over HTTP/1, which
//! also ends when the head of a request does not come (`line`).
//! What many streams of a connection have to send at one time leaves together (`gather`).
//! With [`end_after`] a request is the last one that its connection begins: a GOAWAY is sent, those that run go on, and others come
//! over a new connection.

mod gather;
mod line;
mod streams;

use crate::aggregation::front_proxy::ProxyCertificates;
use crate::authn::{NotAfter, PeerCertificates};
use crate::fairness::Seated;
use crate::{ApiServer, chain};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use gather::gather;
use http::Request;
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use isopod_api::UserInfo;
use isopod_base::errors::Chain;
use line::Busy;
pub(crate) use line::{Line, end_after};
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use streams::Streams;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;

/// A client that sends no handshake keeps nothing busy for longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// All header fields of a request together, in bytes, as in Go's server: long selectors and many groups of an impersonated user.
const MAX_HEADERS: u32 = 1 << 20;
/// Over HTTP/1, where memory is set aside for each line before it is read.
const MAX_HEADER_LINES: usize = 1000;
/// Without a request, as upstream: what Go's clients keep a connection for.
const IDLE: Duration = Duration::from_secs(90);
/// How long a client may take to notice the end of a connection that it did not use.
const FAREWELL: Duration = Duration::from_secs(5);
/// For taking an answer that nothing else has a time for: a refusal, as a rule.
const TAKING: Duration = Duration::from_secs(30);

/// Who is connected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub IpAddr);

/// By when a client has to have taken the whole answer whose extension this is.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(pub Instant);

impl Deadline {
    /// Of an answer that nothing else has a time for.
    pub fn soon() -> Self {
        Deadline(Instant::now() + TAKING)
    }
}

/// The body of an answer, which keeps its connection busy.
struct Answer {
    body: Body,
    _busy: Busy,
    /// As upstream's, a request has its seat until it is answered: how much memory clients that do not read can take is limited too.
    _seat: Option<Seated>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a connection tells about every request on it.
struct Caller {
    address: Option<PeerAddress>,
    peer: PeerCertificates,
    proxy: Option<ProxyCertificates>,
    not_after: Option<NotAfter>,
    line: Line,
}

impl Caller {
    fn of(server: &ApiServer, stream: &TlsStream<TcpStream>, address: Option<PeerAddress>) -> Self {
        let tls = stream.get_ref().1;
        let chain = tls.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
        let (peer, proxy) = match &server.config.front_proxy {
            Some(front_proxy) => front_proxy.tell_apart(chain),
            None => (PeerCertificates::new(chain), None),
        };
        let not_after = peer.leaf().and_then(|leaf| isopod_auth::certificate::not_after(leaf)).map(NotAfter);
        Self { address, peer, proxy, not_after, line: Line::new(tls.alpn_protocol() == Some(b"h2")) }
    }

    /// Puts into the request's extensions who sent it.
    fn sign(&self, mut request: Request<Body>) -> Request<Body> {
        let extensions = request.extensions_mut();
        // Identity by extension is for in-process callers alone.
        extensions.remove::<UserInfo>();
        extensions.insert(self.peer.clone());
        extensions.insert(self.line.clone());
        if let Some(not_after) = self.not_after {
            extensions.insert(not_after);
        }
        if let Some(address) = self.address {
            extensions.insert(address);
        }
        if let Some(proxy) = &self.proxy {
            extensions.insert(proxy.clone());
        }
        request
    }
}

/// Serves a client until it goes, its connection is to end, or `shutdown`.
pub(crate) async fn serve(
    server: Arc<ApiServer>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let address = stream.peer_addr().ok().map(|a| PeerAddress(a.ip().to_canonical()));
    let Some(stream) = shake_hands(&server, &acceptor, stream).await else { return };
    let caller = Caller::of(&server, &stream, address);
    let line = caller.line.clone();
    let heard = line.clone();
    let stream = InspectReader::new(stream, move |bytes: &[u8]| {
        if !bytes.is_empty() {
            heard.heard(bytes.len());
        }
    });
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let (server, line, busy) = (server.clone(), caller.line.clone(), caller.line.busy(request.version()));
        let request = caller.sign(request.map(Body::new));
        async move {
            // Boxed: the task of a watch's stream, which goes on when this is done, has room for it else.
            let answer = Box::pin(chain::serve(server, request)).await;
            if let Some(Deadline(until)) = answer.extensions().get() {
                line.answer_by(*until);
                streams::answer_by(*until);
            }
            Ok::<_, Infallible>(held(answer, busy))
        }
    });
    let builder = builder();
    let (stream, mut gathered) = gather(stream, line.many());
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = poll_fn(|cx| gathered.poll(cx, line.shared(), connection.as_mut())) => Some(ended),
        () = line.late() => return,
        () = shutdown.cancelled() => None,
        () = line.hung_up() => None,
        () = line.idle(IDLE) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = poll_fn(|cx| gathered.poll(cx, false, connection.as_mut())) => ended,
                () = line.late() => return,
                () = line.idle(IDLE + FAREWELL) => return,
            }
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "connection");
    }
}

async fn shake_hands(server: &ApiServer, acceptor: &TlsAcceptor, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
    let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
    if !matches!(shaken, Ok(Ok(_))) {
        server.metrics.handshakes.inc();
    }
    match shaken {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(e)) => {
            tracing::debug!(error = %Chain(&e), "TLS handshake");
            None
        }
        Err(_) => None,
    }
}

fn held(mut answer: Response, busy: Busy) -> Response {
    let seat = answer.extensions_mut().remove::<Seated>();
    answer.map(|body| Body::new(Answer { body, _busy: busy, _seat: seat }))
}

fn builder() -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(MAX_HEADERS as usize)
        .max_headers(MAX_HEADER_LINES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    builder
}
